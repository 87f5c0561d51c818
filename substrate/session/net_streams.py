"""What was said in a command's plain connections, on its way from the network's process into blobs.

The pieces of a tape (world/egress/tape.py) come before the end of its connection is reported. They
are put together here, cut to what was delivered, their secrets covered, and written; what names
them stands in the connection's `net_close`. Nothing is written that was not looked through. Memory:
at most what the whole command may record. What comes is of a process that reads hostile bytes: more
than was asked for is refused. Spec: trace.md §4, §6; docs/adr/0019.
"""

from __future__ import annotations

import os

from substrate.telemetry.trace.events.net import Covered, Streams, StreamSide
from substrate.telemetry.trace.redact_stream import covering
from substrate.telemetry.trace.rfc8785 import encode
from substrate.values import value
from substrate.world import wire
from substrate.world.egress import report
from substrate.world.egress.tape import TURN, parse_head, parse_piece

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from typing import Any, Final

    from substrate.telemetry.trace.pack import BlobRef
    from substrate.world.egress.report import Closed
    from substrate.world.egress.tape import Head

    Put = Callable[[bytes, str], BlobRef]
    #: yields between two steps
    Writing = Generator[None, None, "Written | None"]

_OCTETS: Final = "application/octet-stream"
_JSON: Final = "application/json"
#: secrets of one stream whose places are told; the others are counted
_MOST_COVERED: Final = 64


@value
class Written:
    """For `net_close`: what names the streams."""

    stream_in: BlobRef | None
    stream_out: BlobRef | None
    streams: Streams


class _Tape:
    """One that comes. `kept` by direction."""

    __slots__ = ("head", "kept", "turns")

    def __init__(self, head: Head, turns: bytes) -> None:
        self.head, self.turns = head, turns
        self.kept = (bytearray(), bytearray())


class NetStreams:
    """Of one command. `put` stores a blob, `digest` gives the keyed digest of bytes."""

    def __init__(
        self, stream_bytes: int, total_bytes: int, put: Put, digest: Callable[[bytes], str]
    ) -> None:
        self._stream_bytes, self._total_bytes = stream_bytes, total_bytes
        self._left = total_bytes
        self._given_up = ""
        self._put, self._digest = put, digest
        self._tapes: dict[int, _Tape] = {}

    def take(self, message: wire.Message) -> None:
        """A packet of a tape. Raises WireError."""
        if message.kind == report.TAPE_HEAD:
            head, turns = parse_head(message)
            if head.connection in self._tapes:
                raise wire.WireError(f"a second tape of connection {head.connection}")
            self._tapes[head.connection] = _Tape(head, turns)
            return
        number, direction, piece = parse_piece(message)
        tape = self._tapes.get(number)
        if tape is None:
            raise wire.WireError(f"a piece of no tape: connection {number}")
        kept = tape.kept[direction]
        self._left -= len(piece)
        if self._left < 0 or len(kept) + len(piece) > self._stream_bytes:
            raise wire.WireError(f"more of connection {number} than was to be recorded")
        kept += piece

    def give_up(self, why: str) -> None:
        """Nothing more is looked through, so that nothing more is written; `why` stands in the record."""
        self._given_up = why

    def writing(self, found: Closed) -> Writing:
        """Writes the streams of a connection that is over, a step at a time; gives None where it has
        no tape."""
        tape = self._tapes.pop(found.connection, None)
        if tape is None:
            return None
        inward = tape.head.inward
        into, into_ref = yield from self._side(tape, inward, found.bytes_in)
        out, out_ref = yield from self._side(tape, 1 - inward, found.bytes_out)
        sizes = [0, 0]
        sizes[inward], sizes[1 - inward] = into.recorded, out.recorded
        turns = cut_turns(TURN.iter_unpack(tape.turns), sizes)
        plain: list[Any] = [["in" if d == inward else "out", n, at_us] for d, n, at_us in turns]
        turns_ref, lost = None, tape.head.turns_lost
        if plain:
            try:
                turns_ref = self._put(encode(plain), _JSON)
            except OSError:
                lost += len(plain)
        return Written(
            stream_in=into_ref,
            stream_out=out_ref,
            streams=Streams(
                encrypted=bool(tape.head.encrypted),
                in_=into,
                out=out,
                turns=turns_ref,
                turns_lost=lost or None,
            ),
        )

    def _side(
        self, tape: _Tape, direction: int, delivered: int
    ) -> Generator[None, None, tuple[StreamSide, BlobRef | None]]:
        data = bytes(memoryview(tape.kept[direction])[:delivered])
        why = None
        if len(data) < delivered:
            why = self._why_cut(tape, len(data))
        if not data:
            return StreamSide(recorded=0, digest=None, truncated=why), None
        steps = covering(data, _MOST_COVERED)
        while not self._given_up:
            try:
                next(steps)
            except StopIteration as end:
                data, covered, count = end.value
                break
            yield
        else:
            return StreamSide(recorded=0, digest=None, truncated=self._given_up), None
        try:
            ref = self._put(data, _OCTETS)
        except OSError as error:
            why = f"it could not be written: {os.strerror(error.errno or 0)}"
            return StreamSide(recorded=0, digest=None, truncated=why), None
        side = StreamSide(
            recorded=len(data),
            digest=self._digest(data),
            truncated=why,
            covered=tuple(Covered(at=at, size=size, kind=kind) for at, size, kind in covered)
            or None,
            covered_count=count or None,
        )
        return side, ref

    def _why_cut(self, tape: _Tape, size: int) -> str:
        if size >= self._stream_bytes:
            return f"the limit of a stream: {self._stream_bytes} bytes"
        if tape.head.encrypted:
            return "TLS is spoken from there on"
        if tape.head.used_up:
            return f"the limit of a command: {self._total_bytes} bytes"
        return "the network's process gave no more"


def cut_turns(turns: Iterable[Any], sizes: list[int]) -> list[tuple[int, int, int]]:
    """The turns of the first so many bytes of each direction, and the ends of sending."""
    left = list(sizes)
    found = []
    for direction, count, at_us in turns:
        kept = min(count, left[direction])
        left[direction] -= kept
        if kept or not count:
            found.append((direction, kept, at_us))
    return found
