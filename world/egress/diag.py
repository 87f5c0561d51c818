"""sock_diag: which socket of a world has a connection.

Not a list of sockets: one question, one answer, by an open NETLINK_SOCK_DIAG socket that was made
in the world's network namespace, from anywhere and without a capability. The inode leads to the
processes that hold it (/proc/PID/fd: `socket:[inode]`). The uid is told as in the user namespace
of who made the diag socket.

- TCP: the socket with exactly these two ends. Where the kernel knows none it offers a listener of
  the local port; that one is not taken.
- UDP: the socket that an answer from the destination would come to: one that is connected to it,
  else one that is bound to the port, with that address or with none.
An IPv4 connection of an AF_INET6 socket (::ffff:a.b.c.d) is looked up as IPv4, by 4 bytes.

Sources: sock_diag(7), <linux/inet_diag.h>; inet_diag_find_one_icsk in net/ipv4/inet_diag.c,
udp_dump_one in net/ipv4/udp_diag.c (which takes the two ends the other way round).
"""

from __future__ import annotations

import errno
import struct

from substrate.values import value
from substrate.world.egress import netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

TCP: Final = 6
UDP: Final = 17
LISTEN: Final = 10

_BY_FAMILY: Final = 20
_DUMP: Final = 0x300
#: of <net/tcp_states.h>: established, SYN received, FIN sent, last ACK, closing, and closed by the peer only
_UNSENT: Final = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 8 | 1 << 9 | 1 << 11
_LOOPBACK: Final = 1  # also finds what is bound to this device; lo is the only one
_ANY: Final = 0xFFFFFFFF
_MAPPED: Final = b"\0" * 10 + b"\xff\xff"
#: family, protocol, extensions, -, states; ports, addresses, device, cookie
_REQUEST: Final = struct.Struct("=BBBBI 2s2s16s16sIII")
#: family, state, -, -; ports, addresses, device, cookie; expires, queues, uid, inode
_ANSWER: Final = struct.Struct("=BBBB 2s2s16s16sIII IIIII")


@value
class Found:
    """A socket; `state` as in <net/tcp_states.h>."""

    inode: int
    uid: int
    state: int


def find(
    fd: int, protocol: int, source: bytes, source_port: int, destination: bytes, port: int
) -> Found | None:
    """The socket that sends from `source` to `destination`; None where there is none, or no
    process has it any more. Addresses: 4 or 16 bytes, both alike. Raises OSError."""
    here, there = (source, source_port), (destination, port)
    ends = (there, here) if protocol == UDP else (here, there)
    request = netlink.message(_BY_FAMILY, netlink.REQUEST, 1, _question(protocol, *ends))
    socket = netlink.borrow(fd, netlink.SOCK_DIAG)
    try:
        answers = netlink.ask(socket, request, "sock_diag")
    finally:
        socket.detach()
    for answer in answers:
        if answer.sequence != 1:
            continue
        if answer.kind == netlink.ERROR:
            number, text = netlink.parse_error(answer)
            if number in (0, errno.ENOENT):
                return None
            raise netlink.failure(number, "sock_diag", text)
        if answer.kind == _BY_FAMILY and len(answer.body) >= _ANSWER.size:
            return _found(answer.body, protocol, here, there)
    return None


def has_unsent(fd: int) -> bool:
    """Whether some TCP socket of the namespace has still to bring something, or its end, to its peer. Raises
    OSError."""
    socket = netlink.borrow(fd, netlink.SOCK_DIAG)
    try:
        for family in (2, 10):
            body = _REQUEST.pack(
                *(family, TCP, 0, 0, _UNSENT, b"\0\0", b"\0\0", bytes(16), bytes(16), 0, _ANY, _ANY)
            )
            asked = netlink.message(_BY_FAMILY, netlink.REQUEST | _DUMP, 1, body)
            for answer in netlink.ask(socket, asked, "sock_diag"):
                if answer.kind == _BY_FAMILY:
                    return True
    finally:
        socket.detach()
    return False


def _question(protocol: int, first: tuple[bytes, int], second: tuple[bytes, int]) -> bytes:
    family = 2 if len(first[0]) == 4 else 10
    return _REQUEST.pack(
        *(family, protocol, 0, 0, _ANY),
        *(_port(first[1]), _port(second[1])),
        *(first[0].ljust(16, b"\0"), second[0].ljust(16, b"\0")),
        *(_LOOPBACK, _ANY, _ANY),
    )


def _found(
    body: bytes, protocol: int, here: tuple[bytes, int], there: tuple[bytes, int]
) -> Found | None:
    fields = _ANSWER.unpack_from(body)
    family, state, local_port, remote_port, local, remote = *fields[:2], *fields[4:8]
    uid, inode = fields[-2:]
    if local_port != _port(here[1]) or inode == 0:
        return None
    if protocol == TCP:
        ends = (_address(family, local), _address(family, remote), remote_port)
        if state == LISTEN or ends != (here[0], there[0], _port(there[1])):
            return None
    return Found(inode=inode, uid=uid, state=state)


def _port(number: int) -> bytes:
    return number.to_bytes(2, "big")


def _address(family: int, raw: bytes) -> bytes:
    if family == 2:
        return raw[:4]
    return raw[12:] if raw.startswith(_MAPPED) else raw
