"""There is no way out of a world but through the egress process."""

import contextlib
import errno
import os
import signal
import socket

import pytest

from substrate.world import linux
from substrate.world.egress import netlink, nft
from substrate.world.egress.namespace import Plan
from tests.world.egress.namespace.places import (
    ELSEWHERE4,
    PORT,
    UID,
    Range,
    Running,
    connect,
    drop_table,
    only_routes,
)


def test_there_is_no_device_but_lo(place):
    devices = place.run(lambda: [name for _, name in socket.if_nameindex()], rights=True)
    assert devices == ["lo"]


def test_a_world_cannot_change_the_rules(place):
    def flush():
        with contextlib.closing(netlink.connect(netlink.NETFILTER, "flush")) as own:
            try:
                nft.load_rules(own.fileno(), Plan(ranges=(Range(address=bytes(4), bits=0),)))
            except OSError as error:
                return errno.errorcode[error.errno], str(error)

    number, text = place.run(flush)
    assert number == "EPERM"
    assert "nf_tables" in text
    assert place.run(lambda: connect(ELSEWHERE4, PORT)) == "ECONNREFUSED"
    assert place.accept(place.sockets.egress4, 0) is None


def test_without_a_table_there_is_still_no_way_out(place, open_place):
    """The server is another namespace's; the control reaches it there, at the same address."""
    outside = open_place(make=only_routes)
    ready, tell = os.pipe()

    def serve():
        with socket.create_server(("0.0.0.0", PORT)):
            os.write(tell, b"r")
            signal.pause()

    outside.start(serve)
    os.read(ready, 1)
    os.close(ready)
    os.close(tell)
    drop_table(place.sockets.nft)
    assert outside.run(lambda: connect(ELSEWHERE4, PORT)) == ""
    assert place.run(lambda: connect(ELSEWHERE4, PORT)) == "ECONNREFUSED"
    assert place.logged() == []  # no rule refused it: there is nobody


def test_the_socket_for_rules_is_no_right_by_itself(place):
    """Who got hold of it still needs to be the namespace's owner, or to have its capabilities."""

    def tried():
        if place.uid == 0:
            linux.set_capabilities(0, 0)
        else:
            os.setgroups([])
            os.setresuid(UID + 1, UID + 1, UID + 1)
        try:
            nft.load_rules(place.sockets.nft, Plan())
        except OSError as error:
            return errno.errorcode[error.errno]

    if os.geteuid() != 0:
        pytest.skip("needs another user")
    running = Running(tried)
    assert running.result() == "EPERM"
    nft.load_rules(place.sockets.nft, Plan())
