"""Joining a session that lives: what a command costs that its supervisor runs, and what that costs idle.

"join" is a client that is there already: from its connection to the answer, streams on /dev/null; each command
alone, so with a world and a layer of its own. "join, beside another" comes into a world that lives. "joined by the stub" is
the C stub deployed as `bash`, "joined by substrate" the command that is installed (the stub as well, where there is a
compiler), "joined by Python" its `substrate-python`: processes of their own, from their start to their end. "over
bare" is the same less `bash -c true` of the round. "ask" is a shim's question to the session, which a policy decides. Before each sample the session is
left alone for a moment, as by an agent that reads what came of its last command: its next world waits by then. A row
of joins without that is "join, one after the other".
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable

import harness
from harness import Context, Result, Sample, by_round, interleave, spawn

_ROW = 5
_PAUSE_S = 0.1
_IDLE_S = 5.0
#: what the built-in one has no rule for is asked about where no world contains it, as behind a shim
_POLICY = 'extends = "builtin:coding-agent"\n[[command]]\nmatch = ["true"]\naction = "allow"\n'


def _packet(kind: bytes, *fields: bytes) -> bytes:
    return kind + b"".join(struct.pack("=I", len(f)) + f for f in fields)


class _Session:
    """A session that lives, in a directory of its own, and what asks it. The current directory is that of
    its sockets, whose paths may be long."""

    def __init__(self, scratch: str) -> None:
        self.work = os.path.join(scratch, "work")
        os.mkdir(self.work)
        config = os.path.join(scratch, "config")
        os.makedirs(os.path.join(config, "substrate"))
        with open(os.path.join(config, "substrate", "policy.toml"), "w") as file:
            file.write(_POLICY)
        self.environ = {
            **os.environ,
            "SUBSTRATE_HOME": os.path.join(scratch, "state"),
            "XDG_CONFIG_HOME": config,
        }
        self.program = os.path.join(os.path.dirname(sys.executable), "substrate")
        subprocess.run(
            [self.program, "world", "start", "--fresh"],
            env=self.environ,
            check=True,
            cwd=self.work,
            stdout=subprocess.DEVNULL,
        )
        self.shims = os.path.join(scratch, "shims")
        subprocess.run(
            [self.program, "shim", "deploy", "--dir", self.shims, "--commands", "bash,true"],
            env=self.environ,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (session,) = os.listdir(os.path.join(scratch, "state", "sessions"))
        self.place = os.path.join(scratch, "state", "sessions", session)
        self._null = os.open("/dev/null", os.O_RDWR)

    def begin(self, *words: bytes, mode: bytes = b"command") -> socket.socket:
        content = [words[0], os.fsencode(self.work), *words, b"PATH=/usr/bin:/bin"]
        memory = os.memfd_create("call", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        data = struct.pack("=4I", len(words), 1, 0o22, 0) + b"".join(w + b"\0" for w in content)
        os.write(memory, data)
        fcntl.fcntl(memory, 1033, 15)
        client = self._connect()
        fds = [memory, *([self._null] * 3 if mode == b"command" else [])]
        flags = b"{}" if mode == b"command" else b'{"closed":[0,1,2]}'
        client.sendmsg(
            [_packet(b"X", b"1", mode, b"", flags)],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))],
        )
        os.close(memory)
        return client

    def _connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        os.chdir(self.place)
        client.connect("control")
        os.chdir(self.work)
        return client

    def join(self) -> None:
        client = self.begin(b"/bin/true")
        while (got := client.recv(65536))[:1] not in (b"E", b"F", b"D", b""):
            pass
        client.close()
        assert got[:1] == b"E", got

    def ask(self) -> None:
        client = self.begin(b"true", mode=b"shim")
        got = client.recv(65536)
        client.close()
        assert got[:1] == b"A", got

    def verb(self, name: bytes) -> bytes:
        client = self._connect()
        client.send(_packet(b"V", name, b"{}"))
        found = client.recv(65536)
        client.close()
        return found[5:]

    def wait_idle(self) -> int:
        """Its pid."""
        while (status := json.loads(self.verb(b"status")))["lives"]:
            time.sleep(0.05)
        time.sleep(0.3)  # until the next world waits
        return int(status["pid"])


def _calm(sample: Callable[[], Sample]) -> Callable[[], Sample]:
    def taken() -> Sample:
        time.sleep(_PAUSE_S)
        return sample()

    return taken


def _timed(act: object, count: int = 1) -> Sample:
    start = time.perf_counter()
    for _ in range(count):
        act()  # type: ignore[operator]
    return Sample((time.perf_counter() - start) / count)


def bench(context: Context) -> list[Result]:
    session = _Session(context.scratch)
    os.chdir(session.work)
    try:
        return _measured(context, session)
    finally:
        session.verb(b"end")
        os.chdir("/")


def _measured(context: Context, session: _Session) -> list[Result]:
    environ, bash = session.environ, "bash -c true"
    stub = {name: os.path.join(session.shims, name) for name in ("bash", "true")}
    cases = {
        bash: lambda: spawn(("bash", "-c", "true"), env=environ),
        "true": lambda: spawn(("/bin/true",), env=environ),
        "python3 -I -S -c pass": lambda: spawn((sys.executable, "-I", "-S", "-c", "pass")),
        "python3 -c pass": lambda: spawn((sys.executable, "-c", "pass")),
        "join": lambda: _timed(session.join),
        "join, one after the other": lambda: _timed(session.join, _ROW),
        "joined by the stub: bash -c true": lambda: spawn(
            (stub["bash"], "-c", "true"), env=environ
        ),
        "joined by substrate -c true": lambda: spawn((session.program, "-c", "true"), env=environ),
        "joined by Python: substrate -c true": lambda: spawn(
            (session.program + "-python", "-c", "true"), env=environ
        ),
        "ask": lambda: _timed(session.ask, _ROW),
        "stub: true, asked of the session": lambda: spawn((stub["true"],), env=environ),
    }
    cases = {name: _calm(case) for name, case in cases.items()}
    session.join()
    taken = interleave(cases, rounds=context.rounds, seed=context.seed, reference=bash)
    taken |= _over(taken, bash)
    results = context.results("join", taken, bash)
    held = session.begin(b"/bin/sleep", b"1000")
    held.recv(65536)
    session.join()
    beside = interleave(
        {
            bash: cases[bash],
            "join, beside another": cases["join"],
            "joined by the stub, beside another": cases["joined by the stub: bash -c true"],
        },
        rounds=context.rounds,
        seed=context.seed,
        reference=bash,
    )
    results += [r for r in context.results("join", beside, bash) if r.case != bash]
    held.close()
    return results + _idle(context, session.wait_idle())


def _over(taken: dict[str, list[Sample]], bare: str) -> dict[str, list[Sample]]:
    """What joining costs more than the command by itself, round by round."""
    base = by_round(taken[bare])
    return {
        f"{case}: over bare": [Sample(s.seconds - base[s.round], round=s.round) for s in samples]
        for case, samples in taken.items()
        if case.startswith("joined")
    }


def _idle(context: Context, pid: int) -> list[Result]:
    """Of a session without a command, in which the next world waits: memory, and how often any of its
    processes is given a CPU."""
    family = [pid, *_below(pid)]
    before = _switches(family), _ticks(family)
    time.sleep(_IDLE_S)
    after = _switches(family), _ticks(family)
    rows = {
        "idle: the supervisor, resident": ("MB", _kib(pid, "VmRSS") / 1024),
        "idle: the zygote, its own memory": ("MB", _own_kib(_below(pid)[0]) / 1024),
        "idle: the world that waits, its own memory": (
            "MB",
            sum(map(_own_kib, _below(pid)[1:])) / 1024,
        ),
        "idle: wake-ups": ("/s", (after[0] - before[0]) / _IDLE_S),
        "idle: CPU": ("ms/s", (after[1] - before[1]) * 1000 / os.sysconf("SC_CLK_TCK") / _IDLE_S),
    }
    return [
        Result("join", case, context.placement, unit, (float(number),))
        for case, (unit, number) in rows.items()
    ]


def _below(pid: int) -> list[int]:
    """All that came of it, a parent before its children."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        one = waiting.pop(0)
        for task in os.listdir(f"/proc/{one}/task"):
            with open(f"/proc/{one}/task/{task}/children") as file:
                waiting += (children := [int(word) for word in file.read().split()])
                found += children
    return found


def _switches(family: list[int]) -> int:
    return sum(
        _number(f"/proc/{pid}/task/{task}/status", name)
        for pid in family
        for task in os.listdir(f"/proc/{pid}/task")
        for name in ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")
    )


def _ticks(family: list[int]) -> int:
    found = 0
    for pid in family:
        with open(f"/proc/{pid}/stat") as file:
            words = file.read().rpartition(")")[2].split()
        found += int(words[11]) + int(words[12])
    return found


def _kib(pid: int, name: str) -> int:
    return _number(f"/proc/{pid}/status", name)


def _own_kib(pid: int) -> int:
    """What it does not share with whom it was forked from."""
    path = f"/proc/{pid}/smaps_rollup"
    return _number(path, "Private_Dirty") + _number(path, "Private_Clean")


def _number(path: str, name: str) -> int:
    with open(path) as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name + ":"))


if __name__ == "__main__":
    harness.main(bench)
