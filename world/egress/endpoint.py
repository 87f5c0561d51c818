"""One socket of a relay: what is known about it, and how it ends.

What it is: the flags that edge-triggered events and EAGAIN keep up to date, and the socket's
options. What it is not: it decides nothing about the other side.

`dead` is remembered here because the kernel tells an error once, to whoever asks first: when a
send(2) has taken the ECONNRESET, the reads that follow give what had come before the reset and
then a plain end. Without the mark that end would look like the peer's own.

Keepalive is set on both sides. A client that has closed altogether and one that has only shut
down its sending look alike; the probe to the first is answered by a reset.

Sources: tcp(7), socket(7), tcp_reset and tcp_recvmsg_locked in net/ipv4.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_KEEPALIVE: Final = (
    (_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1),
    (_socket.IPPROTO_TCP, _socket.TCP_KEEPIDLE, 60),
    (_socket.IPPROTO_TCP, _socket.TCP_KEEPINTVL, 15),
    (_socket.IPPROTO_TCP, _socket.TCP_KEEPCNT, 4),
    (_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1),
)
#: struct linger: on, no time: close(2) resets
_RESET: Final = struct.pack("=ii", 1, 0)
_SIOCOUTQ: Final = 0x5411  # sockios(7): bytes that the peer's kernel has not acknowledged
_INT: Final = struct.Struct("=i")


class Endpoint:
    """`fd` is -1 before `open` and after `close`; nothing is readable or writable then."""

    __slots__ = ("careful", "dead", "fd", "readable", "socket", "writable")

    def __init__(self) -> None:
        self.fd = -1
        self.socket: _socket.socket | None = None
        self.readable = False
        self.writable = False
        #: an end, an error or urgent data is about: a short read does not mean "nothing more"
        self.careful = False
        #: errno of the first failure
        self.dead = 0

    def open(self, fd: int) -> None:
        """Takes over a connected TCP socket; owns it also when this raises OSError."""
        self.fd = fd
        self.socket = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM, 0, fileno=fd)
        self.socket.setblocking(False)
        for level, option, setting in _KEEPALIVE:
            self.socket.setsockopt(level, option, setting)

    def fail(self, number: int) -> None:
        if not self.dead:
            self.dead = number or errno.EIO
        self.careful = True
        self.readable = True  # what had come before is still to be read

    def shut_sending(self) -> None:
        """Says the end to the peer, behind all that was written."""
        if self.socket is not None:
            try:
                self.socket.shutdown(_socket.SHUT_WR)
            except OSError as error:
                # ENOTCONN: it was reset in the meantime, which nobody has read yet
                number = error.errno or errno.EIO
                self.fail(errno.ECONNRESET if number == errno.ENOTCONN else number)

    def unacknowledged(self) -> int:
        """Bytes that were written and that the peer's kernel has not got yet."""
        return int(_INT.unpack(fcntl.ioctl(self.fd, _SIOCOUTQ, b"\0\0\0\0"))[0])

    def close(self, *, reset: bool) -> None:
        """Closes; `reset` throws away what is not sent and tells the peer so."""
        socket, self.socket, fd, self.fd = self.socket, None, self.fd, -1
        self.readable = self.writable = False
        if socket is None and fd >= 0:
            os.close(fd)  # `open` failed
        if socket is not None:
            if reset:
                socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _RESET)
            try:
                socket.close()
            except ConnectionResetError:
                return  # close(2) reports an error nobody had asked for; it is closed
