"""Which files of a living world can still be written through what is open: descriptors, mappings.

Looks at /proc from outside. A file that a process of the world holds open for writing, or maps
shared and writable, can change at any moment without a call that names it (mmap(2)); what is kept of
it may be half of something, and an undo could be written over. A process that cannot be looked into
counts as one that holds everything. Not a lock: whoever opens a file right after the look is told of
by capture. Sources: proc(5), proc_pid_fd(5), proc_pid_maps(5). Spec: world.md §4.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Sequence

from substrate.world import linux

_TRIES, _PAUSE_S = 5, 0.002


def number_inside(pid: int) -> int:
    """The pid that a process has in the innermost namespace (NSpid of proc_pid_status(5)); 0 for one
    that is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"NSpid:"):
                    return int(line.split()[-1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


class OpenFiles:
    """What these processes can write now. `spared`: pids in the world of processes of ours that wait
    for a command (handle.py)."""

    def __init__(self, pids: Iterable[int], spared: Collection[int] = ()) -> None:
        #: (device, inode) → pid
        self._inodes: dict[tuple[int, int], int] = {}
        #: path of a mapping, as the world names it → pid
        self._mapped: dict[bytes, int] = {}
        #: a process that cannot be looked into
        self._closed = 0
        for pid in pids:
            if not self._is_seen(pid, spared):
                self._closed = pid

    def _is_seen(self, pid: int, spared: Collection[int]) -> bool:
        """Whether it could be looked into, has ended, or is one of ours. A command is closed to us for the moment of
        its start."""
        for _ in range(_TRIES):
            try:
                self._look(pid)
                return True
            except (FileNotFoundError, ProcessLookupError):
                return True
            except PermissionError:
                # dead, and not waited for yet: its files are root's now
                if not linux.start_ticks(pid) or number_inside(pid) in (0, *spared):
                    return True
            time.sleep(_PAUSE_S)
        return False

    def _look(self, pid: int) -> None:
        directory = f"/proc/{pid}/fd"
        for name in os.listdir(directory):
            try:
                link = os.stat(f"{directory}/{name}", follow_symlinks=False)
                if link.st_mode & 0o200:  # what it was opened for
                    status = os.stat(f"{directory}/{name}")
                    self._inodes[status.st_dev, status.st_ino] = pid
            except FileNotFoundError:
                continue
        with open(f"/proc/{pid}/maps", "rb") as file:
            for line in file:
                fields = line.rstrip(b"\n").split(None, 5)
                if len(fields) == 6 and fields[1][1:2] == b"w" and fields[1][3:4] == b"s":
                    path = fields[5].removesuffix(b" (deleted)").replace(b"\\012", b"\n")
                    self._mapped[path] = pid

    def held_by(self, merged: dict[bytes, int], paths: Sequence[bytes]) -> dict[bytes, str]:
        """Which of these paths of the world can be written, and by whom, as the end of a sentence.
        `merged`: an fd of each overlay's root in the world, by its target (soft_undo.open_merged)."""
        found = {}
        targets = sorted(merged, key=len, reverse=True)
        for path in paths:
            if self._closed:
                found[path] = f"process {self._closed} cannot be looked into"
                continue
            holder = self._mapped.get(path, 0)
            for target in targets:
                start = target.rstrip(b"/") + b"/"
                if path.startswith(start):
                    holder = self._holder(merged[target], path[len(start) :]) or holder
                    break
            if holder:
                found[path] = f"process {holder} has it open for writing"
        return found

    def _holder(self, root: int, relative: bytes) -> int:
        resolve = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_XDEV
        try:
            fd = linux.openat2(root, relative, os.O_PATH | os.O_NOFOLLOW, resolve)
        except OSError:
            return 0  # nothing is there any more: whoever compares it sees
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        return self._inodes.get((status.st_dev, status.st_ino), 0)
