"""A merged directory tree: some layers of one overlay mount over the host's directory.

Not a comparison (diff.py). It answers, for one directory at a time, what a name is when the
given layers are stacked the way overlayfs stacks them (overlayfs.rst, "Merging
directories"). Sources are numbered: 0 is the host, n the layer n, -i the segment i
(layers.py); a list of sources runs from the top down. Invariant: a directory's sources are exactly those whose entries can be
seen in it.
"""

from __future__ import annotations

import errno
import os

from substrate.errors import StateError
from substrate.world.beneath import LIST, LOOKUP, open_beneath, open_root
from substrate.world.change import FileState
from substrate.world.layers import gone
from substrate.world.upper import (
    CHARACTER,
    DIRECTORY,
    FORMAT,
    REGULAR,
    SYMLINK,
    Marks,
    Unlocked,
    at,
    opaque_mark,
    open_layer_directory,
    open_layer_file,
    read_attribute,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.world.layers import LayerStack, OverlayMount

HOST = 0
_ONLY_HOST = (HOST,)
TYPES = {
    0o100000: "file",
    0o040000: "directory",
    0o120000: "symlink",
    0o010000: "fifo",
    0o140000: "socket",
    0o020000: "char",
    0o060000: "block",
}


class Found:
    """What a name is in a view: the source that gives it and its status, and for a directory
    all sources that its entries come from."""

    __slots__ = ("source", "sources", "status")

    def __init__(self, source: int, status: os.stat_result, sources: tuple[int, ...]) -> None:
        self.source = source
        self.status = status
        self.sources = sources


class Roots(dict[int, int]):
    """The O_PATH fd of each source's root, opened when it is first asked for. Raises StateError
    where the host's is not the one that the world began with."""

    def __init__(self, stack: LayerStack, mount: OverlayMount) -> None:
        super().__init__()
        self._stack = stack
        self._mount = mount

    def __missing__(self, source: int) -> int:
        if source:
            self[source] = fd = open_root(self._stack.upper(source, self._mount.index))
            return fd
        try:
            fd = open_root(self._mount.target)
        except (FileNotFoundError, NotADirectoryError):
            raise gone(self._mount) from None
        if self._mount.inode not in (0, os.fstat(fd).st_ino):
            os.close(fd)
            raise gone(self._mount)
        self[HOST] = fd
        return fd


class Ids(dict[int, int]):
    """Owner in an upper → owner on the host, worked out once each; -1 outside the map."""

    def __init__(self, stack: LayerStack) -> None:
        super().__init__()
        self._stack = stack

    def __missing__(self, upper_id: int) -> int:
        host = self._stack.host_id(upper_id)
        self[upper_id] = found = -1 if host is None else host
        return found

    def get(self, upper_id: int, default: int) -> int:  # type: ignore[override]
        found = self[upper_id]
        return default if found < 0 else found


class MountView:
    """The sources of one overlay mount, open. Use as a context manager."""

    def __init__(self, stack: LayerStack, mount: OverlayMount) -> None:
        self.stack = stack
        self.mount = mount
        self.marks = Marks(stack.xattr_prefix)
        self.ids = Ids(stack)
        self._shifts = bool(stack.id_extents)
        self.roots = Roots(stack, mount)

    def __enter__(self) -> MountView:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        while self.roots:
            os.close(self.roots.popitem()[1])

    def path(self, relative: bytes) -> bytes:
        """The absolute path of a path in this mount."""
        target = self.mount.target.rstrip(b"/")
        return target + b"/" + relative if relative else target or b"/"

    def state(self, found: Found, name: str, fd: int) -> FileState:
        """The value for an entry `name` of the source's directory `fd`."""
        status, source = found.status, found.source
        kind = status.st_mode & FORMAT
        uid: int | None = status.st_uid
        gid: int | None = status.st_gid
        if source and self._shifts:
            uid, gid = self.ids[status.st_uid], self.ids[status.st_gid]
            if uid < 0 or gid < 0:
                uid, gid = (None if uid < 0 else uid), (None if gid < 0 else gid)
        link = None
        if kind == SYMLINK:
            link = os.fsencode(os.readlink(name, dir_fd=fd))
        return FileState(
            TYPES[kind],
            status.st_mode & 0o7777,
            status.st_size,
            uid,
            gid,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_dev,
            status.st_ino,
            status.st_nlink,
            status.st_rdev,
            source,
            link,
        )

    def open_parent(self, source: int, relative: bytes) -> tuple[int, Unlocked | None]:
        """A directory of one source, open for lookups (the host's) or listing (a layer's).

        Raises StateError when the host's directory cannot be reached as it could when the
        world saw it (no permission, another mount, a symlink in its place)."""
        if source:
            return open_layer_directory(self.roots[source], relative)
        try:
            return open_beneath(self.roots[HOST], relative, LOOKUP), None
        except OSError as error:
            raise host_unreachable(self.path(relative), error) from error

    def open_state(self, relative: bytes, state: FileState) -> int:
        """A regular file open for reading; the very file that `state` describes.

        Raises OSError, or StateError when another file is there now."""
        parent, _, name = relative.rpartition(b"/")
        dir_fd, unlocked = self.open_parent(state.layer, parent)
        try:
            if state.layer:
                fd = open_layer_file(dir_fd, name)
            else:
                fd = open_beneath(dir_fd, name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        finally:
            os.close(dir_fd)
            if unlocked is not None:
                unlocked.relock()
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino, status.st_mode & FORMAT) != (
            state.dev,
            state.inode,
            REGULAR,
        ):
            os.close(fd)
            raise StateError(f"{os.fsdecode(self.path(relative))} was replaced while it was read")
        return fd


def host_unreachable(path: bytes, error: OSError) -> StateError:
    why = {
        errno.EXDEV: "another filesystem is mounted there now",
        errno.ELOOP: "a symlink is in its way now",
    }.get(error.errno or 0, error.strerror or str(error))
    return StateError(f"the host's directory {os.fsdecode(path)!r} cannot be read: {why}")


class DirectoryView:
    """One directory of a view, with the fds of its sources; closed by `close`.

    `marks_x`: the sources in which this directory may hold attribute whiteouts."""

    __slots__ = ("_unlocked", "_x", "fds", "relative", "sources", "view")

    def __init__(self, view: MountView, relative: bytes, sources: tuple[int, ...]) -> None:
        self.view = view
        self.relative = relative
        self.sources = sources
        self.fds: dict[int, int] = {}
        self._unlocked: list[Unlocked] = []
        self._x: set[int] = set()
        try:
            for source in sources:
                fd, unlocked = view.open_parent(source, relative)
                self.fds[source] = fd
                if unlocked is not None:
                    self._unlocked.append(unlocked)
                if source and opaque_mark(fd, view.marks, view.path(relative)) == b"x":
                    self._x.add(source)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.popitem()[1])
        while self._unlocked:
            self._unlocked.pop().relock()

    def names(self, source: int) -> list[str]:
        """The names in one source. Raises StateError for a host directory that cannot be
        listed; a host directory on which something is mounted lists as empty."""
        if source:
            return os.listdir(self.fds[source])
        fd = -1
        try:
            fd = os.open(".", LIST, dir_fd=self.fds[HOST])
            return os.listdir(fd)
        except OSError as error:
            raise host_unreachable(self.view.path(self.relative), error) from error
        finally:
            if fd >= 0:
                os.close(fd)

    def entries(self, source: int) -> list[tuple[str, bool]]:
        """The names in one source as `names` gives them, each with whether the directory says
        that it is a regular file that no whiteout can be."""
        if not source or source in self._x:
            return [(name, False) for name in self.names(source)]
        with os.scandir(self.fds[source]) as found:
            return [(entry.name, entry.is_file(follow_symlinks=False)) for entry in found]

    def is_whiteout(self, source: int, name: str, status: os.stat_result) -> bool:
        if status.st_mode & FORMAT == CHARACTER:
            return status.st_rdev == 0
        if source in self._x and status.st_mode & FORMAT == REGULAR and status.st_size == 0:
            marks = self.view.marks
            return marks.whiteout in os.listxattr(at(self.fds[source], name), follow_symlinks=False)
        return False

    def is_opaque(self, source: int, name: str) -> bool:
        """Whether the directory `name` of a layer hides what is below it."""
        marks = self.view.marks
        where = at(self.fds[source], name)
        names = os.listxattr(where, follow_symlinks=False)
        if not names:
            return False
        path = self.relative + b"/" + os.fsencode(name)
        marks.refuse_unknown(names, self.view.path(path))
        return marks.opaque in names and read_attribute(where, marks.opaque) == b"y"

    def look_up(self, name: str, sources: tuple[int, ...]) -> tuple[Found | None, bool]:
        """(what `name` is in these of our sources, top down; whether it hides what is below
        them: a whiteout, a file or an opaque directory)."""
        if sources == _ONLY_HOST:  # nearly every look-up of a base
            try:
                status = os.stat(name, dir_fd=self.fds[HOST], follow_symlinks=False)
            except FileNotFoundError:
                return None, False
            inner = _ONLY_HOST if status.st_mode & FORMAT == DIRECTORY else ()
            return Found(HOST, status, inner), True
        merged: list[int] = []
        top: Found | None = None
        for source in sources:
            try:
                status = os.stat(name, dir_fd=self.fds[source], follow_symlinks=False)
            except FileNotFoundError:
                continue
            if source and self.is_whiteout(source, name, status):
                return _with(top, merged), True
            if status.st_mode & FORMAT != DIRECTORY:
                return (_with(top, merged) or Found(source, status, ())), True
            merged.append(source)
            if top is None:
                top = Found(source, status, ())
            if source == HOST or self.is_opaque(source, name):
                return _with(top, merged), True
        return _with(top, merged), False


def _with(top: Found | None, merged: list[int]) -> Found | None:
    if top is not None:
        top.sources = tuple(merged)
    return top
