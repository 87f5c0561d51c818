"""Removing trees that a world wrote: without recursion, without following anything.

Not a diff and not an apply. It must work as the user on directories of mode 0000 or
without write permission (overlayfs leaves a `work/work` of mode 0000, world.md §2), on
trees deeper than PATH_MAX or than the number of file descriptors, and on any name. It
never leaves the filesystem that it started on, and it tells when something is left.
"""

from __future__ import annotations

import errno
import os

from substrate.world.beneath import LIST, LOOKUP, open_beneath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_SEARCHABLE = 0o700


def remove_tree(parent_fd: int, name: bytes) -> bool:
    """Removes `name` in `parent_fd`, whatever it is; False when it was not there.

    Raises OSError when something in it cannot be removed (EBUSY for a mount point, EACCES
    for a directory of another user, EROFS, EXDEV where another mount begins)."""
    try:
        os.unlink(name, dir_fd=parent_fd)
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
        if not _is_directory(parent_fd, name):
            raise
    _remove_directory(parent_fd, name)
    return True


def _is_directory(parent_fd: int, name: bytes | str) -> bool:
    return os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode & 0o170000 == 0o040000


def _remove_directory(parent_fd: int, name: bytes) -> None:
    """Depth first; a directory's fd is held only while it is listed, and a deep one is
    reached again from the top, so depth costs neither stack nor fds.

    A directory that is deeper than `_FLATTEN_AT` levels is first moved to the top: so a
    chain of a million directories stays linear."""
    top = _open_for_removal(parent_fd, name)
    # a fresh name each time: the tree may hold names that were made to be in the way
    prefix = b".substrate-" + os.urandom(8).hex().encode()
    moved = 0
    try:
        pending: list[bytes] = [b""]
        while pending:
            path = pending[-1]
            fd = _open_for_removal(top, path) if path else os.dup(top)
            try:
                below = []
                for child in _names(fd):
                    if not _unlink(fd, child):
                        below.append(child)
                if not below:
                    pending.pop()
                elif path.count(b"/") >= _FLATTEN_AT:
                    for child in below:
                        _open_and_close(fd, child)  # renaming a directory needs write on it
                        short = b"%s-%d" % (prefix, moved)
                        moved += 1
                        os.rename(child, short, src_dir_fd=fd, dst_dir_fd=top)
                        pending.insert(1, short)
                else:
                    pending.extend((path + b"/" if path else b"") + child for child in below)
            finally:
                os.close(fd)
            if not below and path:
                _rmdir(top, path)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent_fd)


_FLATTEN_AT = 64


def _rmdir(top: int, path: bytes) -> None:
    parent, _, name = path.rpartition(b"/")
    fd = open_beneath(top, parent, LOOKUP)
    try:
        os.rmdir(name, dir_fd=fd)
    finally:
        os.close(fd)


def _unlink(fd: int, name: bytes) -> bool:
    """False when `name` is a directory."""
    try:
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM) or not _is_directory(fd, name):
            raise
        return False
    return True


def _names(fd: int) -> Iterator[bytes]:
    return map(os.fsencode, os.listdir(fd))


def _open_and_close(fd: int, name: bytes) -> None:
    os.close(_open_for_removal(fd, name))


def _open_for_removal(parent_fd: int, path: bytes) -> int:
    """The directory opened for listing; made searchable and writable for us first where it
    is ours and is not. All directories above it already are."""
    fd = open_beneath(parent_fd, path, LOOKUP)
    try:
        mode = os.fstat(fd).st_mode
        if mode & _SEARCHABLE != _SEARCHABLE and os.geteuid() == os.fstat(fd).st_uid:
            os.chmod(b"/proc/self/fd/%d" % fd, mode & 0o7777 | _SEARCHABLE)
        return open_beneath(fd, b"", LIST)
    finally:
        os.close(fd)
