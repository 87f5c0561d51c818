"""The JSON that agents give to hooks, read as json reads it, or refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.cli.hook_input import Unusable, parse_object

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(
    st.dictionaries(st.text(max_size=6), VALUES, max_size=5),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_objects(value, indent, ascii_only):
    found = parse_object(json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode())
    assert found.values == value
    assert {name: json.loads(text) for name, text in found.texts.items()} == value


@given(st.binary(max_size=40) | st.text(alphabet='{}[],:" \\u1enul', max_size=20).map(str.encode))
def test_any_bytes(raw):
    try:
        found = parse_object(raw)
    except Unusable:
        return
    assert json.loads(raw, strict=False) == found.values


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"{}x", b'{"a"}', b'{"a":}', b'{"a":1,}', b"{,}", b'{"a" 1}', b"{'a':1}", b"\xff",
     b'{"a":NaN}', b'{"a":' + b"[" * 100000, b'{"a":' + b"9" * 5000 + b"}", b'{"a":1}{"a":1}', b"null"],
)  # fmt: skip
def test_what_is_no_object_is_refused(raw):
    with pytest.raises(Unusable):
        parse_object(raw)


def test_halves_of_surrogate_pairs_and_a_mark_at_the_beginning():
    assert parse_object(b'\xef\xbb\xbf{"a": "\\ud800"}').values == {"a": "\ud800"}


def test_of_two_members_of_a_name_the_last_counts():
    assert parse_object(b'{"a": 1, "a": 2}').texts == {"a": b"2"}
