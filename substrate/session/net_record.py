"""What the egress process reported, as events and as what a command talked to. Logic only.

A connection's numbers are the engine's own with EGRESS set, so that none is one of capture's, which
counts the calls of connect(2) it saw. Spec: trace.md §4 (net and dns events, `scopes_used`).
"""

from __future__ import annotations

from substrate.session.record import sha256_hex
from substrate.telemetry.capture.fake_names import FakeNames
from substrate.telemetry.trace.events.command import Scope
from substrate.telemetry.trace.events.net import (
    DnsQuery,
    NetAccept,
    NetClose,
    NetConnect,
    Resolution,
)
from substrate.telemetry.trace.events.notice import Budget, Coverage
from substrate.telemetry.trace.events.policy import PolicyLayer, PolicyLoaded
from substrate.telemetry.trace.rfc8785 import encode
from substrate.values import value
from substrate.world.egress.holders import printable
from substrate.world.egress.ports import leads_out
from substrate.world.egress.report import (
    Accepted,
    Asked,
    Attempt,
    Closed,
    Exceeded,
    Refused,
    Trouble,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from substrate.session.net_streams import Written
    from substrate.telemetry.trace.envelope import Event
    from substrate.telemetry.trace.events.body import Extra
    from substrate.world.egress.report import Linked, Report

#: bit of a connection's number: it is the egress engine's
EGRESS: Final = 1 << 52
#: scopes that are told one by one; what is beyond is summed up
_MOST_SCOPES: Final = 256
_MOST_DENIED: Final = 64
_MOST_WHO: Final = 256
_NO_CALL: Final = "no call of theirs was told, or calls of several processes could be theirs"
_GONE: Final = "who had made them was gone, or had closed them, or may not be looked at"
_LOOKED_UP: Final = (
    "whose questions and connections are: who has their socket open when they come is told, by a name that is "
    "its own (nothing is captured that would tell who made them)"
)


#: where nf_tables is missing
_UNTOLD: Final = (
    "what the kernel refused: the network is filtered by listeners, as nf_tables is missing; {}, "
    "and a try of another port, or by UDP, ICMP …, is in the record as a call, if at all"
)


@value
class Owner:
    """Whose a connection is: the process' number and span in the trace; for people the name of its
    program and its pid in the world, b"" and 0 where these are not known."""

    proc: int
    span: str | None
    program: bytes = b""
    pid: int = 0


@value
class Refusal:
    """What was refused, for people: `what` as in a rule, why, and how often; `hint`: the flag that
    would allow it, "" where none would. `who`: the first program that
    was, with its pid, "" where it is not known; `others`: how many further processes were, as far as
    these are known."""

    what: str
    reason: str
    hint: str
    count: int
    who: str = ""
    others: int = 0


class NetRecord:
    """The network of one command, or of all commands of a world: what came of it is counted for each."""

    def __init__(
        self,
        span: str | None,
        base: int,
        own_names: frozenset[str] = frozenset(),
        command_of: Callable[[int], str | None] | None = None,
    ) -> None:
        """`span`: whose what is nobody's is; `base`: unique in the session, for the numbers of connections;
        `own_names`: of this host, which programs ask for without a wish to reach anything; `command_of`: the
        span of the command that a process belongs to, where there is more than one."""
        self._span = span
        self._command_of = command_of
        self._own_names = own_names
        self._base = EGRESS | base * 1_000_000
        #: by command
        self._scopes: dict[str | None, dict[str, list[int]]] = {}
        #: scope, and whose it is
        self._of_connection: dict[int, tuple[str, Owner | None]] = {}
        #: what its addresses stand for
        self.names = FakeNames()
        self._refused: dict[tuple[str | None, str], list[Any]] = {}
        self._unreached: dict[tuple[str | None, str], list[Any]] = {}  # why, how often
        #: the budget that was used up, in bytes; 0: none was
        self.used_up = 0
        self._asked = self._unknown = 0  # reports of what somebody did; of nobody knows whom

    def event(self, found: Report, owner: Owner | None, written: Written | None = None) -> Event:
        """The event of a report; it is counted, too. `written`: the streams of what is closed."""
        if isinstance(found, Closed):
            return self._closed(found, written)
        if isinstance(found, (Asked, Attempt, Refused)):
            self._asked += 1
            self._unknown += owner is None and not found.pid
        body: Any
        if isinstance(found, Asked):
            body = self._question(found, owner)
        elif isinstance(found, Attempt):
            body = self._attempt(found, owner)
        elif isinstance(found, Refused):
            body = self._kernel(found, owner)
        elif isinstance(found, Accepted):
            body = self._accepted(found)
        elif isinstance(found, Exceeded):
            self.used_up = found.limit
            body = Budget(
                budget="egress", used=found.used, limit=found.limit, stopped="all connections"
            )
        else:
            assert isinstance(found, Trouble)
            body = Coverage(backend="egress", level="net", blind_spots=(found.text,), lost=0)
        return self._told(body, owner)

    def _told(self, body: Any, owner: Owner | None) -> Event:
        span = self._span if owner is None or owner.span is None else owner.span
        event: Event = body.event("world", span_id=span)
        return event

    def _question(self, found: Asked, owner: Owner | None) -> DnsQuery:
        if found.answer:
            self.names.add(found.answer, found.domain)
        if not found.allowed and found.domain not in self._own_names:
            hint = "" if found.rule else f"--allow {found.domain}"
            # most programs ask for both kinds of addresses at once
            count = int(found.qtype != "AAAA")
            self._count_refused(found, owner, found.domain, hint, count)
        return DnsQuery(
            proc=None if owner is None else owner.proc,
            domain=found.domain,
            qtype=found.qtype,
            rcode=found.rcode,
            answers=tuple(found.answer.split()),
            decision=_decision(found.allowed),
            rule=found.rule or None,
            ttl=found.ttl if found.answer else None,
            extra=_extra(
                found,
                *(("client_port", found.client_port), ("reason", found.reason)),
                *_looked_up(found, owner),
            ),
        )

    def _attempt(self, found: Attempt, owner: Owner | None) -> NetConnect:
        host = found.domain or found.target
        scope = _scope(found.spoken, host, found.port)
        counts = self._scope(scope, owner)
        if not found.allowed:
            counts[1] += 1
            if not self.used_up:
                self._count_refused(found, owner, _endpoint(host, found.port), found.hint)
        elif not found.result:
            counts[0] += 1
            self._of_connection[found.connection] = scope, owner
        elif found.ip or found.result.startswith(f"{found.domain}: "):
            # the server's doing, or its name's; not of a client that did not wait
            key = self._command(owner), _endpoint(host, found.port)
            if key in self._unreached or len(self._unreached) < _MOST_DENIED:
                self._unreached.setdefault(key, [found.result, 0])[1] += 1
        return NetConnect(
            connection=self._base + found.connection,
            proc=None if owner is None else owner.proc,
            domain=found.domain or None,
            ip=found.ip or None,
            port=found.port,
            protocol=found.protocol,
            name=found.said or None,
            decision=_decision(found.allowed),
            rule=found.rule or None,
            reason=found.reason or None,
            result=found.result or None,
            resolved=_resolution(found),
            extra=_extra(
                found,
                ("target", found.target),
                ("client_port", found.client_port),
                ("spoken", found.spoken),
                *_looked_up(found, owner),
            ),
        )

    def _closed(self, found: Closed, written: Written | None) -> Event:
        """Of whoever has made it, though others may have had it at the end."""
        scope, owner = self._of_connection.pop(found.connection, (None, None))
        if scope is not None:
            counts = self._scope(scope, owner)
            counts[2] += found.bytes_in
            counts[3] += found.bytes_out
        body = NetClose(
            connection=self._base + found.connection,
            proc=None if owner is None else owner.proc,
            bytes_in=found.bytes_in,
            bytes_out=found.bytes_out,
            duration_us=found.duration_us,
            reason=found.reason or None,
            stream_in=None if written is None else written.stream_in,
            stream_out=None if written is None else written.stream_out,
            streams=None if written is None else written.streams,
            extra=_extra(
                found, ("packets_in", found.packets_in), ("packets_out", found.packets_out)
            ),
        )
        return self._told(body, owner)

    def _accepted(self, found: Accepted) -> NetAccept:
        if not found.result:
            scope = f"published:{found.local_port}"
            self._scope(scope, None)[0] += 1
            self._of_connection[found.connection] = scope, None
        return NetAccept(
            connection=self._base + found.connection,
            proc=None,
            ip=found.ip,
            port=found.port,
            protocol="tcp",
            extra=_extra(found, ("local_port", found.local_port), ("result", found.result)),
        )

    def _kernel(self, found: Refused, owner: Owner | None) -> NetConnect:
        host = found.domain or found.ip
        scope = _scope(found.protocol, host, found.port)
        self._scope(scope, owner)[1] += 1
        what = _endpoint(host, found.port) if found.protocol == "tcp" else scope
        self._count_refused(found, owner, what, found.hint)
        return NetConnect(
            connection=self._base + found.connection,
            proc=None if owner is None else owner.proc,
            domain=found.domain or None,
            ip=found.ip or None,
            port=found.port,
            protocol=found.protocol,
            name=None,
            decision="deny",
            rule=None,
            reason=found.reason or None,
            result=None,
            extra=_extra(
                found,
                *(("client_port", found.client_port), ("uid", found.uid)),
                *_looked_up(found, owner),
            ),
        )

    def rules(self, rules: dict[str, Any], linked: Linked | None = None) -> Event:
        """The event of rules that are in force from now on, and of the link that they are for, where it is new."""
        texts = {name: list(rules[name]) for name in ("allow", "deny", "private", "host_ports")}
        digest = sha256_hex(encode(texts))
        layer = PolicyLayer(name="net", digest=digest)
        extra: list[tuple[str, Any]] = [("net", texts)]
        if linked is not None:
            names = ("interface", "address4", "address6", "without_ipv6")
            known = {name: getattr(linked, name) for name in names}
            extra.append(("link", {name: text for name, text in known.items() if text}))
        body = PolicyLoaded(digest=digest, layers=(layer,), extra=tuple(extra))
        return self._told(body, None)

    # --- what it came to

    def _command(self, owner: Owner | None) -> str | None:
        if self._command_of is None or owner is None:
            return self._span
        return self._command_of(owner.proc)

    def _scope(self, scope: str, owner: Owner | None) -> list[int]:
        own = self._scopes.setdefault(self._command(owner), {})
        if scope not in own and len(own) >= _MOST_SCOPES:
            scope = "others"
        return own.setdefault(scope, [0, 0, 0, 0])

    def share(self) -> None:
        """What is nobody's belongs to no command any more."""
        self._span = None

    def is_open(self, command: str) -> bool:
        """Whether a connection of a command is not told to be closed."""
        return any(
            self._command(owner) == command
            for _, owner in self._of_connection.values()
            if owner is not None
        )

    def forget(self, command: str) -> None:
        """It has its end: what came of its network was told."""
        self._scopes.pop(command, None)
        for kept in (self._refused, self._unreached):
            for key in [key for key in kept if key[0] == command]:
                del kept[key]

    def _count_refused(
        self,
        found: Asked | Attempt | Refused,
        owner: Owner | None,
        what: str,
        hint: str,
        count: int = 1,
    ) -> None:
        key = self._command(owner), what
        if key not in self._refused and len(self._refused) >= _MOST_DENIED:
            return
        told = self._refused.setdefault(key, [found.reason, hint, 0, {}])
        told[2] += count
        if owner is not None:
            who = printable(owner.program), owner.pid
        else:
            who = found.program, found.pid
        if who[0] and who[1] and len(told[3]) < _MOST_WHO:
            told[3][who] = None

    def scopes(self, command: str | None = None) -> tuple[Scope, ...]:
        """For `command_end`: by name. None: of all commands."""
        told: dict[str, list[int]] = {}
        for whose, own in self._scopes.items():
            if command in (None, whose):
                for name, counts in own.items():
                    before = told.get(name, [0, 0, 0, 0])
                    told[name] = [a + b for a, b in zip(before, counts, strict=True)]
        return tuple(
            Scope(scope=name, connections=n[0], refused=n[1], bytes_in=n[2], bytes_out=n[3])
            for name, n in sorted(told.items())
        )

    def refusals(self, command: str | None = None) -> tuple[Refusal, ...]:
        """What was refused, in the order in which it came. None: to all commands."""
        return tuple(
            Refusal(
                what=what,
                reason=reason,
                hint=hint,
                count=count,
                who="{} (pid {})".format(*next(iter(who))) if who else "",
                others=max(0, len(who) - 1),
            )
            for (whose, what), (reason, hint, count, who) in self._refused.items()
            if command in (None, whose)
        )

    def unreached(self, command: str | None = None) -> tuple[tuple[str, str, int], ...]:
        """What was allowed and not reached: host and port, why, how often. None: by all commands."""
        return tuple(
            (what, why, count)
            for (whose, what), (why, count) in self._unreached.items()
            if command in (None, whose)
        )

    def coverage(self, *, looked_up: bool, listened: tuple[int, ...] | None = None) -> list[Event]:
        """What of the network's record is not known; nothing, where all is. `looked_up`: owners were, as
        nothing was captured that tells of them. `listened`: the ports that lead out where there is no
        packet filter, which would tell of what it refuses; None: there is one."""
        spots = [_LOOKED_UP] if looked_up and self._asked else []
        if listened is not None:
            spots.append(_UNTOLD.format(leads_out(listened)))
        if self._unknown:
            spots.append(
                f"whose {self._unknown} of {self._asked} questions and connections were: "
                f"{_GONE if looked_up else _NO_CALL}"
            )
        if not spots:
            return []
        body = Coverage(backend="egress", level="net", blind_spots=tuple(spots), lost=0)
        return [self._told(body, None)]


def _resolution(found: Attempt) -> Resolution | None:
    """None where no name was looked up."""
    if not found.resolved_count and not found.resolve_error:
        return None
    return Resolution(
        addresses=tuple(found.resolved.split()),
        count=found.resolved_count,
        error=found.resolve_error or None,
    )


def _decision(allowed: bool) -> str:
    return "allow" if allowed else "deny"


def _endpoint(host: str, port: int) -> str:
    if not port:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _scope(spoken: str, host: str, port: int) -> str:
    protocol = "tcp"
    if spoken in ("tls", "http", "udp", "icmp", "icmpv6") or spoken.startswith("protocol "):
        protocol = spoken.replace(" ", "-")
    return f"{protocol}://{_endpoint(host, port)}"


def _looked_up(found: Asked | Attempt | Refused, owner: Owner | None) -> Extra:
    """Who it was, by the host's pid, where the record has no number of a process for it."""
    if owner is not None:
        return ()
    return ("host_pid", found.pid), ("program", found.program)


def _extra(found: Any, *more: tuple[str, Any]) -> tuple[tuple[str, Any], ...]:
    return (("mono_us", found.time_us), *((key, item) for key, item in more if item not in ("", 0)))
