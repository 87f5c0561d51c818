"""Kills supervisors at random moments and looks at what is left and what is lost.

One world at a time is used again and again: each run appends its number to a file and is
killed at a moment spread over the whole length of a run. The next run is the one that
recovers, and may be killed in that too. Used by the tests and by scripts/soak-supervisor.
"""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

from tests.system import traces_left
from tests.system.caller import Caller

RUNS_A_WORLD = 12


class Crashes:
    """`kill_zygote`: how often, of 1, the zygote is killed together with its supervisor."""

    def __init__(self, caller: Caller, seed: int, *, kill_zygote: float = 0.0) -> None:
        self.caller = caller
        self.random = random.Random(seed)
        self.kill_zygote = kill_zygote
        self.number = 0
        self.killed = 0
        self.pids: list[int] = []
        self.length_s = self._length()

    def _length(self) -> float:
        """How long a run takes that nobody kills, at best: on a busy machine most are longer,
        so that moments up to this reach every phase and few runs end before theirs."""
        lengths = []
        for _ in range(5):
            began = time.monotonic()
            self._must(self.caller.substrate("--fresh", "-c", "echo 0 >> log"))
            lengths.append(time.monotonic() - began)
        return min(lengths)

    def world(self) -> None:
        """One new world, RUNS_A_WORLD kills, and a last run that must find everything."""
        caller = self.caller
        self._must(caller.substrate("--fresh", "-c", "echo begin >> log"))
        session = caller.sessions()[-1]
        trace = session / "trace.jsonl"
        kept, acknowledged = b"", {"begin"}
        for _ in range(RUNS_A_WORLD):
            number, status = self._one_killed(trace)
            if status == 0:
                acknowledged.add(str(number))
            now = trace.read_bytes()
            whole = now[: now.rfind(b"\n") + 1]
            assert now.startswith(kept), "lines that were written have changed"
            kept = whole
        done = self._must(caller.substrate("-c", "cat log"))
        lines = done.stdout.decode().split()
        assert acknowledged <= set(lines), "a change that was acknowledged is lost"
        assert len(set(lines)) == len(lines), "a change was made twice"
        assert trace.read_bytes().startswith(kept)
        assert caller.sessions()[-1] == session, "the next run did not continue the world"
        ran = {
            event["span_id"]
            for event in caller.events(session)
            if event["event_type"] == "command_start"
        }
        ended = [
            event["span_id"]
            for event in caller.events(session)
            if event["event_type"] == "command_end"
        ]
        recorded = {
            event["body"]["layer"]
            for event in caller.events(session)
            if event["event_type"] == "fs_diff"
        }
        on_disk = {int(path.name) for path in (session / "world" / "layers").iterdir()}
        assert on_disk <= recorded, "a layer is pending that no event tells of"
        assert set(ended) == ran and len(ended) == len(ran), "a span was left open"
        caller.verify(session)

    def _must(
        self, done: "subprocess.CompletedProcess[bytes]"
    ) -> "subprocess.CompletedProcess[bytes]":
        assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
        return done

    def _wait(self, process: "subprocess.Popen[bytes]", trace: Path) -> None:
        """Until some moment: of the whole run, or, every other time, of the part of it that
        begins with the record of the command's start."""
        if self.random.random() < 0.5:
            time.sleep(self.random.uniform(0, self.length_s))
            return
        before = trace.stat().st_size
        while trace.stat().st_size == before and process.poll() is None:
            time.sleep(0.0002)
        time.sleep(self.random.uniform(0, self.length_s / 2))

    def _one_killed(self, trace: Path) -> tuple[int, int]:
        self.number += 1
        mark = f"crash-{os.getpid()}-{self.number}"
        environ = {**self.caller.environ, traces_left.MARK: mark}
        process = self.caller.start(
            "-c",
            f"echo {self.number} >> log; sleep 0.01 # {mark}",
            env=environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.pids.append(process.pid)
        self._wait(process, trace)
        victims = [process.pid]
        if self.random.random() < self.kill_zygote:
            victims += _children(process.pid)[:1]
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        status = process.wait(30)
        self.killed += status == -signal.SIGKILL
        left = traces_left.gone(lambda: traces_left.processes(mark))
        assert not left, f"processes outlive their supervisor: {left}"
        if len(victims) == 1:
            left = traces_left.gone(lambda: traces_left.groups_of(process.pid))
            assert not left, f"control groups outlive their supervisor: {left}"
        assert not traces_left.mounts(self.caller.base)
        return self.number, status


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(word) for word in text.split()]
