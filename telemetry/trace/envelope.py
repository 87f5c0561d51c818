"""The envelope of a line: which keys, of which types (trace.md §2, the table).

What it is: `Event`, what a producer hands to the writer; `build_envelope`, which gives it its
place in the chain; `check_envelope`, the same read back.
What it is not: it does not look into `body` (`events`), nor at how lines follow one another.

Invariant: `check_envelope(build_envelope(...))` finds nothing, and an object with one more,
one fewer or one mistyped key is refused. `bool` is not an integer here.
"""

from __future__ import annotations

from substrate.errors import TraceCorrupt, TraceVersionError
from substrate.values import value

from .clock_text import format_ts, parse_ts
from .ids import is_session_id, is_span_id
from .rfc8785 import MAX_INT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

VERSION = 1
GENESIS = "0" * 64

COMPONENTS = frozenset(
    ("shell", "shim", "world", "capture", "broker", "agent_api", "sdk", "replay", "authority")
)
ORIGINS = frozenset(("observed", "reported", "imported"))

#: Written by the supervisor or the authority only; a client that sends one is refused (§4).
RESERVED_TYPES = frozenset(("log_drop", "gap", "recovery", "key_epoch", "redaction", "chain_seal"))

#: Every event type of trace.md §4. One that is not here is a warning, never a failure.
EVENT_TYPES = RESERVED_TYPES | frozenset(
    (
        *("session_start", "session_end"),
        *("world_start", "layer_cut", "squash", "snapshot", "rollback", "undo", "fork", "gc"),
        *("policy_loaded", "policy_decision", "command_start", "command_end"),
        "terminal_recording",
        *("process_fork", "process_start", "process_exit", "file_batch", "syscall_batch"),
        *("net_connect", "net_listen", "net_accept", "dns_query", "net_close"),
        *("fs_diff", "fs_apply", "fs_discard", "input_manifest", "coverage", "budget", "bypass"),
        *("tool_call", "tool_result", "llm_call", "llm_response", "agent_decision"),
        *("annotation", "error", "replay_start", "replay_result"),
    )
)

_REQUIRED = frozenset(
    (
        *("v", "session_id", "seq", "prev_hash", "ts", "mono_us"),
        *("event_type", "component", "origin", "body"),
    )
)
_ALLOWED = _REQUIRED | {"span_id", "parent_span_id", "producer", "producer_seq"}

_HEX = "0123456789abcdef"
_NAME_START = frozenset("abcdefghijklmnopqrstuvwxyz")
_NAME = _NAME_START | frozenset("0123456789_")


@value
class Event:
    """What a producer hands to the writer: a line without its place in the chain.

    `producer` and `producer_seq` (the producer's own counter, from 0) go together; both None
    for the supervisor's own events.
    """

    event_type: str
    component: str
    body: dict[str, Any]
    origin: str = "observed"
    span_id: str | None = None
    parent_span_id: str | None = None
    producer: str | None = None
    producer_seq: int | None = None


def build_envelope(
    event: Event, *, session_id: str, seq: int, prev_hash: str, ts: int, mono_us: int
) -> dict[str, Any]:
    """The object of a line, keys in canonical order.

    `ts` is microseconds since the epoch, `mono_us` CLOCK_BOOTTIME in microseconds,
    `prev_hash` the hex SHA-256 of the line before (`GENESIS` at seq 0).
    """
    obj: dict[str, Any] = {
        "body": event.body,
        "component": event.component,
        "event_type": event.event_type,
        "mono_us": mono_us,
        "origin": event.origin,
    }
    if event.parent_span_id is not None:
        obj["parent_span_id"] = event.parent_span_id
    obj["prev_hash"] = prev_hash
    if event.producer is not None:
        obj["producer"] = event.producer
        obj["producer_seq"] = event.producer_seq
    obj["seq"] = seq
    obj["session_id"] = session_id
    if event.span_id is not None:
        obj["span_id"] = event.span_id
    obj["ts"] = format_ts(ts)
    obj["v"] = VERSION
    return obj


def check_envelope(obj: dict[str, Any]) -> str | None:
    """Refuse an object that is no envelope of version 1. Returns a warning, or None.

    The only warning is an event type that this version does not know. Raises TraceCorrupt
    (code `envelope_key`, `envelope_type` or `envelope_value`), and TraceVersionError for a
    `v` that this version cannot read; `v` is looked at first.
    """
    version = obj.get("v")
    if type(version) is not int:
        _wrong("v", "an integer", version, "envelope_type" if "v" in obj else "envelope_key")
    if version != VERSION:
        if version < VERSION:
            _wrong("v", f"{VERSION} or more", version)
        raise TraceVersionError(
            f"the trace has version {version}, made by a newer version of substrate; "
            f"this one reads version {VERSION}",
            hint="read it with the version of substrate that made it, or a newer one",
            code="version",
        )
    shape = tuple(obj)
    if shape not in _shapes:
        _check_keys(shape)
    _check_count("seq", obj["seq"])
    _check_count("mono_us", obj["mono_us"])
    if not is_session_id(obj["session_id"]):
        _wrong("session_id", "ses_ and a UUIDv7", obj["session_id"])
    if not is_hash(obj["prev_hash"]):
        _wrong("prev_hash", "64 lower-case hex digits", obj["prev_hash"])
    ts = obj["ts"]
    if type(ts) is not str:
        _wrong("ts", "a string", ts, "envelope_type")
    try:
        parse_ts(ts)
    except ValueError as problem:
        raise TraceCorrupt(f"ts: {problem}", code="envelope_value") from problem
    if type(obj["body"]) is not dict:
        _wrong("body", "an object", obj["body"], "envelope_type")
    _check_word("component", obj["component"], COMPONENTS)
    _check_word("origin", obj["origin"], ORIGINS)
    for key in ("span_id", "parent_span_id"):
        if key in obj and not is_span_id(obj[key]):
            _wrong(key, "spn_ and a UUIDv7", obj[key])
    if "producer" in obj:
        if type(obj["producer"]) is not str or not obj["producer"]:
            _wrong("producer", "a name", obj["producer"])
        _check_count("producer_seq", obj["producer_seq"])
    event_type = obj["event_type"]
    if type(event_type) is str and event_type in EVENT_TYPES:
        return None
    if not is_name(event_type):
        _wrong("event_type", "a word of a-z, 0-9 and _", event_type)
    return f"unknown event type {event_type}"


#: the keys, in their order, of envelopes found right: canonical lines have eight such tuples
_shapes: set[tuple[str, ...]] = set()
_SHAPES_MOST = 64


def _check_keys(shape: tuple[str, ...]) -> None:
    keys = frozenset(shape)
    if not _REQUIRED <= keys <= _ALLOWED:
        raise TraceCorrupt(
            f"the envelope has unknown keys {sorted(keys - _ALLOWED)!r:.200} "
            f"and lacks {sorted(_REQUIRED - keys)!r}",
            code="envelope_key",
        )
    if ("producer" in keys) != ("producer_seq" in keys):
        raise TraceCorrupt("producer and producer_seq stand only together", code="envelope_key")
    if len(_shapes) < _SHAPES_MOST:
        _shapes.add(shape)


def is_name(text: object) -> bool:
    """True for `^[a-z][a-z0-9_]*$`, the form of envelope keys and event types."""
    return type(text) is str and text[:1] in _NAME_START and _NAME.issuperset(text)


def is_hash(text: object) -> bool:
    """True for 64 lower-case hexadecimal digits."""
    return type(text) is str and len(text) == 64 and not text.strip(_HEX)


def _check_count(key: str, number: Any) -> None:
    if type(number) is not int:
        _wrong(key, "an integer", number, "envelope_type")
    if not 0 <= number <= MAX_INT:
        _wrong(key, "0 to 2^53-1", number)


def _check_word(key: str, word: Any, words: frozenset[str]) -> None:
    if type(word) is not str:
        _wrong(key, "a string", word, "envelope_type")
    if word not in words:
        _wrong(key, f"one of {', '.join(sorted(words))}", word)


def _wrong(key: str, expected: str, got: object, code: str = "envelope_value") -> NoReturn:
    raise TraceCorrupt(f"{key}: expected {expected}, got {got!r:.80}", code=code)
