"""What capture costs: whole commands, an act by itself, a real build, beside other tracers.

A round of a command: untraced at both ends, then in random order each tracer (capture_peers.py),
each backend of ours by itself (`capture NAME`: bare_capture.py, no world and no trace), and as a
user runs it (`substrate run, NAME`). A ratio is taken within its round. It has everything in it,
start-up too; `start-up` is a line of its own for each tracer, and `µs` of an act are the slope
between two counts of it, less the untraced slope of the same round, so that start-up is apart
(bpftrace starts for seconds: there the small program times its acts, and start-up is the rest).

Before the rounds every tracer runs every command once, unpinned in time: a tracer that fails at
a command, or needs longer than TRIAL_S for it, is left out of it and says why; what it wrote down
is compared with the calls that the command is known to make (`recorded`). One of python-ptrace,
sandlock, reprozip, bpftrace and our `python` that took long is measured in every third or ninth
round only: it is out of question whether it is slower. All else is in every round. A tracer's peak of memory is taken over a small program that
does one act many times, so that it is the tracer's own.

`worst` lines are the largest median ratio over the commands, of all or of the serial ones.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import bare_capture
import capture_peers
import capture_workloads
import harness
from capture_peers import BACKENDS, STRACE_SAME, Tracer
from capture_workloads import Known, Micro, Workload
from harness import Context, Result, Sample, interleave, spawn

from substrate.telemetry.capture.backend import CaptureError

BENCH = "capture"
LEVEL = "files"
#: as a user runs it: those that `auto` would choose
WHOLE_SPAN = ("bpf", "hybrid")
UNTRACED = "untraced"
TRIAL_S = 10.0
#: a peer that took longer than so many seconds is taken in each so manieth round only; never what a
#: bar is about, ours and strace
SLOW = ((4.0, 9), (1.2, 3))
#: what is counted less often under a tracer that takes long
HEAVY_PART = 5
#: of capture_micro.c
INSIDE = "CAPTURE_MICRO_TIME"
BUILD_IN_WORLD = "substrate run, in a world"


@dataclass(frozen=True, slots=True)
class Subject:
    """A way of running a command. `run` times it once; `trial` does it once more, and gives what
    was recorded where it can be read (None: not), raising Left where it does not work."""

    name: str
    run: Callable[[Sequence[str], Mapping[str, str]], Sample]
    trial: Callable[[Sequence[str], Mapping[str, str]], Known | None]
    paths: bool = True
    heavy: bool = False
    slow_start: bool = False
    peak: Callable[[Sequence[str], Mapping[str, str]], int] | None = None


Cases = dict[str, Callable[[], Sample | None]]


class Left(Exception):
    """A tracer is left out of a command, for this reason."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of the run before the rounds. `recorded`: part of the known calls, 0 to 1."""

    seconds: float
    recorded: float | None

    def every(self, subject: Subject) -> int:
        if not (subject.heavy or subject.slow_start):
            return 1
        return next((rounds for limit, rounds in SLOW if self.seconds > limit), 1)


# --- where the product is plugged in


def ours(backend: str, level: str, argv: Sequence[str]) -> tuple[str, ...]:
    """The words with which a user has `argv` captured, without a world."""
    captured = ("--capture", level, "--capture-backend", backend)
    return (_program(), "run", "--no-world", *captured, "--", *argv)


def in_world(level: str | None, argv: Sequence[str]) -> tuple[str, ...]:
    """The whole span: a new world, capture (None: a version without it), trace and diff."""
    captured = ("--capture", level) if level is not None else ()
    return (_program(), "run", "--fresh", "--keep", *captured, "--", *argv)


def _program() -> str:
    return os.path.join(os.path.dirname(sys.executable), "substrate")


def _can_capture() -> bool:
    done = subprocess.run((_program(), "run", "--help"), check=True, capture_output=True, text=True)
    return "--capture-backend" in done.stdout


# --- the bench


def bench(context: Context) -> list[Result]:
    scratch = context.scratch
    os.environ["SUBSTRATE_HOME"] = os.path.join(scratch, "state")
    if "PYTHONDONTWRITEBYTECODE" in os.environ:
        del os.environ["PYTHONDONTWRITEBYTECODE"]
    os.mkdir(os.path.join(scratch, "made"))
    python = context.tools if _has_pytest(context.tools) else ""
    made = capture_workloads.make(
        os.path.join(scratch, "made"), pytest_python=python, only=tuple(context.only)
    )
    places = Places(scratch)
    subjects, absent = _subjects(context, places, made.micro)
    results = [_left(f"{name}", context, why) for name, why in absent.items()]
    results += [_left(f"{name}: all", context, why) for name, why in made.absent.items()]
    whole = Commands(context, places, subjects)
    for workload in made.workloads:
        results += whole.measure(workload)
    results += whole.worst()
    for micro in made.micros:
        results += _micro(context, places, subjects, micro)
    if made.build is not None and context.placement == "free":
        results += _build(context, places, subjects, made.build)
    return results


class Places:
    """Names for what runs write: each another, and none is removed before the end, for making
    files where some were removed lately is slow on ext4."""

    def __init__(self, scratch: str) -> None:
        self._top = os.path.join(scratch, "out")
        os.mkdir(self._top)
        self._number = 0

    def name(self) -> str:
        self._number += 1
        return os.path.join(self._top, f"{self._number:06d}")

    def directory(self) -> str:
        path = self.name()
        os.mkdir(path)
        return path


def _has_pytest(python: str) -> bool:
    if not python:
        return False
    words = (python, "-c", "import pytest")
    return subprocess.run(words, check=False, capture_output=True).returncode == 0


def same_calls() -> tuple[str, ...]:
    """What level `files` looks at on this machine: names as strace has them."""
    from substrate.telemetry.capture import calls

    return tuple(
        name
        for name in calls.CALLS
        if calls.number(name) is not None and calls.shape_of(name)[6] <= calls.FILES
    )


def _subjects(context: Context, places: Places, micro: str) -> tuple[list[Subject], dict[str, str]]:
    subjects: list[Subject] = []
    absent: dict[str, str] = {}
    chosen = tuple(context.backends)
    if context.peers:
        tracers, absent = capture_peers.found(
            same_calls(), python=context.tools, made=os.path.join(context.scratch, "made")
        )
        absent = {name: why for name, why in absent.items() if is_chosen(name, chosen)}
        subjects += [_of_tracer(t, places, micro) for t in tracers if is_chosen(t.name, chosen)]
    can_capture = _can_capture()
    for backend in (name for name in BACKENDS if is_chosen(name, chosen)):
        try:
            bare_capture.plug(backend, LEVEL).backend.close()
            subjects.append(_bare(backend))
        except bare_capture.NotHere as error:
            absent[backend] = str(error)
            continue
        if backend not in WHOLE_SPAN and backend not in chosen:
            continue
        if can_capture:
            subjects.append(_whole(backend, places, micro))
        else:
            absent[whole_name(backend)] = "`substrate run` has no --capture-backend"
    return subjects, absent


def is_chosen(name: str, chosen: Sequence[str]) -> bool:
    """`strace` chooses all its forms. Nothing chosen: everything."""
    return not chosen or name in chosen or name.partition(",")[0] in chosen


def bare_name(backend: str) -> str:
    return f"capture {backend}"


def whole_name(backend: str) -> str:
    return f"substrate run, {backend}"


def _of_tracer(tracer: Tracer, places: Places, micro: str) -> Subject:
    def run(argv: Sequence[str], env: Mapping[str, str]) -> Sample:
        words = tracer.wrap(tuple(argv), places.name())
        return spawn(words, env={**env, **tracer.env}, errors=False)

    def trial(argv: Sequence[str], env: Mapping[str, str]) -> Known | None:
        log = places.name()
        _within(TRIAL_S, tracer.wrap(tuple(argv), log), {**env, **tracer.env})
        return tracer.read(log) if tracer.read is not None else None

    def peak(argv: Sequence[str], env: Mapping[str, str]) -> int:
        words = tracer.wrap(tuple(argv), places.name())
        return _peak(micro, places, words, {**env, **tracer.env})

    return Subject(
        tracer.name,
        run,
        trial,
        paths=tracer.paths,
        heavy=tracer.heavy,
        slow_start=tracer.slow_start,
        peak=peak if micro else None,
    )


def _bare(backend: str) -> Subject:
    def make() -> bare_capture.Plugged:
        return bare_capture.plug(backend, LEVEL)

    def once(argv: Sequence[str], env: Mapping[str, str]) -> tuple[float, dict[str, float]]:
        done = bare_capture.run(make, argv, env)
        if done.status:
            raise harness.BenchFailed(f"{' '.join(argv)}: ended with {done.status}")
        counted = {"records": done.records, "bytes": done.size_bytes, "lost": done.lost}
        return done.seconds, {name: float(value) for name, value in counted.items()}

    def run(argv: Sequence[str], env: Mapping[str, str]) -> Sample:
        return harness.in_child(lambda: once(argv, env))

    def trial(argv: Sequence[str], env: Mapping[str, str]) -> Known | None:
        try:
            done = bare_capture.run(make, argv, env, keep=True)
        except (bare_capture.Failed, CaptureError, OSError) as error:
            raise Left(f"failed: {error}") from error
        if done.status:
            raise Left(f"the command ended with {done.status}")
        return bare_capture.known_calls(done.data)

    def peak(argv: Sequence[str], env: Mapping[str, str]) -> int:
        return run(argv, env).rss_kib

    return Subject(bare_name(backend), run, trial, heavy=backend == "python", peak=peak)


def _whole(backend: str, places: Places, micro: str) -> Subject:
    def run(argv: Sequence[str], env: Mapping[str, str]) -> Sample:
        return spawn(ours(backend, LEVEL, argv), env=env)

    def trial(argv: Sequence[str], env: Mapping[str, str]) -> Known | None:
        _within(TRIAL_S, ours(backend, LEVEL, argv), env)
        return None

    def peak(argv: Sequence[str], env: Mapping[str, str]) -> int:
        return _peak(micro, places, ours(backend, LEVEL, argv), env)

    return Subject(whole_name(backend), run, trial, peak=peak if micro else None)


def _peak(micro: str, places: Places, words: Sequence[str], env: Mapping[str, str]) -> int:
    report = places.name()
    _within(TRIAL_S, (micro, "peak", report, *words), env)
    with open(report, encoding="ascii") as file:
        return int(file.read())


def _within(seconds: float, words: Sequence[str], env: Mapping[str, str]) -> None:
    """Runs words that are not timed. Raises Left unless they end well and in time; what they
    started, in their process group, is ended then."""
    process = subprocess.Popen(
        words,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise Left(f"needs longer than {seconds:.0f} s") from None
    if process.returncode:
        lines = errors.decode("utf-8", "replace").strip().splitlines()
        why = next((line for line in lines if "rror" in line or "CRITICAL" in line), "")
        why = why or (lines[-1] if lines else "")
        raise Left(f"ended with {process.returncode}: {why[:160]}")


def _left(case: str, context: Context, why: str) -> Result:
    print(f"bench:   without {case}: {why}", file=sys.stderr, flush=True)
    return Result(BENCH, case, context.placement, "ms", (), note=f"left out: {why}")


def recorded_part(known: Known, seen: Known, *, paths: bool) -> float:
    """Which part of the known calls is among the seen. Without paths: by the kind alone, which
    another call of that kind can make up for."""
    if not known:
        return 1.0
    if paths:
        got = sum(min(count, seen[call]) for call, count in known.items())
    else:
        wanted: dict[str, int] = {}
        for (kind, _), count in known.items():
            wanted[kind] = wanted.get(kind, 0) + count
        got = sum(min(count, seen[kind, ""]) for kind, count in wanted.items())
    return got / known.total()


class Failures:
    """How often each subject failed in the rounds: others' tracers do now and then, and one of
    them must not end the bench. What failed gives no sample and is told of in a note."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def guard(self, name: str, run: Callable[[], Sample]) -> Callable[[], Sample | None]:
        def guarded() -> Sample | None:
            try:
                return run()
            except harness.BenchFailed as error:
                self.counts[name] += 1
                print(f"bench:   {name}: {error}", file=sys.stderr, flush=True)
                return None

        return guarded

    def note(self, name: str) -> tuple[str, ...]:
        count = self.counts[name]
        return (f"failed in {count} more runs",) if count else ()


def _try(subject: Subject, known: Known, argv: Sequence[str], env: Mapping[str, str]) -> Tried:
    begin = time.monotonic()
    seen = subject.trial(argv, env)
    seconds = time.monotonic() - begin
    part = None if seen is None else recorded_part(known, seen, paths=subject.paths)
    return Tried(seconds, part)


# --- whole commands


class Commands:
    """Measures commands one after the other, and keeps the ratios for the `worst` lines."""

    def __init__(self, context: Context, places: Places, subjects: Sequence[Subject]) -> None:
        self._context = context
        self._places = places
        self._subjects = subjects
        #: name of a subject -> [(workload, ratio to untraced, ratio to strace)]
        self._ratios: dict[str, list[tuple[Workload, float, float | None]]] = {}
        self._recorded: dict[str, list[tuple[str, float]]] = {}

    def measure(self, workload: Workload) -> list[Result]:
        context = self._context
        env = {**os.environ, **workload.env}

        def argv() -> tuple[str, ...]:
            return workload.argv(self._places.directory())

        cases: Cases = {UNTRACED: lambda: spawn(argv(), env=env)}
        failures = Failures()
        every: dict[str, int] = {}
        parts: dict[str, float | None] = {UNTRACED: None}
        results = []
        for subject in self._subjects:
            case = f"{workload.name}: {subject.name}"
            try:
                tried = _try(subject, workload.known, argv(), env)
            except Left as why:
                results.append(_left(case, context, str(why)))
                continue
            cases[subject.name] = failures.guard(subject.name, lambda s=subject: s.run(argv(), env))
            every[subject.name] = tried.every(subject)
            parts[subject.name] = tried.recorded
            if tried.recorded is not None:
                self._recorded.setdefault(subject.name, []).append((workload.name, tried.recorded))
        taken = interleave(
            cases, rounds=context.rounds, seed=context.seed, reference=UNTRACED, every=every
        )
        for name, samples in taken.items():
            if not samples:
                results.append(_left(f"{workload.name}: {name}", context, "failed in each round"))
                continue
            ratio = statistics.median(harness.ratios(samples, taken[UNTRACED]))
            against = None
            if STRACE_SAME in taken:
                each = harness.ratios(samples, taken[STRACE_SAME])
                against = statistics.median(each) if each else None
            self._ratios.setdefault(name, []).append((workload, ratio, against))
            results.append(
                Result(
                    BENCH,
                    f"{workload.name}: {name}",
                    context.placement,
                    "ms",
                    tuple(s.seconds * 1000 for s in samples),
                    ratio=1.0 if name == UNTRACED else ratio,
                    note="; ".join(
                        (*_notes(workload.known, parts[name], samples), *failures.note(name))
                    ),
                )
            )
        return results

    def worst(self) -> list[Result]:
        results = []
        for name, rows in self._ratios.items():
            if name == UNTRACED:
                continue
            results += self._worst("worst of all", name, [(w, r) for w, r, _ in rows])
            serial = [(w, r) for w, r, _ in rows if w.serial]
            results += self._worst("worst of serial", name, serial)
            if name != STRACE_SAME:
                against = [(w, r) for w, _, r in rows if r is not None]
                results += self._worst("worst against strace", name, against)
        for name, parts in self._recorded.items():
            least = min(parts, key=lambda row: row[1])
            results.append(
                Result(
                    BENCH,
                    f"recorded of known calls: {name}",
                    self._context.placement,
                    "%",
                    tuple(part * 100 for _, part in parts),
                    note=f"least: {least[1]:.1%} of {least[0]}; {len(parts)} commands",
                )
            )
        return results

    def _worst(self, what: str, name: str, rows: list[tuple[Workload, float]]) -> list[Result]:
        if not rows:
            return []
        workload, ratio = max(rows, key=lambda row: row[1])
        middle = statistics.median(ratio for _, ratio in rows)
        unit = "x strace" if what.endswith("strace") else "x untraced"
        note = f"{workload.name}; median of {len(rows)} commands {middle:.2f}"
        return [
            Result(BENCH, f"{what}: {name}", self._context.placement, unit, (ratio,), note=note)
        ]


def _notes(known: Known, part: float | None, samples: Sequence[Sample]) -> list[str]:
    found = []
    if part is not None and known:
        found.append(f"recorded {part:.1%} of {known.total():,} known calls")
    if samples and "records" in samples[0].more:
        records = statistics.median(s.more["records"] for s in samples)
        size_bytes = statistics.median(s.more["bytes"] for s in samples)
        found.append(f"{records:,.0f} records, {size_bytes / max(records, 1):.0f} bytes each")
        lost = sum(s.more["lost"] for s in samples)
        if lost:
            found.append(f"lost {lost:,.0f}")
    return found


# --- an act by itself


def overhead_us(
    traced: Mapping[int, float], untraced: Mapping[int, float], events: int
) -> tuple[float, ...]:
    """µs an event of each round in which both were taken, from their seconds an act."""
    both = sorted(traced.keys() & untraced.keys())
    return tuple((traced[n] - untraced[n]) / events * 1e6 for n in both)


def start_up_ms(low: Sequence[Sample], slope: Mapping[int, float], count: int) -> dict[int, float]:
    """Round -> ms that are there without any act: the low point, less its acts."""
    seconds = harness.by_round(low)
    return {n: (seconds[n] - slope[n] * count) * 1000 for n in sorted(slope.keys() & seconds)}


def _micro(
    context: Context, places: Places, subjects: Sequence[Subject], micro: Micro
) -> list[Result]:
    env = dict(os.environ)
    low, high = micro.low, micro.high
    words = {
        count: micro.argv(count, places.directory()) for count in (low, high, high // HEAVY_PART)
    }
    failures = Failures()
    cases: Cases = {
        UNTRACED: lambda: spawn(words[high], env=env),
        f"{UNTRACED}, low": lambda: spawn(words[low], env=env),
    }
    every: dict[str, int] = {}
    counts: dict[str, int] = {}
    notes: dict[str, list[str]] = {}
    peaks: dict[str, int] = {}
    results = []
    for subject in subjects:
        count = high // HEAVY_PART if subject.heavy else high
        known = micro.known(count)
        try:
            tried = _try(subject, known, words[count], env)
            if subject.peak is not None:
                peaks[subject.name] = subject.peak(words[count], env)
        except Left as why:
            results.append(_left(f"µs, {micro.name}: {subject.name}", context, str(why)))
            continue
        name = subject.name
        if subject.slow_start:
            inside = places.name()
            cases[name] = failures.guard(
                name,
                lambda s=subject, f=inside: _timed_inside(
                    f, lambda: s.run(words[high], {**env, INSIDE: f})
                ),
            )
        else:
            cases[name] = failures.guard(name, lambda s=subject, c=count: s.run(words[c], env))
            cases[f"{name}, low"] = failures.guard(name, lambda s=subject: s.run(words[low], env))
        every |= dict.fromkeys((name, f"{name}, low"), tried.every(subject))
        counts[name] = count
        notes[name] = _notes(known, tried.recorded, ())
    taken = interleave(
        cases, rounds=context.rounds, seed=context.seed, reference=UNTRACED, every=every
    )
    bare = harness.slopes(taken[f"{UNTRACED}, low"], taken[UNTRACED], low, high)
    bare_start = start_up_ms(taken[f"{UNTRACED}, low"], bare, low)
    results.append(
        Result(
            BENCH,
            f"µs, {micro.name}: {UNTRACED}",
            context.placement,
            "µs/act",
            tuple(seconds * 1e6 for seconds in bare.values()),
        )
    )
    for name, count in counts.items():
        samples = taken[name]
        if samples and "inside" in samples[0].more:
            slope = {s.round: s.more["inside"] / count for s in samples}
            start = start_up_ms(samples, slope, count)
        else:
            slope = harness.slopes(taken[f"{name}, low"], samples, low, count)
            start = start_up_ms(taken[f"{name}, low"], slope, low)
        results.append(
            Result(
                BENCH,
                f"µs, {micro.name}: {name}",
                context.placement,
                "µs/event",
                overhead_us(slope, bare, micro.events),
                rss_kib=peaks.get(name, 0),
                note="; ".join((*notes[name], *failures.note(name))),
            )
        )
        if micro.name == capture_workloads.MICROS[0]:
            values = tuple(start[n] - bare_start[n] for n in sorted(start.keys() & bare_start))
            results.append(Result(BENCH, f"start-up: {name}", context.placement, "ms", values))
    return results


def _timed_inside(report: str, run: Callable[[], Sample]) -> Sample:
    sample = run()
    with open(report, encoding="ascii") as file:
        return replace(sample, more={"inside": float(file.read())})


# --- the whole span


def _build(
    context: Context, places: Places, subjects: Sequence[Subject], build: Workload
) -> list[Result]:
    """A build of some seconds by `make -j2`, into a directory in the world's view."""
    env = dict(os.environ)
    work = places.directory()

    def argv() -> tuple[str, ...]:
        return build.argv(places.directory())

    level = LEVEL if _can_capture() else None
    world = f"{BUILD_IN_WORLD}, capture {level}" if level else f"{BUILD_IN_WORLD}, no capture yet"
    failures = Failures()
    cases: Cases = {UNTRACED: lambda: spawn(argv(), env=env)}
    cases[world] = failures.guard(world, lambda: spawn(in_world(level, argv()), env=env))
    if level:
        off = f"{BUILD_IN_WORLD}, capture off"
        cases[off] = failures.guard(off, lambda: spawn(in_world("off", argv()), env=env))
    for subject in subjects:
        if subject.name == STRACE_SAME or subject.name in map(bare_name, WHOLE_SPAN):
            cases[subject.name] = failures.guard(subject.name, lambda s=subject: s.run(argv(), env))
    before = os.getcwd()
    os.chdir(work)  # its own world is made for this directory, and goes on from there
    try:
        taken = interleave(cases, rounds=context.rounds, seed=context.seed, reference=UNTRACED)
    finally:
        os.chdir(before)
    results = []
    for name, samples in taken.items():
        if not samples:
            results.append(_left(f"{build.name}: {name}", context, "failed in each round"))
            continue
        each = harness.ratios(samples, taken[UNTRACED])
        results.append(
            Result(
                BENCH,
                f"{build.name}: {name}",
                context.placement,
                "ms",
                tuple(s.seconds * 1000 for s in samples),
                ratio=1.0 if name == UNTRACED else statistics.median(each),
                note="; ".join(failures.note(name)),
            )
        )
        if name != UNTRACED:
            results.append(
                Result(BENCH, f"{build.name}, ratio: {name}", context.placement, "x untraced", each)
            )
    return results


if __name__ == "__main__":
    harness.main(bench)
