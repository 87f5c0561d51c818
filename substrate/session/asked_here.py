"""The client's side of a question of its supervisor: it stands on our terminal (asked_client.py).

Given to whoever waits for a supervisor (shim/joining.py), which knows nothing of questions. The screen is that of
every question (approvals_terminal.py). Invariant: what is typed answers the question that stands there, and nothing that came
before it. Spec: policy.md §3.
"""

from __future__ import annotations

import os
import time

from substrate.session.approvals_terminal import TerminalAsking, open_terminal
from substrate.session.asked_client import BACK, unpacked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.session.approvals_values import Question


class AskedHere:
    """See the module. The calls are those of a loop that polls `fds` until `next_look`."""

    def __init__(self) -> None:
        self._terminal: TerminalAsking | None = None
        self._queue: list[tuple[Question, bool, str]] = []

    def put(self, number: int, text: str) -> bool:
        """Shows a question, or has it wait behind another one; False where it cannot be shown."""
        try:
            found = unpacked(number, text)
        except (ValueError, KeyError, TypeError):
            return False
        if self._terminal is None:
            fd = open_terminal()
            if fd is None:
                return False
            term = os.environb.get(b"TERM", b"")
            self._terminal = TerminalAsking(fd, None, escapes=term not in (b"", b"dumb"))
        self._queue.append(found)
        self._next()
        return True

    def over(self, number: int, line: str) -> None:
        """It is not asked any more."""
        self._queue = [each for each in self._queue if each[0].number != number]
        if self._terminal is not None and self._terminal.number == number:
            self._terminal.take_away(line, time.monotonic())
        self._next()

    def say(self, text: str) -> None:
        if self._terminal is not None:
            self._terminal.say(text)

    def _next(self) -> None:
        terminal = self._terminal
        if terminal is None or terminal.gone or not self._queue:
            return
        if terminal.number:
            terminal.count(len(self._queue) - 1)
            return
        question, exact, line = self._queue[0]
        terminal.show(
            *(question, time.monotonic()),
            exact=exact,
            others=len(self._queue) - 1,
            line=lambda: line,
        )

    @property
    def is_asking(self) -> bool:
        """Whether the screen is ours."""
        return self._terminal is not None and self._terminal.is_taken

    def fds(self) -> tuple[tuple[int, int], ...]:
        return () if self._terminal is None else self._terminal.fds()

    def next_look(self) -> float | None:
        return None if self._terminal is None else self._terminal.next_look()

    def pump(self) -> tuple[int, str, str] | None:
        """(number, choice, rule) of what was answered; BACK: the terminal is the command's again; an empty choice:
        nobody can be asked here any more."""
        terminal = self._terminal
        if terminal is None:
            return None
        number = terminal.number
        said = terminal.pump(time.monotonic())
        if terminal.gone:
            self.close()
            return number, "", ""
        if said is not None:
            return number, *said
        if terminal.is_idle and not self._queue:
            self.close()
            return 0, BACK, ""
        return None

    def close(self) -> None:
        """Gives the terminal back."""
        terminal, self._terminal = self._terminal, None
        self._queue = []
        if terminal is not None:
            terminal.close()
