"""The rules of a world as bytes: ranges become spans, a batch is one request."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.world.egress import netlink, nft, nft_expressions
from tests.world.egress.namespace.places import Range


@st.composite
def ranges(draw, size):
    bits = draw(st.integers(0, 8 * size))
    number = draw(st.integers(0, 2 ** (8 * size) - 1))
    shift = 8 * size - bits
    return Range(address=(number >> shift << shift).to_bytes(size, "big"), bits=bits)


@st.composite
def near(draw):
    """Small ranges close to each other, and to both ends."""
    bits = draw(st.integers(26, 32))
    base = draw(st.sampled_from([0, 2**32 - 256, 0x0A000000]))
    number = base + draw(st.integers(0, 255))
    shift = 32 - bits
    return Range(address=(number >> shift << shift).to_bytes(4, "big"), bits=bits)


def holds(found, number):
    shift = 8 * len(found.address) - found.bits
    return number >> shift == int.from_bytes(found.address, "big") >> shift


@given(st.lists(near(), max_size=12))
def test_spans_hold_what_the_ranges_hold(some):
    spans = nft.merge(some)
    for base in (0, 2**32 - 256, 0x0A000000):
        for number in range(max(0, base - 1), min(2**32, base + 257)):
            raw = number.to_bytes(4, "big")
            inside = any(start <= raw and (end is None or raw < end) for start, end in spans)
            assert inside == any(holds(one, number) for one in some)


@pytest.mark.parametrize("size", [4, 16])
@given(st.data())
def test_spans_are_in_order_and_do_not_touch(size, data):
    spans = nft.merge(data.draw(st.lists(ranges(size), max_size=20)))
    for (start, end), (after, _) in itertools.pairwise(spans):
        assert end is not None
        assert start < end < after
    assert all(len(start) == size for start, _ in spans)


def test_the_whole_space_has_no_end():
    assert nft.merge([Range(address=bytes(4), bits=0)]) == [(bytes(4), None)]
    assert nft.merge([]) == []


def test_a_batch_asks_for_one_acknowledgement():
    batch = nft_expressions.Batch("t")
    batch.table()
    batch.chain("c", "filter", 0)
    begun = batch.copy()
    batch.rule("c", nft_expressions.verdict(nft_expressions.ACCEPT))
    batch.set("s", (bytes([0, 80]), bytes([0, 81])), 2)
    messages = netlink.parse_messages(batch.encode())
    assert [one.kind for one in messages] == [0x10, 0xA00, 0xA03, 0xA06, 0xA09, 0xA0C, 0x11]
    assert [one.sequence for one in messages[1:-1]] == [1, 2, 3, 4, 5]
    assert [one.sequence for one in messages if one.flags & netlink.ACK] == [batch.last()]
    assert begun.last() == 2
    assert len(netlink.parse_messages(begun.encode())) == 4


def test_a_part_has_a_name():
    batch = nft_expressions.Batch("t")
    batch.table()
    assert [batch.part(number) for number in (0, 1, 2)] == ["commit", "table (1)", "commit"]
