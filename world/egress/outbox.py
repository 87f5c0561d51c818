"""Packets to a supervisor, in order, none lost: what it does not take yet waits.

`pace(True)` is called when too many wait, `pace(False)` when few do: whoever makes them is to pause in
between. When the supervisor is gone the process ends, and with it whatever it held open.
"""

from __future__ import annotations

import os
from _socket import MSG_NOSIGNAL
from collections import deque

from substrate.world.egress import loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable
    from typing import Final

_MOST_WAITING: Final = 4096


class Outbox:
    """`ready` is called when something can be read from the supervisor."""

    def __init__(
        self,
        on: loop.Loop,
        supervisor: _socket.socket,
        ready: Callable[[], None],
        pace: Callable[[bool], None],
    ) -> None:
        self._loop, self._socket, self._ready, self._pace = on, supervisor, ready, pace
        self._waiting: deque[bytes] = deque()
        self._stuck = False  # the supervisor does not take them
        self._holds = False
        supervisor.setblocking(False)
        on.register(supervisor.fileno(), loop.IN, self._events)

    def put(self, packet: bytes) -> None:
        """Sends it, now or as soon as the supervisor takes more."""
        self._waiting.append(packet)
        if not self._stuck:
            self._send()
        self._look()

    def empty(self) -> bool:
        """Whether all was taken."""
        return not self._waiting

    def _events(self, events: int) -> None:
        if events & loop.OUT:
            self._send()
            self._look()
        if events & ~loop.OUT:
            self._ready()

    def _look(self) -> None:
        if not self._holds and len(self._waiting) > _MOST_WAITING:
            self._holds = True
            self._pace(True)
        elif self._holds and len(self._waiting) <= _MOST_WAITING // 2:
            self._holds = False
            self._pace(False)

    def _send(self) -> None:
        while self._waiting:
            try:
                self._socket.send(self._waiting[0], MSG_NOSIGNAL)
            except BlockingIOError:
                self._set_stuck(True)
                return
            except (BrokenPipeError, ConnectionResetError):
                os._exit(0)  # it is gone
            self._waiting.popleft()
        self._set_stuck(False)

    def _set_stuck(self, stuck: bool) -> None:
        if stuck != self._stuck:
            self._stuck = stuck
            self._loop.modify(self._socket.fileno(), loop.IN | loop.OUT if stuck else loop.IN)
