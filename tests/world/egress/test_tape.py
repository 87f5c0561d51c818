"""What is kept of a connection for the record, by real relays and by itself."""

import random

import pytest

from substrate.world import wire
from substrate.world.egress import report, tape
from substrate.world.egress.relay import DOWN, UP
from substrate.world.egress.tape import Tapes, is_hello, parse_head, parse_piece

HELLO = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"


def test_no_two_packets_have_one_kind():
    named = [
        *(report.DONE, report.FINISH, report.SOCKETS),
        *(report.TAPE_HEAD, report.TAPE, report.RULES),
    ]
    kinds = [*report._KINDS, *named]
    assert len(set(kinds)) == len(kinds)


def unpack(packets):
    """(head, turns, bytes up, bytes down) of one tape."""
    messages = [wire.Message(*wire.decode(packet), [], 0) for packet in packets]
    assert [m.kind for m in messages] == [report.TAPE_HEAD, *[report.TAPE] * (len(messages) - 1)]
    head, raw = parse_head(messages[0])
    turns = list(tape.TURN.iter_unpack(raw))
    kept = [b"", b""]
    for message in messages[1:]:
        number, direction, piece = parse_piece(message)
        assert number == head.connection
        assert len(piece) <= tape.PIECE_BYTES
        kept[direction] += piece
    return head, turns, *kept


@pytest.fixture
def tapes():
    """(made with limits, packets)."""
    packets = []

    def make(stream_bytes=1 << 20, total_bytes=1 << 24):
        return Tapes(stream_bytes, total_bytes, packets.append)

    make.packets = packets
    return make


def recorded(rigs, made, stream_bytes, **options):
    """A relay whose copies go to a tape."""
    rig = rigs(tee=stream_bytes, **options)
    one = made.begin(7, 0)
    one.relay = rig.relay
    rig.copied = lambda direction, data: one.add(direction, data, 1, hello=direction == UP)
    return rig.free(), one


def test_both_directions_in_their_order(rigs, tapes):
    rig, one = recorded(rigs, tapes(), 1 << 20)
    rig.client.send(b"ask")
    assert rig.read(rig.server, 3) == b"ask"
    rig.server.send(b"answer")
    assert rig.read(rig.client, 6) == b"answer"
    rig.client.shutdown(1)
    assert rig.read_end(rig.server) == (b"", False)
    rig.server.close()
    assert rig.read_end(rig.client) == (b"", False)
    rig.client.close()
    rig.finish()
    one.send(DOWN)
    head, turns, up, down = unpack(tapes.packets)
    assert (up, down, head.inward, head.encrypted) == (b"ask", b"answer", DOWN, 0)
    assert [turn[:2] for turn in turns] == [(UP, 3), (DOWN, 6), (UP, 0), (DOWN, 0)]


@pytest.mark.parametrize("limit", [1, 1000, 65536, 65537, 300_000])
def test_of_a_long_stream_the_beginning_and_then_it_is_spliced(rigs, tapes, limit):
    made = tapes(limit)
    rig, one = recorded(rigs, made, limit)
    data = random.Random(limit).randbytes(4_000_000)
    left, got = memoryview(data), bytearray()

    def passed():
        nonlocal left
        try:
            while left:
                left = left[rig.client.send(left[:1000000]) :]
        except BlockingIOError:
            pass
        try:
            while more := rig.server.recv(1 << 20):
                got.extend(more)
        except BlockingIOError:
            pass
        return len(got) == len(data)

    rig.until(passed)
    assert bytes(got) == data
    assert rig.relay.flows[UP].spliced > 2_000_000
    one.send(DOWN)
    _, turns, up, _ = unpack(tapes.packets)
    assert up == data[:limit]
    assert sum(count for _, count, _ in turns) == limit


def test_all_tapes_share_their_room(tapes):
    made = tapes(100, 150)
    one, two = made.begin(1, 0), made.begin(2, 0)
    one.add(UP, b"a" * 100, 1)
    two.add(UP, b"b" * 40, 1)
    two.add(DOWN, b"c" * 40, 2)
    two.add(DOWN, b"d" * 40, 3)
    two.add(UP, b"e", 4)
    two.send(DOWN)
    head, _, up, down = unpack(tapes.packets)
    assert (up, down, head.used_up) == (b"b" * 40, b"c" * 10, 1)
    one.drop()
    assert made.left == 100


def test_tls_is_not_kept_and_what_came_before_it_is(rigs, tapes):
    assert is_hello(HELLO) and not is_hello(HELLO[:5]) and not is_hello(b"\x16\x04" + HELLO[2:])
    rig, one = recorded(rigs, tapes(), 1 << 20)
    rig.client.send(b"STARTTLS")
    assert rig.read(rig.server, 8)
    rig.server.send(HELLO)  # a server's bytes begin no TLS
    assert rig.read(rig.client, len(HELLO))
    rig.client.send(HELLO)
    assert rig.read(rig.server, len(HELLO))
    rig.server.send(b"secret")
    assert rig.read(rig.client, 6)
    assert rig.relay.flows[UP].tee_left == rig.relay.flows[DOWN].tee_left == 0
    one.send(DOWN)
    head, _, up, down = unpack(tapes.packets)
    assert (up, down, head.encrypted) == (b"STARTTLS", HELLO, 1)


def test_the_turns_are_bounded_and_what_is_lost_is_said(tapes):
    one = tapes().begin(1, 0)
    for number in range(tape.MOST_TURNS + 100):
        one.add(number % 2, b"x", number * 100_000)
    one.send(DOWN)
    head, turns, up, down = unpack(tapes.packets)
    assert len(turns) == tape.MOST_TURNS
    assert len(up + down) == tape.MOST_TURNS + 100
    assert sum(turn[1] for turn in turns) + head.turns_lost == tape.MOST_TURNS + 100
    assert max(map(len, tapes.packets)) < 65536


def test_many_that_say_little_share_their_turns(tapes, monkeypatch):
    monkeypatch.setattr(tape, "MOST_TURNS_IN_ALL", 10)
    made = tapes()
    several = [made.begin(number, 0) for number in range(4)]
    for number in range(20):
        several[number % 4].add(number % 2, b"x", number * 100_000)
    several[0].drop()
    assert made.turns_left == 3
    several[1].add(0, b"y", 9_000_000)
    several[1].send(DOWN)
    head, turns, up, down = unpack(tapes.packets)
    assert (len(turns), len(up + down)) == (4, 6)
    assert sum(count for _, count, _ in turns) + head.turns_lost == 6


def test_what_follows_at_once_is_one_turn(tapes):
    one = tapes().begin(1, 1000)
    for direction, at_us in ((UP, 1000), (UP, 5000), (UP, 20_000), (DOWN, 20_001), (UP, 20_002)):
        one.add(direction, b"x", at_us)
    one.send(DOWN)
    assert unpack(tapes.packets)[1] == [
        (UP, 2, 0), (UP, 1, 19_000), (DOWN, 1, 19_001), (UP, 1, 19_002),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        (),
        (1, 0, 0, 0, 0),
        (1, 2, 0, 0, 0, b""),
        (1, 0, 0, 0, 0, b"x"),
        (1, 0, 0, 0, 0, bytes(13 * 2049)),
        (1, 0, 0, 0, 0, b"\x02" + bytes(12)),
        ("a", 0, 0, 0, 0, b""),
    ],
)
def test_what_is_no_head_is_refused(fields):
    packet = wire.encode(report.TAPE_HEAD, fields)
    with pytest.raises(wire.WireError):
        parse_head(wire.Message(*wire.decode(packet), [], 0))
