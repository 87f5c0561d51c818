"""Which keys count as an answer: pure, bytes and times in, keys out.

A world's programs write to the same terminal, and a terminal answers some of what is written to it
(its size, its title, a mouse) as if it were typed; people type ahead, and paste. None of that may
answer a question. So a key counts only alone: nothing came for `QUIET_S` before it and nothing follows
for `ALONE_S`. At first nothing counts at all until `FIRST_S` are over and it has been quiet.
Invariant: bytes that come together are never an answer, whatever they are.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FIRST_S: Final = 0.6
QUIET_S: Final = 0.15
ALONE_S: Final = 0.05


class Keys:
    """One question's keyboard, from `now` on."""

    def __init__(self, now: float) -> None:
        self._opens = now + FIRST_S
        self._last = now - QUIET_S
        self._open = False
        self._key: bytes | None = None

    def feed(self, data: bytes, now: float) -> None:
        """Bytes that were read at one time."""
        before, self._last = self._last, now
        self._advance(now, before)
        alone = len(data) == 1 and self._open and now - before >= QUIET_S
        self._key = data if alone else None

    def is_open(self, now: float) -> bool:
        """Whether keys count by now."""
        self._advance(now, self._last)
        return self._open

    def _advance(self, now: float, last: float) -> None:
        if not self._open and now >= self._opens and now - last >= QUIET_S:
            self._open = True

    def take(self, now: float) -> bytes:
        """The key that counts by now; b"" for none, yet."""
        if self._key is None or now - self._last < ALONE_S:
            return b""
        key, self._key = self._key, None
        return key

    def next_look(self) -> float | None:
        """When `take` or `is_open` may say something new."""
        if self._key is not None:
            return self._last + ALONE_S
        if not self._open:
            return max(self._opens, self._last + QUIET_S)
        return None
