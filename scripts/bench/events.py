"""Events and traces for benches: the same realistic 600-byte line everywhere."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from substrate.telemetry.trace.envelope import Event
from substrate.telemetry.trace.ids import new_session_id
from substrate.telemetry.trace.writer import TraceWriter

LINE_BYTES = 600
KEY = bytes(32)


def event(number: int) -> Event:
    """A `process_start` as capture writes them; its line has about LINE_BYTES bytes."""
    return Event(
        event_type="process_start",
        component="capture",
        body={
            "proc": number,
            "parent": number // 2,
            "pid": 4000 + number % 30000,
            "host_pid": 104000 + number % 30000,
            "exe": "/usr/bin/python3.11",
            "exe_digest": None,
            "argv": ["python3", "-m", "compileall", f"package_{number % 997}/module.py"],
            "cwd": "/home/user/project",
            "interpreter": None,
            "credentials": None,
            "fds": [{"fd": 1, "kind": "pipe", "inode": 123456}],
        },
    )


def batch(number: int) -> Event:
    """A `file_batch` of 256 rows, as capture collects records: one hash for many."""
    columns = ["mono_us", "proc", "tid", "call", "path", "path2", "flags", "result"]
    first = number * 256
    rows = [
        [first + n, 7, 4007, "openat", f"/usr/lib/python3/m{first + n}.py", None, 524288, 3]
        for n in range(256)
    ]
    body = {"columns": columns, "rows": rows}
    return Event(event_type="file_batch", component="capture", body=body)


def events(count: int) -> list[Event]:
    return [event(number) for number in range(count)]


def open_writer(directory: str, durability: str) -> TraceWriter:
    """A new session's writer in a new directory."""
    os.mkdir(directory, 0o700)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return TraceWriter.create(fd, new_session_id(), durability=durability, digest_key=KEY)


def write_trace(
    directory: str, count: int, make: Callable[[int], Event] = event, group: int = 1000
) -> int:
    """A trace of `count` events, cleanly closed; its size in bytes."""
    writer = open_writer(directory, "none")
    for start in range(0, count, group):
        writer.append(make(n) for n in range(start, min(start + group, count)))
    writer.close()
    return os.stat(os.path.join(directory, "trace.jsonl")).st_size


def envelope_object(number: int) -> dict[str, object]:
    """What the chain encodes for one event: the envelope and the body, as plain JSON."""
    made = event(number)
    return {
        "v": 1,
        "session_id": "ses_018f7a5b-0000-7000-8000-000000000000",
        "seq": number,
        "prev_hash": hashlib.sha256(b"%d" % number).hexdigest(),
        "ts": "2026-01-01T00:00:00.000000Z",
        "mono_us": 1_000_000 + number,
        "event_type": made.event_type,
        "component": made.component,
        "origin": made.origin,
        "body": made.body,
    }
