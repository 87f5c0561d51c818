"""Loopback is the world's own: untouched, whatever runs on it."""

import contextlib
import socket
import struct

import pytest

from tests.world.egress.namespace.places import (
    ELSEWHERE4,
    FAKE,
    PORT,
    TCP,
    UDP,
    connect,
    echo,
    reached,
    send,
)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.0.0.53", "127.9.8.7", "::1", "0.0.0.0", "::"]
)
@pytest.mark.parametrize("kind", [TCP, UDP])
@pytest.mark.parametrize("port", [3, 25, PORT, 65535])
def test_loopback_works(place, address, kind, port):
    def served():
        with contextlib.suppress(OSError):
            return reached(address, kind, port)

    assert place.run(served, rights=True) == b"hello"
    assert place.logged() == []


def test_a_datagram_in_fragments_on_loopback(place):
    def served():
        with echo("::1", PORT, UDP):
            return len(send("::1", PORT, b"x" * 65500))

    assert place.run(served) == 65500


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_loopback_leaves_no_trace_in_the_kernels_table(place, address):
    """So that neither a full table breaks it, nor it fills the table for others."""

    def tracked():
        with open("/proc/sys/net/netfilter/nf_conntrack_count") as file:
            return int(file.read())

    before = place.run(tracked)
    assert place.run(lambda: [reached(address, kind) for kind in (TCP, UDP)]) == [b"hello"] * 2
    assert place.run(tracked) == before
    place.run(lambda: connect(FAKE, 443))
    assert place.run(tracked) == before + 1


def test_a_source_of_another_place_talks_to_loopback(place):
    """AnyIP lets a program bind to any address; what it then reaches is still the world."""

    def served():
        with echo("127.0.0.1", PORT):
            return connect("127.0.0.1", PORT, source=(ELSEWHERE4, 0), text=b"hello")

    assert place.run(served) == b"hello"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_pings_of_loopback_are_answered(place, address):
    def ping():
        six = ":" in address
        with socket.socket(
            socket.AF_INET6 if six else socket.AF_INET,
            socket.SOCK_RAW,
            socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP,
        ) as raw:
            raw.settimeout(5)
            packet = struct.pack("!BBHHH", 128 if six else 8, 0, 0 if six else 0xF7F7, 7, 1)
            raw.sendto(packet, (address, 0))
            got = [raw.recv(200)[0 if six else 20] for _ in range(2)]
            return sorted(got)

    assert place.run(ping, rights=True) == ([128, 129] if ":" in address else [0, 8])


def test_a_ping_of_loopback_has_no_ports(place):
    """Where others have their destination port it has a checksum, here the number of a listener."""

    def ping():
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
            raw.settimeout(5)
            raw.sendto(struct.pack("!BBHHH", 8, 0, 1, 0xF7FD, 1), ("127.0.0.1", 0))
            return sorted(raw.recv(200)[20] for _ in range(2))

    assert place.run(ping, rights=True) == [0, 8]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_closed_port_of_loopback_says_so(place, address):
    assert place.run(lambda: connect(address, PORT)) == "ECONNREFUSED"
    assert place.run(lambda: send(address, PORT, connected=True)) == "ECONNREFUSED"
    assert place.logged() == []
