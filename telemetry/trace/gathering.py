"""Waiting a moment for those who will want the same sync.

Producers that wait for each event come back as soon as they are released. The first one back
would get a sync of its own, and the others would wait for two; so whoever is to write waits
until as many have come as were released last, but not longer than a sync takes.

Pure waiting: it knows no events. Its state is guarded by the mutex of `group.py`, which it is
given. Invariant: `wait` ends after `_LONGEST_S` at the latest. trace.md §5 (group commit).
"""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sized

#: waiting longer for those who may share a sync would cost more than another sync
_LONGEST_S = 0.0004


class Gathering:
    """`expected`: how many were released last, and so may soon be back."""

    def __init__(self, mutex: threading.Lock) -> None:
        self._mutex = mutex
        self.expected = 0
        #: how many entries end the waiting; 0: nobody waits
        self._quorum = 0
        self._complete = threading.Lock()
        self._complete.acquire()

    def count(self, entries: int) -> None:
        """There are `entries` now. Under the mutex."""
        if 0 < self._quorum <= entries:
            self._quorum = 0
            self._complete.release()

    def wait(self, ring: Callable[[], Sized]) -> None:
        """Until the ring holds as many as are expected. One at a time, without the mutex."""
        with self._mutex:
            if len(ring()) >= self.expected:
                return
            self._quorum = self.expected
        if self._complete.acquire(timeout=_LONGEST_S):
            return
        with self._mutex:
            if self._quorum:
                self._quorum = 0
            else:
                self._complete.acquire()  # it was released in this very moment
