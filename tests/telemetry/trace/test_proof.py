"""Proving batches by templates: it says yes to what is right, and to nothing else."""

from __future__ import annotations

import pytest

from substrate.telemetry import verifier
from substrate.telemetry.trace import reader as reader_module
from substrate.telemetry.trace.check import LineChecker
from substrate.telemetry.trace.proof import BatchProof
from substrate.telemetry.trace.reader import verify
from substrate.telemetry.trace.story import Story
from tests.telemetry.verifier.trace_maker import Trace, canonical, span


def many(count: int = 60) -> Trace:
    """Lines of two alternating envelopes, with a counter that gets longer on the way."""
    trace = Trace().start()
    for number in range(count):
        if number % 2:
            fields = {"span_id": span(number), "parent_span_id": span(1), "origin": "reported"}
        else:
            fields = {"producer": 'p"é', "producer_seq": number // 2, "component": "capture"}
        trace.add("annotation", {"n": number, "x": [{"y": "ü"}]}, **fields)
    return trace


def proof_of(trace: Trace, learned: int) -> BatchProof:
    """A proof that has learned from the first lines."""
    checker, story = LineChecker(), Story()
    proof = BatchProof(checker, story)
    lines = trace.lines[:learned]
    objs = checker.check(lines)
    story.tell(objs)
    proof.learn(lines, objs)
    return proof


def test_right_lines_are_proved() -> None:
    trace = many(20)
    checker = LineChecker()
    story = Story()
    proof = BatchProof(checker, story)
    for line in trace.lines[:3]:
        objs = checker.check([line])
        story.tell(objs)
        proof.learn([line], objs)
    assert proof.prove(trace.lines[3:10])
    assert checker.seq == 10
    assert checker.offset == sum(len(line) + 1 for line in trace.lines[:10])
    assert not proof.prove(trace.lines[10:])  # seq 10 is longer than what was learned
    assert checker.seq == 10
    ordinary = LineChecker()
    ordinary.check(trace.lines[:10])
    assert (checker.head, checker.offset) == (ordinary.head, ordinary.offset)


@pytest.mark.parametrize("change", [1, 2, 0x20, 0x80])
def test_no_changed_byte_is_proved(change) -> None:
    trace = many(20)
    for which in (4, 5):
        line = trace.lines[which]
        for place in range(len(line)):
            changed = bytearray(line)
            changed[place] ^= change
            proof = proof_of(trace, 4)
            lines = [bytes(changed), *trace.lines[which + 1 : which + 3]]
            if which == 5:
                lines.insert(0, trace.lines[4])
            assert not proof.prove(lines)


@pytest.mark.parametrize(
    "change",
    [
        {"mono_us": 1.0},
        {"mono_us": 1e15},
        {"ts": "2026-02-30T03:04:05.000000Z"},
        {"ts": "2026-01-01T03:04:05.000000Z"},
        {"span_id": "spn_01890a5d-ac96-474b-bcce-000000000001"},
        {"body": {"n": 1.5}},
        {"body": {"n": 2**53}},
        {"body": []},
        {"v": 2},
        {"seq": 3},
        {"producer_seq": 7},
        {"producer_seq": "1"},
        {"event_type": "log_drop"},
        {"extra": 1},
    ],
    ids=str,
)
def test_no_lone_last_line_that_is_wrong_is_proved(change) -> None:
    trace = many(20)
    trace.lines = trace.lines[:4]
    right = {
        "span_id": span(3),
        "parent_span_id": span(1),
        "origin": "reported",
    }
    if "producer_seq" in change:
        right = {"producer": 'p"é', "producer_seq": 2, "component": "capture"}
    good = canonical(trace.envelope("annotation", {"n": 3, "x": [{"y": "ü"}]}, **right))
    assert proof_of(trace, 4).prove([good])
    bad = canonical({**trace.envelope("annotation", {"n": 3}, **right), **change})
    assert not proof_of(trace, 4).prove([bad])


def test_a_line_of_two_values_is_not_proved() -> None:
    trace = many(20)
    line = trace.lines[4]
    for body in (b"{},{}", b"{}{}", b"1", b"", b'{"a":1}}', b'{"b":1,"a":2}', b'{"a":1 }'):
        start, _, rest = line.partition(b',"component":"')
        assert start.startswith(b'{"body":')
        forged = b'{"body":' + body + b',"component":"' + rest
        assert not proof_of(trace, 4).prove([forged])


def test_an_envelope_inside_a_body_does_not_pass_for_one() -> None:
    trace = many(20)
    rest = trace.lines[4].partition(b',"component":"')[2]
    forged = b'{"body":{"x":1},"component":"' + rest[:-1] + b',"component":"' + rest
    assert not proof_of(trace, 4).prove([forged])


@pytest.mark.parametrize("chunk_bytes", [700, 5000])
def test_verdicts_with_proofs_agree_with_the_verifier(tmp_path, monkeypatch, chunk_bytes) -> None:
    monkeypatch.setattr(reader_module, "_CHUNK_BYTES", chunk_bytes)
    content = many(60).content()
    path = tmp_path / "a.jsonl"
    for place in range(0, len(content), 13):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        ours, theirs = verify(path), verifier.verify(path, blobs=False)
        assert (ours.fault.code if ours.fault else None) == (
            theirs.errors[0].code if theirs.errors else None
        )
        assert (ours.events, ours.size_bytes, ours.head) == (
            theirs.events,
            theirs.size_bytes,
            theirs.fingerprint,
        )


def test_most_of_a_long_trace_is_proved(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(reader_module, "_CHUNK_BYTES", 4000)
    proved = []
    prove = BatchProof.prove

    def counting(self: BatchProof, lines: list[bytes]) -> bool:
        proved.append(prove(self, lines))
        return proved[-1]

    monkeypatch.setattr(BatchProof, "prove", counting)
    path = tmp_path / "a.jsonl"
    path.write_bytes(many(1000).content())
    assert verify(path).ok
    assert proved.count(True) > 0.9 * len(proved)
