"""The run of a joined command: what goes wrong with it is its own."""

import os
import select
import socket
import time

from substrate.session.client_call import Call, Flags
from substrate.session.doors import Client, Peer
from substrate.session.executing import Executing, Guarded, JoinedRun
from substrate.session.inside import PassedFds, PassedStreams
from substrate.session.loop import Waiting
from substrate.world import wire
from substrate.world.handle import Go


class StillWorld:
    """A world in which nothing begins: what was begun was stopped."""

    def __init__(self):
        self.signals, self.ended = [], False
        self.ours, self.theirs = wire.pair()

    def run(self, _spec, _stdio):
        return Go(self.ours, lambda: None, None)

    def signal_one(self, _go, number, scope):
        self.signals.append((number, scope))


class Spec:
    file = b"/bin/true"


def test_a_command_that_does_not_begin_fails_alone():
    world = StillWorld()
    streams = PassedStreams((-1, -1, -1), 0, lambda: None)
    run = JoinedRun(world, streams, None, None, leaves=True)
    run.on_trouble = lambda error: None
    run.begin(Spec)
    waiting = Waiting(time.monotonic() + 31)
    run.wait_for(waiting)
    assert waiting.changed
    assert not run.may_go and not run.is_starting
    assert world.signals == [(9, "tree")]
    world.ours.close()
    world.theirs.close()


class BrokenCapture:
    """One whose disk fails, or that has a fault of ours: all the time."""

    def __init__(self, error):
        self.error, self.closed = error, False

    def tick(self, now):
        raise self.error

    def finished(self):
        return False

    def halted(self):
        return False

    def close(self):
        self.closed = True


class Recorder:
    span = "spn_01920000-0000-7000-8000-0123456789ab"


class One:
    recorder = Recorder()

    def __init__(self, streams, capture):
        self.streams, self.capture = streams, capture


class Supervisor:
    """Of one command: keeps what it is told."""

    def __init__(self):
        self.logged, self.finished = [], []

    def log(self, text):
        self.logged.append(text)

    def finish(self, each, ended):
        self.finished.append(ended)


def test_what_fails_of_a_command_all_the_time_ends_that_command():
    for error in (OSError(5, "Input/output error"), RuntimeError("a fault of ours")):
        world, daemon = StillWorld(), Supervisor()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client = Client(ours, Peer(ours), inside=False, until=time.monotonic() + 60)
        call = Call(
            mode="command", parent=None, flags=Flags(), file=b"/bin/true", cwd=b"/",
            argv=(b"true",), environ={}, umask=0,
        )  # fmt: skip
        each = Executing(daemon, client, call, PassedFds((-1, -1, -1)), None)
        streams = PassedStreams((-1, -1, -1), 0, lambda: None)
        capture = BrokenCapture(error)
        run = each.run = JoinedRun(world, streams, None, None, capture, leaves=True)
        each.one = One(streams, capture)
        run.on_trouble = lambda error: None
        run.begin(Spec)
        run.pid = os.getpid()
        each._began = True
        run.wait_for_end()
        each.wait_for(Waiting(time.monotonic()))  # it has a moment to come to its end
        assert daemon.finished == []
        each.wait_for(Waiting(time.monotonic() + 6))
        assert len(daemon.finished) == 1
        assert str(error.args[-1]) in each.trouble
        assert (9, "tree") in world.signals
        assert capture.closed
        client.close()
        theirs.close()
        world.ours.close()
        world.theirs.close()


def test_a_fault_in_what_a_descriptor_has_done_is_its_commands():
    seen = []
    waiting = Waiting(time.monotonic())

    def act():
        raise RuntimeError("a fault of ours")

    Guarded(waiting, seen.append).on(0, select.POLLIN, act)
    ((_, guarded),) = waiting.acts[0]
    guarded()
    assert [str(error) for error in seen] == ["a fault of ours"]
