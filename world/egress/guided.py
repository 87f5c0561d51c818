"""The way out's side of guide.py: says where a connection leads, and whose one is that comes.

What a packet filter does in a namespace (nft.py) is decided here for each connection before it is made:
to the resolver, to the engine, or refused at once. Whether an allowed one is served is decided later, as
ever (connection.py). Invariant: what was told of a port counts for one connection.
"""

from __future__ import annotations

import _socket
import errno
import time

from substrate.world import wire
from substrate.world.egress import guide
from substrate.world.egress.fakes import FAKE_RANGE
from substrate.world.egress.holders import Holder, describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from substrate.world.egress.guide import Question
    from substrate.world.egress.rules import Rules

_DNS_PORT: Final = 53
#: between a question and its connection, which follows at once
_FRESH_S: Final = 30.0
_MOST_TOLD: Final = 8192
_OWN: Final = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
_A_ROUND: Final = 64
_ABORT: Final = b"\1\0\0\0\0\0\0\0"  # struct linger: at once


def drop(client: int) -> None:
    """Resets a stranger's connection."""
    socket = _socket.socket(fileno=client)
    socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _ABORT)
    socket.close()


class Guided:
    """`rules`: those in force; `refused`: is told of what was refused here;
    `over`: that nobody asks any more."""

    def __init__(
        self,
        fd: int,
        rules: Callable[[], Rules],
        refused: Callable[[Question, Holder], None],
        over: Callable[[int], None],
    ) -> None:
        self._socket = _socket.socket(fileno=fd)
        self._rules, self._refused, self._over = rules, refused, over
        self._told: dict[int, tuple[float, Question]] = {}  # by the port that it comes from

    def ready(self, _: int) -> None:
        """Takes questions, as many as there are."""
        for _ in range(_A_ROUND):
            try:
                message = wire.receive(self._socket)
            except (BlockingIOError, ConnectionResetError):
                return
            if message is None:
                self._over(self._socket.fileno())
                return
            self._answer(guide.parse_question(message))

    def _answer(self, asked: Question) -> None:
        place = self._place_of(asked)
        if place:
            self._note(asked)
        answer = guide.render_answer(asked.number, place, 0 if place else errno.ECONNREFUSED)
        try:
            self._socket.send(answer, _socket.MSG_NOSIGNAL)
        except OSError:
            return  # the world is over, or takes no answers: it makes no connection then
        if not place:
            self._refused(asked, describe(asked.pid))

    def _place_of(self, asked: Question) -> str:
        if asked.port == _DNS_PORT:
            return guide.DNS
        rules = self._rules()
        if FAKE_RANGE.contains(asked.target) or rules.address(asked.target, asked.port).allowed:
            return guide.EGRESS
        return ""

    def _note(self, asked: Question) -> None:
        now = time.monotonic()
        if len(self._told) >= _MOST_TOLD:
            self._told = {p: t for p, t in self._told.items() if t[0] > now - _FRESH_S}
        self._told[asked.client_port] = now, asked

    def knows(self, peer: tuple[str, int]) -> bool:
        """Whether a connection from there was told; else it is a stranger's."""
        self.ready(0)
        told = self._told.get(peer[1])
        return peer[0] in _OWN and told is not None and told[0] > time.monotonic() - _FRESH_S

    def take(self, peer: tuple[str, int]) -> tuple[Question, Holder] | None:
        """What a connection from there was meant for; None for a stranger's."""
        if not self.knows(peer):
            return None
        _, asked = self._told.pop(peer[1])
        return asked, describe(asked.pid)
