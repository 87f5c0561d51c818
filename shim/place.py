"""The directory of shims as a whole: held alone, taken for ours or not, put in place, taken away.

What lies in it is deploying.py's. Held by `flock` on its parent, so that no lock file is left; made
beside its place and exchanged with it (renameat2(2)), so that whoever looks a command up finds the old
or the new one. Invariant: nothing is put over or removed that is not a directory of shims of ours, or
an empty one. Spec: shell.md §3.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from substrate.errors import StateError
from substrate.shim.original import STUB
from substrate.shim.written import read_marker

_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2  # <linux/fs.h>
_RENAMEAT2 = {"x86_64": 316, "aarch64": 276}
_ELSEWHERE = "give another one: --dir DIR"


def default_directory() -> bytes:
    """Not in $SUBSTRATE_HOME, which no world sees: shims work in worlds, too."""
    data = os.environb.get(b"XDG_DATA_HOME", b"")
    if not data.startswith(b"/"):
        data = os.path.expanduser(b"~/.local/share")
    return os.path.join(data, b"substrate", b"shims")


def absolute(directory: bytes) -> bytes:
    """With the links of its parent resolved; its own name may not be one."""
    parent, name = os.path.split(os.path.abspath(directory))
    if not name or b":" in directory or b"\n" in directory:
        raise StateError(f"{os.fsdecode(directory)!r} cannot stand in PATH", hint=_ELSEWHERE)
    return os.path.join(os.path.realpath(parent), name)


@contextmanager
def held(directory: bytes, *, make: bool) -> Iterator[bool]:
    """Alone with the directory's place, half-made ones swept. False where there is no parent and none
    was to be made."""
    parent, name = os.path.split(directory)
    if make:
        os.makedirs(parent, 0o755, exist_ok=True)
    try:
        fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        _refuse_shared(fd, parent)
        fcntl.flock(fd, fcntl.LOCK_EX)
        for left in os.listdir(parent):
            if left.startswith(b".%s.new-" % name):
                _remove(os.path.join(parent, left))
        yield True
    finally:
        os.close(fd)


def _refuse_shared(fd: int, parent: bytes) -> None:
    found = os.fstat(fd)
    others = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    if found.st_uid not in (0, os.geteuid()) or others:
        raise StateError(
            f"others can put something else in {os.fsdecode(parent)} "
            f"(uid {found.st_uid}, mode {found.st_mode & 0o7777:04o})",
            hint=_ELSEWHERE,
        )


def is_ours(directory: bytes) -> bool:
    """Whether there is a directory of shims; False for none or an empty one. Raises StateError for
    anything else."""
    try:
        found = os.lstat(directory)
    except FileNotFoundError:
        return False
    shown = os.fsdecode(directory)
    if not stat.S_ISDIR(found.st_mode):
        raise StateError(f"{shown} is no directory", hint=_ELSEWHERE)
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise StateError(
            f"{shown} belongs to uid {found.st_uid} and has mode {found.st_mode & 0o7777:04o}: it is "
            "not yours alone",
            hint=_ELSEWHERE,
        )
    if read_marker(directory) is not None:
        return True
    if os.listdir(directory):
        raise StateError(f"{shown} holds what substrate did not put there", hint=_ELSEWHERE)
    return False


def beside(directory: bytes) -> bytes:
    """A new, empty directory that `put` can put in place. Only while `held`."""
    parent, name = os.path.split(directory)
    path = os.path.join(parent, b".%s.new-%d" % (name, os.getpid()))
    os.mkdir(path, 0o755)
    os.chmod(path, 0o755)
    return path


def put(made: bytes, directory: bytes) -> None:
    """Puts what `beside` gave in place of the older one, which is removed."""
    if not os.path.lexists(directory):
        _rename(made, directory, _NOREPLACE)
        return
    try:
        _rename(made, directory, _EXCHANGE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        # a file system that cannot: for an instant there is none
        old = made + b".old"
        os.rename(directory, old)
        os.rename(made, directory)
        made = old
    _remove(made)


def take_away(directory: bytes) -> None:
    """Removes it: gone at once, however long the removal takes."""
    gone = beside(directory)
    os.rename(directory, gone)  # over the empty one
    _remove(gone)


def _remove(directory: bytes) -> None:
    """The links first: whoever just followed one still finds the stub."""
    names = os.listdir(directory)
    for name in sorted(names, key=lambda name: name == STUB):
        os.unlink(os.path.join(directory, name))
    os.rmdir(directory)


def _rename(old: bytes, new: bytes, flags: int) -> None:
    number = _RENAMEAT2.get(platform.machine())
    libc = ctypes.CDLL(None, use_errno=True)
    if number is None:
        raise OSError(errno.ENOSYS, "renameat2 is not known for this machine")
    if libc.syscall(number, _AT_FDCWD, old, _AT_FDCWD, new, flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsdecode(new))
