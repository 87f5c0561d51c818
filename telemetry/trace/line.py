"""One line of a trace: the profile of canonical JSON that is chained, and its fast paths.

What it is: `encode_line`, the only function that makes the bytes of a line.
What it is not: it does not know envelope keys or event types (`envelope`).

The profile: no floats; integers within ±(2^53-1); at most 32 containers inside one another,
the line's own object being the first; strings (keys too) of at most 256 KiB of UTF-8; lines
of at most 1 MiB without the newline.

Invariant: whichever path runs, the bytes are those of `rfc8785.encode`. A fast encoder is
given a value only after a walk has seen that every type is exactly str, int, bool, None,
list, tuple or dict, and its output is used only if every key lies below U+E000, where the
orders of code points, of UTF-8 bytes and of UTF-16 code units are one and the same.
orjson is used when somebody has loaded it, or after `accelerate()`; else `_json`'s encoder.
Spec: trace.md §2.
"""

from __future__ import annotations

import sys
from _json import encode_basestring, make_encoder
from itertools import chain

from .rfc8785 import MAX_INT, CanonicalError, encode, int_range

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

MAX_DEPTH = 32
MAX_STRING_BYTES = 256 * 1024
MAX_LINE_BYTES = 1024 * 1024

_SCALARS = frozenset((str, int, bool, type(None)))
_STRINGS = frozenset((str,))


def encode_line(obj: dict[str, Any]) -> bytes:
    """The canonical form of one line of a trace, without its newline.

    Raises CanonicalError if `obj` is outside the profile (see the module).
    """
    if type(obj) is not dict:
        raise CanonicalError(f"a line is an object, not {type(obj).__name__}", "not_object")
    dumps = _orjson_dumps or _find_orjson()
    if dumps is None:
        return _finished(obj, _stdlib_dumps(obj))
    check_types(obj, 1)
    try:
        line = dumps(obj)
    except TypeError as problem:
        _explain(obj, problem)
    return _finished(obj, line)


def encode_plain(obj: dict[str, Any]) -> bytes:
    """`encode_line` of an object in which `check_types` would find nothing to refuse."""
    dumps = _orjson_dumps or _find_orjson()
    if dumps is None:
        return encode_line(obj)
    try:
        line = dumps(obj)
    except TypeError as problem:
        _explain(obj, problem)
    return line if line.isascii() and len(line) <= MAX_STRING_BYTES else _finished(obj, line)


def _finished(obj: dict[str, Any], line: bytes) -> bytes:
    """What a fast encoder gave, with the keys in the right order and the sizes looked at."""
    if not line.isascii() and not keys_sort_alike(obj):
        line = encode(obj)
    if len(line) > MAX_STRING_BYTES:
        check_sizes(obj, len(line))
    return line


def accelerate() -> None:
    """Load orjson for the fast path. Costs some 15 ms: for readers and daemons, not for `-c`."""
    import orjson  # noqa: F401 - _find_orjson looks into sys.modules

    _find_orjson()


_orjson_dumps: Callable[[Any], bytes] | None = None


def _find_orjson() -> Callable[[Any], bytes] | None:
    global _orjson_dumps
    orjson: Any = sys.modules.get("orjson")
    # What another thread is still importing has no `dumps` yet.
    dumps = getattr(orjson, "dumps", None)
    if dumps is None:
        return None
    options = (
        orjson.OPT_SORT_KEYS
        | orjson.OPT_STRICT_INTEGER
        | orjson.OPT_PASSTHROUGH_SUBCLASS
        | orjson.OPT_PASSTHROUGH_DATACLASS
        | orjson.OPT_PASSTHROUGH_DATETIME
    )

    def orjson_dumps(value: Any) -> bytes:
        line: bytes = dumps(value, None, options)
        return line

    _orjson_dumps = orjson_dumps
    return orjson_dumps


def same_bytes(value: Any, expected: bytes) -> bool:
    """True if orjson writes `value`, in our options, as `expected`.

    Of what orjson.loads has made, only floats and depth are left to check (`free_of_floats`).

    Raises TypeError for what orjson refuses. `accelerate()` must have been called.
    """
    dumps = _orjson_dumps or _find_orjson()
    return dumps is not None and dumps(value) == expected


def check_types(container: Any, depth: int) -> None:
    """What orjson would not refuse by itself: floats, types of its own, depth.

    It does refuse keys that are not str, integers beyond ±(2^53-1) and lone surrogates.
    """
    items = container.values() if type(container) is dict else container
    if _SCALARS.issuperset(map(type, items)):
        return
    for item in items:
        kind = type(item)
        if kind is dict or kind is list or kind is tuple:
            if depth >= MAX_DEPTH:
                raise CanonicalError(f"nested deeper than {MAX_DEPTH}", "depth")
            check_types(item, depth + 1)
        elif kind not in _SCALARS:
            _refuse(item)


def free_of_floats(objs: list[dict[str, Any]]) -> bool:
    """True if no value in lines that orjson has read is a float, and none stands too deep.

    The same as `check_types` on each, level by level over all of them, so that the loops run
    in C: half the time, and a quarter of what verifying a trace costs.
    """
    dicts: list[Any] = objs
    lists: list[Any] = []
    for _ in range(MAX_DEPTH):
        items = list(chain.from_iterable(map(dict.values, dicts)))
        items += chain.from_iterable(lists)
        kinds = set(map(type, items))
        if float in kinds:
            return False
        dicts = [item for item in items if type(item) is dict] if dict in kinds else []
        lists = [item for item in items if type(item) is list] if list in kinds else []
        if not dicts and not lists:
            return True
    return False


def check_profile(container: Any, depth: int = 1) -> None:
    """Refuse types, integers and depths that are not of the profile. Not sizes, not Unicode.

    `container` is a dict, list or tuple at `depth`. A cycle ends at the limit of depth.
    """
    if type(container) is dict:
        if not _STRINGS.issuperset(map(type, container)):
            raise CanonicalError("an object key is not a string", "key_type")
        container = container.values()
    for item in container:
        kind = type(item)
        if kind is str or kind is bool or item is None:
            continue
        if kind is int:
            if not -MAX_INT <= item <= MAX_INT:
                raise int_range()
        elif kind is dict or kind is list or kind is tuple:
            if depth >= MAX_DEPTH:
                raise CanonicalError(f"nested deeper than {MAX_DEPTH}", "depth")
            check_profile(item, depth + 1)
        else:
            _refuse(item)


def _refuse(item: object) -> NoReturn:
    if type(item) is float:
        raise CanonicalError("a trace holds no floats", "float")
    raise CanonicalError(f"{type(item).__name__} is not JSON", "type")


def _explain(obj: dict[str, Any], problem: TypeError) -> NoReturn:
    """Say precisely what orjson refused."""
    check_profile(obj)
    encode(obj)
    raise AssertionError("orjson refused what RFC 8785 allows") from problem


# markers=None: no search for cycles, the limit of depth has excluded them.
_compact = make_encoder(None, _refuse, encode_basestring, None, ":", ",", True, False, False)


def _stdlib_dumps(obj: dict[str, Any]) -> bytes:
    check_profile(obj)
    try:
        return "".join(_compact(obj, 0)).encode()
    except UnicodeEncodeError as problem:
        raise CanonicalError(f"not valid Unicode: {problem}", "surrogate") from problem


def check_sizes(obj: dict[str, Any], line_bytes: int) -> None:
    """Refuse a line of more than 1 MiB, or a string or key in it of more than 256 KiB."""
    if line_bytes > MAX_LINE_BYTES:
        raise CanonicalError(
            f"the line has {line_bytes} bytes, the limit is {MAX_LINE_BYTES}", "line_size"
        )
    for text in strings(obj):
        # At most 3 bytes a UTF-16 unit, 4 a character: most strings need no encoding here.
        if len(text) * 4 > MAX_STRING_BYTES and len(text.encode()) > MAX_STRING_BYTES:
            raise CanonicalError(
                f"a string has {len(text.encode())} bytes, the limit is {MAX_STRING_BYTES}",
                "string_size",
            )


def strings(value: Any) -> Iterator[str]:
    """Every string and key of a JSON value, in no particular order, without recursion."""
    left = [value]
    while left:
        item = left.pop()
        if type(item) is str:
            yield item
        elif type(item) is dict:
            yield from item
            left.extend(item.values())
        elif type(item) is list or type(item) is tuple:
            left.extend(item)


def keys_sort_alike(value: Any) -> bool:
    """True if every key lies below U+E000, so that all three orders of keys agree."""
    left = [value]
    while left:
        item = left.pop()
        if type(item) is dict:
            keys = "".join(item)
            if not keys.isascii() and max(keys) >= "\ue000":
                return False
            left.extend(item.values())
        elif type(item) is list or type(item) is tuple:
            left.extend(item)
    return True
