"""The reader: the standalone verifier's verdicts, streaming, following, spans, frames."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.errors import TraceCorrupt, UsageError
from substrate.telemetry import verifier
from substrate.telemetry.trace import reader as reader_module
from substrate.telemetry.trace.following import follow
from substrate.telemetry.trace.frames import FrameKind, FrameWarning, load_frames
from substrate.telemetry.trace.merkle import MerkleTree
from substrate.telemetry.trace.reader import read_events, verify
from substrate.telemetry.trace.spans import command_spans, find_span, parse_span_name
from tests.telemetry.verifier.test_cases import CASES
from tests.telemetry.verifier.trace_maker import Trace, merkle_root, save, span, whole


def assert_agreement(path: Path) -> None:
    """Both implementations say the same, in every respect that both speak of."""
    ours, theirs = verify(path), verifier.verify(path, blobs=False)
    code = theirs.errors[0].code if theirs.errors else None
    assert (ours.fault.code if ours.fault else None) == code
    if code == "E_AFTER_SEAL":
        return  # which of two lines is to blame, the seal or the one behind it, is open
    if ours.fault is not None and ours.fault.seq is not None:
        assert (ours.fault.seq, ours.fault.offset) == (
            theirs.errors[0].seq,
            theirs.errors[0].offset,
        )
    assert ours.integrity == theirs.integrity
    if code != "E_UNREADABLE":
        assert (ours.events, ours.size_bytes) == (theirs.events, theirs.size_bytes)
        assert (ours.head, ours.session_id) == (theirs.fingerprint, theirs.session_id)
        assert (ours.sealed, ours.complete) == (theirs.sealed, theirs.complete)
        assert (ours.drops, ours.gaps) == (theirs.drops, theirs.gaps)
        assert ours.redactions == theirs.redactions
    if code is None:
        assert sorted((w.code, w.count) for w in ours.warnings) == sorted(
            (w.code, w.count) for w in theirs.warnings
        )


@pytest.mark.parametrize(("make", "status", "code", "warning"), CASES)
def test_it_agrees_with_the_verifier_on_every_case(tmp_path, make, status, code, warning) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(make())
    assert_agreement(path)


@pytest.mark.parametrize("chunk_bytes", [64, 1000])
@pytest.mark.parametrize(("make", "status", "code", "warning"), CASES)
def test_it_agrees_whatever_the_size_of_a_batch(
    tmp_path, monkeypatch, make, status, code, warning, chunk_bytes
) -> None:
    content = make()
    if len(content) > 100_000:
        return
    monkeypatch.setattr(reader_module, "_CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert_agreement(path)


def everything() -> Trace:
    trace = Trace().start().command(1)
    trace.add("annotation", {"x": 1}, producer="p", producer_seq=0)
    trace.add("log_drop", {"count": 2, "cumulative": 2, "bytes": 9, "reason": "buffer_full"})
    trace.add("gap", {"producer": "p", "from": 1, "to": 2})
    trace.add("annotation", {"k": "é"}, producer="p", producer_seq=3, parent_span_id=span(1))
    return trace.add("session_end", {"status": "success", "drops": 2}).seal(drops=2)


def test_it_agrees_on_every_mutation_of_one_byte(tmp_path) -> None:
    content = everything().content()
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    whole_head = verify(path).head
    for place in range(len(content)):
        for change in (1, 0x80):
            mutated = bytearray(content)
            mutated[place] ^= change
            path.write_bytes(mutated)
            assert verify(path).head != whole_head
            assert_agreement(path)


def test_it_agrees_on_every_cut(tmp_path) -> None:
    content = everything().content()
    path = tmp_path / "a.jsonl"
    for size in range(0, len(content), 3):
        path.write_bytes(content[:size])
        assert_agreement(path)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_it_agrees_on_random_damage(tmp_path_factory, data) -> None:
    content = bytearray(everything().content())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 200)))
        content[start:end] = data.draw(st.binary(max_size=20))
    path = tmp_path_factory.mktemp("damage") / "a.jsonl"
    path.write_bytes(content)
    assert_agreement(path)


@pytest.mark.parametrize(
    "record",
    [
        lambda t: t.durable(),
        lambda t: b"",
        lambda t: bytes(86),
        lambda t: b"%020d %s\n" % (0, b"0" * 64),
        lambda t: b"%020d %s\n" % (0, b"1" * 64),
        lambda t: b"%020d %s\n" % (len(t.lines[0]) + 1, b"0" * 64),
        lambda t: b"%020d %s\n" % (len(t.content()) - 1, t.head.encode()),
        lambda t: b"%020d %s\n" % (len(t.content()) + 1, t.head.encode()),
        lambda t: b"garbage",
    ],
)
def test_it_agrees_on_durable_records(tmp_path, record) -> None:
    trace = whole()
    directory = save(tmp_path / "s", trace.content(), durable=record(trace))
    ours, theirs = verify(directory), verifier.verify(directory, blobs=False)
    assert (ours.fault.code if ours.fault else None) == (
        theirs.errors[0].code if theirs.errors else None
    )


@pytest.mark.parametrize("count", [*range(20), 100, 1000, 1025])
def test_the_merkle_root_is_that_of_the_rfc(count) -> None:
    lines = [b"line %d" % number for number in range(count)]
    tree = MerkleTree()
    tree.add(lines[: count // 3])
    tree.add(lines[count // 3 :])
    assert tree.root() == merkle_root(lines)


def test_events_before_a_fault_are_handed_out(tmp_path) -> None:
    trace = Trace().start().command(1)
    path = tmp_path / "a.jsonl"
    path.write_bytes(trace.content() + b"{}\n")
    got = []
    with pytest.raises(TraceCorrupt):
        for event in read_events(path):
            got.append(event["event_type"])
    assert got == ["session_start", "command_start", "command_end"]


def test_a_fifo_does_not_block(tmp_path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert verify(tmp_path / "fifo").fault.code == "E_UNREADABLE"


def test_following_sees_lines_as_they_come_and_ends_behind_a_seal(tmp_path) -> None:
    trace = whole()
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"")
    seen: list[str] = []
    one_more = threading.Semaphore(0)

    def reading() -> None:
        for event in follow(path, stopped=lambda: False, poll_s=0.001):
            seen.append(event["event_type"])
            one_more.release()

    reader = threading.Thread(target=reading)
    reader.start()
    with path.open("ab", buffering=0) as file:
        for line in trace.lines:
            half = len(line) // 2
            file.write(line[:half])
            file.write(line[half:] + b"\n")
            assert one_more.acquire(timeout=30)
    reader.join(30)
    assert not reader.is_alive()
    assert seen[0] == "session_start"
    assert seen[-1] == "chain_seal"


def test_following_stops_when_told(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(Trace().start().content())
    answers = iter([False, False, True])
    assert len(list(follow(path, stopped=lambda: next(answers), poll_s=0.001))) == 1


def test_following_refuses_a_line_that_does_not_follow(tmp_path) -> None:
    trace = Trace().start().command(1)
    path = tmp_path / "a.jsonl"
    path.write_bytes(trace.lines[0] + b"\n" + trace.lines[2] + b"\n")
    with pytest.raises(TraceCorrupt, match="E_SEQ"):
        list(follow(path, stopped=lambda: False))


def test_spans_have_names() -> None:
    commands = [span(n) for n in (1, 2, 0xABC)]
    assert find_span("last", commands) == span(0xABC)
    assert find_span("1", commands) == span(1)
    assert find_span("3", commands) == span(0xABC)
    assert find_span("abc", commands) == span(0xABC)
    assert find_span("0001", commands) == span(1)
    assert find_span("0077", commands, [span(0x77)]) == span(0x77)
    assert find_span("1077", commands, [span(0x1077)]) == span(0x1077)
    with pytest.raises(UsageError, match="there is no command 77: the session has 3"):
        find_span("77", commands, [span(0x77)])
    for wrong in ("0", "9", "zz", "", "c0ffee"):
        with pytest.raises(UsageError):
            find_span(wrong, commands)
    with pytest.raises(UsageError, match="no command yet"):
        find_span("last", [])


def test_a_span_name_may_have_a_session_before_it() -> None:
    assert parse_span_name("3").session == ""
    both = parse_span_name("mine:3")
    assert (both.session, both.span) == ("mine", "3")
    for wrong in (":3", "mine:", ""):
        with pytest.raises(UsageError):
            parse_span_name(wrong)


def test_command_spans_are_in_the_order_of_their_starts(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(Trace().start().command(5).command(2).content())
    assert command_spans(read_events(path)) == [span(5), span(2)]


def test_frames_are_the_events_one_by_one(tmp_path) -> None:
    trace = everything()
    path = tmp_path / "a.jsonl"
    path.write_bytes(trace.content())
    frames = load_frames(path)
    kinds = [frame.kind for frame in frames]
    assert len(kinds) == len(trace.lines)
    assert kinds.count(FrameKind.LOG_DROP) == kinds.count(FrameKind.GAP) == 1
    assert {frame.origin for frame in frames} == {"observed"}
    assert frames.warnings == (
        FrameWarning.EVENTS_DROPPED,
        FrameWarning.SEQUENCE_GAP,
        FrameWarning.PARTIAL_EVIDENCE,
    )


def test_a_trace_that_does_not_hold_has_no_frames(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(whole().content()[:-10] + b"0123456789")
    frames = load_frames(path)
    assert list(frames) == []
    assert frames.warnings == (FrameWarning.VERIFICATION_FAILED,)


def test_frames_of_a_trace_that_changed_after_its_verdict_are_refused(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(Trace().start().command(1).content())
    frames = load_frames(path)
    path.write_bytes(Trace().start().command(2).content())
    with pytest.raises(TraceCorrupt, match="E_CHANGED"):
        list(frames)
    path.write_bytes(Trace().start().content())
    with pytest.raises(TraceCorrupt, match="E_CHANGED"):
        list(frames)
