"""A world whose layers are recorded as a session records them, without a session: for tests of
what the record is good for. Not a test."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from substrate.errors import StateError
from substrate.session.recorded import parse_states, plain_states
from substrate.world import apply as applying
from substrate.world import preimages
from substrate.world.aspects import parse_base
from substrate.world.bases import Base, Bases, Missing, outcomes
from substrate.world.change import ADDED
from substrate.world.diff import diff_layer, diff_pending
from substrate.world.layers import freeze_layer
from substrate.world.resolve import OnConflict, Resolved
from substrate.world.review import review_plan
from substrate.world.witness import Witness

Step = Callable[..., object]


def keyed(content: bytes) -> str:
    return hashlib.sha256(b"a key of the tests" + content).hexdigest()


def digest(fd: int) -> str:
    content = b""
    while piece := os.pread(fd, 1 << 20, len(content)):
        content += piece
    return keyed(content)


@dataclass
class Record:
    """What the trace of a session would hold. `moment` counts its lines."""

    world: Any
    entries: dict[bytes, list[tuple[int, Base]]] = field(default_factory=dict)
    layers: list[int] = field(default_factory=list)
    applied: dict[bytes, tuple[int, Base]] = field(default_factory=dict)
    moment: int = 0

    @property
    def kept(self) -> bytes:
        return os.fsencode(self.world.state) + b"/" + preimages.NAME

    def command(self, *steps: Step) -> None:
        """Runs steps in the world, each with the merged root and the host's directory, which
        both end in a slash; then records the layer and freezes it."""
        world = self.world

        def work(root: bytes) -> None:
            for step in steps:
                step(root + b"/", os.fsencode(world.host) + b"/")

        world.command(work, freeze=False)
        self.record()

    def record(self) -> None:
        world = self.world
        number = world.stack.layers[-1].number

        def look() -> list[tuple[bytes, str, Any, str | None]]:
            witness = Witness(world.stack, number, keyed, preimages.Preimages(self.kept, keyed))
            changes = diff_layer(world.stack, number, digest=digest, witness=witness)
            freeze_layer(world.stack, number)
            return [
                (c.path, c.kind, witness.bases.get(c.path), c.before and c.before.digest)
                for c in changes
            ]

        self.moment += 1
        for path, kind, plain, before in world.outside(look):
            if plain is None:
                assert kind == ADDED, (path, kind)
            base = Missing.NOTHING if plain is None else parse_base(plain, before)
            self.entries.setdefault(path, []).append((self.moment, base))
        self.layers.append(number)

    def bases(self) -> Bases:
        return Bases(
            digest=digest,
            keyed=keyed,
            entries=self.entries,
            layers=frozenset(self.layers),
            applied=self.applied,
        )

    def review(
        self,
        on_conflict: OnConflict = OnConflict.FAIL,
        select: Callable[[bytes], bool] | None = None,
    ) -> Resolved:
        """As whoever calls it: `world.outside` for the invoking user."""
        stack = self.world.stack
        return review_plan(
            diff_pending(stack, digest=digest),
            stack,
            os.fsencode(self.world.state),
            self.bases(),
            select,
            on_conflict,
            lambda wanted: preimages.load([self.kept], wanted, keyed),
        )

    def apply(
        self,
        on_conflict: OnConflict = OnConflict.FAIL,
        select: Callable[[bytes], bool] | None = None,
        **options: Any,
    ) -> list[tuple[bytes, str, str | None]]:
        """Applies; gives (path below the host's directory, reason, resolution) of conflicts.
        Where one stands nothing may be applied, and the apply itself must say so too."""
        start = len(os.fsencode(self.world.host)) + 1

        def work() -> tuple[list[tuple[bytes, str, str | None]], list[dict[str, Any]]]:
            found = self.review(on_conflict, select)
            said = [
                (c.path[start:], c.reason.value, c.resolution and c.resolution.value)
                for c in found.conflicts
            ]
            planned = found.plan
            states = outcomes(planned.changes, self.world.stack, self.bases(), planned.contents)
            try:
                applying.apply(
                    found.plan, self.world.stack, os.fsencode(self.world.state), **options
                )
            except applying.ApplyConflict as refused:
                standing = [p for p, _, resolution in said if resolution is None]
                assert [c.path[start:] for c in refused.conflicts] == standing
                return said, []
            assert all(resolution is not None for _, _, resolution in said)
            return said, plain_states(states)

        conflicts, brought = self.world.outside(work)
        self.moment += 1
        if select is not None:
            self.applied.update(
                {path: (self.moment, state) for path, state in parse_states(brought)}
            )
        return conflicts

    def refused(self) -> str:
        """The message of an apply that fails for another reason than a conflict."""

        def work() -> str:
            found = self.review()
            assert found.conflicts == ()
            try:
                applying.apply(found.plan, self.world.stack, os.fsencode(self.world.state))
            except StateError as error:
                return str(error)
            raise AssertionError("it was applied")

        said: str = self.world.outside(work)
        return said
