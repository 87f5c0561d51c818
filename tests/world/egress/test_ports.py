"""Which ports need a listener, by rules, and what is left out."""

import pytest

from substrate.world.egress.ports import MOST, Ports, in_words, leads_out, ports_of
from substrate.world.egress.rule import parse_rule


def ports(*texts, host_ports=()):
    return ports_of([parse_rule(text, "allow") for text in texts], host_ports)


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        ((), ()),
        (("example.net",), (80, 443)),
        (("*",), (80, 443)),
        (("tls://example.net",), (443,)),
        (("http://example.net",), (80,)),
        (("tcp://example.net",), (80, 443)),
        (("example.net:5432", "*.example.org:22"), (22, 5432)),
        (("example.net:8000-8003", "[2001:db8::7]:8003"), (8000, 8001, 8002, 8003)),
        (("203.0.113.0/24:22",), (22,)),
        (("udp://example.net:53",), ()),
    ],
)
def test_each_that_a_rule_names(texts, numbers):
    assert ports(*texts) == Ports(numbers=numbers)


def test_a_range_of_addresses_is_not_served_on_all_ports():
    assert ports("10.0.0.0/8", "example.net") == Ports(numbers=(80, 443), cut=("10.0.0.0/8",))


def test_those_of_the_host_are_first():
    found = ports("example.net:1-65535", host_ports=(60000,))
    assert found.cut == ("example.net:1-65535",)
    assert len(found.numbers) == MOST
    assert 60000 in found.numbers


def test_rules_of_few_ports_are_before_those_of_many():
    found = ports("wide.example.net:1000-9999", "example.net", "example.org:22")
    assert {22, 80, 443} <= set(found.numbers)
    assert len(found.numbers) == MOST
    assert found.cut == ("wide.example.net:1000-9999",)


def test_exactly_as_many_as_there_can_be():
    text = f"example.net:1000-{999 + MOST}"
    assert ports(text) == Ports(numbers=tuple(range(1000, 1000 + MOST)))
    assert ports(text, "example.org:22").cut == (text,)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((), "no port"),
        ((80,), "port 80"),
        ((80, 443), "ports 80 and 443"),
        ((22, 80, 443), "ports 22, 80 and 443"),
        (tuple(range(1, 15)), "ports 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 2 more"),
    ],
)
def test_for_a_person(numbers, text):
    assert in_words(numbers) == text


def test_a_sentence():
    assert leads_out(()) == "no port leads out"
    assert leads_out((80,)) == "port 80 alone leads out"
    assert leads_out((80, 443)) == "ports 80 and 443 alone lead out"
