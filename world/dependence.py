"""Which layers of a stack build on which: what must be known before one is taken out.

Pure but for looking into layers. A layer *touches* a path when it says anything about it: it
holds an entry there, or hides what is there by a whiteout, a file or an opaque directory
above it. Directories that were copied up on the way to something else touch themselves only.
A layer depends on an earlier one when it touches a path which that one changed, and so its
parents and children too: whoever changed something in a directory that an earlier layer made
holds an entry of that directory. Looked at is what the layers hold, not their diffs: a file that
was copied up without a change carries the earlier layer's content. Scratch directories (scope.py)
make no dependence: agents write the same file there with every command, and a layer's own
files of that kind are whole. Spec: world.md §4.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

from substrate.world.change import Change
from substrate.world.diff import diff_layer
from substrate.world.layers import LayerStack
from substrate.world.upper import DIRECTORY, FORMAT
from substrate.world.view import DirectoryView, MountView

#: what a layer says of a directory: nothing; it is merged with what is below; it hides that
_SILENT, _MERGED, _HIDING = range(3)


def touched(stack: LayerStack, number: int, changes: Iterable[Change]) -> list[bytes]:
    """The paths of `changes` that layer `number` touches, sorted. Raises OSError, StateError."""
    looks: dict[int, _Look] = {}
    found = []
    try:
        for change in sorted(changes, key=lambda c: (c.mount, c.path)):
            if change.mount not in looks:
                looks[change.mount] = _Look(stack, change.mount, number)
            if looks[change.mount].touches(change.path):
                found.append(change.path)
    finally:
        for look in looks.values():
            look.view.close()
    return found


class _Look:
    """One layer of one mount."""

    def __init__(self, stack: LayerStack, index: int, number: int) -> None:
        mount = next(m for m in stack.mounts if m.index == index)
        self.view = MountView(stack, mount)
        self.number = number
        self._start = len(mount.target.rstrip(b"/")) + 1
        self._known: dict[bytes, int] = {b"": _MERGED}
        #: of the layer's directories that were asked for: most changes have no entry there
        self._names: dict[bytes, frozenset[str]] = {}

    def touches(self, path: bytes) -> bool:
        relative = path[self._start :]
        if not relative:
            return True  # the mount's own directory: each layer has one
        parent, _, name = relative.rpartition(b"/")
        above = self._directory(parent)
        return above == _HIDING or (above == _MERGED and self._entry(parent, name) != _SILENT)

    def _directory(self, relative: bytes) -> int:
        if relative not in self._known:
            parent, _, name = relative.rpartition(b"/")
            above = self._directory(parent)
            self._known[relative] = above if above != _MERGED else self._entry(parent, name)
        return self._known[relative]

    def _entry(self, parent: bytes, name: bytes) -> int:
        text = os.fsdecode(name)
        if parent in self._names and text not in self._names[parent]:
            return _SILENT
        directory = DirectoryView(self.view, parent, (self.number,))
        try:
            if parent not in self._names:
                self._names[parent] = frozenset(directory.names(self.number))
            found, hides = directory.look_up(text, (self.number,))
            if found is None:
                return _HIDING if hides else _SILENT
            if found.status.st_mode & FORMAT != DIRECTORY or hides:
                return _HIDING
            return _MERGED
        finally:
            directory.close()


class Dependences:
    """What depends on what in a stack, worked out as far as it is asked for."""

    def __init__(self, stack: LayerStack) -> None:
        self._stack = stack
        self._changes: dict[int, list[Change]] = {}
        #: (layer, another) → paths that the one changed and the other touches
        self._pairs: dict[tuple[int, int], list[bytes]] = {}

    def changes(self, number: int) -> list[Change]:
        if number not in self._changes:
            self._changes[number] = diff_layer(self._stack, number)
        return self._changes[number]

    def between(self, earlier: int, later: int) -> list[bytes]:
        """The paths that `earlier` changed and `later` touches."""
        return self._touched(by=later, of=earlier)

    def _touched(self, *, by: int, of: int) -> list[bytes]:
        pair = (of, by)
        if pair not in self._pairs:
            self._pairs[pair] = touched(self._stack, by, self.changes(of))
        return self._pairs[pair]

    def on(self, numbers: Sequence[int]) -> dict[int, list[bytes]]:
        """Later layer → paths by which it depends on any of `numbers`, those left out."""
        found: dict[int, list[bytes]] = {}
        for later in self._stack.numbers:
            if later in numbers:
                continue
            paths = {p for n in numbers if n < later for p in self.between(n, later)}
            if paths:
                found[later] = sorted(paths)
        return found

    def around(self, numbers: Sequence[int]) -> dict[int, list[bytes]]:
        """Other layer → paths that it shares with any of `numbers`, be it older or newer.

        Once `numbers` are on the host and off the stack, the others decide what is seen: an older one
        that merely holds a path would cover it with what it was."""
        found = self.on(numbers)
        for earlier in self._stack.numbers:
            if earlier in numbers:
                continue
            newer = [n for n in numbers if earlier < n]
            paths = {p for n in newer for p in self.between(earlier, n)}
            paths |= {p for n in newer for p in self._touched(by=earlier, of=n)}
            if paths:
                found[earlier] = sorted({*found.get(earlier, ()), *paths})
        return dict(sorted(found.items()))

    def closed_upward(self, numbers: Sequence[int]) -> list[int]:
        """`numbers` and whatever depends on them, at any remove."""
        return self._closed(numbers, self.on)

    def closed(self, numbers: Sequence[int]) -> list[int]:
        """`numbers` and whatever shares paths with them, at any remove."""
        return self._closed(numbers, self.around)

    def _closed(
        self, numbers: Sequence[int], more: Callable[[Sequence[int]], dict[int, list[bytes]]]
    ) -> list[int]:
        found = list(numbers)
        while added := more(found):
            found += added
        return sorted(found)
