"""Messages between the supervisor, the zygote and a world's holder.

A message is one packet of a SOCK_SEQPACKET pair: a kind of one byte, then fields, each a
32-bit length and its bytes. Integers travel as decimal text. Decoding refuses anything else:
what comes out of a world is never unpickled or evaluated. Large values (a spec, an
environment) travel in a memfd beside the packet (unix(7) SCM_RIGHTS).
"""

from __future__ import annotations

import _socket
import errno
import marshal
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# supervisor → zygote
PREPARE = b"P"  # memfd of a frame, the world's end of its socket
START = b"S"  # memfd of the spec of the world that was prepared last, perhaps a lock
LOAD = b"L"  # that EGRESS will follow, for a network of this mode: what serves it is loaded while the world is made
EGRESS = b"N"  # for the world's network: memfd of its rules, the egress process' socket, and all of NETWORK
GROUPS = b"C"  # paths of cgroups that are about to be made: removed at the end, whatever happens
# zygote → supervisor
GONE = b"G"  # the world number; every process of it is dead and its cgroups are removed
# supervisor → holder
#: memfd of the command's spec, the go socket, fds for its streams; in a world the memfd is of a
#: script, and the fields are its length and the columns and rows of a terminal, if it gets one
RUN = b"R"
SEAT = b"Z"  # asks for SEATED
SIGNAL = b"K"  # number, scope "main" | "group" | "all", pids in the world that are left alone
SIGNAL_ONE = b"k"  # number, scope "main" | "group" | "tree", the pid in the world of one command
WHO = b"W"  # asks for NAMES
ROOT = b"O"  # a socket, on which an fd of the world's root is sent back, with the same kind
SOCKETS = b"T"  # asks for so many sockets of the world's network, which come by the same kind
LISTEN = b"P"  # ports, a socket: listeners of the world's network come on it, or why there are none
# world → supervisor
#: before READY, of a filtered network: what belongs to it (egress.namespace.begin), of a routed one
#: "inside", a socket of it; their names are the fields
NETWORK = b"w"
INSIDE = b"i"  # before READY: the listening socket at /run/substrate/inside
READY = b"r"  # as SEATED, where there is a seat; the holder's pid in SCM_CREDENTIALS
SETTLED = b"l"  # the holder has given up what it could do besides: a command may go
SEATED = b"s"  # a seat's pid in the world, its socket; nothing where there could be none
STARTED = b"b"  # answers RUN, in their order: the pid in the world; 0: none was started
EXITED = b"e"  # pid in the world, wait status, user µs, system µs, maxrss KiB, …: see holder
QUIET = b"q"  # no process is left but the holder and these, which began as seats
IGNORED = b"-"  # what one of these became that nobody needs to know; never sent (handle.py)
NAMES = b"n"  # the names of the processes that are left, 16 at most
FAILED = b"f"  # step, errno, text
# command → supervisor, on its go socket; its pid in SCM_CREDENTIALS
MASTER = b"m"  # the master fd of its terminal
HELLO = b"h"  # the command waits for its go
REFUSED = b"x"  # one byte of errno, four of how many entries of its script were done with
# and FAILED

_MAX = 65536
#: in one message
MOST_FDS = 96
_A_FEW = 4  # all but SOCKETS and NETWORK bring no more
_UCRED = struct.Struct("=iII")
SO_PASSCRED = 16
_SCM_RIGHTS = 1
_SCM_CREDENTIALS = 2


class WireError(Exception):
    """A packet that is not a message: a bug, or somebody else's bytes."""


def encode(kind: bytes, fields: tuple[bytes | int | str, ...]) -> bytes:
    """The bytes of a message; see the module."""
    parts = [kind]
    for field in fields:
        raw = field if isinstance(field, bytes) else str(field).encode("utf-8", "surrogateescape")
        parts.append(struct.pack("=I", len(raw)))
        parts.append(raw)
    return b"".join(parts)


def decode(packet: bytes) -> tuple[bytes, list[bytes]]:
    """(kind, fields); raises WireError."""
    fields = []
    at = 1
    while at < len(packet):
        if at + 4 > len(packet):
            raise WireError("a field's length is cut")
        (length,) = struct.unpack_from("=I", packet, at)
        at += 4
        if at + length > len(packet):
            raise WireError("a field is cut")
        fields.append(packet[at : at + length])
        at += length
    if not packet:
        raise WireError("an empty packet")
    return packet[:1], fields


class Message:
    """A received message: kind, fields, fds (owned by the receiver), pid of the sender or 0."""

    __slots__ = ("fds", "fields", "kind", "pid")

    def __init__(self, kind: bytes, fields: list[bytes], fds: list[int], pid: int) -> None:
        self.kind, self.fields, self.fds, self.pid = kind, fields, fds, pid

    def text(self, index: int) -> str:
        """Field `index` as text (surrogateescape); WireError where there is none."""
        if index >= len(self.fields):
            raise WireError(f"message {self.kind!r} lacks field {index}")
        return self.fields[index].decode("utf-8", "surrogateescape")

    def number(self, index: int) -> int:
        """Field `index` as an integer; WireError where it is none."""
        text = self.text(index)
        if not text.lstrip("-").isdecimal():
            raise WireError(f"message {self.kind!r} field {index} is not a number")
        return int(text)


def pair() -> tuple[_socket.socket, _socket.socket]:
    """A connected pair; the first end learns the pid of each sender (SO_PASSCRED)."""
    left, right = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    left.setsockopt(_socket.SOL_SOCKET, SO_PASSCRED, 1)
    return left, right


def send(
    socket: _socket.socket,
    kind: bytes,
    *fields: bytes | int | str,
    fds: tuple[int, ...] = (),
) -> None:
    """Sends one message; raises OSError (EPIPE when the other side is gone)."""
    send_raw(socket, encode(kind, fields), fds)


def send_raw(socket: _socket.socket, packet: bytes, fds: tuple[int, ...]) -> None:
    """Sends one packet; raises OSError (EPIPE when the other side is gone)."""
    ancillary = []
    if fds:
        ancillary.append((_socket.SOL_SOCKET, _SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds)))
    socket.sendmsg([packet], ancillary, 0x4000)  # MSG_NOSIGNAL


def receive(socket: _socket.socket) -> Message | None:
    """Waits for one message; None at the end (every other end is closed)."""
    room = _socket.CMSG_SPACE(MOST_FDS * 4) + _socket.CMSG_SPACE(_UCRED.size)
    try:
        packet, ancillary, flags, _ = socket.recvmsg(_MAX, room, 0x40000000)  # MSG_CMSG_CLOEXEC
    except ConnectionResetError:  # the other end was closed with something of ours unread
        return None
    fds: list[int] = []
    pid = 0
    for level, kind, data in ancillary:
        if level == _socket.SOL_SOCKET and kind == _SCM_RIGHTS:
            fds.extend(struct.unpack(f"={len(data) // 4}i", data[: len(data) // 4 * 4]))
        elif level == _socket.SOL_SOCKET and kind == _SCM_CREDENTIALS:
            pid = _UCRED.unpack(data[: _UCRED.size])[0]
    if not packet:
        for fd in fds:
            os.close(fd)
        return None
    if flags & 0x28:  # MSG_TRUNC | MSG_CTRUNC
        for fd in fds:
            os.close(fd)
        if not flags & 0x20:  # no room for all descriptors: in this process, as there is in `room`
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        raise WireError("a packet was cut")
    try:
        name, fields = decode(packet)
    except WireError:
        for fd in fds:  # whoever sent them could else use up ours
            os.close(fd)
        raise
    return Message(name, fields, fds, pid)


def has_room() -> bool:
    """Whether this process can take the descriptors of a packet that brings a few: what comes with one for
    which there is no room is lost (unix(7), MSG_CTRUNC)."""
    taken: list[int] = []
    try:
        for _ in range(_A_FEW):
            taken.append(os.open("/", os.O_PATH | os.O_CLOEXEC))
        return True
    except OSError:
        return False
    finally:
        for fd in taken:
            os.close(fd)


def pack_value(value: Any) -> int:
    """A memfd holding a value of built-in types (marshal); for the trusted direction only."""
    try:
        fd = os.memfd_create("substrate-spec", os.MFD_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, f"memfd_create: {error.strerror}") from None
    data = marshal.dumps(value)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return fd


def unpack_value(fd: int) -> Any:
    """The value in a memfd made by `pack_value`; closes it. Never called on a world's bytes."""
    try:
        size = os.fstat(fd).st_size
        data = b""
        while len(data) < size:
            data += os.pread(fd, size - len(data), len(data))
        return marshal.loads(data)
    finally:
        os.close(fd)
