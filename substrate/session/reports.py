"""Events that processes of a world hand over: whose they are, and how many of them are taken.

Who hands them over is hostile until the contrary is known: a program could fill the disk outside of its world
with what it says of itself, or take all places, so that nobody else is heard. So there are places for
producers at one time, a place is free again when its connection ends, and a command and a session have a number and a size
of events. What is not taken is counted and told (`log_drop`); its numbers show as a gap when its producer is heard again. Logic
only; not what an event may hold (inside.py). Invariant: an event that was not taken is in a `log_drop`. Spec: trace.md §4.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from substrate.telemetry.trace.entries import weigh
from substrate.telemetry.trace.losses import BUFFER_FULL, Losses
from substrate.values import replace

if TYPE_CHECKING:
    from typing import Final

    from substrate.session.doors import Client
    from substrate.telemetry.trace.envelope import Event
    from substrate.telemetry.trace.writer import TraceWriter

MOST_PRODUCERS: Final = 256
#: of one connection
_MOST_NAMES: Final = 8
#: of one command, of one session: events, bytes
OF_COMMAND: Final = (20_000, 16 << 20)
OF_SESSION: Final = (200_000, 128 << 20)
#: between two lines about what was not taken
_PAUSE_S: Final = 10.0


class NoPlace(Exception):
    """There are enough producers."""


class _Taken:
    """Of one command, or of all: how much was taken."""

    def __init__(self, most: tuple[int, int]) -> None:
        self._most = most
        self.count = self.size_bytes = 0

    def has_room(self, size_bytes: int) -> bool:
        return self.count < self._most[0] and self.size_bytes + size_bytes <= self._most[1]

    def add(self, size_bytes: int) -> None:
        self.count += 1
        self.size_bytes += size_bytes


class Reports:
    """See the module. `of_command`, `of_session`: how many events, and bytes, are taken."""

    def __init__(
        self,
        writer: TraceWriter,
        of_command: tuple[int, int] = OF_COMMAND,
        of_session: tuple[int, int] = OF_SESSION,
    ) -> None:
        self._writer, self._of_command = writer, of_command
        self._all = _Taken(of_session)
        self._by_command: dict[str, _Taken] = {}
        #: the producers of each connection, by the names that they give themselves
        self._names: dict[Client, dict[str, str]] = {}
        #: the last number of each, and how often it began anew
        self._last: dict[str, tuple[int, int]] = {}
        self._losses = Losses()
        self._tell_at = 0.0

    def take(
        self, client: Client, event: Event, name: str, number: int, command: str | None
    ) -> bool:
        """Writes it; False where it is counted only. `name`, `number`: as the producer says; `command`: whose it
        is. Raises NoPlace, and what the writer raises of an event."""
        producer = self._producer(client, name, number)
        event = replace(event, producer=producer, producer_seq=number)
        size_bytes = weigh(event, None)
        own = self._by_command.setdefault(command or "", _Taken(self._of_command))
        if not (own.has_room(size_bytes) and self._all.has_room(size_bytes)):
            self._lose(event, size_bytes)
            return False
        self._writer.append([event])
        own.add(size_bytes)
        self._all.add(size_bytes)
        base = f"{name}@{client.peer.pid}"
        self._last[base] = (number, self._last.get(base, (0, 0))[1])
        return True

    def _producer(self, client: Client, name: str, number: int) -> str:
        known = self._names.get(client, {})
        if name in known:
            return known[name]
        self._names = {each: names for each, names in self._names.items() if not each.is_gone}
        if len(known) >= _MOST_NAMES or sum(map(len, self._names.values())) >= MOST_PRODUCERS:
            raise NoPlace
        # its pid keeps two apart that call themselves the same; one that begins anew is another
        base = f"{name}@{client.peer.pid}"
        last, turn = self._last.get(base, (-1, 0))
        if number <= last:
            turn += 1
            self._last[base] = (number, turn)
        producer = f"{base}.{turn}" if turn else base
        self._names.setdefault(client, {})[name] = producer
        return producer

    def _lose(self, event: Event, size_bytes: int) -> None:
        # without its numbers, of which there may be as many as one likes
        self._losses.add(BUFFER_FULL, replace(event, producer=None, producer_seq=None), size_bytes)
        if time.monotonic() >= self._tell_at:
            self.tell()

    def tell(self) -> None:
        """Writes down what was not taken. Raises OSError."""
        if self._losses:
            losses, self._losses = self._losses, Losses()
            self._tell_at = time.monotonic() + _PAUSE_S
            self._writer.append(losses.events(self._writer.drops))

    def end_of(self, command: str) -> None:
        """A command has ended: what of it was not taken is told."""
        self._by_command.pop(command, None)
        self.tell()
