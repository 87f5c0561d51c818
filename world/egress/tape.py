"""What was said in plain connections, as it was passed on, until the supervisor gets it.

A tape is of one connection: the first bytes of each direction, and in which order and when they
went by. It is kept here until the connection is over, so that nothing ever waits for the record:
neither a relay nor the disk; then it goes to the supervisor in pieces, before the connection's end
is reported. Not here: what is secret in it, and how it is written (session/net_streams.py).

Invariants: what is kept of a direction is its beginning, without a hole, and why there is no more
is said; all tapes of a world hold no more than `left` was at first; of a direction in which TLS is
spoken, or of one beside it, nothing is kept from there on.
"""

from __future__ import annotations

import struct

from substrate.values import value
from substrate.world import wire
from substrate.world.egress import report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from substrate.world.egress.relay import Relay

#: of a tape in one packet
PIECE_BYTES: Final = 32768
#: direction, bytes (0: the end of sending), µs since the connection began
TURN: Final = struct.Struct("=BIQ")
#: turns of one tape; what comes later is added to the last of its direction, or is in none
MOST_TURNS: Final = 2048
#: and of all tapes of a world: many that say little must not need much memory, either
MOST_TURNS_IN_ALL: Final = 1 << 20
#: bytes of one direction that come that soon after another are one turn
_ONE_TURN_US: Final = 10_000


class Tapes:
    """All of a world. `stream_bytes`: of one direction of one connection; `left`: of all, still."""

    __slots__ = ("_put", "left", "stream_bytes", "turns_left")

    def __init__(self, stream_bytes: int, total_bytes: int, put: Callable[[bytes], None]) -> None:
        self.stream_bytes, self.left = stream_bytes, total_bytes
        self.turns_left = MOST_TURNS_IN_ALL
        self._put = put

    def begin(self, number: int, began_us: int) -> Tape:
        return Tape(self, number, began_us)

    def send(self, packet: bytes) -> None:
        self._put(packet)


class Tape:
    """See the module. `relay`: whose copies it gets, set once it is made."""

    __slots__ = (
        *("_began_us", "_kept", "_last", "_number", "_tapes", "_turns", "_whole"),
        *("encrypted", "relay", "turns_lost", "used_up"),
    )

    def __init__(self, tapes: Tapes, number: int, began_us: int) -> None:
        self._tapes, self._number, self._began_us = tapes, number, began_us
        self._kept = (bytearray(), bytearray())
        self._turns = bytearray()  # but for the last one
        self._last: list[int] | None = None
        self._whole = True  # nothing was left out yet
        self.relay: Relay | None = None
        self.encrypted = False
        self.used_up = False  # the room of all tapes
        self.turns_lost = 0

    def add(self, direction: int, data: bytes, now_us: int, *, hello: bool = False) -> None:
        """The next bytes of a direction; none: its end. `hello`: they are of whom would begin TLS."""
        if self.encrypted:
            return
        if hello and is_hello(data):
            self.encrypt()
            return
        if data and not self._whole:
            return
        if len(data) > self._tapes.left:
            data = data[: self._tapes.left]
            self.used_up = True
            self._stop()
            if not data:
                return
        self._tapes.left -= len(data)
        self._kept[direction].extend(data)
        self._turn(direction, len(data), now_us - self._began_us)

    def _turn(self, direction: int, count: int, at_us: int) -> None:
        last, full = self._last, self._is_full()
        of_last = last is not None and count and last[0] == direction and last[1]
        if last is not None and of_last and (full or at_us - last[2] < _ONE_TURN_US):
            last[1] += count
        elif full:
            self.turns_lost += 1
        else:
            if last is not None:
                self._turns += TURN.pack(*last)
            self._last = [direction, count, max(0, at_us)]
            self._tapes.turns_left -= 1

    def _is_full(self) -> bool:
        return not self._tapes.turns_left or len(self._turns) >= (MOST_TURNS - 1) * TURN.size

    def encrypt(self) -> None:
        """From here on TLS is spoken."""
        self.encrypted = True
        self._stop()

    def _stop(self) -> None:
        self._whole = False
        if self.relay is not None:
            self.relay.stop_copies()

    def drop(self) -> None:
        """It is of no connection, or of one that cannot be read: its room is given back."""
        self._tapes.left += sum(map(len, self._kept))
        self._tapes.turns_left += len(self._turns) // TURN.size + (self._last is not None)
        self._kept = (bytearray(), bytearray())
        self._turns, self._last = bytearray(), None

    def send(self, inward: int) -> None:
        """To the supervisor. `inward`: the direction that goes into the world."""
        head = Head(
            connection=self._number,
            inward=inward,
            encrypted=int(self.encrypted),
            used_up=int(self.used_up),
            turns_lost=self.turns_lost,
        )
        last = b"" if self._last is None else TURN.pack(*self._last)
        self._tapes.send(render_head(head, bytes(self._turns) + last))
        for direction, kept in enumerate(self._kept):
            for at in range(0, len(kept), PIECE_BYTES):
                piece = bytes(kept[at : at + PIECE_BYTES])
                self._tapes.send(wire.encode(report.TAPE, (self._number, direction, piece)))
        self._kept = (bytearray(), bytearray())


def is_hello(data: bytes) -> bool:
    """Whether the bytes begin with a ClientHello (RFC 8446 §4, §5.1)."""
    return len(data) > 5 and data[:2] == b"\x16\x03" and data[2] <= 4 and data[5] == 1


# --- as packets


@value
class Head:
    """What is said first of a tape; `turns_lost`: how many turns are not in its list."""

    connection: int
    inward: int  # direction of the bytes that went into the world
    encrypted: int
    used_up: int
    turns_lost: int


def render_head(head: Head, turns: bytes) -> bytes:
    numbers = (head.connection, head.inward, head.encrypted, head.used_up, head.turns_lost)
    return wire.encode(report.TAPE_HEAD, (*numbers, turns))


def parse_head(message: wire.Message) -> tuple[Head, bytes]:
    """The head and its turns, one TURN after another. Raises WireError."""
    if len(message.fields) != 6:
        raise wire.WireError(f"a tape's head of {len(message.fields)} fields")
    connection, inward, encrypted, used_up, lost = map(message.number, range(5))
    raw = message.fields[5]
    if len(raw) % TURN.size or len(raw) > MOST_TURNS * TURN.size or inward not in (0, 1):
        raise wire.WireError("a tape's head that is none")
    if any(direction > 1 for direction, _, _ in TURN.iter_unpack(raw)):
        raise wire.WireError("a turn in a third direction")
    head = Head(
        connection=connection,
        inward=inward,
        encrypted=encrypted,
        used_up=used_up,
        turns_lost=lost,
    )
    return head, raw


def parse_piece(message: wire.Message) -> tuple[int, int, bytes]:
    """Connection, direction, bytes. Raises WireError."""
    if len(message.fields) != 3 or message.number(1) not in (0, 1):
        raise wire.WireError("a piece of a tape that is none")
    return message.number(0), message.number(1), message.fields[2]
