"""A session directory to write into, and the checks that every test ends with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate.telemetry.trace.envelope import Event
from substrate.telemetry.trace.ids import new_session_id
from substrate.telemetry.trace.parsing import parse_line
from substrate.telemetry.trace.recovery import Recovered
from substrate.telemetry.trace.system import REAL, System
from substrate.telemetry.trace.writer import TraceWriter
from substrate.telemetry.verifier import verify

KEY = bytes(range(32))


class Session:
    """One session's directory: `create` and `open` writers, read what is there."""

    def __init__(self, path: Path) -> None:
        path.mkdir(exist_ok=True)
        self.path = path
        self.dir_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.session_id = new_session_id()

    def create(self, durability: str = "command", system: System = REAL) -> TraceWriter:
        return TraceWriter.create(
            self.dir_fd, self.session_id, durability=durability, digest_key=KEY, system=system
        )

    def open(
        self, durability: str = "command", system: System = REAL
    ) -> tuple[TraceWriter, Recovered | None]:
        return TraceWriter.open(self.dir_fd, durability=durability, digest_key=KEY, system=system)

    def note(self, number: int, **envelope: object) -> Event:
        fields = {"event_type": "annotation", "component": "shell", "body": {"n": number}}
        return Event(**{**fields, **envelope})  # type: ignore[arg-type]

    @property
    def trace(self) -> Path:
        return self.path / "trace.jsonl"

    def objects(self) -> list[dict[str, object]]:
        return [parse_line(line) for line in self.trace.read_bytes().split(b"\n")[:-1]]

    def numbers(self) -> list[int]:
        """The `n` of every annotation, in order."""
        return [
            obj["body"]["n"]  # type: ignore[index]
            for obj in self.objects()
            if obj["event_type"] == "annotation"
        ]

    def types(self) -> list[object]:
        return [obj["event_type"] for obj in self.objects()]

    def assert_verified(self) -> None:
        verdict = verify(self.path)
        assert verdict.errors == (), verdict.errors
        assert verdict.ok


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    made = Session(tmp_path / "session")
    yield made
    os.close(made.dir_fd)


@pytest.fixture
def new_session(tmp_path: Path) -> Iterator[object]:
    """A function that makes sessions, for tests that need many."""
    made: list[Session] = []

    def make() -> Session:
        session = Session(tmp_path / f"session{len(made)}")
        made.append(session)
        return session

    yield make
    for session in made:
        os.close(session.dir_fd)
