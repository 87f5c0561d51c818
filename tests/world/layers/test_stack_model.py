"""Random stacks against a model: a diff says what each layer changed, single layers are applied,
neighbours merged, and what is left still shows what it must.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from conftest import World, make_world
from operations import OPERATIONS, Operation, kinds
from stacks import Stack, directory, said
from test_apply import pending

FLAVOURS = pytest.mark.parametrize("flavour", ["trusted", "user", "idmap"])
CALM = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
FIRST = st.lists(OPERATIONS, max_size=12)


@FLAVOURS
@settings(max_examples=12, **CALM)
@given(
    first=FIRST,
    layers=st.lists(st.lists(OPERATIONS, max_size=6), min_size=1, max_size=3),
    merged=st.booleans(),
)
def test_a_diff_says_exactly_what_differs(
    flavour: str, first: list[Operation], layers: list[list[Operation]], merged: bool
) -> None:
    with directory() as base:
        stack = Stack(make_world(base / "w", flavour), first)
        states = [stack.expected()]
        for listed in layers:
            stack.run(listed)
            states.append(stack.expected())
        numbers = stack.world.stack.numbers
        if merged and len(numbers) > 1:
            stack.merge(numbers[:2])
        for number in numbers:
            found = said(stack.world, stack.layer_changes(number))
            assert found == kinds(states[number - 1], states[number])
        assert said(stack.world, pending(stack.world)) == kinds(states[0], states[-1])
        stack.apply()
        assert stack.on_host() == states[-1]


@FLAVOURS
@settings(max_examples=12, **CALM)
@given(
    first=FIRST,
    layers=st.lists(st.lists(OPERATIONS, max_size=4), min_size=2, max_size=6),
    data=st.data(),
)
def test_single_layers_are_applied_and_the_rest_stays_what_it_was(
    flavour: str, first: list[Operation], layers: list[list[Operation]], data: Any
) -> None:
    with directory() as base:
        stack = Stack(make_world(base / "w", flavour), first)
        for listed in layers:
            stack.run(listed)
        numbers = stack.world.stack.numbers
        if data.draw(st.booleans(), label="merge"):
            start = data.draw(st.integers(0, len(numbers) - 2))
            end = data.draw(st.integers(start + 2, len(numbers)))
            stack.merge(numbers[start:end])
        apply_one_by_one(stack, data.draw(st.permutations(numbers)))


def apply_one_by_one(stack: Stack, numbers: list[int]) -> None:
    """Those that share no path with another one by themselves, then the rest at once."""
    whole = stack.expected()
    for number in numbers:
        if not stack.depends(number)[2]:
            stack.apply([number])
            assert stack.on_host() == stack.host
            assert stack.seen(stack.world.stack.numbers) == [whole]
    stack.apply()
    assert stack.on_host() == whole


@pytest.mark.parametrize(
    ("first", "layers"),
    [
        ([("write", b"f", b"1")], [("write", b"g", b"1"), ("link", b"f", b"h")]),
        ([("write", b"f", b"1")], [("write", b"g", b"1"), ("rename", b"f", b"h")]),
        ([("write", b"d/f", b"1")], [("write", b"g", b"1"), ("rename", b"d", b"e")]),
        ([("write", b"f", b"1")], [("open", b"f", None), ("write", b"f", b"2")]),
        ([], [("write", b"d/g", b"1"), ("mode", b"d", 1)]),
        ([], [("mode", b"d", 1), ("write", b"d/g", b"1")]),
        ([], [("write", b"g", b"1"), ("mode", b".", 1)]),
        ([("write", b"d/f", b"1")], [("write", b"d/g", b"1"), ("remove", b"d/f", None)]),
        ([("write", b"d/f", b"1")], [("write", b"g", b"1"), ("swap", b"d", b"2")]),
        ([("write", b"d/f", b"1")], [("empty", b"d", None), ("write", b"d/g", b"1")]),
        ([("mode", b"d", 3)], [("write", b"d/g", b"1"), ("mkdir", b"d/e", None)]),
        ([("default_acl", b"d", 4)], [("write", b"d/g", b"1"), ("mkdir", b"d/e", None)]),
        ([("attribute", b".", b"1"), ("acl", b".", 4)], [("attribute", b".", b"2")]),
    ],
    ids=str,
)
@pytest.mark.parametrize("newest_first", [False, True])
def test_layers_that_were_hard_once(
    world: World, first: list[Operation], layers: list[Operation], newest_first: bool
) -> None:
    stack = Stack(world, [("mkdir", b"d", None), *first])
    for operation in layers:
        stack.run([operation])
    apply_one_by_one(stack, sorted(stack.world.stack.numbers, reverse=newest_first))
