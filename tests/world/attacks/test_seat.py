"""A command that waits for its exec holds the world's own socket: nothing may look into it."""

import json
import os

import pytest

from substrate.world import capabilities, command, linux
from tests.world.attacks.conftest import root_only

#: looks at every process again and again while others are forked and exec'd
WATCH = """
import os, json, time
mine = {os.getpid()}
seen, opened = set(), []
end = time.monotonic() + 1.0
while time.monotonic() < end:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in mine:
            seen.add(name)
            for part in ("mem", "fd/3", "environ"):
                try:
                    os.close(os.open(f"/proc/{name}/{part}", os.O_RDWR if part == "mem" else 0))
                    opened.append(f"{name}/{part}")
                except OSError:
                    pass
print(json.dumps([sorted(seen), opened]))
"""


@root_only
@pytest.mark.parametrize("backend", ["ns-root-idmap", "ns-root"])
def test_the_holder_stays_closed(place, backend):
    seen, opened = json.loads(place.python(WATCH, "--backend", backend))
    assert "1" in seen
    assert opened == []


def test_the_holder_stays_closed_without_rights(rootless):
    seen, opened = json.loads(rootless.python(WATCH))
    assert "1" in seen
    assert opened == []


def test_nothing_is_dumpable_once_the_rights_are_those_of_the_world(place):
    """While both hold, a process of the world could write to the memory of a waiting command."""
    moments = []

    def child():
        restrict, prctl = capabilities.restrict, linux.prctl
        capabilities.restrict = lambda backend: moments.append("restricted") or restrict(backend)

        def spy(option, *words):
            if option == linux.PR_SET_DUMPABLE and words[0]:
                moments.append("dumpable")
            return prctl(option, *words)

        linux.prctl = spy
        command._give_up_rights(WorldLike, lambda name: None)

    class WorldLike:
        backend = "guard"

    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            child()
            os.write(writing, json.dumps([moments, dumpable()]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        found, still = json.loads(stream.read())
    os.waitpid(pid, 0)
    assert found == ["dumpable", "restricted"]
    assert still == 0


def dumpable():
    return linux.prctl(3)  # PR_GET_DUMPABLE


def test_the_score_is_raised(place):
    code = "print(open('/proc/self/oom_score_adj').read(), end='')"
    with open("/proc/self/oom_score_adj") as file:
        outside = int(file.read())
    assert int(place.python(code)) == min(1000, outside + 100)
