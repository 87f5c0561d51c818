"""Proving a whole batch of lines right without making objects of their envelopes.

For a verdict, and only for that: most lines of a trace have one of a few envelopes, which
differ in nothing but times, counters, hashes and span ids. What a line that was accepted in
the ordinary way (`check.py`) looked like is kept as a template; a line that is equal to it in
every other byte, and whose variable parts are right, is right too. Bodies are proved as
`parsing.parse_lines` does it: one orjson.loads and one orjson.dumps for all of them.

Invariant: `prove` says yes only if `LineChecker.check` and `Story.tell` would have accepted
every line without a word; otherwise it changes nothing, and they do the work. trace.md §2.
"""

from __future__ import annotations

import hashlib
import os
from _json import encode_basestring
from operator import itemgetter

import orjson

from substrate.telemetry.trace.check import LineChecker, times_are_right
from substrate.telemetry.trace.envelope import EVENT_TYPES
from substrate.telemetry.trace.ids import is_span_id
from substrate.telemetry.trace.line import (
    MAX_STRING_BYTES,
    accelerate,
    free_of_floats,
    keys_sort_alike,
    same_bytes,
)
from substrate.telemetry.trace.story import TELLING_TYPES, Story

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

_sha256 = hashlib.sha256

_START = b'{"body":'
_ENVELOPE = b',"component":"'
#: see parsing.parse_lines: nobody who writes a trace can guess it
_SENTINEL = os.urandom(16).hex()
_GLUE = f',"{_SENTINEL}",'.encode()
_MOST_TEMPLATES = 64
#: decimal digits that are certainly below 2^53
_SAFE_DIGITS = 15
_MOST_SPANS = 4096
_ONLY_DICT = frozenset((dict,))


class Template:
    """An envelope: `constants` in the bytes that `fixed` cuts out; `parts` cuts out the rest.

    `parts` gives prev_hash, seq, mono_us, ts, then span ids, then producer_seq if any.
    """

    __slots__ = ("constants", "fixed", "parts", "producer", "spans")

    def __init__(self, obj: dict[str, Any]) -> None:
        text: list[str] = []
        constants: list[slice] = []
        parts: dict[str, slice] = {}
        at = begun = 0

        def constant(piece: str) -> None:
            nonlocal at
            text.append(piece)
            at += len(piece.encode())

        def variable(name: str) -> None:
            nonlocal at, begun
            constants.append(slice(begun, at))
            piece = str(obj[name])
            text.append(piece)
            parts[name] = slice(at, at + len(piece))
            at = begun = at + len(piece)

        constant(f',"component":"{obj["component"]}","event_type":"{obj["event_type"]}"')
        constant(',"mono_us":')
        variable("mono_us")
        constant(f',"origin":"{obj["origin"]}"')
        if "parent_span_id" in obj:
            constant(',"parent_span_id":"')
            variable("parent_span_id")
            constant('"')
        constant(',"prev_hash":"')
        variable("prev_hash")
        constant('"')
        if "producer" in obj:
            constant(f',"producer":{encode_basestring(obj["producer"])},"producer_seq":')
            variable("producer_seq")
        constant(',"seq":')
        variable("seq")
        constant(f',"session_id":"{obj["session_id"]}"')
        if "span_id" in obj:
            constant(',"span_id":"')
            variable("span_id")
            constant('"')
        constant(',"ts":"')
        variable("ts")
        constant('","v":1}')
        constants.append(slice(begun, at))

        envelope = "".join(text).encode()
        self.producer: str | None = obj.get("producer")
        self.spans = ("span_id" in obj) + ("parent_span_id" in obj)
        order = ["prev_hash", "seq", "mono_us", "ts"]
        order += [name for name in ("span_id", "parent_span_id", "producer_seq") if name in parts]
        self.parts: Callable[[bytes], tuple[bytes, ...]] = itemgetter(
            *[parts[name] for name in order]
        )
        self.fixed: Callable[[bytes], tuple[bytes, ...]] = itemgetter(*constants)
        self.constants = self.fixed(envelope)


class BatchProof:
    """Proves batches for one checker and one story, which it moves on together."""

    def __init__(self, checker: LineChecker, story: Story) -> None:
        accelerate()
        self._checker = checker
        self._story = story
        self._by_length: dict[int, list[Template]] = {}
        self._count = 0
        self._spans: set[bytes] = set()

    def tell_to(self, story: Story) -> None:
        """From here on it is `story` that is told."""
        self._story = story

    def learn(self, lines: Sequence[bytes], objs: Sequence[dict[str, Any]]) -> None:
        """Make templates of lines that were accepted in the ordinary way."""
        for line, obj in zip(lines, objs, strict=False):
            at = line.rfind(_ENVELOPE)
            envelope = line[at:]
            if obj["event_type"] in TELLING_TYPES or obj["event_type"] not in EVENT_TYPES:
                continue
            if self._template_of(envelope) is None:
                if self._count >= _MOST_TEMPLATES:
                    self._by_length.clear()
                    self._count = 0
                self._by_length.setdefault(len(envelope), []).append(Template(obj))
                self._count += 1

    def _template_of(self, envelope: bytes) -> Template | None:
        for template in self._by_length.get(len(envelope), ()):
            if template.fixed(envelope) == template.constants:
                return template
        return None

    def prove(self, lines: Sequence[bytes]) -> bool:
        """True if all lines are right; then checker and story stand behind them."""
        if not self._count or max(map(len, lines)) > MAX_STRING_BYTES:
            return False
        cuts = [line.rfind(_ENVELOPE) for line in lines]
        template: Template | None = None
        rows: list[tuple[bytes, ...]] = []
        numbers: dict[str, list[bytes]] = {}
        spans: list[bytes] = []
        by_length = self._by_length
        for line, cut in zip(lines, cuts, strict=True):
            envelope = line[cut:]
            if template is None or template.fixed(envelope) != template.constants:
                for template in by_length.get(len(envelope), ()):
                    if template.fixed(envelope) == template.constants:
                        break
                else:
                    return False
            row = template.parts(envelope)
            rows.append(row)
            if template.spans:
                spans += row[4 : 4 + template.spans]
            if template.producer is not None:
                numbers.setdefault(template.producer, []).append(row[-1])
        hashes = [_sha256(line).hexdigest() for line in lines]
        return (
            self._places_are_right(rows, hashes)
            and self._spans_are_right(spans)
            and self._bodies_are_right(lines, cuts)
            and self._tell(rows, numbers)
            and self._go_on(lines, hashes)
        )

    def _places_are_right(self, rows: list[tuple[bytes, ...]], hashes: list[str]) -> bool:
        checker = self._checker
        befores = b"".join([row[0] for row in rows]).decode("latin-1")
        seqs = b" ".join([row[1] for row in rows]).decode("latin-1")
        expected = range(checker.seq, checker.seq + len(rows))
        monos = [row[2] for row in rows]
        return (
            befores == checker.head + "".join(hashes[:-1])
            and seqs == " ".join(map(str, expected))
            and _are_counts(monos)
            and checker.seq + len(rows) < 10**_SAFE_DIGITS
        )

    def _spans_are_right(self, spans: list[bytes]) -> bool:
        new = set(spans) - self._spans
        if not new:
            return True
        if not all(is_span_id(span.decode("latin-1")) for span in new):
            return False
        if len(self._spans) >= _MOST_SPANS:
            self._spans.clear()
        self._spans |= new
        return True

    def _bodies_are_right(self, lines: Sequence[bytes], cuts: list[int]) -> bool:
        start = len(_START)
        if {line[:start] for line in lines} != {_START}:
            return False
        bodies = [line[start:cut] for line, cut in zip(lines, cuts, strict=True)]
        batch = b"[%b]" % _GLUE.join(bodies)
        try:
            values: list[Any] = orjson.loads(batch)
            if not same_bytes(values, batch):
                return False
        except (orjson.JSONDecodeError, TypeError, RecursionError):
            return False
        objs = values[::2]
        return (
            len(values) == 2 * len(lines) - 1
            and values[1::2].count(_SENTINEL) == len(lines) - 1
            and _ONLY_DICT.issuperset(map(type, objs))
            # One level more than they have in their lines: what fails here is looked at there.
            and free_of_floats([{"": objs}])
            and (batch.isascii() or keys_sort_alike(objs))
        )

    def _tell(self, rows: list[tuple[bytes, ...]], numbers: dict[str, list[bytes]]) -> bool:
        """Times and producers, if there is nothing to be said about them."""
        times = [row[3].decode("latin-1") for row in rows]
        if not times_are_right(times, self._checker.seconds):
            return False
        counters: dict[str, tuple[int, int]] = {}
        for producer, digits in numbers.items():
            if not _are_counts(digits):
                return False
            first = int(digits[0])
            if b" ".join(digits).decode() != " ".join(map(str, range(first, first + len(digits)))):
                return False
            counters[producer] = (first, first + len(digits))
        return self._story.tell_quiet(times, counters)

    def _go_on(self, lines: Sequence[bytes], hashes: list[str]) -> bool:
        self._checker.go_on(len(lines), hashes[-1], sum(map(len, lines)) + len(lines))
        return True


def _are_counts(digits: list[bytes]) -> bool:
    """Non-negative integers in their one form, below 2^53."""
    text = b" %b " % b"  ".join(digits)
    return (
        text.count(b" 0") == text.count(b" 0 ")
        and b"   " not in text
        and text.replace(b" ", b"").isdigit()
        and max(map(len, digits)) <= _SAFE_DIGITS
    )
