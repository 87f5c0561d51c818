"""The system calls by which a seat becomes a command, as the trampoline makes them.

What command.py does in Python for a command with a terminal, and without a world, is done here
with calls that were written down before: the standard streams, signals, limits, the umask, the
directory; then HELLO, the go, and the exec. Logic only. A script is mapped at a fixed address,
so it holds addresses. Sources: the man pages of the calls, <asm/unistd_64.h>,
<asm-generic/unistd.h>, <asm-generic/signal.h>.
"""

from __future__ import annotations

import os
import struct

from substrate.values import value
from substrate.world import wire
from substrate.world.linux import MACHINE
from substrate.world.spec import CLOSED, NULL, TERMINAL
from substrate.world.trampoline import BASE, EXEC, ONE, PLAIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Sequence
    from typing import Final

    from substrate.world.spec import CommandSpec

#: fds of the trampoline when the script runs: what came with the request, in its order
_GO, _FIRST_STREAM = 5, 6

# x86_64, aarch64
_NUMBERS: Final = {
    "chdir": (80, 49),
    "close": (3, 57),
    "close_range": (436, 436),
    "dup3": (292, 24),
    "execve": (59, 221),
    "openat": (257, 56),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "read": (0, 63),
    "rt_sigaction": (13, 134),
    "seccomp": (317, 277),
    "sendmsg": (46, 211),
    "umask": (95, 166),
}
_COLUMNS: Final = {"x86_64": 0, "aarch64": 1}
_WORD: Final = 8
_ENTRY: Final = 8 * _WORD
_AT_FDCWD: Final = -100
_NO_SIGNAL: Final = 0x4000
_CLOSE_ON_EXEC: Final = 4
#: seccomp(2): SECCOMP_SET_MODE_FILTER; flags NEW_LISTENER and WAIT_KILLABLE_RECV (Linux 5.19)
_SET_FILTER, LISTENER = 1, 1 << 3 | 1 << 5
_SOL_SOCKET, _SCM_RIGHTS = 1, 1
_SET_DUMPABLE: Final = 4
#: struct sigaction of the kernel with SIG_IGN; the size of its mask
_IGNORED: Final = struct.pack("=QQQQ", 1, 0, 0, 0)
_MASK_SIZE: Final = 8


@value
class Script:
    """`content`: what is mapped. `steps`: what is under way, by entry, for the message when it
    fails."""

    content: bytes
    steps: tuple[str, ...]

    def failed(self, done: int) -> str:
        """The step that was under way when `done` entries were done with, the failed one among
        them or not; 0 is before the first."""
        return self.steps[min(done, len(self.steps)) - 1] if done else "seat"


def pack(script: Script) -> int:
    """A memfd that holds it. Raises OSError."""
    memory = os.memfd_create("substrate-script", os.MFD_CLOEXEC)
    view = memoryview(script.content)
    while view:
        view = view[os.write(memory, view) :]
    return memory


def hand_over(
    length: int, memory: int, seat: _socket.socket, go: _socket.socket, streams: Sequence[int]
) -> None:
    """Gives a seat its script, the go socket and the fds for its streams. Raises OSError."""
    wire.send_raw(seat, struct.pack("=Q", length), (memory, go.fileno(), *streams))


class _Memory:
    """What an argument points to: words, or bytes as they are. A word that is memory itself is its
    address."""

    def __init__(self, *parts: int | bytes | _Memory) -> None:
        self.parts = parts


class _Call:
    """One entry. An argument that is text is stored, with a NUL behind it, and its address given;
    a sequence of texts is an array of such addresses that ends with a zero."""

    def __init__(
        self,
        step: str,
        name: str,
        *arguments: int | bytes | Sequence[bytes] | _Memory,
        take: int = PLAIN,
    ) -> None:
        self.step, self.name, self.arguments = step, name, arguments
        self.take = take


def compile_script(command: CommandSpec, passed: int, machine: str = MACHINE) -> Script:
    """The script for a command. `passed`: how many fds come for its streams; a terminal's comes
    behind these."""
    calls = [*_streams(command, passed), *_state(command)]
    listener = -1
    if command.notify:
        # its fd is the lowest that is free; should it be another one, the message cannot be sent
        listener = _lowest_free(command, passed)
        calls.append(_filter(command.notify, LISTENER))
    if command.open_to_tracer:
        calls.append(_Call("tracer", "prctl", _SET_DUMPABLE, 1))
    calls.append(_Call("hello", "sendmsg", _GO, _message(wire.HELLO, listener), _NO_SIGNAL))
    calls.append(_Call("go", "read", _GO, bytes(8), 1, take=ONE))
    if command.trace:  # only once there is a tracer: without one its calls answer ENOSYS
        calls.append(_filter(command.trace, 0))
    calls.append(_Call("exec", "close_range", 3, 0xFFFFFFFF, _CLOSE_ON_EXEC))
    calls += [
        _Call("streams", "dup3", _FIRST_STREAM + source, fd, 0) for fd, source in command.extra
    ]
    words = list(command.argv)
    environ = [name + b"=" + text for name, text in command.environ]
    shown = f"exec {os.fsdecode(command.file)}"
    for file in files_to_try(command):
        calls.append(_Call(shown, "execve", file, words, environ, take=EXEC))
    return Script(
        content=_lay_out(calls, _COLUMNS[machine]), steps=tuple(call.step for call in calls)
    )


def _filter(program: bytes, flags: int) -> _Call:
    return _Call(
        "filter", "seccomp", _SET_FILTER, flags, _Memory(len(program) // 8, _Memory(program))
    )


def _message(text: bytes, fd: int) -> _Memory:
    """A struct msghdr with `text`, and an fd beside it (sendmsg(2), cmsg(3))."""
    vector = _Memory(_Memory(text), len(text))
    if fd < 0:
        return _Memory(0, 0, vector, 1, 0, 0, 0)
    beside = _Memory(struct.pack("=QiiiI", 20, _SOL_SOCKET, _SCM_RIGHTS, fd, 0))
    return _Memory(0, 0, vector, 1, beside, 24, 0)


def _lowest_free(command: CommandSpec, passed: int) -> int:
    """The fd that the next call gets once the streams are in place: one of 0-2 that is closed, or
    the one behind all that came."""
    for fd, source in enumerate(command.stdio):
        if source == CLOSED:
            return fd
    terminal = 1 if TERMINAL in command.stdio else 0
    return _FIRST_STREAM + passed + terminal + (1 if NULL in command.stdio else 0)


def _streams(command: CommandSpec, passed: int) -> list[_Call]:
    calls = []
    terminal = 1 if TERMINAL in command.stdio else 0
    null = _FIRST_STREAM + passed + terminal  # the lowest that is free
    if NULL in command.stdio:
        # the world's own: the seat's is the host's
        calls.append(_Call("streams", "openat", _AT_FDCWD, b"/dev/null", os.O_RDWR, 0))
    for fd, source in enumerate(command.stdio):
        if source == CLOSED:
            calls.append(_Call("streams", "close", fd))
        else:
            come = {NULL: null, TERMINAL: _FIRST_STREAM + passed}.get(
                source, _FIRST_STREAM + source
            )
            calls.append(_Call("streams", "dup3", come, fd, 0))
    return calls


def _state(command: CommandSpec) -> list[_Call]:
    calls = [
        _Call("signals", "rt_sigaction", number, _IGNORED, 0, _MASK_SIZE)
        for number in command.ignored_signals
    ]
    for which, soft, hard in command.rlimits:
        limit = struct.pack("=QQ", soft & _INFINITY, hard & _INFINITY)
        calls.append(_Call("limits", "prlimit64", 0, which, limit, 0))
    calls.append(_Call("umask", "umask", command.umask))
    calls.append(_Call(f"chdir {os.fsdecode(command.cwd)}", "chdir", command.cwd))
    return calls


_INFINITY: Final = 0xFFFF_FFFF_FFFF_FFFF


def files_to_try(command: CommandSpec) -> tuple[bytes, ...]:
    """The file itself, or one in each directory of the command's PATH (execvp(3))."""
    if b"/" in command.file:
        return (command.file,)
    path = dict(command.environ).get(b"PATH", b"/usr/local/bin:/usr/bin:/bin")
    return tuple((directory or b".") + b"/" + command.file for directory in path.split(b":"))


def _lay_out(calls: list[_Call], column: int) -> bytes:
    data = bytearray()
    start = BASE + _ENTRY * (len(calls) + 1)
    stored: dict[int, int] = {}  # id of an array: its address

    def text(content: bytes) -> int:
        at = start + len(data)
        data.extend(content + b"\0")
        data.extend(bytes(-len(data) % _WORD))
        return at

    def place(memory: _Memory) -> int:
        words = [place(part) if isinstance(part, _Memory) else part for part in memory.parts]
        at = start + len(data)
        for word in words:
            data.extend(word if isinstance(word, bytes) else struct.pack("=Q", word))
        data.extend(bytes(-len(data) % _WORD))
        return at

    def address(argument: int | bytes | Sequence[bytes] | _Memory) -> int:
        if isinstance(argument, int):
            return argument
        if isinstance(argument, _Memory):
            return place(argument)
        if isinstance(argument, bytes):
            return text(argument)
        if id(argument) not in stored:
            words = [text(word) for word in argument]
            stored[id(argument)] = start + len(data)
            data.extend(struct.pack(f"={len(words) + 1}Q", *words, 0))
        return stored[id(argument)]

    entries = bytearray()
    for call in calls:
        words = [address(argument) for argument in call.arguments]
        words += [0] * (6 - len(words))
        entries += struct.pack(
            "=q6QQ", _NUMBERS[call.name][column], *(w & _INFINITY for w in words), call.take
        )
    entries += struct.pack("=q7Q", -1, *[0] * 7)
    return bytes(entries + data)
