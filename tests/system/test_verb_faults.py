"""Every verb that changes a world's stack, with faults at its calls (world.md §4, §8).

`apply` is struck at each call by each kind of fault. The others take too long for that in every
run: a kind steps over calls and begins at another one than the next kind; where old turns into
new none is left out. With --every-call (scripts/soak-faults) none is left out anywhere.
"""

import collections
import dataclasses
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.system.fault_battery import Battery, Scene, Server

#: calls of a journal and of a plan come in short rounds, of which this is no multiple
STEP = 7
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
    Scene(name="apply", host=HOST, before=COMMANDS, verb=("apply",), keeps=True),
    Scene(name="apply-span", host=HOST, before=COMMANDS, verb=("apply", "2"), keeps=True),
    Scene(name="apply-path", host=HOST, before=COMMANDS, verb=("apply", "n4", "a"), keeps=True),
)
#: The run of a command is a change too: it begins a world, it merges layers. The command itself may
#: be killed half done: what these do is one call.
RUNS = (
    Scene(
        name="fresh",
        host=HOST,
        before=COMMANDS[:1],
        verb=("--fresh", "-c", "mkdir new"),
        runs=True,
    ),
    Scene(
        name="squash",
        host=HOST,
        runs=True,
        before=tuple(("-c", f"echo {n} > n{n % 7}; rm -f n{(n + 3) % 7}") for n in range(31)),
        verb=("-c", "mkdir last"),
    ),
)
#: an apply is taken back: of a world that goes on, of one that is over. (A copy of what it displaced
#: would have other inodes: the apply is a part of each turn.)
UNDOES = (
    Scene(
        name="undo-apply-span",
        host=HOST,
        before=COMMANDS,
        first=("apply", "2"),
        verb=("undo", "--apply", "--yes"),
        keeps=True,
    ),
    Scene(
        name="undo-apply",
        host=HOST,
        before=COMMANDS,
        first=("apply",),
        verb=("undo", "--apply", "--yes"),
        keeps=True,
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
def place(idmap):
    """Root's default backend on a tmpfs: a disk would only make it slow."""
    base = Path(tempfile.mkdtemp(prefix="substrate-faults-", dir="/mnt"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "none", base], check=True)
    caller = dataclasses.replace(idmap, base=base)
    for path in (base / "home", caller.work):
        caller.make_directory(path)
    server = Server(caller)
    yield caller, server
    server.close()
    subprocess.run(["umount", base], check=True)
    base.rmdir()


@pytest.mark.parametrize(
    "scene", (*SCENES, *UNDOES, *RECOVERIES, *RUNS), ids=lambda scene: scene.name
)
def test_a_fault_leaves_all_old_or_all_new(place, scene, every_call):
    battery = Battery(*place, scene)
    step = 1 if every_call or scene.name == "apply" else STEP
    outcomes = {}
    for number, fault in enumerate(scene.faults):
        outcomes[fault] = battery.strike_many(fault, first=number % step, step=step)
    assert "kill" in outcomes
    if scene.killed is None:
        assert outcomes["kill"] == {"old", "new"}


#: of strace, and what the server counts them as
CALLS = {
    **dict.fromkeys(("openat", "creat"), "open"),
    **dict.fromkeys(("mkdir", "mkdirat"), "mkdir"),
    **dict.fromkeys(("mknod", "mknodat"), "mknod"),
    **dict.fromkeys(("link", "linkat"), "link"),
    **dict.fromkeys(("symlink", "symlinkat"), "symlink"),
    **dict.fromkeys(("rename", "renameat", "renameat2"), "rename"),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), "unlink"),
    **dict.fromkeys(("truncate", "ftruncate"), "truncate"),
    **dict.fromkeys(("chmod", "fchmod", "fchmodat"), "chmod"),
    **dict.fromkeys(("chown", "fchown", "lchown", "fchownat"), "chown"),
    **dict.fromkeys(("setxattr", "lsetxattr", "fsetxattr"), "setxattr"),
    **dict.fromkeys(("removexattr", "lremovexattr", "fremovexattr"), "removexattr"),
    **dict.fromkeys(("write", "pwrite64", "writev", "sendfile", "copy_file_range"), "write"),
    **dict.fromkeys(("fsync", "fdatasync", "syncfs"), "sync"),
    "utimensat": "utime",
}
ALIASES = {
    **dict.fromkeys(("fsync", "fdatasync", "syncfs"), "sync"),
    **dict.fromkeys(("renameat2", "replace"), "rename"),
    **dict.fromkeys(("rmdir", "remove"), "unlink"),
    **dict.fromkeys(("fchown", "lchown", "chown_fd"), "chown"),
    **dict.fromkeys(("pwrite", "copy_file_range"), "write"),
    "fchmod": "chmod",
    "ftruncate": "truncate",
}


@pytest.mark.parametrize("name", ["apply", "fork-switch", "gc"])
def test_every_call_that_changes_something_is_struck(place, name):
    """What the server counts is what strace sees of the command."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    caller, server = place
    battery = Battery(caller, server, next(scene for scene in SCENES if scene.name == name))
    battery.restore()
    report = caller.base / "strace"
    done = caller.call(
        *("strace", "-qq", "-y", "-o", report, "-e", "trace=" + ",".join(f"?{n}" for n in CALLS)),
        *(caller.command, *battery.scene.verb),
    )
    assert done.returncode == 0, done.stderr
    seen = collections.Counter()
    for line in report.read_text().splitlines():
        call = line.partition("(")[0]
        makes = "O_CREAT" in line or "O_TRUNC" in line
        ours = str(caller.base) in line or "/proc/self/fd/" in line
        if ours and "__pycache__" not in line and (call != "openat" or makes):
            seen[CALLS[call]] += 1
    counted = collections.Counter(ALIASES.get(call, call) for call in battery.calls)
    assert seen == counted
