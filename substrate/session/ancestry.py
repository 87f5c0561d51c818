"""What a process came of, as far as its parents tell: whether it is one of a world that has no other mark.

Parents end while they are looked at, and their numbers are given to others. A parent counts only if it still was
the parent after it had been looked at; who has lost one has another, which the kernel puts above it. Invariant: what cannot be
told is an error, never a no. Not what a world is known by otherwise (doors.py). Spec: shell.md §2; proc_pid_stat(5).
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: how often it is begun again, when one of those that were passed already has gone
_TRIES: Final = 20
#: steps of one try
_MOST_STEPS: Final = 4096


def is_below(pid: int, above: int) -> bool:
    """Whether a process came of another one, or is it. Raises OSError where that cannot be told, also of one
    that has gone."""
    for _ in range(_TRIES):
        found = _walk(pid, above)
        if found is not None:
            return found
    raise ProcessLookupError(errno.ESRCH, "it or its parents end while they are looked at")


def _walk(pid: int, above: int) -> bool | None:
    """None where somebody on the way has gone."""
    child, parent = pid, _parent_of(pid)
    for _ in range(_MOST_STEPS):
        if child == above:
            return True
        if parent is None:
            return None
        if parent in (0, 1, above):
            return parent == above
        grandparent, now = _parent_of(parent), _parent_of(child)
        if grandparent is None or now != parent:
            parent = now
        else:
            child, parent = parent, grandparent
    raise OSError(errno.ELOOP, "it has more parents than are looked at")


def _parent_of(pid: int) -> int | None:
    """0 where that is in no namespace of ours; None of a process that has gone. Raises OSError."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            raw = os.read(fd, 512)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(raw.rpartition(b")")[2].split()[1])
