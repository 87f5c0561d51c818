"""How cost grows: events 10^3..10^6, layers 1..500, processes 1..1000 in a tree.

(Entries of a layer are in bench_diff.) Each has a line per size and the exponent
b of cost ~ n^b; 1 is linear (harness.growth_exponent).
"""

from __future__ import annotations

import os
import shutil
import time

from substrate.world.handle import Zygote

ZYGOTE = Zygote()

import events  # noqa: E402
import harness  # noqa: E402
import trees  # noqa: E402
import worlds  # noqa: E402
from harness import Context, Result, Sample, in_child, interleave  # noqa: E402

EVENTS = (1_000, 10_000, 100_000, 1_000_000)
LAYERS = (1, 3, 10, 30, 100, 300, 500)
PROCESSES = (1, 10, 100, 1_000)
PYTHON = "/usr/bin/python3"


def bench(context: Context) -> list[Result]:
    results = _events(context)
    results += _layers(context)
    return results + _processes(context)


def _lines(
    context: Context, what: str, unit: str, costs: dict[int, list[Sample]], *, per_item: bool
) -> list[Result]:
    results = []
    points = []
    for count, samples in costs.items():
        scale = 1e6 / count if per_item else 1e3
        result = Result(
            "growth",
            f"{what}, {count}",
            context.placement,
            unit,
            tuple(s.seconds * scale for s in samples),
            rss_kib=max(s.rss_kib for s in samples),
        )
        results.append(result)
        points.append((float(count), result.median / scale))
    sizes = list(costs)
    results.append(
        Result(
            "growth",
            f"{what}: {sizes[0]} to {sizes[-1]}",
            context.placement,
            "exponent",
            (harness.growth_exponent(points),),
        )
    )
    return results


def _events(context: Context) -> list[Result]:
    """Appending without a sync: the chain itself. Few samples: the largest takes seconds."""
    sizes = EVENTS if context.placement == "free" else EVENTS[:-1]

    def append(count: int) -> Sample:
        path = os.path.join(context.scratch, "growth-trace")

        def work() -> float:
            start = time.perf_counter()
            events.write_trace(path, count)
            return time.perf_counter() - start

        try:
            return in_child(work)
        finally:
            shutil.rmtree(path)

    costs = {count: [append(count) for _ in range(1 if count > 100_000 else 3)] for count in sizes}
    return _lines(context, "append, events", "µs/event", costs, per_item=True)


def _layers(context: Context) -> list[Result]:
    """World start, a command, and its end, on a stack of so many layers, one file in each;
    merged as runs would have merged it."""
    made = worlds.WorldBench(os.path.join(context.scratch, "layers"), ZYGOTE)
    cwd = os.fsencode(made.work)
    costs: dict[int, list[Sample]] = {}

    def start() -> Sample:
        begin = time.perf_counter()
        number = made.cut()
        world = made.start(made.spec())
        worlds.run(world, ("/bin/true",), cwd)
        made.end(world)
        seconds = time.perf_counter() - begin
        made.drop(number)
        return Sample(seconds)

    for wanted in LAYERS:
        while len(made.stack.layers) + 1 < wanted:
            number = len(made.stack.layers)
            made.in_layer(("/bin/sh", "-c", f"echo {number} > file{number}"))
            made.make_shallow()
        costs[wanted] = [start() for _ in range(context.rounds + 1)][1:]
    return _lines(context, "world start, layers", "ms", costs, per_item=False)


def _processes(context: Context) -> list[Result]:
    """Processes that all live at once, in a world and on the host."""
    made = worlds.WorldBench(os.path.join(context.scratch, "processes"), ZYGOTE)
    script = os.path.join(made.work, "trees.py")
    shutil.copy(trees.__file__, script)
    number = made.cut()
    world = made.start(made.spec())
    results: list[Result] = []
    try:
        for where in ("host", "world"):
            costs: dict[int, list[Sample]] = {}
            for count in PROCESSES:
                argv = (PYTHON, "-I", script, "fork", made.work, str(count), "/dev/null")

                def once(argv: tuple[str, ...] = argv, where: str = where) -> Sample:
                    begin = time.perf_counter()
                    if where == "host":
                        return harness.spawn(argv)
                    status = worlds.run(world, argv, os.fsencode(made.work))
                    if status:
                        raise harness.BenchFailed(f"the tree of processes ended with {status}")
                    return Sample(time.perf_counter() - begin)

                costs[count] = interleave(
                    {"tree": once}, rounds=min(context.rounds, 5), seed=context.seed
                )["tree"]
            results += _lines(context, f"processes in the {where}", "ms", costs, per_item=False)
    finally:
        made.end(world)
        made.drop(number)
    return results


if __name__ == "__main__":
    harness.main(bench)
    ZYGOTE.close()
