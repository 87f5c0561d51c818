"""Reading ahead in a second process: verdicts are those of one process, whatever is wrong."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from substrate.telemetry.trace import ahead, reader
from substrate.telemetry.trace.reader import verify
from tests.telemetry.verifier.trace_maker import OTHER_SESSION, Trace, canonical, span

CHUNK = 700


def many(count: int = 60) -> Trace:
    """Quiet lines, commands, a producer, a loss, an end."""
    trace = Trace().start()
    for number in range(count):
        if number % 9 == 4:
            trace.command(number)
        elif number % 9 == 7:
            trace.add("command_start", {"display": {}}, span_id=span(number))
        else:
            trace.add(body={"n": number}, producer="p", producer_seq=len(trace.lines))
            trace.producer_seq = len(trace.lines)
    return trace.end()


def quiet(count: int = 80) -> Trace:
    trace = Trace().start()
    for number in range(count):
        trace.add(body={"n": number}, producer="p", producer_seq=number)
    return trace


@pytest.fixture(autouse=True)
def small_windows(monkeypatch) -> None:
    monkeypatch.setattr(ahead, "_CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(reader, "_CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(ahead, "_LEAST_BYTES", 4 * CHUNK)
    monkeypatch.setattr(ahead, "_WINDOW_BYTES", 16 * CHUNK)


@pytest.fixture
def alone(monkeypatch):
    """A function that verifies without a second process."""

    def verify_alone(path):
        with monkeypatch.context() as patch:
            patch.setattr(ahead, "_may_fork", lambda: False)
            return verify(path)

    return verify_alone


@pytest.fixture
def followed(monkeypatch) -> list[int]:
    """How many findings were there to be followed, for each child."""
    seen: list[int] = []
    findings = ahead.Ahead.findings

    def counting(self: ahead.Ahead):
        found = findings(self)
        seen.append(len(found))
        return found

    monkeypatch.setattr(ahead.Ahead, "findings", counting)
    monkeypatch.setattr(ahead, "_may_fork", lambda: True)
    return seen


@pytest.mark.parametrize("make", [many, quiet])
def test_what_is_right_is_verified_and_was_read_ahead(tmp_path, alone, followed, make) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(make().content())
    verdict = verify(path)
    assert verdict.ok
    assert verdict == alone(path)
    assert sum(followed) > 5


@pytest.mark.parametrize("make", [many, quiet])
def test_every_changed_place_gives_the_same_verdict(tmp_path, alone, followed, make) -> None:
    content = make().content()
    path = tmp_path / "a.jsonl"
    for place in range(0, len(content), 97):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert verify(path) == alone(path)


def forged(which: int, **changes: object) -> bytes:
    """One line changed and all behind it chained anew."""
    made = quiet()
    trace = Trace()
    for number in range(len(made.lines)):
        if number == 0:
            trace.start()
            continue
        envelope = {"producer": "p", "producer_seq": number - 1}
        kind, body = "annotation", {"n": number}
        if number == which:
            more = dict(changes)
            kind, body = more.pop("event_type", kind), more.pop("body", body)
            envelope.update(more)
        trace.add(kind, body, **envelope)
    return trace.content()


@pytest.mark.parametrize("which", [30, 33, 40, 47, 60])
@pytest.mark.parametrize(
    "changes",
    [
        {"body": {"n": 1.5}},
        {"ts": "2020-01-01T00:00:00.000000Z"},
        {"ts": "2090-01-01T00:00:00.000000Z"},
        {"producer_seq": 7000},
        {"seq": 3},
        {"session_id": OTHER_SESSION},
        {"event_type": "log_drop", "body": {"count": 1, "cumulative": 7}},
        {"event_type": "gap", "body": {"producer": "p", "from": 3, "to": 4}},
        {"event_type": "chain_seal"},
        {"event_type": "no_such_type"},
        {"event_type": "command_end"},
        {"event_type": "session_end", "body": {"drops": 5}},
        {"event_type": "session_end", "body": {"drops": "5"}},
        {"v": 2},
    ],
    ids=str,
)
def test_what_is_said_anywhere_gives_the_same_verdict(tmp_path, alone, followed, which, changes):
    path = tmp_path / "a.jsonl"
    path.write_bytes(forged(which, **changes))
    assert verify(path) == alone(path)


@pytest.mark.parametrize("cut", [1, 100, 6000, 9000])
def test_a_torn_or_synced_end_gives_the_same_verdict(tmp_path, alone, followed, cut) -> None:
    trace = quiet()
    session = tmp_path / "s"
    session.mkdir()
    content = trace.content()
    (session / "trace.jsonl").write_bytes(content[:-cut])
    assert verify(session) == alone(session)
    for size in (len(content), len(content) - cut):
        (session / "durable").write_bytes(b"%020d %s\n" % (size, trace.head.encode()))
        (session / "trace.jsonl").write_bytes(content)
        assert verify(session) == alone(session)
    sizes = [len(line) + 1 for line in trace.lines]
    for count in (20, 41, 60):
        part = Trace()
        part.lines = trace.lines[:count]
        (session / "durable").write_bytes(b"%020d %s\n" % (sum(sizes[:count]), part.head.encode()))
        assert verify(session) == alone(session)
        assert verify(session).ok


def test_a_second_half_that_is_another_chain_is_not_believed(tmp_path, alone, followed) -> None:
    first, second = quiet(), quiet()
    second.lines[3] = canonical({"n": 1})
    other = forged(10, body={"n": 77}).split(b"\n")[:-1]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in first.lines[:25] + other[25:]))
    verdict = verify(path)
    assert verdict.fault is not None
    assert (verdict.fault.code, verdict.fault.seq) == ("E_PREV_HASH", 25)
    assert verdict == alone(path)


@pytest.mark.parametrize("status", [0, 1])
def test_a_child_that_dies_is_not_missed(tmp_path, monkeypatch, alone, followed, status) -> None:
    parent = os.getpid()

    def die(*_: object) -> list[object]:
        assert os.getpid() != parent
        os._exit(1) if status else os.kill(os.getpid(), 9)
        return []

    path = tmp_path / "a.jsonl"
    path.write_bytes(quiet().content())
    monkeypatch.setattr(ahead, "_look", die)
    assert verify(path) == alone(path)
    assert not sum(followed)


def test_no_child_beside_other_threads() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert not ahead._may_fork()
    finally:
        stop.set()
        thread.join()


def children() -> set[str]:
    """The numbers of this process's children, those that nobody has waited for as well."""
    return {
        number
        for task in Path("/proc/self/task").iterdir()
        for number in (task / "children").read_text().split()
    }


def test_no_child_is_left_behind(tmp_path, followed) -> None:
    path = tmp_path / "a.jsonl"
    content = bytearray(quiet().content())
    content[4000] ^= 1  # in the first half: the child is still at work, or waits at its pipe
    path.write_bytes(content)
    before = children()  # of other tests' servers
    assert not verify(path).ok
    assert children() == before
