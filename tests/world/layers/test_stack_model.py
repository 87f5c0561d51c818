"""Random stacks against a model: single layers are applied, neighbours merged, and what is left
still shows what it must.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from conftest import make_world
from operations import OPERATIONS, Operation
from stacks import Stack, directory

FLAVOURS = pytest.mark.parametrize("flavour", ["trusted", "user", "idmap"])


@FLAVOURS
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    first=st.lists(OPERATIONS, max_size=12),
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
        whole = stack.expected()
        numbers = stack.world.stack.numbers
        if data.draw(st.booleans(), label="merge"):
            start = data.draw(st.integers(0, len(numbers) - 2))
            end = data.draw(st.integers(start + 2, len(numbers)))
            stack.merge(numbers[start:end])
        for number in data.draw(st.permutations(numbers)):
            if not stack.depends(number)[2]:
                stack.apply([number])
                assert stack.on_host() == stack.host
                assert stack.seen(stack.world.stack.numbers) == [whole]
        stack.apply()
        assert stack.on_host() == whole
