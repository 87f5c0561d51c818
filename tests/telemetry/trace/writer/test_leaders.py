"""Producers that write for each other: a leader's batch, and what it leaves to the thread."""

from __future__ import annotations

import errno
import threading

import pytest

from substrate.errors import StateError, UsageError
from substrate.telemetry.trace.files import load_durable
from substrate.telemetry.trace.group import EventDropped, GroupWriter
from substrate.telemetry.trace.system import REAL, System


class Disk(System):
    """Remembers which threads synced; holds them, or is full or broken, on command."""

    def __init__(self) -> None:
        self.syncing: list[int] = []
        self.running = threading.Event()
        self.running.set()
        self.stopped = threading.Event()
        self.write_error = 0
        self.sync_error = 0

    def write(self, fd: int, content: bytes | memoryview) -> int:
        if self.write_error:
            raise OSError(self.write_error, "no")
        return super().write(fd, content)

    def fdatasync(self, fd: int) -> None:
        self.syncing.append(threading.get_ident())
        self.stopped.set()
        assert self.running.wait(60)
        if self.sync_error:
            raise OSError(self.sync_error, "no")
        super().fdatasync(fd)


def in_thread(work) -> tuple[threading.Thread, list[Exception]]:
    """`work` in a thread of its own, which may lead; what it raised."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - told to the test
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def done(thread: threading.Thread) -> None:
    thread.join(60)
    assert not thread.is_alive()


def test_a_lone_producer_syncs_itself(session) -> None:
    disk = Disk()
    group = GroupWriter(session.create("event", disk))
    seen: list[int] = []

    def client() -> None:
        for number in range(5):
            group.append(session.note(number))
            seen.append(load_durable(REAL, session.dir_fd).size - session.trace.stat().st_size)

    thread, raised = in_thread(client)
    done(thread)
    assert not raised
    assert seen == [0] * 5
    assert disk.syncing == [thread.ident] * 5
    group.close()
    session.assert_verified()


def test_the_main_thread_never_leads(session) -> None:
    disk = Disk()
    group = GroupWriter(session.create("event", disk))
    group.append(session.note(0))
    group.close()
    assert threading.get_ident() not in disk.syncing[:1]


def test_those_who_come_during_a_sync_share_the_next(session) -> None:
    disk = Disk()
    group = GroupWriter(session.create("event", disk))
    disk.running.clear()
    leader, _ = in_thread(lambda: group.append(session.note(0)))
    assert disk.stopped.wait(60)
    tickets = [group.submit(session.note(number)) for number in range(1, 6)]
    disk.running.set()
    for ticket in tickets:
        group.wait(ticket)
    done(leader)
    assert len(disk.syncing) == 2
    group.close()
    assert session.numbers() == list(range(6))


def test_a_follower_has_its_own_bound(session) -> None:
    disk = Disk()
    group = GroupWriter(session.create("event", disk))
    disk.running.clear()
    leader, _ = in_thread(lambda: group.append(session.note(0)))
    assert disk.stopped.wait(60)
    with pytest.raises(StateError, match="not acknowledged"):
        group.append(session.note(1), timeout_s=0.01)
    disk.running.set()
    done(leader)
    group.close()
    assert session.numbers() == [0, 1]
    session.assert_verified()


def test_closing_waits_for_a_leader_at_work(session) -> None:
    disk = Disk()
    group = GroupWriter(session.create("event", disk))
    disk.running.clear()
    leader, raised = in_thread(lambda: group.append(session.note(0)))
    assert disk.stopped.wait(60)
    closing, refused = in_thread(group.close)
    closing.join(0.05)
    assert closing.is_alive()
    disk.running.set()
    done(closing)
    done(leader)
    assert not raised
    assert not refused
    assert session.numbers() == [0]
    session.assert_verified()


def test_an_event_that_is_no_line_fails_alone_under_a_leader(session) -> None:
    group = GroupWriter(session.create("event", Disk()))
    thread, raised = in_thread(lambda: group.append(session.note(0, component="nowhere")))
    done(thread)
    assert [type(error) for error in raised] == [UsageError]
    thread, raised = in_thread(lambda: group.append(session.note(1)))
    done(thread)
    assert not raised
    group.close()
    assert session.numbers() == [1]
    session.assert_verified()


def test_a_leader_leaves_a_full_disk_to_the_thread_and_keeps_its_bound(session) -> None:
    disk = Disk()
    group = GroupWriter(session.create("event", disk))
    disk.write_error = errno.ENOSPC
    thread, raised = in_thread(lambda: group.append(session.note(0), timeout_s=0.1))
    done(thread)
    assert "not acknowledged" in str(raised[0])
    assert group.disk_is_full
    disk.write_error = 0
    group.flush()
    group.close()
    assert session.numbers() == [0]
    session.assert_verified()


def test_a_leader_on_a_full_disk_under_drop_loses_its_event(session) -> None:
    disk = Disk()
    group = GroupWriter(session.create("event", disk), overflow="drop")
    disk.write_error = errno.ENOSPC
    thread, raised = in_thread(lambda: group.append(session.note(0)))
    done(thread)
    assert [type(error) for error in raised] == [EventDropped]
    disk.write_error = 0
    group.close()
    assert session.types() == ["log_drop"]
    session.assert_verified()


@pytest.mark.parametrize(
    ("failing", "number"),
    [("write_error", errno.EIO), ("sync_error", errno.EIO), ("sync_error", errno.ENOSPC)],
)
def test_what_breaks_under_a_leader_is_told_to_all(session, failing, number) -> None:
    disk = Disk()
    group = GroupWriter(session.create("event", disk))
    group.append(session.note(0))
    setattr(disk, failing, number)
    thread, raised = in_thread(lambda: group.append(session.note(1)))
    done(thread)
    assert "has ended" in str(raised[0])
    with pytest.raises(StateError, match="has ended"):
        group.submit(session.note(2))
    with pytest.raises(StateError, match="has ended"):
        group.close()
    setattr(disk, failing, 0)
    session.open()[0].close()
    session.assert_verified()


def test_flush_from_a_thread_reaches_the_disk_under_command(session) -> None:
    group = GroupWriter(session.create("command", Disk()))

    def client() -> None:
        group.append(session.note(0))
        group.flush()
        group.flush()

    thread, raised = in_thread(client)
    done(thread)
    assert not raised
    assert load_durable(REAL, session.dir_fd).size == session.trace.stat().st_size
    group.close()


def test_producers_that_wait_and_producers_that_do_not_get_along(session) -> None:
    group = GroupWriter(session.create("event", Disk()), ring_events=40)

    def client(name: int) -> None:
        for number in range(0, 90, 3):
            events = [
                session.note(number + n, producer=f"p{name}", producer_seq=number + n)
                for n in range(3)
            ]
            group.append(events[0])
            group.submit(events[1])
            group.submit_all(events[2:])
        group.flush()

    threads = [in_thread(lambda name=name: client(name)) for name in range(6)]
    for thread, raised in threads:
        done(thread)
        assert not raised
    group.close()
    assert len(session.numbers()) == 540
    assert "gap" not in session.types()
    session.assert_verified()


def test_a_batch_larger_than_the_ring_is_taken_bit_by_bit(session) -> None:
    group = GroupWriter(session.create("event", Disk()), ring_events=10)
    thread, raised = in_thread(
        lambda: group.wait(group.submit_all([session.note(n) for n in range(50)], timeout_s=20))
    )
    done(thread)
    assert not raised
    group.close()
    assert session.numbers() == list(range(50))
