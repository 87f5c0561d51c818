"""Socket addresses, questions to name servers, and which socket is which. Logic only.

Bytes come from the process: everything is checked for length, and what makes no sense gives None.
Sources: <linux/socket.h>, ip(7), ipv6(7), unix(7), RFC 1035 §4.1.
"""

from __future__ import annotations

import struct
from _socket import AF_INET, AF_INET6, AF_UNIX, SOCK_DGRAM, SOCK_STREAM, inet_ntop

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_FAMILIES: Final = {1: "unix", 2: "inet", 10: "inet6", 16: "netlink", 17: "packet", 40: "vsock"}
_TYPES: Final = {1: "stream", 2: "datagram", 3: "raw", 5: "seqpacket"}
_QUESTIONS: Final = {
    1: "A",
    2: "NS",
    5: "CNAME",
    6: "SOA",
    12: "PTR",
    15: "MX",
    16: "TXT",
    28: "AAAA",
    33: "SRV",
    41: "OPT",
    64: "SVCB",
    65: "HTTPS",
    255: "ANY",
}
DNS_PORT: Final = 53
_MAPPED: Final = b"\0" * 10 + b"\xff\xff"
#: of records.LOCAL; multipath TCP (262) is TCP to whoever sees its packets
_PROTOCOLS: Final = {6: "tcp", 17: "udp", 262: "tcp"}


@value
class Address:
    """`path`: of a UNIX socket, with a NUL in front in the abstract namespace."""

    family: int
    ip: str | None = None
    port: int | None = None
    path: bytes | None = None


def parse_address(data: bytes) -> Address | None:
    """A struct sockaddr; None where it is too short."""
    if len(data) < 2:
        return None
    (family,) = struct.unpack_from("=H", data)
    if family == AF_INET and len(data) >= 8:
        (port,) = struct.unpack_from(">H", data, 2)
        return Address(family=family, ip=inet_ntop(AF_INET, data[4:8]), port=port)
    if family == AF_INET6 and len(data) >= 24:
        (port,) = struct.unpack_from(">H", data, 2)
        return Address(family=family, ip=inet_ntop(AF_INET6, data[8:24]), port=port)
    if family == AF_UNIX:
        path = data[2:]
        if path[:1] != b"\0":
            path = path.split(b"\0", 1)[0]
        return Address(family=family, path=path)
    return Address(family=family)


def address_text(address: bytes) -> str:
    """Of 4 or 16 bytes. An IPv4 address that is mapped into IPv6's is told as what it is."""
    if len(address) == 16 and address.startswith(_MAPPED):
        address = address[len(_MAPPED) :]
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)


@value
class Local:
    """From where a socket has reached out. `ip`: None where it is bound to no address (a datagram
    leaves by whichever fits) or not connected any more."""

    protocol: str
    port: int
    ip: str | None


def parse_local(item: bytes) -> Local | None:
    """records.LOCAL; None for other protocols than TCP and UDP, and for what is none."""
    if len(item) not in (8, 20):
        return None
    (number,), (port,) = struct.unpack_from("=H", item), struct.unpack_from(">H", item, 2)
    protocol = _PROTOCOLS.get(number)
    if protocol is None or not port:
        return None
    ip = address_text(item[4:]) if any(item[4:]) else None
    return Local(protocol=protocol, port=port, ip=ip)


def parse_question(data: bytes) -> tuple[bytes, str] | None:
    """(name, type) of the first question of a DNS query; None where it is none."""
    if len(data) < 17:
        return None
    flags, questions = struct.unpack_from(">HH", data, 2)
    if flags & 0x8000 or not 1 <= questions <= 8:
        return None
    labels: list[bytes] = []
    at = 12
    while at < len(data):
        size = data[at]
        if size == 0:
            break
        if size > 63 or at + 1 + size >= len(data) or len(labels) > 127:
            return None
        labels.append(data[at + 1 : at + 1 + size])
        at += 1 + size
    if at + 5 > len(data) or not labels:
        return None
    kind, space = struct.unpack_from(">HH", data, at + 1)
    if space not in (1, 255):
        return None
    return b".".join(labels), _QUESTIONS.get(kind, f"TYPE{kind}")


class Socket:
    """What is known of one: family and type as socket(2) was given them, -1 where it was not
    seen; where it was bound to, whom it talks to, and from which port."""

    __slots__ = ("bound", "family", "kind", "peer", "port", "told")

    def __init__(self, family: int = -1, kind: int = -1) -> None:
        self.family, self.kind = family, kind
        self.bound: Address | None = None
        self.peer: Address | None = None
        #: of a connection by TCP, until it is known to have ended
        self.port: int | None = None
        self.told: set[tuple[str | None, int | None, bytes | None]] = set()

    def protocol(self, address: Address | None = None) -> str:
        """`tcp`, `udp`, `unix`, …; `inet` where the type was not seen."""
        family = self.family if self.family >= 0 or address is None else address.family
        if family in (AF_INET, AF_INET6):
            known = {SOCK_STREAM: "tcp", SOCK_DGRAM: "udp"}.get(self.kind)
            return known or (f"inet-{_TYPES[self.kind]}" if self.kind in _TYPES else "inet")
        return _FAMILIES.get(family, f"family-{family}")
