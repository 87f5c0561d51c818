"""A case of the differential test: a text for the shell, and how it is called. Read from cases/.

A file has a line that says what it is about, then cases: `== NAME`, directives that begin with `@`, the text
up to the next case. Not how it is run (running.py). Directives:

    @words WORDS            the shell's words; TEXT among them is the text. Without: `-c TEXT`
    @script WORDS           the text is a file that is run, with these arguments
    @stdin-script WORDS     the text is standard input, the words are the shell's
    @input BYTES            standard input, as in a Python literal; @input-size N: so many bytes;
                            @input-file BYTES: a file; @open-input: a pipe that nobody writes to
    @stdout gone|file|both  nobody reads it; it is a file; so it is, and standard error is the same
    @closed FDS             closed when it begins       @ignored SIGNALS: ignored when it begins
    @umask, @cwd, @env NAME=VALUE, @limit NAME=N, @nice N
    @kill SIGNAL            sent to the process group when it has written `ready`
    @tty                    on a terminal; @tty-when TEXT BYTES: these are typed when it has written that
    @pids                   numbers in the output are those of processes, and may differ
    @tree                   the files that it leaves are compared, too
    @differs WAYS: REASON   by these ways (`*`: all) it is not the same, and why; more than once
"""

from __future__ import annotations

import ast
import shlex
from dataclasses import dataclass, field
from pathlib import Path

CASES = Path(__file__).with_name("cases")
_FLAGS = {"tty", "pids", "tree", "open-input"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    text: str
    form: str = "text"  # script, stdin
    words: tuple[str, ...] = ("-c", "TEXT")
    given: dict[str, str] = field(default_factory=dict)
    env: tuple[tuple[str, str], ...] = ()
    differs: tuple[tuple[str, str], ...] = ()

    @property
    def input(self) -> bytes | None:
        """What standard input holds; None where it is not a pipe of a length."""
        if self.form == "stdin":
            return self.text.encode() + b"\n"
        if "input" in self.given:
            return literal(self.given["input"].strip("'"))
        if "input-size" in self.given:
            return b"0123456789abcde\n" * (int(self.given["input-size"]) // 16)
        return None

    def why_not(self, way: str) -> str | None:
        """The reason for which it differs by a way."""
        for ways, reason in self.differs:
            if ways == "*" or way in ways.split():
                return reason
        return None


def literal(text: str) -> bytes:
    """The bytes of a text with escapes."""
    found = ast.literal_eval("b'" + text.replace("'", "\\'") + "'")
    assert isinstance(found, bytes)
    return found


def load_cases() -> list[Case]:
    return [case for path in sorted(CASES.glob("*.txt")) for case in _parse(path)]


def _parse(path: Path) -> list[Case]:
    _, *parts = ("\n" + path.read_text(encoding="utf-8")).split("\n== ")
    return [_case(path.stem, part) for part in parts]


def _case(topic: str, part: str) -> Case:
    name, *lines = part.removesuffix("\n").split("\n")
    given: dict[str, str] = {}
    env: list[tuple[str, str]] = []
    differs: list[tuple[str, str]] = []
    form, words = "text", ("-c", "TEXT")
    while lines and lines[0].startswith("@"):
        key, _, rest = lines.pop(0)[1:].partition(" ")
        if key in ("words", "script", "stdin-script"):
            form = {"words": "text", "script": "script", "stdin-script": "stdin"}[key]
            words = tuple(shlex.split(rest))
        elif key == "differs":
            ways, _, reason = rest.partition(": ")
            assert reason, (name, rest)
            differs.append((ways, reason))
        elif key == "env":
            variable, _, value = rest.partition("=")
            env.append((variable, value))
        else:
            given[key] = rest
    return Case(
        name=f"{topic}: {name}",
        text="\n".join(lines),
        form=form,
        words=words,
        given=given,
        env=tuple(env),
        differs=tuple(differs),
    )
