"""The seccomp programs of a captured command, made from the table of calls (capture.md §1, §2).

Two programs, since a listener has to be handed over by a call that is not yet watched:
`notify` sends calls to the answerer (SECCOMP_RET_USER_NOTIF), `trace` stops them for the tracer
(SECCOMP_RET_TRACE). They only observe: what they do not name is allowed, and a world's own filter
says what it is not. Where several programs speak, the kernel takes the strictest, and a
notification is stricter than a trace: so no call may stand in both under the same condition.
Logic only. Sources: seccomp(2), <linux/filter.h>, <linux/seccomp.h>.
"""

from __future__ import annotations

import errno
import os
import struct

from substrate.telemetry.capture.calls import (
    AUDIT_ARCH,
    CALLS,
    EXEC,
    FDS,
    FILES,
    LOOK,
    MACHINE,
    SHAPE,
    X32_BIT,
    number,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    Instruction = tuple[int, int, int, int]
    Chunk = tuple[Instruction, ...]

ALLOW: Final = 0x7FFF0000
#: beside the action, so that a stop for our filter differs from one for a program's own
OURS: Final = 0x5353
TRACE: Final = 0x7FF00000 | OURS
NOTIFY: Final = 0x7FC00000
ERRNO: Final = 0x00050000

_LOAD, _JUMP_EQUAL, _JUMP_NOT_BELOW, _JUMP_ANY_BIT, _JUMP_ABOVE, _RETURN, _JUMP = (
    *(0x20, 0x15, 0x35, 0x45, 0x25, 0x06, 0x05),
)
_NR, _ARCH, _ARGUMENTS = 0, 4, 16

#: an open that can change something: seen with its result
OPEN_CHANGES: Final = (
    os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | (os.O_TMPFILE & ~os.O_DIRECTORY)
)
CLONE_UNTRACED: Final = 0x00800000
MSG_NOSIGNAL: Final = 0x4000
#: the longest question to a name server (RFC 1035 §4.2.1)
_MOST_QUESTION: Final = 512
_OPEN_FLAGS_AT: Final = {"open": 1, "openat": 2}
_F_DUPFD, _F_DUPFD_CLOEXEC, _F_SETFD = 0, 1030, 2

#: seccomp(2): a listener; notifications that were received end by fatal signals only
NEW_LISTENER, WAIT_KILLABLE = 1 << 3, 1 << 5


def allow() -> Chunk:
    return ((_RETURN, 0, 0, ALLOW),)


def answer(action: int) -> Chunk:
    return ((_RETURN, 0, 0, action),)


def when_any_bit(argument: int, mask: int, then: Chunk, otherwise: Chunk) -> Chunk:
    """By the low word of an argument."""
    return (
        (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
        (_JUMP_ANY_BIT, 0, len(then), mask),
        *then,
        *otherwise,
    )


def when_zero(argument: int, then: Chunk, otherwise: Chunk) -> Chunk:
    """By both words."""
    return (
        (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
        (_JUMP_EQUAL, 0, 2 + len(then), 0),
        (_LOAD, 0, 0, _ARGUMENTS + 8 * argument + 4),
        (_JUMP_EQUAL, 0, len(then), 0),
        *then,
        *otherwise,
    )


def when_equal(argument: int, values: tuple[int, ...], then: Chunk, otherwise: Chunk) -> Chunk:
    last = len(values) - 1
    tests = [
        (_JUMP_EQUAL, last - i, 0 if i < last else len(then), word) for i, word in enumerate(values)
    ]
    return ((_LOAD, 0, 0, _ARGUMENTS + 8 * argument), *tests, *then, *otherwise)


def _when_above(argument: int, most: int, then: Chunk, otherwise: Chunk) -> Chunk:
    return (
        (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
        (_JUMP_ABOVE, 0, len(then), most),
        *then,
        *otherwise,
    )


def program(
    chunks: dict[int, Chunk], machine: str, *, foreign: int = ALLOW, otherwise: int = ALLOW
) -> bytes:
    """A program of 8-byte instructions. `chunks` by call number; `foreign`: what happens to calls
    of another architecture, and of x32; `otherwise`: to those that no chunk names."""
    tree = _search(sorted(chunks.items()), answer(otherwise))
    head: Chunk = (
        (_LOAD, 0, 0, _ARCH),
        (_JUMP_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, foreign),
        (_LOAD, 0, 0, _NR),
    )
    if machine == "x86_64":
        # -1 is a call that a tracer has taken away
        head += ((_JUMP_EQUAL, 2, 0, 0xFFFFFFFF), (_JUMP_NOT_BELOW, 0, 1, X32_BIT))
        head += ((_RETURN, 0, 0, foreign),)
    return b"".join([struct.pack("=HBBI", *instruction) for instruction in (*head, *tree)])


def _search(decided: list[tuple[int, Chunk]], otherwise: Chunk) -> Chunk:
    """A binary search; each leaf tests one number."""
    if not decided:
        return otherwise
    if len(decided) == 1:
        nr, chunk = decided[0]
        if len(chunk) <= 255:
            return ((_JUMP_EQUAL, 0, len(chunk), nr), *chunk, *otherwise)
        return ((_JUMP_EQUAL, 1, 0, nr), (_JUMP, 0, 0, len(chunk)), *chunk, *otherwise)
    middle = len(decided) // 2
    left, right = _search(decided[:middle], otherwise), _search(decided[middle:], otherwise)
    if len(left) <= 255:
        return ((_JUMP_NOT_BELOW, len(left), 0, decided[middle][0]), *left, *right)
    return (
        (_JUMP_NOT_BELOW, 0, 1, decided[middle][0]),
        (_JUMP, 0, 0, len(left)),
        *left,
        *right,
    )


# --- which calls, for which backend


def names_of(level: str, *, look: bool = False, fds: bool = False) -> tuple[str, ...]:
    """The calls of a level: `exec`, `files` or `all`. `look`: lookups too."""
    levels = {EXEC} if level == "exec" else {EXEC, FILES}
    levels |= {LOOK} if look and level != "exec" else set()
    levels |= {FDS} if fds and level != "exec" else set()
    return tuple(name for name, row in CALLS.items() if SHAPE.unpack(row[3])[6] in levels)


def trace_chunks(
    names: Iterable[str], machine: str = MACHINE, *, reads: bool = True, evade: bool = True
) -> dict[int, Chunk]:
    """Calls that stop for the tracer. `reads`: opens that only read, too. `evade`: leaves
    no way to make a child that would be hidden from it."""
    stop, chunks = answer(TRACE), {}
    for name in names:
        nr = number(name, machine)
        if nr is None:
            continue
        chunk = stop
        if name == "clone":
            if not evade:
                continue
            chunk = when_any_bit(0, CLONE_UNTRACED, stop, allow())
        elif name == "clone3":
            # its flags are in memory, which another thread changes after any look at them: there
            # is none, as on a kernel before 5.3, and libc uses clone (world/seccomp.py does the same)
            if not evade:
                continue
            chunk = answer(ERRNO | errno.ENOSYS)
        elif name in _OPEN_FLAGS_AT and not reads:
            chunk = when_any_bit(_OPEN_FLAGS_AT[name], OPEN_CHANGES, stop, allow())
        else:
            chunk = _narrowed(name, stop)
        chunks[nr] = chunk
    return chunks


def notify_chunks(
    names: Iterable[str], machine: str = MACHINE, *, only_reads: bool = False
) -> dict[int, Chunk]:
    """Calls that are sent to the answerer. `only_reads`: of opens those that change nothing."""
    send, chunks = answer(NOTIFY), {}
    for name in names:
        nr = number(name, machine)
        if nr is None or name in ("clone", "clone3", "sendmsg"):
            continue  # sendmsg: by it the listener is handed over
        if only_reads and name in _OPEN_FLAGS_AT:
            chunks[nr] = when_any_bit(_OPEN_FLAGS_AT[name], OPEN_CHANGES, allow(), send)
        else:
            chunks[nr] = _narrowed(name, send)
    return chunks


def _narrowed(name: str, act: Chunk) -> Chunk:
    """Leaves out what tells nothing: sends on connected sockets, but for what may be a question to
    a name server; fcntl(2) that makes no descriptor."""
    if name == "sendto":
        question = when_equal(3, (MSG_NOSIGNAL,), act, allow())
        connected = _when_above(2, _MOST_QUESTION, allow(), question)
        return when_zero(4, connected, act)
    if name == "fcntl":
        return when_equal(1, (_F_DUPFD, _F_DUPFD_CLOEXEC, _F_SETFD), act, allow())
    return act


def ring_chunks(machine: str = MACHINE) -> dict[int, Chunk]:
    """io_uring works past every filter: programs get the answer of a kernel without it."""
    nr = number_of_io_uring_setup(machine)
    return {nr: answer(ERRNO | errno.ENOSYS)}


def listener_chunks(machine: str = MACHINE, *, otherwise: int = ALLOW) -> dict[int, Chunk]:
    """A program's own listener would be asked in place of the tracer, since a notification wins over a
    trace, and could let everything go on unseen: there is one already, it is told, as beside ours."""
    nr = {"x86_64": 317, "aarch64": 277}[machine]
    return {nr: when_any_bit(1, NEW_LISTENER, answer(ERRNO | errno.EBUSY), answer(otherwise))}


def number_of_io_uring_setup(machine: str = MACHINE) -> int:
    return 425  # the same on all machines (<asm-generic/unistd.h>)


def evidence_chunks(
    denied: Iterable[tuple[int, int, int]], *, action: int = NOTIFY
) -> dict[int, Chunk]:
    """Attempts that a world denies and leaves to the answerer: (number, argument, mask); a mask of
    0 means whatever the arguments are."""
    chunks = {}
    for nr, argument, mask in denied:
        act = answer(action)
        chunks[nr] = when_any_bit(argument, mask, act, allow()) if mask else act
    return chunks
