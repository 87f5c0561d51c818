"""How everything here is timed: real processes, interleaved rounds, medians.

What it is: `spawn` and `in_child`, which time one sample; `interleave`, which takes samples
of many cases; the values that come out of it. What it is not: it knows no bench and no bar.

Rules (benchmarks.md): random order inside a round, an untraced reference at both ends of
each round, at least 9 rounds, ratios within one run. A child is timed by the clock around
posix_spawn(3) and wait4(2), never by `subprocess` (whose timeouts poll). Peak memory is
ru_maxrss of the child; it is the highest of the child and of all that it waited for.
"""

from __future__ import annotations

import gc
import json
import math
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

MIN_ROUNDS = 9


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one case. `seconds` of wall clock, `rss_kib` peak (0: not taken).

    `more`: other numbers of the same run, by name; they become results of their own. `round`: in
    which it was taken, from 1; `interleave` says so."""

    seconds: float
    rss_kib: int = 0
    more: Mapping[str, float] = field(default_factory=dict)
    round: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """The samples of one case in one placement, in `unit`. Without any (`values` is empty) it
    was not taken, and `note` says why."""

    bench: str
    case: str
    placement: str
    unit: str
    values: tuple[float, ...]
    ratio: float | None = None  # median over rounds of sample / reference of that round
    rss_kib: int = 0
    note: str = ""

    @property
    def median(self) -> float:
        """NaN where nothing was taken."""
        return statistics.median(self.values) if self.values else math.nan

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a part of the median."""
        if len(self.values) < 4 or not self.median:
            return 0.0
        low, _, high = statistics.quantiles(self.values, n=4)
        return (high - low) / 2 / abs(self.median)


@dataclass(frozen=True, slots=True)
class Context:
    """What a bench is given. `scratch`: a directory of its own on a real disk.

    `only`, `backends`: of the capture bench, which workloads, and which backends and peers
    (empty: all).
    `tools`: the Python of a venv of programs that are not ours ("": none)."""

    scratch: str
    placement: str
    rounds: int
    seed: int
    peers: bool
    large: bool
    only: Sequence[str] = ()
    backends: Sequence[str] = ()
    tools: str = ""

    def results(
        self, bench: str, taken: Mapping[str, Sequence[Sample]], reference: str | None
    ) -> list[Result]:
        """Whole runs in milliseconds, with their ratio to the reference."""
        found = []
        for case, samples in taken.items():
            found.append(
                Result(
                    bench,
                    case,
                    self.placement,
                    "ms",
                    tuple(s.seconds * 1000 for s in samples),
                    ratio=_ratio(samples, taken[reference]) if reference else None,
                    rss_kib=max(s.rss_kib for s in samples),
                )
            )
        return found


def by_round(samples: Sequence[Sample]) -> dict[int, float]:
    """Round -> seconds; their mean where a round has two, as a reference has."""
    taken: dict[int, list[float]] = {}
    for sample in samples:
        taken.setdefault(sample.round, []).append(sample.seconds)
    return {number: statistics.fmean(seconds) for number, seconds in taken.items()}


def ratios(samples: Sequence[Sample], reference: Sequence[Sample]) -> tuple[float, ...]:
    """Sample / reference of the same round, for each round in which both were taken."""
    ours, theirs = by_round(samples), by_round(reference)
    return tuple(ours[n] / theirs[n] for n in sorted(ours.keys() & theirs.keys()))


def slopes(
    low: Sequence[Sample], high: Sequence[Sample], low_count: int, high_count: int
) -> dict[int, float]:
    """Round -> seconds for each further thing that is done: what a start costs is not in it."""
    first, last = by_round(low), by_round(high)
    return {
        n: (last[n] - first[n]) / (high_count - low_count)
        for n in sorted(first.keys() & last.keys())
    }


def _ratio(samples: Sequence[Sample], reference: Sequence[Sample]) -> float:
    return 1.0 if samples is reference else statistics.median(ratios(samples, reference))


# --- samples


class BenchFailed(Exception):
    """A case did not do what it is timed for; its number would mean nothing."""


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    quiet: bool = True,
    errors: bool = True,
    status: int = 0,
) -> Sample:
    """Runs a command and times it from before its spawn to after its wait.

    Raises BenchFailed unless it ends with `status`. The current directory is ours. `quiet`: its
    output goes nowhere; its errors too without `errors`."""
    actions: list[Any] = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)]
    if quiet:
        actions.append((os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0))
    if not errors:
        actions.append((os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0))
    environ = dict(os.environ if env is None else env)
    start = time.perf_counter()
    pid = os.posix_spawnp(argv[0], list(argv), environ, file_actions=actions)
    _, ended, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(ended) != status:
        raise BenchFailed(f"{' '.join(argv)}: ended with {os.waitstatus_to_exitcode(ended)}")
    return Sample(seconds, _own_peak(usage.ru_maxrss))


def _own_peak(rss_kib: int) -> int:
    """A child's peak, 0 where it is not known: a spawned child starts with the peak of the
    process that spawned it (exec in Linux keeps the mark of the memory that it leaves)."""
    return rss_kib if rss_kib > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss else 0


def in_child(work: Callable[[], float | tuple[float, dict[str, float]]]) -> Sample:
    """Runs `work` in a forked child and takes the seconds that it returns (it times itself,
    so that loading and warming are outside), with other numbers if it gives some.

    Each sample has fresh memory, and what one case imports is not there for another."""
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read_end)
            gc.collect()
            given = work()
            seconds, more = given if isinstance(given, tuple) else (given, {})
            os.write(write_end, json.dumps([seconds, more]).encode())
            status = 0
        except BaseException as error:
            print(f"bench: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            raise
        finally:
            os._exit(status)
    os.close(write_end)
    with open(read_end, "rb") as file:
        data = file.read()
    _, ended, usage = os.wait4(pid, 0)
    if ended or not data:
        raise BenchFailed(f"a child ended with {os.waitstatus_to_exitcode(ended)}")
    seconds, more = json.loads(data)
    return Sample(seconds, usage.ru_maxrss, more)


def interleave(
    cases: Mapping[str, Callable[[], Sample | None]],
    *,
    rounds: int,
    seed: int,
    reference: str | None = None,
    every: Mapping[str, int] | None = None,
) -> dict[str, list[Sample]]:
    """Samples of every case: one a round, in random order; two of the reference, at both ends.

    One round before them warms caches and is thrown away. `every`: a case that takes long is
    taken in the first of each so many rounds only, and not before them. None is no sample."""
    order = random.Random(seed)
    names = [name for name in cases if name != reference]
    taken: dict[str, list[Sample]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        order.shuffle(names)
        ends = [reference] if reference is not None else []
        due = [name for name in names if is_due(number, (every or {}).get(name, 1))]
        for name in [*ends, *due, *ends]:
            sample = cases[name]()
            if number and sample is not None:
                taken[name].append(replace(sample, round=number))
    return taken


def is_due(number: int, step: int) -> bool:
    """Whether a case of each `step`-th round is taken in round `number` (0: the warming one)."""
    return step == 1 or (number > 0 and (number - 1) % step == 0)


# --- placement


@contextmanager
def placed(placement: str) -> Iterator[None]:
    """`free`: wherever the scheduler likes; `one`: this process and its children on one CPU."""
    allowed = os.sched_getaffinity(0)
    if placement == "one":
        os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def growth_exponent(points: Sequence[tuple[float, float]]) -> float:
    """b of y ~ x^b; 1.0 is linear. The larger of two: least squares of the logarithms over all
    points, and the last two points alone, where a bend upward would begin."""
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    mean_x, mean_y = statistics.fmean(xs), statistics.fmean(ys)
    over = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    whole = over / sum((x - mean_x) ** 2 for x in xs)
    return max(whole, (ys[-1] - ys[-2]) / (xs[-1] - xs[-2]))


# --- a bench is a script of its own


def main(bench: Callable[[Context], list[Result]]) -> None:
    """Runs a bench as a process: context as one JSON argument, results as JSON lines."""
    context = Context(**json.loads(sys.argv[1]))
    with placed(context.placement):
        for result in bench(context):
            plain = {name: getattr(result, name) for name in Result.__slots__}
            print(json.dumps(plain), flush=True)
