"""Where links of routed networks lie."""

from hypothesis import given
from hypothesis import strategies as st

from substrate.world.egress.addresses import Range, parse_range
from substrate.world.egress.veth_place import TRIES, places

WIDE = parse_range("100.127.0.0/16")


def test_every_number_is_another_place():
    found = list(places(parse_range("100.127.0.0/23"), 0, ()))
    assert len(found) == 256
    for field in ("name", "world4", "host4", "world6", "host6"):
        assert len({getattr(place, field) for place in found}) == 256
    first = found[0]
    assert (first.host4, first.world4) == (b"\x64\x7f\0\0", b"\x64\x7f\0\1")
    assert all(len(place.name) <= 15 for place in found)


@given(st.integers(0, 1 << 30), st.integers(0, 1 << 30))
def test_a_name_stands_for_its_addresses(start, other):
    """Also of other ranges: whoever has the name has the addresses."""
    (one, *_), (two, *_) = places(WIDE, start, ()), places(parse_range("100.0.0.0/8"), other, ())
    assert (one.name == two.name) == (one.host4 == two.host4) == (one.host6 == two.host6)


@given(st.integers(0, 1 << 15), st.integers(16, 32))
def test_no_route_of_the_host_is_touched(start, bits):
    address = (0x647F1234 >> 32 - bits << 32 - bits).to_bytes(4, "big")
    taken = (Range(address=address, bits=bits), parse_range("fd00::/9"))
    for place in places(WIDE, start, taken[:1]):
        assert not taken[0].contains(place.host4) and not taken[0].contains(place.world4)
    assert list(places(WIDE, start, (parse_range("100.0.0.0/8"),))) == []
    assert len(list(places(WIDE, start, ()))) == TRIES
    assert list(places(WIDE, start, taken[1:])) == []
