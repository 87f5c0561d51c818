"""Soft layers of a real world, of root and of a user without rights: two commands at once, beside a
server that has a file mapped."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from substrate.world.removal import remove_tree
from tests.world.attacks.conftest import UID

PROGRAM = Path(__file__).with_name("two_at_once.py")


def run(uid):
    base = Path(tempfile.mkdtemp(prefix="substrate-soft-", dir="/var/tmp"))
    try:
        os.chown(base, uid, uid)
        who = {} if uid == os.geteuid() else {"user": uid, "group": uid, "extra_groups": ()}
        done = subprocess.run(
            [sys.executable, "-B", PROGRAM, base],
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
def test_two_commands_at_once(uid):
    found = run(uid)
    assert found["backend"] == ("ns-user" if uid else "ns-root-idmap")
    kinds, refused = found["left"]
    assert kinds == {"left": "added", "d": "added", "d/x": "added", "kept": "modified"}
    assert set(refused) == {"both"}
    kinds, refused = found["right"]
    assert kinds == {"right": "added", "done": "added"}
    assert "server wrote" in refused["mapped"]
    assert "has it open for writing" in refused["held"]  # by what it left in the background
    assert "left wrote" in refused["both"]
    assert set(found["refused"]) == {"both"}, found["refused"]
    assert found["undone"] == ["d", "d/x", "kept", "left"]
    assert set(found["refused"]) == {"both"}
    assert found["now"] == {
        "left": None,
        "d/x": None,
        "kept": "the host's\n",
        "both": found["now"]["both"],
        "right": "right\n",
    }
    assert sorted(found["again"]) == [
        ["deleted", "d"], ["deleted", "d/x"], ["deleted", "left"], ["modified", "kept"],
    ]  # fmt: skip
    assert found["told"] == [["undo", 0], ["fs_diff", 1], ["layer_cut", 0]]
    assert found["leftovers"] == []
