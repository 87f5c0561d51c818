"""Durable appends: groups by the writer itself, and synchronous clients by the group writer.

Every group is written, synced and acknowledged before the next. The peer is SQLite in WAL
mode with synchronous=FULL, a row an event and a transaction a group, of the same bytes; it
computes no hash and no chain. The floor is one write(2) and one fdatasync(2) a group of the
same bytes, which is what the disk can do.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable

import events
import harness
from harness import Context, Result, Sample, in_child, interleave

#: (events a group, groups a sample)
GROUPS = ((100, 50), (1000, 10))
CLIENTS = 8
CLIENT_EVENTS = 500


def bench(context: Context) -> list[Result]:
    results = []
    for size, count in GROUPS:
        batches = [[events.event(i * size + n) for n in range(size)] for i in range(count)]
        lines = [
            b"".join(bytes(events.LINE_BYTES - 1).replace(b"\0", b"x") + b"\n" for _ in batch)
            for batch in batches
        ]
        work: dict[str, Callable[[str], float]] = {
            f"writer, groups of {size}": lambda d, b=batches: _writer(d, b, orjson=True),
            f"writer without orjson, groups of {size}": lambda d, b=batches: _writer(
                d, b, orjson=False
            ),
            f"write + fdatasync only, groups of {size}": lambda d, b=lines: _floor(d, b),
        }
        if context.peers:
            work[f"sqlite WAL FULL, groups of {size}"] = lambda d, b=lines: _sqlite(d, b)
        floor = f"write + fdatasync only, groups of {size}"
        taken = interleave(
            {name: lambda w=w: _in_directory(context.scratch, w) for name, w in work.items()},
            rounds=context.rounds,
            seed=context.seed,
            reference=floor,
        )
        for name, samples in taken.items():
            per_second = tuple(size * count / s.seconds for s in samples)
            results.append(
                Result(
                    "append",
                    name,
                    context.placement,
                    "events/s",
                    per_second,
                    rss_kib=max(s.rss_kib for s in samples),
                    note=f"{events.LINE_BYTES} bytes an event",
                )
            )
    taken = interleave(
        {"clients": lambda: _in_directory(context.scratch, _clients)},
        rounds=context.rounds,
        seed=context.seed,
    )
    total = CLIENTS * CLIENT_EVENTS
    samples = taken["clients"]
    results.append(
        Result(
            "append",
            f"{CLIENTS} synchronous clients",
            context.placement,
            "events/s",
            tuple(total / s.seconds for s in samples),
            rss_kib=max(s.rss_kib for s in samples),
        )
    )
    for name in ("p50", "p99"):
        results.append(
            Result(
                "append",
                f"{CLIENTS} synchronous clients, {name} of an acknowledgement",
                context.placement,
                "ms",
                tuple(s.more[name] for s in samples),
            )
        )
    return results


def _in_directory(
    scratch: str, work: Callable[[str], float | tuple[float, dict[str, float]]]
) -> Sample:
    directory = tempfile.mkdtemp(dir=scratch)
    try:
        return in_child(lambda: work(directory))
    finally:
        shutil.rmtree(directory)


def _writer(directory: str, batches: list[list[events.Event]], *, orjson: bool) -> float:
    if orjson:
        from substrate.telemetry.trace.canonical import accelerate

        accelerate()
    writer = events.open_writer(directory + "/s", "command")
    writer.append([events.event(0)])
    writer.sync()
    start = time.perf_counter()
    for batch in batches:
        writer.append(batch)
        writer.sync()
    seconds = time.perf_counter() - start
    writer.close()
    return seconds


def _floor(directory: str, batches: list[bytes]) -> float:
    fd = os.open(directory + "/floor", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.fsync(fd)
    start = time.perf_counter()
    for batch in batches:
        os.write(fd, batch)
        os.fdatasync(fd)
    return time.perf_counter() - start


def _sqlite(directory: str, batches: list[bytes]) -> float:
    connection = sqlite3.connect(directory + "/peer.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, line BLOB)")
    rows = [[(line,) for line in batch.splitlines()] for batch in batches]
    start = time.perf_counter()
    for batch in rows:
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO events (line) VALUES (?)", batch)
        connection.execute("COMMIT")
    seconds = time.perf_counter() - start
    connection.close()
    return seconds


def _clients(directory: str) -> tuple[float, dict[str, float]]:
    """Threads that each wait for the acknowledgement of one event before the next."""
    from substrate.telemetry.trace.group import GroupWriter

    group = GroupWriter(events.open_writer(directory + "/s", "event"))
    made = [[events.event(c * 10_000 + n) for n in range(CLIENT_EVENTS)] for c in range(CLIENTS)]
    waits: list[list[float]] = [[] for _ in range(CLIENTS)]
    gate = threading.Barrier(CLIENTS + 1)

    def client(number: int) -> None:
        gate.wait()
        for event in made[number]:
            start = time.perf_counter()
            group.append(event)
            waits[number].append(time.perf_counter() - start)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    gate.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    group.close()
    ordered = sorted(wait for each in waits for wait in each)
    at = {name: ordered[int(len(ordered) * part)] * 1000 for name, part in _QUANTILES}
    return seconds, at


_QUANTILES = (("p50", 0.5), ("p99", 0.99))


if __name__ == "__main__":
    harness.main(bench)
