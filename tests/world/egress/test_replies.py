"""Where answers of HTTP end, however they are split."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.world.egress.replies import Replies

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n3;x=y\r\nabc\r\n0A\r\n0123456789\r\n0\r\n"
LENGTH = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
#: (method, answer): each ends where its bytes do
ANSWERS = [
    (b"GET", LENGTH),
    (b"GET", b"HTTP/1.0 404 no\nContent-Length: 0\n\n"),
    (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\nContent-Length: 2\r\n\r\n\r\n"),
    (b"GET", CHUNKED + b"\r\n"),
    (b"GET", CHUNKED + b"Digest: x\r\nOther: y\r\n\r\n"),
    (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
    (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    (b"GET", b"HTTP/1.1 204 none\r\n\r\n"),
    (b"GET", b"HTTP/1.1 304 same\r\nContent-Length: 9\r\n\r\n"),
    (b"POST", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + LENGTH),
]


@given(st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=5), st.data())
def test_each_ends_with_its_last_byte(some, data):
    whole = b"".join(answer for _, answer in some)
    ends = [sum(len(answer) for _, answer in some[: n + 1]) for n in range(len(some))]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole)), max_size=20)) | {len(whole)})
    replies = Replies()
    for method, _ in some:
        replies.expect(method)
    at = 0
    for cut in cuts:
        skipped = data.draw(st.integers(0, min(replies.left, cut - at)))
        if skipped:
            replies.skip(skipped)  # it went by unseen
        replies.feed(whole[at + skipped : cut])
        at = cut
        assert replies.expected == sum(end > at for end in ends)
    assert not replies.lost


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",  # until the end
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"\r\n",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000,
        b"x" * 100_000,
        LENGTH + LENGTH,  # nobody has asked for the second
    ],
)
def test_an_end_that_cannot_be_told(answer):
    replies = Replies()
    replies.expect(b"GET")
    replies.feed(answer)
    assert (replies.lost, replies.left) == (True, -1)
    replies.feed(b"anything")
    replies.skip(7)
    replies.expect(b"GET")
    assert replies.lost


def test_what_waits_is_bounded():
    replies = Replies()
    for _ in range(2000):
        replies.expect(b"GET")
        assert not replies.lost or replies.expected >= 1024
    assert replies.lost


@given(st.lists(st.binary(max_size=60) | st.sampled_from([a for _, a in ANSWERS]), max_size=8))
def test_a_server_can_say_anything(pieces):
    replies = Replies()
    replies.expect(b"GET")
    for piece in pieces:
        replies.feed(piece)
        assert replies.lost == (replies.left == -1)


def test_a_head_that_is_long_is_not_kept():
    """A server can let its end wait for as long as it likes, on thousands of connections."""
    for lines in (b"ab\n" * 20_000, b"".join(b"Content-Length: %d\n" % n for n in range(2500))):
        made = [Replies() for _ in range(20)]
        tracemalloc.start()
        try:
            for replies in made:
                replies.expect(b"GET")
                replies.feed(b"HTTP/1.1 200 OK\r\n" + lines)
                assert not replies.lost
            assert tracemalloc.get_traced_memory()[0] < 20 * 4096
        finally:
            tracemalloc.stop()
