"""Globs of words and rows: as fnmatch says it, and in a time that no pattern can make long."""

from __future__ import annotations

import fnmatch
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.policy.globs import REST, Glob, compile_word, escape, meets, meets_row

LETTERS = st.sampled_from([b"a", b"b", b"/", b"*", b"?", b"[", b"]", b"-", b"!"])
TEXT = st.lists(LETTERS, max_size=8).map(b"".join)


@pytest.mark.parametrize(
    ("pattern", "meeting", "others"),
    [
        (b"a", [b"a"], [b"b", b"aa", b""]),
        (b"*", [b"", b"a", b"a/b", b"\xff\n"], []),
        (b"a*", [b"a", b"abc"], [b"ba"]),
        (b"*a", [b"a", b"ba"], [b"ab"]),
        (b"a*a", [b"aa", b"aba"], [b"a"]),
        (b"a*b*c", [b"abc", b"axbxc", b"abbcc"], [b"acb", b"ab"]),
        (b"?", [b"a", b"\xff"], [b"", b"ab"]),
        (b"[a-c]x", [b"ax", b"cx"], [b"dx", b"x"]),
        (b"[!a-c]", [b"d"], [b"a", b""]),
        (b"[^a]", [b"b"], [b"a"]),
        (b"[]a]", [b"]", b"a"], [b"b"]),
        (b"[a", [b"[a"], [b"a"]),
        (b"[*]", [b"*"], [b"a"]),
        (b"*.[ch]", [b"a.c", b".h"], [b"a.o", b"a.cc"]),
    ],
)
def test_words(pattern, meeting, others):
    compiled = compile_word(pattern)
    assert [word for word in meeting if not meets(compiled, word)] == []
    assert [word for word in others if meets(compiled, word)] == []


@given(TEXT, TEXT)
def test_as_fnmatch(pattern, word):
    # fnmatch takes a range that is empty (`[b-a]`) for a set without it, as we do
    there = re.compile(fnmatch.translate(pattern.decode())).fullmatch(word.decode())
    if b"^" not in pattern:
        assert Glob(pattern).matches(word) == bool(there)


@given(st.binary(max_size=12), st.binary(max_size=12))
def test_an_escaped_word_is_met_by_itself_alone(word, other):
    compiled = compile_word(escape(word))
    assert compiled == word
    assert meets(compiled, other) == (word == other)


def test_hostile_patterns_take_no_time():
    """A backtracking matcher would not come back from either."""
    assert not Glob(b"a*" * 40 + b"b").matches(b"a" * 20_000)
    assert not Glob(b"*[ab]?" * 30 + b"c").matches(b"ab" * 5_000)
    row = [Glob(b"a"), REST] * 20 + [b"b"]
    assert not meets_row(row, [b"a"] * 5_000)


@pytest.mark.parametrize(
    ("row", "meeting", "others"),
    [
        ([], [[]], [[b"a"]]),
        ([REST], [[], [b"a"], [b"a", b"b"]], []),
        ([b"a", REST], [[b"a"], [b"a", b"b"]], [[], [b"b"]]),
        ([REST, b"a"], [[b"a"], [b"b", b"a"], [b"a", b"a"]], [[], [b"a", b"b"]]),
        ([REST, b"a", REST, b"b"], [[b"a", b"b"], [b"x", b"a", b"y", b"b"]], [[b"b", b"a"]]),
    ],
)
def test_rows(row, meeting, others):
    assert [words for words in meeting if not meets_row(row, words)] == []
    assert [words for words in others if meets_row(row, words)] == []


def test_a_row_of_which_more_may_follow():
    assert meets_row([b"a", b"b"], [b"a"], more=True)
    assert meets_row([b"a", b"b"], [], more=True)
    assert not meets_row([b"a", b"b"], [b"b"], more=True)


def _row(words: list[bytes]) -> list[object]:
    return [REST if word == b"**" else compile_word(word) for word in words]


def _slowly(row: list[object], words: list[bytes]) -> bool:
    if not row:
        return not words
    if row[0] is None:
        return any(_slowly(row[1:], words[at:]) for at in range(len(words) + 1))
    return bool(words) and meets(row[0], words[0]) and _slowly(row[1:], words[1:])


WORDS = st.lists(st.sampled_from([b"a", b"b", b"ab"]), max_size=6)


@given(st.lists(st.sampled_from([b"a", b"b", b"**", b"a*", b"?"]), max_size=5), WORDS)
def test_rows_as_they_are_meant(pattern, words):
    assert meets_row(_row(pattern), words) == _slowly(_row(pattern), words)
