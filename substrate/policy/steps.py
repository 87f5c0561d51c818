"""How much a decision may compare: a bound for the rules of a stranger's project and the words of a hostile exec.

A glob costs (word × pattern) steps, a row (words × patterns): both can be made as long as a file and an argv
are. Whoever compares says before how much that may be, and all of one decision share what there is. Invariant: what
could not be compared raises Spent; then a rule that holds back holds, and one that lets through does not, as
where an argv is cut. Not a time: the same question gets the same answer on any machine. Spec: policy.md §2.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: in bytes or words that are looked at; some 20 ms
MOST: Final = 250_000

_NO_END: Final = 1 << 62
_left = _NO_END


class Spent(Exception):
    """More would have to be compared than one decision may."""


def begin() -> None:
    """A new decision."""
    global _left
    _left = MOST


def end() -> None:
    """Outside of decisions nothing is counted."""
    global _left
    _left = _NO_END


def take(count: int) -> None:
    """Raises Spent: from then on for all of this decision."""
    global _left
    if count > _left:
        _left = -1
        raise Spent
    _left -= count
