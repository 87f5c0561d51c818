"""Files of the host whose change time is ours: an apply renamed them and put them back.

Not a journal. Renaming a file sets its ctime (rename(2)), so after a rolled-back or undone apply
the next conflict check would take our own hand for the host's. `<world>/apply.restored` holds,
for each such path, the inode and the ctime that the putting back left, and the ctime before.
Invariant: an entry counts only while the file still has exactly that inode and that ctime.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

from substrate.world.journal import octets, text

NAME = b"apply.restored"

#: path → (inode, ctime_ns now, ctime_ns before)
Restored = dict[bytes, tuple[int, int, int]]


def load_restored(world_directory: bytes) -> Restored:
    try:
        with open(world_directory + b"/" + NAME, "rb") as stream:
            lines = stream.read().splitlines()
    except FileNotFoundError:
        return {}
    found: Restored = {}
    for line in lines:
        path, inode, now, before = json.loads(line)
        found[octets(path)] = (inode, now, before)
    return found


def add_restored(world_directory: bytes, entries: Iterable[tuple[bytes, int, int, int]]) -> None:
    """Adds (path, inode, ctime now, ctime before); an earlier entry for the very file keeps
    its first ctime. Raises OSError."""
    known = load_restored(world_directory)
    for path, inode, now, before in entries:
        old = known.get(path)
        if old is not None and old[:2] == (inode, before):
            before = old[2]
        elif old is not None and old[:2] == (inode, now):
            before = min(before, old[2])
        known[path] = (inode, now, before)
    temporary = world_directory + b"/" + NAME + b".new"
    with open(temporary, "w", encoding="ascii") as stream:
        for path, rest in sorted(known.items()):
            stream.write(json.dumps([text(path), *rest]) + "\n")
    os.replace(temporary, world_directory + b"/" + NAME)
