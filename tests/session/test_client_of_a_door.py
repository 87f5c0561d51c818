"""A connection to a door: whoever serves it hears once that it has gone, whatever it went by."""

import socket
import time

import pytest

from substrate.session import client_call
from substrate.session.doors import Client, Peer
from substrate.session.loop import Loop
from substrate.world import wire


@pytest.fixture
def pair():
    ours, theirs = wire.pair()
    ours.setblocking(False)
    client = Client(ours, Peer(ours), inside=False, until=time.monotonic() + 60)
    client.told = []
    client.on_gone = lambda: client.told.append("gone")
    yield client, theirs
    client.close()
    theirs.close()


def refuses(client, message):
    raise client_call.BadCall("not that")


@pytest.mark.parametrize("packet", [b"K\0\0\0\0", b"X\1"])
@pytest.mark.parametrize("listens", [True, False])
def test_one_that_says_what_cannot_be_served_has_gone(pair, packet, listens):
    client, theirs = pair
    client.on_packet = refuses
    theirs.send(packet)
    if not listens:
        theirs.shutdown(socket.SHUT_RD)
    Loop(client).turn()
    assert client.is_gone and client.told == ["gone"]
    if listens:
        assert wire.receive(theirs).kind == client_call.FAILED


def test_one_that_was_answered_meanwhile_is_left_alone(pair):
    client, theirs = pair

    def answers(served, message):
        served.on_gone = lambda: served.told.append("again")
        served.answer("{}")
        raise client_call.BadCall("too late")

    client.on_packet = answers
    theirs.send(b"K\0\0\0\0")
    Loop(client).turn()
    assert client.is_gone and client.told == []
    assert wire.receive(theirs).kind == client_call.JSON
