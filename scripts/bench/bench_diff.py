"""What a command changed: microseconds a changed entry, from 10^2 to 10^5 entries.

The changes are made by a real command in a real world (each file is copied up and gets a
line), the layer is frozen, and `diff_layer` is timed in a fresh process: with digests of both
sides, as the record needs it, and without. The floor is a bare walk of the upper that stats
every entry. First touch: opening a lower file for writing in the world, less the same on the
host. Peer: `try summary` of the same changes made in `try`; it says added or modified, compares
no content, and starts programs for each entry, so its largest count is small.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

from substrate.world.handle import Zygote

ZYGOTE = Zygote()

import harness  # noqa: E402
import trees  # noqa: E402
import try_peer  # noqa: E402
import worlds  # noqa: E402
from harness import Context, Result, in_child, interleave  # noqa: E402

COUNTS = (100, 1_000, 10_000, 100_000)
TOUCHED = 2_000
#: at the largest count a round takes seconds; so many rounds of it are enough
ROUNDS_AT_LARGEST = 3
PYTHON = "/usr/bin/python3"
#: the lower, a directory to be made, a command
_BARE = """
lower=$0 bare=$1; shift; mkdir -p "$bare/upper" "$bare/work"
mount -t overlay -o "lowerdir=$lower,upperdir=$bare/upper,workdir=$bare/work,volatile" none "$lower"
exec "$@"
"""
TRY_COUNTS = (100, 1_000)


def bench(context: Context) -> list[Result]:
    results: list[Result] = []
    points: dict[str, list[tuple[float, float]]] = {}
    counts = COUNTS if context.placement == "free" else COUNTS[:-1]
    for count in counts:
        made = worlds.WorldBench(os.path.join(context.scratch, f"d{count}"), ZYGOTE)
        trees.make(made.work, count)
        script = os.path.join(context.scratch, "trees.py")
        if not os.path.exists(script):
            with open(trees.__file__, "rb") as source, open(script, "wb") as target:
                target.write(source.read())
        number = made.in_layer((PYTHON, "-I", script, "modify", made.work, str(count)))
        upper = os.fsdecode(made.stack.upper(number, _mount_of(made)))

        def diff(
            digests: bool,
            made: worlds.WorldBench = made,
            number: int = number,
            count: int = count,
        ) -> float:
            from substrate.telemetry.trace.digests import Digester
            from substrate.world.diff import diff_layer

            digester = Digester(bytes(32))
            digest = (lambda fd: digester.digest_fd(fd)[0]) if digests else None
            start = time.perf_counter()
            changes = diff_layer(made.stack, number, digest=digest)
            seconds = time.perf_counter() - start
            if len(changes) != count:
                raise harness.BenchFailed(f"{len(changes)} changes, expected {count}")
            return seconds

        def walk(upper: str = upper) -> float:
            start = time.perf_counter()
            for directory, _, files in os.walk(upper):
                for name in files:
                    os.lstat(f"{directory}/{name}")
            return time.perf_counter() - start

        rounds = context.rounds if count < COUNTS[-1] else min(context.rounds, ROUNDS_AT_LARGEST)
        taken = interleave(
            {
                "walk and lstat only": lambda w=walk: in_child(w),
                "diff": lambda d=diff: in_child(lambda: d(False)),
                "diff with digests": lambda d=diff: in_child(lambda: d(True)),
            },
            rounds=rounds,
            seed=context.seed,
            reference="walk and lstat only",
        )
        for name, samples in taken.items():
            each = tuple(s.seconds / count * 1e6 for s in samples)
            result = Result(
                "diff",
                f"{name}, {count} entries",
                context.placement,
                "µs/entry",
                each,
                rss_kib=max(s.rss_kib for s in samples),
                note=made.backend,
            )
            results.append(result)
            points.setdefault(name, []).append((count, result.median * count))
        if count == 10_000:
            # in a world without layers, as the overlay beside it has none
            fresh = worlds.WorldBench(os.path.join(context.scratch, "touched"), ZYGOTE)
            trees.make(fresh.work, count)
            results += _first_touch(context, fresh, script)
            above, *_ = _first_touch(context, made, script)
            results.append(replace(above, case="the same above a frozen layer"))
    if context.peers and try_peer.is_here():
        results += [_try_summary(context, script, count) for count in TRY_COUNTS]
    for name, found in points.items():
        results.append(
            Result(
                "growth",
                f"{name}: entries {counts[0]} to {counts[-1]}",
                context.placement,
                "exponent",
                (harness.growth_exponent(found),),
            )
        )
    return results


def _try_summary(context: Context, script: str, count: int) -> Result:
    sandbox = try_peer.Sandbox(context.scratch, f"try{count}")
    trees.make(sandbox.host, count)
    inside = f"{try_peer.PLACE}/{os.path.basename(script)}"
    sandbox.change(PYTHON, "-I", inside, "modify", sandbox.work, str(count))
    changed = sum(len(files) for _, _, files in os.walk(sandbox.upper()))
    if changed != count:
        raise harness.BenchFailed(f"try changed {changed} files, expected {count}")
    rounds = min(context.rounds, ROUNDS_AT_LARGEST)
    each = tuple(sandbox.summary().seconds / count * 1e6 for _ in range(rounds))
    return Result("diff", f"try summary, {count} entries", context.placement, "µs/entry", each)


def _mount_of(made: worlds.WorldBench) -> int:
    """The index of the innermost overlay mount that holds the workspace."""
    inside = [m for m in made.stack.mounts if os.fsencode(made.work).startswith(m.target)]
    return max(inside, key=lambda m: len(m.target)).index


def _first_touch(context: Context, made: worlds.WorldBench, script: str) -> list[Result]:
    """In turn: opening on the host, copying there, the world, and an overlay by mount(8) with no
    world around it and the options of ours, which is what the kernel's copy-up costs."""
    taken: dict[str, list[float]] = {"host": [], "copy": [], "world": [], "bare": []}
    out = os.path.join(made.work, "seconds")

    def seconds(path: str) -> float:
        with open(path, encoding="ascii") as file:
            return float(file.read())

    def words(verb: str) -> tuple[str, ...]:
        return (PYTHON, "-I", script, verb, made.work, str(TOUCHED), out)

    for number in range(context.rounds + 1):
        harness.spawn(words("touch"))
        host = seconds(out)
        harness.spawn(words("copy"))
        copied = seconds(out)
        layer = made.in_layer(words("touch"))
        upper = os.fsdecode(made.stack.upper(layer, _mount_of(made)))
        world = seconds(upper + out.removeprefix(_target_of(made)))
        made.set_aside(layer)
        if os.geteuid() == 0:
            bare = os.path.join(context.scratch, f"bare{number}")
            harness.spawn(("unshare", "-m", "sh", "-c", _BARE, made.work, bare, *words("touch")))
            taken["bare"].append(seconds(f"{bare}/upper/{os.path.basename(out)}"))
        if number:
            taken["host"].append(host)
            taken["copy"].append(copied)
            taken["world"].append(world)

    def result(case: str, values: list[float]) -> Result:
        each = tuple(value / TOUCHED * 1e6 for value in values)
        return Result("diff", case, context.placement, "µs/file", each, note=made.backend)

    pairs = zip(taken["world"], taken["host"], strict=True)
    results = [
        result("first touch of a lower file, above the host's", [w - h for w, h in pairs]),
        result("copying a file on the host", taken["copy"]),
    ]
    if taken["bare"]:
        above = [b - h for b, h in zip(taken["bare"][1:], taken["host"], strict=True)]
        results.append(result("the same in a bare overlay", above))
    return results


def _target_of(made: worlds.WorldBench) -> str:
    index = _mount_of(made)
    target = next(m.target for m in made.stack.mounts if m.index == index)
    return os.fsdecode(target).rstrip("/")


if __name__ == "__main__":
    harness.main(bench)
    ZYGOTE.close()
