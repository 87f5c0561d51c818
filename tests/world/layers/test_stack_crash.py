"""A process that dies at any step of what it does to a stack: afterwards the stack is the old one
or the new one, and the record tells of it in the second case, once.

One step in STRIDE is tried, and each where the old becomes the new; with --every-call
(scripts/soak-faults) each.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import sessions
from sessions import Sessions
from stacks import directory

from substrate.session.home import Home
from substrate.telemetry import verifier

STRIDE = 5
#: what changes something on the disk
_STEPS = (
    "fsync", "link", "mkdir", "mknod", "makedirs", "open", "pwrite", "remove", "rename", "replace",
    "rmdir", "setxattr", "symlink", "truncate", "ftruncate", "unlink", "utime", "write",
)  # fmt: skip


def dying(after: int, work: Callable[..., Any]) -> Callable[..., Any]:
    """`work` in a process that ends without a word before step `after` (from 0)."""

    def done(home: Home, *arguments: Any) -> Any:
        left = after

        def counted(step: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any, **named: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(0)
                return step(*given, **named)

            return call

        for name in _STEPS:
            setattr(os, name, counted(getattr(os, name)))
        return work(home, *arguments)

    return done


@pytest.fixture
def world() -> Iterator[tuple[Sessions, str]]:
    """Four commands, of which the third builds on the first, and a snapshot after the second."""
    with directory() as base:
        real = Sessions(base, "trusted")
        real.world.settle()
        session, _ = real.begin()
        for number, operation in enumerate(
            [
                ("write", b"a", b"1"),
                ("write", b"b", b"2"),
                ("append", b"a", b"+"),
                ("mkdir", b"d", 0),
            ]
        ):
            if number == 2:
                assert real.call(sessions.do_snapshot, session, "s", False) is None
            real.command(session, [operation], number)
        yield real, session


def found_afterwards(home: Home, session: str) -> tuple[tuple[int, ...], list[str]]:
    """What whoever comes next finds: the stack, and what the record tells of it."""
    sessions.do_settle(home, session)
    assert sessions.do_gc(home) == []
    verdict = verifier.verify(os.fsdecode(home.path) + f"/sessions/{session}")
    assert verdict.errors == ()
    events = ("undo", "rollback", "snapshot", "squash", "fork")
    told = [line for line in sessions.lines(home, session) if line in events]
    return sessions.numbers(home, session), told


@pytest.mark.parametrize(
    ("work", "arguments", "stack", "event"),
    [
        (sessions.do_undo, ([], False), (1, 2, 3), "undo"),
        (sessions.do_undo, (["1"], True), (2, 4), "undo"),
        (sessions.do_rollback, ("s",), (1, 2), "rollback"),
        (sessions.do_snapshot, ("t", False), (1, 2, 3, 4), "snapshot"),
        (sessions.do_squash, (2,), (1, 2, 3, 4), "squash"),
        (sessions.do_fork, (None,), (1, 2, 3, 4), "fork"),
    ],
    ids=["undo", "with-deps", "rollback", "snapshot", "squash", "fork"],
)
def test_death_at_a_step(
    world: tuple[Sessions, str],
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    stack: tuple[int, ...],
    event: str,
    every_call: bool,
) -> None:
    real, session = world
    home, as_it_was = os.fsdecode(real.home), os.fsdecode(real.home) + ".as-it-was"
    subprocess.run(["cp", "-a", home, as_it_was], check=True)
    old, new = ((1, 2, 3, 4), ["snapshot"]), (stack, ["snapshot", event])
    seen: dict[int, tuple[tuple[int, ...], list[str]]] = {}

    def dies_at(step: int) -> bool:
        died = bool(real.call(dying(step, work), session, *arguments, dies=True))
        if died:
            seen[step] = real.call(found_afterwards, session)
            assert seen[step] in (old, new)
            shutil.rmtree(home)
            subprocess.run(["cp", "-a", as_it_was, home], check=True)
        return died

    stride = 1 if every_call else STRIDE
    step = 0
    while dies_at(step):
        step += stride
    assert real.call(found_afterwards, session) == new
    shutil.rmtree(home)
    subprocess.run(["cp", "-a", as_it_was, home], check=True)
    last = max(step for step, found in seen.items() if found == old)
    for between in range(last + 1, min(last + stride, step)):
        if not dies_at(between):
            break
    assert new in seen.values()
    # there is one step before which nothing was done, and behind which all is
    found = [seen[step] for step in sorted(seen)]
    assert found == sorted(found, key=lambda found: found == new)
