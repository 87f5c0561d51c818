"""A session directory: blobs, redactions, amendments, `durable`, a writer at work (§1, §5, §6)."""

import fcntl
import os
import struct
import zlib

import pytest

from substrate.telemetry import verifier
from tests.telemetry.verifier.trace_maker import (
    GENESIS,
    OTHER_SESSION,
    Trace,
    record,
    save,
    sha256,
    span,
    whole,
)


def errors(verdict):
    return [error.code for error in verdict.errors]


def warnings(verdict):
    return [warning.code for warning in verdict.warnings]


def with_references(*references, seal=False):
    trace = Trace().start().command(1, argv=list(references)).end()
    return trace.seal() if seal else trace


def redaction(trace, reference):
    return trace.add("redaction", {"commitments": [reference["commitment"]], "reason": "secret"})


# --- blobs


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("content", [b"", b"short", os.urandom(200_000), bytes(3_000_000)])
def test_blob_that_matches(tmp_path, content, deflate):
    raw, reference = record(content, deflate=deflate)
    verdict = verifier.verify(
        save(tmp_path / "s", with_references(reference, reference).content(), blobs=raw)
    )
    assert verdict.ok
    assert (verdict.blobs.checked, verdict.blobs.matching, verdict.blobs.records) == (True, 2, 1)


def test_many_blobs(tmp_path):
    """More than the table's first size, so it grows."""
    made = [record(b"%d" % number) for number in range(3000)]
    trace = Trace().start()
    for number in range(0, 3000, 100):
        trace.command(number, argv=[reference for _, reference in made[number : number + 100]])
    pack = b"".join(raw for raw, _ in made)
    verdict = verifier.verify(save(tmp_path / "s", trace.content(), blobs=pack))
    assert verdict.ok
    assert verdict.blobs.matching == 3000


def test_missing_blob(tmp_path):
    raw, _ = record(b"one")
    _, reference = record(b"two")
    verdict = verifier.verify(save(tmp_path / "s", with_references(reference).content(), blobs=raw))
    assert errors(verdict) == ["E_BLOB_MISSING"]
    assert verdict.errors[0].seq == 1
    assert verdict.blobs.missing == 1


def test_missing_pack_of_a_session(tmp_path):
    _, reference = record(b"one")
    verdict = verifier.verify(save(tmp_path / "s", with_references(reference).content()))
    assert errors(verdict) == ["E_BLOB_MISSING"]


def test_trace_alone_without_a_pack(tmp_path):
    _, reference = record(b"one")
    path = tmp_path / "alone.jsonl"
    path.write_bytes(with_references(reference).content())
    verdict = verifier.verify(path)
    assert verdict.ok
    assert not verdict.blobs.checked
    assert "blobs were not checked: no pack beside the trace" in verdict.reasons


def test_blobs_left_out(tmp_path):
    _, reference = record(b"one")
    verdict = verifier.verify(
        save(tmp_path / "s", with_references(reference).content()), blobs=False
    )
    assert verdict.ok
    assert "blobs were not checked: left out by --no-blobs" in verdict.reasons


@pytest.mark.parametrize("deflate", [False, True])
def test_wrong_content(tmp_path, deflate):
    raw, reference = record(b"right content", deflate=deflate)
    stored = zlib.compress(b"wrong content") if deflate else b"wrong content"
    wrong, _ = record(b"right content", deflate=deflate, stored=stored)
    assert len(raw) == len(wrong) or deflate
    verdict = verifier.verify(
        save(tmp_path / "s", with_references(reference).content(), blobs=wrong)
    )
    assert errors(verdict) == ["E_BLOB_DAMAGED", "E_BLOB_DAMAGED"]  # the line's and the pack's


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(zlib.compress(bytes(50_000_000)), id="bomb"),
        pytest.param(zlib.compress(b"content") + b"x", id="trailing"),
        pytest.param(zlib.compress(b"content")[:-1], id="cut"),
        pytest.param(zlib.compress(b"content") * 2, id="twice"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"not deflated", id="not deflated"),
    ],
)
def test_damaged_stream(tmp_path, stored):
    raw, reference = record(b"content", deflate=True, stored=stored)
    verdict = verifier.verify(save(tmp_path / "s", with_references(reference).content(), blobs=raw))
    assert "E_BLOB_DAMAGED" in errors(verdict)


@pytest.mark.parametrize("change", [{"size": 8}, {"encoding": "zlib"}, {"size": -1}])
def test_reference_that_does_not_fit_its_blob(tmp_path, change):
    raw, reference = record(b"content")
    verdict = verifier.verify(
        save(tmp_path / "s", with_references({**reference, **change}).content(), blobs=raw)
    )
    assert errors(verdict) == ["E_BLOB_DAMAGED"]


def test_object_that_only_looks_like_a_reference(tmp_path):
    trace = with_references({"commitment": "to the cause", "size": 3})
    assert verifier.verify(save(tmp_path / "s", trace.content())).ok


def test_damaged_record_that_nobody_names(tmp_path):
    good, reference = record(b"good")
    bad, _ = record(b"bad!", stored=b"bad?")
    verdict = verifier.verify(
        save(tmp_path / "s", with_references(reference).content(), blobs=good + bad)
    )
    assert errors(verdict) == ["E_BLOB_DAMAGED"]
    assert verdict.errors[0].offset == len(good)


@pytest.mark.parametrize("tail", [b"SBB1", bytes(96), bytes(96) + b"content", bytes(5000)])
def test_unfinished_record_is_a_warning(tmp_path, tail):
    raw, reference = record(b"good")
    verdict = verifier.verify(
        save(tmp_path / "s", with_references(reference).content(), blobs=raw + tail)
    )
    assert verdict.ok
    assert warnings(verdict) == ["W_BLOB_TAIL"]


def test_unfinished_record_that_a_line_names(tmp_path):
    raw, reference = record(b"never finished")
    verdict = verifier.verify(
        save(tmp_path / "s", with_references(reference).content(), blobs=raw[:-1])
    )
    assert errors(verdict) == ["E_BLOB_MISSING"]


def test_lying_length_is_not_followed(tmp_path):
    raw, reference = record(b"content")
    lying = raw[:16] + struct.pack("<Q", 1 << 60) + raw[24:]
    verdict = verifier.verify(
        save(tmp_path / "s", with_references(reference).content(), blobs=lying)
    )
    assert "E_BLOB_DAMAGED" in errors(verdict)


# --- redactions


def test_redacted_blob(tmp_path):
    raw, reference = record(b"secret", state=2)
    trace = redaction(with_references(reference), reference)
    verdict = verifier.verify(save(tmp_path / "s", trace.content(), blobs=raw))
    assert verdict.ok
    assert (verdict.blobs.redacted, verdict.redactions) == (1, 1)
    assert warnings(verdict) == []


def test_redacted_blob_that_is_not_in_the_pack_any_more(tmp_path):
    _, reference = record(b"secret")
    trace = redaction(with_references(reference), reference)
    assert verifier.verify(save(tmp_path / "s", trace.content(), blobs=b"")).ok


def test_erased_without_redaction(tmp_path):
    raw, reference = record(b"secret", state=2)
    trace = with_references(reference)
    verdict = verifier.verify(save(tmp_path / "s", trace.content(), blobs=raw))
    assert errors(verdict) == ["E_BLOB_MISSING"]


def test_erased_record_that_still_holds_something(tmp_path):
    raw, reference = record(b"secret", state=2)
    raw = raw[:-1] + b"t"
    trace = redaction(with_references(reference), reference)
    verdict = verifier.verify(save(tmp_path / "s", trace.content(), blobs=raw))
    assert verdict.ok
    assert warnings(verdict) == ["W_REDACTION_INCOMPLETE"]


def test_redacted_by_an_amendment(tmp_path):
    raw, reference = record(b"secret", state=2)
    trace = with_references(reference, seal=True)
    amendments = redaction(Trace(genesis=trace.head), reference)
    verdict = verifier.verify(
        save(
            tmp_path / "s",
            trace.content(),
            blobs=raw,
            amendments_jsonl=amendments.content(),
        )
    )
    assert verdict.ok
    assert (verdict.sealed, verdict.amendments, verdict.blobs.redacted) == (True, 1, 1)


def amendment_cases():
    head = whole().head
    good = {"commitments": ["0" * 64]}
    yield "of nothing", Trace(genesis=GENESIS).add("redaction", good), "E_AMENDMENTS"
    other = Trace(OTHER_SESSION, genesis=head).add("redaction", good)
    yield "of another session", other, "E_AMENDMENTS"
    yield "unknown key", Trace(genesis=head).add("redaction", good, x=1), "E_AMENDMENTS"
    yield "blank", Trace(genesis=head).raw(b""), "E_AMENDMENTS"
    yield "second seal", Trace(genesis=head).add("chain_seal", {}), "E_AMENDMENTS"
    yield "by a client", Trace(genesis=head).add("redaction", good, component="sdk"), "E_AMENDMENTS"
    body = {"commitments": [head]}
    yield "of the seal", Trace(genesis=head).add("redaction", body), "E_REDACTION"
    body = {"commitments": ["short"]}
    yield "malformed", Trace(genesis=head).add("redaction", body), "E_REDACTION"
    broken = Trace(genesis=head).add("redaction", good).add("redaction", good)
    broken.lines[1] = broken.lines[0]
    yield "repeated line", broken, "E_AMENDMENTS"


@pytest.mark.parametrize(
    ("amendments", "code"), [pytest.param(a, c, id=n) for n, a, c in amendment_cases()]
)
def test_bad_amendments(tmp_path, amendments, code):
    session = save(
        tmp_path / "s", whole().content(), amendments_jsonl=amendments.content(), blobs=b""
    )
    verdict = verifier.verify(session)
    assert errors(verdict) == [code]
    assert verdict.errors[0].file == "amendments.jsonl"
    assert verifier.exit_status(verdict) == 1


def test_amendments_without_a_seal(tmp_path):
    trace = whole(seal=False)
    amendments = Trace(genesis=trace.head).add("redaction", {"commitments": ["0" * 64]})
    session = save(tmp_path / "s", trace.content(), amendments_jsonl=amendments.content())
    assert errors(verifier.verify(session)) == ["E_AMENDMENTS"]


def test_torn_amendment_is_unusable(tmp_path):
    amendments = Trace(genesis=whole().head).add("redaction", {"commitments": ["0" * 64]})
    session = save(tmp_path / "s", whole().content(), amendments_jsonl=amendments.content()[:-1])
    verdict = verifier.verify(session)
    assert errors(verdict) == ["E_TORN"]
    assert verifier.exit_status(verdict) == 3


# --- durable


def test_durable_may_lag(tmp_path):
    trace = whole()
    for count in range(len(trace.lines) + 1):
        part = Trace()
        part.lines = trace.lines[:count]
        assert verifier.verify(save(tmp_path / "s", trace.content(), durable=part.durable())).ok


@pytest.mark.parametrize("count", [0, 3, 5])
def test_durable_with_another_head(tmp_path, count):
    part = Trace()
    part.lines = whole().lines[:count]
    durable = part.durable().replace(part.head[:8].encode(), b"deadbeef", 1)
    session = save(tmp_path / "s", whole().content(), durable=durable)
    assert errors(verifier.verify(session)) == ["E_DURABLE"]


def test_durable_inside_a_line(tmp_path):
    trace = whole()
    durable = b"%020d %s\n" % (len(trace.content()) - 1, trace.head.encode())
    session = save(tmp_path / "s", trace.content(), durable=durable)
    assert errors(verifier.verify(session)) == ["E_DURABLE"]


def test_durable_beyond_the_file_is_no_torn_tail(tmp_path):
    """What was synced and is gone was taken away: not a crash."""
    trace = whole()
    for size in range(1, len(trace.content())):
        content = trace.content()[:size]
        verdict = verifier.verify(save(tmp_path / "s", content, durable=trace.durable()))
        assert errors(verdict) == ["E_DURABLE"]
        assert verifier.exit_status(verdict) == 1


def test_torn_tail_beyond_durable(tmp_path):
    trace = whole(seal=False)
    content = trace.content() + b'{"body":{'
    session = save(tmp_path / "s", content, durable=trace.durable())
    verdict = verifier.verify(session)
    assert errors(verdict) == ["E_TORN"]
    assert verdict.errors[0].offset == len(trace.content())
    assert (verdict.events, verdict.fingerprint) == (4, trace.head)


@pytest.mark.parametrize("raw", [b"", bytes(86)])
def test_durable_that_a_power_cut_has_emptied(tmp_path, raw):
    verdict = verifier.verify(save(tmp_path / "s", whole().content(), durable=raw))
    assert verdict.ok
    assert warnings(verdict) == ["W_DURABLE"]


# --- a writer at work


@pytest.fixture
def locked(tmp_path):
    """A session directory whose lock is held, with the text of a writer in it."""
    directory = tmp_path / "live"
    directory.mkdir()
    with open(directory / "lock", "wb") as lock:
        lock.write(b"1 1 boot\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory


def test_live_session_is_verified_so_far(locked):
    trace = Trace().start().add("command_start", {}, span_id=span(1))
    verdict = verifier.verify(save(locked, trace.content() + b'{"body":{"half'))
    assert verdict.integrity == "verified_so_far"
    assert verifier.exit_status(verdict, strict=True) == 0  # an open span is no warning yet
    assert "valid so far" in verifier.render_text(verdict)


@pytest.mark.parametrize("content", [b"", b'{"bo'])
def test_live_session_without_a_whole_line(locked, content):
    verdict = verifier.verify(save(locked, content))
    assert (verdict.integrity, verdict.events) == ("verified_so_far", 0)


def test_damage_of_a_live_session_is_damage(locked):
    verdict = verifier.verify(save(locked, whole().content().replace(b"true", b"trud")))
    assert errors(verdict) == ["E_PREV_HASH"]


def test_torn_line_below_durable_is_damage_even_if_live(locked):
    trace = whole()
    verdict = verifier.verify(save(locked, trace.content()[:-5], durable=trace.durable()))
    assert errors(verdict) == ["E_DURABLE"]


def test_erased_blob_of_a_live_session_without_redaction(locked):
    """It is read again, since the redaction may be behind what was looked at; then it counts."""
    raw, reference = record(b"secret", state=2)
    verdict = verifier.verify(save(locked, with_references(reference).content(), blobs=raw))
    assert errors(verdict) == ["E_BLOB_MISSING"]


def test_lock_without_holder_is_not_live(tmp_path):
    session = save(tmp_path / "s", whole().content()[:-5], lock=b"1 1 boot\n")
    assert errors(verifier.verify(session)) == ["E_TORN"]


def test_verifiers_do_not_take_each_other_for_writers(tmp_path):
    session = save(tmp_path / "s", whole().content()[:-5], lock=b"1 1 boot\n")
    with open(session / "lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert errors(verifier.verify(session)) == ["E_TORN"]


def test_verify_while_it_is_being_written(locked):
    """A child appends in odd pieces, blobs first; no reading may ever fail."""
    trace, pack = Trace().start(), b""
    for number in range(1, 400):
        raw, reference = record(b"%d" % number)
        pack += raw
        trace.command(number, argv=[reference])
    content = trace.content()
    save(locked, b"", blobs=b"", durable=Trace().durable())
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(go)
            with (
                open(locked / "trace.jsonl", "ab", buffering=0) as lines,
                open(locked / "blobs", "ab", buffering=0) as blobs,
                open(locked / "durable", "r+b", buffering=0) as durable,
            ):
                os.read(ready, 1)
                blobs.write(pack)
                done, end = 0, 0
                while done < len(content):
                    lines.write(content[done : done + 777])
                    done = min(done + 777, len(content))
                    whole_lines = content.rfind(b"\n", 0, done) + 1
                    if whole_lines > end:
                        start = content.rfind(b"\n", 0, whole_lines - 1) + 1
                        end = whole_lines
                        head = sha256(content[start : end - 1])
                        os.pwrite(durable.fileno(), b"%020d %s\n" % (end, head.encode()), 0)
            status = 0
        finally:
            os._exit(status)
    os.close(ready)
    os.close(go)
    seen = set()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        verdict = verifier.verify(locked)
        assert verdict.integrity == "verified_so_far", verdict
        seen.add(verdict.events)
    verdict = verifier.verify(locked)
    assert (verdict.integrity, verdict.events) == ("verified_so_far", len(trace.lines))
    assert verdict.blobs.matching == 399
    assert seen
