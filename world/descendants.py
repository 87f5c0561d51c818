"""Which processes came of another: its children, theirs, and so on, by /proc.

Who loses its parent becomes a child of the nearest subreaper (prctl(2)), so below one that is a
subreaper, or the first of a pid namespace, is all that it ever started. Not a snapshot: what is forked
meanwhile may be missed. Invariant: children of every thread are found; each is that of the thread which
forked it (proc(5)).
"""

from __future__ import annotations

import os

_MOST = 100_000


def descendants_of(pid: int) -> list[int]:
    """As this process' /proc numbers them, without `pid` itself; none of one that has ended."""
    found: list[int] = []
    waiting = [pid]
    while waiting and len(found) < _MOST:
        above = waiting.pop()
        try:
            tasks = os.listdir(f"/proc/{above}/task")
        except (FileNotFoundError, ProcessLookupError):
            continue
        for task in tasks:
            try:
                with open(f"/proc/{above}/task/{task}/children", "rb") as file:
                    children = [int(word) for word in file.read().split()]
            except (FileNotFoundError, ProcessLookupError):
                continue
            found += children
            waiting += children
    return found
