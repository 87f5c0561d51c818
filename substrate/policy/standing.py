"""The brokers of a process that stays: one for each set of places, as long as no file has changed.

A session that lives is asked for the policy of the same directories by every command and every shim. What
was read and compiled for one is right for the next, while each file, and what is trusted, has the stamp that it had
before it was read; that is looked at each time. Not a cache on disk (kept.py). Invariants: nothing is taken that
`broker.load` would not give now; a file that was changed a moment before it was read is read again, since the next change
might leave the same stamp. Spec: policy.md §1.
"""

from __future__ import annotations

import time

from substrate.policy import broker, kept
from substrate.policy.places import SYSTEM_FILE, find_places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from substrate.policy.broker import Broker
    from substrate.policy.places import Places

#: directories are as many as a command likes
_MOST: Final = 32


class Standing:
    """See the module. `environ`: of the process."""

    def __init__(self, environ: Mapping[bytes, bytes], system_file: bytes = SYSTEM_FILE) -> None:
        self._environ = environ
        self._system_file = system_file
        self._known: dict[Places, Broker] = {}

    def load(self, cwd: bytes, workspace: bytes, given: bytes | None = None) -> Broker:
        """As broker.load. Raises ConfigError, StateError."""
        given = given or self._environ.get(b"SUBSTRATE_POLICY") or None
        places = find_places(self._environ, cwd, workspace, given, self._system_file)
        known = self._known.pop(places, None)
        if known is None or not known.is_current():
            known = broker.load(self._environ, cwd, workspace, given, system_file=self._system_file)
        if not kept.is_young(known.stamps, time.time_ns()):
            if len(self._known) >= _MOST:
                del self._known[next(iter(self._known))]
            self._known[places] = known  # last: the one that was not asked for longest goes first
        return known
