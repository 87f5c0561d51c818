"""The host's directories that an apply works in, one open at a time, and where its other
entries lie meanwhile.

Not a cache of paths: each directory must stay the very one (device, inode) that it was when
the apply first opened it, whatever its path leads to later. What is staged or displaced lies
*aside*: in the same directory, as `.substrate-<id>-<n>`; or, when we are root and others may
write to that directory, in a directory `.substrate-<id>` of mode 0700 in it. Nobody else can
put anything there or take it away, and only its owner can move it to another directory
(rename(2) wants write permission on a directory whose parent changes), so it is found again
by its inode whatever it is called. Other users cannot do the same: they may not move
directories of others into one of their own. Spec: world.md §5.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from substrate.errors import StateError
from substrate.world.beneath import LIST, LOOKUP, open_beneath
from substrate.world.identity import Inode, inode_at, inode_of
from substrate.world.plan import Operation
from substrate.world.refusal import host_changed
from substrate.world.stage import replaced
from substrate.world.upper import DIRECTORY, FORMAT
from substrate.world.view import HOST, MountView

#: in a directory of our own, so that nobody can remove it while nothing else is in it
_KEEP = b"keep"
#: index of the mount, path below its target
Place = tuple[int, bytes]


def staged_name(identifier: str, number: int) -> bytes:
    return f".substrate-{identifier}-{number}".encode()


def private_name(identifier: str) -> bytes:
    return f".substrate-{identifier}".encode()


def is_shared(fd: int) -> bool:
    """Whether others than root and us may write to a directory (its group's bits bound its
    ACL, acl(5))."""
    status = os.fstat(fd)
    return status.st_uid not in (0, os.geteuid()) or bool(status.st_mode & 0o022)


class Parents:
    """The open parent directory of the operation at hand. Operations come ordered by parent,
    so one open directory at a time is enough; each must stay the directory it was at first."""

    def __init__(self, views: dict[int, MountView], identifier: str) -> None:
        self._views = views
        self._identifier = identifier
        self._place: Place | None = None
        self._fd = self._aside_fd = -1
        self._known: dict[Place, tuple[int, int, int]] = {}
        #: whether the other entries shall lie in a directory of our own; its inode
        self._needs: dict[Place, bool] = {}
        self._private: dict[Place, Inode] = {}
        self.device = 0
        #: what the directory was last asked for
        self.operation: Operation | None = None

    def first_seen(self) -> list[tuple[int, bytes, int, int]]:
        """(mount, path, inode, change time when it was first opened) of each parent."""
        return [(*place, inode, ctime) for place, (_, inode, ctime) in self._known.items()]

    def fd(self, operation: Operation) -> int:
        self.operation = operation
        place = (operation.change.mount, operation.parent)
        if place != self._place:
            self.close()
            try:
                fd = open_beneath(self._views[place[0]].roots[HOST], place[1], LOOKUP)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                    raise host_changed(operation, "(a directory above it)") from error
                raise
            self._fd, self._place = fd, place
            status = os.fstat(fd)
            self.device = status.st_dev
            first = (status.st_dev, status.st_ino, status.st_ctime_ns)
            if self._known.setdefault(place, first)[:2] != first[:2]:
                raise host_changed(operation, "(its directory was replaced)")
        return self._fd

    def aside(self, operation: Operation) -> tuple[int, bytes]:
        """The directory and name at which the operation's other entry lies."""
        fd = self.fd(operation)
        if self._private and self._place in self._private:
            if self._aside_fd < 0:
                name = private_name(self._identifier)
                self._aside_fd, _ = open_private(fd, name, self._private[self._place])
            fd = self._aside_fd
        return fd, staged_name(self._identifier, operation.number)

    def aside_path(self, operation: Operation) -> bytes:
        """The path below the mount's target of that directory, as we named it."""
        parent = operation.parent
        if (operation.change.mount, parent) in self._private:
            name = private_name(self._identifier)
            return parent + b"/" + name if parent else name
        return parent

    def needs_private(self, operation: Operation) -> bool:
        place = (operation.change.mount, operation.parent)
        if place not in self._needs:
            self._needs[place] = os.geteuid() == 0 and is_shared(self.fd(operation))
        return self._needs[place]

    def make_private(self, operation: Operation) -> Inode | None:
        """Makes the directory of our own beside the operation; None when it is there.

        Raises OSError, StateError when another directory took its place."""
        fd = self.fd(operation)
        place = (operation.change.mount, operation.parent)
        if place in self._private:
            return None
        name = private_name(self._identifier)
        os.mkdir(name, 0o700, dir_fd=fd)
        made = open_beneath(fd, name, LIST)
        try:
            status = os.fstat(made)
            if not _is_ours_alone(status) or os.listdir(made):
                raise replaced(self._views[place[0]].path(operation.parent))
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(_KEEP, flags, 0o600, dir_fd=made))
            self._private[place] = inode_of(status)
        finally:
            os.close(made)
        return self._private[place]

    def remove_private(self) -> Iterator[bytes]:
        """Removes the directories of our own; yields the path of each that stays."""
        self.close()
        for (mount, parent), inode in self._private.items():
            view = self._views[mount]
            try:
                fd = open_beneath(view.roots[HOST], parent, LOOKUP)
                try:
                    remove_private(fd, private_name(self._identifier), inode)
                finally:
                    os.close(fd)
            except (OSError, StateError):
                yield view.path(parent) + b"/" + private_name(self._identifier)

    def close(self) -> None:
        for fd in (self._fd, self._aside_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._aside_fd = -1
        self._place = None


def _is_ours_alone(status: os.stat_result) -> bool:
    kind, private = status.st_mode & FORMAT, not status.st_mode & 0o077
    return kind == DIRECTORY and status.st_uid == os.geteuid() and private


def is_private(parent_fd: int, name: bytes) -> bool:
    """Whether a directory that nobody but us can have made lies at `name`. Raises OSError."""
    return _is_ours_alone(os.stat(name, dir_fd=parent_fd, follow_symlinks=False))


def open_private(parent_fd: int, name: bytes, inode: Inode) -> tuple[int, bytes]:
    """An fd of the directory of our own with this inode, and its name now: who may write to
    the parent can have renamed it. Raises OSError, StateError when it is not there."""
    if inode_at(parent_fd, name) != inode:
        found = _find(parent_fd, inode)
        if found is None:
            raise replaced(name)
        name = found
    fd = open_beneath(parent_fd, name, LOOKUP)
    if inode_of(os.fstat(fd)) != inode:
        os.close(fd)
        raise replaced(name)
    return fd, name


def _find(parent_fd: int, inode: Inode) -> bytes | None:
    fd = open_beneath(parent_fd, b"", LIST)
    try:
        for name in map(os.fsencode, os.listdir(fd)):
            if inode_at(fd, name) == inode:
                return name
    finally:
        os.close(fd)
    return None


def remove_private(parent_fd: int, name: bytes, inode: Inode) -> None:
    """rmdir(2) of the directory of our own, under its name now, if it is there. Raises OSError,
    StateError."""
    if inode_at(parent_fd, name) != inode and _find(parent_fd, inode) is None:
        return
    fd, name = open_private(parent_fd, name, inode)
    try:
        if inode_at(fd, _KEEP) is not None:
            os.unlink(_KEEP, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent_fd)
