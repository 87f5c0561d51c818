"""What goes in and out of a routed network, as the kernel's table of connections tells it.

A flow is an entry of that table in the world's network namespace: a TCP connection, or datagrams, or
echoes, between two ends that follow each other closely enough (conntrack forgets UDP after 30 s to 2 min of
silence). It is told when its first packet leaves, and when the kernel forgets it, or the world is
over, with what was counted; of a TCP connection also when it was ended. Bytes are those of IP packets: headers and what was sent again are in them.
What it is not: it does not know whether a server took a connection; one that nobody answered has no
bytes in.

Events come by ctnetlink (`listen`). The kernel is asked to deliver each (NETLINK_BROADCAST_ERROR): it then
keeps the end of a flow until it is taken, and tells of a beginning again with the next packet. What is lost
all the same is found at the flow's end or in the table (`dump`); only how late is not known then.

Sources: <linux/netfilter/nfnetlink_conntrack.h>; ctnetlink_conntrack_event and ctnetlink_dump_table in
net/netfilter/nf_conntrack_netlink.c; nf_ct_deliver_cached_events in net/netfilter/nf_conntrack_ecache.c;
netlink(7).
"""

from __future__ import annotations

import struct
from _socket import MSG_DONTWAIT, SO_RCVBUF, SOL_SOCKET

from substrate.values import value
from substrate.world.egress import netlink
from substrate.world.egress.netlink import ACK, REQUEST, nested, parse_attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Final

_SUBSYSTEM: Final = 1
_NEW, _GET, _DELETE = 0, 1, 2
_DUMP: Final = 0x300
_DONE: Final = 3
_ORIGINAL, _REPLY, _PROTOCOL_INFO, _COUNTED_OUT, _COUNTED_IN, _ID = 1, 2, 4, 9, 10, 12
_IP, _PROTOCOL = 1, 2
_NUMBER, _SOURCE_PORT, _PORT = 1, 2, 3
#: of a TCP connection: both have ended it and know that; it was reset (enum tcp_conntrack)
ENDED, RESET = 7, 8
_SOL_NETLINK, _ADD_MEMBERSHIP, _BROADCAST_ERROR = 270, 1, 4
_GROUPS: Final = (1, 2, 3)  # NFNLGRP_CONNTRACK_NEW, _UPDATE, _DESTROY
_SO_RCVBUFFORCE: Final = 33
_EVENTS_BYTES: Final = 4 << 20
_ANSWER_BYTES: Final = 65536
#: of one dump; a table has no more entries than the kernel allows
_MOST_DATAGRAMS: Final = 1 << 16


@value
class Flow:
    """`source` is whoever began it. Addresses of 4 or 16 bytes; ports 0 where there are none. `reply_from`:
    whom the answers come from, before they are translated back. Counts are 0 before the end; `state`: of TCP, 0 where it is not told. `tuple`: what
    names it to the kernel."""

    protocol: int
    source: bytes
    source_port: int
    target: bytes
    port: int
    reply_from: bytes
    id: bytes
    tuple: bytes
    state: int
    packets_out: int
    bytes_out: int
    packets_in: int
    bytes_in: int

    @property
    def key(self) -> bytes:
        return self.id + self.tuple


def listen(socket: _socket.socket) -> None:
    """Has events of the namespace that the socket was made in come to it. Raises OSError."""
    try:
        socket.setsockopt(SOL_SOCKET, _SO_RCVBUFFORCE, _EVENTS_BYTES)
    except OSError:  # not root of the host: as much as net.core.rmem_max allows
        socket.setsockopt(SOL_SOCKET, SO_RCVBUF, _EVENTS_BYTES)
    socket.setsockopt(_SOL_NETLINK, _BROADCAST_ERROR, 1)
    socket.bind((0, 0))  # without a number of its own it is the kernel's, who does not hear itself
    for group in _GROUPS:
        socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)


def parse(datagram: bytes) -> list[tuple[bool, Flow]]:
    """(whether it is over, flow) for the events of a datagram: beginnings, changes of state, ends. Raises netlink.BadMessage."""
    found = []
    for message in netlink.parse_messages(datagram):
        if message.kind in (_SUBSYSTEM << 8 | _NEW, _SUBSYSTEM << 8 | _DELETE):
            flow = _flow(message.body)
            if flow is not None:
                found.append((message.kind == _SUBSYSTEM << 8 | _DELETE, flow))
    return found


def dump(fd: int) -> list[Flow]:
    """The flows that there are now, with their counts; of those that have expired the end comes as an event.
    Raises OSError."""
    socket = netlink.borrow(fd, netlink.NETFILTER)
    try:
        head = struct.pack("!BBH", 0, 0, 0)
        socket.sendto(netlink.message(_SUBSYSTEM << 8 | _GET, REQUEST | _DUMP, 1, head), (0, 0))
        found: list[Flow] = []
        for _ in range(_MOST_DATAGRAMS):
            data, (port, _groups) = socket.recvfrom(_ANSWER_BYTES, MSG_DONTWAIT)
            if port != 0:
                continue
            for message in netlink.parse_messages(data):
                if message.kind == netlink.ERROR:
                    number, text = netlink.parse_error(message)
                    if number:
                        raise netlink.failure(number, "conntrack", text)
                if message.kind == _DONE:
                    return found
                flow = _flow(message.body) if message.kind == _SUBSYSTEM << 8 | _NEW else None
                if flow is not None:
                    found.append(flow)
        return found
    finally:
        socket.detach()


def forget(fd: int, flow: Flow) -> None:
    """Has the kernel forget a flow, in the namespace of the socket; so what follows is judged anew. Nothing
    where it does not know it. Raises OSError."""
    body = struct.pack("!BBH", 2 if len(flow.source) == 4 else 10, 0, 0)
    body += nested(_ORIGINAL, flow.tuple)
    socket = netlink.borrow(fd, netlink.NETFILTER)
    try:
        for answer in netlink.ask(
            socket, netlink.message(_SUBSYSTEM << 8 | _DELETE, REQUEST | ACK, 1, body), "conntrack"
        ):
            if answer.kind == netlink.ERROR:
                number, text = netlink.parse_error(answer)
                if number not in (0, 2):
                    raise netlink.failure(number, "conntrack: forget", text)
    finally:
        socket.detach()


def _flow(body: bytes) -> Flow | None:
    """None for what is no IP."""
    attributes = parse_attributes(body[4:])
    original = attributes.get(_ORIGINAL, b"")
    source, source_port, target, port, protocol = _ends(original)
    reply_from = _ends(attributes.get(_REPLY, b""))[0]
    if not source or not target:
        return None
    packets_out, bytes_out = _counts(attributes.get(_COUNTED_OUT, b""))
    packets_in, bytes_in = _counts(attributes.get(_COUNTED_IN, b""))
    return Flow(
        protocol=protocol,
        source=source,
        source_port=source_port,
        target=target,
        port=port,
        reply_from=reply_from,
        id=attributes.get(_ID, b""),
        tuple=original,
        state=_state(attributes.get(_PROTOCOL_INFO, b"")),
        packets_out=packets_out,
        bytes_out=bytes_out,
        packets_in=packets_in,
        bytes_in=bytes_in,
    )


def _ends(raw: bytes) -> tuple[bytes, int, bytes, int, int]:
    """(source, port, target, port, protocol) of a tuple."""
    parts = parse_attributes(raw)
    addresses = parse_attributes(parts.get(_IP, b""))
    protocol = parse_attributes(parts.get(_PROTOCOL, b""))
    source = addresses.get(1) or addresses.get(3) or b""
    target = addresses.get(2) or addresses.get(4) or b""
    number = protocol.get(_NUMBER, b"\0")[0]
    ports = [int.from_bytes(protocol.get(kind, b""), "big") for kind in (_SOURCE_PORT, _PORT)]
    return source, ports[0], target, ports[1], number


def _state(raw: bytes) -> int:
    for kind in (1, 1):  # CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE
        raw = parse_attributes(raw).get(kind, b"")
    return raw[0] if raw else 0


def _counts(raw: bytes) -> tuple[int, int]:
    """(packets, bytes)."""
    counts = parse_attributes(raw)
    return int.from_bytes(counts.get(1, b""), "big"), int.from_bytes(counts.get(2, b""), "big")
