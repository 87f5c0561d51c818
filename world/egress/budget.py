"""How many bytes all relays of a world may still take in, together.

What it is: a counter that relays ask before they read. What it is not: a rate.
Invariant: `used` never exceeds `limit`, for a relay reads no more than is left; the first one
that finds nothing left tells the engine, once, and stops reading.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Budget:
    """`limit` in bytes, of both directions; `exceeded` is called once, from within a relay."""

    __slots__ = ("_exceeded", "limit", "told", "used")

    def __init__(self, limit: int, exceeded: Callable[[], None]) -> None:
        self.limit = limit
        self.used = 0
        self.told = False
        self._exceeded = exceeded

    def left(self) -> int:
        """How many bytes may be read now; 0 tells the engine."""
        left = self.limit - self.used
        if left <= 0 and not self.told:
            self.told = True
            self._exceeded()
        return left
