"""The one question of a DNS query, and answers of at most one record. Bytes in, bytes out.

Not a resolver: nothing is looked up. A query is read strictly, for it comes out of the world: one
question, no compression, nothing behind it but EDNS; of what is odd an error is told, of what is
no query nothing at all (two servers that answer each other's answers never end). Invariants:
`parse_query` raises BadQuery and nothing else, in time linear in the packet; every answer is at
most 512 bytes and holds the question as it was asked, in its own letter case.

Sources: RFC 1035 §4; RFC 2181 §5, §11; RFC 3596; RFC 4035 §3.2.2 (CD); RFC 6891 (EDNS); RFC 7766
§8 (TCP); RFC 7873 §5.2.2 (cookie length); RFC 9460; RFC 9619 (one question).
"""

from __future__ import annotations

import struct

from substrate.values import replace, value
from substrate.world.egress.addresses import parse_address
from substrate.world.egress.dns_codes import (
    AAAA,
    ANY,
    BADVERS,
    FORMERR,
    LONGEST_QUERY,
    NOTIMP,
    NXDOMAIN,
    OPT,
    PTR,
    QTYPES,
    REFUSED,
    SERVFAIL,
    A,
    BadQuery,
    qtype_name,
)
from substrate.world.egress.dns_frames import Frames, frame
from substrate.world.egress.names import BadName, parse_name, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = [
    "AAAA",
    "ANY",
    "FORMERR",
    "LONGEST_ANSWER",
    "LONGEST_QUERY",
    "NOTIMP",
    "NXDOMAIN",
    "PTR",
    "QTYPES",
    "REFUSED",
    "SERVFAIL",
    "A",
    "BadQuery",
    "Frames",
    "Query",
    "answer_address",
    "answer_error",
    "answer_failed",
    "answer_missing",
    "answer_none",
    "answer_pointer",
    "frame",
    "parse_query",
    "pointed_address",
    "qtype_name",
]

_IN: Final = 1

LONGEST_ANSWER: Final = 512
_HEADER: Final = struct.Struct(">6H")
_PAIR: Final = struct.Struct(">HH")
#: of each answer: it is made anew at any time
TTL_S: Final = 1
_RECORD: Final = struct.Struct(">HHHIH")  # the name as a pointer, type, class, TTL, length
_QR: Final = 0x8000
_OPCODE: Final = 0x7800
_TC: Final = 0x0200
_RD: Final = 0x0100
_RA: Final = 0x0080
_CD: Final = 0x0010
_EDNS: Final = struct.Struct(">BHHBBHH")
_OUR_SIZE: Final = 1232  # what EDNS says of the queries that are taken over UDP


@value
class Query:
    """`name` is canonical (names.py), `raw_question` as it was on the wire."""

    id: int
    name: str
    qtype: int
    qclass: int
    raw_question: bytes
    recursion_desired: bool
    checking_disabled: bool
    edns: bool


def parse_query(packet: bytes) -> Query:
    """The query in a UDP payload or a TCP frame; raises BadQuery."""
    if len(packet) < _HEADER.size:
        raise BadQuery(f"{len(packet)} bytes are no DNS message")
    ident, flags, questions, answers, authorities, more = _HEADER.unpack_from(packet)
    if flags & _QR:
        raise BadQuery("a DNS response where a query was expected")
    if flags & _OPCODE:
        raise BadQuery(
            f"opcode {(flags & _OPCODE) >> 11}: only QUERY is answered",
            answer_error(packet, NOTIMP),
        )
    broken = ""
    if len(packet) > LONGEST_QUERY:
        broken = f"a query of {len(packet)} bytes: at most {LONGEST_QUERY}"
    elif flags & _TC:
        broken = "a query that says it was cut"
    elif questions != 1 or answers or authorities:
        broken = f"{questions} questions, {answers} answers, {authorities} authorities: expected one question"
    end = 0 if broken else _question_end(packet)
    if not broken and not end:
        broken = "a question that is cut, or has a compressed or too long name"
    if broken:
        raise BadQuery(broken, answer_error(packet, FORMERR))
    version = _edns(packet, end, more)
    labels = _labels(packet)
    qtype, qclass = _PAIR.unpack_from(packet, end - 4)
    shown = show(b".".join(labels))
    if version == -2:
        raise BadQuery(
            "what follows the question is not EDNS", answer_error(packet, FORMERR), shown
        )
    edns = version >= 0
    query = Query(
        id=ident,
        name="",
        qtype=qtype,
        qclass=qclass,
        raw_question=packet[_HEADER.size : end],
        recursion_desired=bool(flags & _RD),
        checking_disabled=bool(flags & _CD),
        edns=edns,
    )
    if version > 0:
        raise BadQuery(f"EDNS version {version}: expected 0", _answer(query, BADVERS), shown)
    if qclass != _IN:
        raise BadQuery(f"class {qclass}: expected IN", _answer(query, REFUSED), shown)
    if qtype in (0, OPT) or 128 <= qtype < ANY:  # RFC 6895 §3.1: not of data, transfers
        raise BadQuery(f"type {qtype} is of no record", _answer(query, REFUSED), shown)
    if any(b"." in label for label in labels):
        raise BadQuery(f"{shown} has a dot in a label", _answer(query, REFUSED), shown)
    try:
        name = parse_name(b".".join(labels))
    except BadName as error:
        raise BadQuery(str(error), _answer(query, REFUSED), shown) from None
    return replace(query, name=name)


def _question_end(packet: bytes) -> int:
    """Where the question ends; 0 where there is none that is whole and plain."""
    at = _HEADER.size
    while at < len(packet):
        size = packet[at]
        at += 1 + size
        if not size:
            return at + 4 if at - _HEADER.size <= 255 and at + 4 <= len(packet) else 0
        if size > 63:  # a pointer, or of a kind that nobody uses
            return 0
    return 0


def _labels(packet: bytes) -> list[bytes]:
    """Of a question that has an end."""
    found = []
    at = _HEADER.size
    while packet[at]:
        found.append(packet[at + 1 : at + 1 + packet[at]])
        at += 1 + packet[at]
    return found


def _edns(packet: bytes, at: int, records: int) -> int:
    """The version of EDNS, -1 for none, -2 where something else or more follows."""
    if records == 0:
        return -1 if at == len(packet) else -2
    if records != 1 or at + _EDNS.size > len(packet):
        return -2
    root, kind, _, _, version, _, length = _EDNS.unpack_from(packet, at)
    at += _EDNS.size
    if root or kind != OPT or at + length != len(packet):
        return -2
    while at < len(packet):
        if at + 4 > len(packet):
            return -2
        code, size = _PAIR.unpack_from(packet, at)
        at += 4 + size
        if code == 10 and size != 8 and not 16 <= size <= 40:
            return -2
    return int(version) if at == len(packet) else -2


def _answer(query: Query, code: int, record: bytes = b"") -> bytes:
    flags = _QR | _RA | (code & 15)
    if query.recursion_desired:
        flags |= _RD
    if query.checking_disabled:
        flags |= _CD
    head = _HEADER.pack(query.id, flags, 1, 1 if record else 0, 0, 1 if query.edns else 0)
    tail = _EDNS.pack(0, OPT, _OUR_SIZE, code >> 4, 0, 0, 0) if query.edns else b""
    whole = head + query.raw_question + record + tail
    if len(whole) > LONGEST_ANSWER:
        raise ValueError(f"an answer of {len(whole)} bytes")
    return whole


def answer_address(query: Query, address: bytes, ttl: int = TTL_S) -> bytes:
    """The one address (4 bytes for A, 16 for AAAA) of the name; `ttl` in seconds."""
    kind = A if len(address) == 4 else AAAA
    if len(address) not in (4, 16) or query.qtype not in (kind, ANY):
        raise ValueError(f"{len(address)} bytes do not answer {qtype_name(query.qtype)}")
    return _answer(query, 0, _RECORD.pack(0xC00C, kind, _IN, ttl, len(address)) + address)


def answer_none(query: Query) -> bytes:
    """The name is there, a record of this type is not (NODATA)."""
    return _answer(query, 0)


def answer_missing(query: Query) -> bytes:
    """There is no such name (NXDOMAIN)."""
    return _answer(query, NXDOMAIN)


def answer_failed(query: Query) -> bytes:
    """It could not be found out; who asked may ask again (SERVFAIL)."""
    return _answer(query, SERVFAIL)


def answer_pointer(query: Query, name: str, ttl: int = TTL_S) -> bytes:
    """The name (canonical) behind an address that was asked for by its reverse name."""
    if query.qtype not in (PTR, ANY) or pointed_address(query.name) is None:
        raise ValueError(f"{name} does not answer {qtype_name(query.qtype)} of {query.name}")
    labels = parse_name(name.encode("ascii")).encode("ascii").split(b".")
    wire = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    return _answer(query, 0, _RECORD.pack(0xC00C, PTR, _IN, ttl, len(wire)) + wire)


def pointed_address(name: str) -> bytes | None:
    """The address whose reverse name it is (RFC 1035 §3.5, RFC 3596 §2.5), or None."""
    labels = name.split(".")
    zone = labels[-2:]
    parts = labels[-3::-1]
    text = ""
    if zone == ["in-addr", "arpa"] and len(parts) == 4:
        text = ".".join(parts)
    elif zone == ["ip6", "arpa"] and len(parts) == 32 and all(len(part) == 1 for part in parts):
        joined = "".join(parts)
        text = ":".join(joined[at : at + 4] for at in range(0, 32, 4))
    try:
        return parse_address(text)
    except ValueError:
        return None


def answer_error(packet: bytes, rcode: int) -> bytes:
    """An error for a packet that is a query as far as can be told: b"" where it is none. It has the
    question, if that is whole: stub resolvers take no answer for theirs without it."""
    if len(packet) < _HEADER.size or packet[2] & 0x80:
        return b""
    ident, flags = _PAIR.unpack_from(packet)
    end = _question_end(packet) if flags & _OPCODE == 0 and packet[4:6] == b"\0\1" else 0
    kept = flags & (_OPCODE | _RD | _CD)
    head = _HEADER.pack(ident, _QR | _RA | kept | (rcode & 15), 1 if end else 0, 0, 0, 0)
    return head + packet[_HEADER.size : end] if end else head
