"""A connection to the first of some addresses that answers (after RFC 8305 §5).

What it is: non-blocking connects, the next one begun 250 ms after the last or as soon as all
that were begun have failed; the first that succeeds wins, the others are closed. What it is
not: it resolves nothing and knows no rule; the addresses were checked by who calls.

It refuses an address of this host, unless the caller says that the host is meant: a name that
somebody points at one of the machine's own addresses would lead behind its firewall. Which those
are the kernel is asked (RTM_GETROUTE: the route's type is "local" or, IPv6, "anycast"), with the
rules and tables that connect(2) uses. Comparing getsockname(2) of a connected UDP socket is not
enough: for 127.0.0.2, 0.0.0.0 and ranges that are routed to `lo` the source is another address.
Where the kernel does not answer, the address is not connected to.

Invariant: `done` is called once, from the loop, never from within `connect`; after it, or after
`cancel`, nothing is open but the descriptor that was handed over.

Sources: RFC 8305, connect(2), rtnetlink(7); inet_rtm_getroute in net/ipv4/route.c.
"""

from __future__ import annotations

import _socket
import errno
import os

from substrate.values import value
from substrate.world.egress import loop as at
from substrate.world.egress.route import is_local

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from substrate.world.egress.loop import Loop, Timer

STAGGER_S: Final = 0.25
LIMIT_S: Final = 15.0
#: a name may have hundreds of addresses; those behind are not tried
_MOST_ADDRESSES: Final = 16

OF_THIS_HOST: Final = "it is an address of this host"


@value
class Connected:
    """How it went: `fd` belongs to the receiver (non-blocking, close-on-exec); -1 for a failure,
    then `errno` is that of the last attempt and `error` says what failed, with the address."""

    fd: int = -1
    address: bytes = b""
    errno: int = 0
    error: str = ""


class Connecting:
    """See the module. `addresses` are 4 or 16 bytes each."""

    __slots__ = (
        "_deadline",
        "_done",
        "_host_meant",
        "_last",
        "_left",
        "_loop",
        "_open",
        "_port",
        "_stagger_s",
        "_timer",
    )

    def __init__(
        self,
        loop: Loop,
        addresses: Sequence[bytes],
        port: int,
        done: Callable[[Connected], None],
        *,
        host_meant: bool = False,
        stagger_s: float = STAGGER_S,
        limit_s: float = LIMIT_S,
    ) -> None:
        self._loop = loop
        self._port = port
        self._done: Callable[[Connected], None] | None = done
        self._host_meant = host_meant
        self._stagger_s = stagger_s
        self._left = list(reversed(addresses[:_MOST_ADDRESSES]))
        self._open: dict[int, tuple[_socket.socket, bytes]] = {}
        self._last = Connected(errno=errno.EDESTADDRREQ, error="there is no address to connect to")
        self._timer: Timer | None = None
        self._deadline = loop.after(limit_s, self._too_late)
        loop.soon(self._next)

    def cancel(self) -> None:
        """Gives up; `done` will not be called."""
        self._done = None
        self._clear()

    def _next(self) -> None:
        """Begins with the next address; ends where none is left and none is under way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._done is None:
            return
        while self._left:
            self._begin(self._left.pop())
            if self._done is None:
                return
            if self._open:
                if self._left:
                    self._timer = self._loop.after(self._stagger_s, self._next)
                return
        if not self._open:
            self._finish(self._last)

    def _begin(self, address: bytes) -> None:
        """One attempt; what fails at once is noted in `_last`."""
        family = _socket.AF_INET if len(address) == 4 else _socket.AF_INET6
        try:
            if not self._host_meant and is_local(address):
                self._last = Connected(
                    address=address,
                    errno=errno.EACCES,
                    error=f"{_render(address, self._port)}: {OF_THIS_HOST}",
                )
                return
            socket = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK)
        except OSError as error:
            self._failed(address, error.errno or errno.EIO)
            return
        number = socket.connect_ex((_socket.inet_ntop(family, address), self._port))
        if number not in (0, errno.EINPROGRESS):
            socket.close()
            self._failed(address, number)
            return
        fd = socket.fileno()
        try:
            self._loop.register(fd, at.OUT, lambda _: self._ready(fd))
        except OSError as error:
            socket.close()
            self._failed(address, error.errno or errno.EIO)
            return
        self._open[fd] = (socket, address)

    def _ready(self, fd: int) -> None:
        """The attempt has succeeded or failed."""
        socket, address = self._open.pop(fd)
        self._loop.unregister(fd)
        number = socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if number:
            socket.close()
            self._failed(address, number)
            if not self._open:
                self._next()
        else:
            self._finish(Connected(fd=socket.detach(), address=address))

    def _failed(self, address: bytes, number: int) -> None:
        text = f"{_render(address, self._port)}: {os.strerror(number)}"
        self._last = Connected(address=address, errno=number, error=text)

    def _too_late(self) -> None:
        for _, address in self._open.values():
            self._failed(address, errno.ETIMEDOUT)
        self._finish(self._last)

    def _finish(self, outcome: Connected) -> None:
        done, self._done = self._done, None
        self._clear()
        if done is not None:
            done(outcome)

    def _clear(self) -> None:
        self._deadline.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._left.clear()
        while self._open:
            fd, (socket, _) = self._open.popitem()
            self._loop.unregister(fd)
            socket.close()


def _render(address: bytes, port: int) -> str:
    if len(address) == 4:
        return f"{_socket.inet_ntop(_socket.AF_INET, address)} port {port}"
    return f"[{_socket.inet_ntop(_socket.AF_INET6, address)}] port {port}"
