"""The rules change while a world runs."""

import pytest

from substrate.world.egress import nft
from substrate.world.egress.namespace import Plan
from tests.world.egress.namespace.places import (
    ELSEWHERE4,
    FAKE,
    NET6,
    PLAN,
    Range,
    connect,
    reached,
)


def test_new_rules_hold_and_old_connections_go_on(place):
    """Loaded from outside of the namespace, as the egress process does."""
    address = "198.51.100.9"
    running = place.start(lambda: connect(address, 80, text=b"hello"))
    connection, _ = place.accept(place.sockets.egress4)
    with connection:
        nft.load_rules(place.sockets.nft, Plan(ranges=(NET6,)))
        assert connection.recv(100) == b"hello"
        connection.sendall(b"bye")
        assert running.result() == b"bye"
    assert place.run(lambda: connect(address, 80)) == "ECONNREFUSED"
    assert place.accept(place.sockets.egress4, 0) is None
    nft.load_rules(place.sockets.nft, PLAN)
    assert place.run(lambda: connect(address, 80)) == ""


def test_many_ranges(place):
    some = tuple(Range(address=bytes([20, n >> 8, n & 255, 0]), bits=24) for n in range(0, 8000, 2))
    nft.load_rules(place.sockets.nft, Plan(ranges=(*some, NET6)))
    said = place.run(lambda: [connect(f"20.{n >> 8}.{n & 255}.255", 80) for n in (0, 7998, 7999)])
    assert said == ["", "", "ECONNREFUSED"]


@pytest.mark.parametrize("address", ["203.0.113.1", "255.255.255.254", "2001:db8::5"])
def test_every_address(place, address):
    everything = (Range(address=bytes(4), bits=0), Range(address=bytes(16), bits=0))
    nft.load_rules(place.sockets.nft, Plan(ranges=everything))
    said = place.run(lambda: connect(address, 80))
    assert said == ""
    assert place.run(lambda: reached("127.0.0.1")) == b"hello"


def test_a_failed_change_leaves_the_old_rules(place):
    with pytest.raises(OSError, match=r"nf_tables: .*rule of lead"):
        nft.load_rules(place.sockets.nft, Plan(dns_loopback=(bytes(70),)))
    assert place.run(lambda: connect("198.51.100.9", 80)) == ""
    assert place.run(lambda: connect(ELSEWHERE4, 80)) == "ECONNREFUSED"


def test_a_change_lets_nothing_through_and_breaks_nothing(place):
    def program():
        said = []
        for port in range(300):
            said.append((connect(FAKE, 443), connect(ELSEWHERE4, 1000 + port)))
        return set(said), reached("127.0.0.1")

    running = place.start(program)
    changes = 0
    while running.is_alive() or changes < 20:
        nft.load_rules(place.sockets.nft, (PLAN, Plan())[changes % 2])
        changes += 1
    assert running.result() == ({("", "ECONNREFUSED")}, b"hello")
