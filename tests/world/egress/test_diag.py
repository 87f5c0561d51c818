"""The socket of a connection is found in the kernel, and no other one."""

import contextlib
import os
import socket

import pytest

from substrate.world.egress import diag, netlink

V4, V6 = socket.AF_INET, socket.AF_INET6
PLACES = [(V4, "127.0.0.1"), (V6, "::1"), (V6, "::ffff:127.0.0.1")]


@pytest.fixture
def fd():
    opened = netlink.connect(netlink.SOCK_DIAG, "test")
    yield opened.fileno()
    opened.close()


def raw(address):
    if "." in address:
        return socket.inet_aton(address.rpartition(":")[2])
    return socket.inet_pton(V6, address)


def ends(opened, peer):
    """(source, port, destination, port)."""
    here, there = opened.getsockname(), peer.getsockname()
    return raw(here[0]), here[1], raw(there[0]), there[1]


def inode(opened):
    return os.fstat(opened.fileno()).st_ino


@contextlib.contextmanager
def pair(family, address):
    """(listener, client, accepted)"""
    listening = V4 if "." in address else family
    with (
        socket.create_server((raw_text(address), 0), family=listening) as listener,
        socket.socket(family) as client,
    ):
        client.connect((address, listener.getsockname()[1]))
        accepted, _ = listener.accept()
        with accepted:
            yield listener, client, accepted


def raw_text(address):
    return address.rpartition(":")[2] if "." in address else address


@pytest.mark.parametrize(("family", "address"), PLACES)
def test_both_ends_of_a_connection(fd, family, address):
    with pair(family, address) as (listener, client, accepted):
        found = diag.find(fd, diag.TCP, *ends(client, listener))
        assert found == diag.Found(inode=inode(client), uid=os.geteuid(), state=1)
        back = diag.find(fd, diag.TCP, *ends(accepted, client))
        assert back.inode == inode(accepted)


@pytest.mark.parametrize(("family", "address"), PLACES)
def test_a_listener_is_not_taken_for_a_connection(fd, family, address):
    with pair(family, address) as (listener, client, _):
        source, port, destination, to = ends(listener, client)
        assert diag.find(fd, diag.TCP, source, port, destination, to + 1) is None
        assert diag.find(fd, diag.TCP, source, port, bytes(len(source)), 0) is None
        assert inode(listener)
        assert diag.find(fd, diag.TCP, source, port, destination, to) is not None


def test_a_socket_that_is_bound_to_the_device(fd):
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        client.connect(listener.getsockname())
        assert diag.find(fd, diag.TCP, *ends(client, listener)).inode == inode(client)


def test_a_closed_connection_is_nobodys(fd):
    with pair(V4, "127.0.0.1") as (listener, client, _):
        known = ends(client, listener)
        client.close()
        assert diag.find(fd, diag.TCP, *known) is None  # the kernel still knows it: FIN_WAIT2


@pytest.mark.parametrize("remote", [1, 53])
@pytest.mark.parametrize(
    ("family", "bound", "asked"),
    [
        (V4, "0.0.0.0", "127.0.0.1"),
        (V4, "127.0.0.1", "127.0.0.1"),
        (V6, "::", "::1"),
        (V6, "::1", "::1"),
        (V6, "::", "127.0.0.1"),
        (V6, "::ffff:127.0.0.1", "127.0.0.1"),
    ],
)
def test_a_datagram_socket_that_is_bound(fd, family, bound, asked, remote):
    with socket.socket(family, socket.SOCK_DGRAM) as opened:
        opened.bind((bound, 0))
        port = opened.getsockname()[1]
        there = raw("203.0.113.5" if "." in asked else "2001:db8::5")
        found = diag.find(fd, diag.UDP, raw(asked), port, there, remote)
        assert found.inode == inode(opened)
        assert found.uid == os.geteuid()
        assert diag.find(fd, diag.UDP, raw(asked), port ^ 1, there, remote) is None


@pytest.mark.parametrize(("family", "address"), PLACES)
def test_a_datagram_socket_that_is_connected(fd, family, address):
    """Beside another one, which is bound to the same port and takes the rest."""
    with (
        socket.socket(V4 if "." in address else family, socket.SOCK_DGRAM) as server,
        socket.socket(family, socket.SOCK_DGRAM) as client,
        socket.socket(family, socket.SOCK_DGRAM) as other,
    ):
        server.bind((raw_text(address), 0))
        for opened in (client, other):
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind((address, 0))
        other.bind(client.getsockname())
        client.connect((address, server.getsockname()[1]))
        known = ends(client, server)
        assert diag.find(fd, diag.UDP, *known).inode == inode(client)
        assert diag.find(fd, diag.UDP, *known[:3], known[3] ^ 1).inode == inode(other)


def test_a_connected_datagram_socket_takes_from_nobody_else(fd):
    with (
        socket.socket(V4, socket.SOCK_DGRAM) as server,
        socket.socket(V4, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("127.0.0.1", 0))
        client.connect(server.getsockname())
        known = ends(client, server)
        assert diag.find(fd, diag.UDP, *known[:3], known[3] ^ 1) is None


def test_a_protocol_that_the_kernel_cannot_tell_of(fd):
    assert diag.find(fd, 254, b"\x7f\0\0\1", 1, b"\x7f\0\0\1", 2) is None
