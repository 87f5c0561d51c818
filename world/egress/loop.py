"""The loop of the egress process: one epoll, timers, and what is left for the next round.

What it is: readiness → callback, time → callback, in one thread. What it is not: it reads and
writes nothing itself. Whoever registers chooses level or edge (EPOLLET): sources of few bytes
(listeners, netlink, DNS) take level; a relay takes edge, for then it is registered once and
never changed, where level would cost an epoll_ctl(2) at each turn of its backpressure.

A round calls every descriptor that is ready once, so a callback must do a bounded piece of work
and ask by `soon` for another turn; what `soon` was asked for in a round runs in the next, after
no waiting. So one fast stream takes turns with a thousand slow ones.

Invariant: an event is given only to the registration that it was made for. A descriptor that
was closed and whose number was given out again within the round gets nothing of the old one.

Sources: epoll(7), epoll_wait(2).
"""

from __future__ import annotations

import heapq
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Final

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
URGENT: Final = select.EPOLLPRI
PEER_SHUT: Final = select.EPOLLRDHUP
ERROR: Final = select.EPOLLERR
HANGUP: Final = select.EPOLLHUP
EDGE: Final = select.EPOLLET

#: events taken from the kernel at once; those behind come first in the next round
_BATCH: Final = 256
#: cancelled timers are swept when there are more of them than this and than live ones
_STALE: Final = 512


class Timer:
    """A callback to come; `cancel` may be called at any time, also when it has run."""

    __slots__ = ("_loop", "callback")

    def __init__(self, loop: Loop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        if self.callback is not None:
            self.callback = None
            self._loop._forget_timer()


class _Entry:
    __slots__ = ("callback", "round")

    def __init__(self, callback: Callable[[int], None], round: int) -> None:
        self.callback = callback
        self.round = round


class Loop:
    """See the module. An exception of a callback leaves `run_once`; nothing is lost by it, the
    rest of the round is done by the next call. `now` is the monotonic time of the round."""

    def __init__(self) -> None:
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._entries: dict[int, _Entry] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._stale = 0
        self._order = 0
        self._round = 0
        self._batch: Iterator[tuple[int, int]] = iter(())
        self._soon: list[Callable[[], None]] = []
        self._due: list[Callable[[], None]] = []  # of this round, the last first
        self.now = time.monotonic()

    def __len__(self) -> int:
        """How many descriptors are registered."""
        return len(self._entries)

    def register(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """`callback(events)` whenever one of `events`, an error or a hangup is there.
        Raises OSError (EEXIST, ENOSPC: epoll's limit of watches, EPERM: not pollable)."""
        self._epoll.register(fd, events)
        self._entries[fd] = _Entry(callback, self._round)

    def watches(self, fd: int) -> bool:
        return fd in self._entries

    def modify(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """To be called before the descriptor is closed."""
        del self._entries[fd]
        self._epoll.unregister(fd)

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Calls once, `seconds` after the beginning of this round or a little later."""
        timer = Timer(self, callback)
        self._order += 1
        heapq.heappush(self._timers, (self.now + seconds, self._order, timer))
        return timer

    def soon(self, callback: Callable[[], None]) -> None:
        """Calls once, in the next round."""
        self._soon.append(callback)

    def run_once(self, timeout_s: float | None = None) -> None:
        """One round: waits until something is to be done, `timeout_s` at most (None: as long as
        the next timer is away, or for ever), then does it."""
        for fd, events in self._batch:  # what an exception left of the last round
            self._give(fd, events)
        self._round += 1
        self._batch = iter(self._epoll.poll(self._wait(timeout_s), _BATCH))
        self.now = time.monotonic()
        self._due = self._soon[::-1] + self._due
        self._soon = []
        for fd, events in self._batch:
            self._give(fd, events)
        while self._due:
            self._due.pop()()
        self._run_timers()

    def close(self) -> None:
        self._epoll.close()
        self._entries.clear()
        self._timers.clear()
        self._soon.clear()
        self._due.clear()

    def _wait(self, timeout_s: float | None) -> float:
        """Seconds for epoll_wait; -1 is for ever."""
        if self._soon or self._due:
            return 0
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
            self._stale -= 1
        if self._timers:
            until = max(0.0, self._timers[0][0] - time.monotonic())
            return until if timeout_s is None else min(until, timeout_s)
        return -1 if timeout_s is None else timeout_s

    def _give(self, fd: int, events: int) -> None:
        entry = self._entries.get(fd)
        if entry is not None and entry.round < self._round:
            entry.callback(events)

    def _run_timers(self) -> None:
        timers = self._timers
        ran = self._order  # one that is made by a callback waits for the next round
        while timers and timers[0][0] <= self.now and timers[0][1] <= ran:
            timer = heapq.heappop(timers)[2]
            callback = timer.callback
            if callback is None:
                self._stale -= 1
            else:
                timer.callback = None
                callback()

    def _forget_timer(self) -> None:
        self._stale += 1
        if self._stale > _STALE and self._stale * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if entry[2].callback is not None]
            heapq.heapify(self._timers)
            self._stale = 0
