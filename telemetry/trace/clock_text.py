"""Points in time as a line holds them: RFC 3339, UTC, always six decimals and `Z` (trace.md §2).

Times are integers of microseconds since 1970-01-01T00:00:00Z. Years 0001 to 9999; no leap
seconds, which Unix time does not count. The calendar is the proleptic Gregorian one.

Invariant: `parse_ts(format_ts(us)) == us`, and `format_ts(parse_ts(text)) == text`.
"""

from __future__ import annotations

import time

MIN_US = -62_135_596_800 * 1_000_000  # 0001-01-01T00:00:00.000000Z
MAX_US = 253_402_300_800 * 1_000_000 - 1  # 9999-12-31T23:59:59.999999Z

_DIGIT_PLACES = (0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18, 20, 21, 22, 23, 24, 25)
_DIGITS = frozenset("0123456789")
_MONTH_DAYS = (0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

#: the second that was written or read last: events come many a second
_last_written = (0, "1970-01-01T00:00:00.")
_last_read = ("1970-01-01T00:00:00.", 0)


def format_ts(us_since_epoch: int) -> str:
    """`2025-11-21T03:40:51.000123Z`. Raises ValueError outside the years 0001 to 9999."""
    global _last_written
    second, fraction = divmod(us_since_epoch, 1_000_000)
    last = _last_written
    if second != last[0]:
        if not MIN_US <= us_since_epoch <= MAX_US:
            raise ValueError(f"{us_since_epoch} µs lies outside the years 0001 to 9999")
        t = time.gmtime(second)
        last = _last_written = (
            second,
            f"{t[0]:04}-{t[1]:02}-{t[2]:02}T{t[3]:02}:{t[4]:02}:{t[5]:02}.",
        )
    return f"{last[1]}{fraction:06}Z"


def parse_ts(text: str) -> int:
    """Microseconds since the epoch of a time in exactly the form of `format_ts`.

    Raises ValueError for any other form, and for dates that do not exist.
    """
    global _last_read
    head, tail = text[:20], text[20:]
    if len(text) != 27 or tail[6] != "Z" or not _DIGITS.issuperset(tail[:6]):
        raise ValueError(f"{text[:64]!r} is not of the form 2025-11-21T03:40:51.000123Z")
    last = _last_read
    if head != last[0]:
        last = _last_read = (head, _second(text))
    return last[1] * 1_000_000 + int(tail[:6])


def _second(text: str) -> int:
    if not (
        text[4] == text[7] == "-"
        and text[10] == "T"
        and text[13] == text[16] == ":"
        and text[19] == "."
        and all(text[place] in _DIGITS for place in _DIGIT_PLACES)
    ):
        raise ValueError(f"{text!r} is not of the form 2025-11-21T03:40:51.000123Z")
    year, month, day = int(text[:4]), int(text[5:7]), int(text[8:10])
    hour, minute, second = int(text[11:13]), int(text[14:16]), int(text[17:19])
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if not (
        year >= 1
        and 1 <= month <= 12
        and 1 <= day <= _MONTH_DAYS[month]
        and (leap or (month, day) != (2, 29))
        and hour < 24
        and minute < 60
        and second < 60
    ):
        raise ValueError(f"{text!r} does not exist")
    # Count years from March, so that the leap day is the last of its year.
    year -= month < 3
    days = year * 365 + year // 4 - year // 100 + year // 400
    days += (153 * ((month - 3) % 12) + 2) // 5 + day - 1 - 719_468
    return days * 86_400 + hour * 3600 + minute * 60 + second
