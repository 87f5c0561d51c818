"""Applies and undoes in the tests of reverse layers, as the invoking user."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from trees import Tree, snapshot

from substrate.world import apply as applying
from substrate.world.diff import diff_pending
from substrate.world.plan import plan
from substrate.world.recover import recover
from substrate.world.reverse import list_reverse
from substrate.world.reverse_check import UndoRefused, review_undo
from substrate.world.reverse_undo import undo_apply


def state_of(world: Any) -> bytes:
    return os.fsencode(world.state)


def apply(world: Any, **options: Any) -> Any:
    """`select`: names below the host that are applied."""
    names = options.pop("select", None)
    wanted = None
    if names is not None:
        paths = {os.fsencode(world.host) + b"/" + n for n in names}
        wanted = paths.__contains__

    def work() -> Any:
        planned = plan(diff_pending(world.stack), world.stack, select=wanted)
        return applying.apply(planned, world.stack, state_of(world), allow_special=True, **options)

    return world.outside(work)


def undo(world: Any, number: int = 1) -> tuple[tuple[bytes, ...], ...]:
    """(names left, paths that were what they were already, owners that were kept)."""

    def work() -> Any:
        done = undo_apply(state_of(world), number)
        start = len(os.fsencode(world.host)) + 1
        return done.left, tuple(p[start:] for p in done.already), done.kept_owner

    found: tuple[tuple[bytes, ...], ...] = world.outside(work)
    return found


def refused(world: Any, number: int = 1) -> dict[bytes, str]:
    """Why an undo does not happen: reasons by path; nothing has changed."""

    def work() -> Any:
        before = snapshot(world.host, inodes=True)
        try:
            undo_apply(state_of(world), number)
        except UndoRefused as error:
            assert snapshot(world.host, inodes=True) == before
            start = len(os.fsencode(world.host)) + 1
            return {c.path[start:]: c.reason.value for c in error.conflicts}
        return {}

    found: dict[bytes, str] = world.outside(work)
    return found


def reverse_diff(world: Any, number: int = 1) -> dict[bytes, str]:
    """What the reverse layer, read as an ordinary one, would change: kinds by path."""

    def work() -> Any:
        stack = review_undo(state_of(world), number).stack
        start = len(os.fsencode(world.host)) + 1
        return {c.path[start:]: c.kind for c in diff_pending(stack)}

    found: dict[bytes, str] = world.outside(work)
    return found


def numbers(world: Any) -> list[int]:
    found: list[int] = world.outside(lambda: [r.number for r in list_reverse(state_of(world))])
    return found


def host(world: Any, **options: Any) -> Tree:
    tree: Tree = world.outside(lambda: snapshot(world.host, **options))
    return tree


def whole(world: Any) -> Tree:
    """Of everything on the host, as root sees it: inodes, owners, closed files."""
    tree = snapshot(world.host, inodes=True)
    for name, entry in tree.items():
        status = os.lstat(os.path.join(os.fsencode(world.host), name))
        tree[name] = (*entry, status.st_uid, status.st_gid, status.st_blocks)
    return tree


def left_behind(world: Any) -> list[bytes]:
    """Names of applies and undoes that should be gone."""
    found = [n for n in snapshot(world.host) if b".substrate-" in n]
    state = state_of(world)
    found += [n for n in os.listdir(state) if b"journal" in n or b"unlocked" in n]
    if os.path.isdir(state + b"/reverse"):
        kept = os.listdir(state + b"/reverse")
        found += [b"reverse/" + n for n in kept if not n.isdigit() and n != b"last"]
    return found


def recovered(world: Any) -> Any:
    return world.outside(lambda: recover(state_of(world)))


def upper(world: Any, name: str, number: int = 1) -> Path:
    return Path(world.state) / f"reverse/{number}/1/0/upper" / name


Step = Callable[[bytes], object]
