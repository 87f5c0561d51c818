"""A real stack of layers beside a model of it: what each state of it must show.

The model is values: the host's tree, and of each layer the patch that its operations made on
a copy. Invariant: the copy never saw an overlay.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from operations import TOP, Operation, Patch, Tree, difference, look, make, patched, perform_all
from test_apply import apply, pending

from substrate.values import replace
from substrate.world.change import Change
from substrate.world.dependence import Dependences
from substrate.world.diff import diff_layer
from substrate.world.layers import LayerStack, Segment
from substrate.world.squash import Merge, squash


class Stack:
    """A world, its host, and what both must be."""

    def __init__(self, world: Any, first: Sequence[Operation]) -> None:
        self.world = world
        self.copies = 0
        top = os.fsencode(world.host)
        world.outside(lambda: perform_all(top, list(first), 0))
        self.host: Tree = world.outside(lambda: look(top))
        self.patches: dict[int, Patch] = {}
        world.start()

    # --- the model

    def expected(self, numbers: Iterable[int] | None = None) -> Tree:
        """What the layers `numbers` (all on the stack) must show over the host."""
        wanted = self.world.stack.numbers if numbers is None else numbers
        return patched(self.host, *(self.patches[n] for n in wanted))

    def on_a_copy(self, tree: Tree, listed: Sequence[Operation], layer: int) -> Tree:
        """What the operations make of a tree, on a filesystem without overlays."""
        self.copies += 1
        top = os.fsencode(self.world.state / f"copy-{self.copies}")

        def work() -> Tree:
            make(top, tree)
            perform_all(top, list(listed), layer)
            found = look(top)
            for directory, _, _ in os.walk(top):
                os.chmod(directory, 0o700)
            shutil.rmtree(top)
            return found

        found: Tree = self.world.outside(work)
        return found

    # --- the world

    def run(self, listed: Sequence[Operation]) -> int:
        """A command that does these; gives its layer. The world must show what the copy shows."""
        before = self.expected()
        layer = max((self.world.stack.known, *self.world.stack.numbers), default=0) + 1
        after = self.on_a_copy(before, listed, layer)

        def work(root: bytes) -> Tree:
            perform_all(root, list(listed), layer)
            return look(root)

        seen = self.world.command(work)
        assert self.world.stack.numbers[-1] == layer
        self.patches[layer] = difference(before, after)
        assert seen == after
        return layer

    def seen(self, *parts: Sequence[int]) -> list[Tree]:
        """What the kernel shows of each of these parts of the stack."""
        found: list[Tree] = self.world.views(look, [self.part(part) for part in parts])
        return found

    def part(self, numbers: Sequence[int] | None) -> LayerStack:
        stack: LayerStack = self.world.stack
        if numbers is None:
            return stack
        return replace(stack, layers=tuple(x for x in stack.layers if x.number in numbers))

    def without(self, numbers: Sequence[int]) -> tuple[int, ...]:
        return tuple(n for n in self.world.stack.numbers if n not in numbers)

    def on_host(self) -> Tree:
        found: Tree = self.world.outside(lambda: look(os.fsencode(self.world.host)))
        return found

    def depends(self, number: int) -> tuple[list[int], list[int], list[int]]:
        """Layers that depend on this one; it and those at any remove; those that share paths."""

        def work() -> tuple[list[int], list[int], list[int]]:
            found = Dependences(self.world.stack)
            return (
                list(found.on([number])),
                found.closed_upward([number]),
                list(found.around([number])),
            )

        answer: tuple[list[int], list[int], list[int]] = self.world.outside(work)
        return answer

    def layer_changes(self, number: int) -> list[Change]:
        found: list[Change] = self.world.outside(lambda: diff_layer(self.world.stack, number))
        return found

    def take_out(self, numbers: Sequence[int]) -> None:
        """Off the stack; segments that hold one of them go too."""
        gone = set(numbers)
        stack: LayerStack = self.world.stack
        self.world.stack = replace(
            stack,
            known=max((stack.known, *stack.numbers), default=0),
            layers=tuple(x for x in stack.layers if x.number not in gone),
            segments=tuple(s for s in stack.segments if not gone & set(s.numbers)),
        )

    def apply(self, numbers: Sequence[int] | None = None) -> None:
        """These layers come to the host and leave the stack; all must hold what the model says."""
        full = self.world.stack
        wanted = full.numbers if numbers is None else tuple(numbers)
        self.world.stack = self.part(numbers)
        try:
            apply(self.world, allow_special=True)  # links may lead out
            assert pending(self.world) == []
        finally:
            self.world.stack = full
        self.host = patched(self.host, *(self.patches[n] for n in wanted))
        self.take_out(wanted)

    def merge(self, numbers: Sequence[int]) -> None:
        """Merges neighbours; with the rights of the world's user, who makes the files."""

        def work() -> list[tuple[int, tuple[int, ...], int]]:
            stack, _, _ = squash(self.world.stack, Merge(numbers=tuple(numbers), level=1))
            return [(s.identifier, s.numbers, s.level) for s in stack.segments]

        segments = self.world.outside(work)
        self.world.stack = replace(
            self.world.stack,
            segments=tuple(Segment(identifier=i, numbers=n, level=v) for i, n, v in segments),
        )


@contextmanager
def directory() -> Iterator[Path]:
    """A directory that every user can go through, for one example."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=False) as name:
        os.chmod(name, 0o711)
        yield Path(name)


def said(world: Any, changes: Iterable[Change]) -> dict[bytes, str]:
    """Relative path → kind of change, but for times alone."""
    start = len(os.fsencode(world.host)) + 1
    return {c.path[start:] or TOP: c.kind for c in changes if c.what != ("mtime",)}
