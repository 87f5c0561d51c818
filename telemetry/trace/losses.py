"""Counting events that are lost, until a `log_drop` in the chain says so.

Pure state, outside the ring, so that it can never be dropped itself. Invariant: every lost
event is in exactly one `log_drop`. `cumulative` is reckoned when the line is written, from
what the chain says then, so that it always adds up. trace.md §4.
"""

from __future__ import annotations

from substrate.telemetry.trace.envelope import Event
from substrate.telemetry.trace.events.chain import DroppedRange, LogDrop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

BUFFER_FULL, DISK_FULL = "buffer_full", "disk_full"


class Losses:
    """Lost events by reason, in the order in which each reason first came."""

    def __init__(self) -> None:
        self._by_reason: dict[str, _Loss] = {}

    def __bool__(self) -> bool:
        return bool(self._by_reason)

    @property
    def count(self) -> int:
        return sum(loss.count for loss in self._by_reason.values())

    def add(self, reason: str, event: Event, size_bytes: int) -> None:
        self._of(reason).add(event, size_bytes)

    def merge(self, later: Losses) -> None:
        """Take in losses whose `log_drop` could not be written."""
        for reason, loss in later._by_reason.items():
            self._of(reason).merge(loss)

    def events(self, told: int) -> list[Event]:
        """Their `log_drop` events, if the chain has told of `told` lost events so far."""
        made = []
        for reason, loss in self._by_reason.items():
            told += loss.count
            drop = LogDrop(
                count=loss.count,
                bytes_=loss.size_bytes,
                reason=reason,
                per_producer=tuple(loss.ranges()),
                cumulative=told,
            )
            made.append(drop.event("shell"))
        return made

    def _of(self, reason: str) -> _Loss:
        loss = self._by_reason.get(reason)
        if loss is None:
            loss = self._by_reason[reason] = _Loss()
        return loss


class _Loss:
    def __init__(self) -> None:
        self.count = 0
        self.size_bytes = 0
        self._ranges: dict[str, list[list[int]]] = {}

    def add(self, event: Event, size_bytes: int) -> None:
        self.count += 1
        self.size_bytes += size_bytes
        producer, number = event.producer, event.producer_seq
        if producer is None or number is None:
            return
        self._add_range(producer, number, number)

    def merge(self, later: _Loss) -> None:
        self.count += later.count
        self.size_bytes += later.size_bytes
        for producer, ranges in later._ranges.items():
            for first, last in ranges:
                self._add_range(producer, first, last)

    def _add_range(self, producer: str, first: int, last: int) -> None:
        ranges = self._ranges.setdefault(producer, [])
        if ranges and ranges[-1][1] + 1 == first:
            ranges[-1][1] = last
        else:
            ranges.append([first, last])

    def ranges(self) -> Iterable[DroppedRange]:
        for producer, ranges in self._ranges.items():
            for first, last in ranges:
                yield DroppedRange(producer=producer, from_=first, to=last)
