"""The interactive shell, and other ways to a terminal, for tests that type: started, waited for, and gone at the end."""

import os
import re
import time

import pytest

from tests.system import traces_left
from tests.system.screen import Screen

#: what a terminal obeys
_CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
_PROMPT = b"[?2004h"


class Typist(Screen):
    """Somebody at the shell."""

    def prompt(self) -> bytes:
        """What was shown up to the next prompt, the prompt with it; nothing of it is obeyed."""
        shown = self.expect(_PROMPT)
        plain = _CONTROL.sub(b"", shown + self.expect(b"[?25h"))
        return b"\r\n" + re.sub(rb"\r+\n", b"\r\n", plain)

    def press_until_prompt(self, key: bytes) -> bytes:
        """As somebody does whose key came before a program was there for it."""
        until = time.monotonic() + 60
        while _PROMPT not in self.seen:
            assert self.process.poll() is None, self.seen
            assert time.monotonic() < until, self.seen
            self.type(key)
            self._read(3.0)
        return self.prompt()

    def line(self, text: bytes) -> bytes:
        """What a line showed, with the prompt behind it."""
        self.type(text + b"\r")
        self.expect(b"[?2004l")
        return self.prompt()


@pytest.fixture
def shell(caller):
    """Starts shells at terminals, and waits for their first prompt; nothing may be left at the end."""
    opened = []

    def start(*words, wait=True, env=None, program=None):
        mark = f"typist-{os.getpid()}-{len(opened)}-{caller.backend}"
        made = Typist(
            caller, program or caller.command, *words, env={traces_left.MARK: mark, **(env or {})}
        )
        made.mark = mark
        opened.append(made)
        if wait:
            made.prompt()
        return made

    yield start
    for made in opened:  # the session of one may serve the others
        made.close()
    for made in opened:
        left = traces_left.gone(lambda m=made.mark: traces_left.processes(m))
        assert not left, f"left behind: {left}"
