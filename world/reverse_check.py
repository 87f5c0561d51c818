"""What an undo of an apply would do, and whether the host was touched since.

Not the doing (reverse_undo.py). Every operation of the apply is turned round: what it made goes,
what it replaced or deleted comes back, what it changed in place is set back. Rules:

- a path must be what the apply put there: type, content, mode, owner, attributes. Times do not
  count, nor does the inode: the same content written again is the same;
- a path that is already what it was before the apply is left alone, and no conflict: so is one
  that the apply made and the host has removed since, also inside of a tree;
- what appeared inside of a tree that would go is a conflict: nobody recorded it;
- the old version must be in the reverse layer as it was displaced: a process that had it open, or
  another name of it, can have changed it since;
- a later apply of the same world must not have touched the same path, or one above or below it
  in a tree that came or went: that one is to be undone first.

Spec: world.md §4.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from substrate.errors import StateError
from substrate.world.beneath import LOOKUP, open_beneath
from substrate.world.change import (
    ADDED,
    DELETED,
    META,
    MODIFIED,
    TYPE_CHANGED,
    Change,
    FileState,
)
from substrate.world.entry import Entry, all_attributes, read_entry
from substrate.world.identity import content_digest, fingerprint, identity_of, list_tree
from substrate.world.layers import LayerStack, gone, is_there
from substrate.world.plan import Operation, OperationKind, Plan
from substrate.world.reverse import no_reverse, reverse_numbers, reverse_path, reverse_stack
from substrate.world.reverse_record import MOVED, Record, Recorded, load_record
from substrate.world.stage import read_attributes_of
from substrate.world.unlocked import Unlocked
from substrate.world.upper import LABELS, at, open_layer_directory, open_layer_file
from substrate.world.view import HOST, Found, MountView

_LAYER = 1


class UndoReason(StrEnum):
    HOST_CHANGED = "host_changed"
    HOST_DELETED = "host_deleted"
    HOST_CREATED = "host_created"
    LATER_APPLY = "later_apply"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoConflict:
    """One path that keeps the apply from being undone; `detail` is a sentence for a person."""

    path: bytes
    reason: UndoReason
    detail: str


class UndoRefused(StateError):
    """Nothing was undone. `conflicts` says where."""

    def __init__(self, conflicts: tuple[UndoConflict, ...]) -> None:
        first = conflicts[0]
        more = f" and {len(conflicts) - 1} more" if len(conflicts) > 1 else ""
        super().__init__(
            f"nothing was undone: {os.fsdecode(first.path)!r}: {first.detail}{more}",
            hint="put the host's version aside, then undo the apply again",
            code="E-UNDO-CONFLICT",
        )
        self.conflicts = conflicts


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoReview:
    """What an undo would do. Nothing has been touched. `already`: paths that are what they were
    before the apply. `origins`: what the apply recorded, by number of the plan's operation."""

    number: int
    stack: LayerStack
    plan: Plan
    record: Record
    origins: dict[int, Recorded]
    conflicts: tuple[UndoConflict, ...]
    already: tuple[bytes, ...]


def review_undo(world_directory: bytes, number: int) -> UndoReview:
    """Raises StateError (there is no such reverse layer, or it is damaged), OSError."""
    name = b"%d" % number
    try:
        record = load_record(reverse_path(world_directory, name))
    except FileNotFoundError:
        raise no_reverse(number) from None
    header = record.header
    stack = reverse_stack(world_directory, name, header.mounts, header.xattr_prefix)
    later = {
        n: load_record(reverse_path(world_directory, b"%d" % n))
        for n in reverse_numbers(world_directory)
        if n > number
    }
    conflicts = list(_shared(record, later))
    unlocked = Unlocked(world_directory)
    try:
        return _review(number, stack, record, conflicts, unlocked)
    finally:
        unlocked.close()


def _review(
    number: int,
    stack: LayerStack,
    record: Record,
    conflicts: list[UndoConflict],
    unlocked: Unlocked,
) -> UndoReview:
    for mount in stack.mounts:
        if not is_there(mount) and any(one.mount == mount.index for one in record.operations):
            raise gone(mount)
    shared = {c.path for c in conflicts}
    already: list[bytes] = []
    found: list[tuple[Operation, Recorded]] = []
    for mount in stack.mounts:
        with MountView(stack, mount) as view:
            for one in record.operations:
                if one.mount != mount.index or view.path(one.path) in shared:
                    continue
                check = _Check(view, one, unlocked)
                try:
                    operation = check.run()
                except _Touched as touched:
                    conflicts.append(touched.conflict)
                    continue
                conflicts += check.inner
                if operation is None:
                    already.append(view.path(one.path))
                else:
                    found.append((operation, one))
    found.sort(key=lambda pair: (pair[0].change.mount, pair[0].parent, pair[0].name))
    changes = []
    for position, (operation, _) in enumerate(found):
        operation.number = position
        changes += [operation.change, *operation.added, *operation.removed]
    changes.sort(key=lambda change: change.path)
    operations = tuple(operation for operation, _ in found)
    return UndoReview(
        number=number,
        stack=stack,
        plan=Plan(operations=operations, changes=tuple(changes), dangers=()),
        record=record,
        origins={o.number: one for o, one in found},
        conflicts=tuple(sorted(conflicts, key=lambda c: c.path)),
        already=tuple(sorted(already)),
    )


# --- later applies


def _shared(record: Record, later: dict[int, Record]) -> Iterator[UndoConflict]:
    ours = dict(_paths(record))
    for number, other in sorted(later.items()):
        theirs = dict(_paths(other))
        paths = {p for p in ours if p in theirs or any(theirs.get(a) for a in _above(p))}
        paths |= {a for p in theirs for a in _above(p) if ours.get(a)}
        for path in sorted(paths):
            yield UndoConflict(
                path=path,
                reason=UndoReason.LATER_APPLY,
                detail=f"apply {number} changed it after this one: undo that one first",
            )


def _paths(record: Record) -> Iterator[tuple[bytes, bool]]:
    """(absolute path, whether all below it came or went with it)."""
    targets = {m.index: m.target.rstrip(b"/") for m in record.header.mounts}
    for one in record.operations:
        path = targets[one.mount] + (b"/" + one.path if one.path else b"")
        yield path, one.kind is not OperationKind.META


def _above(path: bytes) -> Iterator[bytes]:
    while path := path.rpartition(b"/")[0]:
        yield path


# --- the host and the old version of one path


class _Touched(Exception):
    def __init__(self, path: bytes, reason: UndoReason, detail: str) -> None:
        super().__init__()
        self.conflict = UndoConflict(path=path, reason=reason, detail=detail)


class _Check:
    """One operation of an apply, to be turned round. `inner`: conflicts inside of its tree."""

    def __init__(self, view: MountView, one: Recorded, unlocked: Unlocked) -> None:
        self.view = view
        self.unlocked = unlocked
        self.one = one
        self.path = view.path(one.path)
        self.inner: list[UndoConflict] = []

    def run(self) -> Operation | None:
        """None when the host is already what it was before. Raises _Touched."""
        try:
            fd = open_beneath(self.view.roots[HOST], self.one.parent, LOOKUP)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR) and self.one.before is None:
                return None
            raise self._unreachable(error) from error
        try:
            try:
                status, now = self._read_host(fd, self.one.name, self.one.path)
            except (FileNotFoundError, NotADirectoryError):
                return self._missing(fd)
            except PermissionError as error:
                raise self._unreachable(error) from error
            state = self.view.state(Found(HOST, status, ()), os.fsdecode(self.one.name), fd)
            return self._there(fd, state, now)
        finally:
            os.close(fd)

    def _missing(self, fd: int) -> Operation | None:
        if self.one.kind is OperationKind.CREATE:
            return None
        if self.one.kind is OperationKind.DELETE:
            return self._operation(OperationKind.CREATE, ADDED, None, self._old_version())
        raise _Touched(self.path, UndoReason.HOST_DELETED, "the host deleted it since")

    def _there(self, fd: int, state: FileState, now: Entry) -> Operation | None:
        one = self.one
        if one.kind is OperationKind.META:
            return self._meta(fd, state, now)
        if one.kind is OperationKind.DELETE:
            if self._is_old(now):
                return None
            raise _Touched(self.path, UndoReason.HOST_CREATED, "the host made it anew since")
        assert one.after is not None
        if not now.is_same(one.after):
            if one.kind is OperationKind.REPLACE and self._is_old(now):
                return None
            raise self._changed()
        removed = self._tree_to_go(state) if state.type == "directory" else []
        if one.kind is OperationKind.CREATE:
            operation = self._operation(OperationKind.DELETE, DELETED, state, None)
        else:
            old = self._old_version()
            kind = MODIFIED if old.type == state.type else TYPE_CHANGED
            operation = self._operation(OperationKind.REPLACE, kind, state, old)
        operation.removed += removed
        return operation

    def _operation(
        self, kind: OperationKind, change: str, before: FileState | None, after: FileState | None
    ) -> Operation:
        one = self.one
        what = ("content",) if change == MODIFIED else ()
        changed = Change(self.path, change, before, after, one.mount, what)
        operation = Operation(number=0, kind=kind, change=changed, parent=one.parent, name=one.name)
        if after is not None and after.type == "directory":
            operation.added += [
                Change(self.path + path, ADDED, None, state, one.mount)
                for path, state, _ in self._walk(_LAYER)
            ]
        return operation

    def _tree_to_go(self, top: FileState) -> list[Change]:
        """What is in a tree that the apply made, and will go with it."""
        found = []
        hidden = b""
        try:
            for path, state, (fd, name) in self._walk(HOST):
                known = self.one.entries.get(path)
                if known is None:
                    self._inner(path, UndoReason.HOST_CREATED, "the host put it there since")
                elif not self._read_host(fd, name, self.one.path + path)[1].is_same(known):
                    self._inner(path, UndoReason.HOST_CHANGED, "the host changed it since")
                # as `list_tree` sees it: a directory that is closed to us is an empty one
                if hidden and path.startswith(hidden):
                    continue
                found.append(Change(self.path + path, DELETED, state, None, self.one.mount))
                if state.type == "directory" and _is_closed(state):
                    hidden = path + b"/"
        except OSError as error:
            raise self._unreachable(error) from error
        return [] if _is_closed(top) else found

    def _read_host(self, fd: int, name: bytes, relative: bytes) -> tuple[os.stat_result, Entry]:
        target = self.view.mount.target

        def open_file(dir_fd: int, _: bytes) -> int:
            return self.unlocked.open_file(dir_fd, target, relative)

        return read_entry(fd, name, open_file)

    def _inner(self, path: bytes, reason: UndoReason, detail: str) -> None:
        self.inner.append(UndoConflict(path=self.path + path, reason=reason, detail=detail))

    # --- what is set back in place

    def _meta(self, fd: int, state: FileState, now: Entry) -> Operation | None:
        one, view = self.one, self.view
        assert one.after is not None and one.was is not None and one.before is not None
        if now.is_same(one.was):
            restores = now.mtime_ns != one.was.mtime_ns and now.is_same(one.after)
            if not ("mtime" in one.what and restores):
                return None
        elif not now.is_same(one.after):
            raise self._changed()
        what: list[str] = []
        if state.type != "symlink":
            if state.mode != one.was.mode:
                what.append("mode")
            what += self._attributes_that_differ(fd, state)
        if (state.uid, state.gid) != (one.was.uid, one.was.gid):
            what.append("owner")
        if "mtime" in one.what and state.mtime_ns != one.before[4]:
            what.append("mtime")
        source, unlocked = view.open_parent(_LAYER, one.parent)
        try:
            name = os.fsdecode(one.name)
            copy = os.stat(name or ".", dir_fd=source, follow_symlinks=False)
            old = view.state(Found(_LAYER, copy, ()), name, source)
        finally:
            os.close(source)
            if unlocked is not None:
                unlocked.relock()
        old.mode, old.uid, old.gid = one.was.mode, one.was.uid, one.was.gid
        if state.type != "directory":
            old.mtime_ns = one.before[4]
        change = Change(self.path, META, state, old, one.mount, tuple(what))
        return Operation(
            number=0, kind=OperationKind.META, change=change, parent=one.parent, name=one.name
        )

    def _attributes_that_differ(self, fd: int, state: FileState) -> list[str]:
        view, one = self.view, self.one
        try:
            here = all_attributes(at(fd, os.fsdecode(one.name) or "."), follow=False)
        except PermissionError:
            here = {}
        if state.type == "directory":
            source, unlocked = view.open_parent(_LAYER, one.path)
        elif state.type == "file":
            parent, unlocked = view.open_parent(_LAYER, one.parent)
            try:
                source = open_layer_file(parent, one.name)
            finally:
                os.close(parent)
        else:
            return []
        try:
            old = read_attributes_of(view, source)
        finally:
            os.close(source)
            if unlocked is not None:
                unlocked.relock()
        names = {n for n in here.keys() | old.keys() if here.get(n) != old.get(n)}
        return sorted(f"xattr:{n}" for n in names if n not in LABELS)

    # --- the old version

    def _old_version(self) -> FileState:
        """The state of what is in the layer; the very thing that was displaced."""
        one, view = self.one, self.view
        assert one.before is not None
        try:
            fd, unlocked = view.open_parent(_LAYER, one.parent)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                raise self._lost() from error
            raise
        try:
            name = os.fsdecode(one.name)
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                raise self._lost() from None
            if not self._is_displaced(fd, status):
                raise self._lost()
            state = view.state(Found(_LAYER, status, ()), name, fd)
        finally:
            os.close(fd)
            if unlocked is not None:
                unlocked.relock()
        if one.kept != MOVED:  # the copy's may be ours
            state.mode, state.uid, state.gid = one.before[5:8]
        return state

    def _is_displaced(self, fd: int, status: os.stat_result) -> bool:
        one, identity = self.one, identity_of(status)
        assert one.before is not None
        if one.kept != MOVED:
            return (identity[0], *identity[3:5]) == (one.before[0], *one.before[3:5])
        # What has another name on the host as well can have got a new mode or time there, from
        # this very apply, too: it was and is that file.
        last = 4 if status.st_nlink > 1 and one.digest is not None else 8
        if (identity[0], *identity[2:last]) != (one.before[0], *one.before[2:last]):
            return False
        if one.tree is not None:
            return fingerprint(list_tree(fd, one.name)) == one.tree
        if one.digest is not None:
            file_fd = open_layer_file(fd, one.name)
            try:
                return content_digest(file_fd) == one.digest
            finally:
                os.close(file_fd)
        return True

    def _is_old(self, now: Entry) -> bool:
        """Whether the host has what it had before the apply (never said of a tree)."""
        one = self.one
        if now.type == "directory":
            return False
        if one.was is not None:
            return now.is_same(one.was)
        fd, unlocked = self.view.open_parent(_LAYER, one.parent)
        try:
            status, old = read_entry(fd, one.name)
            return now.is_same(old) and self._is_displaced(fd, status)
        except FileNotFoundError:
            return False
        finally:
            os.close(fd)
            if unlocked is not None:
                unlocked.relock()

    # --- trees

    def _walk(self, source: int) -> Iterator[tuple[bytes, FileState, tuple[int, bytes]]]:
        """(path below with its slash, state, (open directory, name)) of everything in the tree,
        a directory before, and directly before, everything in it. Raises OSError."""
        pending = [b""]
        while pending:
            path = pending.pop()
            below = []
            with self._directory(source, self.one.path + path) as fd:
                for name in sorted(map(os.fsencode, os.listdir(fd))):
                    text = os.fsdecode(name)
                    status = os.stat(text, dir_fd=fd, follow_symlinks=False)
                    state = self.view.state(Found(source, status, ()), text, fd)
                    yield path + b"/" + name, state, (fd, name)
                    if state.type == "directory":
                        below.append(path + b"/" + name)
            pending += reversed(below)

    @contextmanager
    def _directory(self, source: int, relative: bytes) -> Iterator[int]:
        root = self.view.roots[source]
        if source == HOST:
            with self.unlocked.directory(root, self.view.mount.target, relative) as fd:
                yield fd
            return
        fd, unlocked = open_layer_directory(root, relative)
        try:
            yield fd
        finally:
            os.close(fd)
            if unlocked is not None:
                unlocked.relock()

    # --- what is wrong

    def _changed(self) -> _Touched:
        return _Touched(self.path, UndoReason.HOST_CHANGED, "the host changed it since")

    def _lost(self) -> _Touched:
        return _Touched(
            self.path,
            UndoReason.LOST,
            "its old version is not in the reverse layer as it was displaced",
        )

    def _unreachable(self, error: OSError) -> _Touched:
        why = {
            errno.EXDEV: "another filesystem is mounted there now",
            errno.ELOOP: "a symlink is in its way now",
            errno.ENOENT: "its directory is gone",
            errno.ENOTDIR: "its directory is gone",
            errno.EACCES: "a directory above it is closed to you: give it the mode that it had before "
            "the apply, then undo that again",
        }.get(error.errno or 0, f"it cannot be read: {error.strerror}")
        return _Touched(self.path, UndoReason.HOST_CHANGED, why)


def _is_closed(state: FileState) -> bool:
    return os.geteuid() != 0 and state.mode & 0o500 != 0o500
