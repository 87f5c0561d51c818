"""The three sides of a change: what the world began from, what the host has, what it would get.

Not the noting of the first (witness.py) and not a judgement (keep.py, conflict.py). The base of
a path is what the oldest layer that changed it was made from. Once an apply brought the path to the
host it is what that apply put there, as long as a layer from before it covers the path; where
those have left the stack the world sees the host itself again. A layer that holds a path without a
change of it holds what was there, unless the record leaves such paths out (scope.py). Invariant: a
base is given only for a stack whose every layer was recorded with bases; else nothing is known,
and times must do. Spec: world.md §5.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from substrate.errors import StateError
from substrate.values import replace
from substrate.world.aspects import (
    ATTRIBUTES,
    MODE,
    OWNER,
    REVERTED,
    Aspects,
    aspects_of,
    differ,
    owns_nothing,
)
from substrate.world.change import META, Change, FileState
from substrate.world.layers import LayerStack
from substrate.world.scope import Scope
from substrate.world.stage import read_attributes_of
from substrate.world.upper import Unlocked, at, open_layer_file, read_attributes
from substrate.world.view import HOST, MountView


class Missing(Enum):
    """What stands in the place of a base. NOTHING: the world found the path free. SILENT: the
    record says nothing of bases."""

    NOTHING = "nothing"
    SILENT = "silent"


#: a base, why it is in doubt (aspects.DOUBTS), or what is in its place
Base = Aspects | str | Missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Bases:
    """What the record says of the layers of a stack.

    `entries`: path → (moment of the record, base) of each layer that changed it, oldest first.
    `layers`: those that were recorded with bases. `applied`: path → the moment of the last
    apply that brought it to the host while the world went on, and what it put there. `digest`, `keyed`: the digests
    that the bases hold, of files by fd and of bytes."""

    digest: Callable[[int], str]
    keyed: Callable[[bytes], str]
    entries: Mapping[bytes, Sequence[tuple[int, Base]]] = field(default_factory=dict)
    layers: frozenset[int] = frozenset()
    applied: Mapping[bytes, tuple[int, Base]] = field(default_factory=dict)

    def tells_of(self, stack: LayerStack) -> bool:
        return self.layers.issuperset(stack.numbers)


class Sides:
    """The sides of one mount's changes; `close` when done."""

    def __init__(self, bases: Bases, stack: LayerStack, index: int) -> None:
        self.view = MountView(stack, next(m for m in stack.mounts if m.index == index))
        self._bases = bases
        self._tells = bases.tells_of(stack)
        self._owned = not owns_nothing(stack.xattr_prefix)
        #: what a record is about
        self._scope = Scope(stack, include_scratch=False)
        self._scope.limits(self.view.mount)
        self._start = len(self.view.mount.target.rstrip(b"/")) + 1
        #: the directory that was looked into last: its source and path, its fd
        self._place: tuple[int, bytes] | None = None
        self._fd = -1
        self._unlocked: Unlocked | None = None

    def close(self) -> None:
        self._leave()
        self.view.close()

    def _parent(self, source: int, relative: bytes) -> int:
        """A directory of one source, open until another one is asked for. Raises OSError,
        StateError."""
        if self._place != (source, relative):
            self._leave()
            self._fd, self._unlocked = self.view.open_parent(source, relative)
            self._place = source, relative
        return self._fd

    def _leave(self) -> None:
        if self._place is not None:
            os.close(self._fd)
            if self._unlocked is not None:
                self._unlocked.relock()
        self._place = self._unlocked = None

    def base(self, change: Change) -> Base:
        if not self._tells:
            return Missing.SILENT
        entries = self._bases.entries.get(change.path, ())
        if entries:
            moment, first = entries[0]
            applied_at, applied = self._bases.applied.get(change.path, (-2, first))
            if moment > applied_at:
                return first
            before = Missing.NOTHING if change.before is None else self.here(change)
            return REVERTED if _are_same(first, before) else applied
        if not self._scope.holds(change.path):
            return Missing.SILENT
        return Missing.NOTHING if change.after is None else self.there(change)

    def outcome(self, change: Change, content: bytes | None) -> Base:
        """What the host has once the change is applied, with `content` in place of the world's.
        Raises OSError, StateError."""
        if change.after is None:
            return Missing.NOTHING
        found = self.there(change)
        if content is not None:
            found = replace(found, content=self._bases.keyed(content))
        if change.kind != META:
            return found
        here, what = self.here(change), {w.partition(":")[0] for w in change.what}
        return replace(
            here,
            mode=found.mode if MODE in what else here.mode,
            uid=found.uid if OWNER in what else here.uid,
            gid=found.gid if OWNER in what else here.gid,
            attributes=found.attributes if ATTRIBUTES in what else here.attributes,
        )

    def here(self, change: Change) -> Aspects:
        """The host's file. Raises OSError, StateError for one that was replaced meanwhile."""
        state = change.before
        assert state is not None
        relative = change.path[self._start :]
        content = state.digest
        attributes: dict[str, bytes] | None = {}
        try:
            if state.type == "file" and content is None:
                fd = self.view.open_state(relative, state)
                try:
                    content = self._bases.digest(fd)
                finally:
                    os.close(fd)
            if state.type != "symlink":
                attributes = self._attributes(relative, state)
        except PermissionError:
            attributes = None
        return aspects_of(state, content, attributes, self._bases.keyed)

    def there(self, change: Change) -> Aspects:
        """What the world would make of it. Raises OSError, StateError."""
        state = change.after
        assert state is not None
        relative = change.path[self._start :]
        content = state.digest
        if state.type == "file" and content is None:
            fd = self.view.open_state(relative, state)
            try:
                content = self._bases.digest(fd)
            finally:
                os.close(fd)
        attributes = {} if state.type == "symlink" else self._attributes(relative, state)
        return aspects_of(state, content, attributes, self._bases.keyed, owned=self._owned)

    def read(self, change: Change, state: FileState) -> bytes:
        """The content of one side, a regular file. Raises OSError, StateError where it is not
        what the diff found."""
        fd = self.view.open_state(change.path[self._start :], state)
        try:
            content = _read_all(fd, state.size)
            if state.digest is not None and self._bases.keyed(content) == state.digest:
                return content
        finally:
            os.close(fd)
        raise StateError(
            f"{os.fsdecode(change.path)} changed while it was read",
            hint="something still writes to it; apply again when it is quiet",
        )

    def _attributes(self, relative: bytes, state: FileState) -> dict[str, bytes]:
        """As an apply would leave them. Raises OSError."""
        view = self.view
        parent, _, name = relative.rpartition(b"/")
        dir_fd = self._parent(state.layer, parent)
        where = at(dir_fd, os.fsdecode(name) or ".")
        if state.layer == HOST:
            return read_attributes(where, view.marks, layer=False)
        if state.type != "file":
            return read_attributes(where, view.marks, view.ids if view.stack.id_extents else None)
        fd = open_layer_file(dir_fd, name)
        try:
            return read_attributes_of(view, fd)
        finally:
            os.close(fd)


def _are_same(a: Base, b: Base) -> bool:
    if isinstance(a, Aspects) and isinstance(b, Aspects):
        return not differ(a, b)
    return a == b


def _read_all(fd: int, size: int) -> bytes:
    """The content of a file of `size` bytes, and no more than one beyond."""
    found = b""
    while piece := os.read(fd, size + 1 - len(found)):
        found += piece
    return found


class AllSides:
    """The sides of a stack's mounts, each opened at the first question. A context manager."""

    def __init__(self, bases: Bases, stack: LayerStack) -> None:
        self._bases = bases
        self._stack = stack
        self._open: dict[int, Sides] = {}

    def of(self, change: Change) -> Sides:
        found = self._open.get(change.mount)
        if found is None:
            found = self._open[change.mount] = Sides(self._bases, self._stack, change.mount)
        return found

    def __enter__(self) -> AllSides:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._open.popitem()[1].close()


def outcomes(
    changes: Sequence[Change],
    stack: LayerStack,
    bases: Bases,
    contents: Mapping[bytes, bytes],
) -> list[tuple[bytes, Base]]:
    """(path, what the host has of it) once a plan with these changes and `contents` was carried
    out. Raises OSError, StateError."""
    with AllSides(bases, stack) as sides:
        return [(c.path, sides.of(c).outcome(c, contents.get(c.path))) for c in changes]
