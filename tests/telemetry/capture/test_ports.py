"""Whose a local port is: what a table of uses answers, without a process (ports.py)."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.telemetry.capture import network, records
from substrate.telemetry.capture.ports import Ports, reached
from tests.telemetry.capture.test_decode import ROOT, call, decoder, inet

WEB, OTHER = ("198.18.0.1", 443), ("198.18.0.2", 443)
SOCKET = (records.BASE, b"socket:[5]")


def test_the_newest_use_that_had_begun_is_the_owner():
    ports = Ports()
    ports.add("tcp", 40000, 100, 1, "a")
    ports.add("tcp", 40000, 300, 2, "b")
    ports.add("tcp", 40000, 200, 3, "c")  # told later, since its call took longer
    assert [ports.owner("tcp", 40000, t) for t in (99, 100, 199, 200, 299, 300, 9999)] == [
        *(None, 1, 1, 3, 3, 2, 2),
    ]
    found = ports.find("tcp", 40000, 250)
    assert found is not None and (found.proc, found.span, found.time_us) == (3, "c", 200)


def test_protocols_have_ports_of_their_own():
    ports = Ports()
    ports.add("tcp", 53, 1, 1, "a")
    ports.add("udp", 53, 1, 2, "b")
    assert (ports.owner("tcp", 53, 5), ports.owner("udp", 53, 5)) == (1, 2)
    assert ports.owner("tcp", 54, 5) is None


def test_two_connections_of_one_port_are_told_apart_by_where_they_go():
    ports = Ports()
    ports.add("tcp", 40000, 100, 1, "a", WEB)
    ports.add("tcp", 40000, 200, 2, "b", OTHER)
    assert ports.owner("tcp", 40000, 300, WEB) == 1
    assert ports.owner("tcp", 40000, 300, OTHER) == 2
    assert ports.owner("tcp", 40000, 300) == 2
    assert ports.owner("tcp", 40000, 300, ("198.18.0.3", 443)) is None
    ports.add("tcp", 40000, 250, 3, "c")  # nobody knows where to
    assert ports.owner("tcp", 40000, 300, WEB) == 3


@pytest.mark.parametrize(
    ("given_to_connect", "seen"),
    [
        ("::ffff:198.18.0.1", "198.18.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "::1"),
        ("2001:db8::1", "2001:db8::1"),
    ],
)
def test_where_a_connection_goes_is_what_its_packets_say(given_to_connect, seen):
    assert reached((given_to_connect, 7)) == (seen, 7)


def test_many_datagrams_of_one_socket_are_one_use():
    ports = Ports()
    ports.add("udp", 50000, 1, 7, "a")
    for time_us in range(2, 1000):
        ports.add("udp", 50000, time_us, 8, "b", WEB)
    assert ports.owner("udp", 50000, 1) == 7  # not pushed out by them


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 50), st.integers(1, 5)), max_size=300))
def test_memory_is_bounded_and_nothing_is_made_up(uses):
    ports = Ports(most=8)
    for port, time_us, proc in uses:
        ports.add("tcp", port, time_us, proc, "s")
    assert sum(ports.owner("tcp", port, 99) is not None for port in range(1, 13)) <= 8
    for port in range(1, 13):
        for time_us in (0, 25, 50):
            found = ports.find("tcp", port, time_us)
            if found is not None:
                assert (port, found.time_us, found.proc) in uses and found.time_us <= time_us


def test_what_was_used_last_is_kept():
    ports = Ports(most=2)
    for port in (1, 2, 1, 3):
        ports.add("tcp", port, port, port, "s")
    assert [ports.owner("tcp", port, 9) for port in (1, 2, 3)] == [1, None, 3]


def test_a_port_that_is_used_again_at_once_keeps_its_uses():
    """Who asks whose it is comes a moment later."""
    ports = Ports()
    for time_us in range(200):
        ports.add("udp", 31000, time_us, time_us, "s")
    assert [ports.owner("udp", 31000, t) for t in range(200)] == list(range(200))


def test_one_process_that_reaches_far_more_than_is_remembered_is_known_for_all_of_it():
    ports = Ports()
    far = [(f"203.0.113.{n % 256}", n) for n in range(4000)]
    for time_us, peer in enumerate(far):
        ports.add("udp", 31000, time_us, 7, "s", peer)
    assert len(ports._uses["udp", 31000]) == ports._count <= 512
    assert {ports.owner("udp", 31000, t, peer) for t, peer in enumerate(far)} == {7}
    # then another one has the port: what it reaches is its own
    ports.add("udp", 31000, 5000, 8, "s", WEB)
    assert ports.owner("udp", 31000, 5000, WEB) == 8
    assert ports.owner("udp", 31000, 5000, far[0]) == 7


def test_of_a_port_that_several_share_nothing_forgotten_is_guessed():
    ports = Ports()
    far = [(f"203.0.113.{n % 256}", n) for n in range(4000)]
    for time_us, peer in enumerate(far):
        ports.add("udp", 31000, time_us, time_us % 2, "s", peer)
    found = [ports.owner("udp", 31000, 4000, peer) for peer in far]
    assert found == [None] * (4000 - 512) + [t % 2 for t in range(4000 - 512, 4000)]


def test_connections_from_one_port_to_one_place_are_given_by_their_number():
    """The first was reset, and the port taken again, before it was accepted; they are told in any order."""
    ports = Ports()
    for time_us, proc in ((100, 1), (200, 1), (300, 2), (400, 3)):
        ports.add("tcp", 40000, time_us, proc, "s", WEB)
    ports.add("tcp", 40000, 350, 9, "s", OTHER)
    for turn, proc in ((3, 3), (0, 1), (2, 2), (1, 1), (2, 2)):
        use = ports.take(40000, 450 + turn, WEB, turn)
        assert use is not None and use.proc == proc
    assert ports.take(40000, 500, ("198.18.0.9", 1)) is None


def test_addresses_of_one_port_are_told_apart():
    """They go to one place at once, and may be accepted in another order than the calls began."""
    ports = Ports()
    for time_us, proc, source in (
        (100, 1, "127.0.0.1"),
        (101, 2, "127.0.0.2"),
        (200, 2, "127.0.0.2"),
    ):
        ports.add("tcp", 40000, time_us, proc, "s", WEB, source=source)
    for source, turn, proc in (("127.0.0.2", 0, 2), ("127.0.0.1", 0, 1), ("127.0.0.2", 1, 2)):
        use = ports.take(40000, 300, WEB, turn, source=source)
        assert use is not None and use.proc == proc
    assert ports.take(40000, 300, WEB, 0, source="127.0.0.3") is None


def test_datagrams_of_one_port_of_several_addresses():
    ports = Ports()
    for time_us, proc, source in ((100, 1, "127.0.0.1"), (200, 2, "127.0.0.2"), (300, 3, "")):
        ports.add("udp", 40000, time_us, proc, "s", source=source)

    def of(time_us, source):
        use = ports.find("udp", 40000, time_us, None, source)
        return use and use.proc

    assert (of(250, "127.0.0.1"), of(250, "127.0.0.2"), of(250, "127.0.0.3")) == (1, 2, None)
    assert (of(350, "127.0.0.1"), of(350, "127.0.0.3"), of(250, "")) == (3, 3, 2)


def test_one_process_that_asks_from_several_addresses():
    ports = Ports()
    for time_us, source in ((100, "127.0.0.1"), (200, "127.0.0.2")):
        ports.add("udp", 40000, time_us, 1, "s", source=source)
    assert ports.find("udp", 40000, 300, None, "127.0.0.2") is not None


def test_who_has_no_address_any_more_may_be_of_any():
    """A connection that was refused at once has none, unless it was bound to it."""
    ports = Ports()
    ports.add("tcp", 40000, 100, 1, "s", WEB)
    assert getattr(ports.take(40000, 150, WEB, 0, source="127.0.0.1"), "proc", None) == 1
    ports.add("tcp", 40000, 200, 2, "s", WEB, source="127.0.0.1")
    assert ports.take(40000, 300, WEB, 0, source="127.0.0.1") is None


def test_nobody_is_guessed_where_connections_may_be_missing():
    def one(*more, turn=0, at=5_000_500, **options):
        ports = Ports()
        for time_us, proc in ((5_000_000, 1), (5_000_100, 2), *more):
            ports.add("tcp", 40000, time_us, proc, "s", WEB)
        found = ports.take(40000, at, WEB, turn, **options)
        again = ports.take(40000, at, WEB, turn)
        assert again == found  # what is not sure stays so
        return found and found.proc

    assert one() == 1
    assert one(turn=1) == 2
    assert one(sure=False) is None
    assert one(turn=2) is None  # more came than calls were told
    assert one(at=6_500_000) is None  # one of the two may never have come
    assert one(at=6_500_000, turn=1) == 2
    ports = Ports()
    for time_us in (1, 2, 3):
        ports.add("tcp", 40000, time_us, 7, "s", WEB)
    found = ports.take(40000, 9_000_000, WEB, 5, sure=False)
    assert found is not None and found.proc == 7  # nobody else has ever used it


def test_a_connect_that_sent_nothing_is_no_use():
    """Another connection from the port to that place was there still."""
    made, _ = fed(connect(local(40000), result=-99))
    assert made.ports.find("tcp", 40000, 1, ("198.18.0.1", 443)) is None


def test_the_uses_of_all_ports_are_bounded(monkeypatch):
    monkeypatch.setattr("substrate.telemetry.capture.ports._MOST_OF_ALL", 100)
    ports = Ports()
    for time_us in range(1000):
        ports.add("udp", time_us % 30, time_us, time_us, "s")
        assert sum(map(len, ports._uses.values())) == ports._count <= 100
        assert ports.owner("udp", time_us % 30, time_us) == time_us


def local(port, protocol=6, ip=b"\x7f\0\0\1"):
    return records.LOCAL, struct.pack("=H", protocol) + struct.pack(">H", port) + ip


@pytest.mark.parametrize(
    ("item", "found"),
    [
        (local(40000)[1], ("tcp", 40000, "127.0.0.1")),
        (local(40000, 262)[1], ("tcp", 40000, "127.0.0.1")),
        (local(40000, 17, bytes(4))[1], ("udp", 40000, None)),
        (local(1, 17, bytes(16))[1], ("udp", 1, None)),
        (local(1, 6, bytes(15) + b"\1")[1], ("tcp", 1, "::1")),
        (local(1, 6, bytes(10) + b"\xff\xff\x7f\0\0\1")[1], ("tcp", 1, "127.0.0.1")),
        (local(7, 1)[1], None),  # a ping: its number is no port
        (local(0)[1], None),
        (local(1)[1][:7], None),
        (b"", None),
    ],
)
def test_an_item_is_read(item, found):
    read = network.parse_local(item)
    assert (read and (read.protocol, read.port, read.ip)) == found


def connect(*items, result=0, tid=ROOT, time_ns=1000, flags=0, address=("198.18.0.1", 443)):
    return call(
        "connect", args=(3,), result=result, tid=tid, time_ns=time_ns, flags=flags,
        items=(SOCKET, (records.ADDRESS, inet(*address)), *items),
    )  # fmt: skip


def fed(*data):
    made = decoder()
    for piece in data:
        made.feed(piece)
    return made, [e.body for e in made.finish() if e.event_type == "net_connect"]


FORK = records.make_record(records.FORK, tid=ROOT, result=101)


def test_an_event_says_from_where_and_the_table_whose_it_is():
    made, (body,) = fed(connect(local(40000), result=-115))
    assert (body["local_port"], body["local_ip"], body["result"]) == (
        *(40000, "127.0.0.1", "EINPROGRESS"),
    )
    found = made.ports.find("tcp", 40000, 1, ("198.18.0.1", 443))
    assert found is not None and (found.proc, found.span) == (10, made.tree.root.span)


def test_who_asks_again_does_not_become_the_owner():
    made, _ = fed(FORK, connect(local(40000), result=-115), connect(local(40000), tid=101))
    assert made.ports.owner("tcp", 40000, 99) == 10


def test_a_connection_that_was_refused_is_of_who_tried_and_the_next_one_of_who_tries_then():
    made, bodies = fed(
        FORK,
        connect(local(40000, ip=bytes(4)), result=-111),
        connect(local(40000), tid=101, time_ns=9000),
    )
    assert "local_ip" not in bodies[0] and bodies[0]["local_port"] == 40000
    assert (made.ports.owner("tcp", 40000, 5), made.ports.owner("tcp", 40000, 9)) == (10, 11)


def test_a_connect_that_ends_what_was_before_takes_no_port():
    unspec = (records.ADDRESS, bytes(16))
    ended = call("connect", args=(3,), tid=101, items=(SOCKET, unspec, local(40000)))
    made, _ = fed(FORK, connect(local(40000)), ended)
    assert made.ports.owner("tcp", 40000, 99) == 10


def test_a_connect_that_a_signal_interrupts_is_under_way():
    made, _ = fed(connect(local(40000), result=-512, flags=records.RESTARTED))
    assert made.ports.owner("tcp", 40000, 1) == 10
    made = decoder()
    made.feed(connect(local(40000), result=-512, flags=records.RESTARTED))
    assert made.ports.owner("tcp", 40000, 1) == 10  # before anything tells what came of it


def test_each_send_counts_though_one_event_tells_of_them():
    def send(tid, time_ns):
        return call(
            "sendto", args=(3, 0, 1, 0, 8), tid=tid, time_ns=time_ns, result=1,
            items=(SOCKET, (records.ADDRESS, inet("198.18.0.1", 9)), local(50000, 17, bytes(4))),
        )  # fmt: skip

    made, bodies = fed(FORK, send(ROOT, 1000), send(101, 2000), send(ROOT, 3000))
    assert [body["local_port"] for body in bodies] == [50000]
    assert [made.ports.owner("udp", 50000, t) for t in (1, 2, 3)] == [10, 11, 10]
