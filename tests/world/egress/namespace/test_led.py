"""What is led to the egress process arrives there, with what the client wanted."""

import errno
import os
import select
import socket

import pytest

from substrate.world.egress import diag, nft
from tests.world.egress.namespace.places import (
    ELSEWHERE4,
    ELSEWHERE6,
    FAKE,
    TCP,
    UDP,
    connect,
    drop_table,
    original,
    reached,
    send,
)


def egress(place, address):
    six = ":" in address and "ffff" not in address
    return place.sockets.egress6 if six else place.sockets.egress4


@pytest.mark.parametrize(
    ("address", "port"),
    [
        (FAKE, 443),
        ("198.19.255.254", 1),
        ("::ffff:" + FAKE, 80),
        ("198.51.100.9", 22),
        ("2001:db8:1::9", 22),
        ("127.0.0.1", 5432),
        ("127.0.0.9", 6379),
        ("::1", 5432),
    ],
)
def test_a_connection_is_led_to_the_egress_process(place, address, port):
    if address.startswith("198.19."):
        nft.lead_name(place.sockets.nft, socket.inet_aton(address))
    running = place.start(lambda: connect(address, port, text=b"hello"))
    connection, peer = place.accept(egress(place, address))
    with connection:
        wanted, wanted_port = original(connection)
        assert (wanted, wanted_port) == (address.removeprefix("::ffff:"), port)
        assert connection.recv(100) == b"hello"
        family = socket.AF_INET6 if connection.family == socket.AF_INET6 else socket.AF_INET
        found = diag.find(
            place.sockets.diag,
            diag.TCP,
            socket.inet_pton(family, peer[0]),
            peer[1],
            socket.inet_pton(family, wanted),
            port,
        )
        files = f"/proc/{running.pid}/fd"
        inodes = {os.readlink(f"{files}/{n}") for n in os.listdir(files)}
        assert f"socket:[{found.inode}]" in inodes
        assert found.uid == place.uid
        connection.sendall(b"bye")
        assert running.result() == b"bye"
    assert place.logged() == []


@pytest.mark.parametrize(
    "address", ["198.17.255.255", "198.20.0.0", "198.51.101.0", "2001:db8:2::"]
)
def test_what_lies_beside_is_not_led(place, address):
    assert place.run(lambda: connect(address, 443)) == "ECONNREFUSED"
    assert len(place.logged()) == 1
    assert place.accept(egress(place, address), 0) is None


SERVERS = (ELSEWHERE4, ELSEWHERE6, FAKE, "127.0.0.53", "::1")


@pytest.mark.parametrize("server", SERVERS)
def test_a_datagram_for_a_name_server_is_answered_as_from_there(place, server):
    running = place.start(lambda: send(server, 53, b"?", connected=True))
    made = place.sockets
    with socket.socket(
        fileno=os.dup(made.dns_udp6 if ":" in server else made.dns_udp4)
    ) as resolver:
        assert select.select([resolver], [], [], 5)[0]
        data, peer = resolver.recvfrom(100)
        assert data == b"?"
        resolver.sendto(b"!", peer)
    assert running.result() == b"!"  # a connected socket takes it from nobody else


@pytest.mark.parametrize("server", SERVERS)
def test_a_connection_to_a_name_server(place, server):
    running = place.start(lambda: connect(server, 53, text=b"?"))
    made = place.sockets
    connection, _ = place.accept(made.dns_tcp6 if ":" in server else made.dns_tcp4)
    with connection:
        assert original(connection) == (server, 53)
        assert connection.recv(100) == b"?"
        connection.sendall(b"!")
        assert running.result() == b"!"


@pytest.mark.parametrize("kind", [TCP, UDP])
def test_port_53_of_loopback_is_the_worlds_own(place, kind):
    assert place.run(lambda: reached("127.0.0.1", kind, 53), rights=True) == b"hello"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "127.0.0.2"])
@pytest.mark.parametrize("port", [nft.EGRESS_PORT, nft.DNS_PORT])
def test_the_listeners_are_not_reached_directly(place, address, port):
    assert place.run(lambda: connect(address, port)) == "ECONNREFUSED"
    assert place.run(lambda: send(address, port)) == "EPERM"
    assert [found.port for found in place.logged()] == [port, port]
    made = place.sockets
    for fd in (made.egress4, made.egress6, made.dns_tcp4, made.dns_tcp6):
        assert place.accept(fd, 0) is None


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_without_a_table_a_listener_tells_who_came_directly(place, address):
    drop_table(place.sockets.nft)
    running = place.start(lambda: connect(address, nft.EGRESS_PORT, text=b"?"))
    connection, _ = place.accept(egress(place, address))
    with connection:
        try:
            assert original(connection) == (address, nft.EGRESS_PORT)
        except OSError as error:
            assert error.errno == errno.ENOENT
        connection.sendall(b"!")
        assert running.result() == b"!"


@pytest.mark.parametrize("reuse", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_listener_cannot_be_taken_over(place, address, reuse):
    def bound(kind, port):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, kind) as server:
            server.setsockopt(socket.SOL_SOCKET, reuse, 1)
            try:
                server.bind((address, port))
                if kind == TCP:
                    server.listen()
            except OSError as error:
                return errno.errorcode[error.errno]

    def tried():
        return [bound(kind, port) for kind, port in ((UDP, 2), (TCP, 2), (TCP, 1))]

    assert place.run(tried, rights=True) == ["EADDRINUSE"] * 3


@pytest.mark.parametrize("ports", [(80, 443), (443, 80)])
def test_two_connections_from_one_port(place, ports):
    """Both would come to the listener from the same address and port: the kernel tells them
    apart, and one cannot be found by that port any more."""
    source = (FAKE, 40000)
    found = []
    for port in ports:
        running = place.start(lambda port=port: connect(FAKE, port, source=source, text=b"hello"))
        connection, peer = place.accept(place.sockets.egress4)
        found.append((running, connection, peer, port))
    fake = socket.inet_aton(FAKE)
    owners = []
    for running, connection, peer, port in found:
        with connection:
            assert original(connection) == (FAKE, port)
            owners.append(diag.find(place.sockets.diag, diag.TCP, fake, peer[1], fake, port))
            connection.sendall(str(port).encode())
            assert running.result() == str(port).encode()
    assert found[0][2] != found[1][2]
    assert owners[0] is not None
    assert owners[1] is None


def test_a_connection_is_never_silent_for_a_minute(place):
    """The connection table forgets a half-closed one after that."""
    place.run(lambda: connect(FAKE, 443))
    connection, _ = place.accept(place.sockets.egress4)
    with connection:
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < 30
