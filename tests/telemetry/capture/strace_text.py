"""Reads the text that strace writes with -f -xx -y: lines, calls, and the values in them.

Logic without I/O. Every line is one of the forms below or an `UnknownLine`: what is not understood
is never left out. With -xx all text of the traced program is hexadecimal, so that nothing which a
program does can look like strace's own words.

Sources: strace(1), and the lines of strace 6.1 in test_strace_text.py.
"""

from __future__ import annotations

import errno
import re
import signal
from dataclasses import dataclass, field

ERESTARTS = {"ERESTARTSYS": 512, "ERESTARTNOINTR": 513, "ERESTARTNOHAND": 514}
ERESTARTS |= {"ERESTART_RESTARTBLOCK": 516, "ENOTSUPP": 524}
#: no error number is larger (<linux/err.h>)
MOST_ERRNO = 4095


class UnknownLine(ValueError):
    """A line, or a part of one, of no known form."""


@dataclass(frozen=True, slots=True)
class Text:
    """`"\\x61"`, cut where `...` is behind it; `@"\\x61"` is the name of an abstract socket."""

    data: bytes
    cut: bool = False
    abstract: bool = False


@dataclass(frozen=True, slots=True)
class Fd:
    """`3<\\x2f\\x61>`, `3<\\x2f\\x61>(deleted)`, `AT_FDCWD<\\x2f>`; a number alone is a Word."""

    number: str
    path: bytes


@dataclass(frozen=True, slots=True)
class Word:
    """Anything bare: numbers, flags, NULL, `...`."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """`htons(80)` in a value."""

    name: str
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """`[...]`, `{...}`, `~[...]`; `after`: what the call made of it, `{...} => {...}`."""

    opened: str
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Item:
    name: str
    value: Value
    after: Value | None = None


Value = Text | Fd | Word | Call | Group


@dataclass(frozen=True, slots=True)
class Result:
    """`number`: negative errno included; None for `?`."""

    number: int | None


@dataclass(slots=True)
class Entry:
    """One call. `began` and `ended`: numbers of its lines; `ended` is None where the task died."""

    tid: int
    name: str
    began: int
    text: str
    arguments: tuple[Value, ...] = ()
    result: Result = field(default_factory=lambda: Result(None))
    ended: int | None = None
    last_tid: int = 0  #: of the line with its end: another one after an exec by a thread


@dataclass(frozen=True, slots=True)
class Ended:
    tid: int
    at: int
    status: int  #: as wait(2) gives it


@dataclass(frozen=True, slots=True)
class Superseded:
    """The leader's number belongs to the thread `by` from here on, which became a program."""

    tid: int
    at: int
    by: int


Happening = Entry | Ended | Superseded

_LINE = re.compile(r"(\d+) +(.*)\Z", re.S)
_CALL = re.compile(r"([a-z_][a-z0-9_]*)\(")
_RESUMED = re.compile(r"<\.\.\. ([a-z_][a-z0-9_]*) resumed>(.*)\Z", re.S)
_EXITED = re.compile(r"\+\+\+ exited with (\d+) \+\+\+\Z")
_KILLED = re.compile(r"\+\+\+ killed by SIG([A-Z0-9+_]+)( \(core dumped\))? \+\+\+\Z")
_SUPERSEDED = re.compile(r"\+\+\+ superseded by execve in pid (\d+) \+\+\+\Z")
_SIGNAL = re.compile(r"--- (SIG[A-Z0-9+_]+ \{.*\}|stopped by SIG[A-Z0-9+_]+) ---\Z")
_RESULT = re.compile(
    r"(?:(?P<number>-?\d+|0x[0-9a-f]+)(?:<[\\x0-9a-f]*>(?:\(deleted\))?)?"
    r"(?: (?P<error>E[A-Z0-9_]+) \(.*\)| \(errno (?P<other>\d+)\)| \([A-Za-z][^)]*\))?"
    r"|\?(?: (?P<restart>E[A-Z_]+) \(.*\))?)\Z"
)
_UNFINISHED = " <unfinished ...>"
_SPACE = re.compile(r"\s*(?:/\*.*?\*/\s*)*")
_STRING = re.compile(r'(@?)"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_FD = re.compile(r"(-?\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>(\(deleted\))?")
_WORD = re.compile(r"(?:[^\s,\[\]{}()\"=<>@~]|<<)+")
_NAME = re.compile(r"([a-z_][a-z0-9_]*)=(?!>)")
_SIGNAL_NUMBERS = {"RTMIN": 32}


def read_happenings(text: str) -> list[Happening]:
    """What strace saw, in the order of the lines in which it began. Raises UnknownLine."""
    happenings: list[Happening] = []
    pending: dict[int, Entry] = {}
    for at, line in enumerate(text.split("\n")[:-1]):
        match = _LINE.match(line)
        if not match:
            raise UnknownLine(line[:200])
        tid, rest = int(match[1]), match[2]
        if rest.startswith("---"):
            if not _SIGNAL.match(rest):
                raise UnknownLine(line[:200])
        elif rest.startswith("+++"):
            happening = _read_end(tid, at, rest)
            happenings.append(happening)
            if left := pending.pop(tid, None):
                _finish(left, left.text + ")", None, at)
            if isinstance(happening, Superseded):
                # the call that the new leader is in goes on under its new number
                if (entry := pending.pop(happening.by, None)) is None:
                    raise UnknownLine(line[:200])
                pending[tid] = entry
        else:
            _read_call(tid, at, rest, happenings, pending)
    for entry in pending.values():
        raise UnknownLine(f"{entry.tid} {entry.name}: neither its end nor the task's was seen")
    return happenings


def _read_end(tid: int, at: int, rest: str) -> Ended | Superseded:
    if match := _EXITED.match(rest):
        return Ended(tid, at, int(match[1]) << 8)
    if match := _KILLED.match(rest):
        return Ended(tid, at, signal_number(match[1]) | (0x80 if match[2] else 0))
    if match := _SUPERSEDED.match(rest):
        return Superseded(tid, at, int(match[1]))
    raise UnknownLine(rest[:200])


def signal_number(name: str) -> int:
    if match := re.fullmatch(r"RT_(\d+)", name):
        return 32 + int(match[1])
    if name in _SIGNAL_NUMBERS:
        return _SIGNAL_NUMBERS[name]
    return int(signal.Signals[f"SIG{name}"])


def _read_call(
    tid: int, at: int, rest: str, happenings: list[Happening], pending: dict[int, Entry]
) -> None:
    if match := _RESUMED.match(rest):
        entry = pending.pop(tid, None)
        if entry is None or entry.name != match[1]:
            raise UnknownLine(rest[:200])
        entry.text += match[2]
        entry.last_tid = tid
    else:
        if not (match := _CALL.match(rest)):
            raise UnknownLine(rest[:200])
        if tid in pending:
            raise UnknownLine(f"{tid} is in {pending[tid].name} already: {rest[:200]}")
        entry = Entry(tid, match[1], at, rest[match.end() :], last_tid=tid)
        happenings.append(entry)
    if entry.text.endswith(_UNFINISHED):
        entry.text = entry.text.removesuffix(_UNFINISHED)
        pending[tid] = entry
        return
    # a task that dies in a call: `name(1, 2 <unfinished ...>) = ?`
    died = re.match(r"(.*) <unfinished \.\.\.>(\) += \?)\Z", entry.text, re.S)
    text = died[1] + died[2] if died else entry.text
    _finish(entry, text, None if died else at, at)


def _finish(entry: Entry, text: str, ended: int | None, at: int) -> None:
    """Reads the arguments and the result of a call whose text is whole."""
    reader = _Reader(text)
    entry.arguments = tuple(item.value for item in reader.items(")"))
    rest = text[reader.at :].strip()
    entry.text = ""
    entry.ended = ended
    if not rest and ended is None:
        return
    if not rest.startswith("= "):
        raise UnknownLine(f"{entry.name}: {rest[:200]!r} at line {at}")
    entry.result = Result(parse_result(rest[2:]))


def parse_result(text: str) -> int | None:
    """`3<...>`, `-1 ENOENT (...)`, `-1 (errno 5)`, `?`, `? ERESTARTSYS (...)`."""
    match = _RESULT.match(text)
    if not match:
        raise UnknownLine(f"result {text[:200]!r}")
    if name := match["error"] or match["restart"]:
        number = ERESTARTS.get(name) or getattr(errno, name, None)
        if number is None:
            raise UnknownLine(f"error {name}")
        return -int(number)
    if match["other"]:
        number = int(match["other"])
        if not 0 < number <= MOST_ERRNO:
            raise UnknownLine(f"errno {number}")
        return -number
    return None if match["number"] is None else int(match["number"], 0)


class _Reader:
    """One value after the other, from left to right."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def items(self, end: str) -> tuple[Item, ...]:
        """Up to `end`, which is read too. Between them are commas, or spaces in a set of bits."""
        found: list[Item] = []
        while True:
            self._space()
            if self.text.startswith(end, self.at):
                self.at += len(end)
                return tuple(found)
            if self.text.startswith(",", self.at):
                self.at += 1
                continue
            found.append(self._item())

    def _space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        assert match is not None  # it matches nothing, too
        self.at = match.end()

    def _item(self) -> Item:
        name = ""
        if match := _NAME.match(self.text, self.at):
            name, self.at = match[1], match.end()
        value = self._value()
        after = None
        self._space()
        if self.text.startswith("=>", self.at):
            self.at += 2
            self._space()
            after = self._value()
        return Item(name, value, after)

    def _value(self) -> Value:
        text, at = self.text, self.at
        if match := _STRING.match(text, at):
            self.at = match.end()
            return Text(_from_hex(match[2]), bool(match[3]), bool(match[1]))
        for opened, closed in (("~[", "]"), ("[", "]"), ("{", "}")):
            if text.startswith(opened, at):
                self.at += len(opened)
                return Group(opened, self.items(closed))
        if match := _FD.match(text, at):
            self.at = match.end()
            path = _from_hex(match[2])
            return Fd(match[1], path + b" (deleted)" if match[3] else path)
        if match := _WORD.match(text, at):
            self.at = match.end()
            if text.startswith("(", self.at):
                self.at += 1
                return Call(match[0], self.items(")"))
            return Word(match[0])
        raise UnknownLine(f"no value at {text[at : at + 80]!r} of {text[:200]!r}")


def _from_hex(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def parse_values(text: str) -> tuple[Value, ...]:
    """The arguments in `text`, which ends with their parenthesis."""
    return tuple(item.value for item in _Reader(text).items(")"))
