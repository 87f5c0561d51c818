"""The text of one rule."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from substrate.world.egress.addresses import parse_range
from substrate.world.egress.rules import BadRule, parse_rule


def meaning(text, action="allow"):
    rule = parse_rule(text, action)
    assert (rule.text, rule.action) == (text, action)
    host = rule.range if rule.range else ("*." if rule.wildcard else "") + rule.name
    return rule.protocol, host, rule.low_port, rule.high_port


ANY = (0, 65535)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("example.net", ("", "example.net", *ANY)),
        ("Example.NET.", ("", "example.net", *ANY)),
        ("example.net:443", ("", "example.net", 443, 443)),
        ("example.net:8000-8010", ("", "example.net", 8000, 8010)),
        ("*.example.net", ("", "*.example.net", *ANY)),
        ("*.example.net:1", ("", "*.example.net", 1, 1)),
        ("*", ("", "*.", *ANY)),
        ("tls://*:65535", ("tls", "*.", 65535, 65535)),
        ("TLS://example.net", ("tls", "example.net", *ANY)),
        ("tcp://example.net:22", ("tcp", "example.net", 22, 22)),
        ("http://bücher.example", ("http", "xn--bcher-kva.example", *ANY)),
        ("*.bücher.example", ("", "*.xn--bcher-kva.example", *ANY)),
        ("203.0.113.7", ("", parse_range("203.0.113.7"), *ANY)),
        ("udp://203.0.113.7:53", ("udp", parse_range("203.0.113.7"), 53, 53)),
        ("10.0.0.0/8:5432", ("", parse_range("10.0.0.0/8"), 5432, 5432)),
        ("10.0.0.0/8", ("", parse_range("10.0.0.0/8"), *ANY)),
        ("[2001:db8::7]", ("", parse_range("2001:db8::7"), *ANY)),
        ("[2001:db8::7]:443", ("", parse_range("2001:db8::7"), 443, 443)),
        ("[2001:db8::/32]:443", ("", parse_range("2001:db8::/32"), 443, 443)),
        ("2001:db8::/32:443-444", ("", parse_range("2001:db8::/32"), 443, 444)),
        ("2001:db8::/32", ("", parse_range("2001:db8::/32"), *ANY)),
        ("[::ffff:10.0.0.1]:80", ("", parse_range("10.0.0.1"), 80, 80)),
        ("0.0.0.0/0:443", ("", parse_range("0.0.0.0/0"), 443, 443)),
        ("169.254.169.254:80", ("", parse_range("169.254.169.254"), 80, 80)),
    ],
)
def test_forms(text, expected):
    assert meaning(text) == expected
    assert meaning(text, "deny") == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no host"),
        (":443", "no host"),
        ("tls://", "no host"),
        ("https://example.net", "https"),
        ("tls:/example.net", "ports"),
        ("//example.net", "no path"),
        ("example.net/x", "no path"),
        ("example.net/8", "no path"),
        ("http://example.net/x:80", "no path"),
        ("user@example.net", "'@'"),
        ("example.net:", "ports"),
        ("example.net:0", "ports"),
        ("example.net:0443", "ports"),
        ("example.net:65536", "ports"),
        ("example.net:443-", "ports"),
        ("example.net:443-442", "ports"),
        ("example.net:-1", "ports"),
        ("example.net:+1", "ports"),
        ("example.net:1 ", "ports"),
        ("example.net:٤", "ports"),
        ("example.net:*", "leave the ':' away"),
        ("example.net:https", "ports"),
        (" example.net", "' '"),
        ("example.net\n", "n'"),
        ("example.net\0", "x00"),
        ("*example.net", "whole labels"),
        ("a.*.example.net", "whole labels"),
        ("**", "whole labels"),
        ("*.*.example.net", "whole labels"),
        ("*.", "empty"),
        ("*.10.0.0.1", "address"),
        ("127.1", "203.0.113.7"),
        ("0x7f.0.0.1", "203.0.113.7"),
        ("2130706433:80", "203.0.113.7"),
        ("010.0.0.1", "203.0.113.7"),
        ("203.0.113.7.", "203.0.113.7"),
        ("１0.0.0.1", "address"),
        ("10.0.0.1/8", "10.0.0.0/8"),
        ("2001:db8::1", "brackets"),
        ("2001:db8::1:443", "[2001:db8::7]:443"),
        ("[2001:db8::1", "brackets"),
        ("[2001:db8::1]443", "brackets"),
        ("[2001:db8::]/32", "brackets"),
        ("[example.net]:443", "brackets"),
        ("[10.0.0.1]:443", "brackets"),
        ("[::1%lo]", "address"),
        ("straße.example", "xn--"),
        ("a" * 301, "300"),
    ],
)
def test_a_bad_rule_is_told_with_an_example(text, said):
    for action in ("allow", "deny"):
        with pytest.raises(BadRule) as caught:
            parse_rule(text, action)
        message = str(caught.value)
        assert said in message
        assert "expected" in message or "such as" in message or "write" in message
        assert message.replace("…", "").isascii()
        assert message.isprintable()


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1:5432", "127.0.0.0/8", "[::1]:80", "0.0.0.0", "[::]", "localhost:80", "x.localhost"],
)
def test_the_loopback_is_not_allowed_by_a_rule_but_can_be_denied(text):
    with pytest.raises(BadRule, match="host_ports"):
        parse_rule(text, "allow")
    parse_rule(text, "deny")


def test_addresses_that_stand_for_names_are_not_allowed_by_a_rule():
    with pytest.raises(BadRule, match=r"198\.18\.0\.0/15"):
        parse_rule("198.18.5.0/24:443", "allow")


@given(
    st.text(max_size=60)
    | st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["", "tcp://", "tls://", "udp://", "x://"]),
        st.sampled_from(["", "*.", "[", "*"]),
        st.text("abc.0129:/-[]*", max_size=20),
        st.sampled_from(["", ":443", ":1-2", "]:9", "/8:1"]),
    )
)
@example("[]")
@example("://")
@example("a://[:]")
def test_any_text_is_one_rule_or_badrule(text):
    for action in ("allow", "deny"):
        try:
            rule = parse_rule(text, action)
        except BadRule:
            continue
        assert 0 <= rule.low_port <= rule.high_port <= 65535
        assert (rule.low_port == 0) == ((rule.low_port, rule.high_port) == ANY)
        assert [bool(rule.name) or rule.wildcard, rule.range is not None].count(True) == 1


def test_another_action_is_a_bug():
    with pytest.raises(ValueError, match="permit"):
        parse_rule("example.net", "permit")
