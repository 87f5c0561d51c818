"""How connections come to a world's way out where no packet filter leads them (`guard`).

The world's first process makes listeners on the host's own loopback, and asks by a socket of its own,
before it connects anything, where that may go (sockets_answered.py): a question names the port from which
the connection will come, and whom it was meant for. The way out answers, and knows then whose each
connection is (led.py stands in the same place for namespaces). Invariant: a connection from a port that
was not told just before is a stranger's, of the host, and gets nothing. Here are the makers and the
messages; who answers is guided.py.
"""

from __future__ import annotations

import _socket
import errno

from substrate.values import value
from substrate.world import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_QUESTION: Final = b"?"
_ANSWER: Final = b"="
_BACKLOG: Final = 1024
_NO_IPV6: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EACCES)
EGRESS, DNS = "egress", "dns_tcp"


@value
class Question:
    """A connection that is about to be made: from `client_port` of the loopback, meant for `target`
    (4 or 16 bytes) and its `port`, by the thread `pid` of the host."""

    number: int
    client_port: int
    target: bytes
    port: int
    pid: int


@value
class Made:
    """`sockets`: what the way out serves, by name; `door`: the other end of `guide`; `places`: the
    ports of the listeners by name."""

    sockets: dict[str, int]
    door: _socket.socket
    places: dict[str, int]


def make() -> Made:
    """Listeners at free ports of 127.0.0.1 and, where there is one, ::1. Raises OSError."""
    opened: dict[str, _socket.socket] = {}
    try:
        for family, address, version in (
            (_socket.AF_INET, "127.0.0.1", 4),
            (_socket.AF_INET6, "::1", 6),
        ):
            for name in (EGRESS, DNS):
                try:
                    _listen(family, address, opened, f"{name}{version}")
                except OSError as error:
                    if version == 4 or error.errno not in _NO_IPV6:
                        raise
        door, guide = wire.pair()
        opened["guide"] = guide
    except BaseException:
        for socket in opened.values():
            socket.close()
        raise
    places = {n: s.getsockname()[1] for n, s in opened.items() if n != "guide"}
    return Made(
        sockets={name: socket.detach() for name, socket in opened.items()}, door=door, places=places
    )


def _listen(family: int, address: str, opened: dict[str, _socket.socket], name: str) -> None:
    socket = _socket.socket(
        family, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
    )
    try:
        socket.bind((address, 0))
        socket.listen(_BACKLOG)
    except OSError:
        socket.close()
        raise
    opened[name] = socket


def render_question(asked: Question) -> bytes:
    return wire.encode(
        _QUESTION,
        (asked.number, asked.client_port, asked.target, asked.port, asked.pid),
    )


def parse_question(message: wire.Message) -> Question:
    """Raises WireError."""
    if message.kind != _QUESTION or len(message.fields) != 5:
        raise wire.WireError(f"{message.kind!r} is no question of where a connection leads")
    target = message.fields[2]
    if len(target) not in (4, 16):
        raise wire.WireError("an address of another length")
    return Question(
        number=message.number(0),
        client_port=message.number(1),
        target=target,
        port=message.number(3),
        pid=message.number(4),
    )


def render_answer(number: int, place: str, refused: int) -> bytes:
    """`place`: EGRESS or DNS; `refused`: an errno, 0 where it may be connected."""
    return wire.encode(_ANSWER, (number, place, refused))


def parse_answer(message: wire.Message) -> tuple[int, str, int]:
    """Raises WireError."""
    if message.kind != _ANSWER or len(message.fields) != 3:
        raise wire.WireError(f"{message.kind!r} does not say where a connection leads")
    return message.number(0), message.text(1), message.number(2)
