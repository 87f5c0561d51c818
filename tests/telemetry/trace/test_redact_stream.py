"""Secrets in bytes of connections: covered, of the same length, wherever they stand."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.telemetry.trace import redact_stream
from substrate.telemetry.trace.redact_stream import cover_secrets, covering

SECRETS = [
    (b"Authorization: Basic %s\r\n", b"dXNlcjpodW50ZXIyaHVudGVyMg==", "authorization"),
    (b"authorization: Bearer %s\r\n", b"abcdefgh.12345678", "authorization"),
    (b"Proxy-Authorization: Digest %s\r\n", b'username="a", response="b"', "authorization"),
    (b"Cookie: %s\r\n", b"session=12ab; other=34cd", "cookie"),
    (b"Set-Cookie: %s\r\n", b"sid=31d4d96e407aad42; Path=/; HttpOnly", "cookie"),
    (b"GET http://%s@host/ HTTP/1.1\r\n", b"user:hunter2", "userinfo"),
    (b"GET /?a=1&access_token=%s HTTP/1.1\r\n", b"abcdefgh12345678", "token"),
    (b"x AKIA%s y\n", b"ABCDEFGHIJKLMNOP", "aws_key"),
    (b'{"user": "a", "password": "%s"}', b"hunter2 hunter3", "password"),
    (b"password=%s", "g\u00e0rb\u00e9 \u00e8".encode().partition(b" ")[0], "password"),
    (b"\x00\x01\x02password=%s\x00\x05", b"hunter2", "password"),
    (b"USER me\r\nPASS %s\r\n", b"hunter2", "password"),
    (b"AUTH PLAIN %s\r\n", b"AG1lAGh1bnRlcjI=", "password"),
    (b"a1 LOGIN me %s\r\n", b"hunter2", "password"),
    (b"a2 AUTHENTICATE PLAIN %s\r\n", b"AG1lAGh1bnRlcjI=", "password"),
    (b"AUTH me %s\r\n", b"hunter2", "password"),
    (b"*2\r\n$4\r\nAUTH\r\n$7\r\n%s\r\n", b"hunter2", "password"),
    (b"*3\r\n$4\r\nauth\r\n$2\r\nme\r\n$7\r\n%s\r\n", b"hunter2", "password"),
]


@pytest.mark.parametrize(("template", "secret", "kind"), SECRETS)
def test_a_secret_is_covered_and_nothing_else(template, secret, kind):
    before = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    data = before + template % secret + b"\r\nbinary \x00\xff\xfe"
    covered, found = cover_secrets(data)
    assert secret not in covered
    assert len(covered) == len(data)
    assert kind in {name for _, _, name in found}
    for at, size, _ in found:
        assert set(covered[at : at + size]) == {ord("*")}
    rest = bytearray(data)
    for at, size, _ in found:
        rest[at : at + size] = b"*" * size
    assert bytes(rest) == covered
    assert covered.startswith(before)
    assert cover_secrets(covered) == (covered, ())


@pytest.mark.parametrize(
    "line", [b"AUTH TLS\r\n", b"AUTH LOGIN\r\n", b"PASS all of 12 tests\r\n", b"GET /AUTH x\r\n"]
)
def test_what_is_no_login_stays(line):
    assert cover_secrets(line) == (line, ())


def test_a_private_key_over_many_lines():
    key = b"-----BEGIN RSA PRIVATE KEY-----\nMIIabc\ndef\n-----END RSA PRIVATE KEY-----"
    covered, found = cover_secrets(b"a\n" + key + b"\nb")
    assert covered == b"a\n" + b"*" * len(key) + b"\nb"
    assert found == ((2, len(key), "private_key"),)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from([t % s for t, s, _ in SECRETS]),
            st.sampled_from([b"token=", b"\n", b'"', b"'", b"://", b"@", b"\\", b" -u a:b "]),
        ),
        max_size=12,
    )
)
def test_the_length_never_changes_and_outside_of_spans_no_byte(parts):
    data = b"".join(parts)
    covered, found = cover_secrets(data)
    assert len(covered) == len(data)
    inside = {at + i for at, size, _ in found for i in range(size)}
    assert all(covered[i] == (ord("*") if i in inside else byte) for i, byte in enumerate(data))


@pytest.mark.parametrize("shift", [-40, -20, -8, -4, 0, 4])
@pytest.mark.parametrize(("template", "secret", "kind"), SECRETS[:9])
def test_a_secret_on_the_edge_of_a_window(monkeypatch, template, secret, kind, shift):
    monkeypatch.setattr(redact_stream, "_WINDOW", 1024)
    monkeypatch.setattr(redact_stream, "_AGAIN", 256)
    line = (template % secret).rstrip(b"\r\n")
    for edge in (1024, 1024 + 768):
        data = b"a " * ((edge + shift) // 2) + line + b" b" * 2000
        covered, _ = cover_secrets(data)
        assert len(covered) == len(data)
        assert secret not in covered
        assert not any(piece in covered for piece in secret.split() if len(piece) > 8)


def test_a_secret_longer_than_a_window(monkeypatch):
    monkeypatch.setattr(redact_stream, "_WINDOW", 1024)
    monkeypatch.setattr(redact_stream, "_AGAIN", 256)
    secret = b"A1b2" * 2000
    covered, found = cover_secrets(b"token=" + secret + b" and on")
    assert covered == b"token=" + b"*" * len(secret) + b" and on"
    assert found


def test_so_many_are_told_and_all_are_counted():
    steps = covering(b"token=abcdefgh12345678\n" * 1000, 10)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            covered, found, count = end.value
            break
    assert (len(found), count) == (10, 1000)
    assert b"abcdefgh" not in covered


def test_binary_is_no_text():
    data = random.Random(1).randbytes(1 << 20)
    covered, found = cover_secrets(data)
    assert covered == data
    assert not found


def test_a_step_is_short_whatever_comes():
    """A second would be much: a step looks at one window."""
    for data in (
        b'{"key": "v1"}, ' * 60000,
        b"token=$(" * 60000,
        b"'\"\\" * 200000,
        b"\0" * 900000,
        "pw=\u00e9 ".encode() * 20000,
    ):
        steps = covering(data)
        longest, done = 0.0, False
        while not done:
            began = time.thread_time()
            done = next(steps, steps) is steps
            longest = max(longest, time.thread_time() - began)
        assert longest < 1.0
