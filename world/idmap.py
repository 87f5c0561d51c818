"""The ids that a world of the backend `ns-root-idmap` gets on the host.

Root of the world is an unprivileged uid on the host. One range a world, outside every
subordinate and every known uid, recorded with the world (world.md §2). Users whose ids lie
above the range (directories of companies begin at 10^5 or 10^6) get one id each in it, or
what they own could not be written to in the world (EOVERFLOW).
"""

from __future__ import annotations

from substrate.errors import HostUnsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

RANGE = 65536
_FIRST_BASE = 0x40000000
_BASES = 0x3F00


def choose_extents(
    number: int, taken: Iterable[tuple[int, int]], far_ids: Iterable[int]
) -> tuple[tuple[int, int, int], ...]:
    """(first in the world, first on the host, count) extents for world `number`.

    `taken`: (first, count) ranges that belong to others (/etc/subuid, /etc/subgid).
    `far_ids`: ids of RANGE and above that must work in the world, at most RANGE of them."""
    others = sorted(taken)
    for attempt in range(_BASES // 2):
        base = _FIRST_BASE + ((number + attempt) * 2 % _BASES) * RANGE
        if all(base + 2 * RANGE <= first or first + count <= base for first, count in others):
            far = sorted({i for i in far_ids if i >= RANGE})[:RANGE]
            extents = [(0, base, RANGE)]
            # the kernel takes up to 340 extents (user_namespaces(7)); runs share one
            for position, far_id in enumerate(far):
                last_world, last_host, count = extents[-1]
                if far_id == last_world + count:
                    extents[-1] = (last_world, last_host, count + 1)
                elif len(extents) < 340:
                    extents.append((far_id, base + RANGE + position, 1))
            return tuple(extents)
    raise HostUnsupported(
        "every range of user ids for worlds is taken by /etc/subuid or /etc/subgid",
        hint="use --backend ns-root",
    )


def parse_subordinate(text: bytes) -> tuple[tuple[int, int], ...]:
    """(first, count) of each line of a subuid(5) file; lines of another form are passed over
    as shadow's own tools do."""
    ranges = []
    for line in text.split(b"\n"):
        fields = line.split(b":")
        if len(fields) == 3 and fields[1].isdigit() and fields[2].isdigit():
            ranges.append((int(fields[1]), int(fields[2])))
    return tuple(ranges)
