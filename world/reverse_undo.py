"""Undoing an apply: the host becomes what it was before.

Not the question whether it may (reverse_check.py). An undo is an apply of the reverse layer,
with the same journal, window and recovery: what the apply put there is displaced and removed,
and what it had displaced is put back, by the rename that it came with (so inode, links and
times are the old ones), or as a copy where it is one. Nothing is asked: it was there before.

Invariants: all or nothing, as of an apply; the old versions are never in two places or in none;
when the undo is committed, its reverse layer is used up by one rename. Spec: world.md §4.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from substrate.world.apply import run
from substrate.world.aside import Aside
from substrate.world.beneath import LOOKUP, open_beneath
from substrate.world.change import Summary, summary
from substrate.world.displacing import Removing
from substrate.world.identity import Identity, Inode, identity_of, inode_at
from substrate.world.job import Job, path_in_mount
from substrate.world.journal import Journal, text
from substrate.world.plan import Operation, OperationKind
from substrate.world.removal import Stranger
from substrate.world.reverse import close_directories, retire
from substrate.world.reverse_check import UndoRefused, UndoReview, review_undo
from substrate.world.reverse_move import move, set_mode
from substrate.world.reverse_record import MOVED, Recorded
from substrate.world.source import LayerSource
from substrate.world.view import HOST


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """What an undo did. `already`: paths that were what they had been before the apply already.
    `kept_owner`, `left`: as of an apply."""

    identifier: str
    number: int
    operations: int
    counts: Summary
    already: tuple[bytes, ...] = ()
    kept_owner: tuple[bytes, ...] = ()
    left: tuple[bytes, ...] = ()


def undo_apply(
    world_directory: bytes,
    number: int,
    *,
    reviewed: UndoReview | None = None,
    keep_journal: bool = False,
) -> Undone:
    """Undoes the apply whose reverse layer is `number`; the layer is gone afterwards. The caller
    holds the world's lock. `keep_journal`: as of an apply.

    Raises UndoRefused (the host was touched, a later apply is in the way), StateError (no such
    layer, it is damaged, an earlier apply is unfinished) and OSError; after each of them the
    host is as it was."""
    review = reviewed or review_undo(world_directory, number)
    if review.conflicts:
        raise UndoRefused(review.conflicts)
    done = run(
        review.plan,
        review.stack,
        world_directory,
        _PreImages(review),
        _UsingUp(review),
        keep_journal=keep_journal,
    )
    return Undone(
        identifier=done.identifier,
        number=number,
        operations=done.operations,
        counts=summary(review.plan.changes),
        already=review.already,
        kept_owner=done.kept_owner,
        left=done.left,
    )


class _PreImages(LayerSource):
    """What the apply displaced."""

    def __init__(self, review: UndoReview) -> None:
        super().__init__()
        self._review = review
        self._sources: dict[int, tuple[Inode, int]] = {}

    def start(self, job: Job) -> None:
        super().start(job)
        for stager in self.stagers.values():
            stager.has_owners = True  # these are the host's own, also in a rootless world

    def _is_moved(self, operation: Operation) -> bool:
        return self._review.origins[operation.number].kept == MOVED

    def intent(self) -> dict[int, dict[str, object]]:
        found: dict[int, dict[str, object]] = {}
        for operation in self._review.plan.operations:
            origin = self._review.origins[operation.number]
            if origin.ctime_ns is None:
                continue
            fields: dict[str, object] = {"was_ctime_ns": origin.ctime_ns}
            if operation.kind is OperationKind.META:
                before, after = operation.before, operation.after
                mtime = after.mtime_ns if "mtime" in operation.change.what else before.mtime_ns
                is_directory = before.type == "directory"
                fields["was"] = [
                    before.type,
                    before.dev,
                    before.inode,
                    0 if is_directory else before.size,
                    0 if is_directory else mtime,
                    after.mode,
                    after.uid,
                    after.gid,
                ]
            elif not self._is_moved(operation):
                fields["was_inner"] = [[text(path), ctime] for path, ctime in origin.inner]
            else:
                fields["source"] = list(origin.before or ())
                state = operation.after
                inode = (state.type, state.dev, state.inode)
                self._sources[operation.number] = inode, state.mode
            found[operation.number] = fields
        return found

    def _directory(self, operation: Operation) -> int:
        root = self.job.views[operation.change.mount].roots[1]
        return open_beneath(root, operation.parent, LOOKUP)

    def stage(self, operation: Operation, journal: Journal) -> str | None:
        if not self._is_moved(operation):
            return super().stage(operation, journal)
        inode, mode = self._sources[operation.number]
        aside_fd, name = self.job.parents.aside(operation)
        fd = self._directory(operation)
        try:
            move(fd, operation.name, aside_fd, name, inode, mode)
        finally:
            os.close(fd)
        self._note_touched(aside_fd, name)
        return self._review.origins[operation.number].digest

    def aside(self, operation: Operation, *, half: bool) -> Aside:
        if not self._is_moved(operation):
            return super().aside(operation, half=half)
        start = len(operation.change.path)
        below = [c.after for c in operation.added if c.after and c.path[start:]]
        return Aside(
            top=self._sources[operation.number][0],
            below=frozenset((s.type, s.dev, s.inode) for s in below),
        )

    def drop(self, operation: Operation, *, half: bool) -> None:
        if not self._is_moved(operation):
            super().drop(operation, half=half)
            return
        inode, mode = self._sources[operation.number]
        aside_fd, name = self.job.parents.aside(operation)
        found = inode_at(aside_fd, name)
        if found is not None and found != inode:
            raise Stranger(name)
        fd = self._directory(operation)
        try:
            if found is None:  # it was not moved out, though perhaps opened up for that
                if inode_at(fd, operation.name) == inode:
                    set_mode(fd, operation.name, inode, mode)
                return
            move(aside_fd, name, fd, operation.name, inode, mode)
            self._note_touched(fd, operation.name)
        finally:
            os.close(fd)

    def _note_touched(self, fd: int, name: bytes) -> None:
        """Other names of it on the host have the same change time."""
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        self.job.touched[status.st_dev, status.st_ino] = status.st_ctime_ns


class _UsingUp(Removing):
    """Removes what the undo displaces, and then the reverse layer."""

    def __init__(self, review: UndoReview) -> None:
        self._review = review

    def begin(self) -> dict[str, object]:
        return {"undo": self._review.number}

    def prepare(self, before: object, journal: Journal) -> None:
        self._close_layer(add=0o700)

    def drop(self) -> None:
        self._close_layer(add=0)

    def _close_layer(self, *, add: int) -> None:
        close_directories(
            self.job.world_directory,
            b"%d" % self._review.number,
            self._review.record.header.closed,
            add=add,
        )

    def finish(self) -> None:
        self.job.sync_filesystems()
        retire(self.job.world_directory, self._review.number)

    def change_times(self) -> Iterator[tuple[int, int, int]]:
        """Change times of what is again what it was: the same layers can be applied again."""
        for operation in self._review.plan.operations:
            origin = self._review.origins[operation.number]
            if origin.ctime_ns is None or origin.before is None:
                continue
            relative = path_in_mount(operation)
            status = self._status(operation, relative)
            if status is None or not _is_old(identity_of(status), origin):
                continue
            yield status.st_ino, status.st_ctime_ns, origin.ctime_ns
            for inner, ctime_ns in origin.inner:
                status = self._status(operation, relative + inner)
                if status is not None:
                    yield status.st_ino, status.st_ctime_ns, ctime_ns

    def _status(self, operation: Operation, relative: bytes) -> os.stat_result | None:
        parent, _, name = relative.rpartition(b"/")
        try:
            fd = open_beneath(self.job.views[operation.change.mount].roots[HOST], parent, LOOKUP)
        except (FileNotFoundError, PermissionError):
            return None
        try:
            return os.stat(name or b".", dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        finally:
            os.close(fd)


def _is_old(identity: Identity, origin: Recorded) -> bool:
    """Whether the host has not touched it since it was put back."""
    assert origin.before is not None
    last = 4 if origin.kind is OperationKind.META and "mtime" not in origin.what else 5
    return (identity[0], *identity[3:last], identity[5]) == (
        origin.before[0],
        *origin.before[3:last],
        origin.before[5],
    )
