"""One TCP connection's bytes, from a client in a world to a real server and back.

What it is: two flows (`flow`) between two sockets (`endpoint`), and what the end of one means to
the other. What it is not: it does not decide what may pass; that the engine does, which sees the
bytes of a direction (`watch`) until it lets some (`limit`) or all (`free`) pass unseen.

How ends are passed on:
- an end of sending, when everything before it is delivered, as an end of sending; after both,
  both are closed;
- a failure of one side (reset, timeout): what that side had sent before is still delivered, to
  the last byte that our kernel has; what was on the way to it is lost, and counted. Then the
  other side is reset, but only when its kernel has acknowledged all, for a reset throws away
  what is not yet sent. So neither side takes a broken stream for a whole one, and an answer that
  a server gave before it refused the rest of a request reaches the client.

Invariants: both sockets belong to the relay from the moment they are given to it; `done` is
called exactly once, when both are closed and no pipe is held; no wait is without a bound but
that of two living peers that say nothing (keepalive finds the others).

Sources: tcp(7), RFC 9293 §3.6, §3.10.7; tcp_close and tcp_reset in net/ipv4.
"""

from __future__ import annotations

import os

from substrate.world.egress import loop as at
from substrate.world.egress.endpoint import Endpoint
from substrate.world.egress.flow import Flow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from substrate.world.egress.budget import Budget
    from substrate.world.egress.flow import Owner
    from substrate.world.egress.loop import Loop, Timer
    from substrate.world.egress.pipes import Pipes


#: directions: from the client to the server, and back
UP: Final = 0
DOWN: Final = 1

#: what one relay moves in one direction before others get their turn
_TURN_BYTES: Final = 524288
#: how long the last bytes before a reset may take to be acknowledged
_DRAIN_S: Final = 5.0
#: how long, and how much, a client that was refused may still send
_LINGER_S: Final = 2.0
_EVENTS: Final = at.IN | at.OUT | at.URGENT | at.PEER_SHUT | at.EDGE


class Relay:
    """See the module. Nothing passes, and nothing is read, before the engine says so.

    `flows[UP]`, `flows[DOWN]` have the counts; `end` is a text for people once it is done, ""
    for an end that both sides wanted. `half_open_s`: how long a relay of which one direction is
    done may do nothing; `idle_s`: the same while both are open (0: for ever)."""

    __slots__ = (
        "_drain_until",
        "_half_open_s",
        "_idle_s",
        "_last",
        "_loop",
        "_over",
        "_owner",
        "_queued",
        "_refused",
        "_teed",
        "_theirs",
        "_timer",
        "client",
        "end",
        "flows",
        "upstream",
    )

    def __init__(
        self,
        loop: Loop,
        pipes: Pipes,
        budget: Budget,
        owner: Owner,
        client_fd: int,
        *,
        tee: int = 0,
        idle_s: float = 0.0,
        half_open_s: float = 3600.0,
    ) -> None:
        self._loop = loop
        self._owner: Owner | None = owner
        self.client = Endpoint()
        self.upstream = Endpoint()
        up = Flow(UP, self.client, self.upstream, pipes, budget, owner)
        down = Flow(DOWN, self.upstream, self.client, pipes, budget, owner)
        self.flows = (up, down)
        up.tee_left = down.tee_left = tee
        self._teed = tee > 0
        self._theirs = (
            -1
        )  # of the server's bytes, those that come before a refusal; -1: there is none
        self.end = ""
        self._over = self._queued = self._refused = False
        self._idle_s, self._half_open_s = idle_s, half_open_s
        self._last = loop.now
        self._drain_until = 0.0
        self._timer: Timer | None = None
        self._open(self.client, client_fd, self._client_ready)
        if idle_s:
            self._timer = loop.after(idle_s, self._tick)

    def attach(self, fd: int) -> None:
        """Gives it the connected socket to the server."""
        if self._over or self._refused:
            os.close(fd)
        else:
            self._open(self.upstream, fd, self._upstream_ready)

    def watch(self, direction: int) -> None:
        """What comes is passed to the engine."""
        self.flows[direction].watched = True
        self.flows[direction].allowance = 0
        self._turn()

    def hold(self, direction: int) -> None:
        """Nothing is read."""
        self.flows[direction].watched = False
        self.flows[direction].allowance = 0

    def limit(self, direction: int, count: int) -> None:
        """The next `count` bytes pass unseen (an end passes too); then it is as before."""
        self.flows[direction].allowance = count
        self._turn()

    def free(self, direction: int) -> None:
        """Everything passes, and the end too."""
        self.flows[direction].allowance = -1
        self._turn()

    def send(self, direction: int, data: bytes) -> None:
        """Passes on what the engine has seen, or has to say itself."""
        self.flows[direction].send(data)
        self._turn()

    def send_upstream(self, data: bytes) -> None:
        self.send(UP, data)

    def stop_copies(self) -> None:
        """No more is wanted for the record."""
        for flow in self.flows:
            flow.tee_left = 0

    def refuse(self, reason: str, answer: bytes = b"") -> None:
        """Resets the server, says `answer` to the client, if any, and ends. The client gets a
        reset where there is no answer; else what it still sends is read for a moment, for a
        reset would overtake the answer."""
        if self._over or self._refused:
            return
        if not answer or self.client.dead:
            self.abort(reason)
            return
        self._refused = True
        self.end = reason
        up, down = self.flows
        self._close(self.upstream, reset=True)
        up.drop()
        up.closed, up.discarding, up.allowance = False, True, -1
        self._theirs = down.delivered + down.waiting()
        self._teed, down.tee_left = False, 0  # from here on nobody but us says anything
        down.send(answer)
        down.ended, down.allowance = True, -1
        self._set_timer(_LINGER_S)
        self._turn()

    def heard(self) -> int:
        """How many of the server's bytes were delivered: not those of `refuse`."""
        delivered = self.flows[DOWN].delivered
        return delivered if self._theirs < 0 else min(delivered, self._theirs)

    def underway(self) -> bool:
        """Whether bytes of the client's are on their way to the server still."""
        if self.upstream.fd < 0 or self.upstream.dead:
            return False
        return bool(self.flows[UP].waiting() or self.upstream.unacknowledged())

    def answering(self) -> bool:
        """Whether bytes of the server's are on their way to the client still."""
        down = self.flows[DOWN]
        if self.client.fd < 0 or self.client.dead or down.closed:
            return False
        more = down.allowance != 0 and not down.ended
        return bool(more or down.waiting() or self.client.unacknowledged())

    def moved(self) -> tuple[int, int, int]:
        """Differs from what it was where bytes have moved: into the client's kernel, out of it, and into
        the server's."""
        left = 0 if self.client.fd < 0 else self.client.unacknowledged()
        return self.flows[DOWN].delivered, left, self.flows[UP].delivered

    def silent(self) -> bool:
        """Whether the server says nothing any more, or has never been there."""
        down = self.flows[DOWN]
        return self.upstream.fd < 0 or bool(self.upstream.dead) or down.ended or down.closed

    def abort(self, reason: str) -> None:
        """Ends it now: a reset to both, what waits is lost."""
        if not self._over:
            self.end = reason
            self._finish(reset=True)

    def _open(self, endpoint: Endpoint, fd: int, ready: Callable[[int], None]) -> None:
        try:
            endpoint.open(fd)
            self._loop.register(fd, _EVENTS, ready)
        except OSError as error:
            endpoint.fail(error.errno or 0)
            self._turn()

    def _client_ready(self, events: int) -> None:
        self._ready(self.client, events)

    def _upstream_ready(self, events: int) -> None:
        self._ready(self.upstream, events)

    def _ready(self, endpoint: Endpoint, events: int) -> None:
        if events & (at.HANGUP | at.ERROR | at.PEER_SHUT | at.URGENT):
            endpoint.careful = True
        if events & (at.IN | at.PEER_SHUT | at.URGENT | at.HANGUP | at.ERROR):
            endpoint.readable = True
        if events & (at.OUT | at.HANGUP | at.ERROR):
            endpoint.writable = True
        self._last = self._loop.now
        if self._drain_until:
            if events & at.ERROR:  # not HANGUP: two ends of sending are one too
                self._finish(reset=True)
        elif not self._queued:  # else its turn comes in this round anyway
            self._run()

    def _turn(self) -> None:
        """Asks for a turn in the next round."""
        if not (self._queued or self._over or self._drain_until):
            self._queued = True
            self._loop.soon(self._take_turn)

    def _take_turn(self) -> None:
        self._queued = False
        if not (self._over or self._drain_until):
            self._last = self._loop.now
            self._run()

    def _run(self) -> None:
        up, down = self.flows
        before = (self.client.dead, self.upstream.dead)
        more = up.pump(_TURN_BYTES)
        if not self._over and down.pump(_TURN_BYTES):
            more = True
        if not self._over:
            self._settle()
        if more or before != (self.client.dead, self.upstream.dead):
            self._turn()  # a side that has failed may still have something to be read

    def _settle(self) -> None:
        """Passes ends on."""
        for flow in self.flows:
            open_sink = flow.sink.socket is not None or flow.source.dead or self._refused
            if not flow.closed and open_sink and flow.finished():
                flow.closed = True
                if not flow.source.dead:
                    flow.sink.shut_sending()
                    if self._teed and self._owner is not None:
                        self._owner.copied(flow.direction, b"")
        for flow in self.flows:
            if flow.sink.dead and not (flow.closed or flow.discarding):
                flow.drop()
        up, down = self.flows
        if up.closed and down.closed:
            self._last_words()
        elif (up.closed or down.closed) and self._timer is None:
            self._set_timer(self._half_open_s)

    def _last_words(self) -> None:
        """Nothing is left to be moved: closes, or resets the one that is left."""
        for name, side, other in (
            ("client", self.client, self.upstream),
            ("upstream", self.upstream, self.client),
        ):
            if side.dead:
                self.end = self.end or f"{name}: {os.strerror(side.dead)}"
                if other.socket is None or other.dead or self._refused:
                    break
                self._close(side, reset=True)
                self._drain_until = self._loop.now + _DRAIN_S
                self._drain()
                return
        self._finish(reset=bool(self.client.dead or self.upstream.dead))

    def _drain(self) -> None:
        """Waits for the acknowledgement of all that was delivered; no event tells of it."""
        other = self.upstream if self.client.dead else self.client
        left = self._drain_until - self._loop.now
        if left <= 0 or not other.unacknowledged():
            self._finish(reset=True)
            return
        # soon at first, then at ever longer intervals
        self._cancel_timer()
        waited = _DRAIN_S - left
        self._timer = self._loop.after(min(0.25, left, 0.001 + waited / 2), self._drain)

    def _tick(self) -> None:
        """The timer: nothing has moved for long, or it was not as long as that."""
        self._timer = None
        half = any(flow.closed for flow in self.flows)
        limit = _LINGER_S if self._refused else self._half_open_s if half else self._idle_s
        quiet = self._loop.now - self._last
        if self._refused:
            self._finish(reset=False)
        elif not limit:
            return
        elif quiet >= limit:
            self.abort(f"nothing was moved for {limit:g} s")
        else:
            self._set_timer(limit - quiet)

    def _set_timer(self, seconds: float) -> None:
        self._cancel_timer()
        self._timer = self._loop.after(seconds, self._tick)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self, endpoint: Endpoint, *, reset: bool) -> None:
        if endpoint.fd >= 0:
            if self._loop.watches(endpoint.fd):  # not if opening it failed
                self._loop.unregister(endpoint.fd)
            endpoint.close(reset=reset)

    def _finish(self, *, reset: bool) -> None:
        owner, self._owner = self._owner, None
        self._over = True
        self._cancel_timer()
        for flow in self.flows:
            flow.drop()
            flow.owner = None
        self._close(self.client, reset=reset)
        self._close(self.upstream, reset=reset)
        if owner is not None:
            owner.done()
