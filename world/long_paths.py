"""Paths of any length below a directory of ours, for calls that take a path (PATH_MAX, path_resolution(7)).

A command makes paths longer than PATH_MAX by mkdir and chdir in a loop. Such a one is given as a name in
its parent, which is open here for that: `/proc/self/fd/N/NAME`. Not for a tree in which somebody else
may swap names meanwhile. Invariant: a path is good until `_MOST_OPEN` others have been asked for.
"""

from __future__ import annotations

import os

from substrate.world.beneath import LOOKUP, open_beneath, open_root

_LONGEST = 3800  # bytes; below PATH_MAX (4096), with room for what is put behind it
_MOST_OPEN = 8


class LongPaths:
    """`root`: an absolute path. Use as a context manager."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._top = -1
        self._open: dict[bytes, int] = {}  # parents of long paths, oldest first

    def __enter__(self) -> LongPaths:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            os.close(self._open.popitem()[1])
        if self._top >= 0:
            os.close(self._top)
            self._top = -1

    def __call__(self, relative: bytes) -> bytes:
        """The path of an entry; b"" is the root. Raises OSError where its parent cannot be reached."""
        path = self._root + b"/" + relative if relative else self._root
        if len(path) <= _LONGEST:
            return path
        parent, _, name = relative.rpartition(b"/")
        if parent not in self._open:
            if self._top < 0:
                self._top = open_root(self._root)
            if len(self._open) >= _MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[parent] = open_beneath(self._top, parent, LOOKUP)
        return b"/proc/self/fd/%d/%s" % (self._open[parent], name)
