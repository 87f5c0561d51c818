"""The ids that a world of the backend `ns-root-idmap` gets on the host.

Root of the world is an unprivileged uid on the host. One range a world, outside every subordinate and
every known uid, recorded with the world (world.md §2). What lies above the range (directories of
companies begin at 10^5 or 10^6, ids made from SIDs go up to 2·10^9, subordinate ids lie between) is mapped as a
whole, or what such an id owns could not be written to in the world (EOVERFLOW).

Both go to the upper half of the ids, which no system gives to anybody: programs take them for
negative. So no list of accounts has to be asked, which in a company takes seconds.
"""

from __future__ import annotations

from substrate.errors import HostUnsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

RANGE = 65536
_UPPER = 1 << 31
#: ids from RANGE to here are mapped; the ranges of worlds begin at its counterpart
_FAR_END = 0x78000000
_FIRST_BASE = _UPPER + _FAR_END
#: up to the last id but one range: -1 is none
_BASES = (0xFFFF0000 - _FIRST_BASE) // RANGE


def choose_extents(
    number: int, taken: Iterable[tuple[int, int]]
) -> tuple[tuple[int, int, int], ...]:
    """(first in the world, first on the host, count) extents for world `number`.

    `taken`: (first, count) ranges that belong to others (/etc/subuid, /etc/subgid). Raises
    HostUnsupported when they take everything."""
    others = sorted(taken)

    def is_free(start: int, end: int) -> bool:
        return all(end <= first or first + count <= start for first, count in others)

    far = RANGE, _UPPER + RANGE, _FAR_END - RANGE
    for attempt in range(_BASES):
        base = _FIRST_BASE + (number + attempt) % _BASES * RANGE
        if is_free(base, base + RANGE):
            own = 0, base, RANGE
            # somebody who gives away subordinate ids of the upper half has other plans for them
            return (own, far) if is_free(far[1], far[1] + far[2]) else (own,)
    raise HostUnsupported(
        "every range of user ids for worlds is taken by /etc/subuid or /etc/subgid",
        hint="use --backend ns-root",
    )


def is_mapped(extents: Iterable[tuple[int, int, int]], host_id: int) -> bool:
    """Whether an owner of the host's has an id in the world."""
    return any(first <= host_id < first + count for first, _, count in extents)


def parse_subordinate(text: bytes) -> tuple[tuple[int, int], ...]:
    """(first, count) of each line of a subuid(5) file; lines of another form are passed over
    as shadow's own tools do."""
    ranges = []
    for line in text.split(b"\n"):
        fields = line.split(b":")
        if len(fields) == 3 and fields[1].isdigit() and fields[2].isdigit():
            ranges.append((int(fields[1]), int(fields[2])))
    return tuple(ranges)
