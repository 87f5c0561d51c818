"""World start and warm entry, without a supervisor and without a record.

A world here is everything that `substrate -c` gives (overlays of every writable mount, own
/dev, /proc, /sys, /run, hidden paths, filters), started by a warm zygote, with `true` in it. Warm:
the zygote was told before what kind of world comes (`Zygote.prepare`), and had `PAUSE_S` for
that; `nothing prepared` is without. Each sample of each case here comes after that pause, for a
processor that has slept is slower. Clocks start where the zygote is asked for the world; `plan`,
what is read of the host for that (mounts, accounts, sockets, cgroups) and the making of the layer,
is a line of its own.

`true` ended: its exit status is there, which is where bwrap ends too (it does not wait for its
sandbox to be gone). With capture and gate: the filters of `hybrid` are installed, the engine is
attached before the command has its go, and asks a table before each program; what it recorded is
read, and must tell of the program, but is not written down. `nothing left`: every process is dead, every mount gone, the cgroups removed;
for bwrap, every process has closed a pipe that it keeps (--sync-fd). bwrap and unshare get no
overlay and no filter: they do less.

Warm entry: a further command in a started world, in a seat that was asked for before, as a session
does while a command runs; `no seat` is without.
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

from substrate.telemetry.capture import engine  # noqa: E402

TRUE = "/bin/true"
WORLD = "world, `true` ended"
CAPTURED = "world with capture and gate, `true` ended"
BWRAP = ("bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev")
BWRAP += ("--proc", "/proc", "--tmpfs", "/run", "--tmpfs", "/tmp")


#: longer than a zygote and a holder need to make what is asked for ahead
PAUSE_S = 0.015


def bench(context: Context) -> list[Result]:
    made = worlds.WorldBench(context.scratch, ZYGOTE)
    cwd = os.fsencode(made.work)

    def life(*, limited: bool = False, prepared: bool = True, captured: bool = False) -> Sample:
        begin = time.perf_counter()
        number = made.cut()
        spec = made.spec(made.groups(limited=limited), observed=captured)
        plan = time.perf_counter() - begin
        if prepared:
            made.zygote.prepare(spec.frame)
        time.sleep(PAUSE_S)
        start = time.perf_counter()
        world = made.start(spec)
        # while the zygote starts it
        watch = worlds.Watch(spec.frame, os.path.basename(TRUE).encode()) if captured else None
        if worlds.run(world, (TRUE,), cwd, watch):
            raise RuntimeError(f"{TRUE} failed in the world")
        exited = time.perf_counter()
        if watch is not None:
            watch.end()
        made.end(world)
        gone = time.perf_counter()
        made.drop(number)
        return Sample(
            exited - start,
            more={
                "plan": plan,
                "nothing left": gone - start,
            },
        )

    def warm(*, seat: bool) -> Sample:
        if seat:
            worlds.wait_for_seat(entered)
        time.sleep(PAUSE_S)
        start = time.perf_counter()
        worlds.run(entered, (TRUE,), cwd)
        return Sample(time.perf_counter() - start)

    cases = {
        "spawn of true": spawn_true,
        WORLD: life,
        "world, nothing prepared": lambda: life(prepared=False),
        "world with cgroup limits": lambda: life(limited=True),
    }
    if engine.is_built():
        life(captured=True)  # what it imports is there then
        cases[CAPTURED] = lambda: life(captured=True)
    if context.peers and shutil.which("bwrap"):
        cases["bwrap --unshare-all true"] = _bwrap
    if context.peers and shutil.which("unshare"):
        cases["unshare -Urmpf --mount-proc true"] = _unshare
    taken = interleave(cases, rounds=context.rounds, seed=context.seed, reference="spawn of true")
    results = context.results("world", taken, "spawn of true")
    parts = [(WORLD, part) for part in ("plan", "nothing left")]
    if CAPTURED in taken:
        parts.append((CAPTURED, "nothing left"))
    if "bwrap --unshare-all true" in taken:
        parts.append(("bwrap --unshare-all true", "nothing left"))
    for case, part in parts:
        values = tuple(s.more[part] * 1000 for s in taken[case])
        note = made.backend if case in (WORLD, CAPTURED) else ""
        results.append(
            Result("world", f"{case}: {part}", context.placement, "ms", values, note=note)
        )

    number = made.cut()
    entered = made.start(made.spec())
    worlds.run(entered, (TRUE,), cwd)
    try:
        # short, so many more rounds cost little
        again = interleave(
            {
                "spawn of true": spawn_true,
                "warm entry, true": lambda: warm(seat=True),
                "warm entry, no seat": lambda: warm(seat=False),
            },
            rounds=context.rounds * 5,
            seed=context.seed,
            reference="spawn of true",
        )
    finally:
        made.end(entered)
        made.drop(number)
    results += [
        r
        for r in context.results("world", again, "spawn of true")
        if r.case.startswith("warm entry")
    ]
    return results


def spawn_true() -> Sample:
    time.sleep(PAUSE_S)
    return spawn((TRUE,))


def _unshare() -> Sample:
    time.sleep(PAUSE_S)
    return spawn(("unshare", "-Urmpf", "--mount-proc", TRUE))


def _bwrap() -> Sample:
    time.sleep(PAUSE_S)
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    start = time.perf_counter()
    taken = spawn((*BWRAP, "--sync-fd", str(writing), TRUE))
    os.close(writing)
    os.read(reading, 1)
    gone = time.perf_counter() - start
    os.close(reading)
    return Sample(taken.seconds, taken.rss_kib, more={"nothing left": gone})


if __name__ == "__main__":
    harness.main(bench)
    ZYGOTE.close()
