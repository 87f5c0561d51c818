"""The power goes while an apply or an undo runs: after the next mount and a recovery all is new,
with a whole reverse layer, or old with none.

A filesystem in a file is shut down without a last write of its log (EXT4_IOC_SHUTDOWN with
NOLOGFLUSH, fs/ext4/ioctl.c): what was not synced by then is lost, as xfstests do it."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import in_child, make_world
from reversing import recovered
from test_reverse_faults import ACTS, Scene

from substrate.world import linux

_SHUTDOWN, _NOLOGFLUSH = 0x8004587D, 2
CUTS = 12


def _private_mounts() -> None:
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)


class Disk:
    """An ext4 filesystem in a file, mounted in the caller's own mount namespace."""

    def __init__(self, base: Path) -> None:
        self.image, self.place = base / "image", base / "disk"
        self.place.mkdir()
        with self.image.open("wb") as stream:
            stream.truncate(96 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", self.image], check=True)
        self.mount()

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", self.image, self.place], check=True)

    def cut(self) -> None:
        fd = os.open(self.place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NOLOGFLUSH))
        finally:
            os.close(fd)

    def mount_again(self) -> None:
        subprocess.run(["umount", self.place], check=True)
        self.mount()


def _cut_during(disk: Disk, work: Callable[[], object], moment_s: float) -> bool:
    """Whether the work still ran at the cut."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(moment_s)  # the moment is what is tried, not an order of events
    running = os.waitpid(pid, os.WNOHANG) == (0, 0)
    disk.cut()
    if running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    disk.mount_again()
    return running


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a filesystem: root")
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("act", ACTS)
def test_the_power_goes(tmp_path: Path, act: str, shared: bool) -> None:
    """`shared`: others may write to the host's directory, so root has one of its own in it."""

    def tried() -> set[str]:
        _private_mounts()
        disk = Disk(tmp_path)
        world: Any = make_world(disk.place / "w", "trusted")
        if shared:
            world.host.chmod(0o777)
        scene = Scene(world, moved=True)
        scene.start_of(act)
        start = time.monotonic()
        ACTS[act](world, scene.number)
        duration_s = time.monotonic() - start
        scene.settled("not cut")
        rng = random.Random(4711)
        seen = set()
        cuts = 0
        for _ in range(10 * CUTS):
            if cuts >= CUTS and "rolled_back" in seen:
                break
            scene.start_of(act)
            os.sync()
            moment_s = duration_s * (cuts % CUTS + rng.random()) / CUTS
            if _cut_during(disk, lambda: ACTS[act](world, scene.number), moment_s):
                cuts += 1
                duration_s *= 1 + (cuts % CUTS == 0)
            else:  # a slow first run would set every other cut behind the end
                duration_s = min(duration_s, moment_s)
            found = recovered(world)
            where = f"cut after {moment_s * 1000:.0f} of {duration_s * 1000:.0f} ms: {found}"
            assert found is None or (found.unclear, found.left, found.lost) == ((), (), ()), where
            new = scene.settled(where)
            seen.add(str(found and found.outcome.value))
            assert found is None or new is (
                (found.outcome.value == "finished") is (act == "apply")
            ), where
        return seen

    assert "rolled_back" in in_child(tried)
