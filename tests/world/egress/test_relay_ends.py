"""How a relay passes on the end of one side, and that nothing which came before it is lost."""

import random
import socket
import threading

import pytest

from substrate.world.egress.relay import DOWN, UP
from tests.world.egress.rig import has_data, reset


def blob(size):
    return random.Random(7).randbytes(size)


def sides(rig, direction):
    return (rig.client, rig.server) if direction == UP else (rig.server, rig.client)


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_an_end_of_sending_passes_and_the_other_direction_goes_on(rigs, direction):
    rig = rigs().free()
    here, there = sides(rig, direction)
    here.send(b"all")
    here.shutdown(socket.SHUT_WR)
    assert rig.read_end(there) == (b"all", False)
    data = blob(2_000_000)
    writer = threading.Thread(target=write_and_end, args=(there, data))
    writer.start()
    assert rig.read_end(here) == (data, False)
    writer.join()
    rig.finish()
    assert rig.relay.end == ""
    assert [flow.lost for flow in rig.relay.flows] == [0, 0]


def write_and_end(sock, data):
    sock.setblocking(True)
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("direction", [UP, DOWN])
@pytest.mark.parametrize("size", [0, 100, 1_000_000])
def test_what_was_sent_before_a_reset_arrives_before_the_reset(rigs, direction, size):
    rig = rigs(small=65536)
    here, there = sides(rig, direction)
    rig.relay.free(DOWN if direction == UP else UP)
    there.send(b"unread")
    rig.until(lambda: has_data(here))  # so the close is a reset, by the kernel's own rule
    rig.relay.free(direction)
    data = blob(size)
    if size > 100:
        left = memoryview(data)
        got = bytearray()

        def written():
            nonlocal left
            try:
                while left:
                    left = left[here.send(left) :]
            except BlockingIOError:
                pass
            try:
                got.extend(there.recv(4096))
            except BlockingIOError:
                pass
            return not left

        rig.until(written)
        rig.until(lambda: unsent(here) == 0)
        here.close()
        rest, was_reset = rig.read_end(there)
        assert bytes(got) + rest == data
    else:
        here.send(data)
        here.close()
        got, was_reset = rig.read_end(there)
        assert got == data
    assert was_reset
    rig.finish()
    assert "reset" in rig.relay.end
    assert rig.relay.flows[direction].lost == 0


def unsent(sock):
    import fcntl

    return int.from_bytes(fcntl.ioctl(sock, 0x5411, bytes(4)), "little")


def test_a_reset_before_the_server_is_there_still_delivers_what_was_sent(rigs):
    rig = rigs(attach=False).free()
    rig.client.send(b"the whole request")
    reset(rig.client)
    for _ in range(5):
        rig.loop.run_once(0.01)
    rig.attach()
    assert rig.read_end(rig.server) == (b"the whole request", True)
    rig.finish()


def test_an_end_before_the_server_is_there_is_passed_on(rigs):
    rig = rigs(attach=False).free()
    rig.client.send(b"request")
    rig.client.shutdown(socket.SHUT_WR)
    for _ in range(5):
        rig.loop.run_once(0.01)
    rig.attach()
    assert rig.read_end(rig.server) == (b"request", False)
    assert not rig.dones


def test_the_answer_of_a_server_that_resets_reaches_a_client_that_still_sends(rigs):
    rig = rigs(small=16384).free()
    # the client fills everything; the server reads nothing, answers and closes: a reset
    quiet = 0
    while quiet < 5:
        try:
            rig.client.send(bytes(65536))
            quiet = 0
        except BlockingIOError:
            rig.loop.run_once(0.01)
            quiet += 1
    rig.server.send(b"413 too much")
    rig.server.close()
    got, was_reset = rig.read_end(rig.client)
    assert got == b"413 too much"
    assert was_reset
    rig.finish()
    assert rig.relay.end.startswith("upstream: ")
    up, down = rig.relay.flows
    assert down.delivered == 12
    assert up.taken == up.delivered + up.lost
    assert up.lost > 0


def test_a_slow_reader_gets_everything_before_the_reset(rigs):
    rig = rigs(small=4096).free()
    data = blob(100_000)
    sent = 0
    got = bytearray()

    def written():
        nonlocal sent
        try:
            while sent < len(data):
                sent += rig.server.send(data[sent:])
        except BlockingIOError:
            pass
        try:
            got.extend(rig.client.recv(3000))
        except BlockingIOError:
            pass
        return sent == len(data) and not unsent(rig.server)

    rig.until(written)
    reset(rig.server)
    rest, was_reset = rig.read_end(rig.client)
    assert bytes(got) + rest == data
    assert was_reset


def test_the_engine_is_told_of_an_end_that_it_watches_and_passes_it_on(rigs):
    rig = rigs()
    rig.relay.watch(UP)
    rig.client.send(b"half a hello")
    rig.client.shutdown(socket.SHUT_WR)
    rig.until(lambda: rig.ends)
    assert rig.told[UP] == [b"half a hello"]
    assert rig.ends == [UP]
    for _ in range(3):
        rig.loop.run_once(0.01)
    assert not has_data(rig.server)
    rig.relay.free(UP)
    assert rig.read_end(rig.server) == (b"", False)


def test_a_client_that_resets_while_it_is_watched_ends_the_relay(rigs):
    rig = rigs(attach=False)
    rig.relay.watch(UP)
    reset(rig.client)
    rig.finish()
    assert rig.ends == [UP]
    assert rig.relay.end.startswith("client: ")


def test_a_refusal_reaches_a_client_that_still_sends(rigs):
    rig = rigs()
    rig.relay.watch(UP)
    rig.client.send(b"POST")
    rig.until(lambda: rig.told[UP])
    rig.relay.refuse("no rule", b"403 no")
    rig.client.send(bytes(100_000))
    assert rig.read_end(rig.client) == (b"403 no", False)
    assert rig.read_end(rig.server) == (b"", True)
    rig.client.close()
    rig.finish()
    assert rig.relay.end == "no rule"


def test_a_client_that_was_refused_is_not_waited_for_for_long(rigs, monkeypatch):
    monkeypatch.setattr("substrate.world.egress.relay._LINGER_S", 0.05)
    rig = rigs(attach=False)
    rig.relay.refuse("no rule", b"403 no")
    rig.finish()
    assert rig.read_end(rig.client)[0] == b"403 no"


def test_a_refusal_without_an_answer_is_a_reset(rigs):
    rig = rigs()
    rig.relay.refuse("no rule")
    assert rig.dones == 1
    assert rig.read_end(rig.client) == (b"", True)
    assert rig.read_end(rig.server) == (b"", True)


def test_the_engine_may_refuse_from_within_a_callback(rigs):
    rig = rigs()
    rig.data = lambda direction, data: rig.relay.abort("seen")
    rig.relay.watch(UP)
    rig.client.send(b"x")
    rig.finish()
    assert rig.relay.end == "seen"


def test_a_half_open_relay_that_does_nothing_is_ended(rigs):
    rig = rigs(half_open_s=0.05).free()
    rig.client.shutdown(socket.SHUT_WR)
    rig.finish()
    assert rig.relay.end == "nothing was moved for 0.05 s"
    assert rig.read_end(rig.client)[1]


def test_a_relay_that_does_nothing_is_ended_only_where_that_is_asked(rigs):
    patient, strict = rigs().free(), rigs(idle_s=0.05).free()
    strict.finish()
    assert strict.relay.end == "nothing was moved for 0.05 s"
    for _ in range(5):
        patient.loop.run_once(0.02)
    assert not patient.dones


def shut_window(rig):
    """Sends to the client, which does not read, until what was delivered to its socket stays
    unacknowledged; how much was sent."""
    down, client = rig.relay.flows[DOWN], rig.relay.client
    stuck = sent = 0
    while stuck < 10:
        if client.unacknowledged():
            stuck += 1
        else:
            stuck = 0
            sent += rig.server.send(b"%499d\n" % sent)
        rig.until(lambda sent=sent: down.delivered == sent)
        rig.loop.run_once(0.01)
    return sent


def test_a_reset_waits_until_the_last_byte_is_acknowledged(rigs):
    rig = rigs(small=4096).free()
    sent = shut_window(rig)
    reset(rig.server)
    rig.until(lambda: rig.relay.flows[DOWN].closed)
    rig.loop.run_once(0.01)
    assert rig.dones == 0
    got, was_reset = rig.read_end(rig.client)
    assert got == b"".join(b"%499d\n" % at for at in range(0, sent, 500))
    assert was_reset
    rig.finish()


def test_a_peer_that_acknowledges_nothing_is_not_waited_for_for_ever(rigs, monkeypatch):
    monkeypatch.setattr("substrate.world.egress.relay._DRAIN_S", 0.1)
    rig = rigs(small=4096).free()
    shut_window(rig)
    reset(rig.server)
    rig.finish()
    assert rig.relay.flows[DOWN].lost == 0
    assert rig.read_end(rig.client)[1]
