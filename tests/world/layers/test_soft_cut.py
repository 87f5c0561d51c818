"""Soft layers: what one command of a layer that others write in too changed, as it is told afterwards."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import World
from sharing import Shared, Span, end_all

from substrate.world import soft
from substrate.world.change import Change
from substrate.world.open_files import OpenFiles
from substrate.world.soft_changes import diff_soft
from substrate.world.soft_cut import Bounds, Cut


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    yield
    end_all()


def below(world: World, change: Change) -> str:
    return os.fsdecode(change.path[len(os.fsencode(world.host)) + 1 :])


def said(world: World, cut: Cut | None) -> dict[str, str]:
    assert cut is not None
    return {below(world, c): c.kind for c in cut.changes}


def refused(world: World, cut: Cut | None) -> dict[str, str]:
    assert cut is not None
    start = len(os.fsencode(world.host)) + 1
    return {os.fsdecode(e.path[start:]): e.why for e in cut.refused}


def write_host(world: World, **files: str) -> None:
    def work() -> None:
        for name, text in files.items():
            path = Path(world.host) / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    world.outside(work)


def test_two_commands_one_after_the_other(world: World) -> None:
    write_host(world, a="1", b="1", d__x="1")
    shared = Shared(world)
    first = Span(shared, "first")
    first.act(("write", b"a", b"22"), ("mkdir", b"n", None), ("write", b"n/f", b"1"))
    one = first.cut()
    assert said(world, one) == {"a": "modified", "n": "added", "n/f": "added"}
    second = Span(shared, "second")
    second.act(
        ("write", b"a", b"333"),
        ("write", b"n/g", b"2"),
        ("delete", b"b", None),
        ("mode", b"n", 0o700),
    )
    two = second.cut()
    assert said(world, two) == {"a": "modified", "n/g": "added", "b": "deleted", "n": "meta"}
    by_path = {below(world, c): c for c in two.changes}
    assert by_path["a"].before.size == 2
    assert (
        by_path["a"].before.digest
        == next(c for c in one.changes if c.path.endswith(b"/a")).after.digest
    )
    assert stat.S_IMODE(by_path["n"].before.mode) == 0o755
    assert one.refused == two.refused == ()
    shared.end()


def test_what_came_and_went(world: World) -> None:
    write_host(world, a="1", d__x="1", d__y="1")
    shared = Shared(world)
    first = Span(shared, "first")
    first.act(("write", b"new", b"1"), ("write", b"gone", b"1"), ("delete", b"gone", None))
    assert said(world, first.cut()) == {"new": "added"}
    second = Span(shared, "second")
    second.act(("delete", b"new", None), ("remove", b"d", None), ("write", b"d", b"a file"))
    cut = second.cut()
    assert said(world, cut) == {
        "new": "deleted", "d": "type_changed", "d/x": "deleted", "d/y": "deleted",
    }  # fmt: skip
    third = Span(shared, "third")
    third.act(("delete", b"d", None), ("mkdir", b"d", None), ("write", b"d/x", b"other"))
    assert said(world, third.cut()) == {"d": "type_changed", "d/x": "added"}
    shared.end()


def test_a_directory_that_is_renamed_takes_its_tree_along(world: World) -> None:
    shared = Shared(world)
    first = Span(shared, "first")
    first.act(
        ("mkdir", b"d", None),
        ("mkdir", b"d/e", None),
        ("write", b"d/e/f", b"1"),
        ("write", b"d/g", b"1"),
    )
    assert first.cut() is not None
    second = Span(shared, "second")
    second.act(("rename", b"d", b"m"), ("write", b"m/g", b"22"))
    tree = ("", "/e", "/e/f", "/g")
    cut = second.cut()
    assert said(world, cut) == {f"d{n}": "deleted" for n in tree} | {f"m{n}": "added" for n in tree}
    third = Span(shared, "third")
    third.act(("delete", b"m/e/f", None), ("rename", b"m", b"d"))
    cut = third.cut()
    tree = ("", "/e", "/g")
    assert said(world, cut) == {f"d{n}": "added" for n in tree} | {
        f"m{n}": "deleted" for n in (*tree, "/e/f")
    }
    shared.end()


def test_what_two_wrote_at_once_is_ambiguous_and_nothing_else_is(world: World) -> None:
    write_host(world, a="1", b="1")
    shared = Shared(world)
    left, right = Span(shared, "left"), Span(shared, "right")
    left.act(("write", b"a", b"l"), ("write", b"l", b"1"))
    right.act(("write", b"a", b"r"), ("write", b"b", b"rr"))
    cut = left.cut(right)
    assert said(world, cut) == {"l": "added"}
    assert refused(world, cut) == {"a": "span right wrote at the same time"}
    right.act(("write", b"l", b"after it was cut"))
    cut = right.cut()
    assert said(world, cut) == {"b": "modified", "l": "modified"}
    assert set(refused(world, cut)) == {"a"}
    after = Span(shared, "after")
    after.act(("write", b"a", b"third"), ("write", b"b", b"third"))
    cut = after.cut()
    assert said(world, cut) == {"b": "modified"}
    assert "not known" in refused(world, cut)["a"]
    shared.end()


def test_a_tree_that_is_moved_while_another_writes_in_it(world: World) -> None:
    shared = Shared(world)
    first = Span(shared, "first")
    first.act(("mkdir", b"d", None))
    assert first.cut() is not None
    left, right = Span(shared, "left"), Span(shared, "right")
    left.act(("write", b"d/x", b"1"))
    right.act(("rename", b"d", b"e"), ("write", b"z", b"1"))
    cut = right.cut(left)
    assert said(world, cut) == {"z": "added"}
    assert "d" in refused(world, cut)
    shared.end()


def test_a_writer_of_whom_nothing_is_known(world: World) -> None:
    write_host(world, a="1")
    shared = Shared(world)
    shared.act(("write", b"a", b"by somebody"))
    world.settle()
    span = Span(shared, "span")
    span.act(("append", b"a", b"+"), ("write", b"b", b"1"))
    cut = span.cut()
    assert said(world, cut) == {"b": "added"}
    assert "written before" in refused(world, cut)["a"]
    shared.end()


def test_hard_links(world: World) -> None:
    shared = Shared(world)
    first = Span(shared, "first")
    first.act(("write", b"a", b"1"), ("link", b"a", b"b"))
    cut = first.cut()
    assert said(world, cut) == {"a": "added", "b": "added"}
    second = Span(shared, "second")
    second.act(("append", b"a", b"+"))
    cut = second.cut()
    assert said(world, cut) == {}
    assert "another name" in refused(world, cut)["a"]
    shared.end()


def test_limits_are_said(trusted_world: World) -> None:
    world = trusted_world
    shared = Shared(world)
    span = Span(shared, "span")
    span.act(("write", b"large", b"x" * 150_000), ("write", b"small", b"1"))
    cut = span.cut(bounds=Bounds(size_bytes=100_000))
    assert said(world, cut) == {"small": "added"}
    assert "100000 bytes" in refused(world, cut)["large"]
    later = Span(shared, "later")
    later.act(("append", b"large", b"+"))
    cut = later.cut(bounds=Bounds(size_bytes=400_000))
    assert "not known" in refused(world, cut)["large"]
    later = Span(shared, "last")
    later.act(("write", b"1", b""), ("write", b"2", b""))
    cut = later.cut(bounds=Bounds(entries=1))
    assert said(world, cut) == {"1": "added"}
    assert "more than 1 paths" in refused(world, cut)["2"]
    shared.end()


def test_it_is_read_again_from_the_disk(world: World) -> None:
    write_host(world, a="1")
    shared = Shared(world)
    span = Span(shared, "span")
    span.act(("write", b"a", b"22"), ("write", b"b\n\xff", b"2"))
    cut = span.cut()
    stack, number = world.stack, shared.number

    def again() -> Any:
        (found,) = soft.load_all(stack, number)
        return found, [(c.path, c.kind) for c in diff_soft(stack, found)]

    loaded, changes = world.outside(again)
    assert loaded == cut.soft
    assert changes == [(c.path, c.kind) for c in cut.changes]
    shared.end()


def test_what_the_host_changed_meanwhile_is_in_doubt(world: World) -> None:
    write_host(world, a="1", b="1")
    shared = Shared(world)
    world.settle()
    span = Span(shared, "span")
    span.act(("write", b"a", b"22"), ("write", b"b", b"2"))
    world.settle()
    write_host(world, a="the host's")
    cut = span.cut()
    doubts = {os.path.basename(e.path): e.doubt for e in cut.soft.entries}
    assert doubts[b"a"]
    assert doubts[b"b"] == ""
    shared.end()


@pytest.mark.parametrize("odd", [b"/../etc", b"//x", b"/./x", b"/a\0b"])
def test_paths_that_no_kernel_gives(trusted_world: World, odd: bytes) -> None:
    world = trusted_world
    shared = Shared(world)
    span = Span(shared, "span")
    span.act(("write", b"a", b"1"))
    span.told.append((odd[1:], soft.Intent.WRITE, span.begun_ns))
    cut = span.cut()
    assert said(world, cut) == {"a": "added"}
    shared.end()


@pytest.mark.parametrize("how", ["open", "map"])
def test_a_file_that_can_still_be_written(world: World, how: str) -> None:
    shared = Shared(world)
    span = Span(shared, "span")
    span.act(("write", b"a", b"1"), ("write", b"b", b"1"))
    shared.ask(how, b"a")
    target = os.fsencode(world.host)
    seen = os.path.dirname(target) + b"/merged"

    def held_by(paths: Any) -> dict[bytes, str]:
        files = OpenFiles([shared.pid])
        files._mapped = {p.replace(seen, target): pid for p, pid in files._mapped.items()}
        return files.held_by({target: shared.root}, paths)

    cut = span.cut(held_by=held_by)
    assert said(world, cut) == {"b": "added"}
    assert refused(world, cut) == {"a": f"process {shared.pid} has it open for writing"}
    shared.end()


def test_a_process_that_cannot_be_looked_into_holds_everything(user_world: World) -> None:
    world = user_world
    shared = Shared(world)
    span = Span(shared, "span")
    span.act(("write", b"a", b"1"))

    def held_by(paths: Any) -> dict[bytes, str]:
        return OpenFiles([os.getppid()]).held_by({os.fsencode(world.host): shared.root}, paths)

    cut = span.cut(held_by=held_by)
    assert said(world, cut) == {}
    assert "cannot be looked into" in refused(world, cut)["a"]
    shared.end()
