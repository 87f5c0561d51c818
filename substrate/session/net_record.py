"""What the egress process reported, as events and as what a command talked to. Logic only.

A connection's numbers are the engine's own with EGRESS set, so that none is one of capture's, which
counts the calls of connect(2) it saw. Spec: trace.md §4 (net and dns events, `scopes_used`).
"""

from __future__ import annotations

from substrate.session.record import sha256_hex
from substrate.telemetry.trace.events.command import Scope
from substrate.telemetry.trace.events.net import DnsQuery, NetClose, NetConnect
from substrate.telemetry.trace.events.notice import Budget, Coverage
from substrate.telemetry.trace.events.policy import PolicyLayer, PolicyLoaded
from substrate.telemetry.trace.rfc8785 import encode
from substrate.values import value
from substrate.world.egress.report import Asked, Attempt, Closed, Exceeded, Refused, Trouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from substrate.telemetry.trace.envelope import Event
    from substrate.world.egress.report import Report

#: bit of a connection's number: it is the egress engine's
EGRESS: Final = 1 << 52
#: scopes that are told one by one; what is beyond is summed up
_MOST_SCOPES: Final = 256
_MOST_DENIED: Final = 64


@value
class Owner:
    """Whose a connection is: the process' number and span in the trace."""

    proc: int
    span: str | None


@value
class Refusal:
    """What was refused, for people: `what` as in a rule, why, and how often."""

    what: str
    reason: str
    rule: str
    count: int


class NetRecord:
    """The network of one command."""

    def __init__(self, span: str, base: int) -> None:
        """`base`: unique in the session, for the numbers of connections."""
        self._span = span
        self._base = EGRESS | base * 1_000_000
        self._scopes: dict[str, list[int]] = {}
        self._of_connection: dict[int, str] = {}
        self._refused: dict[str, list[Any]] = {}
        self.troubles = 0

    def event(self, found: Report, owner: Owner | None) -> Event:
        """The event of a report; it is counted, too."""
        proc = None if owner is None else owner.proc
        span = self._span if owner is None or owner.span is None else owner.span
        body: Any
        if isinstance(found, Asked):
            body = self._asked(found, proc)
        elif isinstance(found, Attempt):
            body = self._attempt(found, proc)
        elif isinstance(found, Closed):
            body = self._closed(found)
        elif isinstance(found, Refused):
            body = self._kernel(found, proc)
        elif isinstance(found, Exceeded):
            body = Budget(
                budget="egress", used=found.used, limit=found.limit, stopped="all connections"
            )
        else:
            assert isinstance(found, Trouble)
            self.troubles += 1
            body = Coverage(backend="egress", level="net", blind_spots=(found.text,), lost=0)
        event: Event = body.event("world", span_id=span)
        return event

    def _asked(self, found: Asked, proc: int | None) -> DnsQuery:
        if not found.allowed:
            # most programs ask for both kinds of addresses at once
            self._count_refused(found.domain, found.reason, found.rule, int(found.qtype != "AAAA"))
        return DnsQuery(
            proc=proc,
            domain=found.domain,
            qtype=found.qtype,
            rcode=found.rcode,
            answers=(found.answer,) if found.answer else (),
            decision=_decision(found.allowed),
            rule=found.rule or None,
            extra=_extra(found, ("client_port", found.client_port), ("reason", found.reason)),
        )

    def _attempt(self, found: Attempt, proc: int | None) -> NetConnect:
        host = found.domain or found.target
        scope = _scope(found.spoken, host, found.port)
        counts = self._scope(scope)
        if not found.allowed:
            counts[1] += 1
            self._count_refused(_endpoint(host, found.port), found.reason, found.rule)
        elif not found.result:
            counts[0] += 1
            self._of_connection[found.connection] = scope
        return NetConnect(
            connection=self._base + found.connection,
            proc=proc,
            domain=found.domain or None,
            ip=found.ip or None,
            port=found.port,
            protocol=found.protocol,
            name=found.said or None,
            decision=_decision(found.allowed),
            rule=found.rule or None,
            reason=found.reason or None,
            result=found.result or None,
            extra=_extra(
                found,
                ("target", found.target),
                ("client_port", found.client_port),
                ("spoken", found.spoken),
            ),
        )

    def _closed(self, found: Closed) -> NetClose:
        scope = self._of_connection.pop(found.connection, None)
        if scope is not None:
            counts = self._scope(scope)
            counts[2] += found.bytes_in
            counts[3] += found.bytes_out
        return NetClose(
            connection=self._base + found.connection,
            bytes_in=found.bytes_in,
            bytes_out=found.bytes_out,
            duration_us=found.duration_us,
            reason=found.reason or None,
            extra=_extra(found),
        )

    def _kernel(self, found: Refused, proc: int | None) -> NetConnect:
        self._scope(_scope(found.protocol, found.ip, found.port))[1] += 1
        self._count_refused(_endpoint(found.ip, found.port), found.reason, "")
        return NetConnect(
            connection=self._base + found.connection,
            proc=proc,
            domain=None,
            ip=found.ip,
            port=found.port,
            protocol=found.protocol,
            name=None,
            decision="deny",
            rule=None,
            reason=found.reason or None,
            result=None,
            extra=_extra(found, ("client_port", found.client_port), ("uid", found.uid)),
        )

    def rules(self, rules: dict[str, Any]) -> Event:
        """The event of rules that are in force from now on."""
        texts = {name: list(rules[name]) for name in ("allow", "deny", "private", "host_ports")}
        digest = sha256_hex(encode(texts))
        layer = PolicyLayer(name="net", digest=digest)
        body = PolicyLoaded(digest=digest, layers=(layer,), extra=(("net", texts),))
        event: Event = body.event("world", span_id=self._span)
        return event

    # --- what it came to

    def _scope(self, scope: str) -> list[int]:
        if scope not in self._scopes and len(self._scopes) >= _MOST_SCOPES:
            scope = "others"
        return self._scopes.setdefault(scope, [0, 0, 0, 0])

    def _count_refused(self, what: str, reason: str, rule: str, count: int = 1) -> None:
        if what not in self._refused and len(self._refused) >= _MOST_DENIED:
            return
        self._refused.setdefault(what, [reason, rule, 0])[2] += count

    def scopes(self) -> tuple[Scope, ...]:
        """For `command_end`: by name."""
        return tuple(
            Scope(scope=name, connections=n[0], refused=n[1], bytes_in=n[2], bytes_out=n[3])
            for name, n in sorted(self._scopes.items())
        )

    def refusals(self) -> tuple[Refusal, ...]:
        """What was refused, in the order in which it came."""
        return tuple(
            Refusal(what=what, reason=reason, rule=rule, count=count)
            for what, (reason, rule, count) in self._refused.items()
        )


def _decision(allowed: bool) -> str:
    return "allow" if allowed else "deny"


def _endpoint(host: str, port: int) -> str:
    if not port:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _scope(spoken: str, host: str, port: int) -> str:
    protocol = spoken if spoken in ("tls", "http", "udp", "icmp") else "tcp"
    return f"{protocol}://{_endpoint(host, port)}"


def _extra(found: Any, *more: tuple[str, Any]) -> tuple[tuple[str, Any], ...]:
    return (("mono_us", found.time_us), *((key, item) for key, item in more if item not in ("", 0)))
