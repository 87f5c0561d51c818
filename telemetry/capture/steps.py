"""Paths that calls name, made absolute where each process stands, with `..` behind links followed.

Logic only: who can look follows, by a function that is given. Invariant: a path is followed, or counted.
"""

from __future__ import annotations

from substrate.telemetry.capture import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from substrate.telemetry.capture.processes import Place


class Steps:
    """`follow`: where a directory leads to by its links, at a time (CLOCK_BOOTTIME µs); None where
    that cannot be told."""

    __slots__ = ("_follow", "unfollowed")

    def __init__(self, follow: Callable[[bytes, int], bytes | None]) -> None:
        self._follow = follow
        self.unfollowed = 0  # paths with `..` behind a name that may have been a link

    def absolute(
        self, raw: bytes, base: bytes | None, place: Place, time_us: int, *, known: bool = False
    ) -> bytes:
        """A path from the root. `known`: the kernel tells more, which counts."""
        if b".." in raw and not known:
            steps = paths.split_steps(raw, base)
            if steps is not None:
                up = None if place.root else self._follow(steps[0], time_us)
                if up is not None:
                    return paths.absolute(steps[1], up)
                self.unfollowed += 1
        return paths.absolute(raw, base, place.root)
