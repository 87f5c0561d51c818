"""Applying 10,000 changed files to the host: the whole, staging, and the exchange window.

The window is the time in which some names are new and others old. It is the product's own
step, timed by wrapping it here. Peers copy the same files onto a copy of the same tree; they
check no conflict, keep no journal and cannot be undone. `try commit` removes and moves each file
by programs of its own, which takes minutes: it is run once.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from typing import Any

from substrate.world.handle import Zygote

ZYGOTE = Zygote()

import harness  # noqa: E402
import trees  # noqa: E402
import try_peer  # noqa: E402
import worlds  # noqa: E402
from harness import Context, Result, Sample, in_child  # noqa: E402

COUNT = 10_000
PYTHON = "/usr/bin/python3"
#: each sample needs a fresh world with 10,000 changes, which takes seconds to make
ROUNDS = {"free": 5, "one": 3}


def bench(context: Context) -> list[Result]:
    rounds = min(context.rounds, ROUNDS[context.placement])
    taken: dict[str, list[Sample]] = {"substrate apply": []}
    for name in _peers(context):
        taken[name] = []
    script = os.path.join(context.scratch, "trees.py")
    with open(trees.__file__, "rb") as source, open(script, "wb") as target:
        target.write(source.read())
    old = os.path.join(context.scratch, "old")
    for number in range(rounds + 1):
        scratch = os.path.join(context.scratch, f"a{number}")
        made = worlds.WorldBench(scratch, ZYGOTE)
        trees.make(made.work, COUNT)
        made.in_layer((PYTHON, "-I", script, "modify", made.work, str(COUNT)))
        os.sync()
        sample = in_child(lambda made=made: _apply(made))
        new = made.work
        if number:
            taken["substrate apply"].append(sample)
        for name, argv in _peers(context).items():
            trees.make(old, COUNT)  # puts the old content back
            os.sync()
            sample = harness.spawn(tuple(word.format(new=new, old=old) for word in argv))
            if number:
                taken[name].append(sample)
    if context.peers and try_peer.is_here():
        taken["try commit"] = [_try_commit(context, script)]
    results = [
        Result(
            "apply",
            f"{name}, {COUNT} files",
            context.placement,
            "s",
            tuple(s.seconds for s in samples),
            rss_kib=max(s.rss_kib for s in samples),
        )
        for name, samples in taken.items()
    ]
    for part in ("diff and plan", "stage", "exchange window"):
        results.append(
            Result(
                "apply",
                f"{part}, {COUNT} files",
                context.placement,
                "s",
                tuple(s.more[part] for s in taken["substrate apply"]),
            )
        )
    return results


def _try_commit(context: Context, script: str) -> Sample:
    sandbox = try_peer.Sandbox(context.scratch, "try")
    trees.make(sandbox.host, COUNT)
    inside = f"{try_peer.PLACE}/{os.path.basename(script)}"
    sandbox.change(PYTHON, "-I", inside, "modify", sandbox.work, str(COUNT))
    os.sync()
    sample = sandbox.commit()
    left = sum(len(files) for _, _, files in os.walk(sandbox.upper()))
    if left:
        raise harness.BenchFailed(f"try committed {COUNT - left} files, expected {COUNT}")
    return sample


def _peers(context: Context) -> dict[str, tuple[str, ...]]:
    found = {"cp -a": ("cp", "-a", "{new}/.", "{old}/")}
    if shutil.which("rsync"):
        found["rsync -a"] = ("rsync", "-a", "{new}/", "{old}/")
    return found if context.peers else {}


def _apply(made: worlds.WorldBench) -> tuple[float, dict[str, float]]:
    from substrate.world import apply as product
    from substrate.world.diff import diff_pending
    from substrate.world.plan import plan
    from substrate.world.window import Window

    parts: dict[str, float] = {}

    def timed(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            begin = time.perf_counter()
            try:
                return step(*arguments)
            finally:
                parts[name] = parts.get(name, 0.0) + time.perf_counter() - begin

        return run

    steps = product._Apply
    steps._stage_all = timed("stage", steps._stage_all)  # type: ignore[method-assign]
    Window.exchange_all = timed("exchange window", Window.exchange_all)  # type: ignore[method-assign]
    start = time.perf_counter()
    planned = plan(diff_pending(made.stack), made.stack)
    parts["diff and plan"] = time.perf_counter() - start
    applied = product.apply(planned, made.stack, made.files.world_path)
    seconds = time.perf_counter() - start
    if applied.changes != COUNT:
        raise harness.BenchFailed(f"{applied.changes} changes were applied, expected {COUNT}")
    return seconds, parts


if __name__ == "__main__":
    harness.main(bench)
    ZYGOTE.close()
