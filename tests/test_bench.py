"""The harness of the benches: what it takes for a sample, a round, a ratio, a bar."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[1] / "scripts/bench"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("harness")


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
    sample = harness.Sample
    taken = {
        "r": [sample(1.0), sample(3.0), sample(10.0), sample(10.0)],
        "a": [sample(4.0), sample(20.0)],
    }
    ratios = {r.case: r.ratio for r in context.results("bench", taken, "r")}
    assert ratios["a"] == 2.0


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
