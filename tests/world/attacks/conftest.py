"""Worlds under attack: the installed command, in a home and a directory of their own, as
root with each backend and as a user without rights."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from substrate.world import conflict
from substrate.world.removal import remove_tree
from tests.cli.place import PROGRAM, Place

#: no account: a number is all that the kernel wants
UID = 54321

ROOT_BACKENDS = ("ns-root-idmap", "ns-root")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="changes users and makes devices: root")


class Attacked(Place):
    """A `Place` whose commands can run as a user without rights."""

    def __init__(self, base: Path, uid: int) -> None:
        base.chmod(0o755)
        super().__init__(base)
        self.uid = uid
        for path in (base, base / "work", base / "user"):
            os.chown(path, uid, uid)

    def run(self, *words, status=0, stdin=b"", cwd=None, **environ):
        who = {} if self.uid == os.geteuid() else {"user": self.uid, "group": self.uid}
        if who:
            who["extra_groups"] = ()
        done = subprocess.run(
            [PROGRAM, *words],
            cwd=cwd or self.work,
            env={**self.environ, **environ},
            input=stdin,
            capture_output=True,
            timeout=120,
            **who,
        )
        if status is not None:
            assert done.returncode == status, (words, done.stdout, done.stderr)
        return done

    def python(self, code, *words, **kwargs):
        """What a Python program prints in the world."""
        return self.out("run", *words, "--", "/usr/bin/python3", "-c", code, **kwargs)


def _place(uid):
    base = Path(tempfile.mkdtemp(prefix="substrate-attack-", dir="/var/tmp"))
    try:
        yield Attacked(base, uid)
    finally:
        fd = os.open("/var/tmp", os.O_PATH | os.O_DIRECTORY)
        remove_tree(fd, os.fsencode(base.name))
        os.close(fd)


@pytest.fixture
def place():
    """As whoever runs the tests."""
    yield from _place(os.geteuid())


@pytest.fixture
def rootless():
    """As a user without rights."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    yield from _place(UID)


def start_of_world(state, newest):
    """A time that is two ticks of the clock that stamps files after `newest` was changed, and
    two before all that comes."""
    probe = state + b"/probe"
    ticks = [os.stat(newest).st_ctime_ns]
    while ticks[-1] < ticks[0] + 4 * conflict.tick_ns():
        with open(probe, "w"):
            pass
        ticks.append(os.stat(probe).st_ctime_ns)
        os.unlink(probe)
    return ticks[0] + 2 * conflict.tick_ns()
