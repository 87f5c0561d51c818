"""The interactive shell: what a line costs, from Enter to the next prompt, and what the shell costs to begin.

Each case is a shell on a terminal of its own that is there already; a sample is one `true` typed, up to the moment that the next prompt
takes keys. "a line, beside a job" joins a world in which a job lives; "with much state" carries 300 variables and 100 functions from line to
line. The floor is the same in `bash --norc -i`. "begin" is `substrate` from its exec to the first prompt, with the session it begins.
"""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import sys
import time

import harness
from harness import Context, Result, Sample, interleave

#: what the editor sends when it takes keys (bracketed paste), and a bash of ours
_READY, _PROMPT = b"\x1b[?2004h", b"ready> "
_BOUND_S = 60.0


class _Typist:
    """A shell at a terminal."""

    def __init__(self, words: list[str], environ: dict[str, str], ready: bytes) -> None:
        self._ready = ready
        self.pid, self._fd = pty.fork()
        if not self.pid:
            os.execvpe(words[0], words, environ)
        self._wait()

    def _wait(self) -> None:
        seen, until = b"", time.monotonic() + _BOUND_S
        while self._ready not in seen:
            ready, _, _ = select.select([self._fd], [], [], until - time.monotonic())
            if not ready:
                raise TimeoutError(f"no prompt: {seen[-300:]!r}")
            seen += os.read(self._fd, 65536)

    def line(self, text: bytes) -> Sample:
        start = time.perf_counter()
        os.write(self._fd, text + b"\r")
        self._wait()
        return Sample(time.perf_counter() - start)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)  # its session ends with it
        os.close(self._fd)
        os.waitpid(self.pid, 0)


def bench(context: Context) -> list[Result]:
    program = os.path.join(os.path.dirname(sys.executable), "substrate")
    taken: list[_Typist] = []
    places = iter(range(1_000))

    def environ(name: str) -> dict[str, str]:
        home = os.path.join(context.scratch, name)
        os.makedirs(home, mode=0o700)
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith("SUBSTRATE_")},
            "SUBSTRATE_HOME": home,
            "HOME": home,
            "TERM": "xterm",
        }

    def start(name: str, *first: bytes) -> _Typist:
        work = os.path.join(context.scratch, f"work-{name}")
        os.mkdir(work)
        os.chdir(work)
        made = _Typist([program], environ(name), _READY)
        taken.append(made)
        for line in first:
            made.line(line)
        return made

    def begin() -> Sample:
        begun = time.perf_counter()
        start(f"begin-{next(places)}")
        sample = Sample(time.perf_counter() - begun)
        taken.pop().end()
        return sample

    bash = _Typist(
        ["bash", "--norc", "--noprofile", "-i"], {**environ("bash"), "PS1": "ready> "}, _PROMPT
    )
    alone = start("alone")
    beside = start("beside", b"sleep 100000 &")
    much = start(
        "much",
        b"for i in {1..300}; do printf -v v$i %s some-text-of-a-variable; done",
        b'for i in {1..100}; do eval "f$i() { if true; then echo $i; else echo other; fi; }"; done',
    )
    try:
        found = interleave(
            {
                "bash -i": lambda: bash.line(b"true"),
                "a line": lambda: alone.line(b"true"),
                "a line, beside a job": lambda: beside.line(b"true"),
                "a line, with much state": lambda: much.line(b"true"),
                "jobs": lambda: beside.line(b"jobs"),
                "begin": begin,
            },
            rounds=context.rounds,
            seed=context.seed,
            reference="bash -i",
            every={"begin": 3},
        )
    finally:
        bash.end()
        for each in taken:
            each.end()
        os.chdir("/")
        shutil.rmtree(os.path.join(context.scratch, "work-alone"), ignore_errors=True)
    return context.results("line", found, "bash -i")


if __name__ == "__main__":
    harness.main(bench)
