from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.telemetry.trace.clock_text import MAX_US, MIN_US, format_ts, parse_ts


@given(st.integers(MIN_US, MAX_US))
def test_times_are_those_of_the_calendar_and_read_back(us):
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
    assert format_ts(us) == moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
    assert parse_ts(format_ts(us)) == us


@pytest.mark.parametrize("us", [MIN_US - 1, MAX_US + 1])
def test_years_of_other_lengths_are_refused(us):
    with pytest.raises(ValueError, match="outside the years"):
        format_ts(us)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2025-11-21T03:40:51Z",
        "2025-11-21T03:40:51.123Z",
        "2025-11-21T03:40:51.1234567Z",
        "2025-11-21T03:40:51.123456z",
        "2025-11-21t03:40:51.123456Z",
        "2025-11-21 03:40:51.123456Z",
        "2025-11-21T03:40:51,123456Z",
        "2025-11-21T03:40:51.12345+Z",
        "2025-11-21T03:40:51.12345\u0661Z",
        "202\u0665-11-21T03:40:51.123456Z",
        "2025-13-21T03:40:51.123456Z",
        "2025-00-21T03:40:51.123456Z",
        "2025-11-31T03:40:51.123456Z",
        "2025-02-29T03:40:51.123456Z",
        "1900-02-29T03:40:51.123456Z",
        "2025-11-21T24:00:00.000000Z",
        "2025-11-21T03:60:51.123456Z",
        "2025-11-21T03:40:60.123456Z",
        "0000-11-21T03:40:51.123456Z",
    ],
)
def test_any_other_form_is_refused(text):
    with pytest.raises(ValueError, match=r"is not of the form|does not exist"):
        parse_ts(text)


def test_a_refused_time_is_refused_again():
    for _ in range(2):
        with pytest.raises(ValueError, match="does not exist"):
            parse_ts("2025-02-30T03:40:51.123456Z")
