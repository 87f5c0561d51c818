"""What a person may have meant by a word that is none: the nearest known one.

Only loaded once something is wrong. Pure.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def distance(a: str, b: str) -> int:
    """Edits from `a` to `b`: one letter more, fewer or other, or two neighbours exchanged
    (the restricted Damerau-Levenshtein distance)."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        older, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1]


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is near enough to be meant, None where none is: at most a third of
    its letters differ, or it begins with the word."""
    best: tuple[int, str] | None = None
    for candidate in known:
        edits = distance(word[:64], candidate)
        if candidate.startswith(word) and len(word.lstrip("-")) >= 2:
            edits = min(edits, 1)
        if edits <= max(1, len(candidate) // 3) and (best is None or (edits, candidate) < best):
            best = (edits, candidate)
    return best[1] if best else None


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint for an error: the nearest word, else `otherwise`."""
    found = nearest(word, known)
    return f"did you mean {found}?" if found else otherwise
