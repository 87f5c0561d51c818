import os
import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.errors import UsageError
from substrate.telemetry.trace import ids


@given(st.integers(0, 2**48 * 10**6 - 1), st.binary(min_size=8, max_size=8))
def test_a_uuid_has_version_7_the_rfc_variant_and_the_time_in_front(time_ns, random):
    made = uuid.UUID(ids.uuid7(time_ns, random))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == time_ns // 1_000_000


@given(
    st.integers(0, 2**48 * 10**6 - 1), st.integers(1000, 10**9), st.binary(min_size=16, max_size=16)
)
def test_ids_made_a_microsecond_apart_sort_in_that_order(time_ns, later, random):
    assert ids.uuid7(time_ns, random[:8]) < ids.uuid7(
        min(time_ns + later, 2**48 * 10**6 - 1), b"\xff" * 8
    )


def test_clock_and_randomness_are_parameters():
    span = ids.new_span_id(lambda: 1_700_000_000_123_000_000, lambda size: b"\0" * size)
    assert span == "spn_018bcfe5-687b-7000-8000-000000000000"


def test_new_ids_are_valid_and_differ():
    made = {ids.new_session_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(map(ids.is_session_id, made))
    assert not any(map(ids.is_span_id, made))


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "ses_",
        None,
        7,
        "ses_018bcfe5-687b-7000-8000-00000000000",
        "ses_018bcfe5-687b-7000-8000-0000000000000",
        "ses_018bcfe5-687b-4000-8000-000000000000",
        "ses_018bcfe5-687b-7000-c000-000000000000",
        "ses_018BCFE5-687b-7000-8000-000000000000",
        "ses_018bcfe5_687b-7000-8000-000000000000",
        "ses_018bcfe5-687b-7000-8000-00000000000\u0660",
        "ses_../../../../../../../../../../etc/passw",
    ],
)
def test_what_is_not_exactly_an_id_is_refused(wrong):
    assert not ids.is_session_id(wrong)


def test_opentelemetry_ids_are_derived():
    session = ids.new_session_id()
    span = ids.new_span_id()
    assert uuid.UUID(ids.otel_trace_id(session)) == uuid.UUID(session[4:])
    assert bytes.fromhex(ids.otel_span_id(span)) == uuid.UUID(span[4:]).bytes[8:]


SPANS = [ids.uuid7(time.time_ns() + n, os.urandom(7) + bytes([n])) for n in (1, 2)]
SPANS = [f"spn_{text}" for text in SPANS]


def test_a_unique_end_of_an_id_names_the_span():
    assert ids.match_span(SPANS[0][-9:], SPANS) == SPANS[0]
    assert ids.match_span(SPANS[1][-9:].upper(), SPANS) == SPANS[1]
    assert ids.match_span(SPANS[1][-15:], SPANS) == SPANS[1]
    assert ids.match_span(SPANS[1], SPANS) == SPANS[1]


def test_an_end_that_fits_two_spans_is_refused_and_says_which():
    with pytest.raises(UsageError, match="2 spans") as problem:
        ids.match_span("0", [span[:-1] + "0" for span in SPANS])
    assert SPANS[0][:-1] in str(problem.value)


@pytest.mark.parametrize("wanted", ["", "spn_", "xyz", "last"])
def test_what_is_no_end_of_an_id_is_refused(wanted):
    with pytest.raises(UsageError, match="no span id"):
        ids.match_span(wanted, SPANS)


def test_an_unknown_end_is_refused():
    with pytest.raises(UsageError, match="no span's id ends"):
        ids.match_span("ffffffff", SPANS)
