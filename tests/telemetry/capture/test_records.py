"""Records are read as they were written, and torn ones are refused (records.py)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.telemetry.capture import records

ITEMS = st.lists(st.tuples(st.integers(1, 18), st.binary(max_size=40)), max_size=4).map(tuple)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 2**32 - 1), ITEMS), max_size=5))
def test_records_are_read_as_they_were_written(made):
    data = b"".join(records.make_record(k, tid=t, nr=-3, result=-2, items=i) for k, t, i in made)
    found = []
    for head, at, end in records.read_records(data):
        assert head[5:6] == (-3,) and head[7] == -2
        items = tuple((tag, text) for tag, _, text in records.read_items(data, at, end))
        found.append((head[1], head[4], items))
    assert found == made


@pytest.mark.parametrize("cut", [1, 8, 79, 80, 81, 95])
def test_a_torn_record_is_refused(cut):
    data = records.make_record(records.CALL, tid=1, items=((records.PATH, b"/etc/passwd"),))
    with pytest.raises(records.Torn):
        for _, at, end in records.read_records(data[:cut]):
            list(records.read_items(data, at, end))


@given(st.binary(max_size=300))
def test_no_bytes_make_it_crash(data):
    try:
        for _, at, end in records.read_records(data):
            list(records.read_items(data, at, end))
    except records.Torn:
        pass
