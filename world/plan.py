"""What an apply will do, worked out before anything is touched.

Not the doing (apply.py) and not the question whether the host changed meanwhile
(conflict.py). Changes are gathered into operations: a tree that is new, gone or of another
type is one operation at its top; everything else is one each. Invariant: every selected
change belongs to exactly one operation, and no operation lies inside another one's tree.
Spec: world.md §5.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from substrate.errors import UsageError
from substrate.world.bases import Bases
from substrate.world.change import ADDED, DELETED, META, RENAMED, TYPE_CHANGED, Change, FileState
from substrate.world.danger import Danger as Danger
from substrate.world.danger import DangerReason as DangerReason
from substrate.world.danger import find_dangers
from substrate.world.layers import LayerStack
from substrate.world.scope import is_within


class OperationKind(StrEnum):
    CREATE = "create"
    REPLACE = "replace"
    DELETE = "delete"
    META = "meta"


@dataclass(slots=True, kw_only=True)
class Operation:
    """One step of an apply. `parent` and `name` are below the mount's target; `added` and
    `removed` are the changes inside its tree, the top left out, in tree order."""

    number: int
    kind: OperationKind
    change: Change
    parent: bytes
    name: bytes
    added: list[Change] = field(default_factory=list)
    removed: list[Change] = field(default_factory=list)

    @property
    def before(self) -> FileState:
        assert self.change.before is not None
        return self.change.before

    @property
    def after(self) -> FileState:
        assert self.change.after is not None
        return self.change.after


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`operations` are ordered by mount, parent and name; `changes` by path. `dangers` is for
    the caller to show; `apply` refuses them unless told otherwise. `bases`: what the world began
    from (bases.py), None where nobody recorded it. `resolved`: paths whose conflict was decided;
    `contents`: what regular files get in place of the world's content (both from resolve.py)."""

    operations: tuple[Operation, ...]
    changes: tuple[Change, ...]
    dangers: tuple[Danger, ...]
    bases: Bases | None = None
    resolved: frozenset[bytes] = frozenset()
    contents: Mapping[bytes, bytes] = field(default_factory=dict)


def plan(
    changes: Sequence[Change],
    stack: LayerStack,
    *,
    select: Callable[[bytes], bool] | None = None,
    bases: Bases | None = None,
) -> Plan:
    """The plan for pending changes (`diff_pending`); `select` limits it by path.

    With a selected path go the new directories that it lies in and, for a directory that is
    deleted or replaced, everything in it. Raises UsageError for changes of a single layer over
    other layers: only what is pending on the host can be applied."""
    for change in changes:
        if change.before is not None and change.before.layer:
            raise UsageError(f"{os.fsdecode(change.path)}: the change is not against the host")
    chosen = _in_tree_order(_without_renames(changes))
    if select is not None:
        chosen = _selected(chosen, select)
    operations: list[Operation] = []
    top: Operation | None = None
    targets = {m.index: m.target.rstrip(b"/") for m in stack.mounts}
    for change in chosen:
        if top is not None and is_within(change.path, top.change.path):
            (top.added if change.kind == ADDED else top.removed).append(change)
            continue
        relative = change.path[len(targets[change.mount]) + 1 :]
        parent, _, name = relative.rpartition(b"/")
        kind = {
            ADDED: OperationKind.CREATE,
            DELETED: OperationKind.DELETE,
            META: OperationKind.META,
        }.get(change.kind, OperationKind.REPLACE)
        operation = Operation(number=0, kind=kind, change=change, parent=parent, name=name)
        operations.append(operation)
        top = operation if kind is not OperationKind.META else None
    operations.sort(key=lambda o: (o.change.mount, o.parent, o.name))
    for number, operation in enumerate(operations):
        operation.number = number
    return Plan(
        operations=tuple(operations),
        changes=tuple(sorted(chosen, key=lambda c: c.path)),
        dangers=tuple(find_dangers(chosen, stack)),
        bases=bases,
    )


def _in_tree_order(changes: Iterable[Change]) -> list[Change]:
    """A directory before, and directly before, everything in it."""
    return sorted(changes, key=lambda c: c.path.replace(b"/", b"\0"))


def _without_renames(changes: Iterable[Change]) -> Iterable[Change]:
    for change in changes:
        if change.kind != RENAMED:
            yield change
            continue
        assert change.old_path is not None
        yield Change(change.old_path, DELETED, change.before, None, change.mount)
        yield Change(change.path, ADDED, None, change.after, change.mount)


def _selected(ordered: list[Change], select: Callable[[bytes], bool]) -> list[Change]:
    chosen = {c.path for c in ordered if select(c.path)}
    # a tree that goes, goes whole
    top: bytes | None = None
    for change in ordered:
        if top is not None and is_within(change.path, top):
            if change.kind == DELETED:
                chosen.add(change.path)
            continue
        top = None
        was_directory = change.before is not None and change.before.type == "directory"
        if change.path in chosen and was_directory and change.kind in (DELETED, TYPE_CHANGED):
            top = change.path
    # a new entry needs the new directories above it
    makes = {
        c.path: c
        for c in ordered
        if c.kind in (ADDED, TYPE_CHANGED) and c.after is not None and c.after.type == "directory"
    }
    for path in list(chosen):
        while path := path.rpartition(b"/")[0]:
            if path in makes:
                chosen.add(path)
    return [c for c in ordered if c.path in chosen]
