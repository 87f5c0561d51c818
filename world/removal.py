"""Removing trees that a world wrote: without recursion, without following anything.

Not a diff and not an apply. It must work as the user on directories of mode 0000 or
without write permission (overlayfs leaves a `work/work` of mode 0000, world.md §2), on
trees deeper than PATH_MAX or than the number of file descriptors, and on any name. It
never leaves the filesystem that it started on, and it tells when something is left. Where
somebody else may swap names, the caller says by inode what may go: a stranger is left.
"""

from __future__ import annotations

import errno
import os

from substrate.world.beneath import LIST, LOOKUP, open_beneath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    #: whether a file may be removed, or a directory emptied and removed
    Ours = Callable[[os.stat_result], bool]

_SEARCHABLE = 0o700


class Stranger(OSError):
    """Left where it is: an entry that is not one of those to remove."""

    def __init__(self, name: bytes) -> None:
        super().__init__(errno.ESTALE, "another file than the one to remove", name)


def remove_tree(
    parent_fd: int,
    name: bytes,
    *,
    top: Ours | None = None,
    below: Ours | None = None,
    or_empty: bool = False,
) -> bool:
    """Removes `name` in `parent_fd`, whatever it is; False when it was not there.

    `top` is asked about the entry itself, `below` about each one in it, directly before it
    goes (None: anything goes). `or_empty`: other directories go too, if they are empty.
    Raises OSError when something in it cannot be removed (EBUSY for a mount point, EACCES
    for a directory of another user, EROFS, EXDEV where another mount begins), Stranger."""
    try:
        if _unlink(parent_fd, name, top, or_empty):
            return True
    except FileNotFoundError:
        return False
    _remove_directory(parent_fd, name, top, below, or_empty)
    return True


def _is_directory(status: os.stat_result) -> bool:
    return status.st_mode & 0o170000 == 0o040000


def _remove_directory(
    parent_fd: int, name: bytes, top_is_ours: Ours | None, ours: Ours | None, or_empty: bool
) -> None:
    """Depth first; a directory's fd is held only while it is listed, and a deep one is
    reached again from the top, so depth costs neither stack nor fds.

    A directory that is deeper than `_FLATTEN_AT` levels is first moved to the top: so a
    chain of a million directories stays linear."""
    top = _open_for_removal(parent_fd, name, top_is_ours)
    # a fresh name each time: the tree may hold names that were made to be in the way
    prefix = b".substrate-" + os.urandom(8).hex().encode()
    moved = 0
    try:
        pending: list[bytes] = [b""]
        while pending:
            path = pending[-1]
            fd = _open_for_removal(top, path, ours) if path else os.dup(top)
            try:
                below = []
                for child in _names(fd):
                    try:
                        if not _unlink(fd, child, ours, or_empty):
                            below.append(child)
                    except FileNotFoundError:
                        continue
                if not below:
                    pending.pop()
                elif path.count(b"/") >= _FLATTEN_AT:
                    for child in below:
                        # renaming a directory needs write on it
                        os.close(_open_for_removal(fd, child, ours))
                        short = b"%s-%d" % (prefix, moved)
                        moved += 1
                        os.rename(child, short, src_dir_fd=fd, dst_dir_fd=top)
                        pending.insert(1, short)
                else:
                    pending.extend((path + b"/" if path else b"") + child for child in below)
            finally:
                os.close(fd)
            if not below and path:
                _rmdir(top, path, ours)
        if top_is_ours is not None:  # `top` is still open: nothing else can have its inode
            held, found = os.fstat(top), _status(parent_fd, name)
            if (held.st_dev, held.st_ino) != (found.st_dev, found.st_ino):
                raise Stranger(name)
        os.rmdir(name, dir_fd=parent_fd)
    finally:
        os.close(top)


_FLATTEN_AT = 64


def _rmdir(top: int, path: bytes, ours: Ours | None) -> None:
    parent, _, name = path.rpartition(b"/")
    fd = open_beneath(top, parent, LOOKUP)
    try:
        if ours is not None and not ours(_status(fd, name)):
            raise Stranger(path)
        os.rmdir(name, dir_fd=fd)
    finally:
        os.close(fd)


def _unlink(fd: int, name: bytes, ours: Ours | None, or_empty: bool) -> bool:
    """False when `name` is a directory to be emptied. Raises FileNotFoundError, Stranger."""
    if ours is not None:
        status = _status(fd, name)
        if not ours(status):
            if not or_empty or not _is_directory(status):
                raise Stranger(name)
            try:
                os.rmdir(name, dir_fd=fd)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                raise Stranger(name) from None
            return True
        if _is_directory(status):
            return False
    try:
        os.unlink(name, dir_fd=fd)
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM) or not _is_directory(_status(fd, name)):
            raise
        return False
    return True


def _status(fd: int, name: bytes) -> os.stat_result:
    return os.stat(name, dir_fd=fd, follow_symlinks=False)


def _names(fd: int) -> Iterator[bytes]:
    return map(os.fsencode, os.listdir(fd))


def _open_for_removal(parent_fd: int, path: bytes, ours: Ours | None) -> int:
    """The directory opened for listing; made searchable and writable for us first where it
    is ours and is not. All directories above it already are."""
    fd = open_beneath(parent_fd, path, LOOKUP)
    try:
        status = os.fstat(fd)
        if ours is not None and not ours(status):
            raise Stranger(path)
        mode = status.st_mode
        if mode & _SEARCHABLE != _SEARCHABLE and os.geteuid() == status.st_uid:
            os.chmod(b"/proc/self/fd/%d" % fd, mode & 0o7777 | _SEARCHABLE)
        return open_beneath(fd, b"", LIST)
    finally:
        os.close(fd)
