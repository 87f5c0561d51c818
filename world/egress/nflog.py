"""NFLOG: what a world's packet filter refused, as the kernel tells it.

Not a capture of traffic: a copy of the first bytes of each refused packet, from which its protocol,
addresses and ports are read. The packet is hostile bytes, only its envelope is the kernel's; what
cannot be told is left empty, an attempt is never dropped for that. The kernel drops records when
nobody reads for long: recv(2) fails with ENOBUFS once, and `sequence` tells how many were lost.
Read with recvfrom(2); what comes from a port other than 0 is not the kernel's.

What the kernel sends by itself, as when a program joins a multicast group, has no uid.

Works in any network namespace (net.netfilter.nf_log_all_netns is for LOG to the kernel's own log),
with CAP_NET_ADMIN over it when it is bound. A uid is told as in the user namespace of who bound.

Sources: <linux/netfilter/nfnetlink_log.h>, net/netfilter/nfnetlink_log.c; RFC 791, RFC 8200 §4.
"""

from __future__ import annotations

import struct
from _socket import SO_RCVBUF, SOL_SOCKET

from substrate.values import value
from substrate.world.egress import netlink
from substrate.world.egress.netlink import ACK, REQUEST, attribute, message

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Final

COPIED_BYTES: Final = 128
#: for records that nobody has read yet; net.core.rmem_max may allow less: some 500 then
_RECORDS_BYTES: Final = 1 << 20
_SUBSYSTEM: Final = 4
_PACKET, _CONFIG = 0, 1
_BIND: Final = 1
_COPY_PACKET: Final = 2
_NUMBERED: Final = 1
# attributes of a record
_PAYLOAD, _PREFIX, _UID, _SEQUENCE = 9, 10, 11, 12

#: with two 16-bit ports in front: TCP, UDP, DCCP, SCTP, UDP-Lite
_WITH_PORTS: Final = (6, 17, 33, 132, 136)
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _OPTIONS, _MOBILITY = 0, 43, 44, 51, 60, 135
_EXTENSIONS: Final = (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _OPTIONS, _MOBILITY)


@value
class Logged:
    """A refused packet. Addresses: 4 or 16 bytes, b"" where it was too short to tell; ports 0
    where there are none; protocol -1 where it is not known; `length`: of the whole packet in
    bytes, as its header says; `routed`: it has a routing header of IPv6; `sequence` grows by one with every
    record, -1 where it is missing."""

    protocol: int
    source: bytes
    source_port: int
    destination: bytes
    port: int
    uid: int | None
    prefix: str
    length: int
    sequence: int
    routed: bool = False


def bind(socket: _socket.socket, group: int) -> None:
    """Has the group's packets sent to this socket, each at once. Raises OSError: EBUSY where
    another one has it."""
    socket.setsockopt(SOL_SOCKET, SO_RCVBUF, _RECORDS_BYTES)
    config = (
        struct.pack("!BBH", 0, 0, group)
        + attribute(1, struct.pack("B", _BIND))
        + attribute(2, struct.pack("!IBB", COPIED_BYTES, _COPY_PACKET, 0))
        + attribute(5, struct.pack("!I", 1))  # a record waits for no other one
        + attribute(6, struct.pack("!H", _NUMBERED))
    )
    request = message(_SUBSYSTEM << 8 | _CONFIG, REQUEST | ACK, 1, config)
    netlink.command(socket, request, 1, "nflog", lambda _: f"bind group {group}")


def parse(datagram: bytes) -> list[Logged]:
    """The records of a datagram; raises netlink.BadMessage."""
    return [
        _record(found.body)
        for found in netlink.parse_messages(datagram)
        if found.kind == _SUBSYSTEM << 8 | _PACKET
    ]


def _record(body: bytes) -> Logged:
    if len(body) < 4:
        raise netlink.BadMessage("a record that is cut")
    attributes = netlink.parse_attributes(body[4:])
    packet = attributes.get(_PAYLOAD, b"")
    protocol, source, destination, length, at, routed = _header(packet)
    source_port = port = 0
    if protocol in _WITH_PORTS and 0 < at <= len(packet) - 4:
        source_port, port = struct.unpack_from("!HH", packet, at)
    return Logged(
        protocol=protocol,
        source=source,
        source_port=source_port,
        destination=destination,
        port=port,
        uid=_number(attributes.get(_UID)),
        prefix=attributes.get(_PREFIX, b"").rstrip(b"\0").decode("utf-8", "replace"),
        length=length,
        sequence=-1 if (number := _number(attributes.get(_SEQUENCE))) is None else number,
        routed=routed,
    )


def _number(raw: bytes | None) -> int | None:
    return int.from_bytes(raw, "big") if raw is not None and len(raw) == 4 else None


def _header(packet: bytes) -> tuple[int, bytes, bytes, int, int, bool]:
    """(protocol, source, destination, length, where the transport header is; 0: nowhere; whether it is routed)."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        (length, _, fragment) = struct.unpack_from("!HHH", packet, 2)
        at = 4 * (packet[0] & 15) if not fragment & 0x1FFF else 0
        return packet[9], packet[12:16], packet[16:20], length, at, False
    if version == 6 and len(packet) >= 40:
        protocol, at, routed = _transport(packet)
        length = 40 + int.from_bytes(packet[4:6], "big")
        return protocol, packet[8:24], packet[24:40], length, at, routed
    return -1, b"", b"", 0, 0, False


def _transport(packet: bytes) -> tuple[int, int, bool]:
    """(protocol, where its header is, whether one leads it) of an IPv6 packet: behind the extension headers.
    Every one of these is 8 bytes at least, and the copy is short."""
    protocol, at, routed = packet[6], 40, False
    while protocol in _EXTENSIONS and at + 8 <= len(packet):
        routed |= protocol == _ROUTING
        if protocol == _FRAGMENT:
            if int.from_bytes(packet[at + 2 : at + 4], "big") >> 3:
                return packet[at], 0, routed
            size = 8
        elif protocol == _AUTHENTICATION:
            size = max(8, 4 * (packet[at + 1] + 2))
        else:
            size = 8 * (packet[at + 1] + 1)
        protocol, at = packet[at], at + size
    return protocol, at, routed
