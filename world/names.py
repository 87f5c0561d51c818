"""Changing names so that nothing is replaced unseen, on filesystems that can and that cannot.

Not the order in which an apply does it (apply.py). renameat2(2) moves a name without replacing another,
and exchanges two names, in one step. NFS, 9p and many FUSE filesystems know no flags (EINVAL): there
the same is done in steps, of which each keeps every file under some name. In between, a
file that is exchanged has no name of its own for a moment, and what somebody makes under it in just that
moment stops the exchange. `settle` finishes what a crash left half done. Spec: world.md §5.

Invariant: after a failure both names are as they were; after `settle` nothing is left of the steps.
"""

from __future__ import annotations

import errno
import os
import stat

from substrate.world import linux

#: behind the staged name: where a displaced file waits
_WAITING = b"~"
_NO_FLAGS = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


def move(from_fd: int, old: bytes, to_fd: int, new: bytes) -> None:
    """Renames `old` of one directory to `new` of another, or the same, on one filesystem;
    FileExistsError where `new` is there."""
    try:
        linux.renameat2(from_fd, old, to_fd, new, linux.RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in _NO_FLAGS:
            raise
        _move_in_steps(from_fd, old, to_fd, new)


def exchange(aside_fd: int, staged: bytes, fd: int, name: bytes) -> None:
    """Exchanges an entry of ours that lies aside and the one at `name`."""
    try:
        linux.renameat2(aside_fd, staged, fd, name, linux.RENAME_EXCHANGE)
    except OSError as error:
        if error.errno not in _NO_FLAGS:
            raise
        _exchange_in_steps(aside_fd, staged, fd, name)


def settle(aside_fd: int, staged: bytes, fd: int, name: bytes) -> bool:
    """Finishes a move or an exchange that was cut short, forward or back. False where it cannot be:
    somebody made an entry under the name meanwhile; the one that was there waits as
    `waiting_name(staged)`. Raises OSError."""
    waiting = waiting_name(staged)
    before, ours = _status(aside_fd, waiting), _status(aside_fd, staged)
    here = _status(fd, name)
    if here is not None and before is not None and _is_same_file(before, here):
        os.unlink(waiting, dir_fd=aside_fd)  # the second of two names of one move
        before = None
    if here is not None and ours is not None and _is_same_file(ours, here):
        os.unlink(staged, dir_fd=aside_fd)
        ours = None
    if before is None:
        return True
    if ours is None:
        os.rename(waiting, staged, src_dir_fd=aside_fd, dst_dir_fd=aside_fd)
    elif here is None:
        _move_in_steps(aside_fd, waiting, fd, name)
    else:
        return False
    return True


def waiting_name(staged: bytes) -> bytes:
    return staged + _WAITING


def _move_in_steps(from_fd: int, old: bytes, to_fd: int, new: bytes) -> None:
    """By a second name where there can be one: link(2) does not replace either. A directory
    replaces nothing but an empty directory (rename(2)); what else has no second name is
    looked for first."""
    status = os.stat(old, dir_fd=from_fd, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        try:
            os.link(old, new, src_dir_fd=from_fd, dst_dir_fd=to_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        else:
            try:
                os.unlink(old, dir_fd=from_fd)
            except BaseException:
                os.unlink(new, dir_fd=to_fd)
                raise
            return
    if _status(to_fd, new) is not None:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
    os.rename(old, new, src_dir_fd=from_fd, dst_dir_fd=to_fd)


def _exchange_in_steps(aside_fd: int, staged: bytes, fd: int, name: bytes) -> None:
    waiting = waiting_name(staged)
    _move_in_steps(fd, name, aside_fd, waiting)
    try:
        _move_in_steps(aside_fd, staged, fd, name)
    except BaseException:
        _move_in_steps(aside_fd, waiting, fd, name)
        raise
    try:
        os.rename(waiting, staged, src_dir_fd=aside_fd, dst_dir_fd=aside_fd)
    except BaseException:
        _move_in_steps(fd, name, aside_fd, staged)
        _move_in_steps(aside_fd, waiting, fd, name)
        raise


def _status(parent_fd: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_same_file(a: os.stat_result, b: os.stat_result) -> bool:
    return (a.st_dev, a.st_ino, stat.S_IFMT(a.st_mode)) == (
        b.st_dev,
        b.st_ino,
        stat.S_IFMT(b.st_mode),
    ) and not stat.S_ISDIR(a.st_mode)
