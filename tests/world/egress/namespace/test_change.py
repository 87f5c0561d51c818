"""The rules change while a world runs."""

import socket

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
    drop_table,
    reached,
)

raw = socket.inet_aton


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


def test_a_name_s_address_is_led_once_it_is_given(place):
    """Others of the same range are refused as any address, and logged."""
    early, late = "198.18.0.8", "198.19.255.254"
    assert place.run(lambda: [connect(one, 443) for one in (early, late)]) == ["ECONNREFUSED"] * 2
    assert [one.destination for one in place.logged()] == [raw(early), raw(late)]
    nft.lead_name(place.sockets.nft, raw(early))
    nft.lead_name(place.sockets.nft, raw(early))  # again: nothing changes
    said = place.run(lambda: [connect(one, 443) for one in (FAKE, early, "198.18.0.9", late)])
    assert said == ["", "", "ECONNREFUSED", "ECONNREFUSED"]
    nft.lead_name(place.sockets.nft, raw(late))
    assert place.run(lambda: connect(late, 443)) == ""


def test_names_outlive_a_change_of_the_rules(place):
    """They are counted from then on; neither end of the range ever stands for one."""
    nft.lead_name(place.sockets.nft, raw("198.18.0.8"))
    nft.load_rules(place.sockets.nft, Plan(names=(raw("198.18.0.1"), raw("198.18.0.8"))))
    four = ("198.18.0.0", "198.18.0.1", "198.18.0.8", "198.18.0.9")
    said = place.run(lambda: [connect(one, 443) for one in four])
    assert said == ["ECONNREFUSED", "", "", "ECONNREFUSED"]
    nft.lead_name(place.sockets.nft, raw("198.18.0.9"))
    nft.load_rules(place.sockets.nft, Plan(names=(raw("198.18.0.1"), raw("198.19.255.254"))))
    four = ("198.18.0.9", "198.18.255.255", "198.19.255.254", "198.20.0.0")
    said = place.run(lambda: [connect(one, 443) for one in four])
    assert said == ["", "", "", "ECONNREFUSED"]


def test_a_range_around_them_leads_to_no_unnamed_one(place):
    everything = Range(address=bytes(4), bits=0)
    nft.load_rules(place.sockets.nft, Plan(ranges=(everything,), names=(raw("198.18.0.1"),) * 2))
    four = ("198.17.0.1", "198.18.0.1", "198.18.0.2", "198.20.0.1")
    said = place.run(lambda: [connect(one, 443) for one in four])
    assert said == ["", "", "ECONNREFUSED", ""]


def test_a_name_cannot_be_led_by_who_has_no_rights(place):
    """As by a socket of the wrong kind, of a table that is gone."""
    drop_table(place.sockets.nft)
    with pytest.raises(OSError, match=r"nf_tables: elements of names"):
        nft.lead_name(place.sockets.nft, raw(FAKE))


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
        nft.load_rules(place.sockets.nft, (PLAN, Plan(names=PLAN.names))[changes % 2])
        changes += 1
    assert running.result() == ({("", "ECONNREFUSED")}, b"hello")
