"""A fault at each system call of writer, blobs and recovery (trace.md §11)."""

from __future__ import annotations

import os
import shutil

import pytest

from substrate.errors import StateError
from substrate.telemetry.trace.faulty import (
    DEATH,
    EIO,
    ENOSPC,
    SHORT,
    SHORT_DEATH,
    Death,
    FaultySystem,
)
from substrate.telemetry.trace.ids import new_span_id

FAULTS = (ENOSPC, EIO, SHORT, DEATH, SHORT_DEATH)


class Story:
    """A short life of a session that goes on after each error, and notes what was acknowledged."""

    def __init__(self, session) -> None:
        self.session = session
        self.acknowledged: list[int] = []
        self.blobs: dict[str, bytes] = {}
        self.writer = None

    def run(self, system: FaultySystem) -> None:
        try:
            self.writer = self.session.create(system=system)
            self._live()
        except Death:
            pass
        finally:
            if self.writer is not None:
                self._abandon()

    def _live(self) -> None:
        pending: list[int] = []
        for number in range(6):
            events = [self.session.note(number)]
            try:
                if number in (2, 4):
                    content = b"content %d " % number * 50
                    ref = self.writer.blobs.put(content, "text/plain")
                    body = {"n": number, "blob": ref.as_json()}
                    events = [self.session.note(number, body=body)]
                if number == 1:
                    span = new_span_id()
                    events.append(
                        self.session.note(0, event_type="command_start", body={}, span_id=span)
                    )
                self.writer.append(events)
                pending.append(number)
                if number in (2, 4):
                    self.blobs[ref.commitment] = content
                if number % 2:
                    self.writer.sync()
                    self.acknowledged += pending
                    pending = []
            except (OSError, StateError):
                continue
        try:
            self.writer.close()
        except (OSError, StateError):
            pass

    def _abandon(self) -> None:
        try:
            self.writer.close(clean=False)
        except Death:
            self.writer._drop()


def assert_nothing_acknowledged_is_lost(session, story: Story) -> None:
    if not session.trace.exists() or not session.trace.read_bytes():
        assert story.acknowledged == []
        return
    try:
        writer, _ = session.open()
    except StateError as never_began:
        assert "never began" in str(never_began) and story.acknowledged == []
        return
    for commitment, content in story.blobs.items():
        assert writer.blobs.read(commitment) == content
    writer.append([session.note(100)])
    writer.close()
    numbers = session.numbers()
    assert set(story.acknowledged) <= set(numbers)
    assert numbers == sorted(set(numbers))
    session.assert_verified()


def calls_of_a_healthy_life(new_session) -> int:
    system = FaultySystem(at=10_000, fault=EIO)
    Story(new_session()).run(system)
    return system.calls


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_each_system_call_of_the_writer(new_session, fault) -> None:
    calls = calls_of_a_healthy_life(new_session)
    assert calls > 30
    for at in range(1, calls + 1):
        session = new_session()
        story = Story(session)
        system = FaultySystem(at=at, fault=fault)
        try:
            story.run(system)
        except (OSError, StateError):
            assert story.writer is None, f"call {at}: {system.hit}"
        assert_nothing_acknowledged_is_lost(session, story)


@pytest.mark.parametrize("fault", [ENOSPC, EIO])
def test_a_disk_that_stays_broken_from_any_call_on(new_session, fault) -> None:
    calls = calls_of_a_healthy_life(new_session)
    for at in range(1, calls + 1):
        session = new_session()
        story = Story(session)
        try:
            story.run(FaultySystem(at=at, fault=fault, lasting=True))
        except (OSError, StateError):
            assert story.writer is None
        assert_nothing_acknowledged_is_lost(session, story)


def left_by_a_death(session) -> None:
    """A torn line, an open span, an unsynced tail, a blob whose line is not there."""
    writer = session.create()
    writer.append(
        [
            session.note(0),
            session.note(0, event_type="command_start", body={}, span_id=new_span_id()),
        ]
    )
    writer.blobs.put(b"kept " * 100, "text/plain")
    writer.append([session.note(1)])
    writer.sync()
    writer.append([session.note(2)])
    writer.blobs.put(b"not synced " * 100, "text/plain")
    writer.close(clean=False)
    with session.trace.open("ab") as file:
        file.write(b'{"body":{"n":3},"comp')
    with (session.path / "blobs").open("ab") as file:
        file.write(bytes(200))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_each_system_call_of_recovery(new_session, fault) -> None:
    left = new_session()
    left_by_a_death(left)
    at = 0
    while True:
        at += 1
        session = new_session()
        shutil.copytree(left.path, session.path, dirs_exist_ok=True)
        session.session_id = left.session_id
        system = FaultySystem(at=at, fault=fault)
        writer = None
        try:
            writer, _ = session.open(system=system)
            writer.close()
        except (OSError, StateError):
            pass
        except Death:
            if writer is not None:
                writer._drop()
        writer, _ = session.open()
        writer.append([session.note(100)])
        writer.close()
        assert session.numbers() == [0, 1, 2, 100]
        assert session.types().count("command_end") == 1
        torn = [o["body"] for o in session.objects() if o["event_type"] == "recovery"]
        assert sum(body["torn_bytes"] for body in torn) >= 21
        named = {body["torn_file"] for body in torn if "torn_file" in body}
        assert named == {p.name for p in session.path.glob("trace.torn-*")}
        session.assert_verified()
        if not system.hit:
            assert at > 30
            return


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_each_system_call_of_a_redaction(new_session, fault) -> None:
    at = 0
    while True:
        at += 1
        session = new_session()
        writer = session.create()
        secret, kept = os.urandom(9000), os.urandom(300)
        ref = writer.blobs.put(secret, "text/plain")
        other = writer.blobs.put(kept, "text/plain")
        body = {"commitments": [ref.commitment], "reason": "test", "by": "me", "other_places": []}
        writer.append([session.note(0), session.note(0, event_type="redaction", body=body)])
        writer.sync()
        system = FaultySystem(at=at, fault=fault)
        writer.blobs._system = system
        try:
            writer.blobs.redact(ref.commitment)
        except (OSError, Death):
            pass
        writer.close(clean=False)
        again, _ = session.open()
        assert again.blobs.read(other.commitment) == kept
        if again.blobs.state(ref.commitment) == "redacted":
            assert secret[:64] not in (session.path / "blobs").read_bytes()
            assert secret[-64:] not in (session.path / "blobs").read_bytes()
        else:
            assert again.blobs.read(ref.commitment) == secret
            again.blobs.redact(ref.commitment)
        again.close()
        session.assert_verified()
        if not system.hit:
            assert at > 5
            return


def test_a_full_disk_takes_nothing_back_and_the_writer_goes_on(session) -> None:
    system = FaultySystem(at=10_000, fault=ENOSPC)
    writer = session.create(system=system)
    writer.append([session.note(0)])
    system.at = system.calls + 1
    with pytest.raises(OSError, match="ENOSPC"):
        writer.append([session.note(1)])
    writer.append([session.note(2)])
    writer.close()
    assert session.numbers() == [0, 2]
    session.assert_verified()


def test_after_a_failed_sync_the_writer_has_ended(session) -> None:
    system = FaultySystem(at=10_000, fault=EIO)
    writer = session.create(system=system)
    writer.append([session.note(0)])
    system.at = system.calls + 1
    with pytest.raises(OSError, match="EIO"):
        writer.sync()
    with pytest.raises(StateError, match="has ended"):
        writer.append([session.note(1)])
    with pytest.raises(StateError, match="has ended"):
        writer.sync()
    writer.close()
    again, recovered = session.open()
    again.close()
    assert recovered is not None
    assert session.numbers() == [0]


def test_a_half_line_that_cannot_be_taken_back_ends_the_writer(session) -> None:
    class HalfThenNothing(FaultySystem):
        def write(self, fd: int, content: bytes | memoryview) -> int:
            if self.lasting:
                raise OSError(28, "full")
            self.lasting = True
            return super().write(fd, content[: len(content) // 2])

        def truncate(self, fd: int, size: int) -> None:
            raise OSError(5, "broken")

    writer = session.create()
    writer.append([session.note(0)])
    writer._system = HalfThenNothing(10_000, EIO)
    with pytest.raises(OSError, match="broken"):
        writer.append([session.note(1)])
    with pytest.raises(StateError, match="has ended"):
        writer.append([session.note(2)])
    writer.close()
    again, recovered = session.open()
    again.close()
    assert len(recovered.torn) == 1
    assert session.numbers() == [0]
    session.assert_verified()
