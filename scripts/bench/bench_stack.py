"""What is done to a stack: undo, snapshot, rollback, fork, merging, and commands on deep ones.

Whole calls of the installed command, with Python's start and the loading of click in each; `status`
stands beside them as the least that a verb costs. Merging is the product's own step, timed
alone: thirty layers of a hundred files each. Deep stacks: medians of whole `-c` runs after so many
commands that changed a file, each of which has a layer of its own.
"""

from __future__ import annotations

import os
import sys
import time

from substrate.world.handle import Zygote

ZYGOTE = Zygote()

import harness  # noqa: E402
import worlds  # noqa: E402
from harness import Context, Result, Sample, in_child, interleave  # noqa: E402

DEPTHS = (1, 10, 100, 300)
FILES = 100


def bench(context: Context) -> list[Result]:
    return [*_verbs(context), _merging(context), *_deep(context)]


class _Place:
    """A workspace and a home; whole calls there."""

    def __init__(self, context: Context, name: str) -> None:
        self.work = os.path.join(context.scratch, name)
        os.makedirs(self.work)
        self.env = {**os.environ, "SUBSTRATE_HOME": os.path.join(context.scratch, f"{name}-home")}
        self.program = os.path.join(os.path.dirname(sys.executable), "substrate")

    def call(self, *words: str) -> Sample:
        before = os.getcwd()
        os.chdir(self.work)
        try:
            return harness.spawn((self.program, *words), env=self.env)
        finally:
            os.chdir(before)

    def change(self, number: int) -> Sample:
        return self.call("--quiet", "--keep", "-c", f"echo {number} > file{number % 50}")


def _verbs(context: Context) -> list[Result]:
    place = _Place(context, "verbs")
    for number in range(10):
        place.change(number)
    names = iter(range(1_000_000))

    def undo() -> Sample:
        place.change(next(names))
        return place.call("undo", "--yes")

    def rollback() -> Sample:
        name = f"r{next(names)}"
        place.call("snapshot", name)
        place.change(next(names))
        return place.call("rollback", name, "--yes")

    taken = interleave(
        {
            "substrate status": lambda: place.call("status"),
            "substrate undo": undo,
            "substrate snapshot": lambda: place.call("snapshot", f"s{next(names)}"),
            "substrate rollback": rollback,
            "substrate world fork": lambda: place.call("world", "fork"),
            "substrate diff --stat": lambda: place.call("diff", "--stat"),
        },
        rounds=context.rounds,
        seed=context.seed,
        reference="substrate status",
    )
    return context.results("stack", taken, "substrate status")


def _merging(context: Context) -> Result:
    made = worlds.WorldBench(os.path.join(context.scratch, "merging"), ZYGOTE)
    script = f"mkdir d$0 && cd d$0 && for n in $(seq {FILES}); do echo $0 > f$n; done"
    for number in range(30):
        made.in_layer(("/bin/sh", "-c", script, str(number)))
    merge = worlds.squash.Merge(numbers=made.stack.numbers, level=1)

    def once() -> float:
        begin = time.perf_counter()
        worlds.squash.squash(made.stack, merge)
        return time.perf_counter() - begin

    samples = [in_child(once) for _ in range(context.rounds + 1)][1:]
    entries = 30 * (FILES + 1)
    return Result(
        "stack",
        f"merging 30 layers of {FILES} files",
        context.placement,
        "µs/entry",
        tuple(s.seconds * 1e6 / entries for s in samples),
        rss_kib=max(s.rss_kib for s in samples),
    )


def _deep(context: Context) -> list[Result]:
    place = _Place(context, "deep")
    results, points, number = [], [], 0
    for depth in DEPTHS:
        while number < depth:
            place.change(number)
            number += 1
        samples = []
        for _ in range(context.rounds):
            samples.append(place.change(number))
            number += 1
        result = Result(
            "stack",
            f"substrate -c on {depth} layers",
            context.placement,
            "ms",
            tuple(s.seconds * 1e3 for s in samples),
            rss_kib=max(s.rss_kib for s in samples),
        )
        results.append(result)
        points.append((float(depth), result.median))
    exponent = harness.growth_exponent(points)
    case = f"substrate -c, layers: {DEPTHS[0]} to {DEPTHS[-1]}"
    return [*results, Result("stack", case, context.placement, "exponent", (exponent,))]


if __name__ == "__main__":
    harness.main(bench)
    ZYGOTE.close()
