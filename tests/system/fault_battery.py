"""A fault at every call of a verb that changes something: what must hold after each of them.

A `Scene` is a world in some state and a verb that is to change it. The verb runs once without a
fault, which gives the old state, the new one and its calls; then once for each call and kind of
fault, on a copy of the old state. After each the session is opened again by a real command. The
world, its views, its snapshots and the host must be all old or all new, the trace must verify
and tell of it exactly if it happened, and nothing may be left. Used by test_verb_faults.py.
"""

import collections
import errno
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.system.caller import Caller, remove
from tests.system.fault_server import ALLOCATES

#: the view of a world
VIEW = "find . -printf '%P %y %#m %l\\n' -type f -exec cat {} + | LC_ALL=C sort"
#: what is told of a stack, of a world, of the host
TOLD = frozenset(
    "undo snapshot rollback fork gc squash fs_apply fs_discard session_end".split()  # noqa: SIM905
)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """`before`: calls of substrate that make the state; `host`: edits of the host by the shell
    before all of it; `verb`: what is run with faults. `halfway`: a verb that does the first of
    the two things that `verb` does. `collects`: it removes layers. `runs`: it is a command, which
    may end between its start and its end: then its view is old or new, and the rest as it may.
    `first`: is done each time before the verb. `keeps`: what an apply displaced must be there afterwards.
    `killed`: a verb that was killed before the n-th call of a name, which `verb` puts right."""

    name: str
    before: tuple[tuple[str, ...], ...]
    verb: tuple[str, ...]
    host: str = ""
    halfway: tuple[str, ...] = ()
    collects: bool = False
    runs: bool = False
    keeps: bool = False
    first: tuple[str, ...] = ()
    killed: tuple[tuple[str, ...], str, int] | None = None
    faults: tuple[str, ...] = ("kill", "error", "full")


@dataclass(frozen=True, kw_only=True)
class State:
    """All that must be old or new. `disk`: the layers of each world. `told`: what the traces tell
    of, and how often."""

    worlds: dict[str, object]
    host: dict[str, object]
    disk: dict[str, list[int]]
    told: collections.Counter

    def told_of(self, wanted: str) -> collections.Counter:
        return collections.Counter({k: n for k, n in self.told.items() if k[0] == wanted})


@dataclass(frozen=True, kw_only=True)
class FullDisk:
    """A small filesystem of which nearly all is taken for the time of a block. `left`: the blocks
    to try it with."""

    mounted_at: Path
    left: tuple[int, ...]

    @contextmanager
    def but(self, blocks: int) -> Iterator[None]:
        """With so many blocks of 4 KiB left."""
        filler, spare = self.mounted_at / "filler", self.mounted_at / "spare"
        spare.write_bytes(bytes(blocks * 4096))
        os.sync()  # what was removed before is room only then
        with open(filler, "wb", buffering=0) as file:
            # ext4 sets more aside for what is not allocated yet than that takes in the end
            while _fill(file):
                os.fsync(file.fileno())
        spare.unlink()
        os.sync()
        try:
            yield
        finally:
            filler.unlink()
            os.sync()


def _fill(file: IO[bytes]) -> int:
    """Writes until nothing more can be written; how much that was."""
    start = file.tell()
    for size in (1 << 20, 1 << 16, 4096, 1024):
        try:
            while file.write(bytes(size)) == size:
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return file.tell() - start


_REMOVALS = frozenset(["unlink", "rmdir"])


class Server:
    """The product, loaded once (fault_server.py)."""

    def __init__(self, caller: Caller) -> None:
        self.work = caller.work
        self.out = caller.make_directory(caller.base / "out")
        script = Path(__file__).with_name("fault_server.py")
        copy = caller.base / "fault_server.py"
        shutil.copyfile(script, copy)
        python = caller.command.parent / "python"
        self.process = subprocess.Popen(
            [python, "-P", copy],
            cwd=caller.base,
            env={**caller.environ, "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            **caller.as_them(),
        )

    def run(self, *words, fault=None, at=0, count=False):
        """Status, standard output, standard error, and names of the calls."""
        return self._ask({"words": words, "fault": fault, "at": at, "count": count})

    def verify(self, sessions):
        """The standalone verifier must find each chain whole."""
        status, out, err, _ = self._ask({"verify": [str(path) for path in sessions]})
        assert status == 0, (out + err).decode()

    def _ask(self, job):
        for name in ("out", "err", "calls"):
            (self.out / name).unlink(missing_ok=True)
        job |= {"in": str(self.work), "out": str(self.out)}
        self.process.stdin.write(json.dumps(job).encode() + b"\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        calls = self.out / "calls"
        return (
            answer["status"],
            (self.out / "out").read_bytes(),
            (self.out / "err").read_bytes(),
            json.loads(calls.read_bytes()) if calls.exists() else [],
        )

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(30)


class Battery:
    def __init__(self, caller: Caller, server: Server, scene: Scene) -> None:
        self.caller = caller
        self.server = server
        self.scene = scene
        self.template = caller.base / "template"
        self.killed_at = 0
        remove(self.template)
        self._prepare()
        if scene.runs:
            self.restore()
            self.bare = self._run("--fresh", "-c", VIEW)
        self.restore()
        self.old = self.look()
        self.states = [self._after(scene.halfway)] if scene.halfway else []
        self.new = self._after(scene.verb)
        self.states += [self.old, self.new]
        if scene.killed is None:
            assert self.new != self.old, f"{scene.verb} changed nothing"
            assert self.new.told - self.old.told or scene.runs, "nothing was told"
        else:
            assert self.new == self.old, "whatever opens a session must put it right"

    def _after(self, words) -> State:
        self.restore()
        status, out, err, self.calls = self.server.run(*words, count=True)
        assert status == 0, (out + err).decode()
        return self.look()

    def _prepare(self) -> None:
        caller = self.caller
        caller.forget()
        if self.scene.host:
            done = caller.call("sh", "-ec", self.scene.host)
            assert done.returncode == 0, done.stderr
        for words in self.scene.before:
            status, _, err, _ = self.server.run(*words)
            assert status == 0, (words, err.decode())
        _copy(caller.work, caller.base / "host")
        _copy(caller.state, self.template)

    def _kill(self, verb: tuple[str, ...], name: str, nth: int) -> None:
        """Leaves what a killed verb leaves (a copy of that would have other inodes)."""
        if not self.killed_at:
            _, _, _, calls = self.server.run(*verb, count=True)
            self.killed_at = [n for n, call in enumerate(calls, 1) if call == name][nth - 1]
            self.restore()
        else:
            assert self.server.run(*verb, fault="kill", at=self.killed_at)[0] == -9

    def restore(self) -> None:
        """The old state; first the host, then the world's start, then its layers, each more than
        a tick of the clock apart: an apply goes by these times."""
        caller = self.caller
        for path in caller.work.iterdir():
            remove(path)
        subprocess.run(["cp", "-a", f"{caller.base}/host/.", caller.work], check=True)
        time.sleep(0.02)
        started_ns = time.time_ns()
        remove(caller.state)
        _copy(self.template, caller.state)
        for path in caller.state.glob("sessions/*/world/meta.json"):
            plain = json.loads(path.read_bytes())
            plain["started_ns"] = str(started_ns)
            path.write_text(json.dumps(plain, sort_keys=True, separators=(",", ":")) + "\n")
        if self.scene.first:
            self._run(*self.scene.first)
        if self.scene.killed is not None:
            self._kill(*self.scene.killed)

    # --- what is there

    def look(self) -> State:
        """Opens the session by a command, lets `world gc` take what was left, looks."""
        caller = self.caller
        worlds: dict[str, object] = {"view": self._run("-c", VIEW)}
        keeps = self.scene.collects or self.scene.keeps
        self._run("world", "gc", *([] if keeps else ["--all"]))
        self._assert_nothing_left()
        (current,) = (path.resolve() for path in (caller.state / "current").iterdir())
        disk = {}
        links = sorted((caller.state / "worlds").iterdir())
        for link in links:
            session = link.resolve()
            meta = json.loads((session / "world/meta.json").read_bytes())
            assert meta["name"] == link.name
            disk[link.name], *stack = stack_of(session / "world")
            worlds[link.name] = (meta["state"], *stack)
            if session == current:
                worlds["current"] = link.name
            elif meta["state"] == "open":
                worlds[f"view {link.name}"] = self._run("--world", link.name, "-c", VIEW)
        sessions = caller.sessions()
        assert sessions == sorted(link.resolve() for link in links)
        self.server.verify(sessions)
        told: collections.Counter = collections.Counter()
        for session in sessions:
            told += _told(caller.events(session))
        if not self.scene.collects:  # then `gc` tells of what it did itself just now
            told = collections.Counter({k: n for k, n in told.items() if k[0] != "gc"})
        return State(worlds=worlds, host=_tree(caller.work), disk=disk, told=told)

    def _run(self, *words) -> str:
        status, out, err, _ = self.server.run(*words)
        assert status == 0, (words, err.decode())
        return out.decode()

    def _assert_nothing_left(self) -> None:
        left = leftovers(self.caller.state, self.caller.work)
        assert not left, f"left behind: {left}"

    # --- the faults

    def points(self, fault: str) -> list[int]:
        """The calls to strike, from 1: all, but of many removals in a row the first and the last
        ones; a full disk only where that makes a difference."""
        found, row = [], 0
        for at, name in enumerate(self.calls, 1):
            row = row + 1 if name in _REMOVALS else 0
            ends = any(later not in _REMOVALS for later in self.calls[at : at + 2])
            if (row > 2 and not ends) or (fault == "full" and name not in ALLOCATES):
                continue
            found.append(at)
        return found

    def strike_many(self, fault: str, *, first: int, step: int) -> set[str]:
        """Every `step`-th point beginning with the one at `first`, the two ends, and each one
        where old turns into new; what came of them."""
        points = self.points(fault)
        chosen = sorted({points[0], *points[first::step], points[-1]})
        outcomes = {at: self.strike(fault, at) for at in chosen}
        for one, other in itertools.pairwise(chosen):
            if outcomes[one] != outcomes[other]:
                between = points[points.index(one) + 1 : points.index(other)]
                outcomes |= {at: self.strike(fault, at) for at in between}
        return set(outcomes.values())

    def strike(self, fault: str, at: int) -> str:
        """One fault; `old` or `new`, as the state is afterwards."""
        self.restore()
        status, _, err, calls = self.server.run(*self.scene.verb, fault=fault, at=at)
        where = f"{' '.join(self.scene.verb)}: {fault} at call {at} of {len(self.calls)}: "
        where += f"{self.calls[at - 1]}: {err.decode()}"
        # in how many pieces a command's record is written depends on when what came of it comes
        missed = self.scene.runs and status == 0 and len(calls) < at
        assert (status == -9) == (fault == "kill") or missed, f"{where}\nstatus {status}"
        return self._judge(status, err, where)

    def strike_on(self, full: "FullDisk", blocks: int) -> tuple[str, bytes]:
        """The verb on a disk that has so many blocks left; what it said."""
        self.restore()
        with full.but(blocks):
            status, _, err, _ = self.server.run(*self.scene.verb)
        where = f"{' '.join(self.scene.verb)}, {blocks} blocks left: {status}, {err.decode()}"
        outcome = self._judge(status, err, where)
        if status not in (0, 1):
            assert b"No space left on device" in err and b"\nhint: " in err, where
        return outcome, err

    def _judge(self, status: int, err: bytes, where: str) -> str:
        assert b"Traceback" not in err, where
        try:
            found = self.look()
        except AssertionError as error:
            raise AssertionError(f"{where}\n{error}") from error
        if self.scene.collects and found.told != self.old.told:
            # on the record first, then one layer after the other: the next collection goes on
            self._run("world", "gc", "--all")
            found = self.look()
        if self.scene.runs:
            return self._of_a_run(found, where)
        if self.scene.killed is not None:
            assert found == self.new, f"{where}\n{_difference(self, found)}"
            return "old"
        if found == self.old:
            assert status != 0, f"{where}\nnothing happened, but it says that it did"
            return "old"
        assert found in self.states, f"{where}\n{_difference(self, found)}"
        said = b"[E-RECORD-LATER]" in err or (self.scene.halfway and b"is a fork of" in err)
        assert status in (0, -9) or said or self.scene.collects, (
            f"{where}\nit was done, but it says that it was not"
        )
        return "new"

    def _of_a_run(self, found: State, where: str) -> str:
        view = found.worlds["view"]
        views = [self.old.worlds["view"], self.new.worlds["view"]]
        if "--fresh" in self.scene.verb:
            views.append(self.bare)  # the world is there, and its command never went off
        assert found.host == self.old.host, where
        assert view in views, f"{where}\n{view}"
        stack = self.caller.state / "worlds/w1/world/stack.json"
        merged = json.loads(stack.read_bytes())["segments"] if stack.exists() else []
        squashes = sum(n for (kind, _), n in found.told.items() if kind == "squash")
        assert squashes == len(merged), f"{where}\nmerged: {merged}, told: {found.told}"
        assert found.told - found.told_of("squash") == collections.Counter(), where
        return "new" if view == self.new.worlds["view"] else "old"


def _tree(top: Path) -> dict[str, object]:
    """What is on the host."""
    found: dict[str, object] = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(top))] = (oct(status.st_mode), content)
    return found


def _copy(source: Path, target: Path) -> None:
    remove(target)
    subprocess.run(["cp", "-a", source, target], check=True)


def _told(events) -> collections.Counter:
    found: collections.Counter = collections.Counter()
    ops = set()
    for event in events:
        kind, body = event["event_type"], event["body"]
        if kind not in TOLD or body.get("outcome", "applied") != "applied":
            continue
        if "op" in body:
            assert body["op"] not in ops, f"told twice: {event}"
            ops.add(body["op"])
        what = {k: v for k, v in body.items() if k in ("layers", "name", "dropped", "world")}
        found[kind, json.dumps(what, sort_keys=True)] += 1
    return found


def stack_of(world: Path) -> tuple[object, ...]:
    on_disk = []
    for name in ("layers", "reverse"):
        path = world / name
        names = [entry.name for entry in path.iterdir()] if path.exists() else []
        on_disk.append(sorted(int(name) for name in names if name.isdigit()))
    path = world / "stack.json"
    if not path.exists():
        return (on_disk, on_disk[0], [])
    plain = json.loads(path.read_bytes())
    assert not plain["unrecorded"], "what was done was not told"
    assert plain["intended"] is None, "an apply was neither given up nor carried out"
    layers = plain["layers"] + [n for n in on_disk[0] if n > plain["known"]]
    return (on_disk, layers, [(s["name"], s["layers"]) for s in plain["snapshots"]])


def leftovers(state: Path, work: Path) -> list[str]:
    """What only a killed process leaves, in the home and on the host."""
    found = []
    for path in state.iterdir():
        if path.name.startswith(("probe-", "gone-", "changing", "trace.jsonl.", "layers.")):
            found.append(str(path))
    found += [str(path) for path in (state / "current").iterdir() if "." in path.name]
    for link in (state / "worlds").iterdir():
        if not link.exists():
            found.append(f"{link} -> nothing")
    for session in (state / "sessions").iterdir():
        world = session / "world"
        if not (world / "meta.json").exists():
            found.append(f"{session} has no world")
            continue
        for name in os.listdir(world):
            if name.endswith((".new", ".old", ".journal")):
                found.append(str(world / name))
        found += [
            str(world / "reverse" / n) for n in ("new", "old") if (world / "reverse" / n).exists()
        ]
        found += _unused_segments(world)
    found += [str(path) for path in work.rglob(".substrate-*")]
    return found


def _unused_segments(world: Path) -> list[str]:
    path = world / "squash"
    if not path.exists():
        return []
    used = {str(s["id"]) for s in json.loads((world / "stack.json").read_bytes())["segments"]}
    return [str(path / name) for name in os.listdir(path) if name not in used]


def _difference(battery: Battery, found: State) -> str:
    lines = ["neither old nor new:"]
    for what in ("worlds", "host", "disk", "told"):
        old, new, now = (getattr(x, what) for x in (battery.old, battery.new, found))
        for key in sorted({*old, *new, *now}, key=str):
            sides = [side.get(key) for side in (old, new, now)]
            if sides[2] not in sides[:2] or sides[0] != sides[1]:
                lines.append(f"{what} {key}:")
                lines += [f"  {n} {s!r}" for n, s in zip(("old", "new", "now"), sides, strict=True)]
    return "\n".join(lines)
