"""Whether the lines of an apply's journal are such as an apply writes (journal.py).

Not what they mean (recover.py). Every field that recovery uses has its type here, and names are
single ones: a journal that was damaged is told as that, before anything is touched. Fields that
are not listed are not looked at. Spec: world.md §5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_KINDS = ("create", "replace", "delete", "meta")

Check = Callable[[Any], bool]


def _count(found: Any) -> bool:
    return type(found) is int and found >= 0


def _text(found: Any) -> bool:
    return type(found) is str and "\0" not in found


def _name(found: Any) -> bool:
    return _text(found) and "/" not in found and found not in (".", "..")


def _identifier(found: Any) -> bool:
    return type(found) is str and found != "" and set(found) <= set("0123456789abcdef")


def _target(found: Any) -> bool:
    return _text(found) and found.startswith("/")


def _parent(found: Any) -> bool:
    return _text(found) and not found.startswith("/")


def _identity(found: Any) -> bool:
    whole = type(found) is list and len(found) == 8
    return whole and _text(found[0]) and all(type(number) is int for number in found[1:])


def _saved(found: Any) -> bool:
    return type(found) is dict and _count(found.get("inode"))


def _optional(check: Check) -> Check:
    return lambda found: found is None or check(found)


_DIRECTORY: dict[str, Check] = {"target": _target, "parent": _parent}
_FIELDS: dict[str, dict[str, Check]] = {
    "begin": {"id": _identifier, "reverse": _optional(_count), "undo": _optional(_count)},
    "intent": {
        **_DIRECTORY,
        "n": _count,
        "mount": _count,
        "operation": lambda found: found in _KINDS,
        "name": _name,
        "before": _optional(_identity),
        "source": _optional(_identity),
        "saved": _optional(_saved),
        "ctime_ns": _optional(_count),
    },
    "staged": {"n": _count, "after": _identity},
    "made": {"n": _count, "inode": _count},
    "copied": {"n": _count},
    "private": {**_DIRECTORY, "inode": _count},
    "widen": {**_DIRECTORY, "before": _identity},
    "open": {**_DIRECTORY, "before": _identity},
    "ready": {},
    "committed": {},
}


def what_is_wrong(line: Any, number: int) -> str:
    """A sentence about line `number` (from 1) that cannot be one of an apply; "" for a good one."""
    if type(line) is not dict or line.get("type") not in tuple(_FIELDS):
        return "it is no line of an apply"
    kind = line["type"]
    if (kind == "begin") != (number == 1):
        return f"a {kind!r} does not stand there"
    for name, check in _FIELDS[kind].items():
        if not check(line.get(name)):
            return f"its {name!r} cannot be {line.get(name)!r}"
    if kind == "intent":
        needed = {"replace": ("before",), "delete": ("before",), "meta": ("before", "saved")}
        for name in needed.get(line["operation"], ()):
            if line.get(name) is None:
                return f"it has no {name!r}"
    return ""
