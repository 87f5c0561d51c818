"""One question, and answers to it, read back by a parser that knows nothing of ours."""

import itertools
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from substrate.world.egress import dns
from substrate.world.egress.addresses import parse_address

OPT = b"\0\0\x29\x10\0\0\0\0\0\0\0"


def wire(name):
    return b"".join(bytes((len(label),)) + label for label in name.encode().split(b".")) + b"\0"


def ask(name="example.net", qtype=1, *, flags=0x0100, counts=(1, 0, 0, 0), more=b"", qclass=1):
    raw = wire(name) if isinstance(name, str) else name
    return (
        struct.pack(">HH4H", 0xBEEF, flags, *counts)
        + raw
        + struct.pack(">HH", qtype, qclass)
        + more
    )


def read(packet):
    """A whole message as a dictionary; asserts that nothing is cut and nothing is left."""

    def name(at):
        labels, after = [], None
        for _ in range(130):
            size = packet[at]
            if size >= 0xC0:
                after = after or at + 2
                at = struct.unpack_from(">H", packet, at)[0] & 0x3FFF
            elif size == 0:
                return b".".join(labels), after or at + 1
            else:
                assert size < 64
                assert at + 1 + size < len(packet)
                labels.append(packet[at + 1 : at + 1 + size])
                at += 1 + size
        raise AssertionError("a name without end")

    ident, flags, questions, answers, authorities, additional = struct.unpack_from(">6H", packet)
    assert questions <= 1
    at = 12
    found = {"id": ident, "flags": flags, "rcode": flags & 15, "question": None, "records": []}
    for _ in range(questions):
        asked, at = name(at)
        found["question"] = (asked, *struct.unpack_from(">HH", packet, at))
        at += 4
    for _ in range(answers + authorities + additional):
        owner, at = name(at)
        kind, cls, ttl, length = struct.unpack_from(">HHIH", packet, at)
        at += 10
        data = name(at)[0] if kind == 12 else packet[at : at + length]
        at += length
        found["records"].append((owner, kind, cls, ttl, data))
    assert at == len(packet)
    assert len(packet) <= 512
    return found


def refused(packet):
    """(why, the answer as read, or None) of a bad query."""
    with pytest.raises(dns.BadQuery) as caught:
        dns.parse_query(packet)
    assert str(caught.value).replace("…", "").isascii()
    assert str(caught.value).isprintable()
    return str(caught.value), read(caught.value.answer) if caught.value.answer else None


# queries


def test_a_plain_question():
    query = dns.parse_query(ask("ExAmPle.NET", 28))
    assert (query.id, query.name, query.qtype, query.qclass) == (0xBEEF, "example.net", 28, 1)
    assert query.raw_question == wire("ExAmPle.NET") + b"\0\x1c\0\x01"
    assert (query.recursion_desired, query.checking_disabled, query.edns) == (True, False, False)


def test_a_question_with_edns():
    for options in (
        b"",
        b"\0\x0a\0\x08" + bytes(8),
        b"\0\x0c\0\x05" + bytes(5),
        b"\xff\xff\0\0" * 3,
    ):
        more = OPT[:-2] + struct.pack(">H", len(options)) + options
        assert dns.parse_query(ask(counts=(1, 0, 0, 1), more=more)).edns


def test_flags_that_do_not_matter_are_let_through():
    query = dns.parse_query(ask(flags=0x0130 | 0x0400))
    assert query.checking_disabled


@pytest.mark.parametrize(
    "packet", [b"", b"\0" * 11, ask(flags=0x8100), ask(flags=0x8000) + b"x" * 5000]
)
def test_what_is_no_query_is_not_answered(packet):
    assert refused(packet)[1] is None
    assert dns.answer_error(packet, dns.SERVFAIL) == b""


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 6, 15])
def test_other_operations_are_not_implemented(opcode):
    answer = refused(ask(flags=opcode << 11))[1]
    assert answer["rcode"] == dns.NOTIMP
    assert answer["flags"] >> 11 == 0x10 | opcode


LONG = b"".join(b"\x3f" + b"a" * 63 for _ in range(3))


@pytest.mark.parametrize(
    "packet",
    [
        ask(counts=(0, 0, 0, 0)),
        ask(counts=(2, 0, 0, 0), more=wire("evil.org") + b"\0\1\0\1"),
        ask(counts=(65535, 0, 0, 0)),
        ask(counts=(1, 1, 0, 0)),
        ask(counts=(1, 0, 1, 0)),
        ask(flags=0x0300),
        ask(more=b"\0"),
        ask(more=OPT),
        ask(counts=(1, 0, 0, 1)),
        ask(counts=(1, 0, 0, 2), more=OPT * 2),
        ask(counts=(1, 0, 0, 1), more=OPT[:-1]),
        ask(counts=(1, 0, 0, 1), more=OPT + b"\0"),
        ask(counts=(1, 0, 0, 1), more=b"\1a\0" + OPT[1:]),
        ask(counts=(1, 0, 0, 1), more=b"\1" + OPT[1:]),
        ask(counts=(1, 0, 0, 1), more=b"\0\0\xfa" + OPT[3:]),
        ask(counts=(1, 0, 0, 1), more=OPT[:-2] + b"\0\x03abc"),
        ask(counts=(1, 0, 0, 1), more=OPT[:-2] + b"\0\x04\0\x0c\0\x01"),
        ask(counts=(1, 0, 0, 1), more=OPT[:-2] + b"\0\x0b\0\x0a\0\x07" + bytes(7)),
        ask(b"\xc0\x0c"),
        ask(b"\3www\xc0\x0c"),
        ask(b"\x40" + b"a" * 64 + b"\0"),
        ask(b"\x80\0"),
        ask(b"\3ww"),
        ask(b"\x3fwww\0"),
        ask()[:-1],
        ask()[:12],
        ask(LONG + b"\x3f" + b"a" * 63 + b"\0"),
        ask(b"\1a" * 200 + b"\0"),
        ask(more=b"\0" * 5000),
    ],
)
def test_a_malformed_query_is_told_so(packet):
    answer = refused(packet)[1]
    assert answer["rcode"] == dns.FORMERR
    assert answer["id"] == 0xBEEF
    assert not answer["records"]


def test_the_longest_name_is_read_and_answered():
    name = ".".join(["a" * 63] * 3 + ["b" * 61])
    query = dns.parse_query(ask(name, counts=(1, 0, 0, 1), more=OPT))
    assert query.name == name
    assert read(dns.answer_address(query, bytes(4)))["question"][0] == name.encode()


@pytest.mark.parametrize("qclass", [0, 3, 254, 255])
def test_another_class_is_refused(qclass):
    assert refused(ask(qclass=qclass))[1]["rcode"] == dns.REFUSED


@pytest.mark.parametrize("qtype", [0, 41, 128, 249, 250, 251, 252, 253, 254])
def test_types_of_no_record_are_refused(qtype):
    assert refused(ask(qtype=qtype))[1]["rcode"] == dns.REFUSED


@pytest.mark.parametrize("qtype", [2, 5, 15, 16, 33, 64, 65, 255, 256, 65535])
def test_other_types_are_questions(qtype):
    query = dns.parse_query(ask(qtype=qtype))
    answer = read(dns.answer_none(query))
    assert (answer["rcode"], answer["records"]) == (0, [])
    assert answer["question"] == (b"example.net", qtype, 1)


@pytest.mark.parametrize(
    "raw",
    [
        b"\0",
        b"\x0bexample.net\0",
        b"\4a\0bc\3net\0",
        b"\4a\r\nb\3net\0",
        b"\1*\3net\0",
        b"\5b\xfcche\3net\0",
        b"\x03127\0",
        b"\x0a0x7f000001\0",
        b"\x03127\x010\x010\x011\0",
        b"\2-a\3net\0",
        b"\1 \3net\0",
    ],
)
def test_what_is_no_host_name_is_refused_with_its_question(raw):
    with pytest.raises(dns.BadQuery) as caught:
        dns.parse_query(ask(raw, counts=(1, 0, 0, 1), more=OPT))
    answer = read(caught.value.answer)
    assert answer["rcode"] == dns.REFUSED
    assert caught.value.answer[12 : 12 + len(raw)] == raw
    assert [record[1] for record in answer["records"]] == [41]
    assert caught.value.name
    assert caught.value.name.isascii()
    assert caught.value.name.isprintable()


def test_a_later_edns_is_told_the_version():
    answer = refused(ask(counts=(1, 0, 0, 1), more=OPT[:6] + b"\1" + OPT[7:]))[1]
    (record,) = answer["records"]
    assert (record[3] >> 24 << 4) | answer["rcode"] == 16
    assert record[3] >> 16 & 255 == 0


# answers


@pytest.mark.parametrize("edns", [False, True])
def test_an_address_is_the_answer(edns):
    query = dns.parse_query(ask("ExAmple.net", counts=(1, 0, 0, int(edns)), more=OPT * edns))
    answer = read(dns.answer_address(query, bytes((198, 18, 0, 1)), ttl=1))
    assert (answer["id"], answer["flags"]) == (0xBEEF, 0x8180)
    assert answer["question"] == (b"ExAmple.net", 1, 1)
    assert answer["records"][0] == (b"ExAmple.net", 1, 1, 1, b"\xc6\x12\0\1")
    assert answer["records"][1:] == [(b"", 41, 1232, 0, b"")] * edns


def test_an_ipv6_address_is_the_answer():
    query = dns.parse_query(ask(qtype=28))
    address = parse_address("2001:db8::7")
    assert read(dns.answer_address(query, address))["records"] == [
        (b"example.net", 28, 1, 1, address)
    ]


@pytest.mark.parametrize(("qtype", "size"), [(28, 4), (1, 16), (65, 4), (1, 3)])
def test_an_address_that_is_not_what_was_asked_for_is_a_bug(qtype, size):
    with pytest.raises(ValueError, match="bytes do not answer"):
        dns.answer_address(dns.parse_query(ask(qtype=qtype)), bytes(size))


def test_flags_of_the_question_come_back_where_they_must():
    for flags, expected in ((0, 0x8080), (0x0100, 0x8180), (0x0010, 0x8090), (0x0420, 0x8080)):
        assert read(dns.answer_none(dns.parse_query(ask(flags=flags))))["flags"] == expected


def test_a_missing_name():
    answer = read(dns.answer_missing(dns.parse_query(ask())))
    assert (answer["rcode"], answer["records"]) == (dns.NXDOMAIN, [])


def test_a_pointer():
    query = dns.parse_query(ask("7.0.18.198.in-addr.arpa", 12, counts=(1, 0, 0, 1), more=OPT))
    name = ".".join(["a" * 63] * 3 + ["b" * 61])
    answer = read(dns.answer_pointer(query, name))
    assert answer["records"][0] == (b"7.0.18.198.in-addr.arpa", 12, 1, 1, name.encode())
    for asked in (ask("example.net", 12), ask("7.0.18.198.in-addr.arpa", 1)):
        with pytest.raises(ValueError, match="does not answer"):
            dns.answer_pointer(dns.parse_query(asked), "example.net")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("7.113.0.203.in-addr.arpa", "203.0.113.7"),
        ("7" + ".0" * 23 + ".8.b.d.0.1.0.0.2.ip6.arpa", "2001:db8::7"),
        ("113.0.203.in-addr.arpa", None),
        ("1.7.113.0.203.in-addr.arpa", None),
        ("07.113.0.203.in-addr.arpa", None),
        ("256.113.0.203.in-addr.arpa", None),
        ("0x7.113.0.203.in-addr.arpa", None),
        ("7" + ".0" * 22 + ".8.b.d.0.1.0.0.2.ip6.arpa", None),
        ("77" + ".0" * 22 + ".8.b.d.0.1.0.0.2.ip6.arpa", None),
        ("g" + ".0" * 23 + ".8.b.d.0.1.0.0.2.ip6.arpa", None),
        ("7.113.0.203.in-addr.arpa.evil.org", None),
        ("in-addr.arpa", None),
        ("arpa", None),
        ("", None),
    ],
)
def test_reverse_names(name, text):
    assert dns.pointed_address(name) == (parse_address(text) if text else None)


def test_an_error_holds_the_question_if_it_is_whole():
    answer = read(dns.answer_error(ask("ExAmple.net", counts=(1, 0, 0, 1), more=OPT), dns.SERVFAIL))
    assert answer["rcode"] == dns.SERVFAIL
    assert answer["question"] == (b"ExAmple.net", 1, 1)
    assert read(dns.answer_error(ask()[:-3], dns.SERVFAIL))["question"] is None


def test_types_have_names():
    assert [dns.qtype_name(n) for n in (1, 28, 65, 12, 999)] == [
        "A",
        "AAAA",
        "HTTPS",
        "PTR",
        "TYPE999",
    ]


# anything at all


@given(
    st.binary(max_size=80)
    | st.builds(
        lambda flags, counts, rest: struct.pack(">HH4H", 7, flags, *counts) + rest,
        st.sampled_from([0, 0x0100, 0x0110, 0x0300, 0x0800, 0x8000]),
        st.tuples(*[st.sampled_from([0, 0, 1, 1, 2])] * 4),
        st.binary(max_size=300)
        | st.lists(
            st.sampled_from([b"\3www", b"\1a", b"\0", b"\xc0\x0c", b"\0\1\0\1", OPT, b"\x3f", LONG])
        ).map(b"".join),
    )
)
@example(struct.pack(">6H", 0, 0, 1, 0, 0, 0) + b"\0")
@example(ask(counts=(1, 0, 0, 1), more=OPT))
def test_any_packet_is_a_query_or_badquery_and_its_answers_can_be_read(packet):
    try:
        query = dns.parse_query(packet)
    except dns.BadQuery as error:
        assert str(error).isprintable()
        if error.answer:
            assert error.answer[:2] == packet[:2]
            assert read(error.answer)["flags"] & 0x8000
            with pytest.raises(dns.BadQuery):  # no two servers answer each other for ever
                dns.parse_query(error.answer)
        return
    for answer in (dns.answer_none(query), dns.answer_missing(query), dns.answer_error(packet, 2)):
        found = read(answer)
        assert found["id"] == query.id
        assert found["question"][0].lower() == query.name.encode()
        assert answer[12 : 12 + len(query.raw_question)] == query.raw_question
    if query.qtype in (dns.A, dns.ANY):
        assert read(dns.answer_address(query, bytes(4)))["records"][0][4] == bytes(4)


NAMES = (
    st.lists(st.text("abcxyzABC019_", min_size=1, max_size=63), min_size=1, max_size=20)
    .map(lambda labels: ".".join([*labels, "net"]))
    .filter(lambda name: len(name) <= 253)
)


@given(NAMES, st.sampled_from([1, 28, 65, 255]), st.booleans())
def test_every_good_name_can_be_asked_for(name, qtype, edns):
    query = dns.parse_query(ask(name, qtype, counts=(1, 0, 0, int(edns)), more=OPT * edns))
    assert (query.name, query.qtype, query.edns) == (name.lower(), qtype, edns)


# over TCP


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(0, 250)))
def test_messages_are_whole_however_the_bytes_come(messages, cuts):
    data = b"".join(map(dns.frame, messages))
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    frames = dns.Frames()
    got = []
    for start, end in itertools.pairwise(edges):
        got += frames.feed(data[start:end])
    assert got == messages
    assert frames.feed(b"") == []


@pytest.mark.parametrize("size", [0, 4097, 65535])
def test_a_frame_that_cannot_be_a_query_ends_the_connection(size):
    frames = dns.Frames()
    assert frames.feed(struct.pack(">H", size)[:1]) == []
    for _ in range(2):
        with pytest.raises(dns.BadQuery, match="4096") as caught:
            frames.feed(struct.pack(">H", size)[1:] + b"x" * 9)
        assert caught.value.answer == b""


def test_a_frame_of_nothing_ends_the_connection():
    with pytest.raises(dns.BadQuery):
        dns.Frames().feed(b"\0\0")


def test_the_longest_frame_is_taken():
    assert dns.Frames().feed(dns.frame(b"x" * 4096)) == [b"x" * 4096]
