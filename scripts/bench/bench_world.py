"""World start and warm entry, without a supervisor and without a record.

A world here is everything that `substrate -c` gives (overlays of every writable mount, own
/dev, /proc, /sys, /run, hidden paths, filters), started by a warm zygote, with `true` in it.
`whole life` goes on until every process is dead and the cgroups are removed, as waiting for
bwrap does. Its parts: `plan` reads the host (mounts, accounts, sockets, cgroups) and makes the
layer, `start` is the zygote's work until the world is ready, then the command, then the end.
bwrap and unshare get no overlay and no filter: they do less.
"""

from __future__ import annotations

import os
import shutil
import time

from substrate.world.handle import Zygote

ZYGOTE = Zygote()  # before anything large is imported

import harness  # noqa: E402
import worlds  # noqa: E402
from harness import Context, Result, Sample, interleave, spawn  # noqa: E402

TRUE = "/bin/true"
BWRAP = ("bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev")
BWRAP += ("--proc", "/proc", "--tmpfs", "/run", "--tmpfs", "/tmp")


def bench(context: Context) -> list[Result]:
    made = worlds.WorldBench(context.scratch, ZYGOTE)
    cwd = os.fsencode(made.work)

    def life(*, limited: bool) -> Sample:
        start = time.perf_counter()
        number = made.cut()
        groups = made.groups(limited=limited)
        spec = made.spec(groups)
        planned = time.perf_counter()
        world = made.start(spec)
        ready = time.perf_counter()
        worlds.run(world, (TRUE,), cwd)
        exited = time.perf_counter()
        made.end(world)
        gone = time.perf_counter()
        made.drop(number)
        return Sample(
            gone - start,
            more={
                "plan": planned - start,
                "start": ready - planned,
                "command": exited - ready,
                "end": gone - exited,
            },
        )

    def warm() -> Sample:
        start = time.perf_counter()
        worlds.run(entered, (TRUE,), cwd)
        return Sample(time.perf_counter() - start)

    cases = {
        "spawn of true": lambda: spawn((TRUE,)),
        "world, whole life": lambda: life(limited=False),
        "world with cgroup limits, whole life": lambda: life(limited=True),
    }
    if context.peers and shutil.which("bwrap"):
        cases["bwrap --unshare-all true"] = lambda: spawn((*BWRAP, TRUE))
    if context.peers and shutil.which("unshare"):
        cases["unshare -Urmpf --mount-proc true"] = lambda: spawn(
            ("unshare", "-Urmpf", "--mount-proc", TRUE)
        )
    taken = interleave(cases, rounds=context.rounds, seed=context.seed, reference="spawn of true")
    results = context.results("world", taken, "spawn of true")
    for part in ("plan", "start", "command", "end"):
        results.append(
            Result(
                "world",
                f"world: {part}",
                context.placement,
                "ms",
                tuple(s.more[part] * 1000 for s in taken["world, whole life"]),
                note=made.backend,
            )
        )

    number = made.cut()
    entered = made.start(made.spec())
    try:
        # short, so many more rounds cost little
        again = interleave(
            {"spawn of true": lambda: spawn((TRUE,)), "warm entry, true": warm},
            rounds=context.rounds * 5,
            seed=context.seed,
            reference="spawn of true",
        )
    finally:
        made.end(entered)
        made.drop(number)
    results += [
        r for r in context.results("world", again, "spawn of true") if r.case == "warm entry, true"
    ]
    return results


if __name__ == "__main__":
    harness.main(bench)
    ZYGOTE.close()
