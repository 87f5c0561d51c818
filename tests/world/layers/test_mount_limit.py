"""How many layers one mount takes: what the kernel's limit is here, and how it says so.

Worlds stay far below (layers.MAX_LOWERS, squash.py); these tests would show a kernel on which
that no longer holds."""

import errno
import os
import subprocess
import sys

import pytest

from substrate.world.layers import MAX_LOWERS

#: OVL_MAX_STACK in fs/overlayfs/params.h: directories below an upper, the host's among them
KERNEL_LIMIT = 500

_PROGRAM = """
import os, sys
from substrate.world import linux, tree
linux.unshare(linux.CLONE_NEWNS)
linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
base, way, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
linux.mount("layers", base, "tmpfs")
os.chdir(base)
for name in ("upper", "work", *(f"l{n}" for n in range(count))):
    os.mkdir(name)
for n in range(count):
    open(f"l{n}/f{n}", "w").close()
fds = [os.open(f"l{n}", os.O_PATH) for n in range(count)]
paths = [f"/proc/self/fd/{fd}" for fd in fds]
tail = [("upperdir", base + "/upper"), ("workdir", base + "/work")]
try:
    if way == "separate":
        options = [("lowerdir+", path) for path in paths] + tail
        fd = linux.new_mount("overlay", options)
    else:
        fd = tree.mount_by_one_option(paths, tail)
        assert os.getcwd() == base
except OSError as error:
    print(error.errno, error.strerror)
else:
    print(0, len(os.listdir(f"/proc/self/fd/{fd}")))
"""


@pytest.fixture
def mount(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting an overlay with this many lowers needs root")

    def run(way, count):
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, tmp_path, way, str(count)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        number, _, text = done.stdout.strip().partition(" ")
        return int(number), text

    return run


def test_the_kernel_takes_this_many_and_shows_all_of_them(mount):
    assert mount("separate", KERNEL_LIMIT) == (0, str(KERNEL_LIMIT))


def test_one_more_is_refused_in_words(mount):
    number, text = mount("separate", KERNEL_LIMIT + 1)
    assert number == errno.EINVAL
    assert f"too many lower directories, limit is {KERNEL_LIMIT}" in text


def test_worlds_stay_below_it():
    assert MAX_LOWERS + 1 < KERNEL_LIMIT


@pytest.mark.parametrize("count", [1, MAX_LOWERS + 2, 60])
def test_kernels_that_want_one_option_take_what_a_world_has(mount, count):
    """Before Linux 6.7, where an option has at most 255 bytes."""
    assert mount("joined", count) == (0, str(count))
