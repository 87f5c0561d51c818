"""One direction of a relay: from a source socket to a sink socket.

What it is: the moving and the counting. What it is not: it closes no socket and does not know
the other direction (`relay`).

Two ways to move. A burst that does not fill the shared buffer is copied: recv(2) and send(2)
cost less than splice(2) for little. A read that fills it makes the flow `bulk`: its bytes go by
splice(2) through a borrowed pipe and are not touched, until there is little again. Without a
pipe, and while a copy is wanted for the record, everything is copied.

Invariants. Order: nothing is read while anything waits for the sink; what the engine sends
meanwhile goes behind what is in the pipe. Count: taken + sent by the engine - passed to the
engine = delivered + lost + waiting. Memory: at most one buffer or one pipe waits, beside what
the engine has sent.

Urgent data: splice(2) stops in front of the urgent mark, for ever, as if there were nothing or
an end; recv(2) steps over the urgent byte, which is dropped.

Sources: splice(2), tcp(7); tcp_splice_read, tcp_read_sock and tcp_recvmsg_locked in net/ipv4.
"""

from __future__ import annotations

import os
from _socket import MSG_PEEK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Protocol

    from substrate.world.egress.budget import Budget
    from substrate.world.egress.endpoint import Endpoint
    from substrate.world.egress.pipes import Pipe, Pipes

    class Owner(Protocol):
        """Who decides about a relay. All are called from within the loop or a relay's method."""

        def data(self, direction: int, data: bytes) -> None:
            """What came in a watched direction; it is passed on only by `send`."""

        def ended(self, direction: int) -> None:
            """The source of a direction that is watched or held has said all; `free` passes the end on."""

        def copied(self, direction: int, data: bytes) -> None:
            """A copy of what is passed on, of the first `tee` bytes; where there is any, b"" for an end
            of sending that is passed on."""

        def done(self) -> None:
            """Both sockets are closed; the counts are final."""


#: what is handed to the engine at once
WATCH_BYTES: Final = 16384
#: less than this between two empty looks is not worth a pipe
_BULK_LEAST: Final = 32768
_FLAGS: Final = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE


class Flow:
    """See the module. `allowance`: how many bytes may pass unseen; -1: all that will come;
    0: what comes is passed to the owner if `watched`, and not read if not."""

    __slots__ = (
        "_bulk",
        "_burst",
        "_held",
        "_in_pipe",
        "_pipe",
        "_pipes",
        "allowance",
        "budget",
        "closed",
        "copied",
        "delivered",
        "direction",
        "discarding",
        "ended",
        "lost",
        "owner",
        "sink",
        "source",
        "spliced",
        "taken",
        "tee_left",
        "watched",
    )

    def __init__(
        self,
        direction: int,
        source: Endpoint,
        sink: Endpoint,
        pipes: Pipes,
        budget: Budget,
        owner: Owner,
    ) -> None:
        self.direction, self.source, self.sink, self.budget = direction, source, sink, budget
        self.owner: Owner | None = owner
        self._pipes = pipes
        self._pipe: Pipe | None = None
        self._in_pipe = 0
        self._held: list[memoryview] = []
        self._bulk = False
        self._burst = 0
        self.allowance = 0
        self.watched = False
        self.discarding = False  # what comes is read and lost
        self.tee_left = 0
        self.ended = False  # the source has said all it will
        self.closed = False  # nothing will be moved any more
        self.taken = 0  # read from the source
        self.delivered = 0  # written to the sink
        self.lost = 0  # of this flow, and never to be written
        self.spliced = 0  # of `delivered`
        self.copied = 0  # bulk bytes that were copied because there was no pipe

    def waiting(self) -> int:
        """Bytes that the sink has yet to take."""
        return self._in_pipe + sum(map(len, self._held))

    def finished(self) -> bool:
        """Whether the end may be passed on: it has come, all is delivered, the engine agrees."""
        return (
            self.ended
            and not self._in_pipe
            and not self._held
            and (self.allowance != 0 or self.source.dead != 0)
        )

    def send(self, data: bytes) -> None:
        """Puts bytes of the engine's behind all that waits."""
        if self.closed or self.discarding:
            self.lost += len(data)
        elif data:
            self._tee(data)
            self._held.append(memoryview(data))

    def pump(self, quota: int) -> bool:
        """Moves about `quota` bytes at most; whether there may be more to move right now."""
        while not self.closed:
            if (self._in_pipe or self._held) and not self._put_out():
                return False
            if self.ended or not self.source.readable:
                return False
            room = self._room()
            if room <= 0:
                self._look_for_end()
                return False
            if quota <= 0:
                return True
            quota -= self._take_in(room)
        return False

    def drop(self) -> None:
        """Gives up, or is through: what waits is lost, nothing more is read."""
        self.lost += self.waiting()
        self._held.clear()
        if self._pipe is not None:
            self._pipes.discard(self._pipe)
            self._pipe = None
        self._in_pipe = 0
        self.closed = True

    def _look_for_end(self) -> None:
        """Where nothing is to be read: whether the source is gone, which must not wait for that."""
        if self.allowance or self.watched or not self.source.careful:
            return
        assert self.source.socket is not None
        try:
            more = self.source.socket.recv(1, MSG_PEEK)
        except OSError as error:
            self._no_bytes(error)
            return
        if not more:
            self._end()
            if self.owner is not None:
                self.owner.ended(self.direction)

    def _room(self) -> int:
        """How many bytes may be read now."""
        if self.allowance < 0 or self.discarding:
            room = self._pipes.size
        elif self.allowance > 0:
            room = min(self.allowance, self._pipes.size)
        elif self.watched:
            room = WATCH_BYTES
        else:
            return 0
        return min(room, self.budget.left())

    def _take_in(self, room: int) -> int:
        """Reads once; the number of bytes, 0 also where there is nothing or an end."""
        if self.discarding:
            count = self._copy(min(room, len(self._pipes.buffer)))
            self.lost += count
            return count
        if not self.allowance:
            return self._watch(room)
        if self._bulk and not self.tee_left and self._have_pipe():
            return self._splice(room)
        room = min(room, len(self._pipes.buffer), self.tee_left or room)
        count = self._copy(room)
        if count:
            if self._bulk:
                self.copied += count
            elif count == len(self._pipes.buffer):
                self._bulk = True
            self._pass(self._pipes.buffer[:count])
        return count

    def _copy(self, room: int) -> int:
        """Reads into the shared buffer."""
        assert self.source.socket is not None
        try:
            count = self.source.socket.recv_into(self._pipes.buffer, room)
        except OSError as error:
            return self._no_bytes(error)
        self._count(count, room)
        return count

    def _watch(self, room: int) -> int:
        assert self.source.socket is not None
        try:
            data = self.source.socket.recv(room)
        except OSError as error:
            return self._no_bytes(error)
        self._count(len(data), room)
        if data and self.owner is not None:
            self.owner.data(self.direction, data)
        return len(data)

    def _count(self, count: int, room: int) -> None:
        """Books what recv(2) gave."""
        if not count:
            self._end()
            return
        self.taken += count
        self.budget.used += count
        if self.allowance > 0:
            self.allowance -= count
        self._burst += count
        if count < room and not self.source.careful:
            # what comes from now on is told by an edge of its own: no look is needed
            self._empty()

    def _splice(self, room: int) -> int:
        assert self._pipe is not None
        try:
            count = os.splice(self.source.fd, self._pipe.write_fd, room, flags=_FLAGS)
        except OSError as error:
            if isinstance(error, BlockingIOError) and self.source.careful:
                return self._look(room)
            return self._no_bytes(error)
        if not count:
            return self._look(room)
        self.taken += count
        self.budget.used += count
        self._in_pipe = count
        self._burst += count
        if self.allowance > 0:
            self.allowance -= count
        return count

    def _no_bytes(self, error: OSError) -> int:
        """What a read that failed means; 0."""
        if isinstance(error, BlockingIOError):
            self._empty()
        else:
            self.source.fail(error.errno or 0)
            self._end()
        return 0

    def _look(self, room: int) -> int:
        """splice(2) has nothing: an end, or urgent data in the way; recv(2) knows."""
        self.source.careful = True
        count = self._copy(min(room, len(self._pipes.buffer)))
        if count:
            self._pass(self._pipes.buffer[:count])
        return count

    def _have_pipe(self) -> bool:
        if self._pipe is None:
            self._pipe = self._pipes.take()
        return self._pipe is not None

    def _pass(self, data: memoryview) -> None:
        """Sends what lies in the shared buffer, and keeps a copy of what the sink leaves."""
        self._tee(data)
        if self.closed:  # the owner wants no more
            self.lost += len(data)
            return
        if self.sink.writable and self.sink.socket is not None:
            try:
                sent = self.sink.socket.send(data)
            except BlockingIOError:
                self.sink.writable = False
            except OSError as error:
                self._sink_failed(error, len(data))
                return
            else:
                self.delivered += sent
                data = data[sent:]
        if data:
            self._held.append(memoryview(bytes(data)))

    def _put_out(self) -> bool:
        """Gives the sink what waits; whether nothing waits any more."""
        sink = self.sink
        if not sink.writable or sink.socket is None:
            return False
        try:
            while self._in_pipe and self._pipe is not None:
                count = os.splice(self._pipe.read_fd, sink.fd, self._in_pipe, flags=_FLAGS)
                self._in_pipe -= count
                self.delivered += count
                self.spliced += count
            while self._held:
                count = sink.socket.send(self._held[0])
                self.delivered += count
                if count == len(self._held[0]):
                    self._held.pop(0)
                else:
                    self._held[0] = self._held[0][count:]
        except BlockingIOError:
            sink.writable = False
            return False
        except OSError as error:
            self._sink_failed(error, 0)
            return False
        return True

    def _sink_failed(self, error: OSError, lost: int) -> None:
        self.lost += lost
        self.sink.fail(error.errno or 0)
        self.drop()

    def _tee(self, data: bytes | memoryview) -> None:
        if self.tee_left:
            part = bytes(data[: self.tee_left])
            self.tee_left -= len(part)
            if self.owner is not None:
                self.owner.copied(self.direction, part)

    def _empty(self) -> None:
        """Nothing more is there for now."""
        if self.source.dead:
            self._end()  # nothing more will come either
            return
        self.source.readable = False
        if self._burst < _BULK_LEAST:
            self._bulk = False
        self._burst = 0
        self._give_pipe()

    def _end(self) -> None:
        self.ended = True
        self._give_pipe()
        if self.owner is not None and self.watched and not (self.allowance or self.discarding):
            self.owner.ended(self.direction)

    def _give_pipe(self) -> None:
        if self._pipe is not None and not self._in_pipe:
            self._pipes.give(self._pipe)
            self._pipe = None
