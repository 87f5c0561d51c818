"""Addresses that stand for names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.world.egress.addresses import parse_address
from substrate.world.egress.fakes import FAKE_RANGE, MOST, Fakes


def test_a_name_keeps_its_address():
    fakes = Fakes()
    first, second = fakes.address_of("a.example"), fakes.address_of("b.example")
    assert (first, second) == (parse_address("198.18.0.1"), parse_address("198.18.0.2"))
    assert fakes.address_of("a.example") == first
    assert fakes.name_of(first) == "a.example"


@pytest.mark.parametrize(
    "address",
    [
        parse_address("198.18.0.0"),
        parse_address("198.18.0.2"),
        parse_address("198.17.255.255"),
        parse_address("198.20.0.0"),
        parse_address("0.0.0.0"),
        parse_address("2001:db8::1"),
        b"",
    ],
)
def test_what_was_not_given_stands_for_nothing(address):
    fakes = Fakes()
    fakes.address_of("a.example")
    assert fakes.name_of(address) is None


def test_all_of_the_range_is_given_but_its_ends():
    fakes = Fakes()
    given_out = {fakes.address_of(f"n{i}.example") for i in range(MOST)}
    assert len(given_out) == MOST == 131070
    assert all(map(FAKE_RANGE.contains, given_out))
    assert not given_out & {parse_address("198.18.0.0"), parse_address("198.19.255.255")}
    assert fakes.address_of("one.more") == parse_address("198.18.0.1")
    assert fakes.name_of(parse_address("198.18.0.1")) == "one.more"


def test_the_least_recently_used_goes_first():
    fakes = Fakes(most=3)
    a, b, c = (fakes.address_of(name) for name in "abc")
    fakes.address_of("a")
    fakes.name_of(b)
    assert fakes.address_of("d") == c
    assert fakes.address_of("e") == a
    assert [fakes.name_of(address) for address in (a, b, c)] == ["e", "b", "d"]


@pytest.mark.parametrize("most", [0, -1, MOST + 1])
def test_how_many_is_bounded(most):
    with pytest.raises(ValueError, match="131070"):
        Fakes(most=most)


@given(st.integers(1, 5), st.lists(st.tuples(st.booleans(), st.sampled_from("abcdefgh"))))
def test_it_is_as_a_list_in_order_of_use(most, calls):
    fakes = Fakes(most=most)
    used: list[tuple[str, bytes]] = []
    for looks, name in calls:
        known = next((entry for entry in used if entry[0] == name), None)
        if looks:
            if known:
                assert fakes.name_of(known[1]) == name
                used.append(used.pop(used.index(known)))
            continue
        address = fakes.address_of(name)
        if known:
            assert address == known[1]
            used.remove(known)
        elif len(used) == most:
            assert address == used.pop(0)[1]
        else:
            assert address not in [entry[1] for entry in used]
        used.append((name, address))


def test_an_address_is_led_before_it_is_given_and_once():
    led = []
    fakes = Fakes(most=2, lead=led.append)
    assert fakes.given() == ()
    first, second = fakes.address_of("a"), fakes.address_of("b")
    assert led == [first, second]
    assert fakes.given() == (first, second)
    assert [fakes.address_of(name) for name in ("a", "c", "d")] == [first, second, first]
    assert led == [first, second]
    assert fakes.given() == (first, second)


def test_an_address_that_cannot_be_led_is_not_given():
    fail = [OSError("no memory")]

    def lead(_address):
        if fail:
            raise fail.pop()

    fakes = Fakes(lead=lead)
    with pytest.raises(OSError, match="no memory"):
        fakes.address_of("a")
    assert fakes.given() == ()
    assert fakes.name_of(parse_address("198.18.0.1")) is None
    assert fakes.address_of("b") == parse_address("198.18.0.1")
