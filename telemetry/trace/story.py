"""What the events of a chain say together: spans, producers, losses, beginning and end.

Pure: checked objects in, facts and warnings out; memory grows only with open spans,
producers and redactions. Whether a line has its place in the chain is `check.py`'s
question. trace.md §3, §4, §7, §11 "Semantics".
"""

from __future__ import annotations

from operator import itemgetter

from substrate.errors import TraceCorrupt
from substrate.telemetry.trace.envelope import EVENT_TYPES, RESERVED_TYPES, is_hash
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_CLIENT_COMPONENTS = frozenset(("shim", "sdk"))
#: types that need a look at the single event
TELLING_TYPES = RESERVED_TYPES | {"session_start", "session_end", "command_start", "command_end"}

_type_of = itemgetter("event_type")
_time_of = itemgetter("ts")


@value
class Oddity:
    """Something that is odd, but no fault: the first place, and how often it came."""

    code: str
    message: str
    seq: int | None
    count: int


class Untrue(TraceCorrupt):
    """An event says what is not so. `reason` is the message without the place."""

    def __init__(self, code: str, reason: str, seq: int) -> None:
        super().__init__(reason, seq=seq, code=code)
        self.reason = reason


class Story:
    """Attributes are for reading; `tell` them objects in order.

    `open_spans`: seq of the `command_start` by span. `gaps` counts `gap` events.
    """

    def __init__(self) -> None:
        self.started = False
        self.ended = False
        self.sealed = False
        self.drops = 0
        self.gaps = 0
        self.recoveries = 0
        self.lossy_recoveries = 0
        self.redactions: set[str] = set()
        self.open_spans: dict[str, int] = {}
        self._producers: dict[str, int] = {}
        self._warnings: dict[str, tuple[str, int, int]] = {}
        self._last_time = ""

    def tell(self, objs: Sequence[dict[str, Any]]) -> int:
        """Take in objects up to and without the first `chain_seal`; how many were taken.

        Raises Untrue (E_LOG_DROP, E_RESERVED, E_REDACTION) with its seq; those before it have
        been taken in.
        """
        types = list(map(_type_of, objs))
        names = set(types)
        if not names <= EVENT_TYPES:
            self._meet_types(objs)
        self._watch_clock(objs)
        if names.isdisjoint(TELLING_TYPES):
            self._watch_producers(objs)
            return len(objs)
        for index, event_type in enumerate(types):
            if event_type == "chain_seal":
                return index
            self._watch_producers((objs[index],))
            if event_type in TELLING_TYPES:
                self._hear(objs[index], event_type)
        return len(objs)

    def tell_quiet(self, times: Sequence[str], counters: dict[str, tuple[int, int]]) -> bool:
        """`tell` for events that say nothing but their times and counters.

        `counters`: first and next counter of each producer. False, and nothing taken in, if
        there would be a word to say.
        """
        if times[0] < self._last_time or times != sorted(times):
            return False
        for producer, (first, _) in counters.items():
            if self._producers.get(producer, first) != first:
                return False
        self._last_time = times[-1]
        for producer, (_, following) in counters.items():
            self._producers[producer] = following
        return True

    def hear_seal(self, obj: dict[str, Any], root: str) -> None:
        """The `chain_seal`; `root` is that of the lines before it. Raises Untrue (E_SEAL)."""
        self._refuse_client(obj, "chain_seal")
        body = obj["body"]
        if not self.ended:
            raise _wrong("E_SEAL", "a chain_seal without a session_end before it", obj)
        for key, is_so in (
            ("count", obj["seq"]),
            ("head_hash", obj["prev_hash"]),
            ("root", root),
            ("drops", self.drops),
        ):
            says = body.get(key)
            if type(says) is not type(is_so) or says != is_so:
                raise _wrong("E_SEAL", f"the seal's {key} is {says!r:.80}, not {is_so!r}", obj)
        self.sealed = True

    def warn(self, code: str, message: str, seq: int | None, count: int = 1) -> None:
        first = self._warnings.get(code)
        if first is None:
            self._warnings[code] = (message, -1 if seq is None else seq, count)
        else:
            self._warnings[code] = (*first[:2], first[2] + count)

    def warnings(self) -> tuple[Oddity, ...]:
        return tuple(
            Oddity(code=code, message=message, seq=None if seq < 0 else seq, count=count)
            for code, (message, seq, count) in self._warnings.items()
        )

    @property
    def complete(self) -> bool:
        """Start and end are there, nothing was dropped, no gap, no recovery with loss (§7)."""
        return (
            self.started and self.ended and not (self.drops or self.gaps or self.lossy_recoveries)
        )

    # --- over many objects ------------------------------------------------------------------

    def _meet_types(self, objs: Sequence[dict[str, Any]]) -> None:
        for obj in objs:
            if obj["event_type"] not in EVENT_TYPES:
                message = f"unknown event type {obj['event_type']:.64}"
                self.warn("W_UNKNOWN_EVENT", message, obj["seq"])

    def _watch_clock(self, objs: Sequence[dict[str, Any]]) -> None:
        times = list(map(_time_of, objs))
        if not times:
            return
        if times[0] < self._last_time or times != sorted(times):
            before = self._last_time
            for obj, time in zip(objs, times, strict=True):
                if time < before:
                    self.warn("W_CLOCK_BACK", f"{time} follows {before}", obj["seq"])
                before = time
        self._last_time = times[-1]

    def _watch_producers(self, objs: Sequence[dict[str, Any]]) -> None:
        counters = self._producers
        for obj in objs:
            if "producer" in obj:
                producer, number = obj["producer"], obj["producer_seq"]
                expected = counters.get(producer)
                if expected is not None and number != expected:
                    message = (
                        f"a producer's counter is {number}, not {expected}, and no gap says why"
                    )
                    self.warn("W_PRODUCER_JUMP", message, obj["seq"])
                counters[producer] = number + 1

    # --- single events ----------------------------------------------------------------------

    def _hear(self, obj: dict[str, Any], event_type: str) -> None:
        body, span = obj["body"], obj.get("span_id")
        if event_type in RESERVED_TYPES:
            self._refuse_client(obj, event_type)
        if event_type == "command_start":
            if span is not None:
                self.open_spans[span] = obj["seq"]
        elif event_type == "command_end":
            if span is None or self.open_spans.pop(span, None) is None:
                self.warn("W_END_WITHOUT_START", "command_end without its start", obj["seq"])
        elif event_type == "session_start":
            self.started = self.started or obj["seq"] == 0
        elif event_type == "session_end":
            self.ended = True
            if type(body.get("drops")) is int and body["drops"] != self.drops:
                message = f"session_end counts {body['drops']} drops, not {self.drops}"
                self.warn("W_END_COUNTS", message, obj["seq"])
        elif event_type == "log_drop":
            self._hear_drop(obj, body)
        elif event_type == "gap":
            self.gaps += 1
            self._account_for(body)
            self.warn("W_GAP", "a producer's events are not there", obj["seq"])
        elif event_type == "recovery":
            self.recoveries += 1
            if body.get("acknowledged_lost") != "no":
                self.lossy_recoveries += 1
                message = "recovered; acknowledged events may be lost"
                self.warn("W_RECOVERY", message, obj["seq"])
        elif event_type == "redaction":
            self._hear_redaction(obj, body)

    def _hear_drop(self, obj: dict[str, Any], body: dict[str, Any]) -> None:
        count, cumulative = body.get("count"), body.get("cumulative")
        if type(count) is not int or type(cumulative) is not int or count < 0:
            raise _wrong("E_LOG_DROP", "a log_drop without count and cumulative", obj)
        if cumulative != self.drops + count:
            message = f"expected cumulative {self.drops + count}, got {cumulative}"
            raise _wrong("E_LOG_DROP", message, obj)
        self.drops = cumulative
        self.warn("W_DROP", "events were dropped", obj["seq"])
        ranges = body.get("per_producer")
        for lost in ranges if type(ranges) is list else ():
            self._account_for(lost)

    def _account_for(self, lost: Any) -> None:
        """`{producer, from, to}` says why a counter jumps."""
        if type(lost) is dict and type(lost.get("producer")) is str and type(lost.get("to")) is int:
            self._producers[lost["producer"]] = lost["to"] + 1

    def _hear_redaction(self, obj: dict[str, Any], body: dict[str, Any]) -> None:
        if named := body.keys() & {"seq", "seqs", "event_hash"}:
            message = f"a redaction names a line ({min(named)}), not a blob"
            raise _wrong("E_REDACTION", message, obj)
        commitments = body.get("commitments", [])
        if type(commitments) is not list:
            raise _wrong("E_REDACTION", "commitments is no list", obj)
        if "commitment" in body:
            commitments = [*commitments, body["commitment"]]
        if not commitments or not all(map(is_hash, commitments)):
            raise _wrong("E_REDACTION", "a redaction without what it covers", obj)
        self.redactions.update(commitments)

    def _refuse_client(self, obj: dict[str, Any], event_type: str) -> None:
        if (
            "producer" in obj
            or obj["origin"] != "observed"
            or obj["component"] in _CLIENT_COMPONENTS
        ):
            message = f"{event_type} was handed over by a client, which may not"
            raise _wrong("E_RESERVED", message, obj)


def _wrong(code: str, message: str, obj: dict[str, Any]) -> Untrue:
    return Untrue(code, message, obj["seq"])
