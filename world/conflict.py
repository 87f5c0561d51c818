"""Whether the host changed beside the world, so that applying would lose something.

Not a merge. What can be known: overlayfs keeps no copy of what a file was before the world
wrote to it, so only times and inode handles tell whether the host changed since. Rules
(world.md §5), for an operation on a path that the host has:

- the base is the moment since which the host must be unchanged. For a file that was copied
  up (it has an `origin`), the birth of the oldest layer's copy: whatever the host did
  before, the world saw. For everything else the start of the world;
- changed (ctime) after the base: conflict. More than one clock tick before it: none. In
  between the order cannot be known, and nothing is left to compare with: conflict
  `uncertain`. The same after the clock was set back: then no time can be trusted;
- equal content is no conflict: the diff does not list it, or lists what is left as `meta`.
  A directory counts as changed when an entry came or went, too: that is all its times say.
  A time alone (`mtime`) never conflicts; mode, owner and attributes do, as nothing tells
  which side set them.

For a path that the host lacks: a copied-up file or merged directory was deleted by the host,
unless the host's directory did not change since the world started, or the world renamed it:
its origin is the handle of a path that the plan deletes. Rootless mounts record no handle;
there a deleted path with the same size and time counts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from substrate.errors import StateError
from substrate.world import linux
from substrate.world.change import ADDED, DELETED, META, Change, FileState
from substrate.world.layers import LayerStack
from substrate.world.origin import Origins, birth_time_ns, parse_origin
from substrate.world.plan import Plan
from substrate.world.restored import Restored
from substrate.world.upper import at, read_attribute
from substrate.world.view import MountView

_CLOCK_REALTIME_COARSE = 5  # <linux/time.h>; Python does not name it


class ConflictReason(StrEnum):
    HOST_CHANGED = "host_changed"
    HOST_DELETED = "host_deleted"
    HOST_CREATED = "host_created"
    UNCERTAIN = "uncertain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """One path that cannot be applied; `detail` is a sentence for a person."""

    path: bytes
    reason: ConflictReason
    detail: str


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
            each.view.close()
    return found


def clock_was_set_back(stack: LayerStack) -> bool:
    """Whether CLOCK_REALTIME was set back since the world started, as far as it shows: now or
    a layer is older than what came before it, or the offset to CLOCK_BOOTTIME shrank by more
    than slewing explains (adjtimex(2): at most 500 ppm). A step before a reboot that the
    layers do not span stays unseen."""
    now = time.time_ns()
    last = stack.started_ns - tick_ns()
    for layer in stack.layers:
        for mount in stack.mounts:
            born = birth_time_ns(stack.upper(layer.number, mount.index))
            if born is not None and born < last - tick_ns():
                return True
        last = born if born is not None else last
    if now < last:
        return True
    if stack.clock_offset_ns is None:
        return False
    offset = now - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    slewed = max(0, now - stack.started_ns) // 1000 + 50_000_000
    return offset < stack.clock_offset_ns - slewed


def tick_ns() -> int:
    """How far a file's timestamp may lie before the event: the coarse clock's tick
    (clock_getres(2)), plus one for the reader's own rounding."""
    return 2 * int(time.clock_getres(_CLOCK_REALTIME_COARSE) * 1e9)


class _MountCheck:
    def __init__(
        self, stack: LayerStack, index: int, plan: Plan, stepped: bool, restored: Restored
    ) -> None:
        mount = next(m for m in stack.mounts if m.index == index)
        self.stack = stack
        self.view = MountView(stack, mount)
        self.stepped = stepped
        self.restored = restored
        self.tick = tick_ns()
        deleted = [c for c in plan.changes if c.kind == DELETED and c.mount == index]
        self.deleted = {(c.before.size, c.before.mtime_ns) for c in deleted if c.before}
        self.added = {c.path for c in plan.changes if c.kind == ADDED and c.mount == index}
        self.start = len(mount.target.rstrip(b"/")) + 1
        self.origins = Origins(self.view, [c.path[self.start :] for c in deleted])

    def check(self, change: Change) -> Iterator[Conflict]:
        relative = change.path[self.start :]
        if change.before is None:
            if change.kind == ADDED:
                yield from self._check_missing(change, relative)
            return
        if change.kind == META and change.what == ("mtime",):
            return
        before = change.before
        base, why = self._base(change, relative, before)
        changed_ns = before.ctime_ns
        ours = self.restored.get(change.path)
        if ours is not None and ours[:2] == (before.inode, changed_ns):
            changed_ns = ours[2]
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
        an apply of ours that was undone. One that the plan makes cannot have lost any; whether
        the host has deleted the directory itself is a question of its own."""
        parent = relative.rpartition(b"/")[0]
        if self.view.path(parent) in self.added:
            return True
        try:
            fd, _none = self.view.open_parent(0, parent)
        except StateError:
            return False
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        changed_ns = status.st_ctime_ns
        ours = self.restored.get(self.view.path(parent))
        if ours is not None and ours[:2] == (status.st_ino, changed_ns):
            changed_ns = ours[2]
        return changed_ns <= self.stack.started_ns - self.tick

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
        if after.type == "file":
            if self.origins.renamed_inside(relative, oldest[0]):
                return
            if parse_origin(oldest[0]) is None and (after.size, after.mtime_ns) in self.deleted:
                return
        yield Conflict(
            path=change.path,
            reason=ConflictReason.HOST_DELETED,
            detail="the world wrote to a copy of it, and the host deleted or moved it since",
        )
