"""Which layers can leave a stack: what is left shows what the other commands made."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from conftest import World, make_world
from operations import NAMES, OPERATIONS, Operation, operations, patched
from stacks import Stack, directory

FLAVOURS = pytest.mark.parametrize("flavour", ["trusted", "user", "idmap"])
CALM = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
FIRST = st.lists(OPERATIONS, max_size=12)
LAYERS = st.lists(st.lists(OPERATIONS, max_size=5), min_size=2, max_size=6)


@FLAVOURS
@settings(max_examples=15, **CALM)
@given(first=FIRST, layers=LAYERS, data=st.data())
def test_what_is_left_is_what_the_other_commands_made(
    flavour: str, first: list[Operation], layers: list[list[Operation]], data: Any
) -> None:
    with directory() as base:
        stack = Stack(make_world(base / "w", flavour), first)
        states = [stack.expected()]
        for listed in layers:
            stack.run(listed)
            states.append(stack.expected())
        numbers = stack.world.stack.numbers
        prefixes = [numbers[:count] for count in range(len(numbers) + 1)]
        rests = []
        for number in numbers:
            on, closed, around = stack.depends(number)
            assert set(on) <= set(around)
            assert set(closed) >= {number, *on}
            rests.append(stack.without(closed))
            if not on:
                assert closed == [number]
                before = states[number - 1]
                back = {path: before.get(path) for path in stack.patches[number]}
                assert stack.expected(rests[-1]) == patched(states[-1], back)
        shown = stack.seen(*prefixes, *rests)
        assert shown[: len(states)] == states
        for rest, found in zip(rests, shown[len(states) :], strict=True):
            assert found == stack.expected(rest)


def own_operations(number: int) -> Any:
    """Operations on `d/<number>` and what lies in it."""
    own = st.lists(NAMES, max_size=3).map(lambda below: b"/".join([b"d", b"%d" % number, *below]))
    return st.lists(operations(own, own), max_size=6)


@FLAVOURS
@settings(max_examples=10, **CALM)
@given(first=st.tuples(*map(own_operations, range(3))), layers=st.data())
def test_commands_that_work_beside_each_other_do_not_depend_on_each_other(
    flavour: str, first: tuple[list[Operation], ...], layers: Any
) -> None:
    """Their directories are siblings, and all that they share is the directory of these."""
    with directory() as base:
        made: list[Operation] = [("mkdir", b"d", None), ("mode", b"d", 3), ("acl", b"d", 4)]
        stack = Stack(make_world(base / "w", flavour), [*made, *chain(*first)])
        for number in layers.draw(st.permutations(range(4))):
            stack.run(layers.draw(own_operations(number)))
        for number in stack.world.stack.numbers:
            assert stack.depends(number) == ([], [number], [])


@pytest.mark.parametrize(
    ("first", "second", "undo", "apply_first", "apply_second"),
    [
        # of the same path
        (("write", b"f", b"1"), ("append", b"f", b"+"), True, True, True),
        (("write", b"f", b"1"), ("open", b"f", None), True, True, True),
        (("open", b"f", None), ("write", b"f", b"1"), False, False, True),
        (("remove", b"f", None), ("write", b"f", b"1"), True, True, True),
        (("write", b"f", b"1"), ("rename", b"f", b"g"), True, True, True),
        (("write", b"f", b"1"), ("link", b"f", b"g"), True, True, True),
        (("mode", b"f", 1), ("attribute", b"f", b"1"), True, True, True),
        # of a directory and what is in it
        (("mkdir", b"new", None), ("write", b"new/f", b"1"), True, True, True),
        (("write", b"d/g", b"1"), ("remove", b"d", None), True, True, True),
        (("write", b"d/g", b"1"), ("empty", b"d", None), True, True, True),
        (("empty", b"d", None), ("write", b"d/in", b"1"), True, True, True),
        (("swap", b"d", b"1"), ("swap", b"d", b"1"), True, True, True),
        (("mode", b"d", 1), ("write", b"d/g", b"1"), True, True, True),
        (("write", b"d/g", b"1"), ("mode", b"d", 1), False, False, True),
        (("attribute", b"d", b"1"), ("remove", b"d/in", None), True, True, True),
        # of the top itself, of which every layer has a copy
        (("mode", b".", 1), ("write", b"g", b"1"), True, True, True),
        (("write", b"g", b"1"), ("mode", b".", 1), False, False, True),
        # siblings, and a directory of whose names each changes its own
        (("write", b"g", b"1"), ("write", b"h", b"1"), False, False, False),
        (("write", b"d/g", b"1"), ("write", b"d/h", b"1"), False, False, False),
        (("write", b"d/g", b"1"), ("remove", b"d/in", None), False, False, False),
        (("remove", b"d/in", None), ("write", b"d/g", b"1"), False, False, False),
        (("write", b"d/g", b"1"), ("mode", b"f", 1), False, False, False),
        (("mode", b"e", 1), ("mode", b"d", 1), False, False, False),
        (("link", b"f", b"g"), ("link", b"f", b"h"), False, False, False),
        (("open", b"f", None), ("open", b"f", None), False, False, False),
    ],
    ids=str,
)
def test_what_shares_a_path_with_what(
    world: World,
    first: Operation,
    second: Operation,
    undo: bool,
    apply_first: bool,
    apply_second: bool,
) -> None:
    """Whether the second layer stands in the way of taking the first one out or applying it, and
    the first one in that of applying the second."""
    made = [("mkdir", b"d", None), ("mkdir", b"e", None), ("write", b"f", b"0")]
    stack = Stack(world, [*made, ("write", b"d/in", b"0")])
    stack.run([first])
    stack.run([second])
    on, _, around = stack.depends(1)
    assert (bool(on), bool(around), bool(stack.depends(2)[2])) == (undo, apply_first, apply_second)
