"""Whatever is done to worlds, in any order: each shows what a model of its stack says.

The model is Python values: the host's tree, and of each world the numbers on its stack, its
snapshots, its commands. What a command makes is found out on a plain copy; what a stack shows
over a host that changed beneath it follows from what its layers hold.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

sys.path.insert(0, str(Path(__file__).parent))
import sessions
from operations import (
    OPERATIONS,
    Operation,
    Tree,
    kinds,
    look,
    make,
    operations_on,
    perform_all,
)
from sessions import Sessions, folded
from stacks import said

from substrate.errors import StateError
from substrate.session.undo import NothingToUndo
from substrate.telemetry import verifier

SNAPSHOTS = ["s", "t"]


@dataclass
class Model:
    """One world. `spans`: the layer of each command of its own record. `foreign`: paths of the
    host that somebody else changed since the world began."""

    session: str
    name: str
    stack: list[int]
    base: int = 0
    spans: list[int | None] = field(default_factory=list)
    snapshots: dict[str, tuple[list[int], int]] = field(default_factory=dict)
    applies: int = 0
    foreign: set[bytes] = field(default_factory=set)
    told: dict[str, int] = field(default_factory=dict)
    #: a killed command has left an empty layer, which the next opening removes
    empty_left: bool = False

    def tell(self, event: str, count: int = 1) -> None:
        if count:
            self.told[event] = self.told.get(event, 0) + count


class Worlds(RuleBasedStateMachine):
    flavour = ""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="substrate-machine-"))
        self.directory.chmod(0o711)
        self.real = Sessions(self.directory, self.flavour)
        self.host_path = os.fsencode(self.real.world.host)
        self.host: Tree = {}
        self.worlds: list[Model] = []
        self.over: list[Model] = []
        self.at = 0
        self.seed = 0
        self.held: dict[tuple[str, int], dict[bytes, sessions.Statement]] = {}

    def teardown(self) -> None:
        try:
            for model in self.worlds:
                assert self.real.call(sessions.do_settle, model.session) is None
            for model in (*self.worlds, *self.over):
                assert self.real.call(sessions.events, model.session) == model.told
                files = self.real.files(model.session)
                verdict = verifier.verify(os.fsdecode(files.path))
                assert verdict.errors == ()
                assert verdict.integrity in ("verified", "verified_so_far"), verdict
        finally:
            shutil.rmtree(self.directory)

    # --- the model

    @property
    def here(self) -> Model:
        return self.worlds[self.at % len(self.worlds)]

    def has_stacked(self, count: int) -> bool:
        return bool(self.worlds) and len(self.here.stack) >= count

    def layers(self, model: Model, numbers: list[int]) -> list[dict[bytes, sessions.Statement]]:
        found = []
        for number in numbers:
            owner = self.real.stack(model.session).directory_of(number)
            key = os.fsdecode(owner), number
            if key not in self.held:
                self.held[key] = self.real.held(model.session, number)
            found.append(self.held[key])
        return found

    def view(self, model: Model, numbers: list[int] | None = None) -> Tree:
        wanted = model.stack if numbers is None else numbers
        return folded(self.host, self.layers(model, wanted))

    def on_a_copy(self, tree: Tree, listed: list[Operation], seed: int) -> Tree:
        top = os.fsencode(self.real.world.state / "copy")

        def work() -> Tree:
            make(top, tree)
            perform_all(top, listed, seed)
            found = look(top)
            for directory, _, _ in os.walk(top):
                os.chmod(directory, 0o700)
            shutil.rmtree(top)
            return found

        found: Tree = self.real.world.outside(work)
        return found

    def host_changed(self, new: Tree, by: Model | None) -> None:
        """Tells every other world what is not its own doing."""
        changed = {p for p in self.host.keys() | new.keys() if self.host.get(p) != new.get(p)}
        changed |= {os.path.dirname(p) or b"." for p in changed if p != b"."}
        for model in self.worlds:
            if model is not by:
                model.foreign |= changed
        self.host = new

    def end(self, model: Model) -> None:
        self.worlds.remove(model)
        self.over.append(model)
        if not self.worlds:
            self.begin()

    def begin(self) -> None:
        session, name = self.real.begin()
        self.worlds.append(Model(session=session, name=name, stack=[]))
        self.real.world.settle()

    # --- rules

    @initialize(first=st.lists(OPERATIONS, max_size=10))
    def start(self, first: list[Operation]) -> None:
        self.real.world.outside(lambda: perform_all(self.host_path, first, 0))
        self.host = self.real.world.outside(lambda: look(self.host_path))
        self.real.world.settle()
        self.begin()

    @rule(data=st.data())
    def command(self, data: Any) -> None:
        self.run(data)

    @rule(data=st.data())
    def another_command(self, data: Any) -> None:
        self.run(data)

    @rule(data=st.data())
    def killed_command(self, data: Any) -> None:
        self.run(data, killed=True)

    def run(self, data: Any, *, killed: bool = False) -> None:
        model = self.here
        self.seed += 1
        before = self.view(model)
        few = st.lists(operations_on(before), min_size=1, max_size=3)
        listed: list[Operation] = data.draw(few, label="operations")
        after = self.on_a_copy(before, listed, self.seed)
        number, seen = self.real.command(model.session, listed, self.seed, killed=killed)
        assert seen == after
        model.spans.append(number)
        if number is None:
            assert before == after
            model.empty_left = killed
        else:
            assert number > max(model.stack, default=0)
            assert not any(number in layers for layers, _ in model.snapshots.values())
            model.stack.append(number)
            assert self.view(model) == after
        if killed:
            model.tell("recovery")

    def undone(self, spans: list[str], with_deps: bool) -> None:
        model = self.here
        before = list(model.stack)
        found = self.real.call(sessions.do_undo, model.session, spans, with_deps)
        assert isinstance(found, tuple), found
        layers, others = found
        assert not (with_deps and others)
        assert set(layers) <= set(before)
        if not others:
            model.stack = [n for n in before if n not in layers]
            model.tell("undo")

    @precondition(lambda self: self.has_stacked(1))
    @rule()
    def undo_the_last(self) -> None:
        model = self.here
        if model.stack:
            wanted = model.stack[:-1]
            self.undone([], False)
            assert model.stack == wanted
        else:
            found = self.real.call(sessions.do_undo, model.session, [], False)
            assert isinstance(found, NothingToUndo)

    @precondition(lambda self: self.has_stacked(2))
    @rule(data=st.data(), with_deps=st.booleans())
    def undo_some(self, data: Any, with_deps: bool) -> None:
        model = self.here
        if not model.spans:
            return
        ordinal = data.draw(st.integers(1, len(model.spans)), label="command")
        if model.spans[ordinal - 1] in model.stack:
            self.undone([str(ordinal)], with_deps)
        else:
            found = self.real.call(sessions.do_undo, model.session, [str(ordinal)], with_deps)
            assert isinstance(found, NothingToUndo)

    @rule(name=st.sampled_from(SNAPSHOTS))
    def snapshot(self, name: str) -> None:
        model = self.here
        remove = name in model.snapshots
        assert self.real.call(sessions.do_snapshot, model.session, name, remove) is None
        if remove:
            del model.snapshots[name]
        else:
            model.snapshots[name] = list(model.stack), model.applies
        model.tell("snapshot")

    @precondition(lambda self: self.worlds and self.here.snapshots)
    @rule(data=st.data())
    def roll_back(self, data: Any) -> None:
        model = self.here
        name = data.draw(st.sampled_from(sorted(model.snapshots)), label="snapshot")
        wanted, applies = model.snapshots[name]
        found = self.real.call(sessions.do_rollback, model.session, name)
        if applies != model.applies:
            assert isinstance(found, StateError)
            assert found.code == "E-SNAPSHOT-APPLIED"
        else:
            assert found is None
            model.stack = list(wanted)
            model.tell("rollback")

    @precondition(lambda self: self.has_stacked(2))
    @rule(most=st.integers(1, 3))
    def squash(self, most: int) -> None:
        model = self.here
        made = self.real.call(sessions.do_squash, model.session, most)
        assert isinstance(made, int), made
        model.tell("squash", made)

    @precondition(lambda self: len(self.worlds) < 3 and self.has_stacked(1))
    @rule(data=st.data())
    def fork(self, data: Any) -> None:
        model = self.here
        ordinals = [str(n + 1) for n in range(len(model.spans))]
        at = data.draw(st.sampled_from([None, *ordinals, *sorted(model.snapshots)]), label="at")
        stack = list(model.stack)
        if at in model.snapshots:
            stack = list(model.snapshots[at][0])
        elif at is not None:
            newest = max([model.base, *(n for n in model.spans[: int(at)] if n is not None)])
            stack = [n for n in stack if n <= newest]
        known = max(self.numbers_given(model), default=0)
        found = self.real.call(sessions.do_fork, model.session, at)
        assert isinstance(found, tuple), found
        session, name = found
        new = Model(
            session=session,
            name=name,
            stack=stack,
            base=known,
            foreign=set(model.foreign),
        )
        self.worlds.append(new)
        model.tell("fork")
        new.tell("fork")

    def numbers_given(self, model: Model) -> list[int]:
        stack = self.real.stack(model.session)
        return [stack.known, *stack.numbers]

    @precondition(lambda self: len(self.worlds) > 1)
    @rule()
    def turn_to_another(self) -> None:
        self.at += 1

    @rule()
    def collect(self) -> None:
        assert self.real.call(sessions.do_gc) == []
        for model in (*self.worlds, *self.over):
            told = self.real.call(sessions.events, model.session)
            model.told = {k: n for k, n in {**model.told, "gc": told.get("gc", 0)}.items() if n}

    @rule(data=st.data())
    def edit_the_host(self, data: Any) -> None:
        """A new file in some directory, by somebody who knows of no world."""
        tops = sorted(p for p, entry in self.host.items() if entry[0] == 0o040000)
        top = data.draw(st.sampled_from(tops), label="directory")
        name = b"host-%d" % len(self.host)
        new = name if top == b"." else top + b"/" + name

        def work() -> Tree:
            perform_all(self.host_path, [("write", new, b"by the host\n")], self.seed)
            return look(self.host_path)

        self.real.world.settle()
        self.host_changed(self.real.world.outside(work), None)
        self.real.world.settle()

    # --- apply

    def applied(self, found: Any, model: Model, wanted: Tree) -> bool:
        """Whether it was; what is refused must be somebody else's doing."""
        assert isinstance(found, tuple), found
        outcome, _, conflicts, _ = found
        now = self.real.world.outside(lambda: look(self.host_path))
        if outcome == "applied":
            # what somebody else changed, and the world did not, is left to the host
            for path in {p for p in now.keys() | wanted.keys() if now.get(p) != wanted.get(p)}:
                assert path in model.foreign, path
                assert now.get(path) == self.host.get(path), path
            self.host_changed(now, model)
            return True
        assert now == self.host
        if outcome == "conflicts":
            model.tell("fs_apply")
            start = len(self.host_path) + 1
            for path in conflicts:
                relative = path[start:] or b"."
                meant = {relative, os.path.dirname(relative) or b"."}
                assert meant & model.foreign, path
        return False

    def after_apply(self, model: Model, over: bool, changed: bool) -> None:
        model.tell("fs_apply")
        model.applies += changed
        if over:
            self.end(model)

    @precondition(lambda self: self.has_stacked(3))
    @rule()
    def apply_all(self) -> None:
        model = self.here
        wanted = self.view(model)
        changed = wanted != self.host
        found = self.real.call(sessions.do_apply, model.session, None, False, None)
        if self.applied(found, model, wanted):
            self.after_apply(model, True, changed)

    @precondition(lambda self: self.has_stacked(2))
    @rule(data=st.data(), with_deps=st.booleans())
    def apply_some(self, data: Any, with_deps: bool) -> None:
        model = self.here
        ordinals = [n + 1 for n, number in enumerate(model.spans) if number in model.stack]
        if not ordinals:
            return
        ordinal = data.draw(st.sampled_from(ordinals), label="command")
        view = self.view(model)
        found = self.real.call(sessions.do_apply, model.session, [str(ordinal)], with_deps, None)
        assert isinstance(found, tuple), found
        outcome, layers, _, over = found
        assert not (with_deps and outcome == "depends")
        part = self.view(model, [n for n in model.stack if n in layers])
        changed = part != self.host
        if self.applied(found, model, part):
            model.stack = [n for n in model.stack if n not in layers]
            assert self.view(model) == view
            self.after_apply(model, over, changed)

    @precondition(lambda self: self.has_stacked(1))
    @rule(data=st.data())
    def apply_a_path(self, data: Any) -> None:
        model = self.here
        view = self.view(model)
        tops = {p.split(b"/")[0] for p in kinds(self.host, view)} - {b"."}
        if not tops:
            return
        top = data.draw(st.sampled_from(sorted(tops)), label="path")

        def is_below(path: bytes) -> bool:
            return path == top or path.startswith(top + b"/")

        wanted = {p: entry for p, entry in self.host.items() if not is_below(p)}
        wanted |= {p: entry for p, entry in view.items() if is_below(p)}
        found = self.real.call(
            sessions.do_apply, model.session, None, False, self.host_path + b"/" + top
        )
        if self.applied(found, model, wanted):
            self.after_apply(model, found[3], True)

    @precondition(lambda self: len(self.worlds) > 1 and self.has_stacked(1))
    @rule()
    def discard(self) -> None:
        model = self.here
        assert self.real.call(sessions.do_discard, model.session) is None
        model.tell("fs_discard")
        self.end(model)

    # --- what must hold after each of them

    @invariant()
    def every_world_shows_what_the_model_says(self) -> None:
        stacks = [self.real.stack(model.session) for model in self.worlds]
        for model, stack in zip(self.worlds, stacks, strict=True):
            numbers = list(stack.numbers)
            if model.empty_left and numbers != model.stack:
                numbers.pop()
            assert numbers == model.stack
        views = [self.view(model) for model in self.worlds]
        assert self.real.world.views(look, stacks) == views
        if self.worlds:
            found = self.real.call(sessions.changes, self.here.session)
            assert isinstance(found, list), found
            view = views[self.worlds.index(self.here)]
            assert said(self.real.world, found) == kinds(self.host, view)


def _machine(flavour_of_it: str) -> Any:
    class Machine(Worlds):
        flavour = flavour_of_it

    Machine.TestCase.settings = settings(
        max_examples=8,
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    return Machine.TestCase


TestRootsWorlds = _machine("trusted")
TestRootlessWorlds = _machine("user")
TestIdMappedWorlds = _machine("idmap")
