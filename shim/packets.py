"""The bytes between a client and the supervisor of its session.

A packet of a SOCK_SEQPACKET socket is one byte of kind, then fields, each a 32-bit length in native
order and its bytes; what is not exactly that is refused (as world/wire.py, which the supervisor uses;
the stub imports nothing of ours). What is called travels in a sealed memfd beside EXECUTE, since it can
be larger than a packet: u32 argc, envc, umask, zero, then NUL-ended file, cwd, argv, environment.
Not here: what is asked and when. Hot path. Spec: shell.md §2.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION = b"1"
# client → supervisor
EXECUTE, SIGNAL, CONTINUE, VERB, REPLY = b"X", b"K", b"C", b"V", b"R"
#: modes of EXECUTE
COMMAND, SHIM, ASK = b"command", b"shim", b"ask"
# supervisor → client
ACCEPTED, TEXT, ENDED, DENIED, FAILED, STOPPED, JSON = b"A", b"T", b"E", b"D", b"F", b"S", b"J"
# of questions on our terminal: one is put, is over, was answered by what cannot be done
QUESTION, OVER, WRONG = b"Q", b"O", b"W"

#: bytes of a packet, of a call
MOST, CALL_MOST = 65536, 4 << 20
_FIELDS_MOST = 8
_SCM_RIGHTS = 1
_NOSIGNAL = 0x4000
_CMSG_CLOEXEC = 0x40000000
_MSG_TRUNC = 0x20
_CTRUNC = 0x8
_HEX = frozenset("0123456789abcdef")
_F_ADD_SEALS, _ALL_SEALS = 1033, 0xF  # <linux/fcntl.h>; Python names them only from fcntl's headers


class BadPacket(Exception):
    """Bytes that are no packet of the protocol."""


def encode(kind: bytes, *fields: bytes) -> bytes:
    """The bytes of a packet."""
    parts = [kind]
    for field in fields:
        parts += (struct.pack("=I", len(field)), field)
    packet = b"".join(parts)
    if len(packet) > MOST:
        raise BadPacket(f"{len(packet)} bytes are more than a packet holds")
    return packet


def decode(packet: bytes) -> tuple[bytes, list[bytes]]:
    """(kind, fields); raises BadPacket."""
    fields: list[bytes] = []
    at = 1
    if not packet:
        raise BadPacket("an empty packet")
    while at < len(packet):
        if at + 4 > len(packet) or len(fields) == _FIELDS_MOST:
            raise BadPacket("a field is cut")
        (length,) = struct.unpack_from("=I", packet, at)
        at += 4
        if at + length > len(packet):
            raise BadPacket("a field is cut")
        fields.append(packet[at : at + length])
        at += length
    return packet[:1], fields


def send(socket: _socket.socket, kind: bytes, *fields: bytes, fds: Sequence[int] = ()) -> None:
    """Sends one packet; raises OSError, BadPacket."""
    packed = struct.pack(f"={len(fds)}i", *fds)
    ancillary = [(_socket.SOL_SOCKET, _SCM_RIGHTS, packed)] if fds else []
    socket.sendmsg([encode(kind, *fields)], ancillary, _NOSIGNAL)


def receive(socket: _socket.socket) -> tuple[bytes, list[bytes]] | None:
    """The next packet, None where the other side has gone. Raises OSError, BadPacket. Descriptors
    never belong to one: they are closed."""
    try:
        packet, ancillary, flags, _ = socket.recvmsg(MOST, _socket.CMSG_SPACE(64), _CMSG_CLOEXEC)
    except ConnectionResetError:
        return None
    for level, kind, data in ancillary:
        if level == _socket.SOL_SOCKET and kind == _SCM_RIGHTS:
            for fd in struct.unpack(f"={len(data) // 4}i", data[: len(data) // 4 * 4]):
                os.close(fd)
    if flags & (_MSG_TRUNC | _CTRUNC):
        raise BadPacket("a packet was cut")
    return decode(packet) if packet else None


def call_memfd(
    file: bytes, cwd: bytes, argv: Sequence[bytes], environ: Sequence[bytes], umask: int
) -> int:
    """A sealed memfd with a call, so that what was decided about cannot be changed afterwards.
    `environ`: entries `NAME=value`. Raises OSError."""
    head = struct.pack("=4I", len(argv), len(environ), umask, 0)
    content = b"".join((head, *(part + b"\0" for part in (file, cwd, *argv, *environ))))
    if len(content) > CALL_MOST:
        raise OSError(errno.E2BIG, "more than 4 MiB of arguments and environment")
    fd = os.memfd_create("substrate-call", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(fd, left) :]
        fcntl.fcntl(fd, _F_ADD_SEALS, _ALL_SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_id(prefix: str, text: str) -> bool:
    """Whether it is `ses_` or `spn_` and a UUIDv7 in small hexadecimal digits."""
    parts = text[4:].split("-")
    return (
        len(text) == 40
        and text.startswith(prefix)
        and [len(part) for part in parts] == [8, 4, 4, 4, 12]
        and _HEX.issuperset("".join(parts))
        and parts[2][0] == "7"
        and parts[3][0] in "89ab"
    )
