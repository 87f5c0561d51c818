"""Undo of one command of a layer that it shared: in the living world, and when the layer is frozen."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from conftest import World, make_world
from operations import TOP, Tree, look
from sharing import Act, Shared, Span, end_all
from stacks import directory
from test_soft_cut import write_host
from test_soft_model import COMMANDS, host

from substrate.values import replace
from substrate.world import layers, soft
from substrate.world.soft_undo import NothingLeft, choose, undo_in_layer, undo_in_world


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    yield
    end_all()


def undo_live(shared: Shared, number: int, *others: Span, **options: Any) -> Any:
    """What was undone and refused, by the paths below the host; a soft layer is cut of it."""
    world = shared.world
    written = {other.name: other.written for other in others}
    root = shared.root

    def work() -> Any:
        target = soft.load(b"%s/%d" % (soft.directory_of(world.stack, shared.number), number))
        choice = choose(world.stack, target, written)
        try:
            done = undo_in_world(world.stack, choice, {0: root}, **options)
        except NothingLeft as nothing:
            return set(), nothing.refused, []
        return {c.path for c in done.changes}, done.refused, done.written

    changed, refused, again = world.outside(work)
    start = len(os.fsencode(world.host)) + 1
    if again:
        span = Span(shared, "undo")
        span.begun_ns = again[0].first_ns
        span.told = [(w.path[start:], i, w.first_ns) for w in again for i in w.intents]
        cut = span.cut(*others)
        assert cut is None or cut.refused == ()
    return {p[start:] for p in changed}, {p[start:]: w for p, w in refused.items()}


def undo_frozen(world: World, number: int, layer: int) -> Any:
    def work() -> Any:
        target = soft.load(b"%s/%d" % (soft.directory_of(world.stack, layer), number))
        choice = choose(world.stack, target, {})
        try:
            _, made, done = undo_in_layer(world.stack, choice)
        except NothingLeft as nothing:
            return None, set(), nothing.refused
        return made.number, {c.path for c in done.changes}, done.refused

    made, changed, refused = world.outside(work)
    if made is not None:
        world.stack = replace(world.stack, layers=(*world.stack.layers, layers.Layer(number=made)))
        world.outside(lambda: layers.freeze_layer(world.stack, made))
    start = len(os.fsencode(world.host)) + 1
    return {p[start:] for p in changed}, {p[start:]: w for p, w in refused.items()}


def content(tree: Tree) -> dict[bytes, Any]:
    """Without the times of directories, and of the top."""
    return {path: entry for path, entry in tree.items() if path != TOP}


def test_it_is_taken_back_while_the_world_lives(world: World) -> None:
    write_host(world, a="1", d__x="1", d__y="1", m="m")
    shared = Shared(world)
    first = Span(shared, "first")
    first.act(("write", b"n", b"first"), ("mkdir", b"own", None), ("write", b"own/f", b"1"))
    first.cut()
    before = shared.look()
    second = Span(shared, "second")
    second.act(
        ("write", b"a", b"22"), ("write", b"n", b"second"), ("remove", b"d", None), ("mode", b"m", 0o600),
        ("remove", b"own", None), ("mkdir", b"new", None), ("write", b"new/f", b"2"),
    )  # fmt: skip
    cut = second.cut()
    changed, refused = undo_live(shared, cut.soft.number)
    assert refused == {}
    assert changed >= {b"a", b"n", b"d", b"d/x", b"m", b"own/f", b"new"}
    assert content(shared.look()) == content(before)
    shared.end()


def test_what_came_later_is_refused_singly(world: World) -> None:
    write_host(world, a="1", b="1")
    shared = Shared(world)
    first = Span(shared, "first")
    first.act(("write", b"a", b"22"), ("write", b"b", b"22"), ("mkdir", b"d", None))
    cut = first.cut()
    later, live = Span(shared, "later"), Span(shared, "live")
    later.act(("append", b"a", b"+"))
    later.cut()
    live.act(("write", b"d/x", b"1"))
    changed, refused = undo_live(shared, cut.soft.number, live)
    assert changed == {b"b"}
    assert set(refused) == {b"a", b"d"}
    assert "later" in refused[b"a"]
    found = shared.look()
    assert (found[b"a"][2], found[b"b"][2]) == (b"22+", b"1")
    # and what was undone is not undone twice
    assert undo_live(shared, cut.soft.number, live)[0] == set()
    shared.end()


def test_what_nobody_told_of_is_seen(world: World) -> None:
    write_host(world, a="1", b="1")
    shared = Shared(world)
    span = Span(shared, "span")
    span.act(("write", b"a", b"22"), ("write", b"b", b"22"), ("mkdir", b"d", None))
    cut = span.cut()
    shared.act(("append", b"a", b"+"), ("write", b"d/stranger", b"1"))
    changed, refused = undo_live(shared, cut.soft.number)
    assert changed == {b"b"}
    assert set(refused) >= {b"a", b"d"}
    assert shared.look()[b"d/stranger"][2] == b"1"
    shared.end()


def test_the_hosts_file_must_be_what_it_was(world: World) -> None:
    write_host(world, a="1", b="1")
    shared = Shared(world)
    span = Span(shared, "span")
    span.act(("write", b"a", b"22"), ("delete", b"b", None))
    cut = span.cut()
    world.settle()
    write_host(world, b="the host's")
    changed, refused = undo_live(shared, cut.soft.number)
    assert (changed, set(refused)) == ({b"a"}, {b"b"})
    shared.end()


def test_it_is_taken_back_in_a_layer_of_its_own(world: World) -> None:
    write_host(world, a="1", d__x="1")
    shared = Shared(world)
    before = shared.look()
    span = Span(shared, "span")
    span.act(
        ("write", b"a", b"22"),
        ("remove", b"d", None),
        ("mkdir", b"n", None),
        ("write", b"n/f", b"1"),
    )
    cut = span.cut()
    other = Span(shared, "other")
    other.act(("write", b"o", b"stays"))
    other.cut()
    shared.end()
    changed, refused = undo_frozen(world, cut.soft.number, shared.number)
    assert refused == {}
    assert changed == {b"a", b"d", b"d/x", b"n", b"n/f"}
    (seen,) = world.views(look, [world.stack])
    assert seen.pop(b"o")[2] == b"stays"
    assert content(seen) == content(before)
    assert undo_frozen(world, cut.soft.number, shared.number)[0] == set()


@pytest.mark.parametrize("flavour", ["trusted", "user", "idmap"])
@settings(max_examples=25, deadline=None)
@given(commands=COMMANDS, which=st.integers(0, 4), living=st.booleans())
def test_against_the_model(
    flavour: str, commands: list[list[Act]], which: int, living: bool
) -> None:
    """What is taken back is what the command had found; nothing else is another than it was."""
    with directory() as base:
        world = make_world(base / "w", flavour)
        world.outside(lambda: host(os.fsencode(world.host)))
        shared = Shared(world)
        try:
            befores, cuts = [], []
            for number, acts in enumerate(commands):
                befores.append(shared.look())
                span = Span(shared, f"s{number}")
                span.act(*acts)
                cuts.append(span.cut())
            which %= len(commands)
            cut, before, now = cuts[which], befores[which], shared.look()
            if cut is None:
                return
            if living:
                changed, refused = undo_live(shared, cut.soft.number)
                after = shared.look()
            else:
                shared.end()
                changed, refused = undo_frozen(world, cut.soft.number, shared.number)
                (after,) = world.views(look, [world.stack])
            if which == len(commands) - 1:
                assert refused == {}
                assert content(after) == content(before)
            for path in (now.keys() | after.keys()) - {TOP}:
                if path in changed:
                    assert after.get(path) == before.get(path), path
                else:
                    assert after.get(path) == now.get(path), path
        finally:
            end_all()
