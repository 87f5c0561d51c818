"""The port that a client has is found, also where the kernel gave its connection another one."""

import socket

import pytest

from substrate.world.egress import conntrack, diag, netlink, nft
from tests.world.egress.namespace.places import FAKE, connect

SIX = "2001:db8:1::9"


def raw(address):
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def ends(connection, peer):
    """(client, listener) as the module wants them."""
    here = connection.getsockname()
    return (raw(peer[0]), peer[1]), (raw(here[0]), here[1])


@pytest.mark.parametrize(
    ("targets", "source"),
    [
        ([(FAKE, 80), (FAKE, 443)], (FAKE, 40000)),
        ([(SIX, 80), ("2001:db8:1::8", 80)], ("::", 40000)),
    ],
)
def test_two_connections_from_one_port(place, targets, source):
    six = ":" in source[0]
    listener = place.sockets.egress6 if six else place.sockets.egress4
    found = []
    for address, port in targets:
        running = place.start(lambda a=address, p=port: connect(a, p, source=source, text=b"hello"))
        connection, peer = place.accept(listener)
        found.append((running, connection, peer, raw(address), port))
    assert [peer[1] == 40000 for _, _, peer, _, _ in found] == [True, False]
    for running, connection, peer, target, port in found:
        with connection:
            client, own = ends(connection, peer)
            assert conntrack.client_port(place.sockets.nft, client, own) == 40000
            known = client[0], 40000, target, port
            assert diag.find(place.sockets.diag, diag.TCP, *known) is not None
            connection.sendall(b"done")
            assert running.result() == b"done"


def test_a_connection_that_is_not_known_has_the_port_that_was_seen(place):
    client, listener = (raw(FAKE), 41234), (raw("127.0.0.1"), nft.EGRESS_PORT)
    assert conntrack.client_port(place.sockets.nft, client, listener) == 41234


def test_a_socket_that_cannot_ask(place):
    client, listener = (raw(FAKE), 41234), (raw("127.0.0.1"), nft.EGRESS_PORT)
    assert conntrack.client_port(place.sockets.diag, client, listener) == 41234


@pytest.mark.parametrize("body", [b"", b"\0" * 4, b"\0" * 4 + b"\xff\xff\1\0", b"\2\0\0\0\4\0\1\0"])
def test_an_answer_that_makes_no_sense(body):
    try:
        assert conntrack._port(body) == 0
    except netlink.BadMessage:
        return  # which is taken for no answer
