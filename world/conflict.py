"""Whether the host changed beside the world, so that applying would lose something.

Not a merge. Rules (world.md §5), for an operation on a path that the host has:

- where the record knows what the world began from (bases.py), that decides, and no time: a
  conflict is an aspect (content, mode, owner, attributes, type) that the host changed since and
  that the apply would change once more, to something else. So a touch, a rewrite with what was
  there, a rename away and back are none, and a write that left no time behind is one. A time
  alone (`mtime`) never conflicts;
- where the record says that it could not be sure, it is a conflict;
- where a file cannot be read, or the record is silent (a world of an older version), times
  decide. The base is the moment since which the host must be unchanged: for a file that was
  copied up (it has an `origin`), the birth of the oldest layer's copy; for everything else the
  start of the world. Changed (ctime) after it: conflict. More than one clock tick before it:
  none. In between, and after the clock was set back: conflict `uncertain`. A directory counts
  as changed when an entry came or went, too: that is all its times say. Mode, owner and
  attributes conflict, as nothing tells which side set them.

For a path that the host lacks: what the record has a base of was deleted by the host. Where the
record is in doubt or silent, a copied-up file or merged directory was, unless the host's
directory did not change since the world started, or the world made a directory above it, or the
world renamed it: its origin is the handle of a path that the plan deletes. Rootless mounts record
no handle; there a deleted path with the same size and time counts.

Not found, as nothing tells of it: what the host wrote through a mapping between the world's
copy-up and the end of the command, to a page that was dirty before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from substrate.errors import StateError
from substrate.world import linux
from substrate.world.aspects import (
    ATTRIBUTES,
    CHANGED,
    CLOCK,
    CLOSED,
    CONTENT,
    DEVICE,
    GONE,
    MODE,
    OWNER,
    REPLACED,
    REVERTED,
    SAME_TICK,
    TARGET,
    TYPE,
    Aspects,
    differ,
)
from substrate.world.bases import Missing, Sides
from substrate.world.change import DELETED, META, MODIFIED, Change, FileState
from substrate.world.clock import clock_was_set_back as clock_was_set_back
from substrate.world.clock import latest_ns
from substrate.world.clock import tick_ns as tick_ns
from substrate.world.layers import LayerStack
from substrate.world.origin import Origins, parse_origin
from substrate.world.plan import Plan
from substrate.world.restored import Restored
from substrate.world.upper import at, read_attribute
from substrate.world.view import MountView


class ConflictReason(StrEnum):
    HOST_CHANGED = "host_changed"
    HOST_DELETED = "host_deleted"
    HOST_CREATED = "host_created"
    UNCERTAIN = "uncertain"


class Resolution(StrEnum):
    """What was decided about a conflict: the world's version, the host's, or both."""

    OURS = "ours"
    THEIRS = "theirs"
    MERGED = "merged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """One path that cannot be applied as it is; `detail` is a sentence for a person.
    `resolution`: None while it stands (resolve.py)."""

    path: bytes
    reason: ConflictReason
    detail: str
    resolution: Resolution | None = None


def check(plan: Plan, stack: LayerStack, restored: Restored | None = None) -> list[Conflict]:
    """The conflicts of a plan, by path. `restored`: files whose change time an earlier apply
    of ours has set (restored.py). Raises OSError, StateError."""
    checks: dict[int, _MountCheck] = {}
    stepped = clock_was_set_back(stack)
    found: list[Conflict] = []
    try:
        for change in plan.changes:
            if change.mount not in checks:
                checks[change.mount] = _MountCheck(
                    stack, change.mount, plan, stepped, restored or {}
                )
            found.extend(checks[change.mount].check(change))
    finally:
        for each in checks.values():
            each.close()
    return found


class _MountCheck:
    def __init__(
        self,
        stack: LayerStack,
        index: int,
        plan: Plan,
        stepped: bool,
        restored: Restored,
    ) -> None:
        mount = next(m for m in stack.mounts if m.index == index)
        self.stack = stack
        self.sides = None if plan.bases is None else Sides(plan.bases, stack, index)
        self.view = MountView(stack, mount)
        self.stepped = stepped
        self.restored = restored
        self.tick = tick_ns()
        deleted = [c for c in plan.changes if c.kind == DELETED and c.mount == index]
        self.deleted = {(c.before.size, c.before.mtime_ns) for c in deleted if c.before}
        self.start = len(mount.target.rstrip(b"/")) + 1
        self.origins = Origins(self.view, [c.path[self.start :] for c in deleted])

    def close(self) -> None:
        self.view.close()
        if self.sides is not None:
            self.sides.close()

    def check(self, change: Change) -> Iterator[Conflict]:
        relative = change.path[self.start :]
        if change.kind == META and change.what == ("mtime",):
            return
        base = Missing.SILENT if self.sides is None else self.sides.base(change)
        if change.before is None:
            if base in (Missing.SILENT, GONE):
                yield from self._check_missing(change, relative)
            elif base is not Missing.NOTHING:
                yield _deleted(change)
        elif base is Missing.SILENT:
            yield from self._check_times(change, relative, change.before)
        elif base is Missing.NOTHING:
            yield Conflict(
                path=change.path,
                reason=ConflictReason.HOST_CREATED,
                detail="the host made it, and the world had found nothing there",
            )
        elif isinstance(base, Aspects):
            yield from self._check_aspects(change, relative, base)
        elif base == REVERTED:
            yield _in_doubt(change, base)
        else:
            said = list(self._check_times(change, relative, change.before))
            yield from said or [_in_doubt(change, base)]

    def _check_aspects(self, change: Change, relative: bytes, base: Aspects) -> Iterator[Conflict]:
        assert self.sides is not None and change.before is not None
        by_host = differ(base, self.sides.here(change))
        if change.kind in (MODIFIED, META) and TYPE not in by_host:
            by_host &= {CLOSED, *(what.partition(":")[0] for what in change.what)} | _unsaid(change)
        if CLOSED in by_host and by_host == {CLOSED}:
            yield from self._check_times(change, relative, change.before)
        elif by_host:
            words = " and ".join(_WORDS[name] for name in _WORDS if name in by_host)
            yield Conflict(
                path=change.path,
                reason=ConflictReason.HOST_CHANGED,
                detail=f"the host changed {words} after the world began with it",
            )

    def _check_times(
        self, change: Change, relative: bytes, before: FileState
    ) -> Iterator[Conflict]:
        base, why = self._base(change, relative, before)
        ours = (before.inode, before.ctime_ns)
        changed_ns = latest_ns(self.restored.get(ours, before.ctime_ns))
        if self.stepped:
            yield Conflict(
                path=change.path,
                reason=ConflictReason.UNCERTAIN,
                detail="the clock was set back: whether the host changed it cannot be known",
            )
        elif changed_ns > base:
            created = self._born_after_start(relative)
            yield Conflict(
                path=change.path,
                reason=ConflictReason.HOST_CREATED if created else ConflictReason.HOST_CHANGED,
                detail=f"the host {'made' if created else 'changed'} it after {why}",
            )
        elif changed_ns > base - self.tick:
            yield Conflict(
                path=change.path,
                reason=ConflictReason.UNCERTAIN,
                detail=f"the host changed it within one clock tick of {why}",
            )

    def _base(self, change: Change, relative: bytes, before: FileState) -> tuple[int, str]:
        """The moment since which the host's file must be unchanged, and its name."""
        start = (self.stack.started_ns, "the world started")
        if change.after is None or change.after.type not in ("file", "directory"):
            return start
        for layer in self.stack.layers:
            entry = self._entry(layer.number, relative)
            if entry is not None:
                origin, base = entry
                if origin is None or base is None:
                    return start
                if self.view.mount.stands_in:
                    # the copy that was copied up is as old as its layer
                    upper = self.stack.upper(layer.number, self.view.mount.index)
                    made = linux.birth_time_ns(linux.AT_FDCWD, upper)
                    return (base if made is None else made), "the command began"
                return base, "the world first wrote to it"
        return start

    def _entry(self, layer: int, relative: bytes) -> tuple[bytes | None, int | None] | None:
        """(origin mark, birth) of a path in one layer; None when the layer lacks it."""
        parent, _, name = relative.rpartition(b"/")
        try:
            fd, unlocked = self.view.open_parent(layer, parent)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            where = at(fd, os.fsdecode(name) or ".")
            try:
                names = os.listxattr(where, follow_symlinks=False)
            except FileNotFoundError:
                return None
            marks = self.view.marks
            origin = read_attribute(where, marks.origin) if marks.origin in names else None
            return origin, linux.birth_time_ns(fd, name or b".")
        finally:
            os.close(fd)
            if unlocked is not None:
                unlocked.relock()

    def _directory_is_unchanged(self, relative: bytes) -> bool:
        """Whether no name can have left the host's directory since the world started, but by
        an apply of ours that was undone."""
        parent = relative.rpartition(b"/")[0]
        try:
            fd, _none = self.view.open_parent(0, parent)
        except StateError:
            return False
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        changed_ns = self.restored.get((status.st_ino, status.st_ctime_ns), status.st_ctime_ns)
        return latest_ns(changed_ns) <= self.stack.started_ns - self.tick

    def _lies_in_a_new_directory(self, relative: bytes) -> bool:
        """Whether a directory above the path came from the world alone: then nothing of the
        host's was ever below it, and a file with an origin was moved or linked there."""
        while relative := relative.rpartition(b"/")[0]:
            entries = (self._entry(layer.number, relative) for layer in self.stack.layers)
            oldest = next((e for e in entries if e is not None), None)
            if oldest is not None and oldest[0] is None:
                return True
        return False

    def _born_after_start(self, relative: bytes) -> bool:
        parent, _, name = relative.rpartition(b"/")
        fd, _none = self.view.open_parent(0, parent)
        try:
            born = linux.birth_time_ns(fd, name or b".")
        except FileNotFoundError:
            return False
        finally:
            os.close(fd)
        return born is not None and born > self.stack.started_ns

    def _check_missing(self, change: Change, relative: bytes) -> Iterator[Conflict]:
        after = change.after
        assert after is not None
        if after.type not in ("file", "directory"):
            return
        # The oldest layer that has the path tells: newer ones copied it up from there.
        entries = (self._entry(layer.number, relative) for layer in self.stack.layers)
        oldest = next((e for e in entries if e is not None), None)
        if oldest is None or oldest[0] is None:
            return
        if not self.stepped and self._directory_is_unchanged(relative):
            return
        if self._lies_in_a_new_directory(relative):
            return
        if after.type == "file":
            if self.origins.renamed_inside(relative, oldest[0]):
                return
            if parse_origin(oldest[0]) is None and (after.size, after.mtime_ns) in self.deleted:
                return
        yield _deleted(change)


def _unsaid(change: Change) -> frozenset[str]:
    """What a change would set and does not list: a new file in place of the host's belongs to
    whom the world's does, also where a world has one user alone and so lists no owners."""
    before, after = change.before, change.after
    assert before is not None and after is not None
    return (
        frozenset((OWNER,)) if change.kind == MODIFIED and before.uid != after.uid else frozenset()
    )


def _deleted(change: Change) -> Conflict:
    return Conflict(
        path=change.path,
        reason=ConflictReason.HOST_DELETED,
        detail="the world wrote to a copy of it, and the host deleted or moved it since",
    )


def _in_doubt(change: Change, doubt: str) -> Conflict:
    return Conflict(path=change.path, reason=ConflictReason.UNCERTAIN, detail=_DOUBTS[doubt])


_WORDS = {
    TYPE: "what it is",
    CONTENT: "its content",
    TARGET: "where it points",
    DEVICE: "its device number",
    MODE: "its mode",
    OWNER: "its owner",
    ATTRIBUTES: "its attributes",
}
_DOUBTS = {
    CHANGED: "the host changed it while the command ran, and when is not known",
    SAME_TICK: "the host changed it within one clock tick of the world's first use of it",
    CLOCK: "the clock was set back while the command ran: what the world saw is not known",
    GONE: "the host made it, after it had deleted one while the command ran",
    REVERTED: "it was applied before, and the host has again what it had until then",
    REPLACED: "the host put another file or directory there while the command ran",
}
