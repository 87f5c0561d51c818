"""The body of an event made ahead of its line: the chain makes the same of it, or says no."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.errors import SubstrateError
from substrate.telemetry.trace.body_bytes import body_bytes, without_secrets
from substrate.telemetry.trace.canonical import accelerate
from substrate.telemetry.trace.chain import Chain
from substrate.telemetry.trace.envelope import Event

SESSION = "ses_018f7a5b-0000-7000-8000-000000000000"
accelerate()

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**54), 2**54)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["--password=hunter2", "ghp_" + "a" * 36, "/usr/bin/env", "\ud800", b"x"])
)
keys = st.text(max_size=3) | st.sampled_from(["password", "argv", "b64", "\ue000", "\U0001f600", 1])
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=2).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=10,
)


def nested(depth: int) -> object:
    value: object = []
    for _ in range(depth):
        value = [value]
    return value


def line_of(event: Event, body: bytes | None) -> tuple[bytes | None, str]:
    try:
        return Chain(SESSION).extend(event, 1_700_000_000_000_000, 7, body), ""
    except (SubstrateError, ValueError, TypeError, AttributeError) as problem:
        return None, repr(problem)


def assert_same_line(body: object, **envelope: object) -> None:
    event = Event(event_type="annotation", component="shell", body=body, **envelope)  # type: ignore[arg-type]
    try:
        expected = line_of(without_secrets(event), None)
    except (TypeError, AttributeError):  # a key that is no text, which the redactor refuses
        with pytest.raises((TypeError, AttributeError)):
            body_bytes(event)
        return
    for _ in range(2):
        made = body_bytes(event)
        if made is None:
            continue
        assert expected[0] is not None
        assert line_of(event, made) == expected


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(keys, values, max_size=5))
def test_the_line_is_that_of_the_event_without_its_secrets(body) -> None:
    assert_same_line(body)


@pytest.mark.parametrize("containers", [30, 31, 32, 33])
def test_a_body_that_needs_the_whole_line_is_handed_back(containers) -> None:
    assert_same_line({"a": nested(containers - 2)})
    event = Event(event_type="annotation", component="shell", body={"a": nested(containers - 2)})
    assert (body_bytes(event) is None) == (containers >= 32)


@pytest.mark.parametrize("body", [{"n": 1.5}, {"n": 2**53}, {"x": "\ud800"}, [], None])
def test_a_body_that_is_no_line_is_handed_back(body) -> None:
    event = Event(event_type="annotation", component="shell", body=body)
    assert body_bytes(event) is None


def test_a_cycle_is_handed_back() -> None:
    body: dict[str, object] = {}
    body["self"] = body
    assert body_bytes(Event(event_type="annotation", component="shell", body=body)) is None


def test_the_records_own_events_are_not_redacted() -> None:
    body = {"producer": "--password=hunter2", "from": 1, "to": 2}
    made = body_bytes(Event(event_type="gap", component="shell", body=body))
    assert made is not None
    assert b"hunter2" in made
