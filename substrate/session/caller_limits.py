"""What a caller's own limits are, for a command that the supervisor runs in its place.

A shell's `ulimit` and `nice` hold for what it starts; a joined command is started by a supervisor that has others. They are
read from the caller's process and set on the command's before its exec, and they only narrow. Not the limits of a
world (world/limits.py). Invariant: nothing is ever raised. Sources: getrlimit(2), getpriority(2). Spec: shell.md §2.
"""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

from substrate.values import value

if TYPE_CHECKING:
    from typing import Final

#: a world decides about core files by itself (world/limits.py)
_WHICH: Final = tuple(n for n in range(16) if n != resource.RLIMIT_CORE)


@value
class CallerLimits:
    """`limits`: (resource, soft, hard); `nice`: as getpriority(2) gives it."""

    limits: tuple[tuple[int, int, int], ...] = ()
    nice: int = 0


def of_caller(pid: int) -> CallerLimits:
    """Of a process that waits for our answer; nothing of one that has gone, or is closed to us."""
    found = []
    try:
        nice = os.getpriority(os.PRIO_PROCESS, pid)
        for which in _WHICH:
            found.append((which, *resource.prlimit(pid, which)))
    except (ProcessLookupError, PermissionError):
        return CallerLimits()
    return CallerLimits(limits=tuple(found), nice=nice)


def narrow(pid: int, to: CallerLimits) -> None:
    """Of a process that has not begun yet. Raises OSError where it cannot be narrowed."""
    for which, soft, hard in to.limits:
        now = resource.prlimit(pid, which)
        wanted = _least(now[0], soft), _least(now[1], hard)
        wanted = _least(*wanted), wanted[1]
        if wanted != now:
            resource.prlimit(pid, which, wanted)
    if to.nice > os.getpriority(os.PRIO_PROCESS, pid):
        os.setpriority(os.PRIO_PROCESS, pid, to.nice)


def _least(one: int, other: int) -> int:
    if resource.RLIM_INFINITY in (one, other):
        return other if one == resource.RLIM_INFINITY else one
    return min(one, other)
