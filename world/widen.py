"""Directories opened up for their owner while an apply works in them, and set back.

Not for directories of others: a right that the caller does not have is never taken.
Spec: world.md §5.
"""

from __future__ import annotations

import os
from collections.abc import Container

from substrate.world.beneath import LOOKUP, open_beneath
from substrate.world.identity import Identity, identity_of
from substrate.world.view import HOST, MountView

#: (index of the mount, path below its target)
Place = tuple[int, bytes]


class Widened:
    def __init__(self, views: dict[int, MountView]) -> None:
        self._views = views
        self._found: dict[Place, tuple[Identity, int]] = {}

    def __contains__(self, place: Place) -> bool:
        return place in self._found

    def need(self, place: Place, fd: int) -> Identity | None:
        """Notes a directory of ours that has to be opened up and gives its identity; None for
        any other. Raises OSError."""
        status = os.fstat(fd)
        mode = status.st_mode & 0o7777
        if os.geteuid() == 0 or status.st_uid != os.geteuid() or mode & 0o300 == 0o300:
            return None
        self._found[place] = identity_of(status), mode
        return identity_of(status)

    def widen(self) -> None:
        for (mount, path), (_, mode) in self._found.items():
            fd = open_beneath(self._views[mount].roots[HOST], path, LOOKUP)
            try:
                os.chmod(f"/proc/self/fd/{fd}", mode | 0o300)
            finally:
                os.close(fd)

    def narrow(self, given: Container[Place]) -> None:
        """Sets them back. Those of `given` have a mode of the plan's own already."""
        for place, (identity, mode) in self._found.items():
            if place in given:
                continue
            try:
                fd = open_beneath(self._views[place[0]].roots[HOST], place[1], LOOKUP)
            except FileNotFoundError:
                continue  # removed beside us, and its mode with it
            try:
                status = os.fstat(fd)
                if (status.st_dev, status.st_ino) == identity[1:3] and (
                    status.st_mode & 0o7777 == mode | 0o300
                ):
                    os.chmod(f"/proc/self/fd/{fd}", mode)
            finally:
                os.close(fd)
