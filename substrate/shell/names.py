"""The names of files as a world has them, for completion: the host's, with what is pending.

Lists directories and opens nothing else; runs nothing. Not exact where another world changes the
host meanwhile: a completion is a proposal.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from substrate.world.change import DELETED, Change

#: of one directory
_MOST = 4000
_EXECUTABLE = 0o111


class Names:
    """`changes`: what is pending in the world."""

    def __init__(self, changes: Iterable[Change] = ()) -> None:
        self._added: dict[bytes, dict[bytes, bool]] = {}
        self._deleted: set[bytes] = set()
        for change in changes:
            directory, _, name = change.path.rpartition(b"/")
            if change.kind == DELETED:
                self._deleted.add(change.path)
            elif change.after is not None:
                is_directory = change.after.type == "directory"
                self._added.setdefault(directory or b"/", {})[name] = is_directory

    def entries(self, directory: bytes) -> dict[bytes, bool]:
        """Names in a directory; True: it is one itself. Empty where it cannot be listed."""
        path = directory.rstrip(b"/") or b"/"
        found: dict[bytes, bool] = {}
        if path not in self._deleted:
            try:
                with os.scandir(path) as listed:
                    for entry in listed:
                        if len(found) >= _MOST:
                            break
                        found[entry.name] = _is_directory(entry)
            except OSError:
                found = {}  # only the world has it, or nobody may list it
        found.update(self._added.get(path, {}))
        prefix = b"" if path == b"/" else path
        return {n: d for n, d in found.items() if prefix + b"/" + n not in self._deleted}

    def programs(self, search: bytes) -> set[bytes]:
        """What can be called by name, of a PATH."""
        found: set[bytes] = set()
        for directory in search.split(b":"):
            if directory.startswith(b"/"):
                found.update(
                    n for n, is_directory in self.entries(directory).items() if not is_directory
                )
        return found


def _is_directory(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
