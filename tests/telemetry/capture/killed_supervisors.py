"""Supervisors that are killed at a random moment, with the trees that they trace: is anything left?

For test_engine_faults.py and scripts/fuzz-engine. Each supervisor is a process of its own; its
command is a session (setsid(2)) that makes processes and threads all the time.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).parents[3]
LIMIT_S = 20.0

SUPERVISOR = """
import sys
from tests.telemetry.capture.captured import Running
running = Running(['sh', '-c', sys.argv[2]], sys.argv[1])
print(running.pid, flush=True)
running.go()
while True: running.step()
"""
TREE = """
for i in 1 2 3; do
  (while :; do (/bin/true; : > /dev/null) & wait; done) &
done
(trap '' TERM HUP; sleep 1000) &
wait
"""


@dataclass
class Supervisors:
    """`kill_one` starts one and kills it; raises AssertionError for what is left after that."""

    backend: str
    dice: random.Random
    killed: int = 0
    most_s: float = 0.3
    _times_s: list[float] = field(default_factory=list)

    def kill_one(self) -> None:
        supervisor = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, self.backend, TREE],
            cwd=PROJECT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert supervisor.stdout is not None
            leader = int(supervisor.stdout.readline())
            time.sleep(self.dice.random() * self.most_s)
        finally:
            supervisor.send_signal(signal.SIGKILL)
            supervisor.wait()
            assert supervisor.stdout is not None
            supervisor.stdout.close()
        started = time.monotonic()
        while left := session_of(leader):
            if time.monotonic() - started > LIMIT_S:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"left of session {leader}: {left}")
            time.sleep(0.005)
        self._times_s.append(time.monotonic() - started)
        self.killed += 1

    def longest_s(self) -> float:
        """How long the last process of a tree lived on, at most."""
        return max(self._times_s, default=0.0)


def stat_of(path: str) -> list[str]:
    """The words behind the name of a process or task, from its state on; [] where it is gone."""
    try:
        with open(f"{path}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def lives(pid: int | str) -> bool:
    """Whether a task of it is no zombie: the first one may have ended before the others."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return False
    return any((stat_of(f"/proc/{pid}/task/{tid}") or "X")[0] not in "ZX" for tid in tasks)


def session_of(leader: int) -> list[int]:
    """Its processes that live."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            words = stat_of(f"/proc/{name}")
            if words and int(words[3]) == leader and lives(name):
                found.append(int(name))
    return found
