"""The chain as pure state: every line is `encode_line` of its envelope, rollback is exact."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.errors import UsageError
from substrate.telemetry.trace.chain import Chain
from substrate.telemetry.trace.check import BadLine, LineChecker
from substrate.telemetry.trace.envelope import COMPONENTS, Event, build_envelope
from substrate.telemetry.trace.ids import new_session_id, new_span_id
from substrate.telemetry.trace.line import encode_line
from substrate.telemetry.trace.parsing import parse_line
from substrate.telemetry.trace.rfc8785 import CanonicalError

SESSION = new_session_id()
SPANS = [new_span_id() for _ in range(3)]
WALL_US, BOOT_US = 1_700_000_000_123_456, 987_654_321

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
events = st.builds(
    Event,
    event_type=st.sampled_from(["annotation", "process_exit", "command_start", "x_unknown9"]),
    component=st.sampled_from(sorted(COMPONENTS)),
    origin=st.sampled_from(["observed", "reported", "imported"]),
    body=st.dictionaries(texts, values, max_size=5),
    span_id=st.none() | st.sampled_from(SPANS),
    parent_span_id=st.none() | st.sampled_from(SPANS),
)


def named(event: Event, producer: str | None, number: int) -> Event:
    fields = {name: getattr(event, name) for name in Event.__slots__}
    if producer is not None:
        fields.update(producer=producer, producer_seq=number)
    return Event(**fields)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(events, st.none() | texts.filter(bool)), min_size=1, max_size=6))
def test_lines_are_the_canonical_form_of_their_envelopes(given) -> None:
    chain, counters = Chain(SESSION), {}
    for plain, producer in given:
        event = named(plain, producer, counters.get(producer, 0))
        counters[producer] = counters.get(producer, 0) + 1
        expected = encode_line(
            build_envelope(
                event,
                session_id=SESSION,
                seq=chain.next_seq,
                prev_hash=chain.head,
                ts=WALL_US,
                mono_us=BOOT_US,
            )
        )
        assert chain.extend(event, WALL_US, BOOT_US) == expected + b"\n"
        assert chain.head == hashlib.sha256(expected).hexdigest()


@settings(max_examples=100, deadline=None)
@given(st.lists(events, max_size=5), st.lists(events, min_size=1, max_size=5), st.data())
def test_restore_forgets_exactly_what_came_after(before, after, data) -> None:
    one, other = Chain(SESSION), Chain(SESSION)
    for event in before:
        one.extend(event, WALL_US, BOOT_US)
        other.extend(event, WALL_US, BOOT_US)
    state = one.state()
    for number, event in enumerate(after):
        one.extend(named(event, "p", number * 2), WALL_US, BOOT_US)
    one.restore(state)
    assert one.state() == other.state()
    last = data.draw(events)
    assert one.extend(last, WALL_US, BOOT_US) == other.extend(last, WALL_US, BOOT_US)


def nested(depth: int) -> dict[str, object]:
    body: dict[str, object] = {}
    for _ in range(depth - 1):
        body = {"x": body}
    return body


def test_depth_counts_the_envelope_too() -> None:
    chain = Chain(SESSION)
    chain.extend(Event(event_type="error", component="shell", body=nested(31)), WALL_US, BOOT_US)
    with pytest.raises(CanonicalError, match="nested deeper"):
        chain.extend(
            Event(event_type="error", component="shell", body=nested(32)), WALL_US, BOOT_US
        )
    assert chain.next_seq == 1


def test_a_line_of_a_mebibyte_and_no_more() -> None:
    chain = Chain(SESSION)
    body = {f"k{n}": "x" * 262_000 for n in range(4)}
    empty = len(chain.extend(Event(event_type="error", component="shell", body=body), 0, 0)) - 1
    body["pad"] = "y" * ((1 << 20) - empty - len(',"pad":""'))
    chain = Chain(SESSION)
    line = chain.extend(Event(event_type="error", component="shell", body=body), 0, 0)
    assert len(line) == (1 << 20) + 1
    body["pad"] += "y"
    with pytest.raises(CanonicalError, match="limit"):
        Chain(SESSION).extend(Event(event_type="error", component="shell", body=body), 0, 0)


@pytest.mark.parametrize("mono_us", [-1, 2**53, True, 1.0])
def test_a_time_that_is_no_count_is_refused(mono_us) -> None:
    with pytest.raises(UsageError):
        Chain(SESSION).extend(
            Event(event_type="error", component="shell", body={}), WALL_US, mono_us
        )


@settings(max_examples=100, deadline=None)
@given(st.lists(events, min_size=1, max_size=8), st.data())
def test_the_checker_accepts_the_chain_and_no_other_byte(given, data) -> None:
    chain = Chain(SESSION)
    lines = [chain.extend(event, WALL_US, BOOT_US)[:-1] for event in given]
    for size in (1, 3, 8):
        checker = LineChecker()
        for start in range(0, len(lines), size):
            checker.check(lines[start : start + size])
        assert (checker.seq, checker.head, checker.offset) == (len(lines), chain.head, chain.size)
    which = data.draw(st.integers(0, len(lines) - 1))
    place = data.draw(st.integers(0, len(lines[which]) - 1))
    changed = bytearray(lines[which])
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    damaged = [*lines[:which], bytes(changed), *lines[which + 1 :]]
    checker = LineChecker(session_id=SESSION)
    try:
        checker.check(damaged)
    except BadLine as bad:
        assert bad.seq in (which, which + 1)
        assert [parse_line(line) for line in damaged[: bad.seq]] == bad.before
    else:  # only a change of the last line is found by nothing but its hash
        assert which == len(lines) - 1
        assert checker.head != chain.head
