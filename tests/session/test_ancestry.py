"""What a process came of, while those between end."""

import os
import select
import signal
import subprocess
import sys

import pytest

from substrate.session import ancestry
from substrate.session.ancestry import is_below

#: children of children, all of which come to the first one when those between end; nobody waits for them
CHAIN = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(int(sys.argv[1])):
    if os.fork():
        break
    os.write(1, b"%d\\n" % os.getpid())
else:
    os.write(1, b"\\n")
signal.pause()
"""


@pytest.fixture
def chain():
    """Starts one: (pid of the first, pids of the others)."""
    started = []

    def chain(length):
        process = subprocess.Popen(
            [sys.executable, "-c", CHAIN, str(length)], stdout=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        started.append(process)
        pids = list(map(int, iter(lambda: process.stdout.readline().strip(), b"")))
        assert len(pids) == length
        return process.pid, pids

    yield chain
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


#: ends them one after another, spread out
ENDS = """
import os, signal, sys, time
for pid in sys.argv[1:]:
    os.kill(int(pid), signal.SIGKILL)
    time.sleep(0.001)
"""


def test_who_came_of_it_does_so_while_those_between_end(chain):
    for _ in range(8):
        first, (*between, last) = chain(60)
        assert is_below(last, first) and not is_below(first, last)
        with subprocess.Popen([sys.executable, "-c", ENDS, *map(str, between)]) as ends:
            while ends.poll() is None:
                assert is_below(last, first)
        assert ends.returncode == 0
        assert is_below(last, first) and is_below(last, os.getpid())


def test_who_has_gone_came_of_nobody_knows_whom(chain):
    first, (*_, last) = chain(2)
    ended = os.pidfd_open(last)
    os.kill(last, signal.SIGKILL)
    assert select.select([ended], [], [], 10)[0]
    os.close(ended)
    with pytest.raises(ProcessLookupError):
        while is_below(last, first):  # until its parent's system has forgotten it
            pass


def test_who_has_too_many_parents_is_not_let_in(chain):
    first, (*_, last) = chain(60)
    with pytest.MonkeyPatch.context() as fewer:
        fewer.setattr(ancestry, "_MOST_STEPS", 40)
        with pytest.raises(OSError, match="more parents"):
            is_below(last, first)
