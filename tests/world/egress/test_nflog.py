"""Records of refused packets are read, whatever the packet is."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.world.egress import netlink, nflog

FROM4, TO4 = b"\x0a\1\2\3", b"\x0a\4\5\6"
FROM6, TO6 = (socket.inet_pton(socket.AF_INET6, f"2001:db8::{n}") for n in (1, 2))
PORTS = struct.pack("!HH", 40000, 443)


def record(packet, *attributes):
    body = b"\2\0\0\1" + netlink.attribute(9, packet) + b"".join(attributes)
    return netlink.message(0x400, 0, 0, body)


def ipv4(protocol, payload, fragment=0, options=b""):
    head = 0x45 + len(options) // 4
    return (
        struct.pack("!BBHHHBBH", head, 0, 1000, 0, fragment, 64, protocol, 0)
        + FROM4
        + TO4
        + options
        + payload
    )


def ipv6(protocol, payload):
    return struct.pack("!IHBB", 6 << 28, 960, protocol, 64) + FROM6 + TO6 + payload


def one(packet, *attributes):
    (found,) = nflog.parse(record(packet, *attributes))
    return found


def ports(packet):
    found = one(packet)
    return found.protocol, found.source_port, found.port


def test_a_record():
    uid, number = netlink.attribute(11, struct.pack("!I", 1000)), netlink.attribute(12, b"\0\0\0\7")
    found = one(ipv4(6, PORTS), netlink.attribute(10, b"refused\0"), uid, number)
    assert found == nflog.Logged(
        protocol=6,
        source=FROM4,
        source_port=40000,
        destination=TO4,
        port=443,
        uid=1000,
        prefix="refused",
        length=1000,
        sequence=7,
    )


def test_what_is_missing_is_empty():
    found = one(ipv4(6, PORTS))
    assert (found.uid, found.prefix, found.sequence) == (None, "", -1)


def extension(following, size=0):
    return bytes([following, size]) + b"\0" * (6 + 8 * size)


@pytest.mark.parametrize(
    ("packet", "found"),
    [
        (ipv4(17, PORTS), (17, 40000, 443)),
        (ipv4(17, PORTS, options=b"\1" * 12), (17, 40000, 443)),
        (ipv4(17, PORTS, fragment=0x2000), (17, 40000, 443)),
        (ipv4(17, PORTS, fragment=1), (17, 0, 0)),
        (ipv4(17, PORTS[:3]), (17, 0, 0)),
        (ipv4(1, PORTS), (1, 0, 0)),
        (ipv6(6, PORTS), (6, 40000, 443)),
        (ipv6(0, extension(60) + extension(17, 2) + PORTS), (17, 40000, 443)),
        (ipv6(43, extension(6) + PORTS), (6, 40000, 443)),
        (ipv6(51, bytes([6, 4]) + b"\0" * 22 + PORTS), (6, 40000, 443)),
        (ipv6(44, bytes([17, 0, 0, 1]) + b"\0" * 4 + PORTS), (17, 40000, 443)),
        (ipv6(44, bytes([17, 0, 0, 8]) + b"\0" * 4 + PORTS), (17, 0, 0)),
        (ipv6(0, extension(17, 255)[:80]), (17, 0, 0)),
        (ipv6(59, b""), (59, 0, 0)),
        (b"", (-1, 0, 0)),
        (b"\x45" * 19, (-1, 0, 0)),
        (b"\x60" * 39, (-1, 0, 0)),
        (b"\x90" * 60, (-1, 0, 0)),
    ],
)
def test_packets_of_all_kinds(packet, found):
    assert ports(packet) == found


def test_several_records_and_other_messages():
    done = netlink.message(3, 0, 0, b"\0" * 4)
    assert len(nflog.parse(record(ipv4(6, PORTS)) + record(ipv6(6, PORTS)) + done)) == 2


@given(st.binary(max_size=128))
def test_any_packet_is_told(packet):
    found = one(packet)
    assert len(found.source) == len(found.destination)
    assert 0 <= found.port < 65536


@given(st.sampled_from([4, 6]), st.binary(min_size=39, max_size=127))
def test_any_packet_of_a_known_version_is_told(version, rest):
    found = one(bytes([version << 4 | 5]) + rest)
    assert len(found.source) == {4: 4, 6: 16}[version]


@given(st.binary(max_size=100))
def test_any_envelope_is_read_or_refused(data):
    for datagram in (data, netlink.message(0x400, 0, 0, data)):
        try:
            nflog.parse(datagram)
        except netlink.BadMessage as error:
            assert error.args[0]
