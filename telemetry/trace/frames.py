"""Frames: the events of a trace for people and UIs, after it was verified (trace.md §10).

One frame an event, in the order of the chain, each with the origin of its event; nothing is
left out, smoothed over or made up. A trace that does not hold yields its verdict and no frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from substrate.errors import TraceCorrupt
from substrate.telemetry.trace.reader import TraceReader, Verdict, verify

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from typing import Any


class FrameKind(StrEnum):
    EVENT = "EVENT"
    GAP = "GAP"
    LOG_DROP = "LOG_DROP"
    REDACTION = "REDACTION"


class FrameWarning(StrEnum):
    """Codes that stand beside the frames, not in them."""

    EVENTS_DROPPED = "EVENTS_DROPPED"
    SEQUENCE_GAP = "SEQUENCE_GAP"
    TIMESTAMP_ANOMALY = "TIMESTAMP_ANOMALY"
    CHAIN_NOT_SEALED = "CHAIN_NOT_SEALED"
    PARTIAL_EVIDENCE = "PARTIAL_EVIDENCE"
    VERIFICATION_FAILED = "VERIFICATION_FAILED"
    REDACTION_PRESENT = "REDACTION_PRESENT"


_KINDS = {
    "gap": FrameKind.GAP,
    "log_drop": FrameKind.LOG_DROP,
    "redaction": FrameKind.REDACTION,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One event. `event` is the whole object of its line; times are in it as they stand there."""

    kind: FrameKind
    origin: str
    seq: int
    event: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """The verdict, its warnings, and the frames if the verdict allows any."""

    verdict: Verdict
    warnings: tuple[FrameWarning, ...]
    _path: str | os.PathLike[str]

    def __iter__(self) -> Iterator[Frame]:
        """The frames of the lines that the verdict covers. Raises TraceCorrupt (E_CHANGED) if
        the file is no longer what was verified."""
        if not self.verdict.ok or not self.verdict.events:
            return
        last = self.verdict.events - 1
        with TraceReader(self._path) as reader:
            for batch in reader.batches():
                head = reader.checker.head if reader.checker.seq == last + 1 else None
                for event in batch:
                    yield frame_of(event)
                    if event["seq"] == last:
                        self._compare(head)
                        return
        raise TraceCorrupt("the trace became shorter after it was verified", code="E_CHANGED")

    def _compare(self, head: str | None) -> None:
        """Where the position is that of the verdict, its hash must be too."""
        if head is not None and head != self.verdict.head:
            raise TraceCorrupt("the trace changed after it was verified", code="E_CHANGED")


def load_frames(path: str | os.PathLike[str]) -> Frames:
    """Verify a trace, then offer its frames."""
    verdict = verify(path)
    return Frames(verdict=verdict, warnings=warnings_of(verdict), _path=path)


def frame_of(event: dict[str, Any]) -> Frame:
    return Frame(
        kind=_KINDS.get(event["event_type"], FrameKind.EVENT),
        origin=event["origin"],
        seq=event["seq"],
        event=event,
    )


def warnings_of(verdict: Verdict) -> tuple[FrameWarning, ...]:
    """What somebody who looks at the frames must know, in a fixed order."""
    if not verdict.ok:
        return (FrameWarning.VERIFICATION_FAILED,)
    codes = {oddity.code for oddity in verdict.warnings}
    present = (
        (verdict.drops > 0, FrameWarning.EVENTS_DROPPED),
        (verdict.gaps > 0 or "W_PRODUCER_JUMP" in codes, FrameWarning.SEQUENCE_GAP),
        ("W_CLOCK_BACK" in codes, FrameWarning.TIMESTAMP_ANOMALY),
        (not verdict.sealed, FrameWarning.CHAIN_NOT_SEALED),
        (not verdict.complete, FrameWarning.PARTIAL_EVIDENCE),
        (verdict.redactions > 0, FrameWarning.REDACTION_PRESENT),
    )
    return tuple(warning for holds, warning in present if holds)
