"""The pool of pipes: its bounds, and what happens at those of the system."""

import os
import resource
import signal
import subprocess
import sys

import pytest

from substrate.world.egress.loop import Loop
from substrate.world.egress.pipes import Pipes

#: enlarging is refused to this user: root has a capability against it
AS_NOBODY = """
import os, fcntl
os.setgid(65534); os.setuid(65534)
from substrate.world.egress.loop import Loop
from substrate.world.egress.pipes import Pipes
held = []
soft = int(open("/proc/sys/fs/pipe-user-pages-soft").read())
for _ in range(soft // 256 + 2):
    held.append(os.pipe())
    try:
        fcntl.fcntl(held[-1][1], fcntl.F_SETPIPE_SZ, 1 << 20)
    except PermissionError:
        break
while fcntl.fcntl((last := os.pipe())[1], fcntl.F_GETPIPE_SZ) >= 65536:
    held.append(last)
pipes = Pipes(Loop())
print(pipes.take(), pipes.refused, pipes.lent)
"""


@pytest.fixture
def pipes(no_leak):
    loop = Loop()
    made = Pipes(loop, most=3, keep=1)
    yield made
    made.close()
    loop.close()


def test_no_more_than_the_bound_are_lent(pipes):
    lent = [pipes.take() for _ in range(4)]
    assert lent[3] is None
    assert pipes.refused == 1
    assert lent[0].size == 262144
    assert not os.get_blocking(lent[0].read_fd)
    assert not os.get_inheritable(lent[0].write_fd)
    for pipe in lent[:3]:
        pipes.give(pipe)
    assert len(pipes._unused) == 1


def test_a_pipe_with_bytes_in_it_is_not_used_again(pipes):
    pipe = pipes.take()
    os.write(pipe.write_fd, b"of another stream")
    pipes.discard(pipe)
    again = pipes.take()
    with pytest.raises(BlockingIOError):
        os.read(again.read_fd, 1)
    pipes.give(again)


def test_without_descriptors_there_is_none(pipes):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        assert pipes.take() is None
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert pipes.take() is None, "it asks again too early"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_the_small_pipes_beyond_the_users_share_are_not_used():
    if os.geteuid():
        pytest.skip("needs root, to become another user")
    ran = subprocess.run(
        [sys.executable, "-c", AS_NOBODY],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert ran.stdout == "None 1 0\n", ran.stderr


def test_it_refuses_to_work_where_a_broken_pipe_would_kill(no_leak):
    loop = Loop()
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        with pytest.raises(RuntimeError, match="SIGPIPE"):
            Pipes(loop)
    finally:
        signal.signal(signal.SIGPIPE, before)
        loop.close()
