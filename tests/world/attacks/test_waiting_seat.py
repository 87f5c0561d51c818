"""A seat that waits for a command of a world in which others run: they cannot look into it, and
what they do to it is not done to the commands that come."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from substrate.world.removal import remove_tree
from tests.world.attacks.conftest import UID

PROGRAM = Path(__file__).with_name("waiting_seat.py")


def attack(uid, what):
    base = Path(tempfile.mkdtemp(prefix="substrate-seat-", dir="/var/tmp"))
    try:
        os.chown(base, uid, uid)
        who = {} if uid == os.geteuid() else {"user": uid, "group": uid, "extra_groups": ()}
        done = subprocess.run(
            [sys.executable, "-B", PROGRAM, base, what],
            capture_output=True,
            timeout=120,
            cwd=base,
            env={"PATH": "/usr/bin:/bin", "HOME": str(base)},
            **who,
        )
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)
    finally:
        fd = os.open("/var/tmp", os.O_PATH | os.O_DIRECTORY)
        remove_tree(fd, os.fsencode(base.name))
        os.close(fd)


@pytest.mark.parametrize(
    "uid", sorted({os.geteuid(), UID} if os.geteuid() == 0 else {os.geteuid()})
)
@pytest.mark.parametrize("what", ["look", "userns", "kill"])
def test_a_waiting_seat(uid, what):
    found = attack(uid, what)
    assert found["backend"] == ("ns-user" if uid else "ns-root-idmap")
    seen, opened, control = found["found"]
    assert seen > 10
    assert found["seats"] > 10
    # from the moment of its exec on, in which a program that can be read makes one dumpable
    assert opened == []
    assert {"mem", "environ", "maps", "fd/0", "root", "cwd"} <= set(control)
    assert found["after"] == [0, 0]
