"""The host's directories that an apply works in, one open at a time.

Not a cache of paths: each directory must stay the very one (device, inode) that it was when
the apply first opened it, whatever its path leads to later. Spec: world.md §5.
"""

from __future__ import annotations

import errno
import os

from substrate.world.beneath import LOOKUP, open_beneath
from substrate.world.plan import Operation
from substrate.world.refusal import host_changed
from substrate.world.view import HOST, MountView


class Parents:
    """The open parent directory of the operation at hand. Operations come ordered by parent,
    so one open directory at a time is enough; each must stay the directory it was at first."""

    def __init__(self, views: dict[int, MountView]) -> None:
        self._views = views
        self._place: tuple[int, bytes] | None = None
        self._fd = -1
        self._known: dict[tuple[int, bytes], tuple[int, int, int]] = {}
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

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._place = -1, None
