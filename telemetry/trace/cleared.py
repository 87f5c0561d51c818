"""What the redactor has already found clean, so that it need not look again.

A memo in front of `redact_body`, for the writer: paths, keys and argument lists come again
and again, and a look into a set costs a tenth of a look by the rules. It knows no rule. It
follows the redactor in what it takes as one: a key apart from its value, an array of text
as a whole (an argument list: what a word is depends on the one before it), any other text
by itself. Objects come again too, with other values under the same keys: what keys and types
decide is kept as a plan, which leaves only the texts and containers to be looked at.

Invariant: a body passes without the redactor only if each of those parts has passed the
redactor unchanged before; and `is_clear` is true only of bodies whose every value is exactly
a str, int, bool, None, list, tuple or dict, as deep as a line allows. Memory is bounded.
trace.md §6.
"""

from __future__ import annotations

from _operator import itemgetter  # `operator` itself is a module of Python's, and large
from itertools import chain

from substrate.telemetry.trace.known_keys import KEYS, NAMING
from substrate.telemetry.trace.line import MAX_DEPTH
from substrate.telemetry.trace.redact import may_hold_secret, redact_body

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    #: the texts of an object, and the keys of its containers
    Plan = tuple[Callable[[dict[str, Any]], tuple[str, ...]], tuple[str, ...]]

_MOST = 8192
_LONGEST_TEXT = 512
_LONGEST_ARRAY = 32
_MOST_PLANS = 512
_LONGEST_PLAN = 32
#: a text that no rule takes for anything: what happens to it under a key is the key's doing
_PROBE = "x"

_INERT = frozenset((int, bool, type(None)))
_TEXT = frozenset((str,))
_CONTAINERS = frozenset((dict, list, tuple))
_ROWS = frozenset((list,))
_CELLS = _INERT | _TEXT
_ROWS_AT_ONCE = 32
_PLAIN = _INERT | _TEXT | _CONTAINERS

#: keys that are clean themselves; those in _naming make a secret of a text below them
_keys: set[str] = set(KEYS)
_naming: set[str] = set(NAMING)
_texts: set[str] = set()
_arrays: set[tuple[str, ...]] = set()
#: by the keys of an object followed by the types of its values
_plans: dict[tuple[Any, ...], Plan] = {}


def redacted(body: dict[str, Any]) -> dict[str, Any]:
    """`redact_body(body)`: the same object if there is nothing to redact."""
    if is_clear(body):
        return body
    safe: dict[str, Any] = redact_body(body)
    return safe


def is_clear(obj: dict[str, Any], depth: int = 1) -> bool:
    """True if there is nothing to redact in `obj`, and no value of a type that no line holds.

    False proves neither. What is left to check of a line: integers, Unicode and sizes.
    """
    shape = (*obj, *map(type, obj.values()))
    plan = _plans.get(shape) or _new_plan(obj, shape)
    if plan is None:
        return False
    texts, containers = plan
    if not _texts.issuperset(texts(obj)) and not all(map(_text_is_clear, texts(obj))):
        return False
    for key in containers:
        if depth >= MAX_DEPTH:
            return False
        item = obj[key]
        if not (is_clear if type(item) is dict else _array_is_clear)(item, depth + 1):
            return False
    return True


def _new_plan(obj: dict[str, Any], shape: tuple[Any, ...]) -> Plan | None:
    if not (all(map(_key_is_clear, obj)) and _PLAIN.issuperset(map(type, obj.values()))):
        return None
    text_keys = tuple(key for key, item in obj.items() if type(item) is str)
    # Asked of the redactor's memo last: a key that came first can have been forgotten since.
    if not _naming.isdisjoint(text_keys) or not _keys.issuperset(text_keys):
        return None
    plan = _texts_of(text_keys), tuple(k for k, item in obj.items() if type(item) in _CONTAINERS)
    if len(obj) <= _LONGEST_PLAN:
        if len(_plans) >= _MOST_PLANS:
            _plans.clear()
        _plans[shape] = plan
    return plan


def _texts_of(keys: tuple[str, ...]) -> Callable[[dict[str, Any]], tuple[str, ...]]:
    """A function that takes the values of `keys` out of an object, always as a tuple."""
    if len(keys) > 1:
        return itemgetter(*keys)
    return lambda obj: tuple([obj[key] for key in keys])


def _array_is_clear(items: Sequence[Any], depth: int) -> bool:
    kinds = set(map(type, items))
    if kinds <= _INERT:
        return True
    if kinds == _TEXT:
        words = tuple(items)
        return words in _arrays or _words_are_clear(words)
    if kinds == _ROWS and depth < MAX_DEPTH and _rows_are_clear(items):
        return True
    if not kinds <= _PLAIN or (depth >= MAX_DEPTH and not kinds.isdisjoint(_CONTAINERS)):
        return False
    for item in items:
        kind = type(item)
        if kind is str:
            if item not in _texts and not _text_is_clear(item):
                return False
        elif kind is list or kind is tuple:
            if not _array_is_clear(item, depth + 1):
                return False
        elif kind is dict and not is_clear(item, depth + 1):
            return False
    return True


def _rows_are_clear(rows: Sequence[list[Any]]) -> bool:
    """Rows of a batch: numbers and texts, a number first, so that no row is an argument list. All
    texts of some rows are looked at as one: what the redactor would look at in a text, it would
    look at there as well (redact.may_hold_secret finds by parts and by words)."""
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[first : first + _ROWS_AT_ONCE]
        cells = list(chain.from_iterable(some))
        if not _CELLS.issuperset(map(type, cells)):
            return False
        if not all(row and type(row[0]) is int for row in some):
            return False
        if may_hold_secret("\n".join([cell for cell in cells if type(cell) is str])):
            return False
    return True


def _key_is_clear(key: Any) -> bool:
    if key in _keys:
        return True
    # `b64` holds bytes that the redactor decodes, so the text alone says nothing.
    if type(key) is not str or key == "b64":
        return False
    without_text: dict[str, Any] = {key: None}
    if redact_body(without_text) is not without_text:
        return False
    with_text = {key: _PROBE}
    if redact_body(with_text) is not with_text:
        if len(key) > _LONGEST_TEXT:
            return False
        _remember(_naming, key, len(key))
    return _remember(_keys, key, len(key))


def _text_is_clear(text: str) -> bool:
    return redact_body(text) is text and _remember(_texts, text, len(text))


def _words_are_clear(words: tuple[str, ...]) -> bool:
    if redact_body(words) is not words:
        return False
    if len(words) > _LONGEST_ARRAY:
        return True
    return _remember(_arrays, words, sum(map(len, words)))


def _remember(known: set[Any], item: Any, size: int) -> bool:
    if size <= _LONGEST_TEXT:
        if len(known) >= _MOST:
            known.clear()
            if known is _naming:
                _keys.clear()  # whose verdicts depend on it
        known.add(item)
    return True
