"""What the redactor has already found clean, so that it need not look again.

A memo in front of `redact_body`, for the writer: paths, keys and argument lists come again
and again, and a look into a set costs a tenth of a look by the rules. It knows no rule. It
follows the redactor in what it takes as one: a key apart from its value, an array of text
as a whole (an argument list: what a word is depends on the one before it), any other text
by itself.

Invariant: a body passes without the redactor only if each of those parts has passed the
redactor unchanged before. Memory is bounded. trace.md §6.
"""

from __future__ import annotations

from substrate.telemetry.trace.redact import redact_body

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_MOST = 8192
_LONGEST_TEXT = 512
_LONGEST_ARRAY = 32
#: a text that no rule takes for anything: what happens to it under a key is the key's doing
_PROBE = "x"

_INERT = frozenset((int, bool, type(None)))
_TEXT = frozenset((str,))

#: keys that are clean themselves; those in _naming make a secret of a text below them
_keys: set[str] = set()
_naming: set[str] = set()
_texts: set[str] = set()
_arrays: set[tuple[str, ...]] = set()


def redacted(body: dict[str, Any]) -> dict[str, Any]:
    """`redact_body(body)`: the same object if there is nothing to redact."""
    if _object_is_clear(body):
        return body
    safe: dict[str, Any] = redact_body(body)
    return safe


def _object_is_clear(obj: dict[str, Any]) -> bool:
    # Asked again at the end: a key that was met first can have been forgotten for the last.
    if not _keys.issuperset(obj) and not (all(map(_key_is_clear, obj)) and _keys.issuperset(obj)):
        return False
    names_secrets = not _naming.isdisjoint(obj)
    for key, item in obj.items():
        kind = type(item)
        if kind is str:
            if names_secrets and key in _naming:
                return False
            if item not in _texts and not _text_is_clear(item):
                return False
        elif kind is list or kind is tuple:
            if not _array_is_clear(item):
                return False
        elif kind is dict and not _object_is_clear(item):
            return False
    return True


def _array_is_clear(items: Sequence[Any]) -> bool:
    kinds = set(map(type, items))
    if kinds <= _INERT:
        return True
    if kinds == _TEXT:
        words = tuple(items)
        return words in _arrays or _words_are_clear(words)
    for item in items:
        kind = type(item)
        if kind is str:
            if item not in _texts and not _text_is_clear(item):
                return False
        elif kind is list or kind is tuple:
            if not _array_is_clear(item):
                return False
        elif kind is dict and not _object_is_clear(item):
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
