"""Every small damage to a small trace is found (trace.md §11 "Bytes").

The last line of a trace is covered by nothing in the same file: `durable` beside it, or a
fingerprint kept elsewhere, is what holds it. Both are tried.
"""

import os
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.telemetry import verifier
from tests.telemetry.verifier.trace_maker import Trace, record, save, whole

MASKS = [1 << bit for bit in range(8)] + [0xFF]


def small():
    """Short, sealed, with what is easily mistaken: escapes, non-ASCII, numbers, a producer."""
    trace = Trace().start()
    trace.add("annotation", {"a": ["\u00e9\n", -10, True, None, {}]}, producer="p", producer_seq=0)
    return trace.end().seal()


@pytest.fixture
def scratch(tmp_path):
    """A directory in memory if there is one: thousands of files are written here."""
    shm = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else tmp_path) as name:
        yield Path(name)


@pytest.fixture(params=["full, durable", "fast, durable", "full, fingerprint"])
def check(request, scratch):
    """check(content) -> the exit status for it, with `durable` or the fingerprint as it was."""
    trace = small()
    mode, _, held_by = request.param.partition(", ")
    session = save(scratch / "s", trace.content())
    if held_by == "durable":
        (session / "durable").write_bytes(trace.durable())
    fingerprint = trace.head if held_by == "fingerprint" else None

    def run(content):
        (session / "trace.jsonl").write_bytes(content)
        verdict = verifier.verify(session, full=mode == "full", fingerprint=fingerprint)
        return verifier.exit_status(verdict)

    assert run(trace.content()) == 0
    return run


def test_every_changed_byte_is_found(check):
    content = small().content()
    changed = bytearray(content)
    for at in range(len(content)):
        for mask in MASKS:
            changed[at] = content[at] ^ mask
            assert check(changed) != 0, (at, mask)
        changed[at] = content[at]


def test_every_deleted_byte_is_found(check):
    content = small().content()
    for at in range(len(content)):
        assert check(content[:at] + content[at + 1 :]) != 0, at


def test_every_inserted_byte_is_found(check):
    content = small().content()
    for at in range(len(content) + 1):
        for byte in (b"\0", b"\n", b" ", b"0", b'"', b"\xff"):
            assert check(content[:at] + byte + content[at:]) != 0, (at, byte)


def test_every_truncation_is_found(check):
    content = small().content()
    for size in range(len(content)):
        assert check(content[:size]) != 0, size


def test_truncation_alone_is_torn_or_shorter(scratch):
    """Without `durable` and fingerprint: torn inside a line, a shorter trace at its end."""
    content = small().content()
    path = scratch / "a.jsonl"
    for size in range(1, len(content)):
        path.write_bytes(content[:size])
        status = verifier.exit_status(verifier.verify(path))
        assert status == (0 if content[size - 1 : size] == b"\n" else 3), size


def test_every_changed_byte_of_durable_is_found(scratch):
    trace = small()
    durable = trace.durable()
    for at in range(len(durable)):
        for mask in MASKS:
            changed = bytearray(durable)
            changed[at] ^= mask
            verdict = verifier.verify(save(scratch / "s", trace.content(), durable=changed))
            assert not verdict.ok, (at, mask)


def test_every_changed_byte_of_a_pack_is_found(scratch):
    """State and salt too: a record that only claims to be redacted is missing."""
    first, reference = record(b"some content " * 3)
    content = b"some other " * 9
    second, other = record(content, deflate=True, salt=os.urandom(32))
    trace = Trace().start().add("annotation", {"a": reference, "b": [other]}).end()
    pack = first + second
    stored_at = len(first) + 96
    session = save(scratch / "s", trace.content(), blobs=pack)
    assert verifier.verify(session).ok
    for at in range(len(pack)):
        for mask in MASKS:
            changed = bytearray(pack)
            changed[at] ^= mask
            (session / "blobs").write_bytes(changed)
            if verifier.verify(session).ok:
                # Deflate has bits that mean nothing; what is committed to is the content.
                assert at >= stored_at, (at, mask)
                assert zlib.decompress(changed[stored_at:]) == content, (at, mask)


@given(data=st.data())
def test_random_bytes_never_break_it(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("random") / "a.jsonl"
    lines = whole().content().split(b"\n")
    at = data.draw(st.integers(0, len(lines) - 1))
    lines[at] = data.draw(st.binary(max_size=200))
    path.write_bytes(b"\n".join(lines))
    assert verifier.main(["--quiet", str(path)]) in (0, 1, 3)
    verdict = verifier.verify(path)
    if verdict.ok and verdict.fingerprint == whole().head:
        assert path.read_bytes() == whole().content()
