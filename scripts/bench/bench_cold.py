"""`substrate -c true` from a cold start: no daemon, full world, durable trace.

Three ways of ours: going on in the directory's world, a new world each time, and no world
(recording only); each in a directory of its own, since the last new one is what `-c` goes on in. The floor is what any Python program pays. bwrap, unshare and bash do less
than a world: no overlay, no filter, no record; docker starts a container of an image.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import harness
import try_peer
from harness import Context, Result, Sample, interleave, spawn

BWRAP = ("bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev")
BWRAP += ("--proc", "/proc", "--tmpfs", "/run", "--tmpfs", "/tmp")


def bench(context: Context) -> list[Result]:
    for name in ("on", "new", "bare"):
        os.mkdir(os.path.join(context.scratch, name))
    environ = dict(os.environ)
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    environ["SUBSTRATE_HOME"] = os.path.join(context.scratch, "state")
    python = sys.executable
    program = os.path.join(os.path.dirname(python), "substrate")

    def ours(directory: str, *words: str) -> Sample:
        os.chdir(os.path.join(context.scratch, directory))
        return spawn((program, *words), env=environ)

    cases = {
        "bash -c true": lambda: spawn(("bash", "-c", "true")),
        "python3 -c pass": lambda: spawn((python, "-c", "pass")),
        "python3 -I -S -c pass": lambda: spawn((python, "-I", "-S", "-c", "pass")),
        "substrate -c true": lambda: ours("on", "-c", "true"),
        "substrate -c true, trace not synced": lambda: ours(
            "on", "--durability", "none", "-c", "true"
        ),
        "substrate --fresh -c true": lambda: ours("new", "--fresh", "-c", "true"),
        "substrate --no-world --fresh -c true": lambda: ours(
            "bare", "--no-world", "--fresh", "-c", "true"
        ),
    }
    if context.peers:
        cases |= _peers(context.scratch)
    taken = interleave(cases, rounds=context.rounds, seed=context.seed, reference="bash -c true")
    results = context.results("cold", taken, "bash -c true")
    os.chdir("/")
    return results


def _peers(scratch: str) -> dict[str, object]:
    found: dict[str, object] = {}
    if shutil.which("bwrap"):
        found["bwrap --unshare-all true"] = lambda: spawn((*BWRAP, "bash", "-c", "true"))
    if shutil.which("unshare"):
        found["unshare -Urmpf bash -c true"] = lambda: spawn(
            ("unshare", "-Urmpf", "--mount-proc", "bash", "-c", "true")
        )
    if try_peer.is_here():
        found["try -n true"] = lambda: try_peer.run(scratch, "-n", "true")
    if shutil.which("srt"):
        found["srt true"] = lambda: spawn(("srt", "true"))
    image = os.environ.get("BENCH_DOCKER_IMAGE", "")
    if image and shutil.which("docker"):
        answer = subprocess.run(
            ["docker", "info"], check=False, stdin=subprocess.DEVNULL, capture_output=True
        )
        if answer.returncode == 0:
            found[f"docker run {image} true"] = lambda: spawn(
                ("docker", "run", "--rm", "--network=none", image, "true")
            )
    return found


if __name__ == "__main__":
    harness.main(bench)
