"""Globs of a word: `*`, `?`, `[a-z]`, `[!a]`, byte by byte; and rows of them, `**` for any rest.

Not paths: a `*` passes over slashes. No regular expressions, so that no rule and no word costs more
than (word × pattern) steps, which `steps` bounds in a decision. Invariant: a compiled glob says the same of a
word each time, and raises nothing but steps.Spent. Spec: policy.md §1.
"""

from __future__ import annotations

from substrate.policy import steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final, TypeAlias

    #: a byte, a set of bytes, or None for any
    Element: TypeAlias = int | frozenset[int] | None
    #: of a row: a literal, a glob, or None for any number of words
    Word: TypeAlias = "bytes | Glob | None"

#: any number of words, in a row
REST: Final = None
_STAR, _QUESTION, _OPEN, _CLOSE, _DASH = b"*?[]-"


def has_glob(word: bytes) -> bool:
    return b"*" in word or b"?" in word or b"[" in word


def escape(word: bytes) -> bytes:
    """The pattern that only `word` meets."""
    if not has_glob(word):
        return word
    return word.replace(b"[", b"[[]").replace(b"*", b"[*]").replace(b"?", b"[?]")


class Glob:
    """A compiled pattern. `parts`: what stands between its stars, each bytes or elements."""

    __slots__ = ("parts", "source")

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.parts = tuple(_join(part) for part in _split(source))

    def __repr__(self) -> str:
        return f"Glob({self.source!r})"

    def matches(self, word: bytes) -> bool:
        first, last = self.parts[0], self.parts[-1]
        if len(self.parts) == 1:
            return len(word) == len(first) and _stands(first, word, 0)
        at, end = len(first), len(word) - len(last)
        if at > end or not _stands(first, word, 0) or not _stands(last, word, end):
            return False
        for part in self.parts[1:-1]:
            at = _find(part, word, at, end)
            if at < 0:
                return False
            at += len(part)
        return True


def compile_word(pattern: bytes) -> bytes | Glob:
    """A literal where there is nothing else in it, also of what is escaped by `[x]`."""
    if not has_glob(pattern):
        return pattern
    glob = Glob(pattern)
    if len(glob.parts) == 1 and isinstance(glob.parts[0], bytes):
        return glob.parts[0]
    return glob


def meets(pattern: bytes | Glob, word: bytes) -> bool:
    return pattern == word if isinstance(pattern, bytes) else pattern.matches(word)


def meets_row(patterns: Sequence[Word], words: Sequence[bytes], more: bool = False) -> bool:
    """Whether `words` are such a row. `more`: others may follow that are not known; then it is
    enough that they could make one."""
    at = place = 0
    star = -1
    again = 0
    while place < len(words):
        if at < len(patterns):
            pattern = patterns[at]
            if pattern is None:
                star, again = at, place
                at += 1
                continue
            if meets(pattern, words[place]):
                at += 1
                place += 1
                continue
        if star >= 0:
            steps.take(at - star)
            at, again = star + 1, again + 1
            place = again
        else:
            return False
    if more:
        return True
    while at < len(patterns) and patterns[at] is None:
        at += 1
    return at == len(patterns)


def _split(pattern: bytes) -> list[list[Element]]:
    parts: list[list[Element]] = [[]]
    at = 0
    while at < len(pattern):
        byte = pattern[at]
        at += 1
        if byte == _STAR:
            if parts[-1] or len(parts) == 1:
                parts.append([])
        elif byte == _QUESTION:
            parts[-1].append(None)
        elif (
            byte == _OPEN
            and (end := pattern.find(b"]", at + 1 + (pattern[at : at + 1] in (b"!", b"^")))) > 0
        ):
            parts[-1].append(_one_of(pattern[at:end]))
            at = end + 1
        else:
            parts[-1].append(byte)
    return parts


def _one_of(inside: bytes) -> Element:
    negated = inside[:1] in (b"!", b"^")
    at = int(negated)
    found: set[int] = set()
    while at < len(inside):
        if at + 2 < len(inside) and inside[at + 1] == _DASH:
            found.update(range(inside[at], inside[at + 2] + 1))
            at += 3
        else:
            found.add(inside[at])
            at += 1
    if negated:
        return frozenset(range(256)) - found
    return found.pop() if len(found) == 1 else frozenset(found)


def _join(part: list[Element]) -> bytes | tuple[Element, ...]:
    if all(isinstance(element, int) for element in part):
        return bytes(part)  # type: ignore[arg-type]
    return tuple(part)


def _stands(part: bytes | tuple[Element, ...], word: bytes, at: int) -> bool:
    """`at + len(part)` is within the word, or `part` is longer than it."""
    if isinstance(part, bytes):
        return word.startswith(part, at)
    if at + len(part) > len(word):
        return False
    for offset, element in enumerate(part):
        byte = word[at + offset]
        if element is not None and (
            byte != element if isinstance(element, int) else byte not in element
        ):
            return False
    return True


def _find(part: bytes | tuple[Element, ...], word: bytes, at: int, end: int) -> int:
    if isinstance(part, bytes):
        return word.find(part, at, end)
    if end - len(part) >= at:
        steps.take((end - len(part) + 1 - at) * len(part))
    for place in range(at, end - len(part) + 1):
        if _stands(part, word, place):
            return place
    return -1
