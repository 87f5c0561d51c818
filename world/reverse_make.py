"""Making the reverse layer of an apply while it runs.

Not the form (reverse.py). Before anything is staged, the layer is built in `reverse/new`: its
directories, a whiteout for what will be made, copies of what will be changed in place, and for
what will be displaced either a placeholder, which the entry itself will replace by one
rename, or a copy where a rename cannot reach it (another filesystem or mount). So all the
space that the layer needs is taken before the window, and what is left to do after `committed`
are renames over names that exist. Spec: world.md §4.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from substrate.world import linux, names
from substrate.world.aside import displaced_aside, remove_aside
from substrate.world.beneath import LOOKUP
from substrate.world.displacing import Removing
from substrate.world.entry import (
    Entry,
    attributes_digest,
    entry_of,
)
from substrate.world.identity import Identity, inode_at, inode_of
from substrate.world.intent import Before
from substrate.world.job import Job
from substrate.world.journal import Journal
from substrate.world.layers import is_there
from substrate.world.parents import Place
from substrate.world.plan import Operation, OperationKind
from substrate.world.removal import Stranger
from substrate.world.restored import Restored, load_restored
from substrate.world.reverse import (
    NEW,
    clear_away,
    next_number,
    reverse_path,
    settle,
    upper_path,
)
from substrate.world.reverse_move import lose, probe_name, remove_probe, take
from substrate.world.reverse_record import (
    COPIED,
    MOVED,
    Header,
    Recorded,
    render_header,
    render_now,
    render_operation,
    write_lines,
)
from substrate.world.reverse_upper import Upper
from substrate.world.source import LayerSource
from substrate.world.stage import replaced
from substrate.world.unlocked import Unlocked
from substrate.world.upper import at


class ReverseMaker(Removing):
    """Keeps what an apply displaces."""

    def start(self, job: Job) -> None:
        super().start(job)
        self._unlocked = Unlocked(job.world_directory, job.touched)
        self._uppers: dict[int, Upper] = {}
        #: operations whose displaced entry is a copy in the layer
        self._copied: set[int] = set()
        self._movable: dict[Place, bool] = {}
        #: of what the apply puts in, by number of the operation
        self._inodes: dict[int, int] = {}
        self._whiteout: tuple[int, bytes] | None = None

    def begin(self) -> dict[str, object]:
        self.number = next_number(self.job.world_directory)
        return {"reverse": self.number}

    # --- before the window

    def prepare(self, before: Before, journal: Journal) -> None:
        job = self.job
        clear_away(job.world_directory, NEW)
        os.mkdir(reverse_path(job.world_directory, NEW), 0o700)
        for mount in job.stack.mounts:
            if mount.index in job.views or is_there(mount):
                self._uppers[mount.index] = Upper(job, mount, self._unlocked)
            else:  # the plan has nothing to do with it
                os.makedirs(upper_path(job.world_directory, NEW, mount.index), mode=0o700)
        for operation in job.plan.operations:
            upper = self._uppers[operation.change.mount]
            if operation.kind is OperationKind.META:
                upper.copy_old(operation)
                continue
            fd = upper.directory(operation.parent)
            if operation.kind is OperationKind.CREATE:
                self._hide(fd, operation.name)
            elif not self._can_move(operation):
                upper.copy_displaced(operation)
                self._copied.add(operation.number)
                journal.add("copied", n=operation.number)
            elif operation.before.type == "directory":
                os.mkdir(operation.name, 0o700, dir_fd=fd)
            else:
                self._hide(fd, operation.name)
        for upper in self._uppers.values():
            upper.finish()
        self._unlocked.close()

    def _hide(self, fd: int, name: bytes) -> None:
        """A whiteout, as overlayfs makes them: many names of one device (overlayfs.rst)."""
        if self._whiteout is not None:
            try:
                os.link(self._whiteout[1], name, src_dir_fd=self._whiteout[0], dst_dir_fd=fd)
                return
            except OSError as error:
                if error.errno != errno.EMLINK:
                    raise
            self._forget_whiteout()
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=fd)
        self._whiteout = os.dup(fd), name

    def _forget_whiteout(self) -> None:
        if self._whiteout is not None:
            os.close(self._whiteout[0])
        self._whiteout = None

    def _can_move(self, operation: Operation) -> bool:
        """Whether a rename reaches from the place aside to the layer. Mounts and devices do not
        tell it all (project quotas, encrypted directories): it is tried with an empty file."""
        if operation.before.type == "directory" and os.geteuid() not in (0, operation.before.uid):
            return False  # not ours to give another parent
        place = (operation.change.mount, operation.parent)
        if place not in self._movable:
            self._movable[place] = self._try_rename(operation)
        return self._movable[place]

    def _try_rename(self, operation: Operation) -> bool:
        fd, _ = self.job.parents.aside(operation)
        layer_fd = self._uppers[operation.change.mount].top_fd
        if os.fstat(fd).st_dev != os.fstat(layer_fd).st_dev:
            return False
        name = probe_name(self.job.identifier)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        made = os.open(name, flags, 0o600, dir_fd=fd)
        try:
            inode = inode_of(os.fstat(made))
            names.move(fd, name, layer_fd, name)
        except OSError as error:
            remove_probe(fd, name)
            if error.errno in (errno.EXDEV, errno.EPERM, errno.EACCES):
                return False
            raise
        finally:
            os.close(made)
        if inode_at(layer_fd, name) != inode:
            names.move(layer_fd, name, fd, name)
            raise replaced(operation.change.path)
        os.unlink(name, dir_fd=layer_fd)
        return True

    def record(self, source: LayerSource, before: Before) -> None:
        job = self.job
        closed = [c for u in self._uppers.values() for c in u.closed]
        header = Header(
            identifier=job.identifier,
            number=self.number or 0,
            applied_ns=time.time_ns(),
            operations=len(job.plan.operations),
            xattr_prefix=job.stack.xattr_prefix,
            mounts=job.stack.mounts,
            closed=tuple(closed),
        )
        lines = [render_header(header)]
        restored = load_restored(job.world_directory)
        lines += [
            render_operation(self._recorded(operation, source, before, restored))
            for operation in job.plan.operations
        ]
        write_lines(reverse_path(job.world_directory, NEW), lines)

    def _recorded(
        self, operation: Operation, source: LayerSource, before: Before, restored: Restored
    ) -> Recorded:
        number, kind, state = operation.number, operation.kind, operation.change.before
        upper = self._uppers[operation.change.mount]
        after: Entry | None = None
        copied = number in self._copied
        entries: dict[bytes, Entry] = {}
        was = upper.was.get(number)
        if kind is OperationKind.META:
            after = upper.expected[number]
        elif kind is not OperationKind.DELETE:
            entries = source.entries(operation)
            after = entries.pop(b"")
            self._inodes[number] = after.inode
        start = len(operation.change.path)
        # A copy will be another inode, for which nothing is known of earlier change times.
        inner = []
        for change in operation.removed:
            if copied and change.before is not None:
                first = upper.stager.first_ctime_ns(change.before)
                first = restored.get((change.before.inode, first), first)
                inner.append((change.path[start:], first))
        ctime_ns = None
        if state is not None:
            ctime_ns = self.job.ctimes[number]
            ctime_ns = restored.get((state.inode, ctime_ns), ctime_ns)
        displaced = kind in (OperationKind.REPLACE, OperationKind.DELETE)
        return Recorded(
            number=number,
            kind=kind,
            mount=operation.change.mount,
            parent=operation.parent,
            name=operation.name,
            what=operation.change.what,
            before=before.displaced.get(number),
            ctime_ns=ctime_ns,
            tree=before.trees.get(number),
            digest=before.digests.get(number),
            kept=(COPIED if copied else MOVED) if displaced else None,
            was=was,
            inner=tuple(inner),
            after=after,
            entries=entries,
        )

    def sync(self) -> None:
        path = reverse_path(self.job.world_directory, NEW)
        fd = os.open(path, LOOKUP)
        try:
            linux.sync_around(fd)
        finally:
            os.close(fd)

    def drop(self) -> None:
        self._unlocked.close()
        clear_away(self.job.world_directory, NEW)

    # --- after it

    def keep(self, operation: Operation, displaced: Identity) -> bool:
        aside_fd, name = self.job.parents.aside(operation)
        aside = displaced_aside(operation, displaced)
        if operation.number in self._copied:
            remove_aside(aside_fd, name, aside)
            return True
        upper = self._uppers[operation.change.mount]
        layer_fd = upper.directory(operation.parent)
        try:
            kept = take(aside_fd, name, aside, displaced[5], layer_fd, operation.name)
        except Stranger:
            lose(layer_fd, operation.name)
            raise
        if not kept:
            lose(layer_fd, operation.name)
        return kept

    def finish(self) -> None:
        job = self.job
        job.sync_filesystems()
        new = reverse_path(job.world_directory, NEW)
        write_lines(new, self._now())
        for upper in self._uppers.values():
            upper.narrow()
        assert self.number is not None
        settle(job.world_directory, self.number)

    def _now(self) -> list[dict[str, object]]:
        """What is there now of each operation; nothing for one that the host has touched, or
        that lies in a directory which the plan closed to us."""
        lines = []
        for operation in self.job.plan.operations:
            if operation.kind is OperationKind.DELETE:
                continue
            try:
                fd = self.job.parents.fd(operation)
                status = os.stat(operation.name or b".", dir_fd=fd, follow_symlinks=False)
            except (FileNotFoundError, PermissionError):
                continue
            if operation.kind is not OperationKind.META:
                if status.st_ino != self._inodes[operation.number]:
                    continue
                lines.append(render_now(operation.number, status.st_ctime_ns, None))
            elif status.st_ino == operation.before.inode:
                expected = self._uppers[operation.change.mount].expected[operation.number]
                attributes = expected.attributes
                if operation.before.type != "symlink":
                    where = at(fd, os.fsdecode(operation.name) or ".")
                    attributes = attributes_digest(where, follow=False)
                after = entry_of(status, expected.content, attributes)
                lines.append(render_now(operation.number, status.st_ctime_ns, after))
        return lines

    def close(self) -> None:
        self._forget_whiteout()
        for upper in self._uppers.values():
            upper.close()
