"""What /proc says of a stopped task: its directories, descriptors, program, ids and signals.

Texts are the kernel's, as the tracer sees them: a path in another mount namespace is told from the
root of that namespace, one below a chroot from the real root. Invariant: whatever is not there any
more, or may not be read, is b"" or None and never an error: the task can be killed at any moment.

Sources: proc(5), getauxval(3), signal(7), pidfd_getfd(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import struct
from _socket import AF_INET, AF_INET6, IPPROTO_UDP, SO_PROTOCOL, SOL_SOCKET

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

AT_FDCWD: Final = -100
_AT_UID, _AT_SECURE, _AT_EXECFN = 11, 23, 31
_DELETED: Final = b" (deleted)"
_FD: Final = struct.Struct("=II")
_CREDENTIALS: Final = struct.Struct("=6I")
_PID: Final = struct.Struct("=I")
_FILE: Final = struct.Struct("=3Q")
_PIDFD_THREAD: Final = os.O_EXCL  # since Linux 6.9
_PIDFD_GETFD: Final = 438
_libc = ctypes.CDLL(None, use_errno=True)
#: descriptors told of an exec
MOST_FDS: Final = 256
_MOST_READ: Final = 16 << 20

#: signals that end nothing by themselves
_HARMLESS: Final = sum(
    1 << number - 1
    for number in (
        *(signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH),
        *(signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    )
)


@value
class Status:
    """Some of /proc/TID/status. Signal sets have bit N-1 for signal N."""

    tgid: int
    parent: int
    #: in the innermost pid namespace
    inner_tid: int
    #: pending, not blocked, not ignored, without a handler, and ending the process
    fatal: int


def _link(path: str) -> bytes:
    try:
        return os.readlink(os.fsencode(path))
    except OSError:
        return b""


def _content(path: str, most: int = _MOST_READ) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    parts = []
    try:
        while most > 0 and (part := os.read(fd, min(most, 1 << 16))):
            parts.append(part)
            most -= len(part)
    except OSError:
        return None
    finally:
        os.close(fd)
    return b"".join(parts)


def cwd(tid: int) -> bytes:
    """Where a task stands; of a directory that was removed the last name that it had."""
    path = f"/proc/{tid}/cwd"
    found = _link(path)
    if found.endswith(_DELETED):
        try:
            if os.stat(path).st_nlink == 0:
                return found[: -len(_DELETED)]
        except OSError:
            return found
    return found


def root(tid: int) -> bytes:
    return _link(f"/proc/{tid}/root")


def exe(tid: int) -> bytes:
    return _link(f"/proc/{tid}/exe")


def descriptor(tid: int, fd: int) -> bytes:
    """As the kernel shows it: a path, `pipe:[7]`, `socket:[8]`, `anon_inode:…`."""
    return _link(f"/proc/{tid}/fd/{fd}") if fd >= 0 else b""


def program_file(tid: int) -> os.stat_result | None:
    """Of the file that runs, also where no name leads to it any more."""
    try:
        return os.stat(f"/proc/{tid}/exe")
    except OSError:
        return None


def command_line(tid: int) -> bytes | None:
    """The argv that the kernel laid out, each word with a NUL behind it."""
    return _content(f"/proc/{tid}/cmdline")


def peer(tid: int, fd: int) -> bytes:
    """The address at the other end of a socket of the task (struct sockaddr); b"" for unknown."""
    return _address(tid, fd, _libc.getpeername)


def own_address(tid: int, fd: int) -> bytes:
    """The address of a socket of the task (struct sockaddr); b"" for unknown."""
    return _address(tid, fd, _libc.getsockname)


def _address(tid: int, fd: int, name: Callable[..., int]) -> bytes:
    ours, _ = _copy(tid, fd)
    if ours < 0:
        return b""
    try:
        return _name(ours, name)
    finally:
        os.close(ours)


def _copy(tid: int, fd: int) -> tuple[int, int]:
    """(our copy of a descriptor of the task, or -1; errno)"""
    try:
        process = os.pidfd_open(tid, _PIDFD_THREAD)
    except OSError:
        try:
            process = os.pidfd_open(tid)
        except OSError as error:
            return -1, error.errno or errno.EIO
    try:
        return int(_libc.syscall(_PIDFD_GETFD, process, fd, 0)), ctypes.get_errno()
    finally:
        os.close(process)


def _name(ours: int, name: Callable[..., int]) -> bytes:
    room = ctypes.create_string_buffer(128)
    size = ctypes.c_uint32(len(room))
    if name(ours, room, ctypes.byref(size)) != 0:
        return b""
    return room.raw[: min(size.value, len(room))]


def local_port(tid: int, fd: int, base: bytes, *, connected: bool) -> bytes:
    """records.LOCAL of the socket that is `base` (as `descriptor` says it); b"" for none. `connected`:
    one that has no address has given its port back (connect(2) with AF_UNSPEC), unless it is UDP."""
    ours, number = _copy(tid, fd)
    if ours < 0 and number == errno.EINVAL:  # of a thread, before Linux 6.9
        found = status(tid)
        ours = -1 if found is None else _copy(found.tgid, fd)[0]
    if ours < 0:
        return b""
    try:
        # another thread may have put another one there since
        state = os.fstat(ours)
        if not stat.S_ISSOCK(state.st_mode) or base != b"socket:[%d]" % state.st_ino:
            return b""
        protocol, size = ctypes.c_int(), ctypes.c_uint32(4)
        if _libc.getsockopt(
            ours, SOL_SOCKET, SO_PROTOCOL, ctypes.byref(protocol), ctypes.byref(size)
        ):
            return b""
        own = _name(ours, _libc.getsockname)
    finally:
        os.close(ours)
    family = struct.unpack_from("=H", own)[0] if len(own) >= 16 else 0
    if family not in (AF_INET, AF_INET6):
        return b""
    address = own[4:8] if family == AF_INET else own[8:24]
    lacks = protocol.value != IPPROTO_UDP and connected and not any(address)
    if own[2:4] == b"\0\0" or lacks:
        return b""
    return struct.pack("=H", protocol.value) + own[2:4] + address


def descriptors(tid: int) -> tuple[list[bytes], bool]:
    """(records.FD items in the order of their numbers, whether there were more)."""
    try:
        numbers = sorted(int(name) for name in os.listdir(f"/proc/{tid}/fd"))
    except OSError:
        return [], False
    found = []
    for number in numbers[:MOST_FDS]:
        text = _link(f"/proc/{tid}/fd/{number}")
        info = _content(f"/proc/{tid}/fdinfo/{number}", 4096)
        if text and info is not None:
            found.append(_FD.pack(number, _flags(info)) + text)
    return found, len(numbers) > MOST_FDS


def _flags(info: bytes) -> int:
    for line in info.split(b"\n"):
        if line.startswith(b"flags:"):
            return int(line[6:], 8) & 0xFFFFFFFF
    return 0


def status(tid: int) -> Status | None:
    content = _content(f"/proc/{tid}/status", 1 << 16)
    return None if content is None else parse_status(content)


def parse_status(content: bytes) -> Status | None:
    """None where a field is missing: the task has just been reaped."""
    fields: dict[bytes, bytes] = {}
    # `Name:` is the first line, and the only one with text of the process; the kernel escapes
    # newlines in it
    for line in content.split(b"\n"):
        name, _, text = line.partition(b":\t")
        fields.setdefault(name, text)
    try:
        pending = int(fields[b"SigPnd"], 16) | int(fields[b"ShdPnd"], 16)
        spared = int(fields[b"SigBlk"], 16) | int(fields[b"SigIgn"], 16)
        caught = int(fields[b"SigCgt"], 16)
        return Status(
            tgid=int(fields[b"Tgid"]),
            parent=int(fields[b"PPid"]),
            inner_tid=int(fields.get(b"NSpid", fields[b"Pid"]).split()[-1]),
            fatal=pending & ~spared & ~caught & ~_HARMLESS,
        )
    except (KeyError, ValueError, IndexError):
        return None


def pack_pid(of: Status) -> bytes:
    """records.PIDS."""
    return _PID.pack(of.inner_tid)


def pack_file(of: os.stat_result) -> bytes:
    """records.FILE."""
    return _FILE.pack(of.st_dev, of.st_ino, of.st_ctime_ns)


def auxiliary(tid: int) -> dict[int, int]:
    """The auxiliary vector that the kernel gave the program; {} where it cannot be read."""
    content = _content(f"/proc/{tid}/auxv", 1 << 16)
    return {} if content is None else parse_auxiliary(content)


def parse_auxiliary(content: bytes) -> dict[int, int]:
    """Pairs of words, which are 32 bits wide in a program of 32 bits: there the first word of 64
    bits would be a type and its value in one, and no type is that large."""
    if len(content) < 16:
        return {}
    wide = struct.unpack_from("=Q", content)[0] < 1 << 16
    pair = struct.Struct("=QQ" if wide else "=II")
    whole = content[: len(content) // pair.size * pair.size]
    return dict(reversed(list(pair.iter_unpack(whole))))


def pack_credentials(vector: dict[int, int]) -> bytes:
    """records.CREDENTIALS."""
    ids = [vector.get(_AT_UID + i, 0) & 0xFFFFFFFF for i in range(4)]
    return _CREDENTIALS.pack(*ids, vector.get(_AT_SECURE, 0) & 1, 0)


def exec_name_at(vector: dict[int, int]) -> int:
    """Where AT_EXECFN lies in its memory; 0 for unknown."""
    return vector.get(_AT_EXECFN, 0)
