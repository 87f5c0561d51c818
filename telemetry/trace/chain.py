"""The chain as pure state: events go in, the bytes of their lines come out.

It gives each event its place (`seq`, `prev_hash`), writes a `gap` where a producer's counter
jumps, and keeps what the next line depends on: head, size, producers, open command spans.
It does no I/O, knows no clock and applies no redaction (`writer.py` does).

Invariant: every line that comes out is canonical, its envelope is valid, and nothing comes
out after a `chain_seal`. `state()` and `restore()` let a writer take back lines that did not
reach the file. trace.md §2, §4.
"""

from __future__ import annotations

from _json import encode_basestring

from substrate.errors import StateError, UsageError
from substrate.sha256 import sha256
from substrate.telemetry.trace.clock_text import format_ts
from substrate.telemetry.trace.envelope import (
    COMPONENTS,
    GENESIS,
    ORIGINS,
    RESERVED_TYPES,
    Event,
    build_envelope,
    is_name,
)
from substrate.telemetry.trace.ids import is_span_id
from substrate.telemetry.trace.line import MAX_DEPTH, encode_line
from substrate.telemetry.trace.rfc8785 import MAX_INT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    State = tuple[int, str, int, bool, bool, int, dict[str, int], dict[str, int]]

_sha256 = sha256


def accelerate() -> None:
    """For a writer of many events: OpenSSL's SHA-256 from here on."""
    global _sha256
    import hashlib

    _sha256 = hashlib.sha256


#: span ids that were found well-formed; forgotten as a whole when it grows beyond this
_MAX_KNOWN_SPANS = 4096
#: far below the limit of a line; longer bodies are rare and pay for the long way
SHORT_BODY = 128 * 1024
_LONGEST_PRODUCER = 1024


class Chain:
    """Where the next line goes. Public attributes are for reading.

    `next_seq`; `head` = hex SHA-256 of the last line; `size` in bytes with newlines;
    `producers` = next counter expected of each; `open_spans` = `mono_us` of the
    `command_start` by span; `drops` = events lost so far by the last `log_drop`; `ended` =
    a `session_end` was written; `sealed`.
    """

    __slots__ = (
        "_kinds",
        "_resumed",
        "_spans",
        "drops",
        "ended",
        "head",
        "next_seq",
        "open_spans",
        "producers",
        "sealed",
        "session_id",
        "size",
    )

    def __init__(
        self,
        session_id: str,
        *,
        next_seq: int = 0,
        head: str = GENESIS,
        size: int = 0,
        resumed: bool = False,
    ) -> None:
        """`resumed`: what was before is not known, so a producer may begin with any counter."""
        self.session_id = session_id
        self.next_seq = next_seq
        self.head = head
        self.size = size
        self._resumed = resumed
        self.ended = False
        self.sealed = False
        self.drops = 0
        self.producers: dict[str, int] = {}
        self.open_spans: dict[str, int] = {}
        #: accepted (event_type, component, origin) -> the text around `mono_us` in their lines
        self._kinds: dict[tuple[str, str, str], tuple[str, str]] = {}
        self._spans: set[str] = set()

    def state(self) -> State:
        """All that `extend` changes. The dicts are copied: they are small."""
        return (
            self.next_seq,
            self.head,
            self.size,
            self.ended,
            self.sealed,
            self.drops,
            self.producers.copy(),
            self.open_spans.copy(),
        )

    def restore(self, state: State) -> None:
        """Forget every line since `state` was taken."""
        self.next_seq, self.head, self.size, self.ended, self.sealed, self.drops = state[:6]
        self.producers, self.open_spans = state[6].copy(), state[7].copy()

    def extend(self, event: Event, ts_us: int, mono_us: int, body: bytes | None = None) -> bytes:
        """The line of `event` with its newline, behind that of a `gap` if its counter jumped.

        `ts_us`: microseconds since the epoch; `mono_us`: CLOCK_BOOTTIME in microseconds.
        `body`: what is to stand in the line for `event.body`, made by `short_body`.
        Raises UsageError for an event that may not stand here (E_RESERVED, E_ENVELOPE, E_SEAL),
        StateError after the seal (E_AFTER_SEAL), CanonicalError for a body that has no line;
        nothing has changed then.
        """
        kind = (event.event_type, event.component, event.origin)
        if kind not in self._kinds:
            self._admit(kind)
        if type(mono_us) is not int or not 0 <= mono_us <= MAX_INT:
            raise _invalid(f"mono_us is {mono_us!r}, expected 0 to 2^53-1")
        if self.sealed:
            raise StateError("the chain is sealed, nothing may follow", code="E_AFTER_SEAL")
        if event.span_id is not None or event.parent_span_id is not None:
            self._check_spans(event)
        if type(event.body) is not dict:
            raise _invalid(f"body is {type(event.body).__name__}, expected an object")
        producer = event.producer
        if producer is None:
            if event.producer_seq is not None:
                raise _invalid("a producer_seq without a producer")
            line = self._line(event, ts_us, mono_us, body)
        else:
            line = self._line_of_producer(event, producer, ts_us, mono_us, body)
        if event.event_type in _WATCHED_TYPES:
            self._watch(event.event_type, event.span_id, event.body, mono_us)
        return line

    def follow(self, obj: dict[str, Any], line: bytes) -> None:
        """Take in a line that was read back: `obj` is the parsed, checked `line` (no newline)."""
        producer = obj.get("producer")
        if producer is not None:
            self.producers[producer] = obj["producer_seq"] + 1
        event_type = obj["event_type"]
        if event_type in _WATCHED_TYPES:
            self._watch(event_type, obj.get("span_id"), obj["body"], obj["mono_us"])
        self.next_seq = obj["seq"] + 1
        self.head = _sha256(line).hexdigest()
        self.size += len(line) + 1

    def _line(self, event: Event, ts_us: int, mono_us: int, body: bytes | None) -> bytes:
        if event.event_type == "chain_seal" and not self.ended:
            raise UsageError("a chain_seal needs a session_end before it", code="E_SEAL")
        line = self._encode(event, ts_us, mono_us, body)
        self.head = _sha256(line).hexdigest()
        self.next_seq += 1
        self.size += len(line) + 1
        return line + b"\n"

    def _encode(self, event: Event, ts_us: int, mono_us: int, body: bytes | None) -> bytes:
        """`encode_line(build_envelope(…))`, put together from its parts where that is the same.

        All of the envelope but `producer` is plain ASCII from closed sets, so only the body
        has to be walked.
        """
        if body is None:
            body = short_body(encode_line(event.body))
        if body is not None:
            before, after = self._kinds[event.event_type, event.component, event.origin]
            parent, span, producer = event.parent_span_id, event.span_id, event.producer
            if parent is not None:
                after = f'{after},"parent_span_id":"{parent}"'
            producer_part = (
                f',"producer":{encode_basestring(producer)},"producer_seq":{event.producer_seq}'
                if producer is not None
                else ""
            )
            span_part = f',"span_id":"{span}"' if span is not None else ""
            rest = (
                f'{before}{mono_us}{after},"prev_hash":"{self.head}"{producer_part}'
                f',"seq":{self.next_seq},"session_id":"{self.session_id}"{span_part}'
                f',"ts":"{format_ts(ts_us)}","v":1}}'
            )
            return b'{"body":' + body + rest.encode()
        return encode_line(
            build_envelope(
                event,
                session_id=self.session_id,
                seq=self.next_seq,
                prev_hash=self.head,
                ts=ts_us,
                mono_us=mono_us,
            )
        )

    def _line_of_producer(
        self, event: Event, producer: str, ts_us: int, mono_us: int, body: bytes | None
    ) -> bytes:
        number = event.producer_seq
        if event.event_type in RESERVED_TYPES:
            raise _reserved(event.event_type, f"the producer {producer!r}")
        if type(producer) is not str or not 0 < len(producer) <= _LONGEST_PRODUCER:
            raise _invalid(f"producer is {producer!r:.80}, expected a name")
        if type(number) is not int or not 0 <= number < MAX_INT:
            raise _invalid(f"producer_seq is {number!r}, expected 0 to 2^53-2")
        expected = self.producers.get(producer, number if self._resumed else 0)
        if number == expected:
            line = self._line(event, ts_us, mono_us, body)
        else:
            before = (self.next_seq, self.head, self.size)
            try:
                gap = gap_event(producer, expected, number)
                self._admit((gap.event_type, gap.component, gap.origin))
                line = self._line(gap, ts_us, mono_us, None)
                line += self._line(event, ts_us, mono_us, body)
            except BaseException:
                self.next_seq, self.head, self.size = before
                raise
        self.producers[producer] = number + 1
        return line

    def _watch(self, event_type: str, span: str | None, body: dict[str, Any], mono_us: int) -> None:
        if event_type == "command_start":
            if span is not None:
                self.open_spans[span] = mono_us
        elif event_type == "command_end":
            self.open_spans.pop(span or "", None)
        elif event_type == "session_end":
            self.ended = True
        elif event_type == "chain_seal":
            self.sealed = True
        else:  # log_drop: what it names is accounted for and is no gap
            self.drops = body["cumulative"]
            for lost in body["per_producer"]:
                self.producers[lost["producer"]] = lost["to"] + 1

    def _admit(self, kind: tuple[str, str, str]) -> None:
        event_type, component, origin = kind
        if not is_name(event_type):
            raise _invalid(f"event_type is {event_type!r}, expected a word of a-z, 0-9 and _")
        if component not in COMPONENTS:
            raise _invalid(f"component is {component!r}, expected {', '.join(sorted(COMPONENTS))}")
        if origin not in ORIGINS:
            raise _invalid(f"origin is {origin!r}, expected {', '.join(sorted(ORIGINS))}")
        if event_type in RESERVED_TYPES and (
            origin != "observed" or component in _CLIENT_COMPONENTS
        ):
            raise _reserved(event_type, f"{component} ({origin})")
        self._kinds[kind] = (
            f',"component":"{component}","event_type":"{event_type}","mono_us":',
            f',"origin":"{origin}"',
        )

    def _check_spans(self, event: Event) -> None:
        for span in (event.span_id, event.parent_span_id):
            if span is not None and span not in self._spans:
                if not is_span_id(span):
                    raise _invalid(f"{span!r} is no span id")
                if len(self._spans) >= _MAX_KNOWN_SPANS:
                    self._spans.clear()
                self._spans.add(span)


_CLIENT_COMPONENTS = frozenset(("shim", "sdk"))
_WATCHED_TYPES = frozenset(
    ("command_start", "command_end", "session_end", "chain_seal", "log_drop")
)


def short_body(body: bytes) -> bytes | None:
    """The canonical `body` of an event, or None if its line has to be made as a whole.

    Of a body of many containers or bytes, depth and size of the whole line count.
    """
    if len(body) <= SHORT_BODY and body.count(b"{") + body.count(b"[") < MAX_DEPTH:
        return body
    return None


def gap_event(producer: str, expected: int, got: int) -> Event:
    """Counters `expected` … `got` - 1 never arrived; `to` < `from` if the counter went back."""
    return Event(
        event_type="gap",
        component="shell",
        body={"producer": producer, "from": expected, "to": got - 1},
    )


def _reserved(event_type: str, sender: str) -> UsageError:
    return UsageError(
        f"{event_type} is written by the supervisor or the authority only, {sender} sent one",
        code="E_RESERVED",
    )


def _invalid(message: str) -> UsageError:
    return UsageError(message, code="E_ENVELOPE")
