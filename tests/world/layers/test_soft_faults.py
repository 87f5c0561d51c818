"""A soft layer is whole or it is not there: a death, and a full disk, at each step of a cut and of an
undo. One step in STRIDE is tried; with --every-call (scripts/soak-faults) each."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import World, in_child
from sharing import Shared, Span, digest_fd, end_all, keyed, now_ns
from test_soft_cut import write_host
from test_soft_undo import content

from substrate.values import replace
from substrate.world import layers, soft
from substrate.world.soft_changes import diff_soft
from substrate.world.soft_cut import cut_soft_layer
from substrate.world.soft_undo import choose, undo_in_layer, undo_in_world

STRIDE = 4
_STEPS = (
    "chmod", "copy_file_range", "fsync", "ftruncate", "link", "makedirs", "mkdir", "mknod", "open",
    "pwrite", "removexattr", "rename", "rmdir", "setxattr", "symlink", "unlink", "utime", "write",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    yield
    end_all()


def counted(at: int, happens: Callable[[str], None]) -> dict[str, int]:
    """Has `happens` called before step `at` (from 0); for a forked child."""
    count = {"steps": 0}

    def wrapped(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if name == "open" and not given[1] & os.O_CREAT:
                return step(*given, **named)
            count["steps"] += 1
            if count["steps"] == at + 1:
                happens(name)
            return step(*given, **named)

        return call

    for name in _STEPS:
        setattr(os, name, wrapped(name, getattr(os, name)))
    return count


def dies(_: str) -> None:
    os._exit(77)


def is_full(_: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def in_fork(work: Callable[[], Any]) -> tuple[bool, Any]:
    """(whether it died on the way, its answer)."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 77)
    return status == 77, None


def cut(shared: Shared, span: Span) -> Any:
    return cut_soft_layer(
        shared.world.stack, shared.number, span.name, span.written, dict,
        begun_ns=span.begun_ns, digest=digest_fd, keyed=keyed,
    )  # fmt: skip


def scene(world: World) -> tuple[Shared, Span]:
    write_host(world, a="1" * 200, b="1", d__x="1", d__y="1")
    world.settle()
    shared = Shared(world)
    first = Span(shared, "first")
    first.act(("write", b"a", b"2" * 70_000), ("mkdir", b"n", None), ("write", b"n/f", b"1"))
    assert first.cut() is not None
    second = Span(shared, "second")
    second.act(
        ("write", b"a", b"3" * 70_000), ("remove", b"d", None), ("rename", b"n", b"m"),
        ("symlink", b"l", b"a"), ("mode", b"b", 0o600), ("attribute", b"b", b"1"),
    )  # fmt: skip
    return shared, second


def steps(every_call: bool, tried: Callable[[int], bool]) -> None:
    """`tried(step)` until it is False: nothing happened any more."""
    step = 0
    while tried(step):
        step += 1 if every_call else STRIDE
    assert step > 5 * STRIDE


def test_death_in_a_cut(trusted_world: World, every_call: bool) -> None:
    world = trusted_world
    shared, second = scene(world)
    directory = soft.directory_of(world.stack, shared.number)
    wanted: list[Any] = []

    def tried(step: int) -> bool:
        def work() -> None:
            counted(step, dies)
            cut(shared, second)

        died, _ = in_fork(work)
        found = soft.load_all(world.stack, shared.number)
        assert [s.span for s in found] in (["first"], ["first", "second"])
        if len(found) == 1:
            again = in_child(lambda: cut(shared, second))
            found.append(again.soft)
        changes = [(c.path, c.kind) for c in diff_soft(world.stack, found[1])]
        wanted.append((changes, found[1].entries))
        assert wanted[-1] == wanted[0]
        assert changes
        assert sorted(os.listdir(directory)) == [b"1", b"2"]
        soft._remove(directory, b"2")
        return died

    steps(every_call, tried)


def test_a_full_disk_in_a_cut(trusted_world: World, every_call: bool) -> None:
    """What there is no room for is recorded as not kept, or all of it fails and nothing is left."""
    world = trusted_world
    shared, second = scene(world)
    directory = soft.directory_of(world.stack, shared.number)
    whole = in_child(lambda: cut(shared, second))
    kinds = {c.path: c.kind for c in whole.changes}
    soft._remove(directory, b"2")
    seen = set()

    def tried(step: int) -> bool:
        def work() -> Any:
            count = counted(step, is_full)
            try:
                found = cut(shared, second)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                return count["steps"], None, []
            return count["steps"], found, soft.load_all(world.stack, shared.number)

        count, found, loaded = in_child(work)
        left = sorted(os.listdir(directory))
        if found is None:
            assert left in ([b"1"], [b"1", b"new"])  # what could not be swept is, by the next one
            seen.add("failed")
        else:
            assert left == [b"1", b"2"]
            assert loaded[1] == found.soft
            for change in found.changes:
                assert kinds[change.path] == change.kind
            missing = kinds.keys() - {c.path for c in found.changes}
            said = {e.path for e in found.refused}
            assert all(any(p == s or p.startswith(s + b"/") for s in said) for p in missing)
            seen.add("whole" if not missing else "partly")
            soft._remove(directory, b"2")
        return bool(count > step)

    steps(every_call, tried)
    assert seen >= {"failed", "partly", "whole"}


def test_a_full_disk_in_an_undo_of_a_living_world(trusted_world: World, every_call: bool) -> None:
    world = trusted_world
    shared, second = scene(world)
    found = in_child(lambda: cut(shared, second))
    before = shared.look()
    started = now_ns()

    def tried(step: int) -> bool:
        def work() -> bool:
            counted(step, is_full)
            choice = choose(world.stack, found.soft, {})
            assert choice.refused == {}
            try:
                undo_in_world(world.stack, choice, {0: shared.root})
            except OSError as error:
                assert error.errno == errno.ENOSPC
                return False
            return True

        done = in_child(work)
        if not done:
            assert content(shared.look()) == content(before)
        return not done

    # an undo that was done is none any more: here the last step ends it
    step = 0
    while tried(step):
        step += 1 if every_call else STRIDE
    assert step > STRIDE
    assert shared.look()[b"d/x"][2] == b"1"
    assert now_ns() > started


def test_death_in_an_undo_on_top_of_a_layer(trusted_world: World, every_call: bool) -> None:
    world = trusted_world
    shared, second = scene(world)
    found = in_child(lambda: cut(shared, second))
    shared.end()
    number = shared.number

    def tried(step: int) -> bool:
        def work() -> None:
            counted(step, dies)
            undo_in_layer(world.stack, choose(world.stack, found.soft, {}))

        died, _ = in_fork(work)
        there = [layer.number for layer in layers.list_layers(world.stack.directory)]
        assert there in ([number], [number, number + 1])
        if len(there) == 2:
            stack = replace(
                world.stack,
                layers=(*world.stack.layers, layers.Layer(number=number + 1)),
            )
            assert not layers.is_frozen(stack, number + 1)  # so it is recorded by the next one
            upper = stack.upper(number + 1, 0)
            assert sorted(os.listdir(upper)) == sorted([b"a", b"b", b"d", b"l", b"m", b"n"])
            layers.remove_layer(stack, number + 1)
        return died

    steps(every_call, tried)
