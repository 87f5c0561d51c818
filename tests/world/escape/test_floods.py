"""Commands that take all there is: held by small limits in every backend, while the host goes on.

Each flood is bounded in itself and does get through outside, which is its control.
"""

import errno
import os
import time

import pytest

from tests.system import traces_left
from tests.world.escape.scene import BACKENDS, PROGRAM, made

#: makes 200 processes that each wait a second
FORKS = """
import os, sys, time
made = 0
try:
    while made < 200:
        if os.fork() == 0:
            time.sleep(1)
            os._exit(0)
        made += 1
    print("all", 0)
except OSError as error:
    print(made, error.errno)
"""
MEMORY = "import sys; block = bytearray(400 << 20); print('all', len(block) >> 20)"
DESCRIPTORS = """
import os
held = []
try:
    while len(held) < 500:
        held.append(os.dup(0))
    print("all", 0)
except OSError as error:
    print(len(held), error.errno)
"""
DISK = """
import os, time
for number in range(60):
    with open(f"flood-{number}", "wb") as file:
        file.write(bytes(1 << 20))
    time.sleep(0.02)
print("all", 0)
"""


def flooded(scene, code, *limits, status=0):
    """(what it printed, the run) of a flood under limits."""
    options = [word for limit in limits for word in ("--limit", limit)]
    program = ("/usr/bin/python3", "-c", code)
    done = scene.inside(*program, options=("--fresh", "--background", "0", *options), status=status)
    return done.stdout.split(), done


def control(scene, code):
    done = scene.host("/usr/bin/python3", "-c", code)
    assert done.stdout.split()[:1] == [b"all"], done


def test_a_fork_bomb_is_bounded(own_scene):
    (made, number), _ = flooded(own_scene, FORKS, "pids=40")
    assert int(made) < 40
    assert int(number) == errno.EAGAIN
    mark = f"bomb-{os.getpid()}-{own_scene.backend}"
    bomb = f"b() {{ b | b & }}; b 2>/dev/null; while :; do :; done # {mark}"
    began = time.monotonic()
    options = ("--fresh", "--limit", "pids=40", "--timeout", "1", "--background", "0")
    done = own_scene.inside("bash", "-c", bomb, options=options, status=None)
    assert done.returncode == 124
    assert time.monotonic() - began < 20
    assert not traces_left.gone(lambda: traces_left.processes(mark))
    control(own_scene, FORKS)


def test_a_memory_hog_is_bounded(own_scene):
    words, done = flooded(own_scene, MEMORY, "memory=100m", status=None)
    assert words == []
    # ended by the kernel, or refused by an rlimit where there is no control group
    assert done.returncode in (1, 137)
    control(own_scene, MEMORY)


def test_a_flood_of_descriptors_is_bounded(own_scene):
    (held, number), _ = flooded(own_scene, DESCRIPTORS, "open_files=64")
    assert int(held) < 64
    assert int(number) == errno.EMFILE
    control(own_scene, DESCRIPTORS)


def test_a_disk_flood_is_bounded(own_scene):
    words, done = flooded(own_scene, DISK, "disk=8m", status=124)
    assert words == []
    assert b"disk limit" in done.stderr
    used = own_scene.host("du", "-sm", own_scene.home).stdout.split()[0]
    assert int(used) < 60
    assert own_scene.host(PROGRAM, "discard", "--yes").returncode == 0
    control(own_scene, DISK)


@pytest.mark.parametrize("size", ["file_size=1m"])
def test_one_large_file_is_bounded(own_scene, size):
    code = "open('big', 'wb').write(bytes(4 << 20)); print('all', 0)"
    words, _ = flooded(own_scene, code, size, status=None)
    assert words == []
    control(own_scene, code)


def test_a_diff_of_100000_files():
    """Made, listed in the record, and thrown away again, in a time that does not explode. (Links of
    a hundred files: every name is an entry, and the host's disk has less to do.)"""
    code = (
        "import os\n"
        "for d in range(100):\n"
        "    os.mkdir(f'd{d}')\n"
        "    open(f'd{d}/0', 'w').close()\n"
        "    for n in range(1, 1000):\n"
        "        os.link(f'd{d}/0', f'd{d}/{n}')\n"
    )
    with made(BACKENDS[0] if os.geteuid() == 0 else BACKENDS[-1]) as scene:
        began = time.monotonic()
        scene.inside("/usr/bin/python3", "-c", code, timeout=300)
        done = scene.host(PROGRAM, "diff", "--name-only", timeout=120)
        assert done.stdout.count(b"\n") == 100_100
        assert scene.host(PROGRAM, "discard", "--yes", timeout=120).returncode == 0
        assert time.monotonic() - began < 240
