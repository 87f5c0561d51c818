"""The three-way merge: examples, and what must hold for all texts."""

from __future__ import annotations

import random
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.world.merge3 import Clash, lines_of, matches, merge

LINES = st.sampled_from([b"a", b"b", b"c", b"", b"}", b"x\r", b"\xff\xfe"])
TEXTS = st.builds(
    lambda lines, end: b"\n".join(lines) + end,
    st.lists(LINES, max_size=12),
    st.sampled_from([b"", b"\n"]),
)


def text(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


TEN = [str(n) for n in range(10)]


def edited(**places: str) -> bytes:
    """The ten lines with some replaced (`_3="x"`; an empty one is left out)."""
    lines = [places.get(f"_{n}", line) for n, line in enumerate(TEN)]
    return text(*[part for line in lines if line for part in line.split("\n")])


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (edited(_1="one"), edited(_8="eight"), edited(_1="one", _8="eight")),
        (edited(_1=""), edited(_8=""), edited(_1="", _8="")),
        (edited(_1="1\nnew"), edited(_8=""), edited(_1="1\nnew", _8="")),
        (edited(_0="top\n0"), edited(_9="9\nend"), edited(_0="top\n0", _9="9\nend")),
        (edited(_4="same"), edited(_4="same"), edited(_4="same")),
        (edited(_4="same", _1="x"), edited(_4="same", _8="y"), edited(_4="same", _1="x", _8="y")),
        (b"", text(*TEN), b""),
        (text(*TEN), edited(_2="x"), edited(_2="x")),
    ],
)
def test_what_merges(ours: bytes, theirs: bytes, expected: bytes) -> None:
    assert merge(text(*TEN), ours, theirs).content == expected
    assert merge(text(*TEN), theirs, ours).content == expected


@pytest.mark.parametrize(
    ("ours", "theirs", "start", "end"),
    [
        (edited(_4="mine"), edited(_4="yours"), 4, 5),
        (edited(_4="mine"), edited(_4=""), 4, 5),
        (edited(_4="mine"), edited(_5="yours"), 4, 6),
        (edited(_9="9\nmine"), edited(_9="9\nyours"), 10, 10),
        (edited(_0="mine\n0"), edited(_0="yours\n0"), 0, 0),
        (b"", edited(_4="x"), 0, 10),
    ],
)
def test_what_clashes(ours: bytes, theirs: bytes, start: int, end: int) -> None:
    found = merge(text(*TEN), ours, theirs)
    assert found.content is None
    assert [(c.start, c.end) for c in found.clashes] == [(start, end)]
    mirrored = merge(text(*TEN), theirs, ours)
    assert [(c.ours, c.theirs) for c in mirrored.clashes] == [
        (c.theirs, c.ours) for c in found.clashes
    ]


def test_two_clashes_are_both_told() -> None:
    found = merge(text(*TEN), edited(_1="m", _7="m"), edited(_1="y", _7="y", _4="fine"))
    assert found.clashes == (
        Clash(start=1, end=2, ours=(b"m\n",), theirs=(b"y\n",)),
        Clash(start=7, end=8, ours=(b"m\n",), theirs=(b"y\n",)),
    )


def test_crlf_lines_merge_and_stay() -> None:
    base = b"a\r\nb\r\nc\r\nd\r\n"
    found = merge(base, base.replace(b"a", b"A"), base.replace(b"d", b"D"))
    assert found.content == b"A\r\nb\r\nc\r\nD\r\n"


def test_other_line_ends_clash_with_an_edit() -> None:
    base = b"a\nb\nc\n"
    assert merge(base, base.replace(b"\n", b"\r\n"), base.replace(b"b", b"B")).content is None


def test_the_missing_newline_at_the_end_stays_or_clashes() -> None:
    assert merge(b"a\nb\nc", b"A\nb\nc", b"a\nb\nc").content == b"A\nb\nc"
    assert merge(b"a\nb\nc\nd", b"A\nb\nc\nd", b"a\nb\nc\nD").content == b"A\nb\nc\nD"
    assert merge(b"a\nb\n", b"a\nb", b"a\nb\nc\n").content is None
    assert merge(b"a\nb\nc\n", b"a\nb\nc", b"A\nb\nc\n").content == b"A\nb\nc"


@given(TEXTS, TEXTS)
def test_one_side_alone_wins(base: bytes, x: bytes) -> None:
    assert merge(base, base, x).content == x
    assert merge(base, x, base).content == x
    assert merge(base, x, x).content == x


@given(TEXTS, TEXTS, TEXTS)
def test_it_does_not_matter_who_is_who(base: bytes, x: bytes, y: bytes) -> None:
    one, other = merge(base, x, y), merge(base, y, x)
    assert one.content == other.content
    assert [(c.start, c.end, c.ours, c.theirs) for c in one.clashes] == [
        (c.start, c.end, c.theirs, c.ours) for c in other.clashes
    ]


EDITS = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(["insert", "delete", "replace"])), max_size=8
)


def with_edits(base: list[bytes], edits: list[tuple[int, str]], mark: str) -> list[bytes]:
    lines = list(base)
    for number, (place, what) in enumerate(edits):
        place = min(place, len(lines))
        new = [f"{mark}{number}\n".encode()]
        if what == "insert":
            lines[place:place] = new
        elif what == "delete":
            del lines[place : place + 1]
        else:
            lines[place : place + 1] = new
    return lines


@given(st.integers(0, 40), EDITS, EDITS)
def test_no_line_is_lost_and_none_comes_back(size: int, mine: Any, yours: Any) -> None:
    base = [f"{n}\n".encode() for n in range(size)]
    x, y = with_edits(base, mine, "x"), with_edits(base, yours, "y")
    found = merge(b"".join(base), b"".join(x), b"".join(y))
    if found.content is None:
        assert found.clashes
        return
    lines = lines_of(found.content)
    assert {line for line in (*x, *y) if line not in base} <= set(lines)
    for line in base:
        assert (line in lines) == (line in x and line in y)
    assert len(lines) == len(set(lines))


@given(st.integers(1, 12), st.data())
def test_edits_with_an_untouched_line_between_them_both_survive(size: int, data: Any) -> None:
    base = [f"{n}\n".encode() for n in range(4 * size)]
    sides = [list(base), list(base)]
    both = list(base)
    for start in range(0, 4 * size, 4):
        side = data.draw(st.integers(0, 1))
        new = data.draw(st.lists(st.sampled_from([b"n\n", b"m\n", b"0\n"]), max_size=3))
        for lines in (sides[side], both):
            lines[start : start + 2] = [b"".join(new), b""]
    found = merge(*(b"".join(lines) for lines in (base, *sides)))
    assert found.content == b"".join(both)


@given(st.lists(LINES, max_size=30), st.lists(LINES, max_size=30))
def test_matches_are_equal_lines_in_order(a: list[bytes], b: list[bytes]) -> None:
    found = matches(a, b)
    assert all(a[i] == b[j] for i, j in found)
    assert all(p[0] < q[0] and p[1] < q[1] for p, q in pairwise(found))


@pytest.mark.parametrize(
    "alphabet", [2, 3, 1000, 10**9], ids=["two lines", "three", "thousand", "none in common"]
)
def test_it_ends_soon_whatever_the_texts(alphabet: int) -> None:
    made = random.Random(7)

    def some() -> bytes:
        return b"".join(b"%d\n" % made.randrange(alphabet) for _ in range(60_000))[:262_144]

    texts = [some(), some(), some()]
    start = time.process_time()
    merge(*texts)
    assert time.process_time() - start < 20  # seconds of CPU; minutes without the bounds


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_real_sized_edits_of_a_text_of_many_equal_lines(seed: int) -> None:
    made = random.Random(seed)
    base = [made.choice([b"}\n", b"\n", b"{\n", b"x = %d\n" % n]) for n in range(600)]
    first, second = list(base), list(base)
    first[100:103] = [b"mine\n"]
    second[500:500] = [b"yours\n"]
    both = list(second)
    both[100:103] = [b"mine\n"]
    found = merge(b"".join(base), b"".join(first), b"".join(second))
    assert found.content == b"".join(both)
