"""Sets of addresses as spans of numbers: (first, first behind), in order, apart from each other.

Of one family at a time; pure arithmetic. What a set means, says who made it.
Sources of `carried`: RFC 6052 §2 (64:ff9b::/96), RFC 3056 §2 (2002::/16).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from substrate.world.egress.addresses import Range

    Span = tuple[int, int]
    Spans = tuple[Span, ...]

_NAT64: Final = 0x64FF9B << 96
_SIX_TO_FOUR: Final = 0x2002 << 112
_BELOW_6TO4: Final = 80  # bits behind the IPv4 address


def whole(size: int) -> Spans:
    """Every address of so many bytes."""
    return ((0, 1 << 8 * size),)


def span_of(given: Range) -> Span:
    start = int.from_bytes(given.address, "big")
    return start, start + (1 << 8 * len(given.address) - given.bits)


def merge_spans(spans: Iterable[Span]) -> Spans:
    """All of them; those that touch are one."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return tuple(merged)


def subtract(spans: Spans, taken: Spans) -> Spans:
    """What is in `spans` and not in `taken`."""
    left: list[Span] = []
    for start, end in spans:
        for low, high in taken:
            if high <= start or low >= end:
                continue
            if low > start:
                left.append((start, low))
            start = high
            if start >= end:
                break
        if start < end:
            left.append((start, end))
    return tuple(left)


def meet(spans: Spans, others: Spans) -> Spans:
    """What is in both."""
    found = []
    for start, end in spans:
        for low, high in others:
            if max(start, low) < min(end, high):
                found.append((max(start, low), min(end, high)))
    return merge_spans(found)


def contains(spans: Spans, number: int) -> bool:
    return any(start <= number < end for start, end in spans)


def carried(spans4: Spans) -> Spans:
    """The IPv6 addresses that carry these IPv4 addresses to a translator or a tunnel."""
    found = [(_NAT64 + start, _NAT64 + end) for start, end in spans4]
    found += [
        (_SIX_TO_FOUR + (start << _BELOW_6TO4), _SIX_TO_FOUR + (end << _BELOW_6TO4))
        for start, end in spans4
    ]
    return tuple(found)
