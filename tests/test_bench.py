"""The harness of the benches: what it takes for a sample, a round, a ratio, a bar."""

from __future__ import annotations

import importlib
import os
import select
import signal
import struct
import subprocess
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[1] / "scripts/bench"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("harness")


@pytest.fixture
def capture(harness: ModuleType) -> ModuleType:
    return importlib.import_module("bench_capture")


def samples(harness: ModuleType, *taken: tuple[int, float]) -> list[object]:
    """(round, seconds)."""
    return [harness.Sample(seconds, round=number) for number, seconds in taken]


@pytest.fixture
def report(harness: ModuleType) -> ModuleType:
    return importlib.import_module("report")


def test_a_command_that_fails_gives_no_sample(harness: ModuleType) -> None:
    with pytest.raises(harness.BenchFailed):
        harness.spawn(("/bin/false",))


def test_a_child_that_raises_gives_no_sample(
    harness: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken() -> float:
        raise ValueError("not a number")

    with pytest.raises(harness.BenchFailed):
        harness.in_child(broken)
    assert "not a number" in capfd.readouterr().err


def test_a_child_times_itself_and_gives_other_numbers(harness: ModuleType) -> None:
    sample = harness.in_child(lambda: (1.5, {"part": 0.5}))
    assert (sample.seconds, sample.more) == (1.5, {"part": 0.5})
    assert sample.rss_kib > 0


def test_every_round_begins_and_ends_with_the_reference(harness: ModuleType) -> None:
    order: list[str] = []

    def case(name: str) -> object:
        def take() -> object:
            order.append(name)
            return harness.Sample(1.0)

        return take

    taken = harness.interleave(
        {name: case(name) for name in ("r", "a", "b", "c")}, rounds=20, seed=1, reference="r"
    )
    rounds = [order[i : i + 5] for i in range(0, len(order), 5)]
    assert len(rounds) == 21  # the first one warms
    assert all(r[0] == r[-1] == "r" and sorted(r[1:-1]) == ["a", "b", "c"] for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1
    assert [len(taken[name]) for name in "rabc"] == [40, 20, 20, 20]


def test_a_ratio_is_taken_within_its_round(harness: ModuleType) -> None:
    context = harness.Context("", "free", 2, 1, False, False)
    taken = {
        "r": samples(harness, (1, 1.0), (1, 3.0), (2, 10.0), (2, 10.0)),
        "a": samples(harness, (1, 4.0), (2, 20.0)),
    }
    ratios = {r.case: r.ratio for r in context.results("bench", taken, "r")}
    assert ratios == {"r": 1.0, "a": 2.0}


def test_ratios_are_of_rounds_in_which_both_were_taken(harness: ModuleType) -> None:
    seldom = samples(harness, (1, 4.0), (4, 9.0))
    often = samples(harness, (1, 2.0), (2, 100.0), (4, 3.0))
    assert harness.ratios(seldom, often) == (2.0, 3.0)
    assert harness.ratios(seldom, samples(harness, (2, 1.0))) == ()


def test_a_slope_has_no_start_up_in_it(harness: ModuleType) -> None:
    low = samples(harness, (1, 5.0 + 10 * 0.01), (2, 50.0 + 10 * 0.02))
    high = samples(harness, (1, 5.0 + 110 * 0.01), (2, 50.0 + 110 * 0.02), (3, 1.0))
    assert harness.slopes(low, high, 10, 110) == pytest.approx({1: 0.01, 2: 0.02})


def test_a_case_that_takes_long_is_taken_in_some_rounds(harness: ModuleType) -> None:
    taken = harness.interleave(
        {name: lambda: harness.Sample(1.0) for name in ("r", "often", "seldom")},
        rounds=9,
        seed=1,
        reference="r",
        every={"seldom": 3},
    )
    assert [s.round for s in taken["often"]] == list(range(1, 10))
    assert [s.round for s in taken["seldom"]] == [1, 4, 7]


def test_a_run_that_gave_none_is_no_sample(harness: ModuleType) -> None:
    taken = harness.interleave(
        {"r": lambda: harness.Sample(1.0), "a": lambda: None}, rounds=2, seed=1, reference="r"
    )
    assert taken["a"] == []


def test_pinning_ends_with_its_block(harness: ModuleType) -> None:
    before = os.sched_getaffinity(0)
    with harness.placed("one"):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_a_bend_upward_at_the_end_shows_in_the_exponent(harness: ModuleType) -> None:
    straight = [(10.0**n, 5 * 10.0**n) for n in range(1, 5)]
    assert harness.growth_exponent(straight) == pytest.approx(1.0)
    assert harness.growth_exponent([*straight[:-1], (1e4, 5e5)]) == pytest.approx(2.0)


def test_a_bar_without_its_result_is_not_met(report: ModuleType) -> None:
    bars = importlib.import_module("bars")
    assert {report.judge(bar, [])[2] for bar in bars.BARS} == {"not measured"}


@pytest.mark.parametrize(
    ("measured", "met"), [(45.0, "yes"), (45.1, "**no**")], ids=["at the bar", "above it"]
)
def test_a_bar_is_judged_by_the_median(
    harness: ModuleType, report: ModuleType, measured: float, met: str
) -> None:
    bars = importlib.import_module("bars")
    bar = bars.Bar(what="w", text="t", bench="b", case="c", at_most=45)
    result = harness.Result("b", "c", "free", "ms", (1.0, measured, 100.0))
    assert report.judge(bar, [result])[2] == met


def test_a_bar_against_a_peer_is_not_judged_without_it(
    harness: ModuleType, report: ModuleType
) -> None:
    bars = importlib.import_module("bars")
    bar = bars.Bar(what="w", text="t", bench="b", case="c", at_most_of="peer", plus=1.0)
    ours = harness.Result("b", "c", "free", "ms", (3.0,))
    peer = harness.Result("b", "peer", "free", "ms", (2.0,))
    assert report.judge(bar, [ours])[2].startswith("not judged")
    assert report.judge(bar, [ours, peer])[2] == "yes"


@pytest.mark.parametrize(
    ("pinned", "met"), [(0.9, "yes"), (1.1, "**no**")], ids=["met in both", "met in one"]
)
def test_a_bar_of_both_placements_needs_both(
    harness: ModuleType, report: ModuleType, pinned: float, met: str
) -> None:
    bars = importlib.import_module("bars")
    bar = bars.Bar(what="w", text="t", bench="b", case="c", at_most=1.0, both=True)
    free = harness.Result("b", "c", "free", "x strace", (0.5,))
    one = harness.Result("b", "c", "one", "x strace", (pinned,))
    assert report.judge(bar, [free])[2].startswith("not judged")
    assert report.judge(bar, [free, one])[2] == met


def test_what_was_left_out_is_shown_with_its_reason(
    harness: ModuleType, report: ModuleType
) -> None:
    left = harness.Result("b", "c: peer", "free", "ms", (), note="left out: no peer")
    run = report.Run(
        **dict.fromkeys(("command", "date", "version", "python", "load_before", "load_after"), ""),
        machine={},
        rounds=9,
        seed=1,
        peers={},
        results=[left],
        failed={},
        seconds=1.0,
    )
    for text in (report.render_terminal(run), report.render_docs(run, "")):
        (line,) = (line for line in text.splitlines() if "c: peer" in line)
        assert "left out: no peer" in line
        assert "–" in line
        assert "nan" not in line
    assert '"median": null' in report.render_json(run)
    bars = importlib.import_module("bars")
    bar = bars.Bar(what="w", text="t", bench="b", case="c: peer", at_most=1.0)
    assert report.judge(bar, [left])[2] == "not measured"


# --- capture


def test_an_event_costs_what_the_act_costs_more(capture: ModuleType) -> None:
    traced, untraced = {1: 22e-6, 2: 42e-6, 4: 1.0}, {1: 2e-6, 2: 2e-6, 3: 1.0}
    assert capture.overhead_us(traced, untraced, 2) == pytest.approx((10.0, 20.0))


def test_start_up_is_what_is_left_without_acts(harness: ModuleType, capture: ModuleType) -> None:
    low = samples(harness, (1, 0.030), (2, 0.1))
    assert capture.start_up_ms(low, {1: 0.001}, 10) == pytest.approx({1: 20.0})


def test_recorded_is_a_part_of_the_known_calls(capture: ModuleType) -> None:
    known = Counter({("open", "a"): 2, ("open", "b"): 1, ("exec", "c"): 1})
    seen = Counter({("open", "a"): 1, ("open", "b"): 7, ("open", "z"): 9})
    assert capture.recorded_part(known, seen, paths=True) == 0.5
    # without paths: three opens are known and seen, the exec is not
    assert capture.recorded_part(known, Counter({("open", ""): 9}), paths=False) == 0.75


def test_the_worst_command_is_told_with_its_name(harness: ModuleType, capture: ModuleType) -> None:
    workloads = importlib.import_module("capture_workloads")
    context = harness.Context("", "free", 9, 1, True, False)
    commands = capture.Commands(context, None, ())
    quick, slow, wide = (
        workloads.Workload(name, lambda _: (), Counter(), serial=serial)
        for name, serial in (("quick", True), ("slow", True), ("wide", False))
    )
    commands._ratios["strace, same calls"] = [(quick, 2.0, 1.0), (slow, 4.0, 1.0)]
    commands._ratios["ours"] = [(quick, 1.1, 0.6), (slow, 1.4, 0.35), (wide, 3.0, None)]
    worst = {r.case: (r.median, r.note.partition(";")[0]) for r in commands.worst()}
    assert worst["worst of all: ours"] == (3.0, "wide")
    assert worst["worst of serial: ours"] == (1.4, "slow")
    assert worst["worst against strace: ours"] == (0.6, "quick")
    assert "worst against strace: strace, same calls" not in worst


def test_a_peer_that_takes_long_is_run_less_often_and_strace_never(capture: ModuleType) -> None:
    def subject(*, heavy: bool) -> object:
        return capture.Subject("a", lambda *_: None, lambda *_: None, heavy=heavy)

    tried = [capture.Tried(seconds, None) for seconds in (1.0, 2.0, 5.0)]
    assert [t.every(subject(heavy=True)) for t in tried] == [1, 3, 9]
    assert [t.every(subject(heavy=False)) for t in tried] == [1, 1, 1]


def test_a_tracer_that_hangs_is_left_out_and_ended(
    monkeypatch: pytest.MonkeyPatch, capture: ModuleType
) -> None:
    with pytest.raises(capture.Left, match="longer than"):
        capture._within(0.2, ("/bin/sh", "-c", "sleep 60 & wait"), dict(os.environ))
    with pytest.raises(capture.Left, match="ended with 3: an error of it"):
        capture._within(5.0, ("/bin/sh", "-c", "echo an error of it >&2; exit 3"), {})


def test_what_strace_and_python_ptrace_write_is_read(harness: ModuleType) -> None:
    peers = importlib.import_module("capture_peers")
    lines = [
        '12 openat(AT_FDCWD, "/a/b.txt", O_RDONLY|O_CLOEXEC) = 3',
        '12 openat(3, "c.txt", O_RDONLY <unfinished ...>',
        "12 <... openat resumed>) = 4",
        '13 openat(AT_FDCWD, "/nothing", O_RDONLY) = -1 ENOENT (No such file or directory)',
        '13 execve("/bin/true", ["/bin/true", "openat("], 0x7ffd /* 3 vars */) = 0',
        "12 +++ exited with 0 +++",
        "unlink('/a/d') = 0",
        "[9] openat(AT_FDCWD, '/gone', O_RDONLY) = -2 ENOENT (No such file)",
        "[9] openat(AT_FDCWD, 139912425107633, O_RDONLY) = 3",
    ]
    expected = {("open", "b.txt"): 1, ("open", "c.txt"): 1, ("exec", "true"): 1, ("unlink", "d"): 1}
    assert peers.parse_calls(lines) == expected


def test_what_bpftrace_writes_is_read(harness: ModuleType) -> None:
    peers = importlib.import_module("capture_peers")
    lines = ["Attaching 9 probes...", "", "exec 7 /bin/a b", "openat 7 /x/with space 3"]
    lines += ["openat 7 /gone -2", "unlinkat 7 y 0"]
    expected = {("exec", "a b"): 1, ("open", "with space"): 1, ("unlink", "y"): 1}
    assert peers.parse_bpftrace(lines) == expected


def test_the_words_of_ours_are_made_in_one_place(capture: ModuleType) -> None:
    words = capture.ours("hybrid", "files", ("a", "-b"))
    assert words[1:] == (
        *(
            "run",
            "--no-world",
            "--capture",
            "files",
            "--capture-backend",
            "hybrid",
            "--",
            "a",
            "-b",
        ),
    )


class _NoBackend:
    """Captures nothing; it finishes when the command's output of its end is there."""

    name = "none"

    def attach(self, pid: int, listener: int | None) -> None:
        self.listener = listener
        self._pidfd = os.pidfd_open(pid)
        self.closed = 0

    def fileno(self) -> int:
        return self._pidfd

    def soft_fileno(self) -> int:
        return self._pidfd

    def drain(self) -> bytes:
        return b""

    def finished(self) -> bool:
        return bool(select.select([self._pidfd], [], [], 0)[0])

    def lost(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        self.closed += 1
        for fd in (self._pidfd, self.listener):
            if fd is not None:
                os.close(fd)


#: BPF_RET | BPF_K of SECCOMP_RET_ALLOW
_ALLOW = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)


@pytest.mark.parametrize("flags", [0, 1 << 3], ids=["without a listener", "with one"])
def test_a_bare_command_installs_its_filters_and_hands_over(
    harness: ModuleType, flags: int
) -> None:
    bare = importlib.import_module("bare_capture")
    backend = _NoBackend()
    script = "grep -q '^Seccomp:.2' /proc/self/status && grep -q 'NoNewPrivs:.1' /proc/self/status"
    done = bare.run(
        lambda: bare.Plugged(backend, (bare.Program(_ALLOW, flags),)),
        ("/bin/sh", "-c", f"{script} && exit 7"),
        dict(os.environ),
    )
    assert (done.status, done.records, done.lost) == (7, 0, 0)
    assert (backend.listener is not None) == bool(flags)
    assert backend.closed == 1


def test_a_bare_command_whose_backend_fails_is_ended(harness: ModuleType) -> None:
    bare = importlib.import_module("bare_capture")
    pids = []

    class Broken(_NoBackend):
        def attach(self, pid: int, listener: int | None) -> None:
            super().attach(pid, listener)
            pids.append(pid)
            raise OSError("no")

    with pytest.raises(OSError, match="no"):
        bare.run(lambda: bare.Plugged(Broken()), ("/bin/true",), {})
    assert not os.path.exists(f"/proc/{pids[0]}")


def test_known_calls_of_records_are_counted(harness: ModuleType) -> None:
    from substrate.telemetry.capture import calls, records

    bare = importlib.import_module("bare_capture")
    openat = calls.number("openat")
    assert openat is not None

    def call(path: bytes, result: int, flags: int = 0) -> bytes:
        items = ((records.PATH, path),)
        return records.make_record(
            records.CALL, tid=1, nr=openat, result=result, flags=flags, items=items
        )

    data = call(b"/a/b", 3) + call(b"/a/gone", -2) + call(b"c", -2, records.UNOBSERVED)
    data += records.make_record(records.EXEC, tid=1, items=((records.PATH, b"/bin/true"),))
    expected = {("open", "b"): 1, ("open", "c"): 1, ("exec", "true"): 1}
    assert bare.known_calls(data) == expected


def test_the_floor_leaves_a_command_alone(tmp_path: Path, harness: ModuleType) -> None:
    """Whatever it stops goes on, and ends as it would by itself."""
    peers = importlib.import_module("capture_peers")
    floor = peers._floor(str(tmp_path))
    script = f"cat /etc/hostname; mkdir {tmp_path}/d; (kill -TERM $$) ; exit 4"
    done = subprocess.run(floor.wrap(("/bin/sh", "-c", script), ""), check=False, timeout=30)
    assert done.returncode == 128 + signal.SIGTERM
    assert (tmp_path / "d").is_dir()
