"""The loop of a supervisor, with real descriptors."""

import os
import time

from substrate.session.loop import Loop


class Reader:
    def __init__(self, fd, loop=None):
        self.fd, self.got, self.loop = fd, b"", loop

    def wait_for(self, waiting):
        waiting.read(self.fd, self.read)

    def read(self):
        self.got += os.read(self.fd, 100)
        if self.loop is not None:
            self.loop.remove(self)


class Clock:
    def __init__(self, at):
        self.at, self.told = at, []

    def wait_for(self, waiting):
        if waiting.now >= self.at:
            self.told.append(waiting.now)
            waiting.changed = True
        else:
            waiting.until(self.at)


class Over:
    def wait_for(self, waiting):
        waiting.changed = True


def test_who_waits_for_a_file_is_called_when_it_is_there():
    reading, writing = os.pipe()
    one, other = Reader(reading), Clock(time.monotonic() + 60)
    loop = Loop(one, other)
    os.write(writing, b"now")
    loop.turn()
    assert (one.got, other.told) == (b"now", [])
    os.close(reading)
    os.close(writing)


def test_a_moment_is_waited_for_and_not_missed():
    clock = Clock(time.monotonic() + 0.05)
    loop = Loop(clock)
    loop.turn()
    loop.turn()
    assert len(clock.told) == 1


def test_several_may_wait_for_one_file_for_different_things():
    reading, writing = os.pipe()
    told = []

    class Both:
        def wait_for(self, waiting):
            waiting.on(writing, 0, lambda: told.append("broken"))
            waiting.on(writing, 4, lambda: told.append("room"))

    loop = Loop(Both())
    loop.turn()
    assert told == ["room"]
    os.close(reading)
    loop.turn()
    assert told == ["room", "broken", "room"]
    os.close(writing)


def test_an_end_is_looked_at_before_anybody_waits():
    reading, writing = os.pipe()
    Loop(Reader(reading), Over()).turn()  # returns
    os.close(reading)
    os.close(writing)


def test_a_part_may_go_in_the_middle():
    reading, writing = os.pipe()
    loop = Loop()
    part = Reader(reading, loop)
    loop.add(part)
    os.write(writing, b"1")
    loop.turn()
    loop.remove(part)
    assert part.got == b"1"
    os.close(reading)
    os.close(writing)
