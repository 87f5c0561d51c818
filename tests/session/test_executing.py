"""The run of a joined command: what goes wrong with it is its own."""

import time

from substrate.session.executing import JoinedRun
from substrate.session.inside import PassedStreams
from substrate.session.loop import Waiting
from substrate.world import wire
from substrate.world.handle import Go


class StillWorld:
    """A world in which nothing begins: what was begun was stopped."""

    def __init__(self):
        self.signals = []
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
