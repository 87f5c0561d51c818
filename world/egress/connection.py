"""One connection that a world's process made: whom it was meant for, whether it may be, what came
of it.

Theory of operation. The destination that the client wanted stands for a name, or is an address that
rules name. It is decided; then the server is resolved and connected to while the client's first
bytes are inspected. Nothing of the client's goes out before the inspection lets it, and the very
address that was checked is connected to. Invariants: each connection is reported as an attempt
exactly once, and one that was made as closed exactly once; the client never learns more than that
it was refused. Spec: world.md §6, points 4 to 6.
"""

from __future__ import annotations

import _socket
import os
import struct
import time

from substrate.world.egress.addresses import render_address
from substrate.world.egress.connect import Connected, Connecting
from substrate.world.egress.holders import NOBODY
from substrate.world.egress.inspector import Inspector
from substrate.world.egress.relay import DOWN, UP, Relay
from substrate.world.egress.report import Attempt, Closed
from substrate.world.egress.rules import Decision
from substrate.world.egress.speech import sniff
from substrate.world.egress.turns import Turns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from substrate.world.egress.budget import Budget
    from substrate.world.egress.fakes import Fakes
    from substrate.world.egress.holders import Holder, Holders
    from substrate.world.egress.lookups import Lookups
    from substrate.world.egress.loop import Loop, Timer
    from substrate.world.egress.pipes import Pipes
    from substrate.world.egress.published import Published
    from substrate.world.egress.report import Report
    from substrate.world.egress.resolve import Resolved, Resolver
    from substrate.world.egress.rules import Rules
    from substrate.world.egress.tape import Tape, Tapes

_ABORT: Final = struct.pack("ii", 1, 0)
#: for the first words of a client of which something is to be checked
_FIRST_WORDS_S: Final = 30.0
#: after the world's end, for what its processes had sent
_LAST_WORDS_S: Final = 2.0
#: nothing may move for so long while a client that is refused is still owed an answer to what it said before
_ANSWER_S: Final = 60.0
#: a body of the server's that is shorter is copied
_WORTH_SPLICING: Final = 65536
#: between two looks whether what was said before a refusal is delivered
_DELIVERY_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.05
#: what all clients together may have said that cannot be judged yet; the inspector has a copy
_MOST_HELD: Final = 1 << 24
#: for the first words of a client that is refused, whatever it says: HTTP is answered
_REFUSED_WORDS_S: Final = 0.5
#: addresses of a name that are told: a report's text is bounded
_MOST_RESOLVED: Final = 12
_LOOPBACK4: Final = b"\x7f\0\0\1"
_LOOPBACK6: Final = bytes(15) + b"\1"


class Context:
    """What the connections of a world share."""

    __slots__ = (
        *("budget", "fakes", "gone", "held", "holders", "lookups", "loop", "pipes", "report"),
        *("resolver", "rules", "tapes", "turns"),
    )

    def __init__(
        self,
        *,
        loop: Loop,
        pipes: Pipes,
        budget: Budget,
        resolver: Resolver,
        lookups: Lookups,
        fakes: Fakes,
        rules: Rules,
        report: Callable[[Report], None],
        gone: Callable[[Connection | Published], None],
        holders: Holders | None = None,
        tapes: Tapes | None = None,
    ) -> None:
        self.loop, self.pipes, self.budget, self.resolver = loop, pipes, budget, resolver
        self.lookups = lookups
        self.fakes, self.rules, self.report, self.gone = fakes, rules, report, gone
        self.holders = holders
        self.tapes = tapes  # where what is said is recorded
        self.turns = Turns()
        self.held = 0  # bytes of clients that may not go out yet


class Connection:
    """See the module. It is the owner of its relay (relay.py)."""

    def __init__(
        self,
        context: Context,
        client: int,
        peer: tuple[str, int],
        number: int,
        wanted: tuple[bytes, int] | None,
        *,
        crowded: bool = False,
        holder: Holder = NOBODY,
    ) -> None:
        """`wanted`: where it was to go (led.py); None where that was a listener of ours. `crowded`: see
        report.Attempt. `holder`: whose it is, where that was told (guided.py)."""
        self._context, self._crowded = context, crowded
        self._turn = 0
        self._client, self._number, self._wanted = client, number, wanted
        self._peer = peer
        self._client_ip, self._client_port = peer
        self._holder = holder
        self._began_us = _now_us()
        self._target, self._port = b"", 0
        self._name = ""
        self._decision: Decision | None = None
        self._relay: Relay | None = None
        self._tape: Tape | None = None
        self._looked_up: Resolved | None = None
        self._inspector: Inspector | None = None
        self._connect: Connecting | None = None
        self._address = b""  # of the server, once it is connected
        self._refused = b""  # of one that it may not be, or that did not answer
        self._held = bytearray()  # what the client said and may not go out yet
        self._passed = 0
        self._told = False
        self._made = False
        self._client_ended = False
        self._timer: Timer | None = None
        self._awaits_server = False  # it is looked up, or connected to
        self._leaving = False  # it is refused, once what was said before is delivered
        self._failed = ""  # why the server is not reached, while its first words are waited for
        self._verdict = ""  # why it is refused, while its first words are waited for

    # --- the decision

    def start(self) -> None:
        if self._wanted is None:
            self._context.turns.miss(self._peer)
            self._refuse_at_once("it was made to a port of substrate's own")
            return
        self._target, self._port = self._wanted
        self._turn, sure = self._context.turns.of(self._peer, *self._wanted)
        self._crowded |= not sure
        if self._context.holders is not None:  # now: the client may be gone soon
            self._holder = self._context.holders.of(
                *("tcp", self._client_ip, self._client_port, self._target, self._port)
            )
        self._name = self._context.fakes.name_of(self._target) or ""
        decision = self._decide()
        self._decision = decision
        if not decision.allowed and self._is_loopback() and not decision.rule:
            # by a listener that has its port (listeners.py): in the world nobody else can have it
            self._refuse_at_once(f"port {self._port} of the world's loopback leads out, not back")
            return
        if not decision.allowed:
            hint = self._rule_for_it(decision)
            self._tell(allowed=False, rule=decision.rule, reason=decision.reason, hint=hint)
            self._make_relay()
            self._refuse_by_words(decision.reason)
            return
        if self._context.budget.told:
            limit = self._context.budget.limit
            self._refuse_at_once(f"the limit of {limit} bytes is used up", "limits.egress")
            return
        context = self._context
        if self._name:
            domain = context.rules.wildcard_of(self._name)
            many = context.lookups.take(self._name, domain, context.loop.now)
            if many is not None:
                hint = many.hint or self._rule_for_it(None)
                self._tell(allowed=False, rule="limits.lookups", reason=many.reason, hint=hint)
                self._make_relay()
                self._refuse_by_words(many.reason)
                return
        self._inspector = Inspector(self._name, decision.speak, self._port)
        relay = self._make_relay()
        if decision.speak in ("checked", "tls", "http"):
            self._timer = context.loop.after(_FIRST_WORDS_S, self._too_late)
        self._awaits_server = True
        relay.watch(UP)
        if self._name:
            context.resolver.resolve(self._name, self._resolved)
        else:
            self._go_to((self._target,), own=self._is_loopback())

    def _make_relay(self) -> Relay:
        context = self._context
        tee = 0
        if context.tapes is not None:
            self._tape = context.tapes.begin(self._number, self._began_us)
            tee = context.tapes.stream_bytes
        relay = Relay(context.loop, context.pipes, context.budget, self, self._client, tee=tee)
        self._relay = relay
        if self._tape is not None:
            self._tape.relay = relay
        return relay

    def _is_loopback(self) -> bool:
        return self._target[0] == 127 or self._target == _LOOPBACK6

    def _decide(self) -> Decision:
        if self._name:
            return self._context.rules.connect(self._name, self._port)
        return self._context.rules.address(self._target, self._port)

    def _rule_for_it(self, decision: Decision | None, protocol: str = "") -> str:
        """The flag that would allow it, unless a rule has decided that it may not be."""
        if decision is not None and decision.rule:
            return ""
        if self._is_loopback():
            return f"--host-port {self._port}"
        host = self._name or render_address(self._target)
        end = f"[{host}]:{self._port}" if ":" in host else f"{host}:{self._port}"
        return f"--allow {protocol}{end}"

    def _refuse_at_once(self, reason: str, rule: str = "") -> None:
        self._tell(allowed=False, rule=rule, reason=reason)
        socket = _socket.socket(fileno=self._client)
        socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _ABORT)
        socket.close()
        self._context.gone(self)

    def check_again(self) -> None:
        """The rules are others now."""
        if self._relay is not None and not (self._verdict or self._failed):
            decision = self._decide()
            if not decision.allowed and self._leaving:
                self.stop(decision.reason)  # nor may the answer come that it waits for
            elif not decision.allowed:
                self._refuse(decision.reason, decision.rule, self._rule_for_it(decision))

    def finish(self) -> None:
        """The world is over."""
        if self._relay is not None:
            self._context.loop.after(_LAST_WORDS_S, lambda: self.stop("the world ended"))

    # --- the way to the server

    def _resolved(self, found: Resolved) -> None:
        if self._relay is None:
            return
        self._looked_up = found
        if found.error:
            self._fail(f"{self._name}: {found.error}")
            return
        if self._leaving and not self._is_owed(self._relay):
            return
        good = []
        why = Decision(allowed=False, rule="", reason="", speak="")
        for address in found.addresses:
            decision = self._context.rules.destination(self._name, address, self._port)
            if decision.allowed:
                good.append(address)
            elif not why.reason:
                why, self._refused = decision, address
        if good:
            self._go_to(tuple(good), own=False)
        else:
            refused = render_address(self._refused) if self._refused else ""
            hint = "" if why.rule else f"--private {refused}"
            self._awaits_server = False
            if self._leaving:
                return
            self._tell(allowed=False, rule=why.rule, reason=why.reason, hint=hint)
            self._refuse_by_words(why.reason)

    def _go_to(self, addresses: tuple[bytes, ...], *, own: bool) -> None:
        self._connect = Connecting(
            self._context.loop, addresses, self._port, self._connected, host_meant=own
        )

    def _connected(self, found: Connected) -> None:
        self._connect = None
        if self._relay is None:
            if found.fd >= 0:
                os.close(found.fd)
            return
        if found.fd < 0:
            self._refused = found.address
            self._fail(found.error)
            return
        self._awaits_server = False
        self._address = found.address
        self._relay.attach(found.fd)
        self._relay.watch(DOWN)
        if self._leaving:  # what was said before it was refused goes out
            self._told = False
            self._tell_made()
        self._apply()

    def _fail(self, error: str) -> None:
        """The server was not reached, which the client sees as a reset."""
        self._awaits_server = False
        if self._leaving:
            return  # it reads that it was refused
        assert self._decision is not None
        self._tell(allowed=True, rule=self._decision.rule, reason="", result=error)
        self._failed = error
        if self._timer is not None:
            self._timer.cancel()
        if self._held or self._passed or self._client_ended:
            self.stop(error)
        else:  # in the middle of its connect(2) it would be told now this, now that error
            self._timer = self._context.loop.after(_REFUSED_WORDS_S, lambda: self.stop(error))

    # --- what is said

    def data(self, direction: int, data: bytes) -> None:
        """Relay's: what came in a direction that is watched."""
        if self._failed:
            self.stop(self._failed)
            return
        if self._verdict:
            self._end_refused(data)
            return
        assert self._inspector is not None
        assert self._relay is not None
        if self._leaving:
            if direction == DOWN:  # the answer to what went out before
                self._relay.send(DOWN, data)
                self._inspector.feed_answer(data)
            return
        if direction == UP:
            self._held += data
            self._context.held += len(data)
            if self._context.held > _MOST_HELD:
                self._refuse("too much of what programs say is not complete, and waits for its end")
                return
            self._inspector.feed(data)
        else:
            self._inspector.feed_upstream(data)
            self._relay.send(DOWN, data)
        self._apply()

    def ended(self, direction: int) -> None:
        """Relay's: a direction that is watched, or held, has come to its end."""
        if self._failed:
            self.stop(self._failed)
            return
        if self._verdict:
            self._end_refused()
            return
        if self._leaving:
            return
        if direction == UP:
            self._client_ended = True
            self._apply()
        elif self._relay is not None:
            self._relay.free(direction)

    def copied(self, direction: int, data: bytes) -> None:
        """Relay's: what is passed on, for the record."""
        tape = self._tape
        if tape is None:
            return
        if self._inspector is not None and self._inspector.protocol == "tls":
            tape.drop()
            tape.encrypt()
        else:
            tape.add(direction, data, _now_us(), hello=direction == UP)

    def _too_late(self) -> None:
        """The client has said nothing, or not all, of what is to be checked."""
        assert self._inspector is not None
        self._timer = None
        if not self._inspector.protocol:
            self._inspector.timed_out()
            if not self._inspector.refused and not self._inspector.protocol:
                self._refuse(f"nothing was said in {_FIRST_WORDS_S:.0f} s that could be checked")
            else:
                self._apply()

    def _apply(self) -> None:
        """Does what the inspection says."""
        inspector, relay = self._inspector, self._relay
        assert inspector is not None
        if relay is None or self._leaving:
            return
        if self._client_ended and not inspector.needs_upstream_head:
            inspector.timed_out()
        count = inspector.ready - self._passed
        if count > 0:
            relay.send(UP, bytes(self._held[:count]))
            del self._held[:count]
            self._context.held -= count
            self._passed += count
        if inspector.refused:
            assert self._decision is not None
            if self._address and self._passed:
                self._tell_made()  # of what went out before
            self._refuse_speech(inspector.refused, self._decision)
            return
        waits = inspector.needs_upstream_head
        if (inspector.splice == -1 or (self._client_ended and waits)) and not self._held:
            relay.free(UP)
        elif relay.flows[UP].allowance > 0:
            pass  # what is left of a body goes by; the inspector is behind it already
        elif waits:
            relay.hold(UP)
        elif self._client_ended:
            relay.free(UP)
        elif inspector.splice > 0 and not self._held:
            count = inspector.splice  # of a body: it need not be seen
            inspector.spliced(count)
            relay.watch(UP)  # from its end on; it may have been held
            relay.limit(UP, count)
        else:
            relay.watch(UP)
        if self._address:
            self._let_answers_go(relay, inspector)
            if inspector.protocol or inspector.splice == -1:
                self._tell_made()

    def _let_answers_go(self, relay: Relay, inspector: Inspector) -> None:
        """What of the server's need not be seen."""
        count, down = inspector.splice_upstream, relay.flows[DOWN]
        if count == -1 or (self._client_ended and not inspector.needs_upstream_head):
            relay.free(DOWN)  # nothing of ours will come after it
        elif count >= _WORTH_SPLICING and not down.allowance:
            inspector.spliced_upstream(count)
            relay.limit(DOWN, count)

    # --- the record

    def _tell_made(self) -> None:
        if not self._told:
            assert self._decision is not None
            self._made = True
            self._tell(allowed=True, rule=self._decision.rule, reason="")

    def _tell(
        self, *, allowed: bool, rule: str, reason: str, hint: str = "", result: str = ""
    ) -> None:
        if self._told:
            return
        self._told = True
        inspector, address = self._inspector, self._address or self._refused
        resolved = self._looked_up
        found = () if resolved is None else resolved.addresses
        self._context.report(
            Attempt(
                connection=self._number,
                time_us=self._began_us,
                client_port=self._client_port,
                client_ip=self._client_ip,
                protocol="tcp",
                spoken="" if inspector is None else inspector.protocol,
                domain=self._name,
                target=render_address(self._target) if self._target else "",
                ip=render_address(address) if address else "",
                port=self._port,
                said=self._said(allowed=allowed),
                allowed=allowed,
                rule=rule,
                reason=reason,
                hint=hint,
                result=result,
                pid=self._holder.pid,
                program=self._holder.program,
                turn=self._turn,
                crowded=self._crowded,
                resolved=" ".join(map(render_address, found[:_MOST_RESOLVED])),
                resolved_count=len(found),
                resolve_error="" if resolved is None else resolved.error,
            )
        )

    def _said(self, *, allowed: bool) -> str:
        inspector = self._inspector
        if inspector is None:
            return ""
        # what went out before what was refused had the name, for else it had not gone out
        return self._name if allowed and inspector.refused else inspector.said

    def _refuse(
        self, reason: str, rule: str = "", hint: str = "", *, answers_first: bool = False
    ) -> None:
        """What it said, or where it would go, is not allowed. `answers_first`: what was said before may
        have its answer."""
        relay = self._relay
        if relay is None or self._leaving:
            return
        self._told = False  # also of one that was made: another attempt, by what it said
        self._tell(allowed=False, rule=rule, reason=reason, hint=hint)
        answer = b""
        if self._inspector is not None and sniff(self._held) == "http":
            answer = _forbidden(reason)
        if self._timer is not None:
            self._timer.cancel()
        self._forget_held()
        self._leaving = True
        relay.hold(UP)
        owed = answers_first and self._is_owed(relay)
        if not owed and self._connect is not None:
            self._connect.cancel()
            self._connect = None
        last_words = _LastWords(relay, reason, answer, self._context.loop.now)
        self._refuse_once_delivered(last_words, answers_first=owed)

    def _is_owed(self, relay: Relay) -> bool:
        """Whether an answer to what was said before a refusal is still to come."""
        inspector = self._inspector
        assert inspector is not None
        return inspector.owed and (self._awaits_server or not relay.silent())

    def _refuse_once_delivered(self, last: _LastWords, *, answers_first: bool) -> None:
        """What was said before, and may go out, does, for a reset would overtake it; and so does its
        answer, where that comes first."""
        relay, loop = last.relay, self._context.loop
        if self._relay is relay:
            waits = answers_first and (self._is_owed(relay) or relay.answering())
            quiet_s = last.quiet_s(loop.now)
            if (waits and quiet_s < _ANSWER_S) or (relay.underway() and quiet_s < _LAST_WORDS_S):
                pause_s = min(_LONGEST_PAUSE_S, max(_DELIVERY_S, quiet_s / 4))
                again = lambda: self._refuse_once_delivered(last, answers_first=answers_first)  # noqa: E731
                loop.after(pause_s, again)
                return
        relay.refuse(last.reason, last.answer)

    def _refuse_by_words(self, reason: str) -> None:
        """One that is refused whatever it says, and was told of: a client of HTTP reads why, as many
        try a reset connection again and again; others get a reset."""
        relay = self._relay
        assert relay is not None
        if self._timer is not None:
            self._timer.cancel()
        self._verdict = reason
        spoken = self._inspector is not None and self._inspector.protocol
        if self._held or spoken or self._client_ended:
            self._end_refused()
        else:
            self._timer = self._context.loop.after(_REFUSED_WORDS_S, self._end_refused)
            relay.watch(UP)

    def _end_refused(self, said: bytes = b"") -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._relay is not None:
            known = "" if self._inspector is None else self._inspector.protocol
            is_http = known == "http" or sniff(self._held + said) == "http"
            self._relay.refuse(self._verdict, _forbidden(self._verdict) if is_http else b"")

    def _refuse_speech(self, reason: str, decision: Decision) -> None:
        """What it said: where that is a protocol of its own, a rule with the port would allow it."""
        hint = ""
        own = sniff(self._held) in ("", "text", "other")
        if own and decision.speak == "checked" and not decision.less and not self._told:
            reason = f"neither TLS nor HTTP/1 is spoken ({reason})"
            port_alone = "tcp://" if self._port in (80, 443) else ""
            hint = self._rule_for_it(None, port_alone)
        self._refuse(reason, decision.rule, hint, answers_first=True)

    def _forget_held(self) -> None:
        self._context.held -= len(self._held)
        self._held.clear()

    def stop(self, why: str) -> None:
        """Ends it, as if both sides had."""
        if self._relay is not None:
            self._relay.abort(why)

    def done(self) -> None:
        """Relay's: both sockets are closed."""
        relay, self._relay = self._relay, None
        assert relay is not None
        assert self._decision is not None
        self._forget_held()
        if self._timer is not None:
            self._timer.cancel()
        if self._connect is not None:
            self._connect.cancel()
        if self._address:
            self._tell_made()
        else:
            self._tell(
                allowed=True,
                rule=self._decision.rule,
                reason="",
                result=relay.end or "the client went before the server was reached",
            )
        if self._tape is not None:
            if self._made:
                self._tape.send(DOWN)
            else:
                self._tape.drop()
            self._tape = None
        if self._made:
            self._context.report(
                Closed(
                    connection=self._number,
                    time_us=_now_us(),
                    bytes_in=relay.heard(),
                    bytes_out=relay.flows[UP].delivered,
                    duration_us=_now_us() - self._began_us,
                    reason=relay.end,
                )
            )
        self._context.gone(self)


class _LastWords:
    """What a client that is refused is told, once that may be: `quiet_s` says how long nothing has moved
    between it and the server."""

    __slots__ = ("_moved", "_since", "answer", "reason", "relay")

    def __init__(self, relay: Relay, reason: str, answer: bytes, now: float) -> None:
        self.relay, self.reason, self.answer = relay, reason, answer
        self._moved, self._since = relay.moved(), now

    def quiet_s(self, now: float) -> float:
        moved = self.relay.moved()
        if moved != self._moved:
            self._moved, self._since = moved, now
        return now - self._since


def _forbidden(reason: str) -> bytes:
    """What a client of HTTP reads. It breaks off before its end, as no answer of the server's has
    come: else a program that does not look at the status (curl) took this for a success."""
    text = f"substrate: {reason}\n".encode("ascii", "replace")
    return (
        b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(text) + 1, text)
    )


def _now_us() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
