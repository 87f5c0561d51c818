"""What the writer says about the record itself (trace.md §4, §5, §6): reserved event types.

Written by the supervisor or the authority only; a client that sends one is refused.
"""

from __future__ import annotations

from .body import Body, body

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .body import Extra


@body
class DroppedRange(Body):
    """The counters of one producer's lost events, both ends included."""

    producer: str
    from_: int
    to: int
    extra: Extra = ()


@body
class LogDrop(Body):
    """Events that are lost. `reason`: buffer_full, disk_full, tracer_died …; `bytes_` of them.

    `cumulative`: all events that this session has lost so far, these included.
    """

    event_type = "log_drop"
    count: int
    bytes_: int
    reason: str
    per_producer: tuple[DroppedRange, ...]
    cumulative: int
    extra: Extra = ()


@body
class Gap(Body):
    """A producer's counter jumped: `from_` to `to` (both included) never arrived."""

    event_type = "gap"
    producer: str
    from_: int
    to: int
    extra: Extra = ()


@body
class Recovery(Body):
    """After an unclean end: what was moved away, and which spans this closes (trace.md §5).

    `torn_digest`: hex SHA-256 of the torn bytes, null if there were none.
    `acknowledged_lost`: `no` or `unknown`.
    """

    event_type = "recovery"
    torn_bytes: int
    torn_digest: str | None
    boot_id: str
    acknowledged_lost: str
    closed_spans: tuple[str, ...]
    torn_file: str | None = None
    extra: Extra = ()


@body
class Redaction(Body):
    """Blobs erased by their commitments; `other_places` may still hold a copy (trace.md §6)."""

    event_type = "redaction"
    commitments: tuple[str, ...]
    reason: str
    by: str
    other_places: tuple[str, ...]
    extra: Extra = ()
