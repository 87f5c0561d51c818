"""Times, sizes and counts as people write them in files, variables and flags.

Pure; hot path. Invariant: seconds as float, bytes and counts as int, none of them negative; anything
else raises ValueError whose message says what was expected.
"""

from __future__ import annotations

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_TIMES = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MAX_SECONDS = 366 * 86400.0
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def split_number(raw: object, expected: str) -> tuple[float, str]:
    """(the number, its unit in small letters)."""
    if isinstance(raw, (int, float)) and not isinstance(raw, bool):
        number, unit = float(raw), ""
    elif isinstance(raw, str):
        digits = raw.strip().rstrip(_LETTERS)
        unit = raw.strip()[len(digits) :].lower()
        plain = digits.strip()
        if not plain.isascii() or not plain.replace(".", "", 1).isdigit():
            raise ValueError(expected)
        number = float(plain)
    else:
        raise ValueError(expected)
    if not 0 <= number < 1e18:  # also refuses nan
        raise ValueError(expected)
    return number, unit


def parse_seconds(raw: object) -> float:
    """30, 1.5, "500ms", "5m", "1h"."""
    expected = "a time such as 30, 1.5, 500ms, 5m or 1h"
    number, unit = split_number(raw, expected)
    if unit not in _TIMES or number * _TIMES[unit] > _MAX_SECONDS:
        raise ValueError(expected)
    return number * _TIMES[unit]


def parse_size(raw: object) -> int:
    """Bytes: 4096, "512k", "16m", "4g"."""
    expected = "a size such as 4096, 512k, 16m or 4g"
    number, unit = split_number(raw, expected)
    unit = unit.removesuffix("b").removesuffix("i")
    if unit not in _UNITS or number * _UNITS[unit] >= 2**63:
        raise ValueError(expected)
    return int(number * _UNITS[unit])


def parse_count(raw: object) -> int:
    number, unit = split_number(raw, "a whole number")
    if unit or number != int(number):
        raise ValueError("a whole number")
    return int(number)


def render_size(size: int) -> str:
    """Bytes in the largest unit that they are a whole number of."""
    for unit in "tgmk":
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)
