"""Names that a world chooses are looked up in bounded number and length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.world.egress.lookups import LONGEST_FRONT, MOST, Lookups
from substrate.world.egress.rules import Rules, parse_rule

DOMAIN = "wild.example"


def test_a_minute_has_a_sixteenth():
    lookups = Lookups()
    taken = [lookups.take(f"n{n}.{DOMAIN}", DOMAIN, 5.0) for n in range(100)]
    assert [n for n, why in enumerate(taken) if why is None] == list(range(MOST // 16))
    assert taken[-1].reason.startswith("62 different names in a minute were looked up below wild.")
    assert taken[-1].hint == "--limit lookups=4000"
    assert lookups.take(f"n0.{DOMAIN}", DOMAIN, 6.0) is None  # again
    assert lookups.take(f"n99.{DOMAIN}", DOMAIN, 64.9) is not None
    assert lookups.take(f"n99.{DOMAIN}", DOMAIN, 65.0) is None


def test_a_command_has_an_end():
    lookups = Lookups(32)
    taken = [lookups.take(f"n{n}.{DOMAIN}", DOMAIN, 60.0 * n) for n in range(40)]
    assert [n for n, why in enumerate(taken) if why is None] == list(range(32))
    assert taken[-1].reason.startswith("32 different names were")
    assert lookups.take("a.other.example", "other.example", 0.0) is None


def test_a_long_name():
    label = "a" * 49
    longest = f"{label}.{label}x"
    assert len(longest) == LONGEST_FRONT
    lookups = Lookups()
    assert lookups.take(f"{longest}.{DOMAIN}", DOMAIN, 0.0) is None
    why = lookups.take(f"{longest}x.{DOMAIN}", DOMAIN, 0.0)
    assert (why.hint, "101 characters in front of wild.example" in why.reason) == ("", True)
    assert lookups.take(f"{longest}x.{DOMAIN}", "", 0.0) is None


@given(
    st.integers(1, 200),
    st.lists(st.tuples(st.integers(0, 300), st.floats(0, 40)), max_size=300),
)
def test_never_more_than_it_says(most, asked):
    lookups = Lookups(most)
    now, out = 0.0, {}
    for number, pause in asked:
        now += pause
        name = f"n{number}.{DOMAIN}"
        if lookups.take(name, DOMAIN, now) is None:
            out.setdefault(name, now)
    assert len(out) <= most
    for begun in out.values():
        assert sum(begun <= one < begun + 60 for one in out.values()) <= max(1, most // 16)


@pytest.mark.parametrize(
    ("rules", "domain"),
    [
        (["*.wild.example"], "wild.example"),
        (["*.example", "tls://*.wild.example:443"], "wild.example"),
        (["*.wild.example", "a.wild.example:22"], ""),
        (["*.wild.example", "*"], ""),
        (["b.wild.example"], ""),
        (["udp://*.wild.example:53", "*.example"], "example"),
    ],
)
def test_under_which_wildcard_a_name_is(rules, domain):
    made = Rules([parse_rule(text, "allow") for text in rules], [])
    assert made.wildcard_of("a.wild.example") == domain
