"""Three-way merge of texts by lines: pure, bytes in, bytes or the hunks that clash out.

Not a diff for people (patch.py). Each side is aligned with the base; where both alignments meet
on a base line, the texts are cut. Between two cuts there are three pieces, and the one that
differs from the base wins; where both sides differ from it and from each other, they clash.
Neighbouring edits without an untouched line between them clash too.

Alignment is by anchors: lines that are there once on either side, in their longest common order,
and again between those; what has no anchor is compared cell by cell while it is small. Work is
bounded: where it would not end soon, lines count as different, which can only make a clash out
of a merge. A line ends with LF; a CR before it belongs to the line, and so does the lack of an
LF at the end of a text. Invariant: what comes out is made of pieces of the three, and every piece
that a side changed is in it or in a clash. Spec: world.md §5.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

#: cells that are compared one by one: in one place, and in all
_CELLS = 250_000
_ALL_CELLS = 4_000_000
#: lines that are looked at for anchors, as a multiple of all
_PASSES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Clash:
    """A place that both sides changed, each in its way. `start`, `end`: lines of the base, from
    0, the end not included."""

    start: int
    end: int
    ours: tuple[bytes, ...]
    theirs: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """`content` is None where there are clashes."""

    content: bytes | None
    clashes: tuple[Clash, ...] = ()


def merge(base: bytes, ours: bytes, theirs: bytes) -> Merged:
    """The merge of two texts that came from `base`."""
    if ours == theirs or theirs == base:
        return Merged(content=ours)
    if ours == base:
        return Merged(content=theirs)
    b, o, t = lines_of(base), lines_of(ours), lines_of(theirs)
    to_ours = dict(matches(b, o))
    to_theirs = dict(matches(b, t))
    pieces: list[Sequence[bytes]] = []
    clashes: list[Clash] = []
    at_b = at_o = at_t = 0
    cuts = [(i, to_ours[i], to_theirs[i]) for i in sorted(to_ours.keys() & to_theirs.keys())]
    for cut_b, cut_o, cut_t in (*cuts, (len(b), len(o), len(t))):
        was, one, other = b[at_b:cut_b], o[at_o:cut_o], t[at_t:cut_t]
        if one in (was, other):
            pieces.append(other)
        elif other == was:
            pieces.append(one)
        else:
            clashes.append(Clash(start=at_b, end=cut_b, ours=tuple(one), theirs=tuple(other)))
        pieces.append(b[cut_b : cut_b + 1])
        at_b, at_o, at_t = cut_b + 1, cut_o + 1, cut_t + 1
    if clashes:
        return Merged(content=None, clashes=tuple(clashes))
    return Merged(content=b"".join(line for piece in pieces for line in piece))


def lines_of(text: bytes) -> list[bytes]:
    """The lines with their ends; by LF alone, bytes.splitlines would cut at a CR too."""
    found = text.split(b"\n")
    last = found.pop()
    return [line + b"\n" for line in found] + ([last] if last else [])


def matches(a: Sequence[bytes], b: Sequence[bytes]) -> list[tuple[int, int]]:
    """(index in a, index in b) of equal lines, growing in both."""
    found: list[tuple[int, int]] = []
    looks, cells = _PASSES * (len(a) + len(b)), _ALL_CELLS
    pending = [(0, len(a), 0, len(b))]
    while pending:
        a0, a1, b0, b1 = pending.pop()
        while a0 < a1 and b0 < b1 and a[a0] == b[b0]:
            found.append((a0, b0))
            a0, b0 = a0 + 1, b0 + 1
        while a0 < a1 and b0 < b1 and a[a1 - 1] == b[b1 - 1]:
            a1, b1 = a1 - 1, b1 - 1
            found.append((a1, b1))
        looks -= a1 - a0 + b1 - b0
        if a0 == a1 or b0 == b1 or looks < 0:
            continue
        anchors = _anchors(a, (a0, a1), b, (b0, b1))
        if anchors:
            found += anchors
            for i, j in [*anchors, (a1, b1)]:
                pending.append((a0, i, b0, j))
                a0, b0 = i + 1, j + 1
        elif (a1 - a0) * (b1 - b0) <= min(cells, _CELLS):
            cells -= (a1 - a0) * (b1 - b0)
            found += [(a0 + i, b0 + j) for i, j in _common(a[a0:a1], b[b0:b1])]
    found.sort()
    return found


def _anchors(
    a: Sequence[bytes], in_a: tuple[int, int], b: Sequence[bytes], in_b: tuple[int, int]
) -> list[tuple[int, int]]:
    """Lines that are there once in either range, as many as are in the same order."""
    pairs = []
    places = _once(b, in_b)
    for line, i in _once(a, in_a).items():
        j = places.get(line, -1)
        if i >= 0 and j >= 0:
            pairs.append((i, j))
    pairs.sort()
    # the longest run that grows (patience sorting): `tops` holds, for each length, the
    # smallest last j of a run of that length
    tops: list[int] = []
    at_top: list[int] = []
    behind: list[int] = []
    for number, (_, j) in enumerate(pairs):
        pile = bisect_left(tops, j)
        behind.append(at_top[pile - 1] if pile else -1)
        if pile == len(tops):
            tops.append(j)
            at_top.append(number)
        else:
            tops[pile], at_top[pile] = j, number
    run = []
    number = at_top[-1] if at_top else -1
    while number >= 0:
        run.append(pairs[number])
        number = behind[number]
    run.reverse()
    return run


def _once(lines: Sequence[bytes], within: tuple[int, int]) -> dict[bytes, int]:
    """Line → where it is, or -1 for one that is there more than once."""
    found: dict[bytes, int] = {}
    for index in range(*within):
        line = lines[index]
        found[line] = -1 if line in found else index
    return found


def _common(a: Sequence[bytes], b: Sequence[bytes]) -> list[tuple[int, int]]:
    """A longest common subsequence."""
    width = len(b)
    #: rows[i][j]: its length for a[i:] and b[j:]
    rows = [[0] * (width + 1)]
    for line in reversed(a):
        below = rows[-1]
        row = [0] * (width + 1)
        for j in range(width - 1, -1, -1):
            if line == b[j]:
                row[j] = below[j + 1] + 1
            else:
                row[j] = row[j + 1] if row[j + 1] > below[j] else below[j]
        rows.append(row)
    rows.reverse()
    found = []
    i = j = 0
    while i < len(a) and j < width:
        if a[i] == b[j]:
            found.append((i, j))
            i, j = i + 1, j + 1
        elif rows[i + 1][j] >= rows[i][j + 1]:
            i += 1
        else:
            j += 1
    return found
