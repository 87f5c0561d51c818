"""What clients ask, as bytes: whatever comes, it is parsed or refused."""

import json
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.session import client_call
from substrate.session.client_call import BadCall, Flags, parse_flags, parse_packed
from substrate.world import wire
from tests.session.join_client import call_memfd

words = st.binary(max_size=20).map(lambda b: b.replace(b"\0", b""))


@given(words, words, st.lists(words, min_size=1, max_size=5), st.lists(words, max_size=5))
def test_what_was_packed_is_what_is_parsed(file, cwd, argv, environ):
    file, cwd = b"x" + file, b"/" + cwd
    data = struct.pack("=4I", len(argv), len(environ), 0o22, 0)
    data += b"".join(word + b"\0" for word in (file, cwd, *argv, *environ))
    found = parse_packed(data)
    assert found[:3] == (file, cwd, tuple(argv))
    pairs = [e.split(b"=", 1) for e in environ if b"=" in e and not e.startswith(b"=")]
    expected = dict(reversed(pairs))  # of two of a name the first counts
    assert found[3:] == (expected, 0o22)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_call_or_are_refused(data):
    try:
        parse_packed(data)
    except BadCall:
        pass


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=60))
def test_counts_that_lie_are_refused(argc, envc, rest):
    data = struct.pack("=4I", argc, envc, 0, 0) + rest
    try:
        file, cwd, argv, _, _ = parse_packed(data)
    except BadCall:
        return
    assert rest.count(b"\0") == 2 + argc + envc
    assert (len(argv), file != b"", cwd[:1]) == (argc, True, b"/")


@given(st.binary(max_size=100))
def test_any_bytes_are_flags_or_are_refused(data):
    try:
        assert isinstance(parse_flags(data), Flags)
    except BadCall:
        pass


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=6,
    ),
    st.sampled_from(("closed", "ignored", "terminal", "timeout", "cmd", "other")),
)
def test_flags_of_any_type_are_bounded_or_refused(content, name):
    try:
        found = parse_flags(json.dumps({name: content}).encode())
    except BadCall:
        return
    assert name != "other"
    assert found.closed <= {0, 1, 2}
    assert found.timeout_s is None or 0 < found.timeout_s <= 1e9


def message(*fields, fds=()):
    return wire.Message(b"X", [f.encode() for f in fields], list(fds), 0)


def test_a_whole_call():
    fd = call_memfd([b"sh", b"-c", b"true"], b"/tmp", {b"A": b"b"}, file=b"/bin/sh")
    found = client_call.parse_execute(
        message("1", "command", "", '{"closed":[0],"timeout":2}', fds=(fd,))
    )
    os.close(fd)
    assert (found.file, found.cwd, found.argv) == (b"/bin/sh", b"/tmp", (b"sh", b"-c", b"true"))
    assert (found.flags.closed, found.flags.timeout_s) == (frozenset((0,)), 2.0)


@pytest.mark.parametrize("size", [4 << 20, 5 << 20])
def test_a_call_that_is_too_large_is_refused_unread(size):
    fd = call_memfd([b"x" * size], b"/", {})
    with pytest.raises(BadCall, match="the most"):
        client_call.parse_execute(message("1", "command", "", "", fds=(fd,)))
    os.close(fd)


@pytest.mark.parametrize("which", ["file", "cwd"])
def test_a_path_that_the_kernel_would_not_take_is_refused(which):
    def parsed(length):
        path = b"/" + b"a" * (length - 1)
        given = {"file": b"/bin/true", "cwd": b"/tmp", which: path}
        data = struct.pack("=4I", 1, 0, 0o22, 0)
        return parse_packed(data + b"".join(w + b"\0" for w in (given["file"], given["cwd"], b"x")))

    assert len(parsed(4096)[which == "cwd"]) == 4096
    with pytest.raises(BadCall, match="4097 bytes: 4096 are the most"):
        parsed(4097)


def test_a_time_that_no_float_holds_is_a_long_time():
    assert parse_flags(b'{"timeout":1' + b"0" * 400 + b"}").timeout_s == 1e9


def test_fds_besides_the_streams_are_counted():
    found = parse_flags(b'{"closed":[2],"extra":[250,251],"mine":251,"text":true}')
    assert (found.extra, found.mine, found.has_text, found.fds) == ((250, 251), 251, True, 5)
    assert parse_flags(b"{}").fds == 3


@pytest.mark.parametrize(
    "given",
    [
        '{"extra":[1]}', '{"extra":[250,250]}', '{"extra":[10,11,12,13,14]}', '{"extra":[256]}',
        '{"extra":[250],"mine":251}', '{"mine":250}', '{"extra":"250"}', '{"extra":[true]}',
        '{"extra":[250],"mine":[250]}',
    ],
)  # fmt: skip
def test_fds_that_make_no_sense_are_refused(given):
    with pytest.raises(BadCall):
        parse_flags(given.encode())
