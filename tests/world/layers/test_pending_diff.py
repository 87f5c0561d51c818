"""What a process of a world is told of earlier layers, while the loop goes on."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any

from substrate.session.doors import Client, Peer
from substrate.session.loop import Loop
from substrate.session.pending_diff import PendingDiff
from substrate.world import wire


class Asker:
    """Somebody at the door."""

    def __init__(self) -> None:
        ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own = socket.socket(fileno=ours.detach())
        self.client = Client(own, Peer(own), inside=True, until=time.monotonic() + 60)

    def heard(self) -> tuple[bytes, Any]:
        kind, fields = wire.decode(self.socket.recv(65536))
        self.socket.close()
        return kind, json.loads(fields[0])


def asked(pending: PendingDiff, asker: Asker) -> tuple[bytes, Any]:
    pending.ask(asker.client)
    loop = Loop(pending)
    while not asker.client.is_gone:
        loop.turn()
    return asker.heard()


def test_it_is_told_once_for_frozen_layers(world: Any) -> None:
    def make(root: bytes) -> None:
        for number in range(700):
            os.mknod(root + b"/f%d" % number)

    world.command(make)
    looked = []

    def frozen() -> Any:
        looked.append(1)
        return world.stack

    pending = PendingDiff(frozen)
    kind, first = asked(pending, Asker())
    assert (kind, first["counts"]["added"], first["cut"]) == (b"J", 700, True)
    rows = [len(json.dumps(row)) + 2 for row in first["changes"]]
    # five hundred, or as many as there is room for: one more of the longest would be too much
    assert len(rows) == 500 or 48_000 - max(rows) - 2 < sum(rows) <= 48_000
    # of the same layers nobody walks again: the answer is there at once
    again = Asker()
    pending.ask(again.client)
    assert again.client.is_gone
    assert again.heard()[1] == first
    # of other layers somebody does
    world.command(lambda root: os.unlink(root + b"/f1"))
    assert asked(pending, Asker())[1]["counts"]["added"] == 699


def test_a_walk_is_ended_and_those_who_wait_are_answered_by_the_next(world: Any) -> None:
    def make(root: bytes) -> None:
        for number in range(3000):
            os.mknod(root + b"/f%d" % number)

    world.command(make)
    pending = PendingDiff(lambda: world.stack)
    one, other = Asker(), Asker()
    pending.ask(one.client)
    pending.ask(other.client)
    loop = Loop(pending)
    loop.glance()  # it has begun
    pending.stop()
    before = len(os.listdir("/proc/self/fd"))
    while not (one.client.is_gone and other.client.is_gone):
        loop.turn()
    assert one.heard() == other.heard()
    pending.stop()
    assert len(os.listdir("/proc/self/fd")) <= before
