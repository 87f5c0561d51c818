"""The upper of one mount in the reverse layer of an apply, while it is made.

Not what is kept and how (reverse_make.py): directories like the host's, and copies of what the
host has. Copies are exact: owner, mode, time, holes, hard links among them, and attributes, those
of other overlays escaped. Spec: world.md §4.
"""

from __future__ import annotations

import os

from substrate.world.attributes import attributes_after
from substrate.world.beneath import LOOKUP, open_beneath, open_root
from substrate.world.change import FileState
from substrate.world.conflict import Conflict, ConflictReason
from substrate.world.entry import (
    Entry,
    all_attributes,
    digest_of_attributes,
)
from substrate.world.identity import before_matches, inode_of
from substrate.world.job import Job, path_in_mount
from substrate.world.layers import OverlayMount
from substrate.world.plan import Operation
from substrate.world.refusal import ApplyConflict
from substrate.world.reverse import (
    NEW,
    close_directories,
    upper_path,
)
from substrate.world.stage import Stager
from substrate.world.unlocked import Unlocked
from substrate.world.upper import at
from substrate.world.view import HOST, Found, MountView


class HostStager(Stager):
    """Makes copies of the host's entries in a layer, marks of other overlays escaped as the
    kernel does it (overlayfs.rst, "Nesting overlayfs mounts")."""

    def __init__(self, view: MountView, unlocked: Unlocked, *, root: int) -> None:
        super().__init__(view, root=root)
        self.has_owners = True  # these are the host's own, also in a rootless world
        self._unlocked = unlocked
        #: the copy stands for a file that is changed in place: its time counts in a diff
        self.copied_up = False
        #: attributes as the host has them, by device and inode
        self.raw: dict[tuple[int, int], dict[str, bytes]] = {}

    def _must_be(self, fd: int, name: bytes, state: FileState, relative: bytes) -> None:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if state.type == "directory":  # its mode can be ours for the time being
            same = inode_of(status) == (state.type, state.dev, state.inode)
        else:
            self._note_ctime(state)
            same = before_matches(status, state)
        if not same:
            conflict = Conflict(
                path=self.view.path(relative),
                reason=ConflictReason.HOST_CHANGED,
                detail="the host changed it after the diff",
            )
            raise ApplyConflict([conflict])

    def _note_ctime(self, state: FileState) -> None:
        """The change time may be ours by now: of a file that was unlocked to be read."""
        key = (state.dev, state.inode)
        state.ctime_ns = self._unlocked.ctimes.get(key, state.ctime_ns)

    def _open(self, relative: bytes, dir_fd: int, state: FileState) -> int:
        fd = self._unlocked.open_file(dir_fd, self.view.mount.target, relative)
        self._note_ctime(state)
        return fd

    def first_ctime_ns(self, state: FileState) -> int:
        return self._unlocked.first_ctime_ns(state.dev, state.inode, state.ctime_ns)

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
            flags = os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
            fd = os.open(path, flags)
            try:
                with self._unlocked.opened(fd, self.view.mount.target, relative):
                    found = all_attributes(path, follow=follow)
            finally:
                os.close(fd)
            self._note_ctime(state)
        self.raw[state.dev, state.inode] = found
        return found

    def read_directory(self, relative: bytes, state: FileState) -> dict[str, bytes]:
        """The attributes of a directory of the host. Raises OSError, StateError."""
        fd, _none = self.view.open_parent(HOST, relative)
        try:
            return self._read(relative, fd, state)
        finally:
            os.close(fd)


class Upper:
    """The upper of one mount while it is made."""

    def __init__(self, job: Job, mount: OverlayMount, unlocked: Unlocked) -> None:
        self._job = job
        self._mount = mount
        self._own = mount.index not in job.views
        self.view = MountView(job.stack, mount) if self._own else job.views[mount.index]
        path = upper_path(job.world_directory, NEW, mount.index)
        os.makedirs(path, mode=0o700)
        self.root = open_root(path)
        self.top_fd = open_root(os.path.dirname(path))
        self.stager = HostStager(self.view, unlocked, root=self.root)
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

    def finish(self) -> None:
        """Gives the directories what the host's have, but for a mode that would keep us from
        moving something in."""
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
