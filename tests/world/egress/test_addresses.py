"""Addresses and ranges: strict text, one form, and which are special."""

import ipaddress

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from substrate.world.egress.addresses import (
    BadAddress,
    Range,
    embedded,
    normal,
    parse_address,
    parse_range,
    render_address,
    render_range,
    special,
    special_block,
    too_wide,
)

EITHER = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
# on both sides of where blocks begin
EDGES = """
0.0.0.0 10.0.0.0 100.64.0.0 127.0.0.0 169.254.0.0 172.16.0.0 192.0.0.0 192.88.99.0 192.168.0.0
198.18.0.0 203.0.113.0 224.0.0.0 240.0.0.0 :: ::1 64:ff9b:: 64:ff9b:1:: 100:: 2001:: 2001:200::
2001:db8:: 2002:: 2600:: 3fff:: 5f00:: fc00:: fe80:: fec0:: ff00::"""


def near(text, steps):
    address = ipaddress.ip_address(text)
    return (address + steps if int(address) + steps >= 0 else address).packed


NEAR = st.builds(near, st.sampled_from(EDGES.split()), st.integers(-3, 3))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.1",
        "0177.0.0.1",
        "01.2.3.4",
        "0x7f.0.0.1",
        "2130706433",
        "1.2.3",
        "1.2.3.4.5",
        "256.1.1.1",
        "1.2.3.4 ",
        " 1.2.3.4",
        "1.2.3.4\n",
        "1.2.3.4\0",
        "+1.2.3.4",
        "１.2.3.4",
        "[::1]",
        "fe80::1%lo",
        "1::2::3",
        "12345::",
        ":::",
        "::ffff:127.1",
        "\ud800",
        "0" * 10000,
    ],
)
def test_only_strict_forms_are_read(text):
    with pytest.raises(BadAddress, match=r"203\.0\.113\.7"):
        parse_address(text)


def test_an_ipv4_address_in_ipv6_is_the_ipv4_address():
    for text in ("::ffff:127.0.0.1", "::ffff:7f00:1", "0:0:0:0:0:FFFF:7F00:0001"):
        assert parse_address(text) == bytes((127, 0, 0, 1))
    assert render_address(bytes(10) + b"\xff\xff\x7f\0\0\1") == "127.0.0.1"
    assert special(bytes(10) + b"\xff\xff\x7f\0\0\1") == "loopback"
    assert parse_range("127.0.0.0/8").contains(bytes(10) + b"\xff\xff\x7f\0\0\1")
    assert parse_range("::ffff:10.0.0.0/104") == parse_range("10.0.0.0/8")
    assert not parse_range("::/0").contains(parse_address("::ffff:10.0.0.1"))


@given(EITHER | NEAR)
def test_text_and_bytes_agree(address):
    assert parse_address(render_address(address)) == normal(address)
    assert parse_range(render_address(address)) == Range(
        address=normal(address), bits=len(normal(address)) * 8
    )


@given(st.binary(max_size=20))
def test_other_lengths_are_refused(raw):
    assume(len(raw) not in (4, 16))
    for call in (normal, render_address, special):
        with pytest.raises(BadAddress):
            call(raw)


def test_a_range_of_ipv4_in_ipv6_is_not_made():
    with pytest.raises(BadAddress, match="IPv4"):
        Range(address=bytes(10) + b"\xff\xff\x0a\0\0\0", bits=104)


@given(st.text(max_size=30) | st.text("0123456789abcdef:./", max_size=50))
@example("1.2.3.4/")
@example("/")
@example("::/-1")
def test_any_text_is_a_range_or_badaddress(text):
    try:
        found = parse_range(text)
    except BadAddress as error:
        assert str(error).isascii()
        assert len(str(error)) < 400
        return
    assert parse_range(render_range(found)) == found
    if "." not in text.partition("/")[0] and "ffff" not in text.lower():
        assert ipaddress.ip_network(text) == ipaddress.ip_network(render_range(found))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("2001:db8::1/32", "2001:db8::/32"),
        ("10.0.0.0/33", "32"),
        ("::/129", "128"),
        ("10.0.0.0/", "10.0.0.0/32"),
        ("10.0.0.0/08", "bits"),
        ("10.0.0.0/+8", "bits"),
        ("10.0.0.0/255.0.0.0", "bits"),
        ("10.0.0.0/٨", "bits"),
        ("::ffff:0:0/90", "203.0.113.0/24"),
    ],
)
def test_a_bad_range_is_told_with_the_right_text(text, said):
    with pytest.raises(BadAddress) as caught:
        parse_range(text)
    assert said in str(caught.value)


@given(EITHER | NEAR, EITHER | NEAR, st.integers(0, 128))
def test_contains_is_as_the_library_has_it(one, other, bits):
    one, other = normal(one), normal(other)
    bits = min(bits, len(one) * 8)
    network = ipaddress.ip_network((one, bits), strict=False)
    found = parse_range(str(network)) if normal(network[0].packed) == network[0].packed else None
    assume(found is not None)
    assert found.contains(other) == (
        len(one) == len(other) and ipaddress.ip_address(other) in network
    )
    assert found.contains(one)
    single = Range(address=other, bits=len(other) * 8)
    assert found.covers(single) == found.contains(other)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("8.8.8.8", ""),
        ("192.0.2.1", ""),
        ("198.51.100.1", ""),
        ("203.0.113.1", ""),
        ("2001:db8::1", ""),
        ("2606:4700::1111", ""),
        ("127.0.0.1", "loopback"),
        ("127.255.255.255", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("::", "unspecified"),
        ("10.0.0.1", "private"),
        ("172.15.255.255", ""),
        ("172.16.0.0", "private"),
        ("172.31.255.255", "private"),
        ("172.32.0.0", ""),
        ("192.168.1.1", "private"),
        ("fd12::1", "private"),
        ("fec0::1", "private"),
        ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"),
        ("169.254.169.254", "metadata"),
        ("169.254.170.2", "metadata"),
        ("168.63.129.16", "metadata"),
        ("100.100.100.200", "metadata"),
        ("fd00:ec2::254", "metadata"),
        ("100.64.0.1", "shared"),
        ("100.128.0.0", ""),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("198.18.0.1", "reserved"),
        ("198.20.0.0", ""),
        ("192.0.0.8", "reserved"),
        ("::127.0.0.1", "reserved"),
        ("::8.8.8.8", "reserved"),
        ("::ffff:0:8.8.8.8", "reserved"),
        ("4000::1", "reserved"),
        ("5f00::1", "reserved"),
        ("e000::1", "reserved"),
        ("2001:10::1", "reserved"),
        ("64:ff9b::8.8.8.8", ""),
        ("64:ff9b::127.0.0.1", "embedded"),
        ("64:ff9b::169.254.169.254", "embedded"),
        ("64:ff9b:1::8.8.8.8", "embedded"),
        ("2002:0808:0808::1", ""),
        ("2002:0a00:0001::1", "embedded"),
        ("2002:7f00:0001::", "embedded"),
        ("2001:0:0808:0808::f7f7:f7f7", ""),
        ("2001:0:0808:0808::80ff:fffe", "embedded"),  # the client is 127.0.0.1
        ("2001:0:0a00:0001::f7f7:f7f7", "embedded"),  # the server is 10.0.0.1
    ],
)
def test_special_addresses(text, kind):
    assert special(parse_address(text)) == kind


DOCUMENTATION = [
    ipaddress.ip_network(text)
    for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20")
]
LOOKED_THROUGH = [ipaddress.ip_network(text) for text in ("64:ff9b::/96", "2002::/16", "2001::/32")]


@given(EITHER | NEAR)
def test_nothing_that_the_library_holds_for_local_is_ordinary(address):
    address = normal(address)
    known = ipaddress.ip_address(address)
    assume(not any(known in net for net in (*DOCUMENTATION, *LOOKED_THROUGH)))
    if not special(address):
        assert known.is_global
        assert not known.is_multicast


@given(st.binary(min_size=4, max_size=4) | NEAR.filter(lambda a: len(a) == 4))
def test_a_translated_address_is_as_special_as_what_it_carries(inner):
    for whole in (parse_address("64:ff9b::")[:12] + inner, b"\x20\x02" + inner + bytes(10)):
        assert inner in embedded(whole)
        assert bool(special(whole)) == bool(special(inner))


@pytest.mark.parametrize(
    ("text", "carried"),
    [
        ("64:ff9b::203.0.113.7", ["203.0.113.7"]),
        ("64:ff9b:1::203.0.113.7", ["203.0.113.7"]),
        ("::203.0.113.7", ["203.0.113.7"]),
        ("::ffff:0:203.0.113.7", ["203.0.113.7"]),
        ("2002:cb00:7107::1", ["203.0.113.7"]),
        ("2001:0:c633:6401::34ff:8ef8", ["198.51.100.1", "203.0.113.7"]),
        ("2001:db8::203.0.113.7", []),
        ("64:ff9b:2::203.0.113.7", []),
        ("203.0.113.7", []),
    ],
)
def test_addresses_that_carry_another_one(text, carried):
    assert [render_address(each) for each in embedded(parse_address(text))] == carried


@given(EITHER | NEAR)
def test_a_special_address_lies_in_its_block(address):
    block = special_block(address)
    if block is not None:
        assert block[1].contains(address)
        assert block[0] == special(address)
        assert special(block[1].address), "the block begins with an ordinary address"


@pytest.mark.parametrize(
    ("text", "wide"),
    [
        ("0.0.0.0/0", True),
        ("8.0.0.0/5", True),
        ("::/0", True),
        ("10.0.0.0/8", False),
        ("10.1.0.0/16", False),
        ("169.254.0.0/16", False),
        ("169.254.169.254", False),
        ("fc00::/7", False),
        ("fe80::/9", True),
        ("203.0.113.0/24", False),
    ],
)
def test_a_range_that_swallows_more_than_special_addresses_is_told(text, wide):
    assert (too_wide(parse_range(text)) is not None) == wide
