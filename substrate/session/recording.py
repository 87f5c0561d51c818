"""A record that is made while others are served: who waits for it, what ends it, who came meanwhile.

The supervisor's part of meanwhile.py. Invariant: in its first two seconds a record is ended by nothing but the
session's end, since a signal may have been meant for the command. Spec: shell.md §2, docs/adr/0020.
"""

from __future__ import annotations

import _signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from substrate.session import doors
from substrate.session.loop import Loop, Waiting
from substrate.session.meanwhile import Held, Meanwhile, close_message
from substrate.session.signals import PATIENCE_S

if TYPE_CHECKING:
    from substrate.session.daemon import Daemon
    from substrate.session.executing import Executing


class _Doors:
    """The part of a supervisor that goes on while it records."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def wait_for(self, waiting: Waiting) -> None:
        self._daemon.wait_for_doors(waiting)


class Recording:
    """See the module."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._meanwhile = Meanwhile(Loop(_Doors(daemon)).glance, self._ends)
        self._who: Executing | None = None
        self.held = Held()

    @property
    def is_on(self) -> bool:
        return self._meanwhile.is_on

    @contextmanager
    def of(self, each: Executing | None) -> Iterator[None]:
        """A layer is read, as long as that may take. `each`: who waits for it, None: nobody."""
        daemon = self._daemon
        daemon.pending.stop()
        self._who = each
        try:
            with self._meanwhile.of(daemon.session.digester):
                yield
        finally:
            self._who = None
            for client in daemon.reception.clients:
                client.be_patient(time.monotonic() + doors.FIRST_S)

    def _ends(self) -> int:
        """The signal by which the record has to end, as one would end that of a single command."""
        each = self._who
        if each is not None and time.monotonic() - self._meanwhile.since >= PATIENCE_S:
            if each.client.is_gone:
                return int(_signal.SIGHUP)
            if each.told_to_end:
                return each.told_to_end
        elif each is not None:
            each.told_to_end = 0  # it was meant for the command, and came late
        return int(_signal.SIGTERM) if self._daemon.is_late else 0

    def begin_held(self, *, ending: bool) -> None:
        """Has commands begin that came while something was recorded."""
        for _ in range(len(self.held)):
            found = self.held.take()
            if found is None:
                return
            client, message = found
            if ending:
                client.fail("the session is ending", "try again for a new one")
                close_message(message)
            elif not client.is_gone:
                client.take(message)

    def close(self) -> None:
        self.held.close()
