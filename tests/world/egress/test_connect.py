"""Connecting to the first address that answers, and to none of this host's own."""

import errno
import os
import socket
import subprocess
import sys
import time

import pytest

from substrate.world.egress.connect import Connecting
from substrate.world.egress.loop import Loop
from substrate.world.egress.route import is_local, parse_type

LOOPBACK = bytes((127, 0, 0, 1))
#: no route leads to it in a namespace without any
ELSEWHERE = bytes((203, 0, 113, 7))

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")

#: a namespace in which 198.51.100.0/24 takes packets and says nothing, and 203.0.113.0/24 is here
PLACE = """
import subprocess, sys
from substrate.world import linux
linux.unshare(linux.CLONE_NEWNET)
def ip(*words): subprocess.run(("ip", *words), check=True)
ip("link", "set", "lo", "up")
ip("link", "add", "silent0", "type", "veth", "peer", "name", "silent1")
ip("address", "add", "198.51.100.1/24", "dev", "silent0")
ip("address", "add", "2001:db8::1/64", "dev", "silent0", "nodad")
ip("link", "set", "silent0", "up"); ip("link", "set", "silent1", "up")
for last in ("7", "8"):
    ip("neigh", "add", "198.51.100." + last, "lladdr", "02:00:00:00:00:0" + last, "dev", "silent0")
ip("route", "add", "local", "203.0.113.0/24", "dev", "lo")
ip("route", "add", "unreachable", "192.0.2.0/24")
import errno, socket, time
from substrate.world.egress.connect import Connecting
from substrate.world.egress.loop import Loop
from substrate.world.egress.route import is_local
def a(text):
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
loop = Loop()
out = []
def run(addresses, port, **more):
    begun = time.monotonic()
    Connecting(loop, [a(x) for x in addresses], port, out.append, **more)
    while not out: loop.run_once(1)
    return out.pop(), time.monotonic() - begun
"""


def in_a_place(code):
    ran = subprocess.run(
        [sys.executable, "-c", PLACE + code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture
def loop(no_leak):
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def server(no_leak):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def outcome(loop, addresses, port, **more):
    found = []
    Connecting(loop, addresses, port, found.append, **more)
    assert not found, "called from within"
    end = time.monotonic() + 20
    while not found:
        assert time.monotonic() < end
        loop.run_once(0.1)
    loop.run_once(0)
    assert len(found) == 1
    assert len(loop) == 0
    return found[0]


def test_it_connects_to_this_host_where_that_is_meant(loop, server):
    port = server.getsockname()[1]
    connected = outcome(loop, [LOOPBACK], port, host_meant=True)
    assert (connected.address, connected.errno, connected.error) == (LOOPBACK, 0, "")
    assert not os.get_inheritable(connected.fd)
    assert not os.get_blocking(connected.fd)
    with socket.socket(fileno=connected.fd) as client:
        assert client.getpeername() == ("127.0.0.1", port)


@pytest.mark.parametrize(
    "text", ["127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::"], ids=lambda text: text
)
def test_it_refuses_loopback_and_the_unspecified_address(loop, server, text):
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    connected = outcome(loop, [socket.inet_pton(family, text)], server.getsockname()[1])
    assert connected.fd == -1
    assert connected.errno == errno.EACCES
    assert connected.error.endswith(": it is an address of this host")
    assert text in connected.error
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
        server.accept()


def test_the_next_address_is_tried_at_once_when_one_fails(loop, server):
    port = server.getsockname()[1]
    nobody = bytes((127, 0, 0, 2))
    begun = time.monotonic()
    connected = outcome(loop, [nobody, LOOPBACK], port, host_meant=True, stagger_s=10)
    assert connected.address == LOOPBACK
    assert time.monotonic() - begun < 5
    os.close(connected.fd)


def test_an_address_of_this_host_does_not_hide_the_others(loop, server):
    connected = outcome(loop, [LOOPBACK, bytes((0, 0, 0, 0))], server.getsockname()[1])
    assert connected.error.startswith("0.0.0.0 port ")


def test_the_last_failure_is_the_one_that_is_told(loop):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    connected = outcome(loop, [LOOPBACK, bytes((127, 0, 0, 3))], port, host_meant=True)
    assert connected.errno == errno.ECONNREFUSED
    assert connected.error == f"127.0.0.3 port {port}: Connection refused"


def test_without_an_address_it_fails(loop):
    assert outcome(loop, [], 80).error == "there is no address to connect to"


def test_nothing_is_called_and_nothing_left_after_cancel(loop, server):
    found = []
    port = server.getsockname()[1]
    connecting = Connecting(loop, [LOOPBACK], port, found.append, host_meant=True)
    connecting.cancel()
    loop.run_once(0)
    connecting = Connecting(loop, [LOOPBACK], port, found.append, host_meant=True)
    loop.run_once(0)
    assert len(loop) == 1
    connecting.cancel()
    connecting.cancel()
    loop.run_once(0)
    assert found == []
    assert len(loop) == 0


@root_only
def test_the_next_address_is_tried_after_a_while_when_one_is_silent():
    code = """
server = socket.create_server(("203.0.113.9", 0))
port = server.getsockname()[1]
found, took = run(["198.51.100.7", "198.51.100.8", "203.0.113.9"], port, host_meant=True)
print(socket.inet_ntoa(found.address), 0.5 <= took < 3, len(loop))
"""
    assert in_a_place(code) == "203.0.113.9 True 0\n"


@root_only
def test_all_that_are_silent_end_with_the_limit():
    code = """
found, took = run(["198.51.100.7", "198.51.100.8"], 443, limit_s=0.6)
print(found.fd, errno.errorcode[found.errno], found.error, 0.6 <= took < 3, len(loop))
"""
    expected = "-1 ETIMEDOUT 198.51.100.8 port 443: Connection timed out True 0\n"
    assert in_a_place(code) == expected


@root_only
def test_addresses_of_interfaces_and_ranges_routed_to_the_host_are_refused():
    code = """
for text in ("198.51.100.1", "203.0.113.200", "2001:db8::1"):
    print(is_local(a(text)), run([text], 80)[0].error)
print(is_local(a("198.51.100.7")), is_local(a("2001:db8::7")))
"""
    assert in_a_place(code).splitlines() == [
        "True 198.51.100.1 port 80: it is an address of this host",
        "True 203.0.113.200 port 80: it is an address of this host",
        "True [2001:db8::1] port 80: it is an address of this host",
        "False False",
    ]


@root_only
def test_an_address_without_a_route_fails_with_the_errno_of_its_route():
    code = """
for text in ("192.0.2.1", "100.64.0.1", "2001:db8:1::1"):
    print(run([text], 80)[0].error)
"""
    assert in_a_place(code).splitlines() == [
        "192.0.2.1 port 80: No route to host",
        "100.64.0.1 port 80: Network is unreachable",
        "[2001:db8:1::1] port 80: Network is unreachable",
    ]


@pytest.mark.parametrize("answer", [b"", bytes(16), bytes(64), b"\xff" * 64])
def test_what_is_no_route_is_never_taken_for_one(answer):
    with pytest.raises(OSError):
        parse_type(answer)


def test_the_hosts_own_loopback_is_local():
    assert is_local(LOOPBACK)
