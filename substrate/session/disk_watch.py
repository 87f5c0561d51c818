"""Holds a world to its disk limit: how much its layer has grown, looked at from time to time.

Soft by nature: a command can write past the limit between two looks (world.md §7). Each look
walks the layer, so the next one waits ten times as long as the last one took. Blocks are
counted, not sizes: a sparse file costs what it holds.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_BLOCK = 512  # of st_blocks (stat(2))
_LEAST_WAIT_S = 0.5
_PATIENCE = 10


class DiskWatch:
    """Watches directories; `next_look` is when to call `exceeded` again (monotonic)."""

    def __init__(self, directories: Iterable[bytes], limit_bytes: int) -> None:
        self._directories = tuple(directories)
        self._limit = limit_bytes
        self.next_look = time.monotonic() + _LEAST_WAIT_S

    def exceeded(self) -> bool:
        """Whether the directories hold more than the limit now."""
        began = time.monotonic()
        held = sum(_held_bytes(directory) for directory in self._directories)
        took = time.monotonic() - began
        self.next_look = time.monotonic() + max(_LEAST_WAIT_S, took * _PATIENCE)
        return held > self._limit


def _held_bytes(directory: bytes) -> int:
    total = 0
    waiting = [directory]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    total += entry.stat(follow_symlinks=False).st_blocks * _BLOCK
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except (FileNotFoundError, PermissionError):
            continue  # gone meanwhile, or locked by the command itself
    return total
