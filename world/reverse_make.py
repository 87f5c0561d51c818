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
from substrate.world.attributes import attributes_after
from substrate.world.beneath import LOOKUP, READ, open_beneath, open_root
from substrate.world.change import FileState
from substrate.world.conflict import Conflict, ConflictReason
from substrate.world.displacing import Removing
from substrate.world.entry import (
    Entry,
    all_attributes,
    attributes_digest,
    digest_of_attributes,
    entry_of,
)
from substrate.world.identity import Identity, before_matches, inode_at, inode_of
from substrate.world.intent import Before
from substrate.world.job import Job, path_in_mount
from substrate.world.journal import Journal
from substrate.world.layers import OverlayMount
from substrate.world.parents import Place
from substrate.world.plan import Operation, OperationKind
from substrate.world.refusal import ApplyConflict
from substrate.world.removal import Stranger
from substrate.world.restored import Restored, add_restored, load_restored
from substrate.world.reverse import (
    NEW,
    clear_away,
    close_directories,
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
from substrate.world.source import LayerSource
from substrate.world.stage import Stager, replaced
from substrate.world.upper import Unlocked, at, open_layer_file
from substrate.world.view import HOST, Found, MountView


class ReverseMaker(Removing):
    """Keeps what an apply displaces."""

    def start(self, job: Job) -> None:
        super().start(job)
        self._uppers: dict[int, _Upper] = {}
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
            self._uppers[mount.index] = _Upper(job, mount)
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
        touched = [entry for u in self._uppers.values() for entry in u.finish()]
        if touched:
            add_restored(job.world_directory, touched)

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
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            linux.syncfs(fd)
        finally:
            os.close(fd)

    def drop(self) -> None:
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


class _HostStager(Stager):
    """Makes copies of the host's entries in a layer, marks of other overlays escaped as the
    kernel does it (overlayfs.rst, "Nesting overlayfs mounts")."""

    def __init__(self, view: MountView, ctimes: dict[tuple[int, int], int], *, root: int) -> None:
        super().__init__(view, root=root)
        self._has_owners = True  # these are the host's own, also in a rootless world
        self._ctimes = ctimes
        #: the copy stands for a file that is changed in place: its time counts in a diff
        self.copied_up = False
        #: attributes as the host has them, by device and inode
        self.raw: dict[tuple[int, int], dict[str, bytes]] = {}
        #: (inode, change time now, before) of files that had to be unlocked for reading
        self.touched: list[tuple[int, int, int]] = []
        self._first: dict[tuple[int, int], int] = {}

    def _must_be(self, fd: int, name: bytes, state: FileState, relative: bytes) -> None:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if state.type == "directory":  # its mode can be ours for the time being
            same = inode_of(status) == (state.type, state.dev, state.inode)
        else:
            key = (state.dev, state.inode)
            state.ctime_ns = self._ctimes.get(key, state.ctime_ns)
            same = before_matches(status, state)
        if not same:
            conflict = Conflict(
                path=self.view.path(relative),
                reason=ConflictReason.HOST_CHANGED,
                detail="the host changed it after the diff",
            )
            raise ApplyConflict([conflict])

    def _open(self, relative: bytes, dir_fd: int, state: FileState) -> int:
        name = relative.rpartition(b"/")[2]
        try:
            return os.open(name, READ, dir_fd=dir_fd)
        except PermissionError:
            fd = open_layer_file(dir_fd, name)
            self._note_touched(relative, os.fstat(fd), state)
            return fd

    def _note_touched(self, relative: bytes, status: os.stat_result, state: FileState) -> None:
        now = status.st_ctime_ns
        key = (status.st_dev, status.st_ino)
        self.touched.append((status.st_ino, now, state.ctime_ns))
        self._first.setdefault(key, state.ctime_ns)
        state.ctime_ns = self._ctimes[key] = now

    def first_ctime_ns(self, state: FileState) -> int:
        """The change time that the host's file had before we unlocked it."""
        return self._first.get((state.dev, state.inode), state.ctime_ns)

    def _attributes(self, relative: bytes, where: int | str, state: FileState) -> dict[str, bytes]:
        marks = self.view.marks
        found = self._read(relative, where, state)
        given = {
            marks.escape(name) if name.startswith(marks.own) else name: content
            for name, content in found.items()
        }
        if self.copied_up:
            given[marks.origin] = b""
        return given

    def _read(self, relative: bytes, where: int | str, state: FileState) -> dict[str, bytes]:
        follow = isinstance(where, int)
        path = at(where, "") if isinstance(where, int) else where
        try:
            found = all_attributes(path, follow=follow)
        except PermissionError:
            unlocked = Unlocked()
            flags = os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
            unlocked.widen(os.open(path, flags))
            try:
                found = all_attributes(path, follow=follow)
            finally:
                unlocked.relock()
            self._note_touched(relative, os.stat(path, follow_symlinks=follow), state)
        self.raw[state.dev, state.inode] = found
        return found

    def read_directory(self, relative: bytes, state: FileState) -> dict[str, bytes]:
        """The attributes of a directory of the host. Raises OSError, StateError."""
        fd, _none = self.view.open_parent(HOST, relative)
        try:
            return self._read(relative, fd, state)
        finally:
            os.close(fd)


class _Upper:
    """The upper of one mount while it is made."""

    def __init__(self, job: Job, mount: OverlayMount) -> None:
        self._job = job
        self._mount = mount
        self._own = mount.index not in job.views
        self.view = MountView(job.stack, mount) if self._own else job.views[mount.index]
        path = upper_path(job.world_directory, NEW, mount.index)
        os.makedirs(path, mode=0o700)
        self.root = open_root(path)
        self.top_fd = open_root(os.path.dirname(path))
        self.stager = _HostStager(self.view, job.touched, root=self.root)
        #: directories by their path, in the order in which they were made
        self._made: dict[bytes, FileState] = {}
        self._open: tuple[bytes, int] | None = None
        #: (mount, path, mode) of directories whose mode is for later
        self.closed: list[tuple[int, bytes, int]] = []
        #: entries that were copied, as they were, and what the apply will make of them
        self.was: dict[int, Entry] = {}
        self.expected: dict[int, Entry] = {}
        self.stager.made[b""] = inode_of(os.fstat(self.root))
        self._made[b""] = self._state(b"")

    def directory(self, relative: bytes) -> int:
        """The layer's directory, made like the host's with all above it. It stays open until
        the next one is asked for. Raises OSError, StateError."""
        if self._open is not None and self._open[0] == relative:
            return self._open[1]
        self._leave()
        above = [relative]
        while above[-1] not in self._made:
            above.append(above[-1].rpartition(b"/")[0])
        for path in reversed(above[:-1]):
            parent, _, name = path.rpartition(b"/")
            fd = open_beneath(self.root, parent, LOOKUP)
            try:
                self._stage(path, self._state(path), fd, name)
            finally:
                os.close(fd)
        self._open = relative, open_beneath(self.root, relative, LOOKUP)
        return self._open[1]

    def _stage(self, relative: bytes, state: FileState, fd: int, name: bytes) -> None:
        parent = relative.rpartition(b"/")[0]
        self.stager.stage(relative, state, parent, fd, name, open_directory=True)
        if state.type == "directory":
            self._made[relative] = state

    def _state(self, relative: bytes) -> FileState:
        """The host's directory as it will be again when the apply is done with it."""
        parent, _, name = relative.rpartition(b"/")
        fd, _none = self.view.open_parent(HOST, parent)
        try:
            status = os.stat(name or b".", dir_fd=fd, follow_symlinks=False)
            state = self.view.state(Found(HOST, status, ()), os.fsdecode(name), fd)
        finally:
            os.close(fd)
        mode = self._job.widened.mode((self._mount.index, relative))
        if mode is not None:
            state.mode = mode
        return state

    def copy_old(self, operation: Operation) -> None:
        """A copy of what is changed in place."""
        relative, state, number = path_in_mount(operation), operation.before, operation.number
        if state.type == "directory":
            self.directory(relative)
            attributes = self.stager.read_directory(relative, state)
            content = ""
        else:
            fd = self.directory(operation.parent)
            self.stager.copied_up = state.type == "file"
            self._stage(relative, state, fd, operation.name)
            self.stager.copied_up = False
            attributes = self.stager.raw.get((state.dev, state.inode), {})
            content = self.stager.entries[relative].content
        was = Entry(
            state.type,
            state.inode,
            0 if state.type == "directory" else state.size,
            0 if state.type == "directory" else state.mtime_ns,
            state.mode,
            state.uid or 0,
            state.gid or 0,
            content,
            digest_of_attributes(attributes),
        )
        self.was[number] = was
        after = operation.after
        given = attributes_after(self.view, relative, operation.change, attributes)
        self.expected[number] = was._replace(
            mode=after.mode if state.type != "symlink" else was.mode,
            uid=was.uid if after.uid is None or "owner" not in operation.change.what else after.uid,
            gid=was.gid if after.gid is None or "owner" not in operation.change.what else after.gid,
            mtime_ns=after.mtime_ns if "mtime" in operation.change.what else was.mtime_ns,
            attributes=digest_of_attributes(given),
        )

    def copy_displaced(self, operation: Operation) -> None:
        """A copy of what will be displaced, with all that is in it."""
        relative, start = path_in_mount(operation), len(operation.change.path)
        self._stage(relative, operation.before, self.directory(operation.parent), operation.name)
        if operation.before.type != "directory":
            key = (operation.before.dev, operation.before.inode)
            raw = digest_of_attributes(self.stager.raw.get(key, {}))
            self.was[operation.number] = self.stager.entries[relative]._replace(attributes=raw)
        for change in operation.removed:
            assert change.before is not None
            inner = relative + change.path[start:]
            parent, _, name = inner.rpartition(b"/")
            fd = open_beneath(self.root, parent, LOOKUP)
            try:
                self._stage(inner, change.before, fd, name)
            finally:
                os.close(fd)

    def finish(self) -> list[tuple[int, int, int]]:
        """Gives the directories what the host's have, but for a mode that would keep us from
        moving something in. Gives the change times of the host that this has set."""
        self._leave()
        for relative, state in reversed(self._made.items()):
            mode = state.mode
            if os.geteuid() != 0 and mode & 0o700 != 0o700:
                self.closed.append((self._mount.index, relative, mode))
                state.mode |= 0o700  # for now
            parent, _, name = relative.rpartition(b"/")
            fd = open_beneath(self.root, parent, LOOKUP) if relative else os.dup(self.top_fd)
            try:
                self.stager.finish_directory(relative, state, fd, name or b"upper")
            finally:
                os.close(fd)
                state.mode = mode
        return self.stager.touched

    def narrow(self) -> None:
        close_directories(self._job.world_directory, NEW, self.closed)

    def _leave(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
        self._open = None

    def close(self) -> None:
        self._leave()
        os.close(self.root)
        os.close(self.top_fd)
        if self._own:
            self.view.close()
