"""What a tree that a world writes, or wrote, takes on the disk.

Not a limit (session/disk_watch.py). Safe while the world is at work: every directory is
opened from the root through no symlink, so a link put in a directory's place counts nothing
of the host; trees deeper than PATH_MAX or than any stack are walked like others; and it can be
stopped and gone on with, since a world can make a tree of any size. Blocks are counted, not
sizes: a sparse file takes what it holds; hard links are counted once. Spec: world.md §7.
"""

from __future__ import annotations

import os
import time

from substrate.world.beneath import LIST, LOOKUP, open_beneath

_BLOCK = 512  # of st_blocks (stat(2))


class Usage:
    """A count under way. `total_bytes`: what was found so far; `done`: whether that is all."""

    def __init__(self, directories: tuple[bytes, ...]) -> None:
        self.total_bytes = 0
        self._waiting = [(directory, b"") for directory in directories]
        self._seen: set[tuple[int, int]] = set()

    @property
    def done(self) -> bool:
        return not self._waiting

    def go_on(self, budget_s: float) -> None:
        """Counts for about so many seconds, at least one directory."""
        until = time.monotonic() + budget_s
        while self._waiting:
            self._directory(*self._waiting.pop())
            if time.monotonic() >= until:
                return

    def _directory(self, top: bytes, relative: bytes) -> None:
        try:
            root = os.open(top, LOOKUP)
            try:
                fd = open_beneath(root, relative, LIST)
            finally:
                os.close(root)
        except OSError:  # gone or replaced meanwhile, or locked by the command itself
            return
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError:  # as above
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        name = os.fsencode(entry.name)
                        self._waiting.append((top, relative + b"/" + name if relative else name))
                    elif status.st_nlink > 1:
                        if (status.st_dev, status.st_ino) in self._seen:
                            continue
                        self._seen.add((status.st_dev, status.st_ino))
                    self.total_bytes += status.st_blocks * _BLOCK
        finally:
            os.close(fd)
