"""Which protocol begins so, from as few bytes as can be."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.world.egress.speech import MOST, Watch, show, sniff


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"", ""),
        (b"G", ""),
        (b"GET", ""),
        (b"GET ", "http"),
        (b"VERSION-CONTROL", ""),
        (b"VERSION-CONTROL /", "http"),
        (b"PRI * HTTP/2.0\r\n", "http"),
        (b"GETS", "text"),
        (b"GET\t", "text"),
        (b"get /", "text"),
        (b"hello", "text"),
        (b"FOO / HTTP/1.1", "text"),
        (b"\r\nGET /", "text"),
        (b" GET /", "text"),
        (b"\x16", ""),
        (b"\x16\x03\x01\x02\x00", ""),
        (b"\x16\x03\x01\x02\x00\x01", "tls"),
        (b"\x16\x00\x00\x02\x00\x01", "tls"),
        (b"\x16\x03\x01\x00\x00", "tls"),
        (b"\x16\x03\x01\x02\x00\x02", "other"),
        (b"\x16\x10", "other"),
        (b"\x80", ""),
        (b"\x80\x2e\x01\x03", ""),
        (b"\x80\x2e\x01\x03\x01", "ssl2"),
        (b"\x80\x2e\x01\x00\x02", "ssl2"),
        (b"\x80\x2e\x01\x00\x03", "other"),
        (b"\x80\x2e\x02", "other"),
        (b"\xff\xfb\x01", "other"),
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", "other"),
        (b'{"id": 1}', "other"),
        (b"\x00", "other"),
    ],
)
def test_sniffs(start, kind):
    assert sniff(start) == kind


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_more_bytes_do_not_change_what_it_is(data):
    found = [sniff(data[:length]) for length in range(len(data) + 1)]
    decided = [kind for kind in found if kind]
    assert len(set(decided)) <= 1
    assert "" not in found[len(found) - len(decided) :]


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 100))
def test_shows_what_is_printable_and_not_too_much(raw, room):
    shown = show(raw, room)
    assert shown.isascii() and shown.isprintable()
    assert len(shown) <= 4 * room + 3


def test_shows_different_bytes_differently():
    assert show(b"\\x00") != show(b"\0")


@pytest.mark.parametrize(
    ("line", "verdict", "passed"),
    [
        (b"hello", "", 5),
        (b"hello\n", "other", 5),
        (b"EHLO me.example\r\n", "other", 16),
        (b"SSH-2.0-x\r\n", "other", 10),
        (b"{", "other", 0),
        (b"user\0database\0", "other", 4),
        (b"user x\0", "binary", 6),
        (b"FOO / HTTP/1.1\r\n", "http", 10),
        (b"FOO /?a=HTTP/1.1 x\r\n", "other", 19),
        (b"foo\x85/\xa0http/1.1\r\n", "http", 10),
        (b"\r\n\r\nGET / HTTP/1.1\r\n", "late", 14),
        (b"\r\n\r\n", "", 4),
        (b"get /path\r\n", "simple", 10),
        (b"get http://other.example/\n", "simple", 25),
        (b"GET key\r\n", "other", 8),
        (b"OPTIONS rtsp://x/ RTSP/1.0\r\n", "other", 27),
        (b"a" * MOST, "", MOST),
        (b"a" * (MOST + 1), "long", MOST),
        (b"\n" * (MOST + 1), "long", MOST),
    ],
)
def test_watches_a_line(line, verdict, passed):
    watch = Watch()
    assert watch.feed(line) == verdict
    assert watch.passed == passed
