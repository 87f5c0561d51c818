"""What the upper of a layer says of one path while the world writes to it.

Not a view of several layers (view.py): nothing below the upper is looked at. Unlike what reads
frozen layers (upper.py), this never changes a mode to get at something, for an overlay whose upper
is changed from outside is undefined (overlayfs.rst, "Changes to underlying filesystems"): what its
mode closes to us is CLOSED. Everything may change between two looks; a look is true of one moment for
each name on the way. Invariant: no symlink is followed, nothing but directories is opened.
"""

from __future__ import annotations

import errno
import os
from enum import Enum
from typing import NamedTuple

from substrate.world.beneath import LIST, open_beneath, open_root
from substrate.world.change import FileState
from substrate.world.identity import identity_of
from substrate.world.layers import LayerStack, OverlayMount
from substrate.world.soft import Seen
from substrate.world.upper import CHARACTER, DIRECTORY, FORMAT, Marks, at

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Says(Enum):
    """SILENT: what is below is seen. ABSENT: nothing is there, whatever is below. HERE: an entry.
    CLOSED: its mode, or that of a directory above it, keeps us from looking. ODD: marks that our
    mounts never make."""

    SILENT = "silent"
    ABSENT = "absent"
    HERE = "here"
    CLOSED = "closed"
    ODD = "odd"


class Look(NamedTuple):
    """`pure`: of a directory that is HERE, nothing of what is below shows in it."""

    says: Says
    status: os.stat_result | None = None
    pure: bool = False


class LiveUpper:
    """The upper of one mount. `directory` gives fds that stay open until the next is asked for."""

    def __init__(self, stack: LayerStack, mount: OverlayMount, number: int) -> None:
        self.marks = Marks(stack.xattr_prefix)
        self.root = open_root(stack.upper(number, mount.index))
        #: the directory that was asked for last: its path, what it is, its fd
        self._place: tuple[bytes, Look, int] | None = None

    def close(self) -> None:
        self._leave()
        os.close(self.root)

    def _leave(self) -> None:
        if self._place is not None and self._place[2] >= 0:
            os.close(self._place[2])
        self._place = None

    def forget(self) -> None:
        """The next look is a new one, also in the directory of the last."""
        self._leave()

    def look(self, relative: bytes) -> Look:
        """What it says of a path below the mount's target."""
        parent, _, name = relative.rpartition(b"/")
        if not relative:
            return Look(Says.HERE, os.fstat(self.root))
        above, fd = self.directory(parent)
        return self._entry(above, fd, name)

    def directory(self, relative: bytes) -> tuple[Look, int]:
        """What a directory is, and an fd of it to look names up in; -1 where it is none."""
        if self._place is not None and self._place[0] == relative:
            return self._place[1], self._place[2]
        self._leave()
        look = Look(Says.HERE, os.fstat(self.root))
        fd = os.dup(self.root)
        for name in relative.split(b"/") if relative else ():
            look = self._entry(look, fd, name)
            below = -1
            if look.says is Says.HERE and look.status is not None:
                if look.status.st_mode & FORMAT != DIRECTORY:
                    look = Look(Says.ABSENT)
                else:
                    try:
                        below = open_beneath(fd, name, LIST)
                    except OSError as error:
                        look = _failed(error)
            os.close(fd)
            fd = below
            if fd < 0:
                break
        self._place = relative, look, fd
        return look, fd

    def _entry(self, above: Look, fd: int, name: bytes) -> Look:
        if above.says is not Says.HERE:
            return Look(above.says)
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if status.st_mode & FORMAT == CHARACTER and status.st_rdev == 0:
                return Look(Says.ABSENT)
            if status.st_mode & FORMAT != DIRECTORY:
                return Look(Says.HERE, status)
            where = at(fd, os.fsdecode(name))
            opaque = b""
            if self.marks.opaque in os.listxattr(where, follow_symlinks=False):
                opaque = os.getxattr(where, self.marks.opaque, follow_symlinks=False)
        except FileNotFoundError:
            return Look(Says.ABSENT if above.pure else Says.SILENT)
        except OSError as error:
            return _failed(error)
        if opaque not in (b"", b"y"):
            return Look(Says.ODD)
        return Look(Says.HERE, status, above.pure or opaque == b"y")


def _failed(error: OSError) -> Look:
    if error.errno in (errno.EACCES, errno.EPERM):
        return Look(Says.CLOSED)
    if error.errno in _GONE:
        return Look(Says.ODD)  # it was another thing a moment ago
    raise error


def seen_of(status: os.stat_result) -> Seen:
    """What tells an entry of the upper from a later state of it; of a directory neither size nor
    times count."""
    kind, _, inode, size, mtime_ns, mode, uid, gid = identity_of(status)
    ctime_ns = 0 if kind == "directory" else status.st_ctime_ns
    return kind, inode, size, mtime_ns, ctime_ns, mode, uid, gid


def seen_of_state(state: FileState) -> Seen:
    """The same of a state of the host."""
    is_directory = state.type == "directory"
    times = (0, 0, 0) if is_directory else (state.size, state.mtime_ns, state.ctime_ns)
    uid, gid = state.uid, state.gid
    assert uid is not None and gid is not None
    return state.type, state.inode, *times, state.mode, uid, gid
