"""Listeners on the host for ports of a world that are published. Before the command starts: a port that
is taken is told then.
"""

from __future__ import annotations

import _socket
import os

from substrate.errors import StateError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

_BACKLOG: Final = 128
MOST: Final = 32


def listen(ports: Iterable[tuple[str, int, int]]) -> list[int]:
    """The fds of listeners, in the order of (address, port, port of the world). Raises UsageError for
    too many, StateError for one that cannot be had."""
    wanted = list(ports)
    if len(wanted) > MOST:
        raise UsageError(f"{len(wanted)} ports to publish, expected at most {MOST}")
    made: list[_socket.socket] = []
    for address, port, _ in wanted:
        family = _socket.AF_INET6 if ":" in address else _socket.AF_INET
        socket = _socket.socket(family, _socket.SOCK_STREAM)
        made.append(socket)
        try:
            socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            socket.bind((address, port))
            socket.listen(_BACKLOG)
            socket.setblocking(False)
        except OSError as error:
            for each in made:
                each.close()
            raise StateError(
                f"port {port} of {address} cannot be published: {os.strerror(error.errno or 0)}",
                hint="another program listens there, or it needs more rights: name another port",
            ) from None
    return [socket.detach() for socket in made]
