"""Directories opened up for their owner while an apply works in them, and set back.

Not for directories of others: a right that the caller does not have is never taken.
Spec: world.md §5.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Container, Mapping

from substrate.world.beneath import LOOKUP, open_beneath
from substrate.world.identity import Identity, identity_of
from substrate.world.parents import Place
from substrate.world.view import HOST, MountView

OPEN = 0o300


class Widened:
    def __init__(
        self, views: dict[int, MountView], found: Mapping[Place, Identity] | None = None
    ) -> None:
        self._views = views
        self._found: dict[Place, Identity] = dict(found or {})

    def __contains__(self, place: Place) -> bool:
        return place in self._found

    def mode(self, place: Place) -> int | None:
        """The mode that a directory will have again; None for one that was left alone."""
        identity = self._found.get(place)
        return None if identity is None else identity[5]

    def need(self, place: Place, fd: int) -> Identity | None:
        """Notes a directory of ours that has to be opened up and gives its identity; None for
        any other. Raises OSError."""
        identity = identity_of(os.fstat(fd))
        if not is_closed(identity):
            return None
        self._found[place] = identity
        return identity

    def reopened(self, wanted: Container[Place], final: Mapping[Place, Identity]) -> Widened:
        """Those of `wanted` that are closed to us when all of them were set back; `final`:
        what the plan makes of directories."""
        again = {**self._found, **final}
        found = {p: again[p] for p in sorted(again) if p in wanted and is_closed(again[p])}
        return Widened(self._views, found)

    def items(self) -> Collection[tuple[Place, Identity]]:
        return self._found.items()

    def widen(self) -> None:
        """Opens them up, the upper ones first: what is below may be reached through them only.
        One that is another by now is left."""
        for (mount, path), identity in sorted(self._found.items()):
            fd = open_beneath(self._views[mount].roots[HOST], path, LOOKUP)
            try:
                widen(fd, identity)
            finally:
                os.close(fd)

    def narrow(self, given: Container[Place]) -> None:
        """Sets them back. Those of `given` have a mode of the plan's own already."""
        for place, identity in sorted(self._found.items(), reverse=True):
            if place in given:
                continue
            try:
                fd = open_beneath(self._views[place[0]].roots[HOST], place[1], LOOKUP)
            except FileNotFoundError:
                continue  # removed beside us, and its mode with it
            try:
                narrow(fd, identity)
            finally:
                os.close(fd)


def is_closed(identity: Identity) -> bool:
    """Whether a directory is ours, and closed to us for changes in it."""
    euid = os.geteuid()
    return euid != 0 and identity[6] == euid and identity[5] & OPEN != OPEN


def widen(fd: int, identity: Identity) -> None:
    status = os.fstat(fd)
    if status.st_ino == identity[2] and status.st_mode & 0o7777 == identity[5]:
        os.chmod(f"/proc/self/fd/{fd}", identity[5] | OPEN)


def narrow(fd: int, identity: Identity) -> None:
    """Devices may have other numbers after a reboot: the inode and the mode must be right."""
    status = os.fstat(fd)
    if status.st_ino == identity[2] and status.st_mode & 0o7777 == identity[5] | OPEN:
        os.chmod(f"/proc/self/fd/{fd}", identity[5])
