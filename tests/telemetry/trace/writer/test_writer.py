"""The writer on a healthy disk: lines, positions, durability, the lock."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from substrate.errors import SessionBusy, StateError, UsageError
from substrate.telemetry.trace.envelope import Event
from substrate.telemetry.trace.files import load_durable
from substrate.telemetry.trace.ids import new_span_id
from substrate.telemetry.trace.rfc8785 import CanonicalError
from substrate.telemetry.trace.system import REAL


def test_lines_make_a_chain_that_verifies(session) -> None:
    writer = session.create()
    writer.append([session.note(n) for n in range(5)])
    position = writer.append([session.note(5)])
    writer.close()
    assert session.numbers() == [0, 1, 2, 3, 4, 5]
    assert position.seq == 5
    assert position.size == session.trace.stat().st_size
    last = session.trace.read_bytes().split(b"\n")[-2]
    assert position.head == hashlib.sha256(last).hexdigest()
    session.assert_verified()


def test_a_batch_is_one_write(session) -> None:
    from substrate.telemetry.trace.faulty import EIO, FaultySystem

    system = FaultySystem(at=10_000, fault=EIO)
    writer = session.create(system=system)
    before = system.calls
    writer.append([session.note(n) for n in range(100)])
    assert system.calls - before == 1
    writer.close()


def test_durable_follows_a_sync_and_not_an_append(session) -> None:
    writer = session.create()
    writer.append([session.note(0)])
    assert load_durable(REAL, session.dir_fd).size == 0
    position = writer.sync()
    durable = load_durable(REAL, session.dir_fd)
    assert (durable.size, durable.head) == (position.size, position.head)
    assert position.durable_size == position.size
    writer.close()


def test_durability_event_syncs_each_append(session) -> None:
    writer = session.create(durability="event")
    position = writer.append([session.note(0)])
    assert position.durable_size == position.size
    assert load_durable(REAL, session.dir_fd).size == position.size
    writer.close()


def test_durability_none_never_syncs_and_opens_cleanly(session) -> None:
    from substrate.telemetry.trace.faulty import EIO, FaultySystem

    class NoSync(FaultySystem):
        def fdatasync(self, fd: int) -> None:
            raise AssertionError("a sync")

        fsync = fdatasync

    writer = session.create(durability="none", system=NoSync(10_000, EIO))
    writer.append([session.note(0)])
    writer.blobs.put(b"content", "text/plain")
    writer.append([session.note(1)])
    writer.close()
    again, recovered = session.open(durability="none")
    assert recovered is None
    again.append([session.note(2)])
    again.close()
    assert session.numbers() == [0, 1, 2]
    session.assert_verified()


def test_opening_after_a_clean_end_recovers_nothing(session) -> None:
    writer = session.create()
    writer.append([session.note(0)])
    writer.close()
    again, recovered = session.open()
    assert recovered is None
    again.append([session.note(1)])
    again.close()
    assert session.types() == ["annotation", "annotation"]
    session.assert_verified()


def test_a_producer_goes_on_after_a_clean_end_without_a_gap(session) -> None:
    writer = session.create()
    writer.append([session.note(n, producer="sdk", producer_seq=n) for n in range(3)])
    writer.append([session.note(3)])
    writer.close()
    again, _ = session.open()
    again.append([session.note(n, producer="sdk", producer_seq=n) for n in range(3, 5)])
    again.close()
    assert "gap" not in session.types()


def test_a_jump_of_a_counter_makes_a_gap_before_the_event(session) -> None:
    writer = session.create()
    writer.append([session.note(n, producer="sdk", producer_seq=n) for n in (0, 1, 5)])
    writer.append([session.note(6, producer="sdk", producer_seq=6)])
    writer.close()
    assert session.types() == ["annotation", "annotation", "gap", "annotation", "annotation"]
    assert session.objects()[2]["body"] == {"producer": "sdk", "from": 2, "to": 4}
    session.assert_verified()


def test_a_counter_that_goes_back_makes_a_gap_too(session) -> None:
    writer = session.create()
    writer.append([session.note(n, producer="sdk", producer_seq=n) for n in (0, 1, 1)])
    writer.close()
    assert session.objects()[2]["body"] == {"producer": "sdk", "from": 2, "to": 0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"component": "elsewhere"},
        {"origin": "guessed"},
        {"event_type": "Upper"},
        {"span_id": "spn_1"},
        {"parent_span_id": "x"},
        {"body": []},
        {"producer_seq": 1},
        {"producer": "", "producer_seq": 1},
        {"producer": "sdk", "producer_seq": True},
        {"producer": "sdk", "producer_seq": -1},
        {"event_type": "log_drop", "producer": "sdk", "producer_seq": 0},
        {"event_type": "chain_seal", "component": "sdk"},
        {"event_type": "recovery", "origin": "reported"},
        {"event_type": "chain_seal"},
    ],
    ids=str,
)
def test_an_event_that_may_not_stand_is_refused_and_leaves_no_trace(session, wrong) -> None:
    writer = session.create()
    writer.append([session.note(0)])
    with pytest.raises(UsageError):
        writer.append([session.note(1), session.note(2, **wrong)])
    writer.append([session.note(3)])
    writer.close()
    assert session.numbers() == [0, 3]
    session.assert_verified()


def test_a_body_without_a_line_is_refused_and_leaves_no_trace(session) -> None:
    writer = session.create()
    for body in ({"n": 1.5}, {"n": 2**53}, {"n": "\ud800"}, {"n": b"x"}):
        with pytest.raises(CanonicalError):
            writer.append(
                [session.note(0, producer="p", producer_seq=7), session.note(0, body=body)]
            )
    writer.append([session.note(1, producer="p", producer_seq=0)])
    writer.close()
    assert session.types() == ["annotation"]


def test_nothing_follows_a_seal(session) -> None:
    writer = session.create()
    body = {"count": 1, "head_hash": "", "root": "", "drops": 0, "key_id": None, "sealed_by": "me"}
    writer.append([session.note(0, event_type="session_end")])
    writer.append([session.note(1, event_type="chain_seal", body=body)])
    with pytest.raises(StateError, match="E_AFTER_SEAL"):
        writer.append([session.note(2)])
    writer.close()
    with pytest.raises(StateError, match="E_AFTER_SEAL"):
        session.open()


def test_open_command_spans_are_known(session) -> None:
    one, two = new_span_id(), new_span_id()
    writer = session.create()
    writer.append(
        [
            session.note(0, event_type="command_start", span_id=one),
            session.note(1, event_type="command_start", span_id=two),
            session.note(2, event_type="command_end", span_id=one),
        ]
    )
    assert writer.open_spans == (two,)
    writer.close()


def test_a_new_blob_is_synced_before_the_line_that_names_it(session) -> None:
    from substrate.telemetry.trace.faulty import EIO, FaultySystem

    order: list[str] = []

    class Watched(FaultySystem):
        def write(self, fd: int, content: bytes | memoryview) -> int:
            order.append("line")
            return super().write(fd, content)

        def fdatasync(self, fd: int) -> None:
            order.append(os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[2])
            super().fdatasync(fd)

    writer = session.create(system=Watched(10_000, EIO))
    ref = writer.blobs.put(b"a content", "text/plain")
    writer.append([session.note(0, body={"n": 0, "blob": ref.as_json()})])
    assert order == ["blobs", "line"]
    writer.sync()
    assert order == ["blobs", "line", "trace.jsonl"]
    writer.close()
    session.assert_verified()


def test_secrets_do_not_reach_a_line(session) -> None:
    writer = session.create()
    secret = "AKIA" + "ABCDEFGHIJKLMNOP"
    writer.append(
        [
            session.note(
                0,
                event_type="command_start",
                span_id=new_span_id(),
                body={"display": {"argv": ["curl", "-H", "Authorization: Bearer " + secret]}},
            )
        ]
    )
    writer.close()
    assert secret.encode() not in session.trace.read_bytes()


def test_a_second_writer_is_told_who_has_the_session(session) -> None:
    writer = session.create()
    writer.append([session.note(0)])
    with pytest.raises(SessionBusy, match=f"pid {os.getpid()}"):
        session.open()
    with pytest.raises(SessionBusy):
        session.create()
    writer.append([session.note(1)])
    writer.close()
    session.open()[0].close()
    assert session.numbers() == [0, 1]


def test_a_session_is_not_created_twice(session) -> None:
    session.create().close()
    with pytest.raises(StateError, match="there already"):
        session.create()


def test_files_are_private_and_links_are_refused(session) -> None:
    writer = session.create()
    writer.append([session.note(0)])
    writer.close()
    for name in ("trace.jsonl", "durable", "lock", "blobs", "blobs.idx"):
        assert (session.path / name).stat().st_mode & 0o777 == 0o600
    session.trace.rename(session.path / "elsewhere")
    session.trace.symlink_to("elsewhere")
    with pytest.raises(StateError, match="symbolic link"):
        session.open()


def test_a_forked_child_neither_keeps_the_lock_nor_writes(session) -> None:
    writer = session.create()
    writer.append([session.note(0)])
    ready, child_waits = os.pipe()
    child_says, says = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            writer.append([session.note(99)])
        except RuntimeError:
            os.write(says, b"refused")
        os.close(child_waits)
        os.read(ready, 1)
        os._exit(0)
    os.close(says)
    assert os.read(child_says, 100) == b"refused"
    writer.append([session.note(1)])
    writer.close(clean=False)
    again, _ = session.open()  # while the child still lives
    again.close()
    os.close(child_waits)
    os.waitpid(child, 0)
    os.close(ready)
    os.close(child_says)
    assert session.numbers() == [0, 1]


def test_a_child_that_was_executed_does_not_keep_the_lock(session) -> None:
    writer = session.create()
    writer.append([session.note(0)])
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False
    ) as child:
        writer.close()
        session.open()[0].close()
        child.communicate(b"\n")


def test_an_event_keeps_unknown_fields_and_text_beyond_ascii(session) -> None:
    writer = session.create()
    body = {"n": 0, "\U0001f600": "\u2028", "\ufb33": {"x": [None, True, "\u0085"]}}
    writer.append([Event(event_type="annotation", component="shell", body=body)])
    writer.close()
    assert session.objects()[0]["body"] == body
    session.assert_verified()
