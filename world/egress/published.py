"""A connection from outside to a port of the world that was published.

The listener is on the host, the server in the world: the socket that goes to it was made in the
world's network by its first process (holder.py), as nobody outside may enter that without more
rights. Bytes are moved as those of any relay and counted; nothing is inspected, since who
connects is no process of the world.
"""

from __future__ import annotations

import _socket
import errno
import os
import time

from substrate.world.egress import loop as at
from substrate.world.egress.relay import DOWN, UP, Relay
from substrate.world.egress.report import Accepted, Closed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from substrate.world.egress.connection import Context


class Published:
    """One connection. It is the owner of its relay; UP is into the world."""

    def __init__(
        self, context: Context, client: int, peer: Any, number: int, port: int, within: int
    ) -> None:
        """`port`: of the world's loopback; `within`: a socket of the world's network."""
        self._context, self._number, self._port = context, number, port
        self._peer = str(peer[0]), int(peer[1])
        self._began_us = _now_us()
        tapes = context.tapes
        tee = 0 if tapes is None else tapes.stream_bytes
        relay = Relay(context.loop, context.pipes, context.budget, self, client, tee=tee)
        self._relay: Relay | None = relay
        self._tape = None if tapes is None else tapes.begin(number, self._began_us)
        if self._tape is not None:
            self._tape.relay = relay
        self._server = _socket.socket(fileno=within)
        self._server.setblocking(False)
        self._told = False

    def start(self) -> None:
        number = self._server.connect_ex(("127.0.0.1", self._port))
        if number not in (0, errno.EINPROGRESS):
            self._failed(number)
            return
        self._context.loop.register(self._server.fileno(), at.OUT, self._connected)

    def _connected(self, _: int) -> None:
        self._context.loop.unregister(self._server.fileno())
        number = self._server.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if number:
            self._failed(number)
            return
        relay = self._relay
        if relay is None:
            self._server.close()
            return
        self._tell("")
        relay.attach(self._server.detach())
        relay.free(UP)
        relay.free(DOWN)

    def _failed(self, number: int) -> None:
        self._server.close()
        self._tell(os.strerror(number))
        self.stop(f"port {self._port} of the world: {os.strerror(number)}")

    def _tell(self, result: str) -> None:
        self._told = True
        ip, port = self._peer
        self._context.report(
            Accepted(
                connection=self._number,
                time_us=self._began_us,
                ip=ip,
                port=port,
                local_port=self._port,
                result=result,
            )
        )

    # --- the engine's

    def stop(self, why: str) -> None:
        if self._relay is not None:
            self._relay.abort(why)

    def check_again(self) -> None:
        """Rules say nothing of it."""

    def finish(self) -> None:
        """The world is over, and with it the server."""
        self.stop("the world ended")

    # --- the relay's

    def data(self, direction: int, data: bytes) -> None:
        """Nothing is watched."""

    def ended(self, direction: int) -> None:
        """Nothing is watched."""

    def copied(self, direction: int, data: bytes) -> None:
        """For the record."""
        if self._tape is not None:
            self._tape.add(direction, data, _now_us(), hello=direction == UP)

    def done(self) -> None:
        relay, self._relay = self._relay, None
        assert relay is not None
        if self._tape is not None:
            if self._told:
                self._tape.send(UP)
            else:
                self._tape.drop()
            self._tape = None
        if self._told:
            self._context.report(
                Closed(
                    connection=self._number,
                    time_us=_now_us(),
                    bytes_in=relay.flows[UP].delivered,
                    bytes_out=relay.flows[DOWN].delivered,
                    duration_us=_now_us() - self._began_us,
                    reason=relay.end,
                )
            )
        self._context.gone(self)


def _now_us() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
