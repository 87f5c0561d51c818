"""Which known word a typo means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.suggestion import distance, nearest

KNOWN = ("status", "log", "show", "diff", "apply", "discard", "--net", "--no-world")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("staus", "status"), ("sttaus", "status"), ("stat", "status"), ("aply", "apply"),
        ("--nett", "--net"), ("--no-wrld", "--no-world"), ("xyzzy", None), ("l", None),
    ],
)  # fmt: skip
def test_a_near_word_is_meant_and_a_far_one_is_not(typed, meant):
    assert nearest(typed, KNOWN) == meant


@given(st.text(max_size=12), st.text(max_size=12))
def test_distance_is_symmetric_and_zero_only_for_the_same(a, b):
    assert distance(a, b) == distance(b, a)
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, b) <= max(len(a), len(b))
