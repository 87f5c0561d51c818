"""`kill -9` at random moments: nothing that was acknowledged is lost (trace.md §5, §11).

A forked child writes and says through a pipe what was acknowledged; the parent kills it after
a random number of acknowledgements, looks at what is there, and lets the next child go on in
the same session. `scripts/soak-writer` does the same for longer.
"""

from __future__ import annotations

import os
import random
import signal
import threading

import pytest

from substrate.telemetry.trace.group import GroupWriter
from substrate.telemetry.trace.ids import new_span_id
from substrate.telemetry.verifier import verify

RECORD_BYTES = 8


def say(pipe: int, number: int) -> None:
    os.write(pipe, number.to_bytes(RECORD_BYTES, "big"))


def live_alone(session, pipe: int, number: int, seed: int, first: bool) -> None:
    """Batches of random sizes, now and then a blob, a span, a sync."""
    rng = random.Random(seed)
    writer = session.create() if first else session.open()[0]
    while True:
        events = []
        for _ in range(rng.randint(1, 5)):
            number += 1
            body = {"n": number}
            if rng.random() < 0.2:
                content = rng.randbytes(rng.choice((10, 300, 70_000)))
                body["blob"] = writer.blobs.put(content, "text/plain").as_json()
            events.append(session.note(number, body=body))
        if rng.random() < 0.2:
            span = new_span_id()
            events.append(session.note(0, event_type="command_start", body={}, span_id=span))
        writer.append(events)
        if rng.random() < 0.5:
            writer.sync()
            say(pipe, number)


def live_in_a_group(session, pipe: int, number: int, seed: int, first: bool) -> None:
    """Four threads, each waiting for its acknowledgement."""
    writer = session.create("event") if first else session.open("event")[0]
    group = GroupWriter(writer)
    counter = iter(range(number + 1, 1 << 60))

    def client() -> None:
        while True:
            mine = next(counter)
            group.append(session.note(mine))
            say(pipe, mine)

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def acknowledged_until_killed(session, live, number: int, seed: int, first: bool) -> list[int]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            live(session, writing, number, seed, first)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        acknowledged = []
        for _ in range(random.Random(seed).randint(1, 12)):
            record = pipe.read(RECORD_BYTES)
            assert record, "the writer died by itself"
            acknowledged.append(int.from_bytes(record, "big"))
        os.kill(child, signal.SIGKILL)
        rest = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    for at in range(0, len(rest) - RECORD_BYTES + 1, RECORD_BYTES):
        acknowledged.append(int.from_bytes(rest[at : at + RECORD_BYTES], "big"))
    return acknowledged


@pytest.mark.parametrize("live", [live_alone, live_in_a_group])
def test_a_killed_writer_loses_nothing_that_was_acknowledged(new_session, live) -> None:
    for life in range(8):
        session = new_session()
        seen: set[int] = set()
        number = 0
        for death in range(13):
            told = acknowledged_until_killed(session, live, number, life * 100 + death, death == 0)
            seen |= set(told)
            assert seen <= set(session.numbers()), "before recovery"
            number = max(session.numbers()) + 1000
        writer, recovered = session.open()
        assert recovered is not None
        assert recovered.acknowledged_lost == "no"
        writer.close()
        numbers = session.numbers()
        assert seen <= set(numbers)
        assert len(numbers) == len(set(numbers))
        session.assert_verified()


def test_a_trace_that_is_being_written_never_fails_falsely(session) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            live_alone(session, writing, 0, 1, True)
        finally:
            os._exit(1)
    try:
        os.read(reading, RECORD_BYTES)
        for _ in range(60):
            os.read(reading, RECORD_BYTES)
            verdict = verify(session.path)
            assert verdict.ok, verdict.errors
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)
