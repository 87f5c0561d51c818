"""Files and directories of the host that are ours, but closed to us by their mode, opened for a
moment so that they can be read.

Not for layers (upper.py: nobody but us sees those) and not for what an apply writes to
(widen.py). Root needs none of it. Whoever is killed meanwhile must not leave a mode of his own on
the host: each is noted in `<world>/apply.unlocked`, synced, before it is changed, and
`relock_left` sets back what is left of it. The change times that this sets are ours (restored.py).
Invariant: only files of the caller, by an fd of the very file, and only the owner's bits.
Spec: world.md §4.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from substrate.world.beneath import LIST, LOOKUP, READ, open_beneath, open_root
from substrate.world.identity import identity_of
from substrate.world.journal import octets, text
from substrate.world.restored import add_restored
from substrate.world.upper import DIRECTORY, FORMAT, REGULAR

NAME = b"apply.unlocked"
_FILE_BITS, _DIRECTORY_BITS = 0o400, 0o500
_PATH = os.O_PATH | os.O_NOFOLLOW


class Unlocked:
    """`ctimes`: the change times that we set, by device and inode; another owner's, if given."""

    def __init__(
        self, world_directory: bytes, ctimes: dict[tuple[int, int], int] | None = None
    ) -> None:
        self._world_directory = world_directory
        self.ctimes = {} if ctimes is None else ctimes
        self._first: dict[tuple[int, int], int] = {}
        self._touched: list[tuple[int, int, int]] = []
        self._noted = False
        #: those of which it is not known what became of them
        self._in_doubt = 0

    def first_ctime_ns(self, dev: int, inode: int, ctime_ns: int) -> int:
        """The change time that a file had before we unlocked it; `ctime_ns` if we did not."""
        return self._first.get((dev, inode), ctime_ns)

    @contextmanager
    def opened(self, fd: int, target: bytes, relative: bytes) -> Iterator[None]:
        """For the time of the block, what the O_PATH fd is of can be read by us. Raises
        PermissionError where its mode is not what keeps us from it."""
        status = os.fstat(fd)
        mode = status.st_mode & 0o7777
        bits = _DIRECTORY_BITS if status.st_mode & FORMAT == DIRECTORY else _FILE_BITS
        if os.geteuid() in (0,) or status.st_uid != os.geteuid() or mode & bits == bits:
            raise PermissionError(13, "not ours to read", os.fsdecode(relative))
        self._note(status, target, relative)
        self._in_doubt += 1
        path = f"/proc/self/fd/{fd}"
        os.chmod(path, mode | bits)
        try:
            yield
        finally:
            os.chmod(path, mode)
            key, now = (status.st_dev, status.st_ino), os.fstat(fd).st_ctime_ns
            self._first.setdefault(key, status.st_ctime_ns)
            self._touched.append((status.st_ino, now, status.st_ctime_ns))
            self.ctimes[key] = now
            self._in_doubt -= 1

    def open_file(self, dir_fd: int, target: bytes, relative: bytes) -> int:
        """A regular file, for reading. Raises OSError."""
        name = relative.rpartition(b"/")[2]
        try:
            return os.open(name, READ, dir_fd=dir_fd)
        except PermissionError:
            fd = open_beneath(dir_fd, name, _PATH)
            try:
                if os.fstat(fd).st_mode & FORMAT != REGULAR:
                    raise
                with self.opened(fd, target, relative):
                    return os.open(name, READ, dir_fd=dir_fd)
            finally:
                os.close(fd)

    @contextmanager
    def directory(self, root: int, target: bytes, relative: bytes) -> Iterator[int]:
        """A directory below `root`, which is that of `target`, open for listing and lookups for
        the time of the block. Raises OSError."""
        with ExitStack() as stack:
            try:
                fd = open_beneath(root, relative, LIST)
                stack.callback(os.close, fd)
                os.stat(".", dir_fd=fd)  # fails on one that can be listed but not searched
            except PermissionError:
                fd = self._open_down(stack, root, target, relative)
            yield fd

    def _open_down(self, stack: ExitStack, root: int, target: bytes, relative: bytes) -> int:
        fd, path = root, b""
        for part in (b"", *relative.split(b"/")) if relative else (b"",):
            path = path + b"/" + part if path and part else path or part
            fd = open_beneath(fd, part, LOOKUP)
            stack.callback(os.close, fd)
            if os.fstat(fd).st_mode & _DIRECTORY_BITS != _DIRECTORY_BITS:
                stack.enter_context(self.opened(fd, target, path))
        fd = open_beneath(fd, b"", LIST)
        stack.callback(os.close, fd)
        return fd

    def _note(self, status: os.stat_result, target: bytes, relative: bytes) -> None:
        line = [text(target), text(relative), list(identity_of(status)), status.st_ctime_ns]
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(self._world_directory + b"/" + NAME, flags, 0o600)
        try:
            os.write(fd, (json.dumps(line) + "\n").encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        self._noted = True

    def close(self) -> None:
        """Everything is set back; where that is in doubt, `relock_left` is to look. Raises
        OSError."""
        if self._touched:
            add_restored(self._world_directory, self._touched)
            self._touched.clear()
        if self._noted and not self._in_doubt:
            os.unlink(self._world_directory + b"/" + NAME)
            self._noted = False


def relock_left(world_directory: bytes) -> None:
    """Sets back the modes that somebody who was killed has left. Raises OSError."""
    path = world_directory + b"/" + NAME
    try:
        with open(path, "rb") as stream:
            lines = [line for line in stream if line.endswith(b"\n")]
    except FileNotFoundError:
        return
    touched = []
    for line in reversed(lines):  # what was opened last lies deepest
        target, relative, identity, ctime_ns = json.loads(line)
        try:
            root = open_root(octets(target))
            try:
                fd = open_beneath(root, octets(relative), _PATH)
            finally:
                os.close(root)
        except OSError:
            continue  # gone, or replaced: not the file that was opened
        try:
            status = os.fstat(fd)
            bits = _DIRECTORY_BITS if identity[0] == "directory" else _FILE_BITS
            if status.st_ino != identity[2]:
                continue
            if status.st_mode & 0o7777 == identity[5] | bits:
                os.chmod(f"/proc/self/fd/{fd}", identity[5])
            status = os.fstat(fd)
            found = identity_of(status)
            if identity[0] == "file" and [found[0], *found[2:]] == [identity[0], *identity[2:]]:
                touched.append((status.st_ino, status.st_ctime_ns, ctime_ns))
        finally:
            os.close(fd)
    add_restored(world_directory, touched)
    os.unlink(path)
