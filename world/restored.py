"""Files of the host whose change time is ours: an apply renamed them and put them back.

Not a journal. Renaming a file sets its ctime (rename(2)), so after a rolled-back or undone apply
the next conflict check would take our own hand for the host's. `<world>/apply.restored` holds,
for each inode, change times that we left and the change time before, of the same state of the
file. Not by path: every name of a file has its change time. Invariant: an entry counts only
while the file still has exactly that inode and that change time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

NAME = b"apply.restored"
#: how many change times of one inode are kept: an interrupted apply can leave one of them last
_LAST = 16

#: (inode, ctime_ns now) → ctime_ns before
Restored = dict[tuple[int, int], int]


def load_restored(world_directory: bytes) -> Restored:
    try:
        with open(world_directory + b"/" + NAME, "rb") as stream:
            lines = stream.read().splitlines()
    except FileNotFoundError:
        return {}
    found: Restored = {}
    for line in lines:
        inode, now, before = json.loads(line)[-3:]  # version 0.1 had the path first
        found[inode, now] = before
    return found


def add_restored(world_directory: bytes, entries: Iterable[tuple[int, int, int]]) -> None:
    """Adds (inode, ctime now, ctime before); what is known of the one before reaches further
    back. Raises OSError."""
    added = list(entries)
    if not added:
        return
    known = load_restored(world_directory)
    for inode, now, before in added:
        first = min(before, known.get((inode, before), before))
        known[inode, now] = min(first, known.get((inode, now), first))
    last: dict[int, list[int]] = {}
    for inode, now in known:
        last.setdefault(inode, []).append(now)
    temporary = world_directory + b"/" + NAME + b".new"
    with open(temporary, "w", encoding="ascii") as stream:
        for inode, times in sorted(last.items()):
            for now in sorted(times)[-_LAST:]:
                stream.write(json.dumps([inode, now, known[inode, now]]) + "\n")
    os.replace(temporary, world_directory + b"/" + NAME)
