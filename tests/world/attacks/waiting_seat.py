"""Run by test_waiting_seat.py: a world in which a command attacks the seat of the next one.

Prints what the attacker found, and what became of the next commands, as JSON.
"""

import json
import os
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
sys.path[:0] = [ROOT, os.path.join(ROOT, "scripts", "bench")]

from substrate.world.handle import Zygote  # noqa: E402

ZYGOTE = Zygote()

import worlds  # noqa: E402

from substrate.values import replace  # noqa: E402
from substrate.world import wire  # noqa: E402

#: looks at every new process as soon as it is there, again and again; leaves in `found` what it
#: could open of those that came, and of a process of its own
ATTACK = """
import json, os, subprocess, sys, time
PARTS = ("mem", "fd/0", "fd/3", "environ", "maps", "root", "cwd")
def look(pid, opened):
    for part in PARTS:
        try:
            flags = os.O_RDWR if part == "mem" else os.O_RDONLY
            if part in ("root", "cwd"):
                flags |= os.O_DIRECTORY
            fd = os.open(f"/proc/{pid}/{part}", flags)
            # those of a zombie can be opened, and are empty
            if part != "maps" or os.read(fd, 1):
                opened.add(part)
            os.close(fd)
        except OSError:
            pass
mine, opened, seen = os.getpid(), set(), set()
open("ready", "w").close()
until = time.monotonic() + SECONDS
while time.monotonic() < until:
    for pid in [n for n in os.listdir("/proc") if n.isdigit() and int(n) not in (1, mine)]:
        seen.add(pid)
        for _ in range(20):
            look(pid, opened)
other, control = subprocess.Popen(["sleep", "20"], stdin=subprocess.DEVNULL), set()
time.sleep(0.2)
look(other.pid, control)
other.kill()
other.wait()
if KILL:
    os.kill(-1, 9)
json.dump([len(seen), sorted(opened), sorted(control)], open("found.part", "w"))
os.rename("found.part", "found")
"""
SECONDS = 1.5


def begin(world, cwd, text, null):
    argv = ("/usr/bin/python3", "-c", text)
    go = world.run(worlds.command(argv, cwd), (null,))
    hello = go.receive()
    assert hello is not None and hello.kind == wire.HELLO, hello and hello.fields
    go.give()
    return go


def until(world, kind):
    while (message := world.receive()) is not None:
        if message.kind == kind:
            return message
    raise RuntimeError("the world ended")


def main():
    scratch = tempfile.mkdtemp(dir=sys.argv[1])
    made = worlds.WorldBench(scratch, ZYGOTE)
    cwd = os.fsencode(made.work)
    made.cut()
    spec = made.spec()
    if sys.argv[2] == "userns":
        spec = replace(spec, frame=replace(spec.frame, allow_ptrace=True, allow_userns=True))
    world = made.start(spec)
    null = os.open("/dev/null", os.O_RDWR)
    text = ATTACK.replace("KILL", str(sys.argv[2] == "kill")).replace("SECONDS", str(SECONDS))
    go = begin(world, cwd, text, null)
    begun, seats = time.monotonic(), 0
    while time.monotonic() < begun + SECONDS:  # each is dropped by the one that comes next
        if world.ask_for_seat():
            until(world, wire.SEATED)
            seats += 1
        time.sleep(0.01)
    until(world, wire.EXITED)
    until(world, wire.QUIET)  # though a seat is there
    go.close()
    after = [worlds.run(world, ("/bin/sh", "-c", "test -e found"), cwd) for _ in range(2)]
    found = b""
    for mount in made.stack.mounts:
        upper = made.stack.upper(made.stack.layers[-1].number, mount.index)
        path = upper + cwd.removeprefix(mount.target.rstrip(b"/")) + b"/found"
        if cwd.startswith(mount.target.rstrip(b"/") + b"/") and os.path.exists(path):
            found = path
    made.end(world)
    with open(found, "rb") as file:
        found = json.load(file)
    print(json.dumps({"backend": made.backend, "seats": seats, "found": found, "after": after}))
    ZYGOTE.close()


main()
