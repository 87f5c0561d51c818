"""Holds a world to its disk limit: how much its layer has grown, looked at from time to time.

Soft by nature: a command can write past the limit between two looks (world.md §7). A look
takes no longer than `_SLICE_S`, since the command's streams wait meanwhile; a layer that needs
more is counted over several, and the next one waits ten times as long as the last one took.
"""

from __future__ import annotations

import time

from substrate.world.usage import Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_LEAST_WAIT_S = 0.5
_SLICE_S = 0.05
_PATIENCE = 10


class DiskWatch:
    """Watches directories; `next_look` is when to call `exceeded` again (monotonic)."""

    def __init__(self, directories: Iterable[bytes], limit_bytes: int) -> None:
        self._directories = tuple(directories)
        self._limit = limit_bytes
        self._usage = Usage(self._directories)
        self.next_look = time.monotonic() + _LEAST_WAIT_S

    def exceeded(self) -> bool:
        """Whether the directories hold more than the limit, as far as they are counted."""
        began = time.monotonic()
        if self._usage.done:
            self._usage = Usage(self._directories)
        self._usage.go_on(_SLICE_S)
        took = time.monotonic() - began
        self.next_look = time.monotonic() + max(_LEAST_WAIT_S, took * _PATIENCE)
        return self._usage.total_bytes > self._limit
