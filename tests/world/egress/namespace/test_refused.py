"""What no rule names is refused at once and logged, whatever it is made of."""

import contextlib
import errno
import os
import select
import socket
import struct

import pytest

from substrate.world.egress import nflog, nft
from tests.world.egress.namespace.places import (
    ELSEWHERE4,
    ELSEWHERE6,
    FAKE,
    PORT,
    TCP,
    UDP,
    WAIT_S,
    connect,
    reached,
    send,
)


@pytest.mark.parametrize("address", [ELSEWHERE4, ELSEWHERE6, "::ffff:" + ELSEWHERE4])
def test_an_address_that_no_rule_names_is_refused(place, control, address):
    assert control.run(lambda: reached(address)) == b"hello"
    assert place.run(lambda: reached(address)) == "ECONNREFUSED"
    (logged,) = place.logged()
    wanted = ELSEWHERE4 if "." in address else ELSEWHERE6
    family = socket.AF_INET if "." in address else socket.AF_INET6
    assert (logged.protocol, logged.port, logged.prefix) == (6, PORT, nft.REFUSED)
    assert logged.destination == socket.inet_pton(family, wanted)
    assert logged.uid == place.uid


@pytest.mark.parametrize("address", [ELSEWHERE4, ELSEWHERE6, FAKE])
def test_a_datagram_is_refused_at_once(place, control, address):
    """Also to an address that stands for a name: QUIC falls back to TCP."""
    assert control.run(lambda: reached(address, UDP, 443), rights=True) == b"hello"
    assert place.run(lambda: send(address, 443, b"hello")) == "EPERM"
    (logged,) = place.logged()
    assert (logged.protocol, logged.port, logged.length) == (17, 443, 53 if ":" in address else 33)


def test_a_large_datagram_is_refused(place):
    assert place.run(lambda: send(ELSEWHERE4, PORT, b"x" * 65000)) == "EPERM"
    assert [found.length for found in place.logged()] == [65028]


@pytest.mark.parametrize("address", [ELSEWHERE4, ELSEWHERE6])
def test_pings_are_not_answered(place, control, address):
    def ping():
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        protocol = socket.IPPROTO_ICMPV6 if ":" in address else socket.IPPROTO_ICMP
        with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
            raw.settimeout(5)
            kind = 128 if ":" in address else 8
            packet = struct.pack("!BBHHH", kind, 0, 0, 7, 1)
            if kind == 8:
                packet = struct.pack("!BBHHH", kind, 0, 0xF7F7, 7, 1)
            try:
                raw.sendto(packet, (address, 0))
            except PermissionError:
                return "refused"
            while (got := raw.recv(200)[0 if kind == 128 else 20]) == kind:
                pass
            return got

    assert control.run(ping, rights=True) == (129 if ":" in address else 0)
    assert place.run(ping, rights=True) == "refused"
    assert [found.protocol for found in place.logged()] == [58 if ":" in address else 1]


@pytest.mark.parametrize(
    ("address", "options"),
    [
        ("224.0.0.251", ()),
        ("255.255.255.255", ((socket.SOL_SOCKET, socket.SO_BROADCAST, 1),)),
        ("ff02::fb%lo", ()),
        ("ff0e::1", ((socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, 1),)),
        ("fe80::1%lo", ()),
    ],
)
def test_multicast_broadcast_and_link_local_are_refused(place, control, address, options):
    def sent():
        return send(address, 5353, options=options)

    assert control.run(sent) in ("", "ECONNREFUSED")
    assert place.run(sent) == "EPERM"
    assert [(found.protocol, found.port) for found in place.logged()] == [(17, 5353)]


@pytest.mark.parametrize("how", ["multipath", "fast open"])
def test_other_ways_to_connect(place, how):
    def tried():
        multipath = 262 if how == "multipath" else 0
        with socket.socket(socket.AF_INET, TCP, multipath) as client:
            try:
                if multipath:
                    client.connect((ELSEWHERE4, 443))
                else:
                    client.sendto(b"x", 0x20000000, (ELSEWHERE4, 443))  # MSG_FASTOPEN
            except OSError as error:
                return errno.errorcode[error.errno]

    assert place.run(tried) == "ECONNREFUSED"
    assert [(found.protocol, found.port) for found in place.logged()] == [(6, 443)]


def test_what_is_lost_can_be_counted(place):
    """A flood is more than the kernel keeps for a reader: it says so once, and numbers go on."""

    def flood():
        for _ in range(3000):
            send(ELSEWHERE4, 9)

    place.run(flood)
    read, losses = [], 0
    with socket.socket(fileno=os.dup(place.sockets.nflog)) as reader:
        while select.select([reader], [], [], 0)[0]:
            try:
                read += nflog.parse(reader.recv(65536))
            except OSError as error:
                assert error.errno == errno.ENOBUFS
                losses += 1
    assert losses == 1
    assert [found.sequence for found in read] == list(range(len(read)))
    place.run(lambda: send(ELSEWHERE4, 9))
    assert [found.sequence for found in place.logged()] == [3000]


def test_joining_a_group_is_told_as_the_kernels_own(place):
    def joined():
        with socket.socket(socket.AF_INET, UDP) as client:
            group = socket.inet_aton("224.0.0.251") + bytes(4)
            client.setsockopt(socket.SOL_IP, socket.IP_ADD_MEMBERSHIP, group)

    place.run(joined)
    assert {(found.protocol, found.uid) for found in place.logged(WAIT_S)} == {(2, None)}


def test_what_the_kernel_does_by_itself_is_not_logged(place):
    """Bringing up lo, making sockets, and answering what is refused."""
    place.run(lambda: (connect(ELSEWHERE4, 1), send(ELSEWHERE6, 1), connect("127.0.0.1", 99)))
    assert len(place.logged()) == 2


def test_a_connected_datagram_socket_learns_why(place):
    def told():
        with socket.socket(socket.AF_INET, UDP) as client:
            client.setsockopt(socket.SOL_IP, 11, 1)  # IP_RECVERR
            client.connect((ELSEWHERE4, 443))
            with contextlib.suppress(PermissionError):
                client.send(b"x")
            return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    assert place.run(told) == errno.EHOSTUNREACH


def test_a_socket_with_a_source_of_its_own_learns_why(place):
    """In IPv6 the source is ::1 else, and the kernel's answer stays on loopback."""

    def told():
        with socket.socket(socket.AF_INET6, UDP) as client:
            client.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
            client.setsockopt(socket.IPPROTO_IPV6, 25, 1)  # IPV6_RECVERR
            client.bind(("2001:db8::9", 0))
            client.connect((ELSEWHERE6, 443))
            with contextlib.suppress(PermissionError):
                client.send(b"x")
            return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    assert place.run(told) == errno.EACCES
    assert len(place.logged()) == 1


def ipv4(protocol, fragment, payload):
    """A packet with a header of our own."""
    size = 20 + len(payload)
    header = struct.pack("!BBHHHBBH", 0x45, 0, size, 7, fragment, 64, protocol, 0)
    return header + socket.inet_aton("10.9.8.7") + socket.inet_aton(ELSEWHERE4) + payload


@pytest.mark.parametrize(
    ("packet", "logged"),
    [
        (ipv4(47, 0, bytes(8)), (47, 0)),
        (ipv4(17, 0, struct.pack("!HHHH", 9, 53, 8, 0)), None),  # led to the resolver
        (ipv4(17, 0, struct.pack("!HHHH", 9, 54, 8, 0)), (17, 54)),
        (ipv4(6, 0, struct.pack("!HHIIBBHHH", 9, 80, 0, 0, 0x50, 2, 9, 0, 0)), (6, 80)),
        (ipv4(6, 0, struct.pack("!HHIIBBHHH", 9, 80, 5, 5, 0x50, 16, 9, 0, 0)), (6, 80)),
        (ipv4(6, 0, b"\0" * 8), (6, 0)),
        (ipv4(1, 0, b"\5" + bytes(7)), (1, 0)),
        (ipv4(132, 0, struct.pack("!HHII", 9, 80, 0, 0)), (132, 80)),
    ],
)
def test_a_made_up_packet_has_nowhere_to_go(place, packet, logged):
    """With every capability over the namespace."""

    def sent():
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            try:
                raw.sendto(packet, (ELSEWHERE4, 0))
            except OSError as error:
                return errno.errorcode[error.errno]
            return ""

    assert place.run(sent, rights=True) == ("EPERM" if logged else "")
    assert [(found.protocol, found.port) for found in place.logged()] == (
        [logged] if logged else []
    )


def test_fragments_are_put_together_first(place):
    """The second one has no ports, and does not pass for that."""

    def sent():
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.sendto(ipv4(17, 0x2000, struct.pack("!HHHH", 9, 54, 24, 0)), (ELSEWHERE4, 0))
            first = len(place.logged())
            with contextlib.suppress(PermissionError):
                raw.sendto(ipv4(17, 1, bytes(16)), (ELSEWHERE4, 0))
            return first, [(found.port, found.length) for found in place.logged()]

    assert place.run(sent, rights=True) == (0, [(54, 44)])
