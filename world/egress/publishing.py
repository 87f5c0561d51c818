"""The ports of a world that are reached from outside: their listeners, and sockets for the other half.

A client waits until there is a socket of the world's network for it. These are asked for some at
a time, through the supervisor; where the world makes none, the clients that wait are reset.
Invariant: bounded: so many sockets are kept, so many clients wait.
"""

from __future__ import annotations

import _socket
import os
import struct
from collections import deque

from substrate.world.egress.published import Published

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from substrate.world.egress.connection import Context

#: sockets that are asked for at once
BATCH: Final = 16
_LEAST: Final = 4
_MOST_WAITING: Final = 256
_ABORT: Final = struct.pack("ii", 1, 0)


class Publishing:
    """`ask(count)` asks for sockets, which come by `take`; `began` is told of each connection."""

    def __init__(
        self,
        context: Context,
        ask: Callable[[int], None],
        number: Callable[[], int],
        began: Callable[[Published], None],
    ) -> None:
        self._context, self._ask, self._number, self._began = context, ask, number, began
        self._unused: deque[int] = deque()
        self._waiting: deque[tuple[int, Any, int]] = deque()  # client, its address, port
        self._asked = False

    def client(self, fd: int, peer: Any, port: int) -> None:
        """Somebody has connected to what leads to `port` of the world."""
        if len(self._waiting) >= _MOST_WAITING:
            _reset(fd)
            return
        self._waiting.append((fd, peer, port))
        self._serve()

    def take(self, fds: list[int]) -> None:
        """Sockets of the world's network; none where it can make none."""
        self._asked = False
        self._unused.extend(fds)
        if not fds:
            while self._waiting:
                _reset(self._waiting.popleft()[0])
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._unused:
            fd, peer, port = self._waiting.popleft()
            within = self._unused.popleft()
            made = Published(self._context, fd, peer, self._number(), port, within)
            self._began(made)
            made.start()
        if len(self._unused) < _LEAST and self._waiting and not self._asked:
            self._asked = True
            self._ask(BATCH)

    def close(self) -> None:
        """The world is over."""
        while self._waiting:
            _reset(self._waiting.popleft()[0])
        while self._unused:
            os.close(self._unused.popleft())


def _reset(fd: int) -> None:
    socket = _socket.socket(fileno=fd)
    socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _ABORT)
    socket.close()
