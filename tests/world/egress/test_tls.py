"""Hellos of TLS, well-formed and not, and what servers answer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.world.egress.speech import MOST, BadSpeech
from substrate.world.egress.tls import AnswerReader, HelloReader, parse_hello
from tests.world.egress.hellos import (
    CHANGE,
    RETRY,
    body,
    extension,
    hello,
    message,
    real_hello,
    record,
    records,
    server_hello,
    server_name,
    vector,
)

GOOD = message(body(server_name(b"api.example")))
ALERT = b"\x15\x03\x03\x00\x02\x01\x70"
EARLY = record(b"sealed", kind=23)


def test_reads_what_openssl_says():
    found = HelloReader().feed(real_hello())
    assert found is not None
    assert (found.server_name, found.encrypted) == (b"api.example", False)


@pytest.mark.parametrize("size", [1, 2, 7, 100, 16384])
def test_puts_a_hello_together_from_records_of_any_size(size):
    reader = HelloReader()
    raw = records(GOOD, size)
    for byte in raw[:-1]:
        assert reader.feed(bytes([byte])) is None
    assert reader.feed(raw[-1:] + b"early").server_name == b"api.example"
    assert (reader.used, bytes(reader.rest)) == (len(raw), b"early")


def test_a_hello_may_name_nobody():
    assert parse_hello(message(body(extension(10)))).server_name == b""
    assert parse_hello(message(body(block=False))).server_name == b""


@pytest.mark.parametrize("kind", [0xFE0D, 0xFFCE, 0xFE08])
def test_tells_that_the_name_is_hidden(kind):
    assert parse_hello(message(body(server_name(b"outer"), extension(kind, b"\0")))).encrypted


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (record(message(body(server_name(b"a", b"b")))), "several server names"),
        (record(message(body(server_name(b"a"), server_name(b"a")))), "extension 0 twice"),
        (record(message(body(extension(99), extension(99)))), "extension 99 twice"),
        (record(message(body(server_name(b"a", kind=1)))), "host_name"),
        (record(message(body(server_name(b"")))), "field of 0 bytes"),
        (record(message(body(extension(0, b"")))), "cut short"),
        (record(message(body(extension(0, b"\0\0")))), "field of 0 bytes"),
        (record(message(body(extension(0, b"\0\4\0\0\1ax")))), "after its end"),
        (record(message(body(b"\0\0\0\xff"))), "cut short"),
        (record(message(body(version=b"\x02\x00"))), "version"),
        (record(message(body(session=b"s" * 33))), "field of 33 bytes"),
        (record(message(body(suites=b"\x13"))), "field of 1 bytes"),
        (record(message(body(suites=b"\x13\x01\x13"))), "half a cipher suite"),
        (record(message(body(block=False) + b"\0\0x")), "after its end"),
        (record(message(body(block=False)[:20])), "cut short"),
        (record(GOOD + GOOD), "does not end with its record"),
        (record(GOOD + b"\x16"), "does not end with its record"),
        (record(GOOD[:3]) + record(GOOD[3:] + b"x"), "does not end with its record"),
        (record(GOOD[:9]) + CHANGE + record(GOOD[9:]), "type 20"),
        (record(GOOD[:9]) + record(b""), "length of 0"),
        (record(b""), "length of 0"),
        (record(b"x" * 16385), "length of 16385"),
        (record(GOOD, version=b"\x02\x01"), "version 2.1"),
        (record(GOOD, version=b"\x03\x05"), "version 3.5"),
        (record(GOOD, kind=23), "type 23"),
        (CHANGE + record(GOOD), "type 20"),
        (record(message(b"", kind=0)), "message of type 0"),
        (record(b"\x01" + (MOST - 3).to_bytes(3, "big")), "longer than"),
        (record(b"\x01\xff\xff\xff"), "longer than"),
    ],
)
def test_refuses(raw, reason):
    with pytest.raises(BadSpeech, match=reason):
        HelloReader().feed(raw)


def test_a_hello_may_be_as_long_as_64_kib():
    room = MOST - 4 - len(body(server_name(b"a"), extension(21)))
    whole = message(body(server_name(b"a"), extension(21, b"\0" * room)))
    assert len(whole) == MOST
    assert HelloReader().feed(records(whole, 16384)).server_name == b"a"


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_extensions_are_read_or_refused(data):
    try:
        parse_hello(message(body(block=False) + vector(2, data)))
    except BadSpeech as error:
        assert str(error).isprintable()


@settings(deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(at, byte):
    changed = bytearray(record(GOOD))
    changed[5 + at] = byte
    try:
        HelloReader().feed(bytes(changed))
    except BadSpeech as error:
        assert str(error).isprintable()


def test_before_a_second_hello_other_records_pass():
    reader = HelloReader(start=1000)
    skipped = CHANGE + EARLY + ALERT
    assert reader.feed(skipped) is None
    assert reader.passed == 1000 + len(skipped)
    assert reader.feed(hello()).server_name == b"api.example"
    assert reader.used == 1000 + len(skipped) + len(hello())


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\x14\x03\x03\x00\x01\x02", "malformed"),
        (b"\x14\x03\x03\x00\x02\x01\x01", "malformed"),
        (record(b"x", kind=24), "type 24"),
        (record(GOOD[:9]) + EARLY, "interrupted"),
        (record(b"\x10\0\0\0"), "message of type 16"),
    ],
)
def test_refuses_before_a_second_hello(raw, reason):
    with pytest.raises(BadSpeech, match=reason):
        HelloReader(start=1).feed(raw)


@pytest.mark.parametrize(
    ("raw", "verdict"),
    [
        (server_hello(), "hello"),
        (server_hello(RETRY), "retry"),
        (ALERT + server_hello(RETRY), "retry"),
        (records(server_hello(RETRY)[5:], 1), "retry"),
        (server_hello(RETRY)[:42], ""),
        (ALERT, ""),
    ],
)
def test_tells_what_the_server_answers(raw, verdict):
    assert AnswerReader().feed(raw) == verdict
    by_byte = AnswerReader()
    found = [by_byte.feed(raw[at : at + 1]) for at in range(len(raw))]
    assert next((one for one in found if one), "") == verdict


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"220 mail.example\r\n",
        record(message(b"", kind=0)),
        record(b"", kind=22),
        EARLY,
        ALERT * 5,
        record(b"\x02") + ALERT,
        b"\x16\x02\x00\x00\x01\x02",
    ],
)
def test_refuses_an_answer_that_is_none(raw):
    with pytest.raises(BadSpeech, match="server"):
        AnswerReader().feed(raw)
