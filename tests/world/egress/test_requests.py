"""Heads and bodies of HTTP/1: what is read, and all that is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.world.egress.http import StatusReader, split_port
from substrate.world.egress.requests import Requests
from substrate.world.egress.speech import MOST, BadSpeech, OtherProtocol

GET = b"GET / HTTP/1.1\r\nHost: api.example\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def read(data):
    """(heads, the stream), everything accepted."""
    requests = Requests()
    heads = []
    head = requests.feed(data)
    while head is not None:
        heads.append(head)
        requests.accept()
        head = requests.feed(b"")
    return heads, requests


def refusal(data):
    with pytest.raises(BadSpeech) as caught:
        read(data)
    return str(caught.value)


def head(*lines, first=b"GET / HTTP/1.1"):
    return b"\r\n".join((first, *lines, b"", b""))


def test_reads_a_request():
    (found,), requests = read(GET)
    assert (found.method, found.host, found.authority, found.length) == (
        b"GET",
        b"api.example",
        None,
        -1,
    )
    assert (requests.passed, requests.left, requests.half_said) == (len(GET), 0, False)


@pytest.mark.parametrize(
    ("target", "authority"),
    [
        (b"/a?b#c", None),
        (b"//other.example/x", None),
        (b"/\xc3\xa4", None),
        (b"http://api.example", b"api.example"),
        (b"HTTP://api.example:80/x", b"api.example:80"),
        (b"https://api.example?x=http://b", b"api.example"),
        (b"http://a#@b/", b"a"),
    ],
)
def test_reads_targets(target, authority):
    (found,), _ = read(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert found.authority == authority


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (b"", "empty line"),
        (b"GET /", "not of an HTTP/1 request"),
        (b"EHLO me", "not of an HTTP/1 request"),
        (b"GET  / HTTP/1.1", "not of an HTTP/1 request"),
        (b" GET / HTTP/1.1", "not of an HTTP/1 request"),
        (b"GET / HTTP/1.1 ", "not of an HTTP/1 request"),
        (b"GET\t/ HTTP/1.1", "not of an HTTP/1 request"),
        (b"GET /\t HTTP/1.1", "target"),
        (b"GET / http/1.1", "not of an HTTP/1 request"),
        (b"GET / HTTP/1.2", "version"),
        (b"GET / HTTP/2.0", "version"),
        (b"GET / HTTP/1.1x", "version"),
        (b"G(T / HTTP/1.1", "method"),
        (b"GET /\0 HTTP/1.1", "0x00"),
        (b"GET /\x7f HTTP/1.1", "0x7f"),
        (b"GET /\rx HTTP/1.1", "carriage return"),
        (b"CONNECT api.example:443 HTTP/1.1", "CONNECT"),
        (b"CONNECT /x HTTP/1.1", "CONNECT"),
        (b"GET * HTTP/1.1", "neither a path nor a URL"),
        (b"GET api.example:80 HTTP/1.1", "neither a path nor a URL"),
        (b"GET ftp://api.example/ HTTP/1.1", "neither a path nor a URL"),
        (b"GET http:/api.example/ HTTP/1.1", "neither a path nor a URL"),
        (b"GET \\x HTTP/1.1", "neither a path nor a URL"),
        (b"GET http:/// HTTP/1.1", "no plain host"),
        (b"GET http://api.example@b/ HTTP/1.1", "no plain host"),
    ],
)
def test_refuses_first_lines(first, reason):
    assert reason in refusal(head(b"Host: a", first=first))


def test_options_of_all():
    assert len(read(head(b"Host: a", first=b"OPTIONS * HTTP/1.1"))[0]) == 1


def test_http2_is_another_protocol():
    with pytest.raises(OtherProtocol, match="tcp://"):
        read(b"PRI * HTTP/2.0\r\n")


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([b"Host: a", b"Host: a"], "several Host"),
        ([b"Host: a", b"HOST: b"], "several Host"),
        ([b"Host : a"], "malformed name"),
        ([b"Host\t: a"], "malformed name"),
        ([b"Host: a", b" b"], "second line"),
        ([b"Host: a", b"\tb: c"], "second line"),
        ([b" Host: a"], "second line"),
        ([b"Host"], "no colon"),
        ([b": a"], "malformed name"),
        ([b"H\xf6st: a"], "malformed name"),
        ([b"Host: a\0"], "0x00"),
        ([b"Host: a\rb"], "carriage return"),
        ([b"Host: a\r"], "carriage return"),
        ([b"X: \x1b[2J"], "0x1b"),
        ([b"Content-Length: 1", b"Content-Length: 1"], "several Content-Length"),
        ([b"Content-Length: 1, 1"], "Content-Length 1, 1"),
        ([b"Content-Length: +1"], "Content-Length"),
        ([b"Content-Length: -1"], "Content-Length"),
        ([b"Content-Length: 0x1"], "Content-Length"),
        ([b"Content-Length: 1_0"], "Content-Length"),
        ([b"Content-Length: 010"], "Content-Length"),
        ([b"Content-Length:"], "Content-Length"),
        ([b"Content-Length: 1 0"], "Content-Length"),
        ([b"Content-Length: \xb2"], "Content-Length"),
        ([b"Content-Length: " + b"9" * 19], "Content-Length"),
        ([b"Content_Length: 1"], "taken for another"),
        ([b"transfer_encoding: chunked"], "taken for another"),
        ([b"Content-Length: 1", b"Transfer-Encoding: chunked"], "both"),
        ([b"Transfer-Encoding: chunked", b"Content-Length: 0"], "both"),
        ([b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"], "several Transfer"),
        ([b"Transfer-Encoding: gzip, chunked"], "Transfer-Encoding gzip"),
        ([b"Transfer-Encoding: chunked, identity"], "Transfer-Encoding"),
        ([b"Transfer-Encoding: identity"], "Transfer-Encoding"),
        ([b"Transfer-Encoding: \x0bchunked"], "0x0b"),
        ([b"Transfer-Encoding:"], "Transfer-Encoding"),
        ([b"Connection: close, Host"], "Connection"),
        ([b"Connection: content-length"], "Connection"),
    ],
)
def test_refuses_fields(lines, reason):
    assert reason in refusal(head(*lines))


def test_old_http_has_no_chunks():
    lines = [b"Transfer-Encoding: chunked"]
    assert "HTTP/1.0" in refusal(head(*lines, first=b"POST / HTTP/1.0"))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\n",
        b"\nGET / HTTP/1.1\r\n",
    ],
)
def test_refuses_a_bare_line_feed(data):
    assert "line feed" in refusal(data)


def test_an_empty_line_between_requests_is_refused():
    assert "empty line" in refusal(GET + b"\r\n" + GET)


def test_a_head_is_64_kib_at_most():
    room = MOST - len(head(b"Host: a", b"X: "))
    fits = head(b"Host: a", b"X: " + b"x" * room)
    assert len(read(fits)[0]) == 1
    assert "longer than" in refusal(head(b"Host: a", b"X: " + b"x" * (room + 1)))
    assert "longer than" in refusal(b"GET /" + b"x" * MOST)
    assert "longer than" in refusal(b"GET / HTTP/1.1\r\n" + b"a:\r\n" * MOST)


def test_a_body_of_known_length_need_not_be_seen():
    start = head(b"Host: a", b"content-length:\t10 ", first=b"POST / HTTP/1.1")
    _, requests = read(start + b"123")
    assert (requests.passed, requests.left) == (len(start) + 3, 7)
    requests.skip(6)
    assert requests.left == 1
    assert requests.feed(b"0" + GET).host == b"api.example"
    assert requests.passed == len(start) + 4


def test_a_length_has_18_digits_at_most():
    _, requests = read(head(b"Host: a", b"Content-Length: " + b"9" * 18))
    assert requests.left == 10**18 - 1


def test_no_more_than_the_body_is_skipped():
    _, requests = read(head(b"Host: a", b"Content-Length: 10"))
    with pytest.raises(ValueError, match="cannot be skipped"):
        requests.skip(11)


@pytest.mark.parametrize(
    "chunks",
    [
        b"0\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"00000005\r\n\r\n\r\n0\r\n0\r\n\r\n",
        b'a;name="value";x\r\n0123456789\r\n0\r\n\r\n',
        b"1\r\nx\r\n0\r\nDigest: abc\r\nX: y\r\n\r\n",
    ],
)
def test_reads_chunks(chunks):
    heads, requests = read(CHUNKED + chunks + GET)
    assert [found.host for found in heads] == [b"a", b"api.example"]
    assert requests.passed == len(CHUNKED + chunks + GET)


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        (b"\r\n", "chunk size"),
        (b"x\r\n", "chunk size"),
        (b"5 \r\nhello\r\n", "chunk size"),
        (b" 5\r\nhello\r\n", "chunk size"),
        (b"0x5\r\nhello\r\n", "chunk size"),
        (b"-5\r\n", "chunk size"),
        (b"1_0\r\n", "chunk size"),
        (b"000000005\r\n", "chunk size"),
        (b"80000000\r\n", "chunk of"),
        (b"5;a\nb\r\nhello\r\n", "line feed"),
        (b"5\nhello\r\n", "line feed"),
        (b"5;\r;\r\nhello\r\n", "carriage return"),
        (b"5\r\nhello!\r\n", "does not end"),
        (b"5\r\nhello\n0\r\n", "does not end"),
        (b"0\r\nHost: b\r\n\r\n", "trailer"),
        (b"0\r\nContent-Length: 4\r\n\r\n", "trailer"),
        (b"0\r\nGET / HTTP/1.1\r\n\r\n", "no colon"),
        (b"0\r\n x\r\n\r\n", "second line"),
        (b"0\r\n" + b"a:\r\n" * MOST, "longer than"),
        (b"5;" + b"x" * MOST, "longer than"),
    ],
)
def test_refuses_chunks(chunks, reason):
    assert reason in refusal(CHUNKED + chunks)


def test_after_a_pause_it_goes_on_where_it_was():
    requests = Requests()
    assert requests.feed(GET + GET) is not None
    requests.accept(pause=True)
    assert requests.feed(b"") is None
    assert (requests.paused, requests.passed, requests.held) == (True, len(GET), len(GET))
    requests.resume()
    assert requests.feed(b"") is not None


def test_a_head_has_to_be_accepted():
    requests = Requests()
    requests.feed(GET)
    with pytest.raises(ValueError, match="accepted"):
        requests.feed(b"")
    assert requests.passed == 0


@pytest.mark.parametrize(
    ("raw", "parts"),
    [
        (b"a.example", (b"a.example", b"")),
        (b"a.example:80", (b"a.example", b"80")),
        (b"[2001:db8::1]:8080", (b"[2001:db8::1]", b"8080")),
        (b"", (b"", b"")),
    ],
)
def test_splits_ports(raw, parts):
    assert split_port(raw) == parts


@pytest.mark.parametrize("raw", [b"a:", b":80", b"a:80:80", b"a:+80", b"a:x", b"[::1]80"])
def test_refuses_ports(raw):
    with pytest.raises(BadSpeech, match="host and a port"):
        split_port(raw)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"HTTP/1.1 101 Switching", 101),
        (b"HTTP/1.0 200\r", 200),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 \r\nLink: x\r\n\r\nHTTP/1.1 404 No", 404),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 ", 101),
        (b"HTTP/1.1 100 Continue\r\nA: b\r\n", 0),
        (b"HTTP/1.1 20", 0),
    ],
)
def test_reads_the_status(raw, status):
    assert StatusReader().feed(raw) == status
    by_byte = StatusReader()
    found = [by_byte.feed(raw[at : at + 1]) for at in range(len(raw))]
    assert next((one for one in found if one), 0) == status


@pytest.mark.parametrize("raw", [b"220 x", b"HTTP/2", b"HTTP/1.1 2x0 ", b"HTTP/1.1 1011 ", b"\r\n"])
def test_refuses_a_status(raw):
    with pytest.raises(BadSpeech, match="the server did not answer"):
        StatusReader().feed(raw)


def test_an_interim_head_has_a_bound():
    with pytest.raises(BadSpeech, match="too long"):
        StatusReader().feed(b"HTTP/1.1 100 \r\n" + b"x" * MOST)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_random_fields_are_read_or_refused(data):
    try:
        read(b"GET / HTTP/1.1\r\n" + data)
    except BadSpeech as error:
        assert str(error).isprintable()
