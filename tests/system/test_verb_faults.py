"""Every verb that changes a world's stack, with a fault at each of its calls (world.md §4, §8)."""

import pytest

from tests.system.fault_battery import Battery, Scene, Server

HOST = "mkdir dir; echo host > a; echo host > dir/x; echo host > gone; echo host > other"
COMMANDS = (
    ("-c", "echo one > a; echo one > n1; mkdir made"),
    ("-c", "echo two > n2; rm gone; chmod 700 dir"),
    ("-c", "echo three >> n1; echo three > made/in"),
    ("-c", "echo four > n4; echo four > other"),
)
SCENES = (
    Scene(name="undo", host=HOST, before=COMMANDS, verb=("undo", "--yes")),
    Scene(
        name="undo-deps",
        host=HOST,
        before=COMMANDS,
        verb=("undo", "1", "--with-deps", "--yes"),
    ),
    Scene(name="snapshot", host=HOST, before=COMMANDS[:2], verb=("snapshot", "here")),
    Scene(
        name="rollback",
        host=HOST,
        before=(*COMMANDS[:2], ("snapshot", "s"), ("undo", "--yes"), *COMMANDS[2:]),
        verb=("rollback", "s", "--yes"),
    ),
    Scene(name="fork", host=HOST, before=COMMANDS[:3], verb=("world", "fork", "--at", "2")),
    Scene(
        name="fork-switch",
        host=HOST,
        before=(*COMMANDS[:2], ("snapshot", "s"), ("undo", "--yes"), ("world", "fork", "--switch")),
        verb=("world", "fork", "--at", "s", "--switch", "--world", "w1"),
        halfway=("world", "fork", "--at", "s", "--world", "w1"),
    ),
    Scene(
        name="gc",
        host=HOST,
        before=(*COMMANDS, ("undo", "--yes"), ("undo", "1", "--yes", "--with-deps")),
        verb=("world", "gc", "--all"),
        collects=True,
    ),
    Scene(
        name="gc-fork",
        host=HOST,
        before=(
            *COMMANDS[:2],
            ("world", "fork", "--at", "1"),
            ("apply", "2"),
            ("discard", "--yes"),
            ("--fresh", "-c", "echo again > a; echo again > again"),
            ("apply",),
        ),
        verb=("world", "gc", "--all"),
        collects=True,
    ),
    # on a full disk discard removes layers before it records that: see test_full_disks.py
    Scene(
        name="discard",
        host=HOST,
        before=COMMANDS,
        verb=("discard", "--yes"),
        faults=("kill", "error"),
    ),
    Scene(
        name="discard-forked",
        host=HOST,
        before=(*COMMANDS[:2], ("world", "fork", "--at", "1")),
        verb=("discard", "--yes"),
        faults=("kill", "error"),
    ),
    Scene(name="apply", host=HOST, before=COMMANDS, verb=("apply",)),
    Scene(name="apply-span", host=HOST, before=COMMANDS, verb=("apply", "2")),
    Scene(name="apply-path", host=HOST, before=COMMANDS, verb=("apply", "n4", "a")),
)
#: the run of a command is a change too: it begins a world, it merges layers
RUNS = (
    Scene(
        name="fresh",
        host=HOST,
        before=COMMANDS[:1],
        verb=("--fresh", "-c", "echo new > new"),
        runs=True,
    ),
    Scene(
        name="squash",
        host=HOST,
        runs=True,
        before=tuple(("-c", f"echo {n} > n{n % 7}; rm -f n{(n + 3) % 7}") for n in range(31)),
        verb=("-c", "echo last > last"),
    ),
)
#: whoever puts right what a killed apply left may be killed as well
RECOVERIES = (
    Scene(
        name="recover-back",
        host=HOST,
        before=COMMANDS,
        killed=(("apply",), "renameat2", 5),
        verb=("world", "gc"),
    ),
    Scene(
        name="recover-forward",
        host=HOST,
        before=COMMANDS,
        killed=(("apply",), "unlink", 2),
        verb=("world", "gc"),
    ),
)


@pytest.fixture(scope="module")
def server(idmap):
    found = Server(idmap)
    yield found
    found.close()


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_a_fault_at_each_call_leaves_all_old_or_all_new(idmap, server, scene):
    battery = Battery(idmap, server, scene)
    outcomes = {"kill": set(), "error": set(), "full": set()}
    for fault, seen in outcomes.items():
        for at in range(1, len(battery.calls) + 1):
            seen.add(battery.strike(fault, at))
    assert outcomes["kill"] == {"old", "new"}
