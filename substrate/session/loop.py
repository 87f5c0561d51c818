"""The poll loop of a supervisor: parts that wait for files and for moments, and what is done then.

A part is asked before each wait what it waits for, so that nothing has to be taken back when that
changes, and a part that has nothing to wait for costs nothing. Not a scheduler: what a part does is
done at once, and whoever takes long holds up the others. Invariants: without a moment to wait for there are no wake-ups; a
descriptor that several parts wait for wakes all of them; a part may be called for a file that another one
has closed in the same round, so it looks first. Spec: shell.md §2.
"""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Part(Protocol):
        def wait_for(self, waiting: Waiting) -> None:
            """Says what it waits for."""
            ...


#: told whether it is asked for or not (poll(2))
_ALWAYS = select.POLLERR | select.POLLHUP | select.POLLNVAL


class Waiting:
    """What one turn waits for. `now`: when it began (monotonic)."""

    __slots__ = ("acts", "changed", "limit", "now")

    def __init__(self, now: float) -> None:
        self.now = now
        self.limit: float | None = None
        #: fd → (events, what is done then)
        self.acts: dict[int, list[tuple[int, Callable[[], None]]]] = {}
        #: a part has come to an end: whoever turns the loop looks at that before anybody waits
        self.changed = False

    def until(self, moment: float | None) -> None:
        """No longer than until then; None: as long as it takes."""
        if moment is not None and (self.limit is None or moment < self.limit):
            self.limit = moment

    def on(self, fd: int, events: int, act: Callable[[], None]) -> None:
        """Has `act` called when these events of an fd are there; no events: its error or end."""
        self.acts.setdefault(fd, []).append((events, act))

    def read(self, fd: int, act: Callable[[], None]) -> None:
        self.on(fd, select.POLLIN, act)


class Loop:
    """See the module."""

    def __init__(self, *parts: Part) -> None:
        self._parts: list[Part] = list(parts)

    def add(self, part: Part) -> None:
        self._parts.append(part)

    def remove(self, part: Part) -> None:
        """A part that is not there any more is fine."""
        if part in self._parts:
            self._parts.remove(part)

    def glance(self) -> None:
        """Does what is to be done now, without a wait."""
        self.turn(waits=False)

    def turn(self, *, waits: bool = True) -> None:
        """Waits once, and has done what is to be done then. Returns at once where a part has come to an
        end. Without `waits` only what is there already is done."""
        now = time.monotonic()
        waiting = Waiting(now)
        for part in tuple(self._parts):
            part.wait_for(waiting)
        if waiting.changed:
            return
        poll = select.poll()
        for fd, wanted in waiting.acts.items():
            events = 0
            for each, _ in wanted:
                events |= each
            poll.register(fd, events)
        limit = waiting.limit
        # a moment later rather than before it: poll(2) counts in milliseconds
        timeout = None if limit is None else max(0.0, limit - now) * 1000 + 1
        if not waits:
            timeout = 0
        for fd, events in poll.poll(timeout):
            for wanted_events, act in waiting.acts[fd]:
                if events & (wanted_events | _ALWAYS):
                    act()
