"""System calls of an apply fail once: the host is all new or all old, never between.

One call in STEP is tried; with --every-call (scripts/soak-faults) each. Each call of the verb
that changes something is struck in tests/system/test_verb_faults.py.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_apply import pending, prepare, run, some_changes, some_host
from trees import snapshot

from substrate.errors import StateError
from substrate.world import (
    apply,
    aside,
    attributes,
    beneath,
    entry,
    identity,
    intent,
    job,
    journal,
    leftover,
    linux,
    names,
    parents,
    recover,
    refusal,
    removal,
    restored,
    reverse,
    reverse_make,
    reverse_move,
    reverse_record,
    reverse_undo,
    reverse_upper,
    source,
    stage,
    unlocked,
    upper,
    view,
    widen,
    window,
)
from substrate.world.diff import diff_pending
from substrate.world.plan import plan

MODULES = (
    apply,
    aside,
    attributes,
    beneath,
    entry,
    identity,
    intent,
    job,
    journal,
    names,
    leftover,
    parents,
    removal,
    restored,
    reverse,
    reverse_make,
    reverse_move,
    reverse_record,
    reverse_undo,
    reverse_upper,
    source,
    stage,
    unlocked,
    upper,
    view,
    widen,
    window,
)
#: calls come in rounds of a few for each file, of which this is no multiple
STEP = 11
CALLS = frozenset(
    [
        "open",
        "write",
        "pwrite",
        "pread",
        "fchmod",
        "chmod",
        "fchown",
        "chown",
        "chown_fd",
        "utime",
        "mkdir",
        "mknod",
        "symlink",
        "link",
        "stat",
        "fstat",
        "setxattr",
        "getxattr",
        "removexattr",
        "listxattr",
        "fsync",
        "unlink",
        "rmdir",
        "rename",
        "replace",
        "ftruncate",
        "listdir",
        "lseek",
        "openat2",
        "renameat2",
        "sync_around",
    ]
)


class Faults:
    """Lets the call number `at` (from 1) fail with `number`, once; or runs `act` before it.

    `flags`: whether renameat2(2) knows any, as it does not on NFS."""

    def __init__(self, flags: bool = True) -> None:
        self.flags = flags
        self.at = 0
        self.number = errno.ENOSPC
        self.count = 0
        self.hit = ""

    def arm(self, at: int) -> None:
        self.at, self.count, self.hit = at, 0, ""

    def around(self, name: str, call: Any) -> Any:
        def faulty(*arguments: Any, **options: Any) -> Any:
            if name == "renameat2" and not self.flags:
                raise OSError(errno.EINVAL, "no flags")
            if self.at:
                self.count += 1
                if self.count == self.at:
                    self.hit = name
                    self.fail(name)
            return call(*arguments, **options)

        return faulty

    def fail(self, name: str) -> None:
        raise OSError(self.number, f"injected into {name}")


class Faulty:
    """A module whose system calls go through `faults`."""

    def __init__(self, module: Any, faults: Faults) -> None:
        self._module, self._faults = module, faults

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        return self._faults.around(name, found) if name in CALLS else found


def inject(faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in MODULES:
        if hasattr(module, "os"):
            monkeypatch.setattr(module, "os", Faulty(os, faults))
        if hasattr(module, "linux"):
            monkeypatch.setattr(module, "linux", Faulty(linux, faults))


def names_left(world: Any) -> list[bytes]:
    found = [n for n in snapshot(world.host) if b".substrate-" in n]
    return found + [n for n in os.listdir(os.fsencode(world.state)) if b"journal" in n]


def attempt(world: Any, faults: Faults, at: int) -> str:
    """One apply with a fault; "applied", "refused" or the name of what it raised."""
    planned = plan(diff_pending(world.stack), world.stack)
    faults.arm(at)
    try:
        apply.apply(planned, world.stack, os.fsencode(world.state))
    except (OSError, StateError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        faults.at = 0
    return "applied"


@pytest.mark.parametrize("flags", [True, False])
def test_a_call_fails_once(
    trusted_world: Any, monkeypatch: pytest.MonkeyPatch, flags: bool, every_call: bool
) -> None:
    world = trusted_world
    step = 1 if every_call else STEP
    prepare(world, some_host)
    wanted = run(world, some_changes)
    before = snapshot(world.host, inodes=True)
    faults = Faults(flags)
    inject(faults, monkeypatch)
    at, last = 0, ""
    while True:
        at += step
        outcome = attempt(world, faults, at)
        if outcome == "applied":
            break
        assert faults.hit, f"call {at}: {outcome} without a fault, after {last}"
        last = where = f"call {at} ({faults.hit}): {outcome}"
        recover.recover(os.fsencode(world.state))
        assert snapshot(world.host, inodes=True) == before, where
        assert names_left(world) == [], where
    assert at > 200
    # From here on the apply is committed: a fault in the cleaning up leaves the host new.
    if faults.hit:
        done = recover.recover(os.fsencode(world.state))
        assert done is None or done.outcome is recover.Outcome.FINISHED
    assert snapshot(world.host) == wanted
    assert names_left(world) == []
    assert pending(world) == []


class Crash(BaseException):
    """Stands for kill -9: nothing of ours runs after it."""


@pytest.mark.parametrize("flags", [True, False])
def test_killed_at_a_call_then_recovered(
    trusted_world: Any, monkeypatch: pytest.MonkeyPatch, flags: bool, every_call: bool
) -> None:
    world = trusted_world
    step = 1 if every_call else STEP
    prepare(world, some_host)
    wanted = run(world, some_changes)
    before = snapshot(world.host, inodes=True)
    state = os.fsencode(world.state)

    class Kill(Faults):
        def fail(self, name: str) -> None:
            os._exit(9)

    faults = Kill(flags)
    inject(faults, monkeypatch)
    at = 0
    outcomes = set()
    while True:
        at += step
        pid = os.fork()
        if pid == 0:
            attempt(world, faults, at)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status == 0:
            break
        recovered = recover.recover(state)
        assert recovered is None or recovered.unclear == (), f"killed at call {at}"
        if recovered is not None and recovered.outcome is recover.Outcome.FINISHED:
            assert snapshot(world.host) == wanted, f"killed at call {at}"
            outcomes.add("finished")
            break
        outcomes.add("rolled back")
        assert snapshot(world.host, inodes=True) == before, f"killed at call {at}"
        assert names_left(world) == [], f"killed at call {at}"
    assert outcomes == {"rolled back", "finished"}
    assert names_left(world) == []


def test_recovery_touches_nothing_when_the_host_went_on(
    trusted_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = trusted_world
    prepare(world, some_host)
    run(world, some_changes)
    state = os.fsencode(world.state)

    class KillInWindow(Faults):
        renames = 0

        def around(self, name: str, call: Any) -> Any:
            def counted(*arguments: Any) -> Any:
                self.renames += sys._getframe(2).f_code.co_name == "exchange_all"
                if self.renames == 4:
                    os._exit(9)
                return call(*arguments)

            return counted if name == "renameat2" else call

    inject(KillInWindow(), monkeypatch)
    pid = os.fork()
    if pid == 0:
        attempt(world, Faults(), 0)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    monkeypatch.undo()
    (world.host / "a").write_bytes(b"edited by the host after the crash")
    found = snapshot(world.host, inodes=True)
    recovered = recover.recover(state)
    assert recovered is not None
    assert recovered.outcome is recover.Outcome.UNCLEAR
    assert any(line.endswith("changed since the apply was cut short") for line in recovered.unclear)
    assert snapshot(world.host, inodes=True) == found
    with pytest.raises(StateError, match="unfinished"):
        apply.apply(plan([], world.stack), world.stack, state)
    recover.recover(state, forget=True)
    assert recover.recover(state) is None


def test_a_host_edit_inside_the_window_is_put_back(
    trusted_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process replaces a file between the last look and the exchange."""
    world = trusted_world
    prepare(world, some_host)
    run(world, some_changes)

    class Race(Faults):
        done = False

        def around(self, name: str, call: Any) -> Any:
            def raced(*arguments: Any) -> Any:
                if arguments[3] == b"a" and not self.done:
                    self.done = True
                    (world.host / "a.tmp").write_bytes(b"the host's edit")
                    os.rename(world.host / "a.tmp", world.host / "a")
                return call(*arguments)

            return raced if name == "renameat2" else call

    inject(Race(), monkeypatch)
    planned = plan(diff_pending(world.stack), world.stack)
    before = snapshot(world.host)
    with pytest.raises(refusal.ApplyConflict) as caught:
        apply.apply(planned, world.stack, os.fsencode(world.state))
    assert [os.path.basename(c.path) for c in caught.value.conflicts] == [b"a"]
    after = snapshot(world.host)
    assert after.pop(b"a")[2] == b"the host's edit"
    before.pop(b"a")
    assert after == before
    assert names_left(world) == []
