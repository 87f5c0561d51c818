"""What a gate looks up of a process that is held, as one thing that a test can replace.

Loaded with the first question or interpreter, not by a run that has neither.
"""

from __future__ import annotations

from substrate.session import gating_environ, gating_places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class Looks:
    """At the real thing. `own`: the environment of a task where it is known, since it is ours to give."""

    def __init__(self, own: Mapping[int, tuple[tuple[bytes, bytes], ...]] | None = None) -> None:
        self._own = {} if own is None else own

    def path_of(self, tid: int, word: bytes) -> bytes | None:
        """The kernel's path of what a word means to it."""
        return gating_places.path_of(tid, word)

    def leads_to(self, tid: int, word: bytes, path: bytes) -> frozenset[bytes]:
        """What a command's first word may run, along this PATH."""
        return gating_places.leads_to(tid, word, path)

    def variables_of(self, tid: int) -> tuple[bytes, ...] | None:
        """What it hands over, of the variables that an approval is for."""
        if tid in self._own:
            return gating_environ.listed(b"%s=%s" % pair for pair in self._own[tid])
        return gating_environ.variables_of(tid)
