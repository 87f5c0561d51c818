"""What the host did beside the world, and whether an apply notices."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_apply import apply, pending, prepare, put, run, some_host

from substrate.values import replace
from substrate.world.conflict import check, clock_was_set_back
from substrate.world.diff import diff_pending
from substrate.world.plan import plan


def found(world: Any) -> list[tuple[bytes, str]]:
    """(path below the host directory, reason) of every conflict."""
    start = len(os.fsencode(world.host)) + 1

    def look() -> list[tuple[bytes, str]]:
        conflicts = check(plan(diff_pending(world.stack), world.stack), world.stack)
        return [(c.path[start:], c.reason.value) for c in conflicts]

    answer: list[tuple[bytes, str]] = world.outside(look)
    return answer


def beside(world: Any, *steps: Callable[[bytes], object]) -> None:
    """The host's own doing, as the invoking user, a clock tick away from anything else."""
    world.settle()

    def work() -> None:
        for step in steps:
            step(os.fsencode(world.host) + b"/")

    world.outside(work)
    world.settle()


def edit(r: bytes) -> None:
    put(r + b"a", b"the world's\n")


def save_by_rename(r: bytes) -> None:
    put(r + b"a.tmp", b"the world's\n")
    os.rename(r + b"a.tmp", r + b"a")


def test_untouched_host_has_none(world: Any) -> None:
    prepare(world, some_host)
    run(world, edit, lambda r: os.unlink(r + b"b"))
    assert found(world) == []


def test_edited_before_the_copy_up_is_none(world: Any) -> None:
    prepare(world, some_host)
    beside(world, lambda h: put(h + b"a", b"the host's"))
    run(world, edit)
    assert found(world) == []


def test_edited_after_the_copy_up(world: Any) -> None:
    prepare(world, some_host)
    run(world, edit)
    beside(world, lambda h: put(h + b"a", b"the host's"))
    assert found(world) == [(b"a", "host_changed")]


def test_replaced_after_the_copy_up(world: Any) -> None:
    prepare(world, some_host)
    run(world, edit)
    beside(world, lambda h: put(h + b"t", b"x"), lambda h: os.rename(h + b"t", h + b"a"))
    assert found(world) == [(b"a", "host_created")]


def test_edited_between_two_layers_that_both_wrote(world: Any) -> None:
    prepare(world, some_host)
    run(world, edit)
    beside(world, lambda h: put(h + b"a", b"the host's"))
    run(world, lambda r: put(r + b"a", b"again"))
    assert found(world) == [(b"a", "host_changed")]


def test_saved_by_rename_and_edited_on_the_host(world: Any) -> None:
    prepare(world, some_host)
    run(world, save_by_rename)
    beside(world, lambda h: put(h + b"a", b"the host's"))
    assert found(world) == [(b"a", "host_changed")]


def test_same_edit_on_both_sides_is_none(world: Any) -> None:
    prepare(world, some_host)
    run(world, edit)
    beside(world, edit)
    assert found(world) == []


def test_deleted_on_the_host(world: Any) -> None:
    prepare(world, some_host)
    run(world, edit)
    beside(world, lambda h: os.unlink(h + b"a"))
    assert found(world) == [(b"a", "host_deleted")]


def test_directory_deleted_on_the_host(world: Any) -> None:
    prepare(world, some_host)
    run(world, lambda r: put(r + b"d/s/new", b"1"))
    beside(world, lambda h: shutil.rmtree(h + b"d"))
    assert found(world) == [(b"d", "host_deleted"), (b"d/s", "host_deleted")]


def test_linked_into_a_directory_that_the_world_made_is_none(world: Any) -> None:
    """Not a file that the host deleted, though it has an origin: cp -al, git clone by path."""
    prepare(world, some_host)
    run(world, lambda r: os.makedirs(r + b"new/inside"))
    run(world, lambda r: os.link(r + b"a", r + b"new/inside/a"), edit)
    assert found(world) == []
    beside(world, lambda h: put(h + b"a", b"other"))
    assert found(world) == [(b"a", "host_changed")]


def test_created_on_the_host_with_other_content(world: Any) -> None:
    prepare(world, some_host)
    run(world, lambda r: put(r + b"n", b"1"))
    beside(world, lambda h: put(h + b"n", b"22"))
    assert found(world) == [(b"n", "host_created")]


def test_created_on_both_sides_with_the_same_content_is_none(world: Any) -> None:
    prepare(world, some_host)
    run(world, lambda r: put(r + b"n", b"1"))
    beside(world, lambda h: put(h + b"n", b"1"))
    assert found(world) == []


def test_deleted_in_the_world_and_edited_on_the_host(world: Any) -> None:
    prepare(world, some_host)
    run(world, lambda r: os.unlink(r + b"a"))
    beside(world, lambda h: put(h + b"a", b"the host's"))
    assert found(world) == [(b"a", "host_changed")]


def test_deleted_on_both_sides_is_none(world: Any) -> None:
    prepare(world, some_host)
    run(world, lambda r: os.unlink(r + b"a"))
    beside(world, lambda h: os.unlink(h + b"a"))
    assert found(world) == []
    assert pending(world) == []


def test_new_file_of_the_host_in_a_directory_that_the_world_deleted(world: Any) -> None:
    prepare(world, some_host)

    def remove(r: bytes) -> None:
        os.unlink(r + b"swap/z")
        os.rmdir(r + b"swap")

    run(world, remove)
    beside(world, lambda h: put(h + b"swap/mine", b"1"))
    assert found(world) == [(b"swap", "host_changed"), (b"swap/mine", "host_created")]


def test_file_became_a_directory_on_the_host(world: Any) -> None:
    prepare(world, some_host)
    run(world, edit)
    beside(world, lambda h: os.unlink(h + b"a"), lambda h: os.mkdir(h + b"a"))
    assert found(world) == [(b"a", "host_created")]


def test_other_directory_moved_in_where_the_world_deleted_one(world: Any) -> None:
    prepare(world, some_host)

    def remove(r: bytes) -> None:
        os.unlink(r + b"swap/z")
        os.rmdir(r + b"swap")

    run(world, remove)
    beside(world, lambda h: os.rename(h + b"d", h + b"swap2"), lambda h: shutil.rmtree(h + b"swap"))
    beside(world, lambda h: os.rename(h + b"swap2", h + b"swap"))
    assert found(world) == [(b"swap", "host_changed")]


def test_file_became_a_symlink_on_the_host(world: Any) -> None:
    prepare(world, some_host)
    run(world, edit)
    beside(world, lambda h: os.unlink(h + b"a"), lambda h: os.symlink(b"b", h + b"a"))
    assert [p for p, _ in found(world)] == [b"a"]


def test_directory_became_a_symlink_on_the_host(world: Any) -> None:
    prepare(world, some_host)
    run(world, lambda r: put(r + b"d/s/y", b"edited"))
    beside(
        world,
        lambda h: os.rename(h + b"d/s", h + b"d/real"),
        lambda h: os.symlink(b"/etc", h + b"d/s"),
    )
    assert b"d/s" in dict(found(world))


def test_mode_changed_on_both_sides(world: Any) -> None:
    prepare(world, some_host)
    run(world, lambda r: os.chmod(r + b"a", 0o755))
    beside(world, lambda h: os.chmod(h + b"a", 0o600))
    assert found(world) == [(b"a", "host_changed")]


def test_renamed_inside_the_world_is_none(world: Any) -> None:
    prepare(world, some_host)
    beside(world, lambda h: put(h + b"other", b"so that the directory changed"))
    run(world, lambda r: os.rename(r + b"a", r + b"moved"))
    assert found(world) == []


def test_renamed_twice_in_two_layers_is_none(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, some_host)
    beside(world, lambda h: put(h + b"other", b"so that the directory changed"))
    run(world, lambda r: put(r + b"a", b"edited"), lambda r: os.rename(r + b"a", r + b"m1"))
    run(world, lambda r: put(r + b"m1", b"twice"), lambda r: os.rename(r + b"m1", r + b"m2"))
    assert found(world) == []


def test_edited_within_a_tick_of_the_start_is_uncertain(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, some_host)
    run(world, save_by_rename)
    started = os.stat(world.host / "a").st_ctime_ns + 1
    world.stack = replace(world.stack, started_ns=started)
    assert found(world) == [(b"a", "uncertain")]


def test_after_the_clock_was_set_back_nothing_is_certain(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, some_host)
    run(world, edit)
    assert not clock_was_set_back(world.stack)
    offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    world.stack = replace(world.stack, clock_offset_ns=offset + 10**9)
    assert clock_was_set_back(world.stack)
    assert found(world) == [(b"a", "uncertain")]


def test_a_start_in_the_future_means_a_clock_that_was_set_back(trusted_world: Any) -> None:
    world = trusted_world
    prepare(world, some_host)
    run(world, edit)
    world.stack = replace(world.stack, started_ns=time.time_ns() + 10**10)
    assert clock_was_set_back(world.stack)


def test_nothing_is_applied_when_one_path_conflicts(world: Any) -> None:
    prepare(world, some_host)
    run(world, edit, lambda r: put(r + b"b", b"fine"))
    beside(world, lambda h: put(h + b"a", b"the host's"))
    with pytest.raises(Exception, match="nothing was applied"):
        apply(world)
    assert (world.host / "b").read_bytes() == b"b old\n"


def test_the_rest_is_applied_after_a_part_of_it(world: Any) -> None:
    prepare(world, some_host)
    run(world, lambda r: os.chmod(r + b"d", 0o700), lambda r: put(r + b"d/new", b"1"))
    first = os.fsencode(world.host) + b"/d/new"
    apply(world, select=lambda path: path == first)
    world.settle()
    apply(world)
    assert os.stat(world.host / "d").st_mode & 0o777 == 0o700
