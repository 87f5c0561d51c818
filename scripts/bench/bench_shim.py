"""What a shim costs: a command by itself, behind the stub, behind other ways to do that.

The supervisor is the tests' own, in a process of its own: it answers at once, so that what is measured
is the stub and the round trip, not a policy. `stub: true` against `true` is the price of a shim;
`sh -c` and a script of two lines are what others pay. `joined` is a command that the supervisor runs
for us, by the stub as `bash` and by `substrate -c`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.append(str(CHECKOUT))

import harness  # noqa: E402
from harness import Context, Result, Sample, interleave, spawn  # noqa: E402

from substrate.shim import deploying, finding, packets  # noqa: E402
from tests.shim.supervisor import SESSION, Supervisor  # noqa: E402

#: runs of a sample, whose mean it is: one alone is too short for the noise
_RUNS = 20
_NAMES = ("true", "bash")


def bench(context: Context) -> list[Result]:
    base = Path(context.scratch)
    pid = _serve(base)
    try:
        return _measure(context, base)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _serve(base: Path) -> int:
    ready_read, ready_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        Supervisor(base)
        os.write(ready_write, b"r")
        signal.pause()
        os._exit(0)
    os.close(ready_write)
    os.read(ready_read, 1)
    os.close(ready_read)
    return pid


def _measure(context: Context, base: Path) -> list[Result]:
    shims = {kind: base / kind for kind in ("c", "python")}
    for kind, directory in shims.items():
        planned = deploying.plan(
            os.fsencode(directory), _NAMES, every=True, fail_open=False, python=kind == "python"
        )
        deploying.deploy(planned)
    script = base / "script"
    script.write_text(
        f"#!{sys.executable} -IS\nimport os, sys\nos.execv('/usr/bin/true', ['true', *sys.argv[1:]])\n"
    )
    script.chmod(0o755)
    environ = {
        "PATH": f"{shims['c']}:/usr/bin:/bin",
        "HOME": str(base),
        "SUBSTRATE_HOME": str(base / "state"),
        "SUBSTRATE_SESSION": SESSION,
    }
    program = os.path.join(os.path.dirname(sys.executable), "substrate")
    os.chdir(base)

    def many(*words: str) -> Sample:
        samples = [spawn(words, env=environ) for _ in range(_RUNS)]
        return Sample(sum(each.seconds for each in samples) / _RUNS)

    cases = {
        "true": lambda: many("/usr/bin/true"),
        "sh -c true": lambda: many("/bin/sh", "-c", "/usr/bin/true"),
        "python script: true": lambda: many(str(script)),
        "stub: true": lambda: many(str(shims["c"] / "true")),
        "stub in Python: true": lambda: many(str(shims["python"] / "true")),
        "round trip": lambda: _round_trip(environ),
        "bash -c true": lambda: many("/bin/bash", "-c", "true"),
        "joined by the stub: bash -c true": lambda: many(str(shims["c"] / "bash"), "-c", "true"),
        "joined: substrate -c true": lambda: many(program, "-c", "true"),
    }
    taken = interleave(cases, rounds=context.rounds, seed=context.seed, reference="true")
    os.chdir("/")
    return context.results("shim", taken, "true")


def _round_trip(environ: dict[str, str]) -> Sample:
    """EXECUTE and its answer, on a socket that is connected and checked."""
    encoded = {os.fsencode(k): os.fsencode(v) for k, v in environ.items()}
    spent = 0.0
    for _ in range(_RUNS):
        found = finding.find(encoded)
        call = packets.call_memfd(b"/usr/bin/true", b"/", [b"true"], [b"A=b"], 0o22)
        begun = time.perf_counter()
        packets.send(
            found.socket,
            *(packets.EXECUTE, packets.VERSION, packets.SHIM, b"", b""),
            fds=(call,),
        )
        packets.receive(found.socket)
        spent += time.perf_counter() - begun
        os.close(call)
        found.socket.shutdown(socket.SHUT_RDWR)
        found.socket.close()
    return Sample(spent / _RUNS)


if __name__ == "__main__":
    harness.main(bench)
