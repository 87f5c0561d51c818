"""The process that is to serve a network is loaded while its world is made."""

import os
import time

import pytest

from substrate.world.handle import Zygote

DEADLINE_S = 20.0


def _children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def _until(condition):
    end = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come to that"
        os.sched_yield()
    return found


@pytest.fixture
def zygote():
    made = Zygote()
    yield made
    made.close()


def test_one_waits_and_ends_with_the_zygote(zygote):
    zygote.load_network()
    (waiting,) = _until(lambda: _children(zygote.pid))
    zygote.dismiss()
    _until(lambda: not os.path.exists(f"/proc/{waiting}"))


def test_another_takes_its_place(zygote):
    zygote.load_network()
    first = _until(lambda: _children(zygote.pid))
    zygote.load_network()
    second = _until(lambda: [pid for pid in _children(zygote.pid) if pid not in first])
    _until(lambda: _children(zygote.pid) == second)


@pytest.mark.skipif(os.geteuid() != 0, reason="the files of a process that cannot be dumped: root")
def test_it_holds_nothing_of_the_zygotes(zygote):
    zygote.load_network()
    (waiting,) = _until(lambda: _children(zygote.pid))
    _until(lambda: sorted(os.listdir(f"/proc/{waiting}/fd")) == ["0", "1", "2", "3"])
