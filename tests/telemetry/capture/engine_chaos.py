"""Random use of the engine: tables and gates that are damaged, and programs that call at random.

    python -m tests.telemetry.capture.engine_chaos --chaos PROGRAM --seconds 60 --seed 1

Each round draws what it does from a seed of its own, which is named when something is wrong. The
rules: whatever a tracee does, its tree ends, its status comes, its records can be read and decoded,
everybody is told of before he does anything and once, a denied program does not go on, and nothing
stays behind: no process, no thread, no descriptor. As root the tracees are a user that nobody else
is, and have no network. For scripts/fuzz-engine, which runs it with sanitizers; no pytest here.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from substrate.telemetry.capture import calls, engine, gate, records
from substrate.telemetry.capture.decode import Decoder, Scope
from substrate.telemetry.capture.programs import Program
from tests.telemetry.capture.captured import Captured, Record, Running, parse
from tests.telemetry.capture.killed_supervisors import lives, session_of

LIMIT_S = 20.0
RINGS = (65536, 65536, 1 << 18, 1 << 22)
NAMES = (b"true", b"sh", b"chaos", b"dash", b"/usr/bin/true", b"/bin/true", b"s", b"a", b"exe")


class Wrong(Exception):
    """A rule was broken."""


# --- what is used by hand, and damaged


def damaged_table(dice: random.Random) -> bytes:
    """A table of calls with one to forty bytes changed, or nothing of one."""
    if dice.random() < 0.2:
        return dice.randbytes(dice.choice([0, 1, 19, 20, 40, 400]))
    table = bytearray(engine._pack(calls.by_number()))
    step = 4 + calls.SHAPE.size
    for _ in range(dice.choice([1, 3, 40])):
        at = dice.randrange(len(table) // step) * step
        if dice.random() < 0.7:  # an argument, which may be there
            table[at + 4 + dice.randrange(6)] = dice.choice([0, 1, 2, 3, 4, 5, 6, 255])
        elif dice.random() < 0.7:
            struct.pack_into("=I", table, at + 12, 1 << dice.randrange(20))
        else:
            table[at + dice.randrange(step)] = dice.randrange(256)
    return bytes(table)


def random_gate(dice: random.Random) -> bytes:
    table = b""
    for _ in range(dice.choice([0, 1, 5, 200])):
        path = dice.choice([*NAMES, dice.randbytes(dice.choice([0, 3, 4096, 65535]))])
        decision = dice.choice([gate.ALLOW, gate.DENY, gate.ASK])
        table += struct.pack("=BBH", decision, 0, len(path)) + path
    if dice.random() < 0.3:
        raw = bytearray(table or b"\0")
        for _ in range(dice.randrange(4)):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
        table = bytes(raw[: dice.randrange(len(raw) + 1)])
    return table


def use_by_hand(dice: random.Random) -> str:
    """Makes, arms, attaches in vain, drains, ends an engine in any order."""
    from substrate.telemetry.capture._engine import Engine

    tables = tuple(damaged_table(dice) if dice.random() < 0.2 else b"" for _ in range(3))
    denied = dice.randbytes(dice.choice([0, 2, 401, 1200, 1201]))
    size = dice.choice([*RINGS, *RINGS, 0, 65537, 1 << 31])
    try:
        made = Engine(
            tables, denied, size, dice.choice([0, 1, 2, 0, 1, 2, -1, 3]), dice.random() < 0.5
        )
    except (ValueError, OSError, OverflowError) as error:
        return type(error).__name__
    uses = {
        "arm": lambda: made.arm(random_gate(dice), dice.randrange(6), dice.randrange(1 << 32)),
        "attach": lambda: made.attach(dice.choice([-1, 0, 2**22 + 1]), -1, dice.random() < 0.8),
        "drain": lambda: list(records.read_records(made.drain())),
        "answer": lambda: made.answer(dice.getrandbits(64), dice.randrange(9), dice.randrange(-9, 99)),
        "lost": made.lost,
        "finished": made.finished,
        "kill": made.kill,
    }  # fmt: skip
    for _ in range(dice.randrange(12)):
        try:
            uses[dice.choice(list(uses))]()
        except (ValueError, OSError, OverflowError):
            continue  # refused, as it may be
    if dice.random() < 0.7:
        made.close()
    return "made"


# --- what is traced


class Round:
    """One tree. `mode`: how it ends; `rules`: which can be held then."""

    def __init__(self, dice: random.Random, program: str, uid: int) -> None:
        self.dice = dice
        self.uid = uid
        self.backend = dice.choice(["hybrid", "hybrid", "ptrace", "notify"])
        self.level = dice.choice(["files", "files", "exec", "all"])
        if self.backend == "notify" and self.level == "all":
            self.level = "files"
        self.policy = dice.choice(["block", "block", "drop", "halt"])
        self.ring = dice.choice(RINGS)
        self.damaged = dice.random() < 0.2
        self.armed = dice.random() < 0.5
        self.denies = self.armed and dice.random() < 0.5  # /bin/true, whatever else
        self.mode = dice.choice(["end", "end", "kill", "close"])
        self.seconds = dice.choice([1, 1, 2])
        self.slow = dice.random() < 0.2
        self.argv = [
            program,
            str(dice.getrandbits(32)),
            str(self.seconds),
            str(dice.choice([3, 12, 24])),
        ]
        if uid:
            self.argv.append(str(uid))

    def __str__(self) -> str:
        names = ("backend", "level", "policy", "ring", "damaged", "armed", "denies", "mode", "slow")
        return " ".join(f"{name}={getattr(self, name)}" for name in names) + f" {self.argv[1:]}"

    def arm(self, backend: engine.EngineBackend) -> None:
        if not self.armed:
            return
        try:
            table = gate.pack_table({b"true": gate.DENY}) if self.denies else random_gate(self.dice)
            backend.arm(
                table, self.dice.choice([gate.ALLOW, gate.ASK]), self.dice.choice([0, 50, 400])
            )
        except (ValueError, OSError):
            backend.arm(b"", gate.ALLOW, 100)

    def run(self, directory: Path) -> Counter[str]:
        with damaged_tables(self.dice) if self.damaged else as_they_are():
            running = Running(
                self.argv, self.backend, self.level, cwd=str(directory), arm=self.arm,
                policy=self.policy, ring_bytes=self.ring, look=self.dice.random() < 0.3,
            )  # fmt: skip
        with running:
            running.go()
            leader, found = running.pid, self.watch(running)
            if found is None:
                return Counter({"closed": 1})
            halted = running.backend.halted()
        raw = found.raw
        seen = list(parse(raw))
        decode(raw, leader, self.backend, self.level)
        if halted != (self.policy == "halt" and bool(found.lost)):
            raise Wrong(f"halted is {halted}, lost {found.lost}")
        if sum(r.result for r in seen if r.kind == "lost") != sum(found.lost.values()):
            raise Wrong("what was lost is not what was told as lost")
        if self.backend != "notify" and not found.lost and not self.damaged:
            check_tree(seen, leader)
        if self.denies and self.backend != "notify" and not found.lost and not self.damaged:
            check_denied(seen)
        kinds = Counter(record.kind for record in seen)
        kinds["lost"] = sum(found.lost.values())
        for head, _, _ in records.read_records(raw):
            if head[1] == records.TROUBLE:
                kinds[f"trouble: {engine.STEPS[head[5]]}, errno {-head[7]}"] += 1
        return kinds

    def watch(self, running: Running) -> Captured | None:
        """To the end; None where there is nothing more to be had."""
        until = time.monotonic() + LIMIT_S
        act = time.monotonic() + self.dice.random() * self.seconds
        while not (running.backend.finished() and running.status is not None):
            if time.monotonic() > until:
                raise Wrong(f"it does not end: {describe(running.pid, self.uid)}")
            if self.mode != "end" and time.monotonic() > act and running.status is None:
                if self.mode == "close":
                    started = time.monotonic()
                    running.backend.close()
                    if time.monotonic() - started > 9:
                        raise Wrong("a thread of the engine did not end")
                    if self.backend == "notify" or self.damaged:
                        kill_session(running.pid)
                    return None
                running.backend.kill()
                if self.backend == "notify":
                    kill_session(running.pid)
                self.mode = "end"
            data = running.step(0.05)
            self.answer(running, data)
            if self.slow:
                time.sleep(0.02)
            if running.status is not None and self.backend == "notify":
                kill_session(running.pid)
        if self.damaged:  # it may not have known what makes a child
            kill_session(running.pid)
        return running.wait(LIMIT_S)

    def answer(self, running: Running, data: bytes) -> None:
        if not self.armed:
            return
        for head, _, _ in records.read_records(data):
            if head[1] == records.HOLD and self.dice.random() < 0.8:
                decision = self.dice.choice([gate.ALLOW, gate.DENY])
                running.backend.answer(head[8], decision, gate.BY_CALLBACK)


@contextmanager
def damaged_tables(dice: random.Random) -> Iterator[None]:
    """The engine is made with a table of calls that is damaged, and well formed."""
    from substrate.telemetry.capture._engine import Engine

    kept = engine._tables()
    while True:
        table = damaged_table(dice)
        try:
            Engine((table, b"", b""), b"", 65536, 0, False)
        except ValueError:
            continue
        break
    engine._packed[0] = (table, *kept[1:])
    try:
        yield
    finally:
        engine._packed[0] = kept


@contextmanager
def as_they_are() -> Iterator[None]:
    yield


# --- rules


def decode(raw: bytes, leader: int, backend: str, level: str) -> None:
    numbers = count(1)
    decoder = Decoder(
        Scope(
            root_tid=leader, span="s", cwd=b"/", number=lambda: next(numbers),
            program=lambda path: Program(digest=None), level=level, backend=backend,
        )
    )  # fmt: skip
    decoder.feed(raw)
    decoder.take()
    decoder.finish()
    decoder.summary.body()


def check_tree(seen: list[Record], leader: int) -> None:
    """Everybody is told of before anything else of him, and nobody twice while he lives."""
    alive = {leader}
    for record in seen:
        if record.kind == "fork":
            if record.result in alive:
                raise Wrong(f"{record.result} is told of twice")
            alive.add(record.result)
        elif record.kind in ("call", "exec", "exit", "hold", "gate"):
            if record.tid not in alive:
                raise Wrong(f"{record.kind} of one who is not told of: {life_of(record.tid, seen)}")
            if record.kind == "exit":
                alive.discard(record.tid)
            elif record.kind == "exec" and record.args[0]:
                alive.discard(record.args[0])
    if alive:
        one = min(alive)
        raise Wrong(f"{len(alive)} tasks never ended: {life_of(one, seen)}")


def life_of(tid: int, seen: list[Record]) -> str:
    """What is told of a task."""
    about = [r for r in seen if tid in (r.tid, r.args[0] if r.kind == "exec" else r.result)]
    return f"{tid}: " + "; ".join(
        f"{r.kind} {r.call} {r.tid} {r.result} {r.args[:2]}" for r in about[-8:]
    )


def check_denied(seen: list[Record]) -> None:
    ran: set[int] = set()
    for record in seen:
        if record.kind == "exec":
            ran.discard(record.tid)
            if (record.path("exe") or b"").endswith(b"/true"):
                ran.add(record.tid)
        elif record.kind == "gate" and record.result == gate.KILL:
            ran.discard(record.tid)
    if ran:
        raise Wrong(f"a denied program went on in {sorted(ran)[:5]}")


def kill_session(leader: int) -> None:
    """As the end of a world does it, for a backend that traces nobody: until there is none."""
    while left := session_of(leader):
        for pid in left:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue


def describe(leader: int, uid: int) -> str:
    """What hangs, for whoever reads it."""
    ours = [int(pid) for pid in os.listdir("/proc") if pid.isdecimal() and belongs(pid, uid)]
    lines = []
    for pid in sorted({*session_of(leader), *ours, os.getpid()}):
        for tid in os.listdir(f"/proc/{pid}/task"):
            at = f"/proc/{pid}/task/{tid}"
            try:
                state = Path(at, "stat").read_text().rpartition(")")[2].split()[0]
                lines.append(f"{pid}/{tid} {state} {Path(at, 'wchan').read_text()}")
            except OSError:
                continue
    return "; ".join(lines)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def assert_nothing_left(leader_files: int, leader_threads: int, uid: int) -> None:
    until = time.monotonic() + 20
    while True:
        # the runtime of a sanitizer has files and threads of its own, which come once
        left = [p for p in os.listdir("/proc") if p.isdecimal() and belongs(p, uid)]
        if not left and open_files() <= leader_files and threads() <= leader_threads:
            return
        if time.monotonic() > until:
            raise Wrong(f"left: {left[:5]}, {open_files()} files, {threads()} threads")
        time.sleep(0.02)


def belongs(pid: str, uid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return False
    # not by the owner of /proc/<pid>, which is root where memory may not be read
    return uid > 0 and f"\nUid:\t{uid}\t" in status and lives(pid)


def end_all(uid: int) -> None:
    """Whoever is left of a round that went wrong."""
    for pid in os.listdir("/proc"):
        if pid.isdecimal() and belongs(pid, uid):
            try:
                os.kill(int(pid), 9)
            except ProcessLookupError:
                continue


@contextmanager
def scratch(uid: int) -> Iterator[Path]:
    """A directory from which `..` leads to one where nothing can be made."""
    above = Path(tempfile.mkdtemp(prefix="engine-chaos-"))
    above.chmod(0o755)
    inside = above / "in"
    inside.mkdir()
    if uid:
        os.chown(inside, uid, uid)
    try:
        yield inside
    finally:
        shutil.rmtree(above, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--chaos", required=True)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--uid", type=int, default=64990, help="as root: of nobody else")
    options = parser.parse_args()
    uid = options.uid if os.geteuid() == 0 else 0
    end_all(uid)
    end = time.monotonic() + options.seconds
    totals: Counter[str] = Counter()
    files = workers = 0
    number = 0
    what: Any = "nothing"
    while time.monotonic() < end or number < 3:
        dice = random.Random(options.seed * 1_000_003 + number)
        try:
            for _ in range(50):
                totals[f"by hand: {use_by_hand(dice)}"] += 1
            what = Round(dice, options.chaos, uid)
            with scratch(uid) as directory:
                totals += what.run(directory)
            if number:
                assert_nothing_left(files, workers, uid)
            else:
                time.sleep(0.2)
                files, workers = open_files(), threads()
        except (Wrong, AssertionError, records.Torn, TimeoutError) as wrong:
            end_all(uid)
            print(json.dumps({"round": number, "wrong": str(wrong), "what": str(what)}), flush=True)
            return 1
        number += 1
    from substrate.telemetry.capture import _engine

    build = Path(_engine.__file__).parent.name
    print(
        json.dumps({"build": build, "rounds": number, **dict(sorted(totals.items()))}), flush=True
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
