"""What is read of a name server's answer, which is hostile."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from substrate.world.egress import dns, dns_response

QUESTION = b"\7example\3net\0\0\1\0\1"
ASKED = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + QUESTION
QUERY = dns.parse_query(ASKED)


def _answer(records, count=None, flags=0x8180):
    head = struct.pack(">6H", 7, flags, 1, len(records) if count is None else count, 0, 0)
    return head + QUESTION + b"".join(records)


def _record(kind, data, name=b"\xc0\x0c"):
    return name + struct.pack(">HHIH", kind, 1, 60, len(data)) + data


def test_addresses_of_an_answer():
    packet = _answer(
        [
            _record(5, b"\3www\xc0\x0c"),
            _record(1, b"\xcb\0\x71\7", b"\3www\7example\3net\0"),
            _record(28, bytes.fromhex("20010db8000000000000000000000007")),
        ]
    )
    assert dns_response.answers(packet, b"\0\7", QUERY)
    assert dns_response.addresses(packet, QUERY) == ("203.0.113.7", "2001:db8::7")
    assert dns_response.rcode(packet) == "NOERROR"
    assert dns_response.rcode(_answer([], flags=0x8183)) == "NXDOMAIN"
    assert dns_response.rcode(_answer([], flags=0x818F)) == "RCODE15"


def test_only_the_answer_to_the_question():
    packet = _answer([])
    assert dns_response.answers(packet.replace(b"example", b"EXAMPLE"), b"\0\7", QUERY)
    assert not dns_response.answers(packet, b"\0\x08", QUERY)
    assert not dns_response.answers(ASKED, b"\0\7", QUERY)
    assert not dns_response.answers(packet.replace(b"example", b"exemple"), b"\0\7", QUERY)
    assert not dns_response.answers(packet[:11], b"\0\7", QUERY)


@given(st.binary(max_size=200), st.integers(0, 65535))
def test_any_bytes(rest, count):
    packet = _answer([rest], count)
    assert len(dns_response.addresses(packet, QUERY)) <= 8
    dns_response.answers(rest, b"\0\7", QUERY)
