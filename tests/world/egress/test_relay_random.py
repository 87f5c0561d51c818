"""Relays under random chunks, slow readers, ends and resets: no byte is changed, lost or
counted wrongly, whatever the order of things."""

import random
import socket

from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.world.egress.relay import DOWN, UP
from tests.world.egress.rig import Rig, descriptors, reset

ENDS = ("end", "reset", "close")


class Peer:
    """One end: sends `data` in random pieces, reads at random, ends as it is told."""

    def __init__(self, sock, data, chance, end):
        self.sock, self.left, self.chance, self.end = sock, memoryview(data), chance, end
        self.sent = 0
        self.got = bytearray()
        self.heard = ""  # how the other side ended
        self.open = True
        self.refused = False  # a send has taken the error; reads then give a plain end

    def step(self):
        if self.open and self.chance.random() < 0.6:
            self.read()
        if self.open and self.left is not None and self.chance.random() < 0.7:
            self.write()

    def read(self):
        try:
            more = self.sock.recv(self.chance.choice((1, 700, 70_000)))
        except BlockingIOError:
            return
        except (ConnectionResetError, BrokenPipeError):
            self.heard, self.open = "reset", False
            return
        self.got += more
        if not more:
            self.heard = "reset" if self.refused else "end"

    def write(self):
        size = self.chance.choice((1, 100, 5_000, 100_000))
        try:
            if self.left:
                count = self.sock.send(self.left[:size])
                self.sent += count
                self.left = self.left[count:]
                return
        except BlockingIOError:
            return
        except (ConnectionResetError, BrokenPipeError):
            self.left, self.refused = None, True
            return
        self.left = None
        if self.end == "end":
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
        elif self.end == "reset":
            self.open = False
            reset(self.sock)
        else:
            self.open = False
            self.sock.close()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sizes=st.tuples(st.integers(0, 600_000), st.integers(0, 600_000)),
    ends=st.tuples(st.sampled_from(ENDS), st.sampled_from(ENDS)),
    small=st.sampled_from((0, 4096)),
    most=st.sampled_from((0, 4)),
    tee=st.sampled_from((0, 10_000)),
)
def test_any_course_of_things(seed, sizes, ends, small, most, tee):
    before = descriptors()
    chance = random.Random(seed)
    rig = Rig(attach=False, small=small, pipes={"most": most}, tee=tee).free()
    up_data, down_data = chance.randbytes(sizes[0]), chance.randbytes(sizes[1])
    client = Peer(rig.client, up_data, chance, ends[0])
    server = Peer(rig.server, down_data, chance, ends[1])
    attach_at = chance.randrange(5)
    turns = 0

    def course():
        nonlocal turns
        if turns == attach_at:
            rig.attach()
        turns += 1
        for _ in range(8):
            client.step()
            server.step()
        return rig.dones and turns > attach_at

    rig.until(course)
    for peer in (client, server):
        while peer.open and not peer.heard:
            peer.sock.setblocking(True)
            peer.sock.settimeout(10)
            peer.read()
    up, down = rig.relay.flows
    for flow in (up, down):
        assert flow.taken == flow.delivered + flow.lost
    assert server.got == up_data[: len(server.got)]
    assert client.got == down_data[: len(client.got)]
    assert len(server.got) <= up.delivered <= client.sent
    assert len(client.got) <= down.delivered <= server.sent
    assert rig.copies == {
        UP: up_data[: min(tee, up.delivered + up.lost)],
        DOWN: down_data[: min(tee, down.delivered + down.lost)],
    }
    if ends == ("end", "end"):
        assert (server.got, client.got) == (up_data, down_data)
        assert (rig.relay.end, client.heard, server.heard) == ("", "end", "end")
    if server.heard == "end":  # it takes the stream for whole: then it is
        assert server.got == up_data
    if client.heard == "end":
        assert client.got == down_data
    rig.close()
    assert descriptors() == before
