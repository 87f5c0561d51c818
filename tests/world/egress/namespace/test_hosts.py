"""Hosts that lack something, and what is left when it fails."""

import errno
import os
import select
import socket
import struct

import pytest

from substrate.world.egress import namespace
from tests.world.egress.namespace.places import (
    ELSEWHERE4,
    ELSEWHERE6,
    FAKE,
    PLAN,
    Place,
    connect,
    reached,
    send,
)


def without_ipv6():
    with open("/proc/sys/net/ipv6/conf/all/disable_ipv6", "w") as file:
        file.write("1")


def no_family(family, protocol):
    """Takes sockets of a family away: seccomp(2)."""
    import ctypes

    loads = [(0x20, 0, 0, 0), (0x15, 0, 5, 41 if os.uname().machine == "x86_64" else 198)]
    loads += [(0x20, 0, 0, 16), (0x15, 0, 3, family), (0x20, 0, 0, 32), (0x15, 0, 1, protocol)]
    loads += [(0x06, 0, 0, 0x50000 | errno.EAFNOSUPPORT), (0x06, 0, 0, 0x7FFF0000)]
    code = b"".join(struct.pack("=HBBI", *one) for one in loads)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("@HP", len(loads), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())


@pytest.mark.parametrize("missing", [without_ipv6, lambda: no_family(10, 0)])
def test_without_ipv6(open_place, missing):
    if missing is without_ipv6 and os.geteuid() != 0:
        pytest.skip("/proc/sys is root's")
    place = open_place(PLAN, before=missing)
    made = place.sockets
    assert (made.dns_udp6, made.dns_tcp6, made.egress6) == (-1, -1, -1)
    assert place.run(lambda: connect(ELSEWHERE6, 80)) in (
        "ECONNREFUSED",
        "EADDRNOTAVAIL",
        "ENETUNREACH",
    )
    assert place.run(lambda: connect("2001:db8:1::9", 80)) in (
        "ECONNREFUSED",
        "EADDRNOTAVAIL",
        "ENETUNREACH",
    )
    assert place.run(lambda: send(ELSEWHERE6, 80)) in ("EPERM", "EADDRNOTAVAIL", "ENETUNREACH")
    assert place.run(lambda: connect(ELSEWHERE4, 80)) == "ECONNREFUSED"
    assert place.run(lambda: connect(FAKE, 80)) == ""


def strict_routes():
    """What some hosts hand down: packets are taken only from where answers would go to."""
    for device in ("all", "default", "lo"):
        with open(f"/proc/sys/net/ipv4/conf/{device}/rp_filter", "w") as file:
            file.write("1")


def test_with_strict_routes(open_place):
    place = open_place(PLAN, before=strict_routes)
    assert place.run(lambda: connect(FAKE, 80)) == ""
    assert place.run(lambda: connect(ELSEWHERE4, 80)) == "ECONNREFUSED"
    assert place.run(lambda: reached("127.0.0.1")) == b"hello"
    running = place.start(lambda: send(ELSEWHERE4, 53, b"?", connected=True))
    with socket.socket(fileno=os.dup(place.sockets.dns_udp4)) as resolver:
        assert select.select([resolver], [], [], 5)[0]
        _, peer = resolver.recvfrom(100)
        resolver.sendto(b"!", peer)
    assert running.result() == b"!"


def test_without_nf_tables(uid):
    with pytest.raises(AssertionError, match="nf_tables: socket: Address family not supported"):
        Place(uid, before=lambda: no_family(16, 12))


def test_without_the_capability(uid):
    from substrate.world import linux

    with pytest.raises(AssertionError, match=r"network: .*Operation not permitted"):
        Place(uid, before=lambda: linux.set_capabilities(0, 0))


def test_nothing_stays_open_after_a_failure(open_place):
    def twice():
        namespace.make(PLAN)
        before = sorted(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match=r"network: address: File exists"):
            namespace.make(PLAN)
        return before == sorted(os.listdir("/proc/self/fd"))

    place = open_place(make=lambda _plan: None)
    assert place.run(twice, rights=True)


def test_what_is_made_is_nonblocking_and_closed_on_exec(place):
    for fd in place.sockets.fds():
        assert not os.get_blocking(fd)
    assert len(place.sockets.fds()) == 9
