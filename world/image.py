"""Copies of entries as a layer holds them: owner, mode, times, attributes and content as they are.

Not the staging for the host (stage.py), where owners are un-shifted and marks mean nothing. What is
copied may be written to meanwhile: a file is compared before and after (`Unsettled` where it
changed), and nothing is believed of a name but what its fd says. Contents are shared where the
filesystem can (ioctl_ficlone(2), copy_file_range(2)), holes stay holes. Invariant: `Images` writes
below its own directory alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from substrate.world import linux
from substrate.world.beneath import LOOKUP, READ, open_beneath, open_root
from substrate.world.upper import CHARACTER, DIRECTORY, FORMAT, LABELS, REGULAR, SYMLINK, Marks, at

_FICLONE = 0x40049409  # ioctl_ficlone(2)
_CLONE_FROM = 1 << 16  # bytes; below this a copy is cheaper than the attempt
_CANNOT = (
    *(errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ENOSYS),
    *(errno.ETXTBSY, errno.EBADF, errno.EIO),
)
_CANNOT_LINK = (errno.EXDEV, errno.EMLINK, errno.EPERM)
_BLOCK = 1 << 18
_TRIES = 3


class Unsettled(Exception):
    """It changed while it was copied, each time that it was tried."""


class TooLarge(Exception):
    """It does not fit into what may still be kept."""


class Budget:
    """How many bytes may still be copied. What is shared costs nothing."""

    def __init__(self, most_bytes: int) -> None:
        self.left = most_bytes

    def take(self, size: int) -> None:
        if size > self.left:
            raise TooLarge
        self.left -= size


class Like(NamedTuple):
    """What a copy is given besides its content. `attributes`: by their names on the disk."""

    mode: int
    uid: int
    gid: int
    times_ns: tuple[int, int]
    attributes: dict[str, bytes]


def like_of(status: os.stat_result, attributes: dict[str, bytes]) -> Like:
    return Like(
        mode=status.st_mode & 0o7777,
        uid=status.st_uid,
        gid=status.st_gid,
        times_ns=(status.st_atime_ns, status.st_mtime_ns),
        attributes=attributes,
    )


def raw_attributes(where: int | str, marks: Marks) -> dict[str, bytes]:
    """All attributes of a layer's entry but the overlay's own marks, of which `origin` stays: it
    says of which file of the host it is a copy (conflict.py). Raises OSError."""
    follow = isinstance(where, int)
    escaped = marks.escape(marks.own)
    found = {}
    for name in os.listxattr(where, follow_symlinks=follow):
        if name in LABELS:
            continue
        if name.startswith(marks.own) and name != marks.origin and not name.startswith(escaped):
            continue
        found[name] = os.getxattr(where, name, follow_symlinks=follow)
    return found


def copy_content(source: int, target: int, budget: Budget) -> None:
    """Raises OSError, TooLarge."""
    status = os.fstat(source)
    size = status.st_size
    if size >= _CLONE_FROM:
        try:
            fcntl.ioctl(target, _FICLONE, source)
            return
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
    budget.take(min(size, status.st_blocks * 512))
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(source, offset, os.SEEK_DATA)
            end = os.lseek(source, offset, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        _copy_range(source, target, offset, min(end, size))
        offset = end
    os.ftruncate(target, size)


def _copy_range(source: int, target: int, offset: int, end: int) -> None:
    in_kernel = True
    while offset < end:
        if in_kernel:
            try:
                done = os.copy_file_range(
                    source, target, min(end - offset, 1 << 30), offset, offset
                )
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                in_kernel = False
                continue
        else:
            block = os.pread(source, min(_BLOCK, end - offset), offset)
            done = os.pwrite(target, block, offset) if block else 0
        if not done:
            return  # it became shorter: the comparison afterwards sees it
        offset += done


def _open_file(dir_fd: int, name: bytes) -> int:
    return os.open(name, READ, dir_fd=dir_fd)


class Images:
    """An upper that is being made at `path`, of copies. `open_file` opens a regular file."""

    def __init__(
        self,
        path: bytes,
        marks: Marks,
        budget: Budget,
        open_file: Callable[[int, bytes], int] = _open_file,
    ) -> None:
        os.makedirs(path, mode=0o700, exist_ok=True)
        self._open_file = open_file
        self._marks = marks
        self._budget = budget
        self._path = path
        self.root = open_root(path)
        #: directories in the order in which they were made, and what they are to be like
        self._directories: dict[bytes, Like] = {}
        #: whatever else was put
        self._names: set[bytes] = set()
        #: the first name of what has several in the source
        self._links: dict[tuple[int, int], bytes] = {}
        self._open: tuple[bytes, int] | None = None

    def close(self) -> None:
        self._leave()
        os.close(self.root)

    def _leave(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
        self._open = None

    def has(self, relative: bytes) -> bool:
        return relative in self._names or relative in self._directories

    def is_hidden(self, relative: bytes) -> bool:
        """Whether a file or a whiteout lies in the way to it."""
        while relative:
            relative = relative.rpartition(b"/")[0]
            if relative in self._names:
                return True
        return False

    def _parent(self, relative: bytes, way: Callable[[bytes], Like]) -> tuple[int, bytes]:
        """The directory that `relative` lies in, made with all above it like `way` says."""
        parent, _, name = relative.rpartition(b"/")
        if self._open is None or self._open[0] != parent:
            self._leave()
            missing = []
            above = parent
            while above and above not in self._directories:
                missing.append(above)
                above = above.rpartition(b"/")[0]
            for each in reversed(missing):
                fd, child = self._parent(each, way)
                os.mkdir(child, 0o700, dir_fd=fd)
                self._directories[each] = way(each)
            self._leave()
            self._open = parent, open_beneath(self.root, parent, LOOKUP)
        return self._open[1], name

    def whiteout(self, relative: bytes, way: Callable[[bytes], Like]) -> None:
        fd, name = self._parent(relative, way)
        os.mknod(name, stat.S_IFCHR | 0o600, 0, dir_fd=fd)
        self._names.add(relative)

    def directory(
        self, relative: bytes, like: Like, way: Callable[[bytes], Like], *, opaque: bool
    ) -> None:
        """`opaque`: nothing of what is below shows in it."""
        if relative and relative not in self._directories:
            fd, name = self._parent(relative, way)
            os.mkdir(name, 0o700, dir_fd=fd)
        if opaque:
            like = like._replace(attributes={**like.attributes, self._marks.opaque: b"y"})
        self._directories[relative] = like

    def link(self, relative: bytes, root: int, other: bytes, way: Callable[[bytes], Like]) -> bool:
        """Another name of a file of another upper of ours; False where there can be none."""
        fd, name = self._parent(relative, way)
        parent, _, last = other.rpartition(b"/")
        other_fd = open_beneath(root, parent, LOOKUP)
        try:
            os.link(last, name, src_dir_fd=other_fd, dst_dir_fd=fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            return False
        finally:
            os.close(other_fd)
        self._names.add(relative)
        return True

    def copy(
        self,
        relative: bytes,
        source_fd: int,
        source: bytes,
        way: Callable[[bytes], Like],
        *,
        like: Callable[[Like], Like] = lambda found: found,
        links: bool = True,
    ) -> os.stat_result:
        """A copy of the entry `source`, no directory, of the directory `source_fd`. Gives what it
        was when it was copied. `like`: what the copy is given. `links`: names of one file there
        are names of one file here.

        Raises Unsettled, TooLarge, OSError (FileNotFoundError: it is gone); nothing is left of it
        then."""
        fd, name = self._parent(relative, way)
        for _ in range(_TRIES):
            status = os.stat(source, dir_fd=source_fd, follow_symlinks=False)
            kind = status.st_mode & FORMAT
            if kind == DIRECTORY or (kind == CHARACTER and status.st_rdev == 0):
                raise Unsettled
            first = self._links.get((status.st_dev, status.st_ino)) if links else None
            if first is not None and status.st_nlink > 1:
                if self.link(relative, self.root, first, way):
                    return status
                fd, name = self._parent(relative, way)
            try:
                same = self._copy(fd, name, source_fd, source, status, like)
            except BaseException:
                _take_away(fd, name)
                raise
            if same:
                self._names.add(relative)
                if status.st_nlink > 1:
                    self._links[status.st_dev, status.st_ino] = relative
                return status
            _take_away(fd, name)
        raise Unsettled

    def _copy(
        self,
        fd: int,
        name: bytes,
        source_fd: int,
        source: bytes,
        status: os.stat_result,
        like: Callable[[Like], Like],
    ) -> bool:
        """False where it changed meanwhile."""
        kind = status.st_mode & FORMAT
        if kind == REGULAR:
            return self._copy_file(fd, name, source_fd, source, status, like)
        where = at(source_fd, os.fsdecode(source))
        if kind == SYMLINK:
            os.symlink(os.readlink(source, dir_fd=source_fd), name, dir_fd=fd)
        else:
            os.mknod(name, kind | 0o600, status.st_rdev, dir_fd=fd)
        attributes = raw_attributes(where, self._marks)
        made = open_beneath(fd, name, os.O_PATH | os.O_NOFOLLOW)
        try:
            give(made, like(like_of(status, attributes)), is_symlink=kind == SYMLINK)
        finally:
            os.close(made)
        now = os.stat(source, dir_fd=source_fd, follow_symlinks=False)
        return _same(status, now)

    def _copy_file(
        self,
        fd: int,
        name: bytes,
        source_fd: int,
        source: bytes,
        status: os.stat_result,
        like: Callable[[Like], Like],
    ) -> bool:
        opened = self._open_file(source_fd, source)
        try:
            if not _same(status, os.fstat(opened)):
                return False
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            made = os.open(name, flags, 0o600, dir_fd=fd)
            try:
                copy_content(opened, made, self._budget)
                attributes = raw_attributes(opened, self._marks)
                give(made, like(like_of(status, attributes)))
            finally:
                os.close(made)
            return _same(status, os.fstat(opened))
        finally:
            os.close(opened)

    def finish(self) -> None:
        """Gives the directories what they are to have, the deepest first."""
        self._leave()
        for relative, like in sorted(self._directories.items(), reverse=True):
            fd = open_beneath(self.root, relative, os.O_RDONLY | os.O_DIRECTORY)
            try:
                give(fd, like)
            finally:
                os.close(fd)


def give(fd: int, like: Like, *, is_symlink: bool = False) -> None:
    """Owner first (it clears setuid), then attributes, the mode, the times. Raises OSError."""
    if os.geteuid() == 0:
        linux.chown_fd(fd, like.uid, like.gid)
    path = at(fd, "")
    if not is_symlink:
        for name in os.listxattr(path):  # what it inherited
            if name not in like.attributes and name not in LABELS:
                os.removexattr(path, name)
        for name, content in like.attributes.items():
            os.setxattr(path, name, content)
        os.chmod(path, like.mode)
    os.utime(path, ns=like.times_ns)


def _same(a: os.stat_result, b: os.stat_result) -> bool:
    return all(
        getattr(a, field) == getattr(b, field)
        for field in ("st_dev", "st_ino", "st_mode", "st_size", "st_mtime_ns", "st_ctime_ns")
    )


def _take_away(fd: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        return
