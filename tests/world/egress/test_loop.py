"""The loop: who is called, when, and that nothing is given to the wrong one."""

import os

import pytest

from substrate.world.egress import loop as at
from substrate.world.egress.loop import Loop


@pytest.fixture
def loop(no_leak):
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def pipe(no_leak):
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def test_a_ready_descriptor_is_called_with_its_events(loop, pipe):
    seen = []
    loop.register(pipe[0], at.IN, seen.append)
    loop.run_once(0)
    assert seen == []
    os.write(pipe[1], b"x")
    loop.run_once(0)
    assert seen == [at.IN]
    loop.unregister(pipe[0])
    loop.run_once(0)
    assert seen == [at.IN]
    assert len(loop) == 0


def test_an_event_is_not_given_to_a_descriptor_of_the_same_number(loop):
    first, second = os.pipe(), os.pipe()
    seen = []

    def swap(own, other):
        """Closes the other one, which is ready too, and registers its number anew."""

        def called(_):
            seen.append("old")
            loop.unregister(other)
            os.dup2(quiet[0], other)
            loop.register(other, at.IN, lambda _: seen.append("new"))

        return called

    quiet = os.pipe()
    loop.register(first[0], at.IN, swap(first[0], second[0]))
    loop.register(second[0], at.IN, swap(second[0], first[0]))
    os.write(first[1], b"x")
    os.write(second[1], b"x")
    loop.run_once(0)
    assert seen == ["old"]
    for fd in (*first, *second, *quiet):
        os.close(fd)


def test_timers_run_in_order_and_not_before_their_time(loop):
    ran = []
    loop.after(0.03, lambda: ran.append(3))
    loop.after(0.01, lambda: ran.append(1))
    loop.after(0.02, lambda: ran.append(2)).cancel()
    begun = loop.now
    while len(ran) < 2:
        loop.run_once()
    assert ran == [1, 3]
    assert loop.now - begun >= 0.03


def test_cancelled_timers_take_no_memory(loop):
    keep = loop.after(1000, lambda: None)
    for _ in range(5000):
        loop.after(1000, lambda: None).cancel()
    assert len(loop._timers) < 1100
    keep.cancel()
    keep.cancel()
    loop.run_once(0)


def test_what_is_asked_for_soon_runs_in_the_next_round_and_waits_for_nothing(loop, pipe):
    ran = []

    def again():
        ran.append(1)
        loop.soon(again)

    loop.soon(again)
    loop.run_once(100)
    assert ran == [1]
    loop.run_once(100)
    assert ran == [1, 1]


def test_a_timer_made_by_a_timer_waits_for_the_next_round(loop):
    ran = []

    def again():
        ran.append(1)
        loop.after(0, again)

    loop.after(0, again)
    loop.run_once(0)
    assert ran == [1]


def test_an_exception_loses_nothing_of_the_round(loop):
    pipes = [os.pipe() for _ in range(5)]
    seen = []

    def called(number):
        def call(_):
            seen.append(number)
            if len(seen) == 2:
                raise LookupError

        return call

    for number, ends in enumerate(pipes):
        loop.register(ends[0], at.IN | at.EDGE, called(number))
        os.write(ends[1], b"x")
    with pytest.raises(LookupError):
        loop.run_once(0)
    loop.run_once(0)
    assert sorted(seen) == [0, 1, 2, 3, 4]
    for ends in pipes:
        for fd in ends:
            os.close(fd)
