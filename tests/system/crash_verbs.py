"""Kills the verbs of a world's stack at random moments, and looks whether all is old or all new.

One world at a time. What it must look like is worked out beside it (`Model`): which commands are
on its stack and what each of them wrote. A verb is started as a person starts it and killed at
some moment of its work; in every other apply the host goes on: somebody writes to a file before
anything of substrate runs again. Then a command opens the world. Its view, its stack and its
snapshots must be those from before the verb or those after it; the trace must tell of it once
if it happened and not at all if not; the edit must be there; nothing may be left. Used by
test_crash_verbs.py and scripts/soak-verbs.
"""

import collections
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

from substrate.world.layers import MAX_LOWERS
from tests.system import traces_left
from tests.system.caller import Caller
from tests.system.fault_battery import Server, leftovers, stack_of

#: the verbs, and the event that tells of each
TOLD_BY = {
    "undo": "undo",
    "undo-deps": "undo",
    "snapshot": "snapshot",
    "rollback": "rollback",
    "fork": "fork",
    "gc": "gc",
    "discard": "fs_discard",
    "apply": "fs_apply",
    "apply-span": "fs_apply",
    "undo-apply": "undo",
}
VIEW = "for name in *; do echo $name:$(cat $name); done"
_NAMES = 5
_FORKS = 2
#: what is known of a view: name → content
View = dict[str, str]


class Model:
    """A world: `commands`, by the number of the layer of each, as the names that it wrote its
    number to. `stack`, `snapshots`: numbers of layers. `host`: what lies there. `applied`: the
    last layer that was applied by itself, and the host before that, while that can be undone."""

    def __init__(self, host: View) -> None:
        self.host = dict(host)
        self.commands: dict[int, list[str]] = {}
        self.stack: list[int] = []
        self.snapshots: dict[str, list[int]] = {}
        self.applied: tuple[int, View] | None = None

    def copy(self) -> "Model":
        new = Model(self.host)
        new.commands = dict(self.commands)
        new.stack = list(self.stack)
        new.snapshots = dict(self.snapshots)
        new.applied = self.applied
        return new

    def written(self, layers: list[int]) -> View:
        return {name: str(n) for n in layers for name in self.commands[n]}

    def view(self) -> View:
        return self.host | self.written(self.stack)

    def built_on(self, layer: int) -> set[int]:
        """The layer, and later ones that share a name with it or with one of these."""
        found = {layer}
        for n in self.stack:
            names = {name for m in found for name in self.commands[m]}
            if n > layer and names & set(self.commands[n]):
                found.add(n)
        return found

    def is_alone(self, layer: int) -> bool:
        others = {name for n in self.stack if n != layer for name in self.commands[n]}
        return not others & set(self.commands[layer])

    def unheld(self) -> set[int]:
        """Those that nothing holds and that were not collected yet."""
        there = {n for n, names in self.commands.items() if names}
        return there - set(self.stack) - {n for s in self.snapshots.values() for n in s}


class CrashedVerbs:
    """`server` runs what is not killed. `killed`: how often each verb was; `outcomes`: what came
    of it."""

    def __init__(self, caller: Caller, server: Server, seed: int) -> None:
        self.caller = caller
        self.server = server
        self.random = random.Random(seed)
        self.killed: collections.Counter[str] = collections.Counter()
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.lengths: dict[str, float] = {}
        self.count = 0
        self.begin()

    # --- worlds

    def begin(self) -> None:
        """A new world in a directory with some files, and nothing of an older one."""
        self.caller.forget()
        self.forks: dict[str, View] = {}
        host = {f"h{n}": "host" for n in range(3)}
        for name, content in host.items():
            self._write(name, content)
        self.model = Model(host)
        for _ in range(self.random.randrange(2, 5)):
            self.add_command()

    def add_command(self) -> None:
        layer = max(self.model.commands, default=0) + 1
        names = [f"own{layer}"]
        if self.random.random() < 0.6:
            names.append(self.random.choice([f"n{self.random.randrange(_NAMES)}", "h0", "h1"]))
        self._run("-c", "; ".join(f"echo {layer} > {name}" for name in names))
        assert (self._session() / "world" / "layers" / str(layer)).is_dir()
        self.model.commands[layer] = names
        self.model.stack.append(layer)

    def _write(self, name: str, content: str) -> None:
        path = self.caller.work / name
        path.write_text(content)
        self.caller.own(path)

    def _session(self) -> Path:
        (current,) = (self.caller.state / "current").iterdir()
        return current.resolve()

    def _run(self, *words: str) -> str:
        status, out, err, _ = self.server.run(*words)
        assert (status, err) == (0, b"") or words[0] != "-c", (words, err.decode())
        assert status == 0, (words, err.decode())
        return out.decode()

    # --- one kill

    def strike(self, kind: str = "") -> None:
        """A verb is killed, and the world opened again: `kind`, or some one that makes sense now."""
        if kind:
            self._make_able(kind)
        while len(self.model.stack) < 2 or (not kind and self.random.random() < 0.3):
            self.add_command()
        able = {kind: found for kind in TOLD_BY if (found := self._choose(kind)) is not None}
        if not kind:
            kinds = sorted(able)
            weights = [1 / (1 + self.killed[kind]) ** 2 for kind in kinds]
            (kind,) = self.random.choices(kinds, weights)
        words, new = able[kind]
        session = self._session()
        told, worlds = self._told(session), self._worlds()
        killed = self._kill(kind, words, session)
        # an edit ends the world: not before an apply that can be undone was followed by that
        edited = "apply" in kind and (kind != "apply-span" or self.killed["undo-apply"] > 0)
        edit = self._edit(new) if edited else None
        where = f"{' '.join(words)}, {'killed' if killed else 'not killed'}, edit: {edit}"
        try:
            self._look(kind, new, session, told, worlds, edit, killed)
        except AssertionError as error:
            raise AssertionError(f"{where}\n{error}") from error

    def _make_able(self, kind: str) -> None:
        """A new world in which the verb has something to do, since what it takes was done."""
        before = {"undo-apply": "apply-span", "gc": "undo", "rollback": "snapshot"}.get(kind)
        self.begin()
        while (chosen := self._choose(before or kind)) is None:
            self.begin()
        if before is not None:
            words, self.model = chosen
            self._run(*words)

    def _kill(self, kind: str, words: tuple[str, ...], session: Path) -> bool:
        self.count += 1
        mark = f"verb-{os.getpid()}-{self.count}"
        process = self.caller.start(
            *words,
            env={**self.caller.environ, traces_left.MARK: mark},
            stdout=subprocess.DEVNULL,
        )
        self._wait(process, session, kind)
        process.kill()
        err = process.communicate(timeout=60)[1]
        assert process.returncode in (0, -signal.SIGKILL), (words, err.decode())
        self.killed[kind] += process.returncode != 0
        left = traces_left.gone(lambda: traces_left.processes(mark))
        assert not left, f"processes outlive the verb: {left}"
        return process.returncode != 0

    def _wait(self, process: "subprocess.Popen[bytes]", session: Path, kind: str) -> None:
        """Until some moment of its work, which begins when it writes into the session's lock."""
        deadline = time.monotonic() + 30
        lock = session / "lock"
        while process.poll() is None and not lock.stat().st_size:
            assert time.monotonic() < deadline, "it never took the lock"
            time.sleep(0.0002)
        # what can seldom be tried is not to be over before its first kill
        length = self.lengths.get(kind, 0.03 if kind == "undo-apply" else 0.1)
        time.sleep(self.random.uniform(0, length))
        if process.poll() is None:
            self.lengths[kind] = length * 1.05
        else:
            self.lengths[kind] = max(0.002, length * 0.8)

    def _edit(self, new: Model) -> tuple[str, str] | None:
        """Somebody writes to the host: over a file of it or where the apply puts one."""
        if self.random.random() < 0.5:
            return None
        name = self.random.choice(sorted(self.model.view() | new.host))
        self._write(name, f"edit {self.count}")
        return name, f"edit {self.count}"

    def _look(self, kind, new, session, told, worlds, edit, killed) -> None:
        status, out, err, _ = self.server.run("-c", VIEW)
        if edit is not None:
            assert (self.caller.work / edit[0]).read_text() == edit[1], "the edit is lost"
            if b"[E-APPLY-UNCLEAR]" in err:
                self._forget(session, edit)
                return
        assert (status, err) == (0, b""), err.decode()
        view = dict(line.split(":", 1) for line in out.decode().splitlines())
        self._run("world", "gc")
        left = leftovers(self.caller.state, self.caller.work)
        assert not left, f"left behind: {left}"
        delta = self._told(session) - told
        happened = delta[TOLD_BY[kind]] > 0
        over = happened and kind in ("discard", "apply")
        wanted = {TOLD_BY[kind]: 1, **({"session_end": 1} if over else {})} if happened else {}
        if kind == "gc":  # layer by layer; what is left is told and taken by the next one
            self._run("world", "gc", "--all")
            wanted = {kind: delta[kind]} if happened else {}
        assert delta == wanted, f"told: {delta}"
        assert happened or killed, "it was done, and is not told"
        model = new if happened or kind == "gc" else self.model
        if edit is not None:
            model.host |= dict([edit])
        host = {path.name: path.read_text().strip() for path in self.caller.work.iterdir()}
        assert host == model.host, f"{happened=}\nhost: {host}\nexpected: {model.host}"
        assert (self._session() != session) == over
        expected = model.host if over else model.view()
        assert view == expected, f"{happened=}\nview: {view}\nexpected: {expected}"
        self._check_stack(session, model, over)
        self._check_forks(kind, model, happened, worlds)
        self.server.verify([session])
        self.outcomes[f"{kind}: {'new' if happened else 'old'}"] += 1
        self.model = model
        if over or edit is not None:
            self._go_on(over)

    def _forget(self, session: Path, edit: tuple[str, str]) -> None:
        """It cannot be known what to do: nothing was touched, and a person goes on by hand."""
        self.outcomes["apply: unclear"] += 1
        world = json.loads((session / "world/meta.json").read_bytes())["name"]
        self._run("world", "gc", "--forget-apply", world)
        assert (self.caller.work / edit[0]).read_text() == edit[1], "the edit is lost"
        told = [e["body"] for e in self.caller.events(session) if "op" in e["body"]]
        assert told[-1]["outcome"] == "unclear"
        self._run("discard", "--yes")
        self.server.verify([session])
        self.begin()

    def _go_on(self, over: bool) -> None:
        """The world is over, or the host was edited beside it: another one, now and then with
        the sessions of the older ones still there."""
        if not over:
            self._run("discard", "--yes")
        if self.forks or self.random.random() < 0.5:
            self.begin()
        else:
            self.model = Model(self.model.host)

    # --- what is there

    def _told(self, session: Path) -> collections.Counter[str]:
        """What a session's trace tells of its stack, of the host and of its end."""
        found: collections.Counter[str] = collections.Counter()
        ops, collected = set(), set()
        for event in self.caller.events(session):
            kind, body = event["event_type"], event["body"]
            if kind not in (*TOLD_BY.values(), "session_end", "squash"):
                continue
            found[kind] += 1
            assert body.get("op") not in ops or "op" not in body, f"told twice: {event}"
            ops.add(body.get("op"))
            if kind == "gc":
                gone = {*body["layers"], *(-n for n in body.get("reverse_layers", ()))}
                assert not collected & gone, f"told twice: {event}"
                collected |= gone
        return found

    def _worlds(self) -> set[str]:
        return {path.name for path in (self.caller.state / "worlds").iterdir()}

    def _check_stack(self, session: Path, model: Model, over: bool) -> None:
        _, layers, snapshots = stack_of(session / "world")
        if not over:
            assert layers == model.stack
            assert dict(snapshots) == model.snapshots

    def _check_forks(self, kind: str, model: Model, happened: bool, worlds: set[str]) -> None:
        new = self._worlds() - worlds
        if kind == "fork":
            assert len(new) == happened, new
            for name in new:
                self.forks[name] = self.model.written(self.model.stack)
        if kind in ("fork", "gc", "discard", "apply", "apply-span"):
            for name, written in self.forks.items():
                out = self._run("--world", name, "-c", VIEW)
                view = dict(line.split(":", 1) for line in out.splitlines())
                assert view == model.host | written, f"fork {name}"

    # --- the verbs

    def _choose(self, kind: str) -> tuple[tuple[str, ...], Model] | None:
        """The words of a verb and the model after it; None where it would do nothing."""
        old, new = self.model, self.model.copy()
        match kind:
            case "undo":
                new.stack.pop()
                return ("undo", "--yes"), new
            case "undo-deps":
                layer = self.random.choice(old.stack)
                new.stack = [n for n in old.stack if n not in old.built_on(layer)]
                return ("undo", self._span(layer), "--with-deps", "--yes"), new
            case "snapshot" if old.applied is None:
                name = f"s{self.random.randrange(3)}"
                new.snapshots[name] = list(old.stack)
                return ("snapshot", name, "--force"), new
            case "rollback" if old.snapshots:
                name = self.random.choice(sorted(old.snapshots))
                new.stack = list(old.snapshots[name])
                return ("rollback", name, "--yes"), new
            case "fork" if len(self.forks) < _FORKS:
                return ("world", "fork"), new
            case "gc" if (old.unheld() or old.applied) and not self.forks:
                for layer in old.unheld():
                    new.commands[layer] = []
                new.applied = None
                return ("world", "gc", "--all"), new
            case "discard":
                return ("discard", "--yes"), new
            case "apply":
                new.host = old.view()
                return ("apply",), new
            case "apply-span" if not old.snapshots and any(map(old.is_alone, old.stack)):
                layer = self.random.choice([n for n in old.stack if old.is_alone(n)])
                new.host |= old.written([layer])
                new.stack.remove(layer)
                new.applied = layer, old.host
                return ("apply", self._span(layer)), new
            case "undo-apply" if old.applied is not None:
                layer, new.host = old.applied
                new.stack = sorted([*old.stack, layer])
                new.applied = None
                return ("undo", "--apply", "--yes"), new
        return None

    def _span(self, layer: int) -> str:
        """The name of the command that made a layer."""
        for event in self.caller.events(self._session()):
            if event["event_type"] == "fs_diff" and event["body"]["layer"] == layer:
                return str(event["span_id"])
        raise AssertionError(f"no command made layer {layer}")


class CrashedMerges:
    """Kills commands while they merge the layers below them. One world with as many layers as
    that takes; before each kill the merged ones are made those of an earlier boot, which do not
    count, so that the next command merges again."""

    def __init__(self, caller: Caller, server: Server, seed: int) -> None:
        self.caller = caller
        self.server = server
        self.random = random.Random(seed)
        self.count = self.killed = 0
        self.length = 0.2
        caller.forget()
        for number in range(MAX_LOWERS + 1):
            self._run(f"echo {number} > n{number % 7}; rm -f n{(number + 3) % 7}; : > f{number}")
        (self.session,) = caller.sessions()
        self.view = self._run(VIEW)

    def _run(self, text: str) -> str:
        status, out, err, _ = self.server.run("-c", text)
        assert (status, err) == (0, b""), err.decode()
        return out.decode()

    def strike(self) -> None:
        stack = self.session / "world" / "stack.json"
        plain = json.loads(stack.read_bytes())
        assert len(plain["segments"]) == 1
        plain["boot_id"] = "an earlier one"
        stack.write_text(json.dumps(plain, sort_keys=True, separators=(",", ":")) + "\n")
        told = self._told()
        self.count += 1
        mark = f"merge-{os.getpid()}-{self.count}"
        process = self.caller.start(
            *("-c", ": reads nothing, writes nothing"),
            env={**self.caller.environ, traces_left.MARK: mark},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        squash = self.session / "world" / "squash"
        before = squash.stat().st_mtime_ns
        while process.poll() is None and squash.stat().st_mtime_ns == before:
            time.sleep(0.0002)
        time.sleep(self.random.uniform(0, self.length))
        process.kill()
        self.killed += process.wait(60) != 0
        left = traces_left.gone(lambda: traces_left.processes(mark))
        assert not left, f"processes outlive the command: {left}"
        assert self._run(VIEW) == self.view
        status, _, err, _ = self.server.run("world", "gc")
        assert status == 0, err.decode()
        left = leftovers(self.caller.state, self.caller.work)
        assert not left, f"left behind: {left}"
        assert self._told() == told + 1, "a merge was told twice, or not at all"
        assert len(json.loads(stack.read_bytes())["segments"]) == 1
        self.server.verify([self.session])

    def _told(self) -> int:
        ops = [
            e["body"]["op"] for e in self.caller.events(self.session) if e["event_type"] == "squash"
        ]
        assert len(ops) == len(set(ops))
        return len(ops)
