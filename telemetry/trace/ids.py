"""Identifiers of sessions and spans: UUIDv7 behind a prefix (trace.md §2, §3).

What it is: making, checking and matching ids, and the OpenTelemetry ids derived from them.
What it is not: it does not know which spans exist; callers hand in the ones to match.

The UUIDs are those of RFC 9562 §5.7, with the 12 bits of rand_a holding the fraction of the
millisecond (its §6.2, method 3), so that ids made one after the other sort in that order;
62 bits are random. Written in lower case with hyphens, in that form only.
"""

from __future__ import annotations

import os
import time

from substrate.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SESSION_PREFIX = "ses_"
SPAN_PREFIX = "spn_"

_HEX = frozenset("0123456789abcdef")
_LENGTH = 4 + 36


def uuid7(time_ns: int, random: bytes) -> str:
    """A UUIDv7 from nanoseconds since the epoch and 8 random bytes (2 bits of them unused)."""
    ms, rest_ns = divmod(time_ns, 1_000_000)
    fraction = (rest_ns << 12) // 1_000_000
    tail = int.from_bytes(random, "big") & (1 << 62) - 1 | 2 << 62
    head = (ms & (1 << 48) - 1) << 16 | 7 << 12 | fraction
    text = f"{head:016x}{tail:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def new_session_id(
    clock_ns: Callable[[], int] = time.time_ns, random: Callable[[int], bytes] = os.urandom
) -> str:
    """`ses_` and a new UUIDv7. `clock_ns`: nanoseconds since the epoch."""
    return SESSION_PREFIX + uuid7(clock_ns(), random(8))


def new_span_id(
    clock_ns: Callable[[], int] = time.time_ns, random: Callable[[int], bytes] = os.urandom
) -> str:
    """`spn_` and a new UUIDv7. `clock_ns`: nanoseconds since the epoch."""
    return SPAN_PREFIX + uuid7(clock_ns(), random(8))


def is_session_id(value: object) -> bool:
    """True for `ses_` and a UUIDv7 in exactly the form of `new_session_id`."""
    return type(value) is str and value.startswith(SESSION_PREFIX) and _is_known(value)


def is_span_id(value: object) -> bool:
    """True for `spn_` and a UUIDv7 in exactly the form of `new_span_id`."""
    return type(value) is str and value.startswith(SPAN_PREFIX) and _is_known(value)


#: ids found right lately: most lines of a trace carry the same few
_known: set[str] = set()
_KNOWN_MOST = 4096


def _is_known(text: str) -> bool:
    if text in _known:
        return True
    if not _is_uuid7(text):
        return False
    if len(_known) >= _KNOWN_MOST:
        _known.clear()
    _known.add(text)
    return True


def _is_uuid7(text: str) -> bool:
    """True if what follows the 4 characters of a prefix is a UUIDv7 in our form."""
    return (
        len(text) == _LENGTH
        and text[12] == text[17] == text[22] == text[27] == "-"
        and text[18] == "7"
        and text[23] in "89ab"
        and _HEX.issuperset(text[4:12] + text[13:17] + text[18:22] + text[23:27] + text[28:])
    )


def otel_trace_id(session_id: str) -> str:
    """The OpenTelemetry trace id of a session: its UUID, 32 hex digits (trace.md §3)."""
    return session_id[4:].replace("-", "")


def otel_span_id(span_id: str) -> str:
    """The OpenTelemetry span id: the last 8 bytes of the UUID, 16 hex digits; never zero."""
    return span_id[4:].replace("-", "")[16:]


def match_span(wanted: str, span_ids: Iterable[str]) -> str:
    """The one span whose id is `wanted` or ends in it, with or without hyphens.

    Suffixes, because the beginnings of UUIDv7 are alike (trace.md §3). Raises UsageError when
    none or more than one fits.
    """
    suffix = wanted.lower().removeprefix(SPAN_PREFIX).replace("-", "")
    if not suffix or not _HEX.issuperset(suffix):
        raise UsageError(
            f"{wanted!r} is no span id and no end of one",
            hint="a span is named by `last`, its number, or the last digits of its id",
        )
    found = {span for span in span_ids if otel_trace_id(span).endswith(suffix)}
    if not found:
        raise UsageError(f"no span's id ends in {wanted!r}", hint="`substrate log` lists the spans")
    if len(found) > 1:
        some = ", ".join(sorted(found)[:4])
        raise UsageError(f"{len(found)} spans end in {wanted!r}: {some}", hint="give more digits")
    return found.pop()
