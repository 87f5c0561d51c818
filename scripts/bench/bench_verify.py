"""Reading traces back: the standalone verifier (full, fast) and the accelerated reader.

Start-up and slope apart: each is run on a small and on a large trace, and events a second are
of the difference. Peak memory is taken at three sizes (and at 10 GB with --large): it must
not grow. The verifier runs as an auditor runs it: one file, its own process.
"""

from __future__ import annotations

import os
import shutil
import sys
import time

import events
import harness
from harness import Context, Result, Sample, in_child, interleave, spawn

SMALL, LARGE, HUGE = 1_000, 50_000, 1_000_000
#: lines of 256 records each, which is what capture writes most
BATCHES = 2_000
TEN_GB = 10 * 10**9


def bench(context: Context) -> list[Result]:
    from substrate.telemetry import verifier

    file = os.path.join(context.scratch, "verifier.py")
    shutil.copy(verifier.__file__, file)
    python = sys.executable
    paths, sizes = {}, {}
    for count in (SMALL, LARGE):
        paths[count] = os.path.join(context.scratch, f"trace-{count}")
        sizes[count] = events.write_trace(paths[count], count)

    def standalone(count: int, *flags: str) -> Sample:
        return spawn((python, "-I", file, *flags, paths[count]))

    cases = {
        f"{name}, {count} events": lambda c=count, f=flags: standalone(c, *f)
        for name, flags in (("full", ()), ("fast", ("--fast",)))
        for count in (SMALL, LARGE)
    }
    for count, path in paths.items():
        cases[f"accelerated, {count} events"] = lambda p=path, c=count: in_child(
            lambda: _accelerated(p, c)
        )
    batches = os.path.join(context.scratch, "trace-batches")
    batch_bytes = events.write_trace(batches, BATCHES, events.batch, 10)
    cases["fast, batches"] = lambda: spawn((python, "-I", file, "--fast", batches))
    taken = interleave(cases, rounds=context.rounds, seed=context.seed)
    results = []
    for name in ("full", "fast", "accelerated"):
        small, large = taken[f"{name}, {SMALL} events"], taken[f"{name}, {LARGE} events"]
        slopes = [b.seconds - a.seconds for a, b in zip(small, large, strict=True)]
        rss = max(s.rss_kib for s in large)
        results.append(
            Result(
                "verify",
                name,
                context.placement,
                "events/s",
                tuple((LARGE - SMALL) / s for s in slopes),
                rss_kib=rss,
                note=f"{sizes[LARGE] / LARGE:.0f} bytes an event",
            )
        )
        results.append(
            Result(
                "verify",
                f"{name}, bytes",
                context.placement,
                "GB/s",
                tuple((sizes[LARGE] - sizes[SMALL]) / s / 1e9 for s in slopes),
            )
        )
        if name != "accelerated":
            results.append(
                Result(
                    "verify",
                    f"{name}, start-up ({SMALL} events)",
                    context.placement,
                    "ms",
                    tuple(s.seconds * 1000 for s in small),
                    rss_kib=max(s.rss_kib for s in small),
                )
            )
    pairs = zip(taken["fast, batches"], taken[f"fast, {SMALL} events"], strict=True)
    results.append(
        Result(
            "verify",
            "fast, bytes of file_batch lines",
            context.placement,
            "GB/s",
            tuple(batch_bytes / (b.seconds - a.seconds) / 1e9 for b, a in pairs),
            note=f"{batch_bytes / BATCHES / 1000:.0f} kB an event, less the start-up of {SMALL} small",
        )
    )
    if context.placement == "free":
        results += _memory(context, python, file)
    return results


def _memory(context: Context, python: str, file: str) -> list[Result]:
    """Peak memory once at each size; time too, but of one run only."""
    results = []
    wanted = [("10^6 events", HUGE)] + ([("10 GB", -1)] if context.large else [])
    for label, count in wanted:
        path = os.path.join(context.scratch, "huge")
        if count > 0:
            size = events.write_trace(path, count)
        else:
            count, size = _write_until(path, TEN_GB)
        for name, flags in (("full", ()), ("fast", ("--fast",))):
            sample = spawn((python, "-I", file, *flags, path))
            results.append(
                Result(
                    "verify",
                    f"{name}, {label}",
                    context.placement,
                    "events/s",
                    (count / sample.seconds,),
                    rss_kib=sample.rss_kib,
                    note=f"one run, {size / 1e9:.2f} GB",
                )
            )
        shutil.rmtree(path)
    return results


def _write_until(path: str, size: int) -> tuple[int, int]:
    from substrate.telemetry.trace.canonical import accelerate

    accelerate()
    writer = events.open_writer(path, "none")
    count = 0
    while writer.position.size < size:
        writer.append(events.event(n) for n in range(count, count + 1000))
        count += 1000
    writer.close()
    return count, os.stat(os.path.join(path, "trace.jsonl")).st_size


def _accelerated(path: str, count: int) -> float:
    """The library's reader, orjson loaded."""
    from substrate.telemetry.trace import reader
    from substrate.telemetry.trace.canonical import accelerate

    accelerate()
    start = time.perf_counter()
    verdict = reader.verify(path)
    seconds = time.perf_counter() - start
    if not verdict.ok or verdict.events != count:
        raise harness.BenchFailed(f"{verdict.events} of {count} events were accepted")
    return seconds


if __name__ == "__main__":
    harness.main(bench)
