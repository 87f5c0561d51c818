"""What a name server answered, as far as a record of it needs: whether it answers the question, its code, addresses.

Bytes in; nothing is changed. The packet is hostile: it came over the network, and is read in time
linear in its length. What cannot be read is left out. Sources: RFC 1035 §4, RFC 3596, RFC 2136 §2.2.
"""

from __future__ import annotations

import struct

from substrate.world.egress.addresses import render_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.world.egress.dns import Query

_HEADER: Final = 12
_RECORD: Final = struct.Struct(">HHIH")
_QR: Final = 0x80
_ADDRESSES: Final = {1: 4, 28: 16}
_MOST: Final = 8
_RCODES: Final = (
    *("NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"),
    *("YXDOMAIN", "YXRRSET", "NXRRSET", "NOTAUTH", "NOTZONE"),
)


def answers(packet: bytes, ident: bytes, query: Query) -> bool:
    """Whether the packet is the answer to the question that was sent with this id (2 bytes)."""
    if len(packet) < _HEADER or packet[:2] != ident or not packet[2] & _QR:
        return False
    end = _HEADER + len(query.raw_question)
    return packet[4:6] == b"\0\1" and packet[_HEADER:end].lower() == query.raw_question.lower()


def rcode(packet: bytes) -> str:
    """The name of its code, without what EDNS adds."""
    code = packet[3] & 15
    return _RCODES[code] if code < len(_RCODES) else f"RCODE{code}"


def addresses(packet: bytes, query: Query) -> tuple[str, ...]:
    """The first addresses of the answer's records, whichever names these have."""
    found: list[str] = []
    at = _HEADER + len(query.raw_question)
    for _ in range(int.from_bytes(packet[6:8], "big")):
        at = _name_end(packet, at)
        if not at or at + _RECORD.size > len(packet) or len(found) == _MOST:
            break
        kind, _, _, size = _RECORD.unpack_from(packet, at)
        at += _RECORD.size
        if _ADDRESSES.get(kind) == size and at + size <= len(packet):
            found.append(render_address(packet[at : at + size]))
        at += size
    return tuple(found)


def _name_end(packet: bytes, at: int) -> int:
    """Behind a name; 0 where it has no end."""
    while at < len(packet):
        size = packet[at]
        if size >= 0xC0:  # a pointer is the last part
            return at + 2
        at += 1 + size
        if not size:
            return at
    return 0
