"""Which layers can leave a stack: what is left shows what the other commands made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from conftest import make_world
from operations import OPERATIONS, Operation, patched
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
