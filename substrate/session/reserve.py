"""Room on the disk for those who make room: a file that holds some blocks until they are needed.

A discard and `world gc` write down what goes before it goes. On a full disk that would fail, and the
layers that fill it would stay. So the home keeps a file that is given up for it, and made again
when they are done. A session keeps one while a command runs whose events may be lost on a full disk: the line
that counts them, and the command's end, need some (capturing.py). Invariant: it holds nothing; where it cannot be had, it is not there. Spec:
world.md §8.
"""

from __future__ import annotations

import errno
import os

FULL = (errno.ENOSPC, errno.EDQUOT)
#: enough for the record of a discard and of a collection
SIZE_BYTES = 64 * 1024
_NAME = b"reserve"


def keep(home_fd: int) -> None:
    """Makes the reserve where there is none; a disk that has no room for it goes without."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    try:
        fd = os.open(_NAME, flags, 0o600, dir_fd=home_fd)
    except OSError:
        return  # it is there, or nothing can be made here
    try:
        os.posix_fallocate(fd, 0, SIZE_BYTES)
    except OSError:
        os.unlink(_NAME, dir_fd=home_fd)
    finally:
        os.close(fd)


def give_up(home_fd: int) -> bool:
    """Frees what the reserve holds. False where there was none."""
    try:
        os.unlink(_NAME, dir_fd=home_fd)
    except FileNotFoundError:
        return False
    return True
