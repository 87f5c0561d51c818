"""The JSON object on a hook's standard input, with the text of each member as the agent wrote it.

By the scanner of the interpreter itself: the packages for JSON import more than all else that a hook needs.
It takes what JavaScript writes, halves of surrogate pairs too. Invariants: whatever the bytes are, they are
read or refused; a member's text is a part of the input, byte for byte. Source: RFC 8259; CPython's
Modules/_json.c.
"""

from __future__ import annotations

import _json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SPACE = " \t\n\r"


class Unusable(Exception):
    """What stands on standard input is not what this agent's hooks are given."""


class _Context:
    """What the scanner asks (json.decoder.JSONDecoder)."""

    strict = False
    object_hook = object_pairs_hook = None
    parse_float = float
    parse_int = int
    memo: dict[str, str] = {}  # noqa: RUF012 - the scanner's own

    @staticmethod
    def parse_constant(word: str) -> None:
        """NaN and the infinities, which are no JSON."""
        raise ValueError(word)


class Given:
    """The members of an object. `values`: what they are; `texts`: how they were written."""

    def __init__(self, values: dict[str, Any], texts: dict[str, bytes]) -> None:
        self.values = values
        self.texts = texts

    def text(self, *names: str) -> bytes:
        """How the first of these members that is there was written; nothing where none is."""
        return next((self.texts[name] for name in names if name in self.texts), b"")

    def string(self, *names: str) -> str:
        """The first of these members that is text and not empty."""
        for name in names:
            found = self.values.get(name)
            if type(found) is str and found:
                return found
        return ""


def parse_object(raw: bytes) -> Given:
    """Raises Unusable."""
    try:
        text = raw.decode("utf-8-sig")
        return _members(text)
    except (ValueError, StopIteration, RecursionError, IndexError, SystemError) as error:
        # SystemError: the scanner raises json.decoder's error, which it looks for among the modules that
        # are imported and does not import itself (CPython up to 3.11)
        raise Unusable(f"the input is not a JSON object ({type(error).__name__})") from None


def _members(text: str) -> Given:
    scan = _json.make_scanner(_Context())  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    texts: dict[str, bytes] = {}
    at = _skip(text, 0)
    if text[at] != "{":
        raise ValueError
    at = _skip(text, at + 1)
    while text[at] != "}" or values:
        if text[at] != '"':
            raise ValueError
        name, at = _json.scanstring(text, at + 1, False)
        at = _skip(text, at)
        if text[at] != ":":
            raise ValueError
        begin = _skip(text, at + 1)
        values[name], at = scan(text, begin)
        texts[name] = to_bytes(text[begin:at])
        at = _skip(text, at)
        if text[at] == "}":
            break
        if text[at] != ",":
            raise ValueError
        at = _skip(text, at + 1)
    if _skip(text, at + 1) != len(text):
        raise ValueError
    return Given(values, texts)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def to_bytes(text: str) -> bytes:
    """UTF-8, with halves of surrogate pairs as they are."""
    return text.encode("utf-8", "surrogatepass")
