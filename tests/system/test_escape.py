"""The escape battery (tests/world/escape/battery.py) in whole worlds: nothing gets through.

Around the worlds there is something to reach: a process of the same user, sockets and a FIFO
with somebody behind them, a hidden file, a descriptor of a namespace that is passed along. A
run of the same battery outside proves that these attempts are real ones.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from substrate.world import capabilities, cgroup

BATTERY = Path(__file__).parents[1] / "world" / "escape" / "battery.py"
SECRET = "the secret of this test"


@pytest.fixture
def outside(every_caller):
    """What there is to reach, and a function that runs the battery there or in a world."""
    caller = every_caller
    place = caller.make_directory(caller.base / "outside")
    hidden = caller.make_directory(caller.base / "home" / ".ssh") / "id_test"
    hidden.write_text(f"{SECRET}\n")
    caller.own(hidden)
    shutil.copy(BATTERY, caller.work / "battery.py")
    fifo = place / "fifo"
    os.mkfifo(fifo)
    caller.own(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    namespace = os.open("/proc/self/ns/uts", os.O_RDONLY)
    name = f"substrate-escape-{os.getpid()}-{caller.backend}"
    neighbour = subprocess.Popen(
        [sys.executable if caller.uid == os.geteuid() else "/usr/bin/python3", "-c", "input()"],
        stdin=subprocess.PIPE,
        **caller.as_them(),
    )
    with socket.socket(socket.AF_UNIX) as by_path, socket.socket(socket.AF_UNIX) as abstract:
        by_path.bind(str(place / "socket"))
        caller.own(place / "socket")
        abstract.bind(f"\0{name}")
        by_path.listen()
        abstract.listen()
        parameters = {
            "host_pid": neighbour.pid,
            "host_start": cgroup.start_ticks(neighbour.pid),
            "sockets": [str(place / "socket")],
            "abstract": [name],
            "fifos": [str(fifo)],
            "hidden": [[str(hidden), SECRET]],
            "directory": str(caller.work),
            "namespace_fd": namespace,
        }

        def run(program, **more):
            words = json.dumps({**parameters, **more})
            done = caller.call(
                program,
                "-c",
                'exec /usr/bin/python3 battery.py "$0"',
                words,
                pass_fds=(namespace,),
                timeout=120,
            )
            assert done.returncode == 0, done.stderr.decode()
            return {a["attempt"]: a for a in map(json.loads, done.stdout.splitlines())}

        run.caller, run.hidden = caller, hidden
        yield run
    neighbour.communicate(b"\n")
    os.close(reader)
    os.close(namespace)
    shutil.rmtree(place)


#: attempts that any user's control must get through with, so that the world's answer counts
_REAL_FOR_ALL = (
    "connect to a host socket by path",
    "connect to an abstract host socket",
    "read a hidden file",
    "signal the host process",
    "open a pidfd of the host process",
    "unshare a user namespace",
)


def test_nothing_of_the_battery_gets_out(outside):
    caller = outside.caller
    keeps = 0 if caller.backend == "ns-user" else capabilities.ROOT_KEEPS
    answers = outside(caller.command, capabilities=keeps)
    got_out = {n: a["detail"] for n, a in answers.items() if a["outcome"] != "blocked"}
    assert got_out == {}
    assert outside.hidden.read_text() == f"{SECRET}\n"
    # afterwards, since it really moves the hidden directory away; what `control` adds is a mount
    # namespace, for which one has to be root
    control = outside("bash", **({} if caller.uid else {"control": True}))
    assert {n: control[n]["outcome"] for n in _REAL_FOR_ALL} == dict.fromkeys(
        _REAL_FOR_ALL, "ALLOWED"
    )
    # attempts that this user's kernel refuses anyway prove nothing; the rest must be many
    real = {n for n, a in control.items() if a["outcome"] == "ALLOWED"}
    assert len(real & set(answers)) > (15 if caller.uid else 50)
    caller.verify()
