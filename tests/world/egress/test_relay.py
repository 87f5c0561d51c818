"""Bytes through a relay: that all of them pass, in order, counted, and who sees them."""

import hashlib
import itertools
import os
import random
import socket
import time

import pytest

from substrate.world.egress.relay import DOWN, UP
from tests.world.egress.rig import has_data, try_read


def blob(size, seed=1):
    return random.Random(seed).randbytes(size)


def digest(data):
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_a_large_stream_passes_unchanged_and_is_spliced(rigs, direction):
    rig = rigs().free()
    source, sink = (rig.client, rig.server) if direction == UP else (rig.server, rig.client)
    data = blob(30_000_000)
    got = bytearray()
    left = memoryview(data)

    def passed():
        nonlocal left
        try:
            while left:
                left = left[source.send(left[:1000000]) :]
        except BlockingIOError:
            pass
        while more := try_read(sink, 1 << 20):
            got.extend(more)
        return len(got) >= len(data)

    rig.until(passed)
    flow = rig.relay.flows[direction]
    assert digest(got) == digest(data)
    assert (flow.taken, flow.delivered, flow.lost) == (len(data), len(data), 0)
    assert flow.spliced > len(data) // 2
    assert flow.copied == 0


def test_little_is_copied_and_takes_no_pipe(rigs):
    rig = rigs(pipes={"most": 0}).free()
    for number in range(50):
        rig.client.send(b"question %d" % number)
        assert rig.read(rig.server, len(b"question %d" % number)) == b"question %d" % number
        rig.server.send(b"answer")
        assert rig.read(rig.client, 6) == b"answer"
    assert rig.pipes.refused == 0
    assert rig.relay.flows[DOWN].delivered == 300


def test_without_a_pipe_everything_is_copied_and_that_is_counted(rigs):
    rig = rigs(pipes={"most": 0}).free()
    data = blob(5_000_000)
    got = bytearray()
    left = memoryview(data)

    def passed():
        nonlocal left
        try:
            while left:
                left = left[rig.client.send(left) :]
        except BlockingIOError:
            pass
        while more := try_read(rig.server, 1 << 20):
            got.extend(more)
        return len(got) >= len(data)

    rig.until(passed)
    assert digest(got) == digest(data)
    assert rig.relay.flows[UP].spliced == 0
    assert rig.relay.flows[UP].copied > 0
    assert rig.pipes.refused > 0


def test_a_reader_that_does_not_read_stops_the_writer(rigs):
    rig = rigs(small=8192).free()
    sent = 0
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < 0.2:
        try:
            sent += rig.client.send(bytes(65536))
            quiet_since = time.monotonic()
        except BlockingIOError:
            rig.loop.run_once(0.02)
    flow = rig.relay.flows[UP]
    assert flow.waiting() <= rig.pipes.size
    assert sent < 16_000_000
    assert flow.taken == flow.delivered + flow.waiting()
    assert len(rig.read(rig.server, sent)) == sent
    assert flow.delivered == sent


def test_nothing_is_read_before_the_engine_says_so(rigs):
    rig = rigs()
    rig.client.send(b"not yet")
    for _ in range(5):
        rig.loop.run_once(0.01)
    assert rig.relay.flows[UP].taken == 0
    assert not has_data(rig.server)
    rig.free()
    assert rig.read(rig.server, 7) == b"not yet"


def test_what_is_watched_passes_only_when_it_is_sent(rigs):
    rig = rigs(attach=False)
    rig.relay.watch(UP)
    rig.client.send(b"GET /")
    rig.until(lambda: rig.told[UP])
    assert rig.told[UP] == [b"GET /"]
    rig.attach()
    for _ in range(3):
        rig.loop.run_once(0.01)
    assert not has_data(rig.server)
    rig.relay.send_upstream(b"".join(rig.told[UP]))
    assert rig.read(rig.server, 5) == b"GET /"


def test_after_a_limit_the_engine_sees_the_bytes_again_and_the_order_is_kept(rigs):
    rig = rigs()
    data = blob(3_000_000)
    rig.relay.watch(UP)
    rig.client.send(b"head")
    rig.until(lambda: rig.told[UP])
    rig.relay.send_upstream(b"head")
    rig.relay.limit(UP, len(data))
    got = bytearray()
    left = memoryview(data + b"next")

    def passed():
        nonlocal left
        try:
            while left:
                left = left[rig.client.send(left) :]
        except BlockingIOError:
            pass
        while more := try_read(rig.server, 1 << 20):
            got.extend(more)
        return len(rig.told[UP]) == 2

    rig.until(passed)
    assert rig.told[UP] == [b"head", b"next"]
    rig.relay.send_upstream(b"NEXT")
    got += rig.read(rig.server, 4 + len(data) + 4 - len(got))
    assert digest(got) == digest(b"head" + data + b"NEXT")


def test_a_copy_of_the_first_bytes_of_each_direction_is_given(rigs):
    rig = rigs(tee=100_000).free()
    up, down = blob(150_000, 2), blob(10, 3)
    rig.write(rig.client, up)
    assert rig.read(rig.server, len(up)) == up
    rig.server.send(down)
    assert rig.read(rig.client, len(down)) == down
    assert rig.copies == {UP: up[:100_000], DOWN: down}


def test_the_budget_is_never_exceeded_and_its_end_is_told_once(rigs):
    rig = rigs(budget=100_000).free()
    rig.write(rig.client, bytes(99_990))
    rig.read(rig.server, 99_990)
    rig.client.send(bytes(11))
    rig.until(lambda: rig.exceeded)
    for _ in range(5):
        rig.loop.run_once(0.01)
    assert rig.exceeded == 1
    assert rig.budget.used == 100_000
    assert len(rig.read(rig.server, 10)) == 10
    assert not has_data(rig.server)


@pytest.mark.parametrize("before", [0, 1000, 300_000])
def test_urgent_data_is_dropped_and_ends_nothing(rigs, before):
    rig = rigs().free()
    rig.write(rig.client, bytes(before))
    rig.client.send(b"!", socket.MSG_OOB)
    rig.write(rig.client, b"after")
    assert rig.read(rig.server, before + 5) == bytes(before) + b"after"
    rig.client.send(b"?", socket.MSG_OOB)
    rig.client.shutdown(socket.SHUT_WR)
    assert rig.read_end(rig.server) == (b"", False)


def test_one_that_streams_moves_a_bounded_piece_in_each_round(rigs):
    rig = rigs().free()
    moved = []

    def every_round():
        moved.append(rig.relay.flows[UP].taken)
        rig.loop.soon(every_round)

    rig.loop.soon(every_round)
    left = memoryview(bytes(50_000_000))

    def passed():
        nonlocal left
        try:
            while left:
                left = left[rig.client.send(left) :]
        except BlockingIOError:
            pass
        while try_read(rig.server, 1 << 20):
            pass
        return not left

    rig.until(passed)
    steps = [later - before for before, later in itertools.pairwise(moved)]
    # one turn and what was begun before its end
    assert 0 < max(steps) <= 524288 + rig.pipes.size


def test_both_sockets_get_keepalive_and_no_delay(rigs):
    rig = rigs()
    for end in (rig.relay.client, rig.relay.upstream):
        assert end.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert end.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert end.socket.gettimeout() == 0.0


def test_a_relay_that_ended_closes_what_it_is_given_late(rigs):
    rig = rigs(attach=False)
    rig.relay.abort("enough")
    assert rig.relay.end == "enough"
    fd = rig.upstream_fd
    rig.attach()
    with pytest.raises(OSError):
        os.fstat(fd)
