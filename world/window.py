"""The window of an apply, in which some names are new and others old, and the way back.

Not the staging (source.py) nor the order of the whole (apply.py). Names are changed
without replacing any (names.py): EXCHANGE for an entry that is replaced (what was displaced is compared
afterwards and put back if it is not what was checked), NOREPLACE for a new one, and for a
deleted one a NOREPLACE rename to the place aside. Spec: world.md §5.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from substrate.errors import StateError
from substrate.world import names
from substrate.world.aside import planned_tree
from substrate.world.attributes import restore, set_meta
from substrate.world.beneath import LOOKUP, open_beneath
from substrate.world.identity import (
    Identity,
    Inode,
    before_matches,
    identity_of,
    inode_at,
    list_tree,
)
from substrate.world.intent import Before
from substrate.world.job import Job, path_in_mount
from substrate.world.plan import Operation, OperationKind
from substrate.world.refusal import host_changed
from substrate.world.removal import Stranger
from substrate.world.view import HOST


class Window:
    def __init__(self, job: Job, before: Before) -> None:
        self.job = job
        self.before = before
        #: operations whose name was changed, in that order
        self.done: list[Operation] = []
        #: identity of each entry that was staged to the end
        self.staged: dict[int, Identity] = {}
        self.kept_owner: list[bytes] = []

    def verify_all(self) -> None:
        """The last look before the window: each target as the plan saw it, change time
        included (a rename changes that one, so it cannot be compared afterwards)."""
        job = self.job
        for operation in job.plan.operations:
            if operation.change.before is None:
                continue
            if (operation.change.mount, path_in_mount(operation)) in job.widened:
                continue  # its mode is ours now; `set_meta` looks at the inode
            parent_fd = job.parents.fd(operation)
            try:
                status = os.stat(operation.name or b".", dir_fd=parent_fd, follow_symlinks=False)
            except FileNotFoundError:
                raise host_changed(operation, "while it was staged") from None
            state = operation.before
            state.ctime_ns = job.touched.get((state.dev, state.inode), state.ctime_ns)
            if not before_matches(status, state):
                raise host_changed(operation, "while it was staged")

    def exchange_all(self) -> None:
        parents = self.job.parents
        for operation in self.job.plan.operations:
            kind = operation.kind
            if kind is OperationKind.META:
                continue
            aside_fd, staged = parents.aside(operation)
            parent_fd, name = parents.fd(operation), operation.name
            self.done.append(operation)  # before: `put_back` looks whether it happened
            try:
                if kind is OperationKind.CREATE:
                    names.move(aside_fd, staged, parent_fd, name)
                elif kind is OperationKind.REPLACE:
                    names.exchange(aside_fd, staged, parent_fd, name)
                else:
                    names.move(parent_fd, name, aside_fd, staged)
            except OSError as error:
                if error.errno in (errno.EEXIST, errno.ENOENT):
                    raise host_changed(operation, "during the apply") from error
                raise
            if kind is not OperationKind.CREATE:
                self._verify_displaced(operation, aside_fd, staged)

    def _verify_displaced(self, operation: Operation, aside_fd: int, staged: bytes) -> None:
        status = os.stat(staged, dir_fd=aside_fd, follow_symlinks=False)
        same = identity_of(status) == self.before.displaced[operation.number]
        if same and operation.before.type == "directory":
            try:
                same = list_tree(aside_fd, staged) == planned_tree(operation)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                same = False  # something is mounted inside
        if not same:
            # what `put_back` puts back
            self.before.displaced[operation.number] = identity_of(status)
            raise host_changed(operation, "during the apply")

    def set_all_meta(self) -> None:
        """Modes and the like, in place so that the inode stays; deepest first, because a
        directory may lose the permission to be searched."""
        job = self.job
        metas = [o for o in job.plan.operations if o.kind is OperationKind.META]
        for operation in reversed(metas):
            parent_fd = job.parents.fd(operation)
            self.done.append(operation)
            view = job.views[operation.change.mount]
            if set_meta(view, path_in_mount(operation), parent_fd, operation.change):
                self.kept_owner.append(operation.change.path)

    # --- back

    def put_back(self, operation: Operation) -> None:
        """Undoes what was done to one operation's name, if anything was.

        Raises OSError, StateError when something else than the apply's is there."""
        parents = self.job.parents
        parent_fd, name = parents.fd(operation), operation.name
        if operation.kind is OperationKind.META:
            restore(parent_fd, name, self.before.saved[operation.number])
            return
        aside_fd, staged = parents.aside(operation)
        here, aside = inode_at(parent_fd, name), inode_at(aside_fd, staged)
        displaced = None
        if operation.change.before is not None:
            displaced = self.before.displaced[operation.number][:3]
        if operation.kind is OperationKind.DELETE:
            if aside is None:
                return
        else:
            ours = self.staged[operation.number][:3]
            if aside == ours:
                return  # it did not happen
            if here != ours:
                raise StateError("the host replaced it after it was applied")
        if aside != displaced:
            raise StateError("what it displaced was replaced")
        wanted = here if displaced is None else displaced
        rename_back(
            operation.kind, parent_fd, name, aside_fd, staged, lambda found: found == wanted
        )

    # --- after

    def change_times(self) -> list[tuple[int, int, int]]:
        """The change times that we have left, for restored.py: of what is still, or again, the
        same file, and of every directory in which names came and went."""
        job = self.job
        entries = []
        # a rename or a new mode changes the time for every name of a file
        befores = [o.change.before for o in self.done]
        done = {(b.dev, b.inode) for b in befores if b is not None}
        for operation in job.plan.operations:
            before = operation.change.before
            if before is None:
                continue
            key = (before.dev, before.inode)
            touched = job.touched.get(key)
            if key not in done and touched is None:
                continue
            try:
                fd = job.parents.fd(operation)
                status = os.stat(operation.name or b".", dir_fd=fd, follow_symlinks=False)
            except (FileNotFoundError, PermissionError):
                continue  # gone, or in a directory that the plan closes
            now, first = status.st_ctime_ns, job.ctimes.get(operation.number)
            if status.st_ino != before.inode or now == first or first is None:
                continue
            if key in done or now == touched:
                entries.append((before.inode, now, first))
        for mount, parent, inode, ctime_ns in job.parents.first_seen():
            try:
                fd = open_beneath(job.views[mount].roots[HOST], parent, LOOKUP)
            except (FileNotFoundError, PermissionError):
                continue
            try:
                status = os.fstat(fd)
            finally:
                os.close(fd)
            if status.st_ino == inode and status.st_ctime_ns != ctime_ns:
                entries.append((inode, status.st_ctime_ns, ctime_ns))
        return entries


def rename_back(
    kind: str, fd: int, name: bytes, aside_fd: int, staged: bytes, is_it: Callable[[Inode], bool]
) -> None:
    """Takes back what `exchange_all` did with a name. A rename knows names only, so what it
    moved is compared afterwards, and goes back if it is another entry.

    Raises OSError, Stranger."""
    if kind == OperationKind.CREATE:
        names.move(fd, name, aside_fd, staged)
        found = inode_at(aside_fd, staged)
    elif kind == OperationKind.DELETE:
        names.move(aside_fd, staged, fd, name)
        found = inode_at(fd, name)
    else:
        names.exchange(aside_fd, staged, fd, name)
        found = inode_at(fd, name)
    if found is not None and is_it(found):
        return
    if kind == OperationKind.CREATE:
        names.move(aside_fd, staged, fd, name)
    elif kind == OperationKind.DELETE:
        names.move(fd, name, aside_fd, staged)
    else:
        names.exchange(aside_fd, staged, fd, name)
    raise Stranger(name)
