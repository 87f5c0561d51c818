"""From which port a client itself has connected, where the kernel gave its connection another one.

A connection that is led to a listener comes from the client's own address and port, but where another one came
from there already, or has not long ago: then it comes from another port, so that the two can be told apart. The
kernel's table of connections knows the port that the client has. One question, one answer, by a NETLINK_NETFILTER
socket of the world's network namespace, by who has rights over that. What is not found, or cannot be asked
(a kernel without nf_conntrack_netlink), is the port that was seen.

Sources: <linux/netfilter/nfnetlink_conntrack.h>; ctnetlink_get_conntrack in
net/netfilter/nf_conntrack_netlink.c; nf_nat_used_tuple in net/netfilter/nf_nat_core.c.
"""

from __future__ import annotations

import struct

from substrate.world.egress import netlink
from substrate.world.egress.addresses import parse_address
from substrate.world.egress.netlink import REQUEST, attribute, nested

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Final

_SUBSYSTEM: Final = 1
_NEW, _GET = 0, 1
_ORIGINAL, _REPLY = 1, 2
_ADDRESSES, _PROTOCOL = 1, 2
_NUMBER, _SOURCE_PORT, _PORT = 1, 2, 3
_TCP: Final = b"\x06"


class ClientPorts:
    """The ports of those who come to one listener. `fd`: -1 where there is nobody to ask."""

    __slots__ = ("_fd", "_listener")

    def __init__(self, fd: int, listener: _socket.socket) -> None:
        self._fd = fd
        address, port = listener.getsockname()[:2]
        self._listener = parse_address(address), port

    def of(self, peer: tuple[str, int]) -> int:
        """`peer`: as accept(2) told it."""
        if self._fd < 0:
            return peer[1]
        return client_port(self._fd, (parse_address(peer[0]), peer[1]), self._listener)


def client_port(fd: int, client: tuple[bytes, int], listener: tuple[bytes, int]) -> int:
    """The port that a TCP client has, by address and port of both ends of its connection as they are on our
    side; that of `client` where nothing else is known. Addresses: 4 or 16 bytes, both alike."""
    socket = netlink.borrow(fd, netlink.NETFILTER)
    try:
        answers = netlink.ask(socket, _question(client, listener), "conntrack")
        for answer in answers:
            if answer.kind == _SUBSYSTEM << 8 | _NEW and answer.sequence == 1:
                return _port(answer.body) or client[1]
    except (OSError, netlink.BadMessage):
        return client[1]
    finally:
        socket.detach()
    return client[1]


def _question(client: tuple[bytes, int], listener: tuple[bytes, int]) -> bytes:
    """By the answers' direction, which is from the listener to the client."""
    v4 = len(client[0]) == 4
    first = 1 if v4 else 3
    body = struct.pack("!BBH", 2 if v4 else 10, 0, 0) + nested(
        _REPLY,
        nested(_ADDRESSES, attribute(first, listener[0]), attribute(first + 1, client[0])),
        nested(
            _PROTOCOL,
            attribute(_NUMBER, _TCP),
            attribute(_SOURCE_PORT, struct.pack("!H", listener[1])),
            attribute(_PORT, struct.pack("!H", client[1])),
        ),
    )
    return netlink.message(_SUBSYSTEM << 8 | _GET, REQUEST, 1, body)


def _port(body: bytes) -> int:
    found = body[4:]
    for kind in (_ORIGINAL, _PROTOCOL, _SOURCE_PORT):
        found = netlink.parse_attributes(found).get(kind, b"")
    return int.from_bytes(found, "big") if len(found) == 2 else 0
