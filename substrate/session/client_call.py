"""What a client asks of a session's supervisor, as values: parsed from bytes that are not trusted.

A packet (world/wire.py) and, beside it, a sealed memfd with what does not fit in one: u32 argc, envc,
umask, zero in native order, then NUL-ended file, cwd, argv, environment. Not how it is carried out
(executing.py), nor who may ask (doors.py). Invariants: nothing is read that could still be changed; every
number is bounded; what is not exactly as it should be is refused with what is wrong with it. Spec: shell.md §2.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from typing import Any

from substrate.errors import StateError
from substrate.session.signals import FORWARDED
from substrate.telemetry.trace.ids import is_span_id
from substrate.values import value
from substrate.world import wire

# client → supervisor
EXECUTE, SIGNAL, CONTINUE, VERB, REPLY = b"X", b"K", b"C", b"V", b"R"
# supervisor → client
ACCEPTED, TEXT, ENDED, DENIED, FAILED, STOPPED, JSON = b"A", b"T", b"E", b"D", b"F", b"S", b"J"
# of questions on the client's terminal: one is put, is over, was answered by what cannot be done
QUESTION, OVER, WRONG = b"Q", b"O", b"W"

VERSION = "1"
COMMAND, SHIM, ASK = "command", "shim", "ask"
MOST_BYTES = 4 << 20
#: PATH_MAX: whoever walks up a path pays for each of its directories
MOST_PATH = 4096
_MOST_WORDS = 1 << 17
_HEAD = struct.Struct("=4I")
#: <linux/fcntl.h>; Python names them only where its own headers did
_GET_SEALS, _SEALED = 1034, 0x2 | 0x4 | 0x8
_MOST_FLAGS = 16384
#: fds of a command besides its streams
_MOST_EXTRA = 4


class BadCall(Exception):
    """What a client sent is not what the protocol says; the text says how."""


#: what to do instead
OWN_WORLD = "run it in a world of its own: substrate --fresh -c …"


class Widens(StateError):
    """A setting that a session which runs already does not take: it could widen what holds there."""


@value
class Flags:
    """Settings of one call, which narrow those of the session. `terminal`: columns and rows of the
    caller's; `timeout_s`: None is the session's; `cmd`: the text of `-c`; `bypass`: SUBSTRATE_BYPASS=1 was
    set, which is a wish; `asks`: the caller has a terminal on which a person can be asked. Of a shell's line (shell/joined.py): `extra`: which fds it inherits besides its
    streams; `mine`: the one of them whose first byte says that keys are the caller's own; `has_text`: the
    text of `-c` comes in a memfd behind them."""

    closed: frozenset[int] = frozenset()
    ignored: tuple[int, ...] = ()
    terminal: tuple[int, int] | None = None
    timeout_s: float | None = None
    cmd: bytes | None = None
    bypass: bool = False
    asks: bool = False
    extra: tuple[int, ...] = ()
    mine: int | None = None
    has_text: bool = False

    @property
    def fds(self) -> int:
        """How many come beside the call."""
        return 3 - len(self.closed) + len(self.extra) + self.has_text


@value
class Call:
    """A program to be run. `environ`: as it was given, later entries of a name win."""

    mode: str
    parent: str | None
    flags: Flags
    file: bytes
    cwd: bytes
    argv: tuple[bytes, ...]
    environ: dict[bytes, bytes]
    umask: int


def parse_execute(message: wire.Message) -> Call:
    """The call of an EXECUTE, whose first fd is the memfd; it is read, not closed. Raises BadCall."""
    try:
        version, mode, parent = message.text(0), message.text(1), message.text(2)
        given = message.fields[3] if len(message.fields) > 3 else b""
    except wire.WireError as wrong:
        raise BadCall(str(wrong)) from None
    if version != VERSION:
        raise BadCall(f"version {version[:20]!r} is not spoken here, {VERSION} is")
    if mode not in (COMMAND, SHIM, ASK):
        raise BadCall(f"there is no mode {mode[:20]!r}")
    if parent and not is_span_id(parent):
        raise BadCall("the parent span is no span id")
    if not message.fds:
        raise BadCall("the call itself is missing: a memfd")
    flags = parse_flags(given)
    file, cwd, argv, environ, umask = parse_packed(read_sealed(message.fds[0]))
    return Call(
        mode=mode,
        parent=parent or None,
        flags=flags,
        file=file,
        cwd=cwd,
        argv=argv,
        environ=environ,
        umask=umask,
    )


def read_sealed(fd: int) -> bytes:
    """What is in a memfd that nobody can change any more. Raises BadCall for what is no memfd, or could still be changed."""
    try:
        seals = fcntl.fcntl(fd, _GET_SEALS)
    except OSError:
        raise BadCall("the call is in no memfd") from None
    if seals & _SEALED != _SEALED:
        raise BadCall("the call's memfd is not sealed")
    size = os.fstat(fd).st_size
    if size > MOST_BYTES:
        raise BadCall(f"a call of {size} bytes: {MOST_BYTES} are the most")
    data = b""
    while len(data) < size:
        more = os.pread(fd, size - len(data), len(data))
        if not more:
            raise BadCall("the call is cut")
        data += more
    return data


def parse_packed(
    data: bytes,
) -> tuple[bytes, bytes, tuple[bytes, ...], dict[bytes, bytes], int]:
    """(file, cwd, argv, environ, umask). Raises BadCall."""
    if len(data) < _HEAD.size:
        raise BadCall("the call has no head")
    argc, envc, umask, zero = _HEAD.unpack_from(data)
    if zero or umask > 0o777:
        raise BadCall("the call's head makes no sense")
    if argc > _MOST_WORDS or envc > _MOST_WORDS:
        raise BadCall("the call has too many words")
    words = data[_HEAD.size :].split(b"\0")
    if words.pop() != b"" or len(words) != 2 + argc + envc:
        raise BadCall("the call has not as many words as its head says")
    file, cwd = words[0], words[1]
    if not file:
        raise BadCall("there is no program to run")
    if not cwd.startswith(b"/"):
        raise BadCall("the directory is not absolute")
    if len(file) > MOST_PATH:
        raise BadCall(f"a program's path of {len(file)} bytes: {MOST_PATH} are the most")
    if len(cwd) > MOST_PATH:
        raise BadCall(f"a directory's path of {len(cwd)} bytes: {MOST_PATH} are the most")
    argv = tuple(words[2 : 2 + argc])
    if not argv:
        raise BadCall("a program has a name: argv is empty")
    environ: dict[bytes, bytes] = {}
    for entry in words[2 + argc :]:
        name, equals, text = entry.partition(b"=")
        if equals and name:  # others are nobody's variable (environ(7))
            environ.setdefault(name, text)  # of two the first counts (getenv(3))
    return file, cwd, argv, environ, umask


def parse_flags(given: bytes) -> Flags:
    """Raises BadCall for a flag that is not known: it could have been meant to narrow."""
    if not given:
        return Flags()
    found = parse_object(given, "the flags")
    known = {"closed", "ignored", "terminal", "timeout", "cmd", "bypass", "asks"}
    known |= {"extra", "mine", "text"}
    strange = sorted(found.keys() - known)
    if strange:
        name = strange[0][:40]
        if not name.startswith("--"):  # no word of a person
            raise BadCall(f"the flag {name!r} is not known here")
        raise Widens(f"{name} cannot be given to a session that runs already", hint=OWN_WORLD)
    closed = _numbers(found.get("closed", []), "closed", 0, 2)
    ignored = _numbers(found.get("ignored", []), "ignored", 1, 64)
    terminal = found.get("terminal")
    size: tuple[int, int] | None = None
    if terminal is not None:
        numbers = _numbers(terminal, "terminal", 1, 10_000)
        if len(numbers) != 2:
            raise BadCall("a terminal has columns and rows")
        size = numbers[0], numbers[1]
    timeout = found.get("timeout")
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0
    ):
        raise BadCall("the timeout is no time")
    if timeout is not None:
        timeout = float(min(timeout, 1e9))  # an int may be larger than any float
    cmd = found.get("cmd")
    if cmd is not None and not isinstance(cmd, str):
        raise BadCall("the text of -c is no text")
    watched = {int(number) for number in FORWARDED}
    extra = _numbers(found.get("extra", []), "extra", 3, 255)
    mine = found.get("mine")
    if len(extra) > _MOST_EXTRA or len(set(extra)) != len(extra) or mine not in (None, *extra):
        raise BadCall("the fds besides the streams make no sense")
    return Flags(
        closed=frozenset(closed),
        ignored=tuple(n for n in ignored if n in watched),
        terminal=size,
        timeout_s=timeout,
        bypass=found.get("bypass") is True,
        asks=found.get("asks") is True,
        extra=tuple(extra),
        mine=mine,
        has_text=found.get("text") is True,
        cmd=None if cmd is None else cmd.encode("utf-8", "surrogateescape"),
    )


def _numbers(found: Any, name: str, least: int, most: int) -> list[int]:
    if not isinstance(found, list) or len(found) > 64:
        raise BadCall(f"{name} is no list of numbers")
    for each in found:
        if isinstance(each, bool) or not isinstance(each, int) or not least <= each <= most:
            raise BadCall(f"{name} holds what is none of its numbers")
    return found


def parse_object(given: bytes, what: str) -> dict[str, Any]:
    """A small JSON object. Raises BadCall."""
    if len(given) > _MOST_FLAGS:
        raise BadCall(f"{what} are too long")
    try:
        found = json.loads(given.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        raise BadCall(f"{what} are no JSON") from None
    if not isinstance(found, dict):
        raise BadCall(f"{what} are no JSON object")
    return found


@value
class Verb:
    """A question or an order: its name, and its arguments."""

    name: str
    arguments: dict[str, Any]


def parse_verb(message: wire.Message) -> Verb:
    """Raises BadCall."""
    try:
        name = message.text(0)
    except wire.WireError as wrong:
        raise BadCall(str(wrong)) from None
    given = message.fields[1] if len(message.fields) > 1 else b""
    return Verb(name=name[:40], arguments=parse_object(given, "the arguments") if given else {})
