"""What an apply has beside its targets, staged or displaced, told by inode; its removal.

Not the making (stage.py) nor the renaming (apply.py). Who may write to the directory can put
another file, or a tree that he could not empty himself, under the name at any moment. So a
directory is emptied only through the fd of a known inode, a name is compared directly before
it goes, and a stranger is left (`Stranger`). unlink(2) and rmdir(2) know names only: what is
put there after the comparison goes, one non-directory or empty directory that whoever put it
there could have removed as well (rename(2) asks for the same permission). Spec: world.md §5.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from substrate.world.identity import Identity, Inode, identity_of_state, inode_of
from substrate.world.plan import Operation
from substrate.world.removal import remove_tree
from substrate.world.upper import DIRECTORY, FORMAT


@dataclass(frozen=True, slots=True, kw_only=True)
class Aside:
    """An entry to remove. `top`: its inode; None when the call that made it gave none yet.
    `below`: all that is in it; None where that could not be listed. `half`: it was not staged
    to the end, so what is not a directory is not compared, and an empty directory may go."""

    top: Inode | None
    below: frozenset[Inode] | None = frozenset()
    half: bool = False


def remove_aside(parent_fd: int, name: bytes, aside: Aside) -> bool:
    """Removes what lies at `name`; False when nothing does. Raises OSError, Stranger."""
    top, below, half = aside.top, aside.below, aside.half

    def is_loose(status: os.stat_result) -> bool:
        return half and status.st_mode & FORMAT != DIRECTORY

    def top_is_ours(status: os.stat_result) -> bool:
        return inode_of(status) == top if top is not None else is_loose(status)

    def is_below(status: os.stat_result) -> bool:
        return below is None or is_loose(status) or inode_of(status) in below

    return remove_tree(parent_fd, name, top=top_is_ours, below=is_below, or_empty=half)


def staged_aside(
    operation: Operation, relative: bytes, made: Mapping[bytes, Inode], *, half: bool
) -> Aside:
    """What was staged for an operation. `made`: inodes by the path of what they stand for,
    `relative` that of the operation."""
    start = len(operation.change.path)
    inner = (made.get(relative + c.path[start:]) for c in operation.added)
    return Aside(top=made.get(relative), below=frozenset(i for i in inner if i), half=half)


def displaced_aside(operation: Operation, top: Identity) -> Aside:
    """What an operation displaced, as the plan saw it."""
    states = [operation.before, *(c.before for c in operation.removed if c.before)]
    closed = os.geteuid() != 0 and any(
        s.type == "directory" and s.mode & 0o500 != 0o500 for s in states
    )
    below = None if closed else frozenset(i[:3] for _, i in planned_tree(operation))
    return Aside(top=top[:3], below=below)


def planned_tree(operation: Operation) -> list[tuple[bytes, Identity]]:
    """What `list_tree` shall find below the entry that is displaced."""
    start = len(operation.change.path) + 1
    return sorted(
        (c.path[start:], identity_of_state(c.before)) for c in operation.removed if c.before
    )


def by_type(inodes: Iterable[Inode]) -> dict[str, list[int]]:
    """Inode numbers by type, for a journal. Device numbers may change at a reboot."""
    found: dict[str, list[int]] = {}
    for kind, _, inode in sorted(inodes):
        found.setdefault(kind, []).append(inode)
    return found


def from_types(inodes: dict[str, list[int]], device: int) -> frozenset[Inode]:
    return frozenset((kind, device, n) for kind, numbers in inodes.items() for n in numbers)
