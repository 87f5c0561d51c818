"""Many producers, one writer: acknowledgements, overflow, full disks."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from substrate.errors import StateError, UsageError
from substrate.telemetry.trace.files import load_durable
from substrate.telemetry.trace.group import EventDropped, GroupWriter
from substrate.telemetry.trace.rfc8785 import CanonicalError
from substrate.telemetry.trace.system import REAL, System

CLIENTS = 8


class Disk(System):
    """A disk that can be held still, or be full, on command."""

    def __init__(self) -> None:
        self.running = threading.Event()
        self.running.set()
        self.stopped = threading.Event()
        self.full = False
        self.refused = threading.Event()
        self.broken = False

    def write(self, fd: int, content: bytes | memoryview) -> int:
        self.stopped.set()
        assert self.running.wait(60)
        if self.full:
            self.refused.set()
            raise OSError(errno.ENOSPC, "full")
        if self.broken:
            raise OSError(errno.EIO, "broken")
        return super().write(fd, content)

    def hold(self) -> None:
        self.stopped.clear()
        self.running.clear()


def made(session, *, durability: str = "event", system: System = REAL, **options) -> GroupWriter:
    return GroupWriter(session.create(durability, system), **options)


def stuffed(session, overflow: str, places: int) -> tuple[Disk, GroupWriter]:
    """A ring whose free places are all taken, while the writer hangs in its first write."""
    disk = Disk()
    group = made(session, system=disk, overflow=overflow, ring_events=places + 2)
    disk.hold()
    group.submit(session.note(0, producer="p", producer_seq=0))
    assert disk.stopped.wait(60)
    for number in range(1, places):
        group.submit(session.note(number, producer="p", producer_seq=number))
    return disk, group


def test_what_was_acknowledged_is_durable(session) -> None:
    group = made(session)
    for number in range(20):
        group.append(session.note(number))
        durable = load_durable(REAL, session.dir_fd)
        assert durable.size == session.trace.stat().st_size
    group.close()
    assert session.numbers() == list(range(20))
    session.assert_verified()


def test_many_threads_share_one_chain_and_keep_their_order(session) -> None:
    group = made(session)

    def client(name: int) -> None:
        for number in range(100):
            event = session.note(number, producer=f"p{name}", producer_seq=number)
            group.append(event)

    threads = [threading.Thread(target=client, args=(name,)) for name in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    group.close()
    assert "gap" not in session.types()
    assert len(session.numbers()) == CLIENTS * 100
    session.assert_verified()


def test_under_command_only_an_end_waits_for_the_disk(session) -> None:
    group = made(session, durability="command")
    group.append(session.note(0))
    assert load_durable(REAL, session.dir_fd).size == 0
    group.append(session.note(1, event_type="command_end"))
    assert load_durable(REAL, session.dir_fd).size == session.trace.stat().st_size
    group.append(session.note(2))
    group.flush()
    assert load_durable(REAL, session.dir_fd).size == session.trace.stat().st_size
    group.close()


def test_flush_of_nothing_returns(session) -> None:
    group = made(session)
    group.flush(timeout_s=10)
    group.append(session.note(0))
    group.flush(timeout_s=10)
    group.flush(timeout_s=10)
    group.close()


def test_an_event_that_is_no_line_fails_alone(session) -> None:
    disk = Disk()
    group = made(session, system=disk)
    disk.hold()
    first = group.submit(session.note(0))
    assert disk.stopped.wait(60)
    tickets = [
        group.submit(session.note(1)),
        group.submit(session.note(2, component="nowhere")),
        group.submit(session.note(3)),
        group.submit(session.note(4, body={"n": 1.5})),
        group.submit(session.note(5)),
    ]
    disk.running.set()
    group.wait(first)
    group.wait(tickets[0])
    with pytest.raises(UsageError, match="component"):
        group.wait(tickets[1])
    group.wait(tickets[2])
    with pytest.raises(CanonicalError):
        group.wait(tickets[3])
    group.wait(tickets[4])
    group.close()
    assert session.numbers() == [0, 1, 3, 5]
    with pytest.raises(UsageError, match="not JSON"):
        group.submit(session.note(0, body={"n": object()}))
    session.assert_verified()


def test_block_waits_for_space_and_loses_nothing(session) -> None:
    disk, group = stuffed(session, "block", 4)
    with pytest.raises(StateError, match="no space"):
        group.submit(session.note(4, producer="p", producer_seq=4), timeout_s=0.01)
    late = threading.Thread(
        target=group.append, args=(session.note(4, producer="p", producer_seq=4),)
    )
    late.start()
    disk.running.set()
    late.join(60)
    group.close()
    assert session.numbers() == [0, 1, 2, 3, 4]
    assert group.drops == 0
    assert "log_drop" not in session.types()
    session.assert_verified()


def test_drop_counts_what_it_drops_at_its_place_in_the_chain(session) -> None:
    disk, group = stuffed(session, "drop", 4)
    for number in (4, 5, 6):
        with pytest.raises(EventDropped):
            group.submit(session.note(number, producer="p", producer_seq=number))
    disk.running.set()
    group.flush()
    group.append(session.note(7, producer="p", producer_seq=7))
    group.close()
    assert group.drops == 3
    assert session.types() == [*["annotation"] * 4, "log_drop", "annotation"]
    body = session.objects()[4]["body"]
    assert body["per_producer"] == [{"producer": "p", "from": 4, "to": 6}]
    assert (body["count"], body["reason"], body["cumulative"]) == (3, "buffer_full", 3)
    session.assert_verified()


def test_losses_are_told_even_if_nothing_follows_them(session) -> None:
    disk, group = stuffed(session, "drop", 4)
    with pytest.raises(EventDropped):
        group.submit(session.note(4))
    disk.running.set()
    group.close()
    assert session.types()[-1] == "log_drop"
    session.assert_verified()


def test_a_session_end_has_a_place_of_its_own(session) -> None:
    disk, group = stuffed(session, "drop", 4)
    with pytest.raises(EventDropped):
        group.submit(session.note(4))
    ticket = group.submit(session.note(5, event_type="session_end"))
    disk.running.set()
    group.wait(ticket)
    group.close()
    assert session.types()[-2:] == ["log_drop", "session_end"]
    session.assert_verified()


def test_halt_ends_the_writer_and_loses_nothing_acknowledged(session) -> None:
    disk, group = stuffed(session, "halt", 4)
    with pytest.raises(StateError, match="halt"):
        group.submit(session.note(4))
    disk.running.set()
    with pytest.raises(StateError, match="halt"):
        group.submit(session.note(5))
    with pytest.raises(StateError, match="halt"):
        group.close()
    writer, _ = session.open()
    writer.close()
    session.assert_verified()


def test_the_ring_is_bounded_by_bytes_too(session) -> None:
    disk = Disk()
    group = made(session, system=disk, overflow="drop", ring_bytes=10_000)
    disk.hold()
    group.submit(session.note(0))
    assert disk.stopped.wait(60)
    with pytest.raises(EventDropped):
        for number in range(1, 100):
            group.submit(session.note(number, body={"n": number, "x": "y" * 1000}))
    disk.running.set()
    group.close()
    assert 5 < len(session.numbers()) < 12
    session.assert_verified()


def test_a_full_disk_blocks_until_there_is_space(session) -> None:
    disk = Disk()
    group = made(session, system=disk)
    group.append(session.note(0))
    disk.full = True
    ticket = group.submit(session.note(1))
    assert disk.refused.wait(60)
    with pytest.raises(StateError, match="not acknowledged"):
        group.wait(ticket, timeout_s=0.01)
    assert group.disk_is_full
    disk.full = False
    group.wait(ticket)
    assert not group.disk_is_full
    group.close()
    assert session.numbers() == [0, 1]
    session.assert_verified()


def test_a_full_disk_under_drop_is_told_when_space_is_back(session) -> None:
    disk = Disk()
    group = made(session, system=disk, overflow="drop")
    group.append(session.note(0, producer="p", producer_seq=0))
    disk.full = True
    for number in (1, 2):
        with pytest.raises(EventDropped):
            group.append(session.note(number, producer="p", producer_seq=number))
    disk.full = False
    group.append(session.note(3, producer="p", producer_seq=3))
    group.close()
    assert session.types() == ["annotation", "log_drop", "annotation"]
    body = session.objects()[1]["body"]
    assert (body["count"], body["reason"], body["cumulative"]) == (2, "disk_full", 2)
    assert body["per_producer"] == [{"producer": "p", "from": 1, "to": 2}]
    session.assert_verified()


def test_losses_of_a_full_disk_are_told_without_a_new_event(session) -> None:
    disk = Disk()
    group = made(session, system=disk, overflow="drop")
    group.append(session.note(0))
    disk.full = True
    with pytest.raises(EventDropped):
        group.append(session.note(1))
    disk.full = False
    group.close()
    assert session.types() == ["annotation", "log_drop"]
    session.assert_verified()


def test_a_broken_disk_tells_every_producer(session) -> None:
    disk = Disk()
    group = made(session, system=disk)
    group.append(session.note(0))
    disk.broken = True
    with pytest.raises(StateError, match="has ended"):
        group.append(session.note(1))
    with pytest.raises(StateError, match="has ended"):
        group.submit(session.note(2))
    with pytest.raises(StateError, match="has ended"):
        group.close()
    writer, recovered = session.open()
    writer.close()
    assert recovered is not None
    assert session.numbers() == [0]


def test_a_forked_child_is_refused(session) -> None:
    group = made(session)
    group.append(session.note(0))
    child = os.fork()
    if child == 0:
        try:
            group.submit(session.note(1))
        except RuntimeError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    group.append(session.note(2))
    group.close()
    assert session.numbers() == [0, 2]


def test_a_log_drop_counts_on_from_an_earlier_opening(session) -> None:
    for opening in (1, 2):
        disk = Disk()
        writer = session.create(system=disk) if opening == 1 else session.open(system=disk)[0]
        group = GroupWriter(writer, overflow="drop", ring_events=4)
        disk.hold()
        group.submit(session.note(0))
        assert disk.stopped.wait(60)
        group.submit(session.note(1))
        with pytest.raises(EventDropped):
            group.submit(session.note(2))
        disk.running.set()
        group.close()
        assert group.drops == opening
    session.assert_verified()


def test_blobs_are_put_from_many_threads(session) -> None:
    group = made(session)

    def client(name: int) -> None:
        for number in range(30):
            content = b"content %d of %d " % (number, name % 2) * 20
            ref = group.blobs.put(content, "text/plain")
            group.append(session.note(number, body={"n": number, "blob": ref.as_json()}))

    threads = [threading.Thread(target=client, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    group.close()
    assert len(session.numbers()) == 120
    session.assert_verified()
