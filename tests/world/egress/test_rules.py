"""Who may be reached: decisions, and that deny always wins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.world.egress.addresses import parse_address, parse_range, render_address, special
from substrate.world.egress.rules import BadRule, Rules, parse_rule

OUTSIDE = parse_address("203.0.113.7")


def rules(allow="", deny="", private="", host_ports=()):
    return Rules(
        [parse_rule(text, "allow") for text in allow.split()],
        [parse_rule(text, "deny") for text in deny.split()],
        [parse_range(text) for text in private.split()],
        host_ports,
    )


def said(decision):
    """What may be spoken, or the reason why nothing may."""
    assert bool(decision.speak) == decision.allowed
    return decision.speak or decision.reason


def at(found, text, port, protocol="tcp"):
    return said(found.address(parse_address(text), port, protocol))


SPECIAL = [
    *(
        "10.0.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        "198.18.0.1",
        "100.64.0.1",
    ),
    *("::1", "::", "fd00::1", "fe80::1", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::10.0.0.1"),
    *("2002:a00:1::", "2001:0:808:808::80ff:fffe", "4000::1"),
]


# names and ports


def test_a_name_that_no_rule_names():
    found = rules("example.net")
    for name in ("example.com", "a.example.net", "net", "evilexample.net", "example.net.evil.org"):
        assert said(found.connect(name, 443)) == f"no rule names {name}"
        assert found.name(name).reason == f"no rule names {name}"
        assert not found.name(name).allowed


def test_a_port_that_no_rule_names():
    found = rules("example.com:443 example.com:8000-8010")
    decision = found.connect("example.com", 22)
    assert decision.reason == "port 22 of example.com is not allowed: rules name 443, 8000-8010"
    assert (decision.allowed, decision.rule) == (False, "")
    assert found.name("example.com").allowed
    many = rules(" ".join(f"example.com:{port}" for port in range(1, 10)))
    assert said(many.connect("example.com", 22)).endswith("1, 2, 3, 4, 5, 6 and 3 more")


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_what_is_no_port(port):
    found = rules("* 203.0.113.0/24", host_ports=[1])
    assert not found.connect("example.net", port).allowed
    assert not found.address(OUTSIDE, port).allowed
    assert not found.address(parse_address("127.0.0.1"), port).allowed
    assert not found.destination("example.net", OUTSIDE, port).allowed


def test_a_wildcard_is_of_whole_labels_and_not_of_the_name_itself():
    found = rules("*.example.net")
    for name in ("a.example.net", "a.b.c.example.net"):
        assert found.connect(name, 443).rule == "*.example.net"
    for name in ("example.net", "evilexample.net", "a.example.org", "example.net.a"):
        assert not found.connect(name, 443).allowed
    assert rules("*").connect("anything", 443).allowed
    assert rules("*").connect("any.thing", 443).allowed
    assert not rules("*").address(OUTSIDE, 443).allowed


@pytest.mark.parametrize(
    "name",
    [
        "EXAMPLE.net",
        "example.net.",
        "evil.net\0.example.net",
        "a..example.net",
        "",
        ".",
        "*.example.net",
        "127.1",
        "bücher.example.net",
        "x" * 300,
        "\ud800",
    ],
)
def test_a_name_in_another_spelling_is_refused_whatever_the_rules(name):
    found = rules("* *.example.net example.net")
    for decision in (
        found.connect(name, 443),
        found.name(name),
        found.destination(name, OUTSIDE, 443),
    ):
        assert not decision.allowed
        assert "spelling" in decision.reason


# what may be spoken


@pytest.mark.parametrize(
    ("allow", "port", "speak"),
    [
        ("x.net", 443, "checked"),
        ("x.net", 5432, "checked"),
        ("x.net:443", 443, "checked"),
        ("x.net:80", 80, "checked"),
        ("x.net:5432", 5432, "any"),
        ("x.net:1-65535", 80, "checked"),
        ("x.net:1-65535", 81, "any"),
        ("tls://x.net", 5432, "tls"),
        ("http://x.net:8080", 8080, "http"),
        ("tcp://x.net", 443, "unchecked"),
        ("tcp://x.net:22", 22, "unchecked"),
        ("tls://x.net http://*.net", 443, "checked"),
        ("tls://x.net x.net", 443, "checked"),
        ("tls://x.net x.net:22", 22, "any"),
        ("x.net tcp://* tls://x.net", 443, "unchecked"),
    ],
)
def test_the_rule_that_permits_most_is_taken(allow, port, speak):
    assert said(rules(allow).connect("x.net", port)) == speak
    backwards = " ".join(reversed(allow.split()))
    assert said(rules(backwards).connect("x.net", port)) == speak


def test_the_rule_that_was_taken_is_named():
    found = rules("*.net x.net:22 tcp://*:25 tls://y.org http://y.org *.org:443 *.a.org:443")
    assert found.connect("x.net", 443).rule == "*.net"
    assert found.connect("x.net", 22).rule == "x.net:22"
    assert found.connect("x.net", 25).rule == "tcp://*:25"
    assert found.connect("y.org", 444).rule == "tls://y.org, http://y.org"
    assert found.connect("b.a.org", 443).rule == "*.a.org:443"  # the most particular of equals
    assert found.connect("b.a.org", 443).reason == "allowed by *.a.org:443"


def test_a_udp_rule_opens_no_tcp_and_the_other_way_round():
    found = rules("udp://x.net:53 udp://203.0.113.7:53 198.51.100.7")
    assert not found.connect("x.net", 53).allowed
    assert not found.name("x.net").allowed
    assert at(found, "203.0.113.7", 53) == "no rule names 203.0.113.7"
    assert at(found, "203.0.113.7", 53, "udp") == "unchecked"
    assert at(found, "203.0.113.7", 54, "udp").endswith("rules name 53")
    assert at(found, "198.51.100.7", 53, "udp") == "no rule names 198.51.100.7 for UDP"


# deny


@pytest.mark.parametrize(
    "deny", ["x.net", "*.net", "*", "x.net:1-65535", "tcp://x.net", "x.net:443"]
)
def test_deny_beats_every_allow(deny):
    found = rules("x.net x.net:443 tcp://x.net:443 *.net * tls://x.net", deny)
    decision = found.connect("x.net", 443)
    assert (decision.allowed, decision.rule) == (False, deny)
    assert decision.reason == f"port 443 of x.net is denied by {deny}"
    assert found.name("x.net").allowed == (deny == "x.net:443")


def test_a_deny_of_a_name_takes_it_out_of_a_wildcard():
    found = rules("*.example.net", "bad.example.net *.worse.example.net")
    assert found.connect("good.example.net", 443).allowed
    assert found.connect("worse.example.net", 443).allowed
    for name in ("bad.example.net", "a.worse.example.net"):
        assert not found.connect(name, 443).allowed
        assert not found.name(name).allowed
        assert not found.destination(name, OUTSIDE, 443).allowed
    assert found.name("bad.example.net").rule == "bad.example.net"


def test_a_deny_of_a_port_leaves_the_others():
    found = rules("x.net", "x.net:22 x.net:8000-8100")
    assert not found.connect("x.net", 22).allowed
    assert not found.connect("x.net", 8050).allowed
    assert found.connect("x.net", 443).allowed
    assert found.name("x.net").allowed


def test_a_name_all_of_whose_ports_are_denied_is_missing():
    assert not rules("x.net:443", "x.net:400-500").name("x.net").allowed
    assert not rules("x.net", "x.net:1-65535 x.net:5-10").name("x.net").allowed
    assert not rules("x.net", "x.net:1-1000 *:900-65535").name("x.net").allowed
    assert rules("x.net", "x.net:1-1000 *:1002-65535").name("x.net").allowed
    assert not rules("tls://x.net", "tls://*").name("x.net").allowed
    assert rules("tls://x.net x.net", "tls://*").name("x.net").allowed
    assert not rules("x.net:5432", "tls://* http://*").name("x.net").allowed


@pytest.mark.parametrize(
    ("allow", "deny", "speak"),
    [
        ("x.net", "http://x.net", "tls"),
        ("x.net", "tls://x.net", "http"),
        ("x.net:5432", "http://*", "tls"),  # "all but HTTP" cannot be held: less is allowed
        ("tcp://x.net", "tls://*:5432", "http"),
        ("tls://x.net", "http://x.net", "tls"),
    ],
)
def test_a_deny_of_a_protocol_leaves_no_more_than_can_be_checked(allow, deny, speak):
    decision = rules(allow, deny).connect("x.net", 5432)
    assert (decision.speak, decision.rule) == (speak, allow)
    assert decision.reason == f"allowed by {allow}, less what {deny} denies"


@pytest.mark.parametrize(
    ("allow", "deny"),
    [
        ("tls://x.net", "tls://x.net"),
        ("tcp://x.net", "tls://* http://x.net"),
        ("x.net", "tls://x.net http://*"),
    ],
)
def test_denies_of_protocols_that_leave_nothing(allow, deny):
    decision = rules(allow, deny).connect("x.net", 443)
    assert not decision.allowed
    assert set(decision.rule.split(", ")) == set(deny.split())


def test_the_deny_that_takes_all_is_named_alone():
    for deny in ("tls://x.net x.net:443", "x.net:443 tls://x.net"):
        assert rules("x.net", deny).connect("x.net", 443).rule == "x.net:443"


def test_a_deny_of_udp_leaves_tcp_and_one_without_protocol_takes_both():
    assert rules("x.net", "udp://x.net").connect("x.net", 443).allowed
    both = "udp://203.0.113.7 203.0.113.7"
    assert at(rules(both, "tcp://203.0.113.7"), "203.0.113.7", 53, "udp") == "unchecked"
    assert not rules(both, "203.0.113.0/24").address(OUTSIDE, 53, "udp").allowed
    assert not rules(both, "203.0.113.0/24").address(OUTSIDE, 53).allowed


# addresses


def test_a_range_allows_any_protocol_for_there_is_no_name():
    found = rules("203.0.113.0/24 tls://198.51.100.0/24:443 tcp://[2001:db8::/32]:22")
    assert at(found, "203.0.113.7", 80) == "any"
    assert at(found, "198.51.100.7", 443) == "tls"
    assert at(found, "2001:db8::7", 22) == "unchecked"
    assert at(found, "198.51.100.7", 80) == "port 80 of 198.51.100.7 is not allowed: rules name 443"
    assert at(found, "203.0.114.7", 80) == "no rule names 203.0.114.7"
    assert said(found.address(bytes(10) + b"\xff\xff" + OUTSIDE, 80)) == "any"


def test_a_deny_inside_a_range_and_around_one():
    assert not rules("203.0.113.0/24", "203.0.113.7").address(OUTSIDE, 80).allowed
    assert not rules("203.0.113.7", "203.0.113.0/24:80").address(OUTSIDE, 80).allowed
    assert not rules("203.0.113.7", "0.0.0.0/0").address(OUTSIDE, 80).allowed
    assert rules("203.0.113.0/24", "203.0.113.8").address(OUTSIDE, 80).allowed
    assert rules("203.0.113.7", "::/0").address(OUTSIDE, 80).allowed


def test_a_wide_range_opens_no_special_address():
    found = rules("0.0.0.0/0 [::/0]")
    assert at(found, "203.0.113.7", 80) == "any"
    for text in SPECIAL:
        assert not found.address(parse_address(text), 80).allowed, text
    assert "a rule for 10.0.0.0/8" in at(found, "10.0.0.1", 80)
    link_local = rules("169.254.0.0/16")
    assert at(link_local, "169.254.1.1", 80) == "any"
    assert "metadata" in at(link_local, "169.254.169.254", 80)
    assert at(rules("169.254.169.254:80"), "169.254.169.254", 80) == "any"


def test_a_private_range_opens_addresses_only_together_with_a_rule():
    assert at(rules("0.0.0.0/0", private="10.0.0.0/8"), "10.0.0.1", 80) == "any"
    assert not rules("x.net", private="10.0.0.0/8").address(parse_address("10.0.0.1"), 80).allowed


def test_the_hosts_loopback_is_reached_by_host_ports_only():
    found = rules("0.0.0.0/0 *", "127.0.0.1:6379", host_ports=[5432, 6379])
    for text in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
        assert at(found, text, 5432) == "unchecked"
        assert found.address(parse_address(text), 5432).rule == "host_ports 5432"
    reason = "port 22 of the host's loopback is not open: host_ports names 5432, 6379"
    assert at(found, "127.0.0.1", 22) == reason
    assert found.address(parse_address("127.0.0.1"), 6379).rule == "127.0.0.1:6379"
    assert at(rules("*"), "::1", 22).endswith("host_ports names no port")
    assert not found.address(parse_address("127.0.0.1"), 5432, "udp").allowed
    for port in (0, 65536):
        with pytest.raises(BadRule, match="5432"):
            rules(host_ports=[port])


# what names resolve to


def to(found, text, port=443, name="x.net"):
    return said(found.destination(name, parse_address(text), port))


def test_a_name_may_resolve_to_ordinary_addresses():
    found = rules("x.net:443")
    assert to(found, "203.0.113.7") == "checked"
    assert to(found, "2001:db8::7") == "checked"
    assert to(found, "203.0.113.7", 80) == "port 80 of x.net is not allowed: rules name 443"
    assert to(found, "203.0.113.7", name="y.net") == "no rule names y.net"


@pytest.mark.parametrize("text", SPECIAL)
def test_a_name_may_not_resolve_to_a_special_address(text):
    found = rules("tcp://* tcp://x.net:443 0.0.0.0/0 [::/0]", host_ports=[443])
    assert special(parse_address(text)) in to(found, text)
    assert "would open it" in to(found, text)


def test_a_private_range_opens_its_addresses_to_names():
    found = rules("x.net", private="10.0.0.0/8 127.0.0.0/8 169.254.0.0/16 fd00::/8")
    for text in ("10.0.0.1", "127.0.0.1", "fd12::1", "::ffff:10.9.9.9"):
        assert to(found, text) == "checked"
    assert "metadata" in to(found, "169.254.169.254")
    assert "private" in to(found, "192.168.1.1")
    assert to(rules("x.net", private="169.254.169.254"), "169.254.169.254") == "checked"


def test_a_rule_for_the_range_opens_its_addresses_to_names_on_its_ports():
    found = rules("x.net x.net:5432 10.0.0.0/8:5432 tls://192.168.0.0/16:443 udp://172.16.0.0/12")
    assert to(found, "10.0.0.1", 5432) == "any"
    assert "would open it" in to(found, "10.0.0.1", 443)
    assert "would open it" in to(found, "192.168.0.1", 443)  # only TLS there, the name may HTTP
    assert "would open it" in to(found, "172.16.0.1", 443)
    narrow = rules("tls://x.net tls://192.168.0.0/16:443")
    assert to(narrow, "192.168.0.1", 443) == "tls"
    assert to(rules("tcp://x.net 10.0.0.0/8"), "10.0.0.1", 443) == "unchecked"


@pytest.mark.parametrize(
    "deny", ["203.0.113.0/24", "0.0.0.0/0:443", "tcp://203.0.113.7", "http://203.0.113.7"]
)
def test_a_deny_of_a_range_holds_for_what_a_name_resolves_to(deny):
    found = rules("x.net 203.0.113.7", deny)
    decision = found.destination("x.net", OUTSIDE, 443)
    assert (decision.allowed, decision.rule) == (False, deny)
    assert decision.reason == f"203.0.113.7, which x.net resolves to, is denied by {deny}"
    for text in ("64:ff9b::203.0.113.7", "2002:cb00:7107::1", "::ffff:203.0.113.7"):
        assert "denied" in to(found, text)


def test_a_deny_of_a_range_beats_a_private_range():
    assert "denied" in to(rules("x.net 10.0.0.0/8", "10.0.0.1", private="10.0.0.0/8"), "10.0.0.1")


def test_a_deny_of_another_protocol_or_port_does_not():
    found = rules("tls://x.net", "http://203.0.113.7 203.0.113.7:80 udp://203.0.113.7")
    assert to(found, "203.0.113.7") == "tls"


# the whole


def test_ranges_are_those_for_tcp_and_none_inside_another():
    found = rules(
        "x.net 10.0.0.0/8:1 10.1.0.0/16 tls://10.0.0.0/8 udp://172.16.0.0/12 203.0.113.7 [2001:db8::/32]"
    )
    expected = [parse_range(text) for text in ("10.0.0.0/8", "203.0.113.7", "2001:db8::/32")]
    assert found.ranges() == tuple(expected)


def test_a_private_range_that_is_too_wide_is_refused():
    for text in ("0.0.0.0/0", "::/0", "8.0.0.0/5"):
        with pytest.raises(BadRule, match="such as"):
            rules("x.net", private=text)


def test_actions_may_not_be_mixed_up():
    allow, deny = parse_rule("x.net", "allow"), parse_rule("x.net", "deny")
    for wrong in (([deny], []), ([], [allow])):
        with pytest.raises(ValueError, match="other way"):
            Rules(*wrong)


def test_nothing_is_reached_without_rules():
    found = Rules([], [])
    assert said(found.connect("x.net", 443)) == "no rule names x.net"
    assert at(found, "203.0.113.7", 443) == "no rule names 203.0.113.7"
    assert found.ranges() == ()


# against a model that looks at every rule and thinks in sets of (port, what is spoken)

HOSTS = [
    *("*", "net", "*.net", "a.net", "*.a.net", "b.a.net", "*.b.a.net", "c.org"),
    *("0.0.0.0/0", "203.0.113.0/24", "203.0.113.7", "203.0.112.0/23", "10.0.0.0/8", "10.0.0.1"),
    *("[2001:db8::/32]", "[2001:db8::7]", "[64:ff9b::/96]"),
]
TEXTS = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "", "tcp://", "tls://", "http://", "udp://"]),
    st.sampled_from(HOSTS),
    st.sampled_from(["", "", ":443", ":22", ":80-443", ":1-65535"]),
)
NAMES = st.sampled_from(["net", "a.net", "b.a.net", "c.b.a.net", "xa.net", "c.org", "d.org"])
ADDRESSES = st.sampled_from(
    ["203.0.113.7", "203.0.112.7", "203.0.113.8", "198.51.100.7", "10.0.0.1", "10.0.0.2"]
    + ["2001:db8::7", "64:ff9b::203.0.113.7"]
).map(parse_address)
PORTS = st.sampled_from([22, 80, 443, 9999])
TLS, HTTP, OTHER, UNSEEN = 1, 2, 4, 8
SETS = {
    "tls": {TLS},
    "http": {HTTP},
    "checked": {TLS, HTTP},
    "any": {TLS, HTTP, OTHER},
    "unchecked": {TLS, HTTP, OTHER, UNSEEN},
    "": set(),
}


def names_it(rule, name):
    if rule.range or (rule.wildcard and not rule.name):
        return not rule.range
    if rule.wildcard:
        return name.endswith("." + rule.name)
    return name == rule.name


def spoken(rule, port):
    """The set that a TCP rule is about, on a port."""
    if rule.protocol == "udp" or not rule.low_port <= port <= rule.high_port:
        return set()
    if rule.protocol:
        return SETS[{"tcp": "unchecked"}.get(rule.protocol, rule.protocol)]
    if rule.action == "deny":
        return SETS["unchecked"]
    free = rule.range or (rule.low_port and port not in (80, 443))
    return SETS["any" if free else "checked"]


@given(st.lists(TEXTS, max_size=6), st.lists(TEXTS, max_size=3), NAMES, ADDRESSES, PORTS)
def test_what_may_be_spoken_is_never_more_than_allow_less_deny(allow, deny, name, address, port):
    allowing = [parse_rule(text, "allow") for text in allow]
    denying = [parse_rule(text, "deny") for text in deny]
    found = Rules(allowing, denying)

    def left(matches):
        most = set().union(*(spoken(r, port) for r in allowing if matches(r)))
        return most - set().union(*(spoken(r, port) for r in denying if matches(r)))

    by_name = left(lambda r: names_it(r, name))
    by_address = left(lambda r: r.range and r.range.contains(address))
    for decision, expected in (
        (found.connect(name, port), by_name),
        (found.address(address, port), by_address),
    ):
        got = SETS[decision.speak]
        assert got <= expected
        if expected in SETS.values() and not (address[:1] == b"\n" or len(address) == 16):
            assert got == expected
        assert decision.allowed == bool(got)
        assert decision.reason
    if by_name & {TLS, HTTP}:
        assert found.connect(name, port).allowed
        assert found.name(name).allowed
    reached = found.destination(name, address, port)
    assert reached.speak in ("", found.connect(name, port).speak)
    if reached.allowed:
        for rule in denying:
            if rule.range and rule.range.contains(address):
                assert not spoken(rule, port) & SETS[reached.speak]
        if special(address):
            assert any(r.range and r.range.contains(address) for r in allowing)
    elif found.connect(name, port).allowed and not special(address):
        assert "denied" in reached.reason


@given(st.lists(TEXTS, max_size=6), st.lists(TEXTS, max_size=3), TEXTS, NAMES, ADDRESSES, PORTS)
def test_one_more_deny_never_opens_anything(allow, deny, more, name, address, port):
    before = rules(" ".join(allow), " ".join(deny))
    after = rules(" ".join(allow), " ".join([*deny, more]))
    for call in (
        lambda r: r.connect(name, port),
        lambda r: r.address(address, port),
        lambda r: r.address(address, port, "udp"),
        lambda r: r.destination(name, address, port),
    ):
        assert SETS[call(after).speak] <= SETS[call(before).speak], render_address(address)
    assert after.name(name).allowed <= before.name(name).allowed


@given(st.lists(TEXTS, max_size=6), st.lists(TEXTS, max_size=3), NAMES)
def test_a_name_is_there_where_a_port_of_it_can_be_reached(allow, deny, name):
    found = rules(" ".join(allow), " ".join(deny))
    edges = (1, 21, 22, 23, 79, 80, 81, 442, 443, 444, 65535)
    assert found.name(name).allowed == any(found.connect(name, port).allowed for port in edges)
