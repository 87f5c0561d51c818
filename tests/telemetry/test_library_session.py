"""What the library writes, the standalone verifier accepts: blobs, redaction, live and closed."""

import os

import pytest

from substrate.telemetry import verifier
from substrate.telemetry.trace.envelope import Event
from substrate.telemetry.trace.ids import new_session_id, new_span_id

writer_module = pytest.importorskip(
    "substrate.telemetry.trace.writer", reason="the library's writer is not in this tree"
)


def event(event_type, body, span_id=None):
    return Event(event_type=event_type, component="shell", body=body, span_id=span_id)


@pytest.fixture
def writer(tmp_path):
    dir_fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    writer = writer_module.TraceWriter.create(
        dir_fd, new_session_id(), durability="command", digest_key=b"k" * 32
    )
    yield writer
    writer.close()
    os.close(dir_fd)


def test_session_of_the_library(writer, tmp_path):
    small = writer.blobs.put(b"hello", "text/plain")
    deflated = writer.blobs.put(b"hello world " * 1000, "text/plain")
    streamed = writer.blobs.put((b"x" * 100_000 for _ in range(20)), "text/plain")
    refs = {"argv": small.as_json(), "more": [deflated.as_json(), streamed.as_json()]}
    span = new_span_id()
    writer.append([event("session_start", {}), event("command_start", refs, span)])
    writer.sync()
    live = verifier.verify(tmp_path)
    assert (live.integrity, live.blobs.matching) == ("verified_so_far", 3)

    named = {"commitments": [small.commitment], "reason": "secret", "by": "test"}
    writer.append([event("redaction", {**named, "other_places": []})])
    writer.sync()
    writer.blobs.redact(small.commitment)
    writer.append([event("command_end", {"exit": 0}, span)])
    writer.append([event("session_end", {"status": "success", "drops": 0})])
    head = writer.sync().head
    writer.close()
    verdict = verifier.verify(tmp_path, fingerprint=head)
    assert (verdict.integrity, verdict.complete) == ("verified", True)
    assert (verdict.blobs.matching, verdict.blobs.redacted) == (2, 1)
    assert (verdict.warnings, verdict.errors) == ((), ())
