"""Names: one spelling, and nothing that a resolver takes for an address."""

import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from substrate.world.egress.names import BadName, ends_in_number, name_from_text, parse_name

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-_"


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"example.net", "example.net"),
        (b"EXAMPLE.Net.", "example.net"),
        (b"_dmarc.example.net", "_dmarc.example.net"),
        (b"r3---sn-a.example.net", "r3---sn-a.example.net"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b"1.2.3.4.in-addr.arpa", "1.2.3.4.in-addr.arpa"),
        (b"4chan.example", "4chan.example"),
        (b"host", "host"),
        (b"0xg.example.0xg", "0xg.example.0xg"),
        (b"a" * 63 + b".net", "a" * 63 + ".net"),
    ],
)
def test_a_name_has_one_spelling(raw, name):
    assert parse_name(raw) == name


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b".",
        b"..",
        b"example.net..",
        b".example.net",
        b"a..b",
        b"a" * 64 + b".net",
        b"-a.net",
        b"a-.net",
        b"example.net\0",
        b"example.net\0.evil.example",
        b"example.net\r\nHost: x",
        b"example.net\n",
        b" example.net",
        b"exa mple.net",
        b"exa\tmple.net",
        b"*.example.net",
        b"example.net:443",
        b"user@example.net",
        b"example.net/",
        b"example%2enet",
        b"[::1]",
        b"::1",
        "bücher.example".encode(),
        "bücher.example".encode("latin-1"),
        "example\u3002net".encode(),
        b"\xff\xfe",
    ],
)
def test_what_is_no_host_name_is_refused(raw):
    with pytest.raises(BadName):
        parse_name(raw)


@pytest.mark.parametrize(
    "raw",
    b"127.0.0.1 127.1 127.0.1 2130706433 0x7f000001 0X7F.0.0.1 017700000001 0177.0.0.1 0x7f.1 0 0x"
    b" 127.0.0.1. 1.2.3.4.5 999.1 example.1 example.0x10 00000000000000000000017700000001".split(),
)
def test_what_reads_as_an_address_is_no_name(raw):
    with pytest.raises(BadName, match="address"):
        parse_name(raw)
    assert ends_in_number(raw)


def test_length_is_counted_without_the_last_dot():
    longest = b".".join([b"a" * 63] * 3 + [b"b" * 61])
    assert len(longest) == 253
    assert parse_name(longest + b".") == longest.decode()
    with pytest.raises(BadName, match="254"):
        parse_name(longest[:-1] + b"bb")


def test_a_message_is_printable_and_short_whatever_the_name():
    for raw in (b"\x1b[31m\r\n" * 20, b"a\0" + b"\xff" * 240, b"z" * 9999):
        with pytest.raises(BadName) as caught:
            parse_name(raw)
        assert str(caught.value).replace("…", "").isascii()
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500


@given(st.binary(max_size=300) | st.text(LETTERS + ".ABCX", max_size=270).map(str.encode))
@example(b"0x7f.1")
def test_any_bytes_are_a_name_in_one_spelling_or_badname(raw):
    try:
        name = parse_name(raw)
    except BadName:
        return
    assert parse_name(name.encode()) == name
    assert len(name) <= 253
    assert all(0 < len(label) <= 63 and set(label) <= set(LETTERS) for label in name.split("."))
    assert parse_name(raw.upper()) == name


@given(st.lists(st.text("0123456789abcdefxXg", min_size=1, max_size=12), min_size=1, max_size=5))
@example(["127", "1"])
@example(["0x7f000001"])
def test_no_name_is_an_address_to_the_c_library(labels):
    raw = ".".join(labels)
    try:
        name = parse_name(raw.encode())
    except BadName:
        return
    with pytest.raises(OSError):
        socket.inet_aton(name)
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo(name, 443, flags=socket.AI_NUMERICHOST)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Bücher.Example", "xn--bcher-kva.example"),
        ("例え.example", "xn--r8jz45g.example"),
        ("EXAMPLE.net.", "example.net"),
        ("bücher。example", "xn--bcher-kva.example"),
    ],
)
def test_a_person_may_write_letters_beyond_ascii(text, name):
    assert name_from_text(text) == name


@pytest.mark.parametrize(
    "text", ["straße.example", "βόλος.example", "a\u200db.example", "ẞ.example"]
)
def test_letters_that_are_encoded_in_two_ways_are_refused(text):
    with pytest.raises(BadName, match="xn--"):
        name_from_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "１２７.０.０.１",  # full-width digits
        "exam\u2100ple.net",  # becomes a/c
        "\ud800.example",
        "a\u202eb.example",
        "ü..example",
        "ü" * 300,
        "bücher.example\n",
        "bücher example",
    ],
)
def test_letters_that_become_something_else_are_refused(text):
    with pytest.raises(BadName):
        name_from_text(text)


@given(st.text(max_size=80))
def test_any_text_is_a_name_or_badname(text):
    try:
        name = name_from_text(text)
    except BadName as error:
        assert str(error).replace("…", "").isascii()
        return
    assert parse_name(name.encode()) == name
