"""Whom a routed network reaches: in words and as spans, which must say the same, and the same as rules.py."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.world.egress.addresses import (
    Range,
    embedded,
    parse_address,
    parse_range,
    render_address,
    render_range,
    special,
)
from substrate.world.egress.reach import Policy, refusal
from substrate.world.egress.rules import Rules, parse_rule
from substrate.world.egress.span import carried, contains, meet, merge_spans, subtract, whole

#: near the edges of what is special, and what carries it
_INTERESTING = [
    *("8.8.8.8", "10.0.0.0", "10.255.255.255", "11.0.0.0", "9.255.255.255", "127.0.0.1", "0.0.0.0"),
    *("169.254.169.254", "169.254.169.253", "169.254.1.1", "100.64.0.1", "100.100.100.200"),
    *(
        "168.63.129.16",
        "168.63.129.17",
        "203.0.113.7",
        "224.0.0.1",
        "255.255.255.255",
        "198.18.0.1",
    ),
    *("2001:db8::1", "2606:4700::1", "fd00:ec2::254", "fd00::1", "fe80::1", "ff02::1", "::1", "::"),
    *("64:ff9b::a00:1", "64:ff9b::808:808", "2002:a00:1::1", "2002:808:808::1", "2001::1"),
    *("64:ff9b::a9fe:a9fe", "4000::1", "1fff::1", "3fff::1", "2001:200::1"),
]
_addresses = st.one_of(
    st.sampled_from(_INTERESTING).map(parse_address),
    st.binary(min_size=4, max_size=4),
    st.binary(min_size=16, max_size=16).filter(lambda raw: not raw.startswith(bytes(10))),
)


@st.composite
def _ranges(draw):
    address = draw(_addresses)
    size = 8 * len(address)
    bits = draw(st.one_of(st.just(size), st.integers(0, size)))
    number = int.from_bytes(address, "big") >> size - bits << size - bits
    if len(address) == 16 and number.to_bytes(16, "big").startswith(bytes(10)):
        bits, number = size, int.from_bytes(parse_address("2001:db8::5"), "big")
    return Range(address=number.to_bytes(len(address), "big"), bits=bits)


def _text(span, ports=""):
    shown = render_range(span)
    return f"[{shown}]{ports}" if ":" in shown else f"{shown}{ports}"


@st.composite
def _rules(draw, action):
    span = draw(_ranges())
    protocol = draw(st.sampled_from(["", "tcp://"]))
    ports = draw(st.sampled_from(["", ":443", ":1-1000"]))
    text = protocol + _text(span, ports)
    try:
        parse_rule(text, action)
    except ValueError:
        return draw(st.just("203.0.113.7"))
    return text


def _reached(policy, address, port, protocol):
    """By the spans alone, as the packet filter does it."""
    number = int.from_bytes(address, "big")

    def fits(match):
        if match.protocol not in ("", protocol) or (match.low and protocol not in ("tcp", "udp")):
            return False
        if match.low and not match.low <= port <= match.high:
            return False
        return contains(match.spans4 if len(address) == 4 else match.spans6, number)

    return not any(map(fits, policy.reach.denied)) and any(map(fits, policy.reach.allowed))


@given(
    st.lists(_rules("allow"), min_size=1, max_size=4),
    st.lists(_rules("deny"), max_size=3),
    st.lists(_ranges(), max_size=3),
    _addresses,
    st.sampled_from([22, 443]),
)
def test_as_the_rules_of_a_filtered_network(allow, deny, private, address, port):
    """For TCP, where there are rules that allow: the same decision for every address. (Loopback is the world's
    own there, and nothing of it is led out here.)"""
    try:
        rules = Rules(
            [parse_rule(t, "allow") for t in allow], [parse_rule(t, "deny") for t in deny], private
        )
    except ValueError:
        return  # a private range that is too wide
    if special(address) == "loopback":
        return
    policy = Policy(allow, deny, private, ())
    wanted = rules.address(address, port).allowed
    assert _reached(policy, address, port, "tcp") == wanted
    assert policy.decide(address, port, "tcp")[0] == wanted


@given(st.lists(_rules("deny"), max_size=3), st.lists(_ranges(), max_size=3), _addresses)
def test_without_allow_rules(deny, private, address):
    """Everything but what is special and not opened, or denied."""
    own = (parse_address("203.0.113.99"), address) if address[0] % 2 else ()
    policy = Policy((), deny, private, own)
    reached = _reached(policy, address, 443, "udp")
    assert policy.decide(address, 443, "udp")[0] == reached
    if not private and (special(address) or address in own):
        assert not reached
    if not special(address) and address not in own and not deny:
        assert reached
    for inner in embedded(address):
        if not private and special(inner):
            assert not reached


@given(_addresses, st.sampled_from(["tcp", "udp", "icmp"]), st.sampled_from([0, 53]))
def test_what_is_hinted_would_allow_it(address, protocol, port):
    port = port if protocol != "icmp" else 0
    for allow in ((), ("203.0.113.0/24",)):
        policy = Policy(allow, (), (), ())
        hint = policy.hint(address, port, protocol)
        if policy.decide(address, port, protocol)[0]:
            assert hint == ""
            continue
        flag, _, what = hint.partition(" ")
        private = [parse_range(what)] if flag == "--private" else []
        more = (what,) if flag == "--allow" else ()
        try:
            changed = Policy((*allow, *more), (), private, ())
        except ValueError:
            assert special(address) in ("loopback", "unspecified", "reserved"), (hint, address)
            continue
        assert changed.decide(address, port, protocol)[0], (hint, render_address(address))


def test_the_hosts_own_addresses():
    own = parse_address("203.0.113.9")
    assert not Policy((), (), (), (own,)).decide(own, 80, "tcp")[0]
    assert not Policy(("203.0.113.0/24",), (), (), (own,)).decide(own, 80, "tcp")[0]
    for policy in (
        Policy(("203.0.113.9:80",), (), (), (own,)),
        Policy((), (), (parse_range("203.0.113.9"),), (own,)),
    ):
        assert policy.decide(own, 80, "tcp")[0]
        assert policy.reach.own4 == ((0xCB007109, 0xCB00710A),)
    assert Policy(("203.0.113.0/24",), (), (), (own,)).reach.own4 == ()


def test_ports_are_of_tcp_and_udp():
    policy = Policy(("203.0.113.7:53",), (), (), ())
    address = parse_address("203.0.113.7")
    assert [policy.decide(address, 53, p)[0] for p in ("tcp", "udp", "icmp")] == [True, True, False]
    assert policy.decide(address, 0, "icmp")[2] == "icmp of 203.0.113.7 is not allowed"


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("example.net", "names a host"),
        ("*", "names a host"),
        ("udp://example.net:53", "names a host"),
        ("tls://203.0.113.7", "what is said"),
        ("http://203.0.113.0/24", "what is said"),
    ],
)
def test_rules_that_cannot_be_held(rule, why):
    assert why in refusal([rule])
    with pytest.raises(ValueError, match=why):
        Policy((), (rule,), (), ())


def test_rules_that_can():
    rules = ("203.0.113.7", "udp://[2001:db8::1]:53", "tcp://0.0.0.0/0:1-1000")
    assert refusal(rules) == ""


# --- sets of spans, against sets

_sets = st.sets(st.integers(0, 40))


def _spans(numbers):
    return merge_spans((n, n + 1) for n in numbers)


def _numbers(spans):
    return {n for start, end in spans for n in range(start, end)}


@given(_sets, _sets)
def test_spans_are_sets(one, other):
    assert _numbers(_spans(one)) == one
    assert _numbers(subtract(_spans(one), _spans(other))) == one - other
    assert _numbers(meet(_spans(one), _spans(other))) == one & other
    merged = merge_spans((*_spans(one), *_spans(other)))
    assert _numbers(merged) == one | other
    assert all(a[1] < b[0] for a, b in itertools.pairwise(merged))


def test_carried():
    inside = parse_range("10.0.0.0/8")
    spans = carried(((10 << 24, 11 << 24),))
    for text in ("64:ff9b::a00:1", "2002:aff:1::5"):
        address = parse_address(text)
        assert any(inside.contains(a) for a in embedded(address))
        assert contains(spans, int.from_bytes(address, "big"))
    assert not contains(spans, int.from_bytes(parse_address("64:ff9b::b00:1"), "big"))
    assert whole(4) == ((0, 1 << 32),)


@pytest.mark.parametrize("address", ["64:ff9b::203.0.113.5", "2002:cb00:7105::1"])
def test_what_carries_an_address_of_the_host_is_its_own(address):
    """A translator, of the host or of its network, would lead it there."""
    own, address = parse_address("203.0.113.5"), parse_address(address)
    text = render_address(address)
    for allow in ((), ("[2000::/3]", "[64:ff9b::/96]")):
        policy = Policy(allow, (), (), (own,))
        assert not _reached(policy, address, 80, "tcp")
        allowed, _, why = policy.decide(address, 80, "tcp")
        assert not allowed and "an address of the host itself" in why
    for policy in (
        Policy((f"[{text}]",), (), (), (own,)),
        Policy((), (), (parse_range(text),), (own,)),
    ):
        assert _reached(policy, address, 80, "tcp")
        assert policy.decide(address, 80, "tcp")[0]
