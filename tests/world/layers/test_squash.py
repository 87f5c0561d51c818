"""Merged layers: the mount over them shows what it showed over the single ones."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from conftest import World, make_world
from test_diff import host_file, in_world, put
from test_model import OPERATIONS, Operation, content_only, perform
from trees import snapshot

from substrate.values import replace
from substrate.world.diff import diff_layer, diff_pending
from substrate.world.layers import MAX_LOWERS, Layer, LayerStack, Segment
from substrate.world.squash import FAN_OUT, Merge, choose, remove_unused, squash, without


def merge(world: World, *numbers: int) -> None:
    """Squashes these layers; with the rights of the world's user, who makes the files."""

    def work() -> list[tuple[int, tuple[int, ...]]]:
        stack, _, digest = squash(world.stack, Merge(numbers=numbers, level=1))
        assert digest.startswith("sha256:")
        return [(s.identifier, s.numbers) for s in stack.segments]

    found = world.outside(work)
    segments = tuple(Segment(identifier=i, numbers=n) for i, n in found)
    world.stack = replace(world.stack, segments=segments)


def seen(world: World) -> Any:
    """The tree that a next command would see."""
    before = world.stack
    found = world.command(snapshot)
    number = world.stack.numbers[-1]
    world.outside(lambda: shutil.rmtree(before.directory + b"/%d" % number))
    world.stack = before
    return found


def changes(world: World) -> list[tuple[Any, ...]]:
    found = world.outside(lambda: diff_pending(world.stack))
    return [(c.path, c.kind, c.what) for c in found]


@pytest.mark.parametrize("flavour", ["trusted", "user", "idmap"])
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    first=st.lists(OPERATIONS, max_size=10),
    layers=st.lists(st.lists(OPERATIONS, max_size=6), min_size=2, max_size=5),
    data=st.data(),
)
def test_a_segment_shows_what_its_layers_show(
    flavour: str, first: list[Operation], layers: list[list[Operation]], data: Any
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        base.chmod(0o711)
        world = make_world(base / "w", flavour)

        def run(operations: list[Operation], root: bytes, start: int) -> None:
            os.umask(0o022)
            for number, operation in enumerate(operations, start):
                perform(root, operation, number)

        world.outside(lambda: run(first, os.fsencode(world.host), 0))
        world.start()
        for number, operations in enumerate(layers, 1):
            world.command(lambda root, o=operations, s=1000 * number: run(o, root, s))
        before, said = seen(world), changes(world)
        last = world.outside(lambda: diff_layer(world.stack, len(layers)))
        start = data.draw(st.integers(1, len(layers) - 1))
        end = data.draw(st.integers(start + 1, len(layers)))
        merge(world, *range(start, end + 1))
        assert len(world.stack.sources(world.stack.numbers)) == len(layers) - (end - start)
        assert content_only(seen(world)) == content_only(before)
        assert changes(world) == said
        again = world.outside(lambda: diff_layer(world.stack, len(layers)))
        assert [(c.path, c.kind) for c in again] == [(c.path, c.kind) for c in last]
        merge(world, *range(1, len(layers) + 1))  # a segment among them, or itself again
        assert content_only(seen(world)) == content_only(before)
        assert changes(world) == said


def test_whiteouts_and_opaque_directories_hide_what_is_below_the_segment(world: World) -> None:
    for name in (b"gone", b"d/a", b"d/b", b"e/x"):
        host_file(world, name)

    def replace_directory(root: bytes) -> None:
        for name in (b"d/a", b"d/b"):
            os.unlink(root + name)
        os.rmdir(root + b"d")
        os.mkdir(root + b"d")
        put(root + b"d/new", b"1")

    in_world(world, lambda r: os.unlink(r + b"gone"))
    in_world(world, replace_directory)
    in_world(world, lambda r: put(r + b"e/y", b"2"))
    merge(world, 1, 2, 3)
    assert set(seen(world)) == {b"d", b"d/new", b"e", b"e/x", b"e/y"}


def test_files_are_links_and_directories_keep_mode_owner_and_time(trusted_world: World) -> None:
    world = trusted_world

    def make(root: bytes) -> None:
        os.mkdir(root + b"d")
        put(root + b"d/f", b"content")
        os.chown(root + b"d", 1234, 4321)
        os.chmod(root + b"d", 0o2750)
        os.setxattr(root + b"d", "user.note", b"kept")
        os.utime(root + b"d", ns=(10**18, 10**18))

    in_world(world, make)
    in_world(world, lambda r: put(r + b"other", b""))
    merge(world, 1, 2)
    (segment,) = world.stack.segments
    top = world.stack.upper(-segment.identifier, 0)
    status = os.stat(top + b"/d")
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 4321, 0o2750)
    assert status.st_mtime_ns == 10**18
    assert os.getxattr(top + b"/d", "user.note") == b"kept"
    single = world.stack.upper(1, 0) + b"/d/f"
    assert os.stat(single).st_ino == os.stat(top + b"/d/f").st_ino


def test_a_directory_that_is_closed_to_its_owner_is_merged_and_stays_closed(
    user_world: World,
) -> None:
    world = user_world

    def make(root: bytes) -> None:
        os.mkdir(root + b"closed")
        put(root + b"closed/f", b"1", 0)
        os.chmod(root + b"closed", 0)

    in_world(world, make)
    in_world(world, lambda r: put(r + b"other", b""))
    merge(world, 1, 2)
    (segment,) = world.stack.segments
    top = world.stack.upper(-segment.identifier, 0)
    assert stat.S_IMODE(os.stat(top + b"/closed").st_mode) == 0
    assert stat.S_IMODE(os.stat(world.stack.upper(1, 0) + b"/closed").st_mode) == 0
    assert os.path.exists(top + b"/closed/f")


def test_what_fails_leaves_nothing(trusted_world: World) -> None:
    world = trusted_world
    in_world(world, lambda r: put(r + b"a", b"1"))
    in_world(world, lambda r: os.mkdir(r + b"d"))
    os.setxattr(world.stack.upper(2, 0) + b"/d", "trusted.overlay.redirect", b"/elsewhere")
    with pytest.raises(Exception, match="redirect"):
        merge(world, 1, 2)
    assert os.listdir(world.stack.squash_directory) == []


def test_unused_segments_are_removed(trusted_world: World) -> None:
    world = trusted_world
    for number in range(4):
        in_world(world, lambda r, n=number: put(r + b"%d" % n, b""))
    merge(world, 1, 2)
    merge(world, 1, 2, 3)
    assert sorted(os.listdir(world.stack.squash_directory)) == [b"1", b"2"]
    remove_unused(world.stack)
    assert os.listdir(world.stack.squash_directory) == [b"2"]
    world.stack = without(world.stack, {2})
    assert world.stack.segments == ()
    assert world.stack.numbers == (1, 3, 4)


def stack_of(count: int) -> LayerStack:
    return LayerStack(
        directory=b"/nowhere/layers",
        mounts=(),
        layers=tuple(Layer(number=n) for n in range(1, count + 1)),
        started_ns=0,
        workspace=b"/",
    )


def test_a_growing_stack_stays_shallow_and_is_not_merged_again_and_again() -> None:
    """Each layer is linked once for each level, of which there are log n."""
    stack, identifier, linked = stack_of(0), 0, 0
    for number in range(1, 2001):
        stack = replace(stack, layers=(*stack.layers, Layer(number=number)))
        for wanted in choose(stack):
            identifier += 1
            linked += len(wanted.numbers)
            inside = set(wanted.numbers)
            kept = [s for s in stack.segments if not inside & set(s.numbers)]
            new = Segment(identifier=identifier, numbers=wanted.numbers, level=wanted.level)
            stack = replace(stack, segments=tuple(sorted((*kept, new), key=lambda s: s.numbers[0])))
        sources = stack.sources(stack.numbers)
        assert len(sources) <= MAX_LOWERS
        members = [n for s in sources for n in stack.members(s)]
        assert members == list(reversed(stack.numbers))
    assert linked <= 2000 * 4


def test_a_stack_of_few_is_left_alone() -> None:
    assert choose(stack_of(MAX_LOWERS)) == ()
    (wanted,) = choose(stack_of(MAX_LOWERS + 1))
    assert wanted.numbers == tuple(range(1, FAN_OUT + 1))
