"""The standalone verifier: does the trace of a session hold, and what does it prove?

What it is: ONE file that needs nothing but Python >= 3.11. Copy it anywhere and run
`python3 verifier.py [OPTIONS] SESSION_DIRECTORY|trace.jsonl`; it is also what
`substrate trace verify` runs. It implements trace.md §2 and §5-§9 a second time, on
purpose: it shares no line with the code that writes traces.
What it is not: it repairs nothing, writes nothing beside the trace and contacts nobody.
Signatures, notes and the registry (§8) are not checked by this version, so it never
names a class above NON_AUTHORITATIVE_EVIDENCE.

Theory of operation
-------------------
A trace is a file of lines. Each line is the RFC 8785 form of one object that names the
SHA-256 of the line before it, so whoever knows the hash of the last line (the
*fingerprint*) knows all of them. Five parts look at it, each knows only its own business:

  files    (§1, §5)  open, never follow, never block, never write; give chunks of bytes
  Chain    (§2)      bytes of one line -> one event, or `Refused`: canonical form, envelope,
                     session, seq, prev_hash. Pure.
  Merkle   (§8)      leaf hashes -> root, keeping one hash for each bit of the count. Pure.
  Story    (§4, §6)  events -> what the session says of itself: start, end, seal, drops,
                     gaps, open spans, blob references, redactions. Pure.
  Pack     (§6)      the contents: every record is hashed once and its commitment put into a
                     table on disk, then each reference of a line is looked up there

and `evidence_class` (§7) turns the facts into a class. Order matters: `durable` and the
sizes are read first, then the pack, then the trace up to the size it had in the
beginning. A writer makes a blob durable before the line that names it, and `durable`
never leads, so a session that is being written never fails falsely: it is *verified so
far*. Bytes after the last newline belong to a line that is still being written if the
writer holds the lock; otherwise the line is torn, and the file is unusable (exit 3)
until the supervisor has recovered it (§5).

The chain ends at the first line that does not hold: what follows proves nothing.
Blob failures are collected, since each is a fact of its own.

Memory is constant, plus one entry per redaction, missing blob, open span and producer.
A line is refused once it is longer than 1 MiB, before it is whole.

The fast path of `Chain` does not build the envelope: behind `body`, a canonical line has
only scalars in a fixed order, so ONE regular expression decides whether that part is
canonical and well-formed, and only the body is parsed and written again. Whatever the
expression does not match goes to the slow path, which parses the whole line and says
exactly what is wrong. `--fast` leaves the bodies of common events unparsed.

Exit status (§9): 0 verified; 1 integrity failed; 2 usage; 3 input unusable; 4 verified,
but below `--require`, or with warnings under `--strict`. Never a traceback.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import hashlib
import hmac
import json
import json.encoder
import os
import re
import stat
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

SCHEMA = "substrate/verdict/1"
VERSION = 1

# --- Limits (§2) ----------------------------------------------------------------------------

MAX_LINE_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_STRING_BYTES = 256 << 10
MAX_INT = 2**53 - 1
CHUNK_BYTES = 1 << 16
#: how many findings of one kind are listed one by one; all are counted
MAX_LISTED = 20

GENESIS = "0" * 64

# --- Findings -------------------------------------------------------------------------------

#: Codes that say "this cannot be judged" (exit 3) rather than "this does not hold" (exit 1).
UNUSABLE = frozenset({"E_EMPTY", "E_UNREADABLE", "E_TORN", "E_VERSION"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One error or warning. `seq` and `offset` (bytes) are of its first place in `file`."""

    code: str
    message: str
    seq: int | None = None
    offset: int | None = None
    file: str = "trace.jsonl"
    count: int = 1


class Refused(Exception):
    """A line, or a file, is not accepted. Carries the stable code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Warnings:
    """Warnings by code: the first place and a count of each, so memory is constant."""

    def __init__(self) -> None:
        self._by_code: dict[str, Finding] = {}

    def add(
        self,
        code: str,
        message: str,
        seq: int | None = None,
        offset: int | None = None,
        file: str = "trace.jsonl",
        count: int = 1,
    ) -> None:
        first = self._by_code.get(code)
        if first is not None:
            message, seq, offset, file = first.message, first.seq, first.offset, first.file
            count += first.count
        self._by_code[code] = Finding(
            code=code, message=message, seq=seq, offset=offset, file=file, count=count
        )

    def all(self) -> tuple[Finding, ...]:
        return tuple(self._by_code.values())


# --- §2 Canonical JSON: the profile of a line -----------------------------------------------


def _no_float(token: str) -> NoReturn:
    raise Refused("E_NON_CANONICAL", f"a trace holds no floats: {token[:32]}")


def _no_constant(token: str) -> NoReturn:
    raise Refused("E_JSON", f"{token} is not JSON")


def _safe_int(token: str) -> int:
    # 17 characters are a sign and 16 digits: int() of a million digits takes quadratic time.
    if len(token) <= 17 and -MAX_INT <= (number := int(token)) <= MAX_INT:
        return number
    raise Refused("E_NON_CANONICAL", "an integer lies outside ±(2^53-1)")


_decode_fast = json.JSONDecoder(parse_float=_no_float, parse_constant=_no_constant).raw_decode
_decode_ints = json.JSONDecoder(
    parse_float=_no_float, parse_constant=_no_constant, parse_int=_safe_int
).raw_decode

_ALL_DIGITS_ZERO = bytes(48 if 48 <= byte < 58 else byte for byte in range(256))
_SIXTEEN_DIGITS = b"0" * 16
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_OPENING = bytes(byte for byte in range(256) if byte not in b"[{")
_SQUARE = bytes.maketrans(b"{}", b"[]")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
#: A token of RFC 8259 and the white space before it. Groups: a bracket, comma or colon; a string,
#: whose escapes are not looked at: a possessive group that has to try alternatives matches
#: wrongly in the first releases of Python 3.11 (gh-106052).
_token_at = re.compile(
    r"[ \t\n\r]*+(?:([\[\]{},:])"
    r'|("[^"\\\x00-\x1f]*+(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*+)*+")'
    r"|true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)"
).match
_without_escapes = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})').sub
#: what a value begins with: `"` stands for every string, `0` for every other scalar
_VALUE = '[{"0'


def parse(raw: bytes, text: str, max_depth: int = MAX_DEPTH) -> Any:
    """The JSON value that is exactly `text`, of which `raw` is the UTF-8 form.

    Integers within ±(2^53-1), no floats, at most `max_depth` containers inside one another.
    Duplicate keys and spelling are left to the comparison with `canonical_text`.
    Raises Refused: E_JSON, E_DEPTH, E_NON_CANONICAL, for what is met first in parsing; which
    code the line is given, `check_form` says.
    """
    if len(raw.translate(None, _OPENING)) > max_depth:
        _check_depth(raw, max_depth)
    # Below 16 digits in a row no integer can be too large; the rest is looked at one by one.
    decode = _decode_ints if _SIXTEEN_DIGITS in raw.translate(_ALL_DIGITS_ZERO) else _decode_fast
    try:
        value, end = decode(text)
    except json.JSONDecodeError as problem:
        raise Refused("E_JSON", f"not JSON: {problem.msg} at character {problem.pos}") from None
    if end != len(text):
        raise Refused("E_JSON", f"not JSON: more text after the value, at character {end}")
    return value


def _check_depth(raw: bytes, max_depth: int) -> None:
    """Count the nesting before the parser recurses: with the strings taken out, each round
    removes the innermost pairs, so `max_depth` rounds must leave nothing."""
    left = _STRING.sub(b"", raw).translate(_SQUARE, _NO_BRACKETS)
    for _ in range(max_depth):
        left = left.replace(b"[]", b"")
        if not left:
            return
    raise Refused("E_DEPTH", f"nested deeper than {max_depth}, or the brackets do not match")


def check_form(text: str) -> None:
    """Is `text` one JSON value (RFC 8259), with nothing around it, and not too deep?

    Only asked of a line that was refused: it reads from the left, token by token, so that of
    several faults the first is named. Raises Refused: E_JSON, E_DEPTH.
    """
    closers, at = "", 0
    expected = "" if text[:1].isspace() else _VALUE
    while True:
        token = _token_at(text, at)
        kind = "" if token is None else token[1] or (token[2] and '"') or "0"
        if (
            token is None
            or kind not in expected
            or (kind == '"' and "\\" in _without_escapes("", token[2]))
        ):
            raise Refused("E_JSON", f"not JSON from character {at} on")
        at = token.end()
        if kind in "[{":
            if len(closers) == MAX_DEPTH:
                raise Refused("E_DEPTH", f"nested deeper than {MAX_DEPTH}")
            closers += "]" if kind == "[" else "}"
            expected = _VALUE + "]" if kind == "[" else '"}'
        elif kind == ":":
            expected = _VALUE
        elif kind == ",":
            expected = _VALUE if closers[-1] == "]" else '"'
        elif kind == '"' and expected in ('"', '"}'):  # a key
            expected = ":"
        else:  # the end of a value
            closers = closers[:-1] if kind in "]}" else closers
            if not closers:
                break
            expected = "," + closers[-1]
    if at < len(text):
        raise Refused("E_JSON", f"not JSON: more text after the value, at character {at}")


#: The standard library's own string escaper is RFC 8785 §3.2.2.2: `\b \t \n \f \r \" \\` in
#: two characters, other controls as lower-case \u00xx, everything else as it is.
_escape: Callable[[str], str] = json.encoder.encode_basestring


def _compact_encoder() -> Callable[[Any, int], Sequence[str]]:
    """The C encoder that JSONEncoder.encode makes anew at each call, made once."""
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # an interpreter without the C module
        encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode
        return lambda value, _indent: [encode(value)]
    pieces: Callable[[Any, int], Sequence[str]] = make(
        None, None, _escape, None, ":", ",", True, False, False
    )
    return pieces


_pieces = _compact_encoder()


def canonical_text(value: Any, beyond: bool) -> str:
    """The RFC 8785 form of a parsed value without floats.

    The C encoder sorts keys by code point. RFC 8785 §3.2.3 sorts by UTF-16 code unit, which
    differs only if a key holds a character from U+E000 on. `beyond`: the text holds one.
    """
    if beyond and _has_high_key(value):
        return _sorted_by_utf16(value)
    return "".join(_pieces(value, 0))


def _has_high_key(value: Any) -> bool:
    if type(value) is dict:
        return any(max(key, default="") >= "\ue000" for key in value) or any(
            _has_high_key(item) for item in value.values()
        )
    return type(value) is list and any(_has_high_key(item) for item in value)


def _sorted_by_utf16(value: Any) -> str:
    """Recursion is bounded: `parse` has refused what is deeper than 32."""
    if type(value) is dict:
        keys = sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join(f"{_escape(k)}:{_sorted_by_utf16(value[k])}" for k in keys) + "}"
    if type(value) is list:
        return "[" + ",".join(map(_sorted_by_utf16, value)) + "]"
    return "".join(_pieces(value, 0))


def parse_canonical(raw: bytes, text: str, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """The object of `text` if `text` is its canonical form. Raises Refused."""
    value = parse(raw, text, max_depth)
    if text.isascii():
        canonical = "".join(_pieces(value, 0))
    else:
        canonical = canonical_text(value, beyond=max(text) >= "\ue000")
    if canonical != text:
        raise Refused(
            "E_NON_CANONICAL",
            "not the RFC 8785 form: duplicate or unsorted keys, white space, escapes or numbers",
        )
    if len(raw) > MAX_STRING_BYTES:
        _check_strings(value)
    if type(value) is not dict:
        raise Refused("E_ENVELOPE", "the line is not an object")
    return value


def _check_strings(value: Any) -> None:
    if type(value) is str:
        if len(value) * 4 > MAX_STRING_BYTES and len(value.encode()) > MAX_STRING_BYTES:
            raise Refused("E_LINE_TOO_LONG", f"a string of more than {MAX_STRING_BYTES} bytes")
    elif type(value) is dict:
        for key, item in value.items():
            _check_strings(key)
            _check_strings(item)
    elif type(value) is list:
        for item in value:
            _check_strings(item)


# --- §2 The envelope ------------------------------------------------------------------------

COMPONENTS = frozenset(
    ("shell", "shim", "world", "capture", "broker", "agent_api", "sdk", "replay", "authority")
)
ORIGINS = frozenset({"observed", "reported", "imported"})
REQUIRED_KEYS = frozenset(
    (
        *("body", "component", "event_type", "mono_us", "origin"),
        *("prev_hash", "seq", "session_id", "ts", "v"),
    )
)
OPTIONAL_KEYS = frozenset({"parent_span_id", "producer", "producer_seq", "span_id"})

_UUID7 = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
#: at most 15 digits, so below 2^53; what is longer takes the slow path
_INT = r"(?:0|[1-9][0-9]{0,14})"
_NAME = r"[a-z][a-z0-9_]*"
_is_session_id = re.compile(f"ses_{_UUID7}").fullmatch
_is_span_id = re.compile(f"spn_{_UUID7}").fullmatch
_is_hash = re.compile("[0-9a-f]{64}").fullmatch
_is_name = re.compile(_NAME).fullmatch
_is_time = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{6}Z"
).fullmatch

#: What `Chain.accept` gives: event_type, component, origin, span_id, producer, producer_seq,
#: ts, body. `body` is None where `--fast` did not parse it.
Event = tuple[str, str, str, str | None, str | None, int | None, str, dict[str, Any] | None]

#: Types whose body the verdict depends on; `--fast` parses these.
TELLING_TYPES = frozenset(
    (
        *("session_start", "session_end", "coverage", "log_drop", "gap", "recovery"),
        *("key_epoch", "redaction", "chain_seal"),
    )
)


def envelope_pattern(session_id: str) -> re.Pattern[str]:
    """Everything behind `body` in a canonical line of this session, in canonical order.

    `producer` with an escape in it is left to the slow path, the seconds of `ts` to
    `is_time`.
    """
    return re.compile(
        rf',"component":"({"|".join(sorted(COMPONENTS))})","event_type":"({_NAME})"'
        rf',"mono_us":{_INT},"origin":"(observed|reported|imported)"'
        rf'(?:,"parent_span_id":"spn_{_UUID7}")?,"prev_hash":"([0-9a-f]{{64}})"'
        rf'(?:,"producer":"([^"\\\x00-\x1f]+)","producer_seq":({_INT}))?'
        rf',"seq":({_INT}),"session_id":"{session_id}"(?:,"span_id":"(spn_{_UUID7})")?'
        rf',"ts":"([0-9T:-]{{19}}\.[0-9]{{6}}Z)","v":1\}}'
    )


def check_envelope(obj: dict[str, Any]) -> None:
    """The rules of the table in §2 for one parsed line. Raises Refused."""
    version = obj.get("v")
    if type(version) is int and version > VERSION:
        raise Refused("E_VERSION", f"version {version}: made by a newer version of the format")
    if missing := REQUIRED_KEYS - obj.keys():
        raise Refused("E_ENVELOPE", f"missing {', '.join(sorted(missing))}")
    if unknown := obj.keys() - REQUIRED_KEYS - OPTIONAL_KEYS:
        raise Refused("E_ENVELOPE", f"unknown key {min(unknown)[:64]!r}")
    for key, right, wanted in (
        ("v", version is not True and version == VERSION, "1"),
        ("session_id", _matches(_is_session_id, obj["session_id"]), "ses_ + UUIDv7"),
        ("seq", _is_count(obj["seq"]), "a count"),
        ("prev_hash", _matches(_is_hash, obj["prev_hash"]), "64 hex digits"),
        ("ts", _matches(is_time, obj["ts"]), "a time as RFC 3339 UTC with 6 decimals"),
        ("mono_us", _is_count(obj["mono_us"]), "microseconds"),
        ("event_type", _matches(_is_name, obj["event_type"]), "a name"),
        ("component", _is_one_of(COMPONENTS, obj["component"]), "a component of §2"),
        ("origin", _is_one_of(ORIGINS, obj["origin"]), "an origin of §2"),
        ("body", type(obj["body"]) is dict, "an object"),
    ):
        if not right:
            raise Refused("E_ENVELOPE", f"{key} is not {wanted}")
    for key in ("span_id", "parent_span_id"):
        if key in obj and not _matches(_is_span_id, obj[key]):
            raise Refused("E_ENVELOPE", f"{key} is not spn_ + UUIDv7")
    if ("producer" in obj) != ("producer_seq" in obj):
        raise Refused("E_ENVELOPE", "producer and producer_seq go together")
    if "producer" in obj:
        producer = obj["producer"]
        if type(producer) is not str or not producer:
            raise Refused("E_ENVELOPE", "producer is not a name")
        if not _is_count(obj["producer_seq"]):
            raise Refused("E_ENVELOPE", "producer_seq is not a count")


def is_time(text: str) -> bool:
    """RFC 3339 in the one form of §2, on a day that the calendar has. No leap seconds."""
    if _is_time(text) is None:
        return False
    try:
        datetime.date.fromisoformat(text[:10])
    except ValueError:
        return False
    return True


def _matches(test: Callable[[str], re.Match[str] | bool | None], value: Any) -> bool:
    return type(value) is str and bool(test(value))


def _is_count(value: Any) -> bool:
    """bool is an int in Python, not in JSON."""
    return type(value) is int and value >= 0


def _is_one_of(names: frozenset[str], value: Any) -> bool:
    return type(value) is str and value in names


# --- §2 The chain ---------------------------------------------------------------------------


class Chain:
    """Lines in, events out; the first line that does not follow is Refused. No I/O.

    `seq` and `offset` are those of the next line, `head` the hash of the last accepted one.
    After a Refused the chain stands where it stood: `seq` and `offset` name the culprit.
    """

    def __init__(
        self, *, genesis: str = GENESIS, session_id: str | None = None, full: bool = True
    ) -> None:
        self.seq = 0
        self.offset = 0
        self.head = genesis
        self.session_id = session_id
        self._full = full
        self._match = envelope_pattern(session_id).fullmatch if session_id else None
        #: the second that was checked last: many events share it
        self._second = ""

    def accept(self, line: bytes) -> Event:
        """Check one line (without its newline) and go on to the next. Raises Refused."""
        if len(line) > MAX_LINE_BYTES:
            raise Refused("E_LINE_TOO_LONG", f"longer than {MAX_LINE_BYTES} bytes")
        try:
            text = line.decode()
        except UnicodeDecodeError as problem:
            raise Refused(
                "E_UTF8", f"not UTF-8: {problem.reason} at byte {problem.start}"
            ) from None
        at = text.rfind(',"component":"')
        found = self._match(text, at) if self._match is not None and at > 0 else None
        # A tail of so many characters holds a producer that may be too long a string.
        if (
            found is None
            or not text.startswith('{"body":{')
            or len(text) - at > MAX_STRING_BYTES // 4
        ):
            event, seq, prev_hash = self._accept_slowly(line, text)
        else:
            component, kind, origin, prev_hash, producer, pseq, digits, span, ts = found.groups()
            body = None
            try:
                if ts[:19] != self._second:
                    if not is_time(ts):
                        raise Refused("E_ENVELOPE", f"ts is no time: {ts}")
                    self._second = ts[:19]
                if self._full or kind in TELLING_TYPES:
                    part = text[8:at]
                    raw = line[8:at] if len(line) == len(text) else part.encode()
                    body = parse_canonical(raw, part, MAX_DEPTH - 1)
            except Refused:
                # Which fault of the line comes first, only the line as a whole can tell.
                self._accept_slowly(line, text)
                raise
            seq = int(digits)
            producer_seq = None if pseq is None else int(pseq)
            event = (kind, component, origin, span, producer, producer_seq, ts, body)
        if seq != self.seq:
            raise Refused("E_SEQ", f"expected seq {self.seq}, got {seq}")
        if prev_hash != self.head:
            raise Refused(
                "E_PREV_HASH",
                f"expected prev_hash {self.head}, got {prev_hash}: the line before it, or this "
                "one, is not what was written",
            )
        self.head = hashlib.sha256(line).hexdigest()
        self.seq += 1
        self.offset += len(line) + 1
        return event

    def _accept_slowly(self, line: bytes, text: str) -> tuple[Event, int, str]:
        """The specification of `accept`: parse all of it, compare all of it."""
        try:
            obj = parse_canonical(line, text)
        except Refused:
            check_form(text)
            raise
        check_envelope(obj)
        session_id = obj["session_id"]
        if self.session_id is None:
            self.session_id = session_id
            self._match = envelope_pattern(session_id).fullmatch
        elif session_id != self.session_id:
            raise Refused("E_SESSION", f"a line of {session_id} in a trace of {self.session_id}")
        event = (
            obj["event_type"],
            obj["component"],
            obj["origin"],
            obj.get("span_id"),
            obj.get("producer"),
            obj.get("producer_seq"),
            obj["ts"],
            obj["body"],
        )
        return event, obj["seq"], obj["prev_hash"]


# --- §8 The Merkle tree (RFC 6962 §2.1) -----------------------------------------------------


class Merkle:
    """The root over all leaves so far, from one pending node for each bit of their count."""

    def __init__(self) -> None:
        self.count = 0
        self._pending: list[bytes | None] = []

    def extend(self, lines: Sequence[bytes]) -> None:
        """Add the leaves of these lines, SHA-256(0x00 || line), and pair them up, level by
        level; the odd one of a level waits for its right sibling."""
        sha256 = hashlib.sha256
        nodes = [sha256(b"\0" + line).digest() for line in lines]
        self.count += len(nodes)
        level = 0
        while nodes:
            if level == len(self._pending):
                self._pending.append(None)
            waiting = self._pending[level]
            if waiting is not None:
                nodes.insert(0, waiting)
            self._pending[level] = nodes.pop() if len(nodes) & 1 else None
            pairs = iter(nodes)
            nodes = [
                sha256(b"\1" + left + right).digest()
                for left, right in zip(pairs, pairs, strict=True)
            ]
            level += 1

    def root(self) -> str:
        """The root in hex; SHA-256 of nothing for no leaf."""
        root: bytes | None = None
        for node in self._pending:
            if node is not None:
                root = node if root is None else hashlib.sha256(b"\1" + node + root).digest()
        return (hashlib.sha256().digest() if root is None else root).hex()


# --- §4, §6 What the events say of the session ----------------------------------------------

KNOWN_TYPES = frozenset(
    (
        *("session_start", "session_end", "world_start", "layer_cut", "squash", "snapshot"),
        *("rollback", "undo", "fork", "gc", "policy_loaded", "command_start", "command_end"),
        *("process_fork", "process_start", "process_exit", "file_batch", "syscall_batch"),
        *("net_connect", "net_listen", "net_accept", "dns_query", "net_close"),
        *("policy_decision", "fs_diff", "fs_apply", "fs_discard", "input_manifest", "coverage"),
        *("budget", "bypass", "tool_call", "tool_result", "llm_call", "llm_response"),
        *("agent_decision", "annotation", "error", "replay_start", "replay_result"),
        "terminal_recording",
        *("log_drop", "gap", "recovery", "key_epoch", "redaction", "chain_seal"),
    )
)
#: Written by the supervisor or the authority only; a client that sends one is refused (§4).
RESERVED_TYPES = frozenset({"log_drop", "gap", "recovery", "key_epoch", "redaction", "chain_seal"})
_CLIENT_COMPONENTS = frozenset({"shim", "sdk"})

#: looks a reference up: (commitment, size, encoding, seq, offset)
Lookup = Callable[[str, int, str, int, int], None]


class Story:
    """Events in, facts out. Pure; `lookup` is told of each blob reference."""

    def __init__(self, warnings: Warnings, lookup: Lookup | None = None) -> None:
        self._warnings = warnings
        self._lookup = lookup
        self.started = False
        self.ended = False
        self.sealed = False
        self.drops = 0
        self.gaps = 0
        self.lossy_recoveries = 0
        self.recoveries = 0
        self.key_epochs = 0
        self.all_imported = True
        self.coverage_events = 0
        self.coverage_lost = 0
        self.capture: dict[str, Any] = {}
        self.open_spans: dict[str, tuple[int, int]] = {}
        self.producers: dict[str, int] = {}
        self.redactions: set[str] = set()
        self._ts = ""
        self._handlers: dict[str, Callable[[dict[str, Any], int, int], None]] = {
            "session_start": self._session_start,
            "session_end": self._session_end,
            "coverage": self._coverage,
            "log_drop": self._log_drop,
            "gap": self._gap,
            "recovery": self._recovery,
            "key_epoch": self._key_epoch,
            "redaction": self._redaction,
        }

    def tell(self, event: Event, seq: int, offset: int) -> None:
        """Take in the event of the line `seq` at byte `offset`. Raises Refused."""
        kind, component, origin, span, producer, producer_seq, ts, body = event
        if kind not in KNOWN_TYPES:
            self._warnings.add("W_UNKNOWN_EVENT", f"unknown event type {kind[:64]}", seq, offset)
        elif kind in RESERVED_TYPES and (
            producer is not None or origin != "observed" or component in _CLIENT_COMPONENTS
        ):
            raise Refused("E_RESERVED", f"{kind} was handed over by a client, which may not")
        if origin != "imported":
            self.all_imported = False
        if ts < self._ts:
            self._warnings.add("W_CLOCK_BACK", f"{ts} follows {self._ts}", seq, offset)
        self._ts = ts
        if producer is not None and producer_seq is not None:
            self._count_producer(producer, producer_seq, seq, offset)
        if span is not None:
            if kind == "command_start":
                self.open_spans[span] = (seq, offset)
            elif kind == "command_end" and self.open_spans.pop(span, None) is None:
                self._end_without_start(seq, offset)
        elif kind == "command_end":
            self._end_without_start(seq, offset)
        if body is not None:
            handler = self._handlers.get(kind)
            if handler is not None:
                handler(body, seq, offset)

    def tell_references(self, body: Any, seq: int, offset: int) -> None:
        """Look up each blob reference in `body`: an object of exactly the four fields of §6."""
        if self._lookup is None:
            return
        if type(body) is dict:
            commitment = body.get("commitment")
            if commitment is not None and body.keys() == _REFERENCE_KEYS:
                size = body["size"]
                if not _matches(_is_hash, commitment) or not _is_count(size):
                    raise Refused("E_BLOB_DAMAGED", "a malformed blob reference")
                self._lookup(commitment, size, str(body["encoding"]), seq, offset)
                return
            body = list(body.values())
        if type(body) is list:
            for item in body:
                if type(item) is dict or type(item) is list:
                    self.tell_references(item, seq, offset)

    def _end_without_start(self, seq: int, offset: int) -> None:
        self._warnings.add("W_END_WITHOUT_START", "command_end without its start", seq, offset)

    def _count_producer(self, producer: str, producer_seq: int, seq: int, offset: int) -> None:
        expected = self.producers.get(producer)
        if expected is not None and producer_seq != expected:
            self._warnings.add(
                "W_PRODUCER_JUMP",
                f"a producer's counter is {producer_seq}, not {expected}, and no gap says why",
                seq,
                offset,
            )
        self.producers[producer] = producer_seq + 1

    def _session_start(self, body: dict[str, Any], seq: int, _offset: int) -> None:
        if seq == 0:
            self.started = True
            capture = body.get("capture")
            self.capture = capture if type(capture) is dict else {}

    def _session_end(self, body: dict[str, Any], seq: int, offset: int) -> None:
        self.ended = True
        drops = body.get("drops")
        if type(drops) is int and drops != self.drops:
            self._warnings.add(
                "W_END_COUNTS", f"session_end counts {drops} drops, not {self.drops}", seq, offset
            )

    def _coverage(self, body: dict[str, Any], _seq: int, _offset: int) -> None:
        self.coverage_events += 1
        lost = body.get("lost")
        if type(lost) is int:
            self.coverage_lost += lost

    def _log_drop(self, body: dict[str, Any], seq: int, offset: int) -> None:
        count, cumulative = body.get("count"), body.get("cumulative")
        if type(count) is not int or type(cumulative) is not int or count < 0:
            raise Refused("E_LOG_DROP", "log_drop without count and cumulative")
        if cumulative != self.drops + count:
            raise Refused(
                "E_LOG_DROP", f"expected cumulative {self.drops + count}, got {cumulative}"
            )
        self.drops = cumulative
        self._warnings.add("W_DROP", "events were dropped", seq, offset)
        ranges = body.get("per_producer")
        for lost in ranges if type(ranges) is list else ():
            self._account_for(lost)

    def _account_for(self, lost: Any) -> None:
        """`{producer, from, to}`: these counters are accounted for and are no jump."""
        if type(lost) is dict and type(lost.get("producer")) is str and type(lost.get("to")) is int:
            self.producers[lost["producer"]] = lost["to"] + 1

    def _gap(self, body: dict[str, Any], seq: int, offset: int) -> None:
        self.gaps += 1
        self._account_for(body)
        self._warnings.add("W_GAP", "a producer's events are not there", seq, offset)

    def _recovery(self, body: dict[str, Any], seq: int, offset: int) -> None:
        self.recoveries += 1
        if body.get("acknowledged_lost") != "no":
            self.lossy_recoveries += 1
            self._warnings.add(
                "W_RECOVERY", "recovered; acknowledged events may be lost", seq, offset
            )

    def _key_epoch(self, _body: dict[str, Any], _seq: int, _offset: int) -> None:
        self.key_epochs += 1

    def _redaction(self, body: dict[str, Any], _seq: int, _offset: int) -> None:
        self.redactions.update(redacted_commitments(body))

    def check_seal(self, body: dict[str, Any], chain_seq: int, prev_hash: str, root: str) -> None:
        """§4 chain_seal: the count, head and root of the lines before it. Raises Refused."""
        if not self.ended:
            raise Refused("E_SEAL", "chain_seal without a session_end before it")
        for key, is_so in (
            ("count", chain_seq),
            ("head_hash", prev_hash),
            ("root", root),
            ("drops", self.drops),
        ):
            says = body.get(key)
            if type(says) is not type(is_so) or says != is_so:
                raise Refused("E_SEAL", f"the seal's {key} is {str(says)[:80]!r}, not {is_so!r}")
        self.sealed = True


_REFERENCE_KEYS = frozenset({"commitment", "encoding", "media_type", "size"})


def redacted_commitments(body: dict[str, Any]) -> list[str]:
    """What a `redaction` names: `commitments`, or one `commitment`. Raises Refused.

    Only blobs can be redacted: no line ever changes (§6), so naming a line is refused.
    """
    if named := body.keys() & {"seq", "seqs", "event_hash"}:
        raise Refused("E_REDACTION", f"a redaction names a line ({min(named)}), not a blob")
    commitments = body.get("commitments", [])
    if type(commitments) is not list:
        raise Refused("E_REDACTION", "commitments is not a list")
    if "commitment" in body:
        commitments = [*commitments, body["commitment"]]
    if not commitments or not all(_matches(_is_hash, item) for item in commitments):
        raise Refused("E_REDACTION", "a redaction without the commitments that it covers")
    return commitments


# --- §6 The blob pack -----------------------------------------------------------------------

#: magic, state, encoding, zero, size, stored_size, salt, commitment, check
_RECORD = struct.Struct("<4sBBHQQ32s32s8s")
_MAGIC = b"SBB1"
_LIVE, _REDACTED = 1, 2
_ENCODINGS = ("identity", "zlib")
MATCHING, ERASED, DAMAGED = 1, 2, 3


class CommitmentTable:
    """commitment -> (state, encoding, size), open addressing in an unnamed temporary file.

    Slots are found by a hash under a random key, so that a made-up pack cannot collide them.
    """

    _SLOT = struct.Struct("<32sBB6xQ16x")

    def __init__(self) -> None:
        self._key = os.urandom(16)
        self._count = 0
        self._capacity = 1024
        self._file = self._new_file(self._capacity)

    def _new_file(self, capacity: int) -> Any:
        file = tempfile.TemporaryFile(buffering=0)
        os.ftruncate(file.fileno(), capacity * self._SLOT.size)
        return file

    def close(self) -> None:
        self._file.close()

    def _find(self, commitment: bytes) -> tuple[int, tuple[int, int, int] | None]:
        """(offset of its slot or of the free one, its entry or None)."""
        digest = hashlib.blake2b(commitment, digest_size=8, key=self._key).digest()
        slot = int.from_bytes(digest, "little") % self._capacity
        width = self._SLOT.size
        while True:
            raw = os.pread(self._file.fileno(), width, slot * width)
            found, state, encoding, size = self._SLOT.unpack(raw)
            if state == 0:
                return slot * width, None
            if found == commitment:
                return slot * width, (state, encoding, size)
            slot = (slot + 1) % self._capacity

    def get(self, commitment: bytes) -> tuple[int, int, int] | None:
        return self._find(commitment)[1]

    def put(self, commitment: bytes, state: int, encoding: int, size: int) -> None:
        offset, there = self._find(commitment)
        if there is not None and there[0] == MATCHING:
            return  # one good copy is enough
        row = self._SLOT.pack(commitment, state, encoding, size)
        os.pwrite(self._file.fileno(), row, offset)
        if there is None:
            self._count += 1
            if self._count * 2 > self._capacity:
                self._grow()

    def _grow(self) -> None:
        old, width = self._file, self._SLOT.size
        old_bytes = self._capacity * width
        self._capacity *= 4
        self._file = self._new_file(self._capacity)
        for start in range(0, old_bytes, CHUNK_BYTES):
            block = os.pread(old.fileno(), min(CHUNK_BYTES, old_bytes - start), start)
            for commitment, state, encoding, size in self._SLOT.iter_unpack(block):
                if state:
                    row = self._SLOT.pack(commitment, state, encoding, size)
                    os.pwrite(self._file.fileno(), row, self._find(commitment)[0])
        old.close()


class Pack:
    """The contents of a session, each checked once against its commitment.

    `damage` holds what cannot be read as a record or does not match. What no append finished
    (a crash, or a writer at work) is a warning: a line that names it fails as missing.
    """

    def __init__(self, fd: int, size: int, warnings: Warnings) -> None:
        self._fd = fd
        self._warnings = warnings
        self.table = CommitmentTable()
        self.records = 0
        self.damage: list[Finding] = []
        try:
            self._read_all(size)
        except BaseException:
            self.table.close()
            raise

    def _read_all(self, end: int) -> None:
        offset = 0
        while offset < end:
            raw = os.pread(self._fd, _RECORD.size, offset)
            if len(raw) < _RECORD.size or raw[:4] == bytes(4) or raw[88:] == bytes(8):
                # The header is written last and in one piece (docs/adr/0001).
                self._unfinished(offset, end)
                return
            magic, state, encoding, zero, size, stored, salt, commitment, check = _RECORD.unpack(
                raw
            )
            right = hashlib.sha256(raw[5:24] + commitment).digest()[:8]
            if magic != _MAGIC or check != right or zero or encoding > 1:
                self._damaged(offset, "a damaged record header; what follows cannot be found")
                return
            start = offset + _RECORD.size
            if start + stored > end:
                self._unfinished(offset, end)
                return
            self._read_record(offset, state, encoding, size, stored, salt, commitment)
            self.records += 1
            offset = start + stored

    def _read_record(
        self,
        offset: int,
        state: int,
        encoding: int,
        size: int,
        stored: int,
        salt: bytes,
        commitment: bytes,
    ) -> None:
        start = offset + _RECORD.size
        if state == _REDACTED:
            gone = salt == bytes(32) and all(
                chunk.count(0) == len(chunk) for chunk in self._chunks(start, stored)
            )
            if not gone:
                self._warnings.add(
                    "W_REDACTION_INCOMPLETE",
                    "a redacted record still holds salt or content",
                    None,
                    offset,
                    "blobs",
                )
            self.table.put(commitment, ERASED, encoding, size)
            return
        matching = state == _LIVE
        if matching:
            digest = self._content_digest(start, stored, encoding, size)
            matching = digest is not None and hmac.compare_digest(
                hmac.digest(salt, digest, "sha256"), commitment
            )
        if not matching:
            self._damaged(offset, f"the content does not match its commitment {commitment.hex()}")
        self.table.put(commitment, MATCHING if matching else DAMAGED, encoding, size)

    def _content_digest(self, start: int, stored: int, encoding: int, size: int) -> bytes | None:
        """SHA-256 of the content, None if the stored bytes are not `size` bytes of content.
        A bomb ends at `size`."""
        digest = hashlib.sha256()
        left = size
        unpacker = zlib.decompressobj() if encoding else None
        try:
            for chunk in self._chunks(start, stored):
                while chunk:
                    if unpacker is None:
                        content, chunk = chunk, b""
                    else:
                        if unpacker.eof:
                            return None
                        content = unpacker.decompress(chunk, CHUNK_BYTES)
                        chunk = unpacker.unconsumed_tail or unpacker.unused_data
                    left -= len(content)
                    if left < 0:
                        return None
                    digest.update(content)
            if unpacker is not None:
                while not unpacker.eof:
                    content = unpacker.decompress(b"", CHUNK_BYTES)
                    left -= len(content)
                    if not content or left < 0:
                        return None
                    digest.update(content)
        except zlib.error:
            return None
        return digest.digest() if left == 0 else None

    def _chunks(self, start: int, length: int) -> Iterator[bytes]:
        end = start + length
        while start < end:
            chunk = os.pread(self._fd, min(CHUNK_BYTES, end - start), start)
            if not chunk:
                raise Refused("E_UNREADABLE", "the blob pack became shorter while it was read")
            yield chunk
            start += len(chunk)

    def _unfinished(self, offset: int, end: int) -> None:
        self._warnings.add(
            "W_BLOB_TAIL", f"{end - offset} bytes that no append finished", None, offset, "blobs"
        )

    def _damaged(self, offset: int, message: str) -> None:
        if len(self.damage) < MAX_LISTED:
            self.damage.append(
                Finding(code="E_BLOB_DAMAGED", message=message, offset=offset, file="blobs")
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobCounts:
    """References in lines by the state of what they name; records in the pack."""

    checked: bool
    why_not: str | None = None
    matching: int = 0
    redacted: int = 0
    missing: int = 0
    damaged: int = 0
    records: int = 0


class Blobs:
    """Looks references up while the trace is read, and settles the rest at its end."""

    def __init__(self, pack: Pack | None) -> None:
        self._table = pack.table if pack is not None else None
        self._matching = 0
        self._damaged = 0
        self.errors: list[Finding] = []
        #: commitment -> [seq and offset of the first reference, references, live in the pack]
        self._absent: dict[str, list[int]] = {}

    def lookup(self, commitment: str, size: int, encoding: str, seq: int, offset: int) -> None:
        entry = None if self._table is None else self._table.get(bytes.fromhex(commitment))
        if entry is None or entry[0] == ERASED:
            # A redaction may follow, in this file or in the amendments.
            self._absent.setdefault(commitment, [seq, offset, 0])[2] += 1
            return
        state, stored_encoding, stored_size = entry
        if state == DAMAGED or (size, encoding) != (stored_size, _ENCODINGS[stored_encoding]):
            self._damaged += 1
            what = "is damaged" if state == DAMAGED else "has another size or encoding"
            self._note("E_BLOB_DAMAGED", f"the blob {commitment} {what}", seq, offset)
        else:
            self._matching += 1

    def _note(self, code: str, message: str, seq: int, offset: int) -> None:
        if len(self.errors) < MAX_LISTED:
            self.errors.append(Finding(code=code, message=message, seq=seq, offset=offset))

    def settle(self, redacted: set[str], pack: Pack | None) -> BlobCounts:
        """What is absent must have been redacted; the rest is missing."""
        gone = missing = 0
        for commitment, (seq, offset, references) in self._absent.items():
            if commitment in redacted:
                gone += references
            else:
                missing += references
                self._note(
                    "E_BLOB_MISSING",
                    f"the blob {commitment} is not there, and no redaction names it",
                    seq,
                    offset,
                )
        return BlobCounts(
            checked=True,
            matching=self._matching,
            redacted=gone,
            missing=missing,
            damaged=self._damaged,
            records=pack.records if pack is not None else 0,
        )


# --- §7 Evidence classes --------------------------------------------------------------------

NON_AUTHORITATIVE = "NON_AUTHORITATIVE_EVIDENCE"
PARTIAL_AUTHORITATIVE = "PARTIAL_AUTHORITATIVE_EVIDENCE"
AUTHORITATIVE = "AUTHORITATIVE_EVIDENCE"
CLASSES = (NON_AUTHORITATIVE, PARTIAL_AUTHORITATIVE, AUTHORITATIVE)

#: Who vouches, according to the verifier's own trust configuration. "none": no signature, or
#: an unknown, self-signed, HMAC or revoked key. "local": a key of the same user. "notes": a
#: pinned authority signed notes, not the seal. "seal": it signed the seal.
SIGNATURES = ("none", "local", "notes", "seal")
WITNESSES = ("not_required", "missing", "met")


def evidence_class(
    *,
    integrity: bool,
    signature: str,
    seal_matches: bool,
    complete: bool,
    all_imported: bool,
    witness: str,
    reject_local_authority: bool = False,
) -> str | None:
    """The table of §7. None: there is no class, the integrity fails.

    Today `signature` is always "none": this version checks none. `complete`: start and end,
    no drop or gap, no recovery with loss.
    """
    if not integrity:
        return None
    if signature == "none" or (signature == "local" and reject_local_authority):
        return NON_AUTHORITATIVE
    if signature == "notes" or not seal_matches:
        return PARTIAL_AUTHORITATIVE
    if not complete or all_imported or witness == "missing":
        return PARTIAL_AUTHORITATIVE
    return AUTHORITATIVE


# --- §1, §5 The files of a session ----------------------------------------------------------

_DURABLE = re.compile(rb"([0-9]{20}) ([0-9a-f]{64})\n")
_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_FOREIGN = ((b"\x1f\x8b", "gzip"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))


class Files:
    """What lies on disk, opened once, read-only. Close it.

    A session directory and a file named `trace.jsonl` have neighbours; any other file stands
    alone. Neighbours, and the trace inside a directory, are not followed if they are links.
    """

    def __init__(self, path: str) -> None:
        self._fds: list[int] = []
        self.trace = self.directory = -1
        try:
            self._open(path)
        except BaseException:
            self.close()
            raise

    def _open(self, path: str) -> None:
        try:
            fd = os.open(path, _OPEN_FLAGS)
        except (OSError, ValueError) as problem:
            raise Refused("E_UNREADABLE", f"cannot be opened: {problem}") from None
        self._fds.append(fd)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            self.directory = fd
            self.is_directory = True
            trace = self.neighbour("trace.jsonl")
            if trace is None:
                raise Refused("E_UNREADABLE", "a directory without trace.jsonl")
            self.trace = trace
            return
        self.is_directory = False
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Refused("E_UNREADABLE", "not a regular file")
        self.trace = fd
        parent, _, name = os.path.realpath(path).rpartition("/")
        if name == "trace.jsonl":
            self.directory = os.open(parent or "/", _OPEN_FLAGS | os.O_DIRECTORY)
            self._fds.append(self.directory)

    def neighbour(self, name: str) -> int | None:
        """A descriptor of a regular file beside the trace, None if there is none."""
        if self.directory < 0:
            return None
        try:
            fd = os.open(name, _OPEN_FLAGS | os.O_NOFOLLOW, dir_fd=self.directory)
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise Refused("E_UNREADABLE", f"{name} cannot be opened: {problem.strerror}") from None
        self._fds.append(fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Refused("E_UNREADABLE", f"{name} is not a regular file")
        return fd

    def durable(self) -> bytes | None:
        """The bytes of `durable`, read until two readings agree: its writer may be at work."""
        fd = self.neighbour("durable")
        if fd is None:
            return None
        before = os.pread(fd, 128, 0)
        while (now := os.pread(fd, 128, 0)) != before:
            before = now
        return now

    def has_writer(self) -> bool:
        """Does somebody hold the session's lock? An empty lock file is that of a clean end
        (docs/adr/0001) and is not touched; only a shared lock is tried, for an instant."""
        fd = self.neighbour("lock")
        if fd is None or os.fstat(fd).st_size == 0:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(fd, fcntl.LOCK_UN)
        return False

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def parse_durable(raw: bytes) -> tuple[int, str] | None:
    """(size, head) of the record; None where a power cut has left nothing. Raises Refused."""
    if not raw.strip(b"\0"):
        return None
    found = _DURABLE.fullmatch(raw)
    if found is None:
        raise Refused("E_DURABLE", "`durable` is not a record of 86 bytes")
    return int(found[1]), found[2].decode()


class Lines:
    """The whole lines of a file up to `end`, split on b"\\n" only; `rest` is what follows."""

    def __init__(self, fd: int, end: int) -> None:
        self._fd = fd
        self._end = end
        self.rest = b""
        #: the position behind `rest`
        self.position = 0

    def batches(self) -> Iterator[list[bytes]]:
        """Lists of lines without newline; stops early if a line gets too long."""
        while self.position < self._end and len(self.rest) <= MAX_LINE_BYTES:
            chunk = os.pread(self._fd, min(CHUNK_BYTES, self._end - self.position), self.position)
            if not chunk:
                break  # it was truncated while we read
            self.position += len(chunk)
            lines = chunk.split(b"\n")
            if self.rest:
                lines[0] = self.rest + lines[0]
            self.rest = lines.pop()
            yield lines

    def rest_is_torn(self) -> bool:
        """Can `rest` and all behind it be what a crash left: half a line, then only NUL?"""
        if len(self.rest) <= MAX_LINE_BYTES:
            return True
        nul = self.rest.find(0)
        if not 0 <= nul <= MAX_LINE_BYTES or self.rest[nul:].strip(b"\0"):
            return False
        position = self.position
        while position < self._end:
            chunk = os.pread(self._fd, min(CHUNK_BYTES, self._end - position), position)
            if not chunk:
                break
            if chunk.count(0) != len(chunk):
                return False
            position += len(chunk)
        return True


# --- §9 The verdict -------------------------------------------------------------------------

VERIFIED, SO_FAR, FAILED, CANNOT = "verified", "verified_so_far", "failed", "unusable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found. `fingerprint` and `root` cover the `events` lines that hold."""

    integrity: str
    evidence_class: str | None = None
    session_id: str | None = None
    mode: str = "full"
    sealed: bool = False
    complete: bool = False
    live: bool = False
    coverage: str = "unknown"
    fingerprint: str | None = None
    root: str | None = None
    events: int = 0
    size_bytes: int = 0
    drops: int = 0
    gaps: int = 0
    redactions: int = 0
    amendments: int = 0
    blobs: BlobCounts = field(default_factory=lambda: BlobCounts(checked=False))
    notes: str = "none"
    assurance: str = "same user"
    reasons: tuple[str, ...] = ()
    errors: tuple[Finding, ...] = ()
    warnings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """The integrity holds: all that is there, or all so far."""
        return self.integrity in (VERIFIED, SO_FAR)


class _Verification:
    """One reading of one session, step by step in the order of the module's docstring."""

    def __init__(self, files: Files, *, full: bool, blobs: bool) -> None:
        self.files = files
        self.full = full
        self.warnings = Warnings()
        self.errors: list[Finding] = []
        self.live = files.has_writer()
        self.mark: tuple[int, str] | None = None
        self._read_durable()
        # What is written from here on is not looked at: the pack could not hold it yet.
        self.size = os.fstat(files.trace).st_size
        amendments = files.neighbour("amendments.jsonl")
        self.amendments = amendments
        self.amendments_size = 0 if amendments is None else os.fstat(amendments).st_size
        self.blobs_why_not = self._why_no_blobs(wanted=blobs)
        self.pack = self._open_pack()
        self.blobs = None if self.blobs_why_not else Blobs(self.pack)
        self.chain = Chain(full=full)
        self.tree = Merkle()
        self.story = Story(self.warnings, self.blobs.lookup if self.blobs else None)
        self.torn_bytes = 0
        self.amendment_count = 0

    def close(self) -> None:
        if self.pack is not None:
            self.pack.table.close()

    def _fail(self, problem: Refused, file: str, seq: int | None, offset: int | None) -> None:
        self.errors.append(
            Finding(code=problem.code, message=problem.message, seq=seq, offset=offset, file=file)
        )

    # §5: the synced prefix must be there, whole, and end in that very line.

    def _read_durable(self) -> None:
        raw = self.files.durable()
        if raw is None:
            return
        try:
            self.mark = parse_durable(raw)
        except Refused as problem:
            self._fail(problem, "durable", None, None)
            return
        if self.mark is None:
            self.warnings.add("W_DURABLE", "`durable` is empty", None, None, "durable")
        else:
            self._pass_mark(0, GENESIS)

    def _pass_mark(self, offset: int, head: str) -> None:
        """Compare when `offset`, the end of a line, reaches the synced position."""
        if self.mark is None or offset < self.mark[0]:
            return
        size, expected = self.mark
        self.mark = None
        if offset != size or head != expected:
            raise Refused(
                "E_DURABLE",
                f"`durable` says {size} bytes ending in {expected}; the line that ends at "
                f"{offset} is {head}",
            )

    # §6: the pack before the trace.

    def _why_no_blobs(self, *, wanted: bool) -> str | None:
        if not wanted:
            return "left out by --no-blobs"
        if not self.full:
            return "--fast does not read the lines that name them"
        if not self.files.is_directory and self.files.neighbour("blobs") is None:
            return "no pack beside the trace"
        return None

    def _open_pack(self) -> Pack | None:
        fd = None if self.blobs_why_not else self.files.neighbour("blobs")
        return None if fd is None else Pack(fd, os.fstat(fd).st_size, self.warnings)

    # §2, §4, §8: line by line.

    def read_trace(self) -> None:
        lines = Lines(self.files.trace, self.size)
        try:
            if self.size == 0 and not self.live:
                raise Refused("E_EMPTY", "the trace is empty")
            self._refuse_foreign()
            for batch in lines.batches():
                self._read_batch(batch)
            self._end_of_trace(lines)
        except Refused as problem:
            code = problem.code
            if code == "E_VERSION" and self.chain.seq:
                # A file cannot become one of another version half way: somebody changed it.
                code = "E_ENVELOPE"
            self._fail(
                Refused(code, problem.message), "trace.jsonl", self.chain.seq, self.chain.offset
            )

    def _refuse_foreign(self) -> None:
        start = os.pread(self.files.trace, 3, 0)
        for magic, name in _FOREIGN:
            if start.startswith(magic):
                raise Refused("E_UNREADABLE", f"this is {name}, not a trace")
        if start[:2] in (b"{\0", b"\0{"):
            raise Refused("E_UNREADABLE", "this is UTF-16, not a trace")

    def _read_batch(self, batch: list[bytes]) -> None:
        """Check lines; those that hold become leaves, a batch at a time, or up to a seal."""
        chain, story, tree = self.chain, self.story, self.tree
        first = chain.seq
        references = self.blobs is not None
        seq, offset, head = chain.seq, chain.offset, chain.head
        try:
            for line in batch:
                seq, offset, head = chain.seq, chain.offset, chain.head
                if story.sealed:
                    raise Refused("E_AFTER_SEAL", "a line follows the seal")
                event = chain.accept(line)
                story.tell(event, seq, offset)
                body = event[7]
                if body is not None:
                    kind = event[0]
                    if kind == "chain_seal":
                        tree.extend(batch[tree.count - first : seq - first])
                        story.check_seal(body, seq, head, tree.root())
                    elif references and kind != "redaction" and b'"commitment"' in line:
                        story.tell_references(body, seq, offset)
                if self.mark is not None:
                    self._pass_mark(chain.offset, chain.head)
        except Refused:
            chain.seq, chain.offset, chain.head = seq, offset, head
            raise
        finally:
            tree.extend(batch[tree.count - first : chain.seq - first])

    def _end_of_trace(self, lines: Lines) -> None:
        rest = len(lines.rest)
        if rest and not lines.rest_is_torn():
            raise Refused("E_LINE_TOO_LONG", f"longer than {MAX_LINE_BYTES} bytes")
        if self.mark is not None:
            raise Refused(
                "E_DURABLE",
                f"{self.mark[0]} bytes were synced, whole lines reach only to {self.chain.offset}",
            )
        if rest:
            self.live = self.live or self.files.has_writer()
            self.torn_bytes = self.size - self.chain.offset
            if not self.live:
                raise Refused(
                    "E_TORN",
                    f"the last {self.torn_bytes} bytes are no whole line; what is before them "
                    "holds. Recovery moves them away when the session is opened again",
                )
        if not self.live:
            for seq, offset in self.story.open_spans.values():
                self.warnings.add("W_OPEN_SPAN", "command_start without its end", seq, offset)

    # §1, §6: what happened after the seal.

    def read_amendments(self) -> None:
        if self.amendments is None or self.errors:
            return
        chain = Chain(genesis=self.chain.head, session_id=self.chain.session_id)
        story = Story(self.warnings)
        lines = Lines(self.amendments, self.amendments_size)
        try:
            if self.amendments_size and not self.story.sealed:
                raise Refused("E_AMENDMENTS", "amendments to a trace that is not sealed")
            for batch in lines.batches():
                for line in batch:
                    self._read_amendment(chain, story, line)
            if lines.rest:
                if not lines.rest_is_torn():
                    raise Refused("E_LINE_TOO_LONG", f"longer than {MAX_LINE_BYTES} bytes")
                if not (self.live or self.files.has_writer()):
                    raise Refused("E_TORN", "the last line is torn")
        except Refused as problem:
            code, message = problem.code, problem.message
            if code not in ("E_TORN", "E_REDACTION"):
                code, message = "E_AMENDMENTS", f"{code}: {message}"
            self._fail(Refused(code, message), "amendments.jsonl", chain.seq, chain.offset)
        self.amendment_count = chain.seq
        self.story.redactions |= story.redactions

    def _read_amendment(self, chain: Chain, story: Story, line: bytes) -> None:
        seq, offset = chain.seq, chain.offset
        event = chain.accept(line)
        try:
            if event[0] in ("chain_seal", "session_start", "session_end"):
                raise Refused("E_AFTER_SEAL", f"{event[0]} after the seal")
            story.tell(event, seq, offset)
            if self.chain.head in story.redactions:
                raise Refused("E_REDACTION", "a redaction of the seal")
        except Refused:
            chain.seq, chain.offset = seq, offset
            raise

    # §7, §9

    def verdict(
        self, *, fingerprint: str | None, reject_local_authority: bool, has_notes: bool
    ) -> Verdict:
        story, chain = self.story, self.chain
        if fingerprint is not None and not self.errors and chain.head != fingerprint:
            self._fail(
                Refused("E_FINGERPRINT", f"expected {fingerprint}, got {chain.head}"),
                "trace.jsonl",
                None,
                None,
            )
        blobs = BlobCounts(checked=False, why_not=self.blobs_why_not)
        if self.blobs is not None:
            if self.errors:
                # Later lines could redact what is absent: the rest cannot be judged.
                blobs = BlobCounts(checked=False, why_not="the trace could not be read to its end")
            else:
                blobs = self.blobs.settle(story.redactions, self.pack)
            self.errors += self.blobs.errors
            self.errors += self.pack.damage if self.pack is not None else []
        if has_notes:
            what = "notes are there; this version cannot check them"
            self.warnings.add("W_NOTES_UNCHECKED", what, None, None, "notes")
        integrity = SO_FAR if self.live else VERIFIED
        if self.errors:
            unusable = all(finding.code in UNUSABLE for finding in self.errors)
            integrity = CANNOT if unusable else FAILED
        missing = incompleteness(story, self.live)
        return Verdict(
            integrity=integrity,
            evidence_class=evidence_class(
                integrity=not self.errors,
                signature="none",
                seal_matches=story.sealed,
                complete=not missing,
                all_imported=story.all_imported,
                witness="not_required",
                reject_local_authority=reject_local_authority,
            ),
            session_id=chain.session_id,
            mode="full" if self.full else "fast",
            sealed=story.sealed,
            complete=not missing and not self.errors,
            live=self.live,
            coverage=describe_coverage(story),
            fingerprint=chain.head if chain.seq else None,
            root=self.tree.root() if chain.seq else None,
            events=chain.seq,
            size_bytes=chain.offset,
            drops=story.drops,
            gaps=story.gaps,
            redactions=len(story.redactions),
            amendments=self.amendment_count,
            blobs=blobs,
            notes="not checked by this version" if has_notes else "none",
            reasons=(*missing, *self._limits(blobs)),
            errors=tuple(self.errors),
            warnings=self.warnings.all(),
        )

    def _limits(self, blobs: BlobCounts) -> Iterator[str]:
        """What the verdict does not prove."""
        if self.errors:
            return
        yield (
            "no signature was checked: whoever can write these files can have written all of them"
        )
        if not self.story.sealed:
            yield "not sealed: lines may have been cut off at the end"
        if self.live:
            yield f"a writer is at work: {self.torn_bytes} bytes of an unfinished line left out"
        if self.story.all_imported and self.chain.seq:
            yield "all events are imported: nothing was observed by Substrate"
        if self.story.key_epochs:
            yield "key epochs are named, keys are not checked by this version"
        if not self.full:
            yield "--fast: the bodies of common events were hashed, not parsed"
        if not blobs.checked:
            yield f"blobs were not checked: {blobs.why_not}"


def incompleteness(story: Story, live: bool) -> tuple[str, ...]:
    """Why the record is not complete (§7: start + end, no drop/gap, no recovery with loss)."""
    reasons = (
        (not story.started, "no session_start at seq 0"),
        (not story.ended, "no session_end" + (" yet" if live else "")),
        (story.drops > 0, f"{story.drops} events dropped"),
        (story.gaps > 0, f"{story.gaps} gaps"),
        (
            story.lossy_recoveries > 0,
            f"{story.lossy_recoveries} recoveries that may have lost acknowledged events",
        ),
    )
    return tuple(f"not complete: {reason}" for holds, reason in reasons if holds)


def describe_coverage(story: Story) -> str:
    """What capture says it could and could not see, in one line."""
    capture = story.capture
    if not capture:
        return "unknown"
    spots = capture.get("blind_spots")
    named = ", ".join(map(str, spots)) if type(spots) is list and spots else "none named"
    text = f"{capture.get('backend')}/{capture.get('level')}; blind spots: {named}"
    if story.coverage_events:
        text += f"; {story.coverage_events} coverage events, {story.coverage_lost} records lost"
    return text


def verify(
    path: str | os.PathLike[str],
    *,
    full: bool = True,
    blobs: bool = True,
    fingerprint: str | None = None,
    reject_local_authority: bool = False,
) -> Verdict:
    """Verify a session directory or a trace file. Whatever is wrong is in the verdict.

    `fingerprint`: the hash of the last line that the caller expects, in hex.
    """
    attempts = 3
    while True:
        verdict, shaky = _verify_once(
            os.fspath(path), full, blobs, fingerprint, reject_local_authority
        )
        attempts -= 1
        # A writer at work takes half a batch back after a failed write (a full disk), and
        # erases what a line names that we do not look at any more. So beyond the synced
        # position only what stays is an error.
        if not shaky or not attempts:
            return verdict


def _verify_once(
    path: str, full: bool, blobs: bool, fingerprint: str | None, reject_local_authority: bool
) -> tuple[Verdict, bool]:
    mode = "full" if full else "fast"
    try:
        files = Files(path)
    except Refused as problem:
        found = Finding(code=problem.code, message=problem.message, file=path)
        return Verdict(integrity=CANNOT, mode=mode, errors=(found,)), False
    work: _Verification | None = None
    try:
        has_notes = files.neighbour("notes") is not None
        work = _Verification(files, full=full, blobs=blobs)
        work.read_trace()
        work.read_amendments()
        verdict = work.verdict(
            fingerprint=fingerprint,
            reject_local_authority=reject_local_authority,
            has_notes=has_notes,
        )
        return verdict, work.live and not verdict.ok and work.mark is None
    except Refused as problem:
        found = Finding(code=problem.code, message=problem.message, file=path)
        integrity = CANNOT if problem.code in UNUSABLE else FAILED
        return Verdict(integrity=integrity, mode=mode, errors=(found,)), False
    except OSError as problem:
        found = Finding(code="E_UNREADABLE", message=f"cannot be read: {problem}", file=path)
        return Verdict(integrity=CANNOT, mode=mode, errors=(found,)), False
    finally:
        if work is not None:
            work.close()
        files.close()


# --- The command ----------------------------------------------------------------------------


def exit_status(verdict: Verdict, *, require: str | None = None, strict: bool = False) -> int:
    """§9: 0, 1, 3 or 4."""
    if verdict.integrity == CANNOT:
        return 3
    if not verdict.ok or verdict.evidence_class is None:
        return 1
    if require is not None and CLASSES.index(verdict.evidence_class) < CLASSES.index(require):
        return 4
    return 4 if strict and verdict.warnings else 0


def render_json(verdict: Verdict, status: int) -> str:
    """One line; ASCII only."""
    return json.dumps({"schema": SCHEMA, "exit_status": status, **asdict(verdict)})


_INTEGRITY_WORDS = {
    VERIFIED: "verified",
    SO_FAR: "verified so far (valid so far: a writer is at work)",
    FAILED: "FAILED",
    CANNOT: "unusable, not judged",
}


def render_text(verdict: Verdict) -> str:
    """For people. Nothing that a trace says reaches the terminal raw."""
    blobs = verdict.blobs
    states = (
        f"{blobs.matching} matching, {blobs.redacted} redacted, {blobs.missing} missing, "
        f"{blobs.damaged} damaged ({blobs.records} in the pack)"
        if blobs.checked
        else f"not checked ({blobs.why_not or 'the trace was not read'})"
    )
    rows = [
        ("Integrity", _INTEGRITY_WORDS[verdict.integrity]),
        ("Evidence class", verdict.evidence_class or "none"),
        ("Session", verdict.session_id or "unknown"),
        ("Sealed", "yes" if verdict.sealed else "no"),
        ("Complete", "yes" if verdict.complete else "no"),
        ("Coverage", verdict.coverage),
        ("Fingerprint", verdict.fingerprint or "none"),
        ("Merkle root", f"{verdict.root or 'none'} ({verdict.events} leaves)"),
        ("Events", f"{verdict.events} ({verdict.size_bytes} bytes, mode {verdict.mode})"),
        ("Drops", f"{verdict.drops} events, {verdict.gaps} gaps"),
        ("Blobs", states),
        ("Redactions", f"{verdict.redactions} ({verdict.amendments} amendments)"),
        ("Notes", verdict.notes),
        ("Assurance", verdict.assurance),
    ]
    out = [f"{name + ':':<16}{value}" for name, value in rows]
    for title, items in (
        ("Reasons", verdict.reasons),
        ("Warnings", tuple(map(render_finding, verdict.warnings))),
        ("Errors", tuple(map(render_finding, verdict.errors))),
    ):
        if items:
            out += [f"{title}:", *(f"  - {item}" for item in items)]
    return "\n".join(_printable(row) for row in out)


def render_finding(finding: Finding) -> str:
    where = [finding.file]
    if finding.seq is not None:
        where.append(f"seq {finding.seq}")
    if finding.offset is not None:
        where.append(f"byte {finding.offset}")
    times = f" (and {finding.count - 1} more)" if finding.count > 1 else ""
    return f"{finding.code} {finding.message} [{', '.join(where)}]{times}"


def _printable(text: str) -> str:
    """ASCII without control characters, the rest as escapes."""
    plain = text.encode("ascii", "backslashreplace").decode()
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in plain)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="verifier.py",
        description="Verify the trace of a Substrate session.",
        epilog="exit status: 0 verified, 1 integrity failed, 2 usage, 3 input unusable, "
        "4 below --require or warnings under --strict",
        allow_abbrev=False,
    )
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument("--full", action="store_true", help="parse every line (default)")
    depth.add_argument("--fast", action="store_true", help="bytes, chain and tree only")
    parser.add_argument("--json", action="store_true", help="the verdict as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="print nothing, exit status only")
    parser.add_argument("--no-blobs", action="store_true", help="leave the contents out")
    parser.add_argument("--strict", action="store_true", help="exit 4 if there are warnings")
    parser.add_argument("--require", metavar="CLASS", type=str.upper, choices=CLASSES)
    parser.add_argument(
        "--reject-local-authority",
        action="store_true",
        help="a signature by a key of the same user counts as none",
    )
    parser.add_argument("--fingerprint", metavar="HEX", help="the last line must have this hash")
    parser.add_argument("path", metavar="PATH", help="a session directory or a trace.jsonl")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. `argv` is without the program's name. Returns the exit status."""
    parser = _parser()
    try:
        options = parser.parse_args(argv)
        if options.fingerprint is not None:
            options.fingerprint = options.fingerprint.lower()
            if _is_hash(options.fingerprint) is None:
                parser.error("--fingerprint takes 64 hex digits")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 2
    try:
        verdict = verify(
            options.path,
            full=not options.fast,
            blobs=not options.no_blobs,
            fingerprint=options.fingerprint,
            reject_local_authority=options.reject_local_authority,
        )
    except Exception as bug:  # noqa: BLE001 - the edge: never a traceback, never a pass (§9)
        found = Finding(code="E_INTERNAL", message=f"{type(bug).__name__}: {bug}"[:500])
        verdict = Verdict(integrity=CANNOT, errors=(found,))
    status = exit_status(verdict, require=options.require, strict=options.strict)
    if not options.quiet:
        text = render_json(verdict, status) if options.json else render_text(verdict)
        try:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        except OSError as problem:
            # Who reads it has gone. The status still counts; the interpreter must not try
            # to flush once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            if not isinstance(problem, BrokenPipeError):
                return status or 3
    return status


if __name__ == "__main__":
    sys.exit(main())
