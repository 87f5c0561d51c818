"""Soft layers against a model: commands that write one after the other, and at once, at random.

The model is what the merged view held when each command began and when its soft layer was cut, and
the paths that each named. What a soft layer tells must be just that: each path that is another one
than it was, unless another command named it, its parents or children at the same time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from operations import TOP, Tree
from sharing import Act, Shared, Span, end_all
from stacks import directory

from conftest import make_world  # isort: skip

PATHS = st.sampled_from(
    [
        b"a",
        b"b",
        b"d",
        b"d/a",
        b"d/b",
        b"d/e",
        b"d/e/a",
        b"m",
        b"m/a",
        b"m/e",
        b"m/e/a",
        b"l",
        b"l/a",
    ]
)


def _act(name: str, argument: Any = None) -> Any:
    return st.tuples(st.just(name), PATHS, st.none() if argument is None else argument)


ACTS = st.one_of(
    _act("write", st.sampled_from([b"1", b"22", b"3" * 5000])),
    _act("write", st.sampled_from([b"1", b"22", b"3" * 5000])),
    _act("append", st.just(b"+")),
    _act("save", st.sampled_from([b"s", b"ss"])),
    _act("delete"),
    _act("mkdir"),
    _act("rmdir"),
    _act("remove"),
    _act("rename", PATHS),
    _act("rename", PATHS),
    _act("mode", st.sampled_from([0o600, 0o755, 0o640])),
    _act("symlink", st.sampled_from([b"a", b"d"])),
    _act("attribute", st.sampled_from([b"1", b"2"])),
)
#: the acts of each command; whether the next begins before it ends, and so on
COMMANDS = st.lists(st.lists(ACTS, min_size=1, max_size=6), min_size=1, max_size=5)


def host(top: bytes) -> None:
    for name in (b"d", b"d/e", b"l"):
        os.mkdir(top + b"/" + name)
    for name in (b"a", b"d/a", b"d/e/a", b"l/a"):
        Path(os.fsdecode(top + b"/" + name)).write_bytes(b"host")


def without_times(tree: Tree) -> dict[bytes, Any]:
    return {path: entry[:4] + entry[5:] for path, entry in tree.items() if path != TOP}


def expected(before: Tree, after: Tree) -> dict[bytes, str]:
    """Kind of each path that is another one; times count for files."""
    old, new = without_times(before), without_times(after)
    found = {}
    for path in (before.keys() | after.keys()) - {TOP}:
        if path not in old:
            found[path] = "added"
        elif path not in new:
            found[path] = "deleted"
        elif old[path][0] != new[path][0]:
            found[path] = "type_changed"
        elif old[path][2] != new[path][2]:
            found[path] = "modified"
        elif old[path] != new[path] or before[path] != after[path]:
            found[path] = "meta"
    return found


def told(world: Any, cut: Any) -> dict[bytes, str]:
    if cut is None:
        return {}
    start = len(os.fsencode(world.host)) + 1
    return {c.path[start:]: c.kind for c in cut.changes}


def ambiguous(world: Any, cut: Any) -> set[bytes]:
    if cut is None:
        return set()
    start = len(os.fsencode(world.host)) + 1
    return {e.path[start:] for e in cut.refused}


@pytest.mark.parametrize("flavour", ["trusted", "user", "idmap"])
@settings(max_examples=25, deadline=None)
@given(commands=COMMANDS)
def test_one_after_the_other(flavour: str, commands: list[list[Act]]) -> None:
    with directory() as base:
        world = make_world(base / "w", flavour)
        world.outside(lambda: host(os.fsencode(world.host)))
        shared = Shared(world)
        try:
            for number, acts in enumerate(commands):
                before = shared.look()
                span = Span(shared, f"s{number}")
                span.act(*acts)
                after = shared.look()
                cut = span.cut()
                assert ambiguous(world, cut) == set()
                assert told(world, cut) == expected(before, after)
        finally:
            end_all()


def near(path: bytes, others: set[bytes]) -> bool:
    return any(path == o or path.startswith(o + b"/") or o.startswith(path + b"/") for o in others)


@pytest.mark.parametrize("flavour", ["trusted", "user"])
@settings(max_examples=25, deadline=None)
@given(
    first=st.lists(ACTS, max_size=5),
    turns=st.lists(
        st.tuples(st.integers(0, 1), st.lists(ACTS, min_size=1, max_size=3)), max_size=6
    ),
    last=st.lists(ACTS, max_size=3),
)
def test_two_at_once(
    flavour: str, first: list[Act], turns: list[tuple[int, list[Act]]], last: list[Act]
) -> None:
    """What is told of either is what is there, and nothing that only the other named."""
    with directory() as base:
        world = make_world(base / "w", flavour)
        world.outside(lambda: host(os.fsencode(world.host)))
        shared = Shared(world)
        try:
            earlier = Span(shared, "earlier")
            earlier.act(*first)
            earlier.cut()
            before = shared.look()
            spans = [Span(shared, "left"), Span(shared, "right")]
            for who, acts in turns:
                spans[who].act(*acts)
            for own, other in ((0, 1), (1, 0)):
                after = shared.look()
                live = [spans[other]] if own == 0 else []
                cut = spans[own].cut(*live)
                named = [{path for path, _, _ in span.told} for span in spans]
                found, want = told(world, cut), expected(before, after)
                refused = ambiguous(world, cut)
                for path, kind in found.items():
                    assert not named[other] & {path}, path
                    assert near(path, named[own])
                    assert want.get(path) == kind
                for path in named[own] & want.keys():
                    if not near(path, named[other]):
                        assert path in found or near(path, refused), path
                spans[own].act(*last) if own == 0 else None
                if own == 0:
                    break
        finally:
            end_all()
