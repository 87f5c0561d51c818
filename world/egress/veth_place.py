"""Where a routed network lies: its number, and the names and addresses that follow from it. Logic only.

A number stands for one pair of addresses of a range (a /31; in IPv6 a /127 of a range of our own)
and for the name of the link's end on the host. A name can be given once in a network namespace, by
the kernel's word, so that whoever has made the link has the addresses: nothing else is locked, and the
number is free when the link is gone. Invariant: no place is offered that a route of the host leads to.
Sources: RFC 3021 (/31), RFC 6164 (/127), RFC 4193 (fd00::/8).
"""

from __future__ import annotations

from substrate.values import value
from substrate.world.egress.addresses import Range, parse_range

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Final

#: names of links and tables begin so
PREFIX: Final = "substrate"
#: places of a range that are tried
TRIES: Final = 256
_RANGE6: Final = parse_range("fd5b:7373:7472:6174::/64")


@value
class Place:
    """`name`: of the link's end on the host, 15 bytes at most. Addresses of the world's end and of the host's."""

    name: str
    world4: bytes
    host4: bytes
    world6: bytes
    host6: bytes


def places(within: Range, start: int, taken: Iterable[Range]) -> Iterator[Place]:
    """Those to be tried, from a start that the caller draws: bounded. `taken`: destinations of the host's
    routes, without the default ones."""
    count = 1 << 32 - within.bits - 1
    taken = tuple(taken)
    for tried in range(min(TRIES, count)):
        place = _place(within, (start + tried) % count)
        pairs = (
            Range(address=place.host4, bits=31),
            Range(address=place.host6, bits=127),
        )
        if not any(_overlap(pair, route) for pair in pairs for route in taken):
            yield place


def _place(within: Range, number: int) -> Place:
    first4 = int.from_bytes(within.address, "big") + 2 * number
    # not by its number: other ranges have the same ones
    first6 = int.from_bytes(_RANGE6.address, "big") + first4
    host4, world4 = (one.to_bytes(4, "big") for one in (first4, first4 + 1))
    host6, world6 = (one.to_bytes(16, "big") for one in (first6, first6 + 1))
    return Place(
        # so has the name: 4 bytes in 6 letters are enough, as the last bit says nothing
        name=f"{PREFIX}{_short(first4 >> 1)}",
        world4=world4,
        host4=host4,
        world6=world6,
        host6=host6,
    )


_LETTERS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


def _short(number: int) -> str:
    """31 bits in six letters."""
    text = ""
    for _ in range(6):
        number, digit = divmod(number, 36)
        text = _LETTERS[digit] + text
    return text


def _overlap(one: Range, other: Range) -> bool:
    return len(one.address) == len(other.address) and (one.covers(other) or other.covers(one))
