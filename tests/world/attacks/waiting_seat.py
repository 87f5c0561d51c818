"""Run by test_waiting_seat.py: a world in which a command attacks the seat of the next one.

Prints what the attacker found, and what became of the next commands, as JSON.
"""

import json
import os
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
sys.path[:0] = [ROOT, os.path.join(ROOT, "scripts", "bench")]

from substrate.world.handle import Zygote  # noqa: E402

ZYGOTE = Zygote()

import worlds  # noqa: E402

from substrate.values import replace  # noqa: E402
from substrate.world import wire  # noqa: E402

#: waits for a second process beside it, attacks it, and leaves what it found in `found`
ATTACK = """
import json, os, subprocess, time
mine, opened, until = os.getpid(), [], time.monotonic() + 20
others = []
while not others and time.monotonic() < until:
    others = [n for n in os.listdir("/proc") if n.isdigit() and int(n) not in (1, mine)]
    if others and open(f"/proc/{others[0]}/comm").read().startswith("python"):
        others = []  # it is on its way
(seat,) = others
def look(pid):
    opened = []
    for part in ("mem", "environ", "fd/3", "fd/0", "maps", "root", "cwd"):
        for flags in (os.O_RDWR, os.O_RDONLY):
            directory = os.O_DIRECTORY if part in ("root", "cwd") else 0
            try:
                os.close(os.open(f"/proc/{pid}/{part}", flags | directory))
                opened.append(part)
            except OSError:
                pass
    try:
        opened += ["link " + os.readlink(f"/proc/{pid}/{part}") for part in ("exe", "root", "cwd")]
    except OSError:
        pass
    return opened
opened = look(seat)
other = subprocess.Popen(["sleep", "20"], stdin=subprocess.DEVNULL)
control = look(other.pid)
other.kill()
other.wait()
if KILL:
    os.kill(-1, 9)
json.dump([seat, opened, control], open("found.part", "w"))
os.rename("found.part", "found")
"""


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
    go = begin(world, cwd, ATTACK.replace("KILL", str(sys.argv[2] == "kill")), null)
    world.ask_for_seat()
    until(world, wire.SEATED)
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
        print(json.dumps({"backend": made.backend, "found": json.load(file), "after": after}))
    ZYGOTE.close()


main()
