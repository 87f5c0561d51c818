"""Checking lines that were read back, many at once: form, envelope, place in the chain.

What recovery and the reader share. It knows nothing of files, nor of what events mean
together (`story.py`). It is the second implementation of trace.md §2 beside the
standalone verifier, and shares no code with it.

Invariant: `check` accepts a line iff it is canonical, its envelope is valid, and it follows
the line before it. The way over columns (one pass for all lines a key) only ever proves a
whole batch good; whatever it does not prove is judged line by line, which names the fault.
"""

from __future__ import annotations

import hashlib
from operator import itemgetter

from substrate.errors import TraceCorrupt, TraceVersionError
from substrate.telemetry.trace.clock_text import parse_ts
from substrate.telemetry.trace.envelope import (
    COMPONENTS,
    GENESIS,
    ORIGINS,
    check_envelope,
    is_name,
)
from substrate.telemetry.trace.ids import is_span_id
from substrate.telemetry.trace.parsing import LineCorrupt, parse_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_sha256 = hashlib.sha256

#: what `parsing` says of a line -> the stable code of a verdict
_CODES = {
    "utf8": "E_UTF8",
    "bom": "E_JSON",
    "empty": "E_JSON",
    "syntax": "E_JSON",
    "not_finite": "E_JSON",
    "depth": "E_DEPTH",
    "line_size": "E_LINE_TOO_LONG",
    "string_size": "E_LINE_TOO_LONG",
    "not_object": "E_ENVELOPE",
}

_TIME_CHARS = 27
_TIME_PREFIX = 20
_MAX_KNOWN = 4096
_ONLY_INT = frozenset((int,))
_ONLY_STR = frozenset((str,))
_ONLY_DICT = frozenset((dict,))

_columns_of = itemgetter(
    "body",
    "component",
    "event_type",
    "mono_us",
    "origin",
    "prev_hash",
    "seq",
    "session_id",
    "ts",
    "v",
)


class BadLine(TraceCorrupt):
    """The first line that is not accepted. `before`: the objects of those
    accepted before it, `reason`: the message without the place."""

    def __init__(
        self, code: str, message: str, seq: int, offset: int, before: list[dict[str, Any]]
    ) -> None:
        super().__init__(message, seq=seq, offset=offset, code=code)
        self.reason = message
        self.before = before


class LineChecker:
    """Where the next line must fit: `seq`, `head`, `offset` (bytes), `session_id` once known."""

    def __init__(
        self,
        *,
        session_id: str | None = None,
        seq: int = 0,
        head: str = GENESIS,
        offset: int = 0,
    ) -> None:
        self.session_id = session_id
        self.seq = seq
        self.head = head
        self.offset = offset
        self._shapes: set[tuple[str, ...]] = set()
        self._types: set[str] = set()
        self._spans: set[str] = set()
        #: beginnings of `ts` (up to the point) that were found right
        self.seconds: set[str] = set()

    def check(self, lines: Sequence[bytes]) -> list[dict[str, Any]]:
        """The objects of `lines` (without newlines). Raises BadLine at the first bad one.

        Accepted lines have moved the position on, also when a later one is bad.
        """
        problem: LineCorrupt | None = None
        try:
            objs = parse_lines(lines)
        except LineCorrupt as found:
            problem, objs = found, found.before
        if not self._accept_columns(lines, objs):
            for index, obj in enumerate(objs):
                try:
                    self._accept(lines[index], obj)
                except TraceCorrupt as wrong:
                    raise self._bad(str(wrong.code), wrong.args[0], objs[:index]) from wrong
        if problem is not None:
            code = _CODES.get(problem.code, "E_NON_CANONICAL")
            raise self._bad(code, problem.args[0], objs) from problem
        return objs

    def _bad(self, code: str, message: str, before: list[dict[str, Any]]) -> BadLine:
        return BadLine(code, message, self.seq, self.offset, before)

    # --- one line ---------------------------------------------------------------------------

    def _accept(self, line: bytes, obj: dict[str, Any]) -> None:
        """The rules one after the other; the columns below only prove the same of many."""
        try:
            check_envelope(obj)
        except TraceVersionError as newer:
            # A file cannot become one of another version half way: somebody changed it.
            code = "E_ENVELOPE" if self.seq else "E_VERSION"
            raise TraceCorrupt(newer.args[0], code=code) from newer
        except TraceCorrupt as wrong:
            raise TraceCorrupt(wrong.args[0], code="E_ENVELOPE") from wrong
        session_id = obj["session_id"]
        if self.session_id is None:
            self.session_id = session_id
        elif session_id != self.session_id:
            raise TraceCorrupt(
                f"a line of {session_id} in a trace of {self.session_id}", code="E_SESSION"
            )
        if obj["seq"] != self.seq:
            raise TraceCorrupt(f"expected seq {self.seq}, got {obj['seq']}", code="E_SEQ")
        if obj["prev_hash"] != self.head:
            raise TraceCorrupt(
                f"expected prev_hash {self.head}, got {obj['prev_hash']}: this line or the one "
                "before it is not what was written",
                code="E_PREV_HASH",
            )
        self._learn(obj)
        self.go_on(1, _sha256(line).hexdigest(), len(line) + 1)

    def _learn(self, obj: dict[str, Any]) -> None:
        """What check_envelope has accepted once need not be looked at again."""
        for known in (self._shapes, self._types, self._spans, self.seconds):
            if len(known) >= _MAX_KNOWN:
                known.clear()
        self._shapes.add(tuple(obj))
        self._types.add(obj["event_type"])
        self.seconds.add(obj["ts"][:_TIME_PREFIX])

    def go_on(self, lines: int, head: str, size: int) -> None:
        """Move the position behind `lines` lines that are right, of `size` bytes in all."""
        self.seq += lines
        self.head = head
        self.offset += size

    # --- many lines -------------------------------------------------------------------------

    def _accept_columns(self, lines: Sequence[bytes], objs: list[dict[str, Any]]) -> bool:
        """True if all of them are right, and then the position has moved behind them."""
        if not objs or self.session_id is None:
            return False
        if not self._shapes.issuperset(map(tuple, objs)):
            return False
        (bodies, components, types, monos, origins, befores, seqs, sessions, times, versions) = zip(
            *map(_columns_of, objs), strict=True
        )
        used = lines if len(lines) == len(objs) else lines[: len(objs)]
        hashes = [_sha256(line).hexdigest() for line in used]
        if not (
            befores[0] == self.head
            and list(befores[1:]) == hashes[:-1]
            and seqs == tuple(range(self.seq, self.seq + len(objs)))
            and _ONLY_INT.issuperset(map(type, seqs))
            and set(sessions) == {self.session_id}
            and _ONLY_DICT.issuperset(map(type, bodies))
            and _ONLY_INT.issuperset(map(type, monos))
            and min(monos) >= 0
            and _ONLY_INT.issuperset(map(type, versions))
            and set(versions) == {1}
            and _all_in(components, COMPONENTS)
            and _all_in(origins, ORIGINS)
            and self._types_are_names(types)
            and self._times_are_right(times)
            and self._optional_keys_are_right(objs)
        ):
            return False
        self.go_on(len(objs), hashes[-1], sum(map(len, used)) + len(used))
        return True

    def _types_are_names(self, types: tuple[Any, ...]) -> bool:
        if not _ONLY_STR.issuperset(map(type, types)):
            return False
        new = set(types) - self._types
        if not all(map(is_name, new)):
            return False
        if len(self._types) + len(new) < _MAX_KNOWN:
            self._types |= new
        return True

    def _times_are_right(self, times: tuple[Any, ...]) -> bool:
        return _ONLY_STR.issuperset(map(type, times)) and times_are_right(times, self.seconds)

    def _optional_keys_are_right(self, objs: list[dict[str, Any]]) -> bool:
        for key in ("span_id", "parent_span_id"):
            spans = [obj[key] for obj in objs if key in obj]
            if not _ONLY_STR.issuperset(map(type, spans)):
                return False
            new = set(spans) - self._spans
            if new:
                if not all(map(is_span_id, new)):
                    return False
                if len(self._spans) >= _MAX_KNOWN:
                    self._spans.clear()
                self._spans |= new
        producers = [obj["producer"] for obj in objs if "producer" in obj]
        if not producers:
            return True
        counters = [obj["producer_seq"] for obj in objs if "producer_seq" in obj]
        return (
            _ONLY_STR.issuperset(map(type, producers))
            and all(producers)
            and _ONLY_INT.issuperset(map(type, counters))
            and min(counters) >= 0
        )


def times_are_right(times: Sequence[str], seconds: set[str]) -> bool:
    """Is each text of the form of `ts`? `seconds`: beginnings that are known; grows."""
    text = "".join(times)
    if set(map(len, times)) != {_TIME_CHARS} or not text.isascii():
        return False
    digits = "".join([text[place::_TIME_CHARS] for place in range(_TIME_PREFIX, 26)])
    if not digits.isdigit() or text[26::_TIME_CHARS] != "Z" * len(times):
        return False
    for second in {time[:_TIME_PREFIX] for time in times} - seconds:
        try:
            parse_ts(second + "000000Z")
        except ValueError:
            return False
        if len(seconds) >= _MAX_KNOWN:
            seconds.clear()
        seconds.add(second)
    return True


def _all_in(column: tuple[Any, ...], words: frozenset[str]) -> bool:
    return _ONLY_STR.issuperset(map(type, column)) and words.issuperset(column)
