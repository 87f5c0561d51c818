"""What stands in the ring of `group.py`: events, and losses at the place where they happened.

Pure: it makes of a batch of entries what the writer takes, or what is to be told of it later.
Invariant: every entry becomes lines in its order, or is counted as lost. trace.md §4.
"""

from __future__ import annotations

import orjson

from substrate.errors import UsageError
from substrate.telemetry.trace.losses import DISK_FULL, Losses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from substrate.telemetry.trace.envelope import Event
    from substrate.telemetry.trace.system import System
    from substrate.telemetry.trace.writer import Stamped

    #: an event, or losses to tell of; wall µs, boot µs, weight in bytes, ticket, `body_bytes`
    Entry = tuple[Event | Losses, int, int, int, int, bytes | None]

#: what an envelope adds to a body, about
_ENVELOPE_BYTES = 400


def weigh(event: Event, body: bytes | None) -> int:
    """Bytes that an event takes, about. `body`: its `body_bytes`.

    Raises UsageError for a body that is not JSON.
    """
    if body is not None:
        return len(body) + _ENVELOPE_BYTES
    try:
        return len(orjson.dumps(event.body)) + _ENVELOPE_BYTES
    except TypeError as error:
        raise UsageError(f"the body of a {event.event_type} is not JSON: {error}") from error


def stamped(batch: Sequence[Entry], carried: Losses, told: int, system: System) -> list[Stamped]:
    """The events as the chain takes them, losses as `log_drop`, those carried over first.

    `told`: how many lost events the chain has told of so far.
    """
    made: list[Stamped] = []
    if carried:
        wall_us, mono_us = batch[0][1:3] if batch else (system.wall_us(), system.mono_us())
        made += [(event, wall_us, mono_us, None) for event in carried.events(told)]
        told += carried.count
    for event, wall_us, mono_us, _, _, body in batch:
        if isinstance(event, Losses):
            made += [(drop, wall_us, mono_us, None) for drop in event.events(told)]
            told += event.count
        else:
            made.append((event, wall_us, mono_us, body))
    return made


def lose(batch: Sequence[Entry], carried: Losses) -> list[int]:
    """Count a batch that the disk did not take in `carried`; the tickets of its events."""
    tickets = []
    for event, _, _, weight, ticket, _ in batch:
        if isinstance(event, Losses):
            carried.merge(event)
        else:
            carried.add(DISK_FULL, event, weight)
            tickets.append(ticket)
    return tickets
