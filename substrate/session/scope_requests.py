"""What processes of a world ask for beyond it: a host to reach, a hidden path to see. A person answers.

They ask by the verb `request_scopes` at the world's own door. Nothing is given without an answer, and what the policy denies,
or locks, is not even asked about. A yes holds for the session: a host at once, also for what runs; a path from the session's next world on,
since mounts of one that lives cannot be changed. A no holds as well, so that nobody is asked the same again and again. Each answer is on
the record. Invariants: everything that is asked is hostile, bounded, and shown as it will be granted; a client that waits blocks
nobody. Spec: shell.md §2, §5; policy.md §3.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from substrate.policy import rules
from substrate.session import doors, gated_command
from substrate.session.approvals_values import NO_END_US, SCOPE, Answer, Asked, Held
from substrate.session.client_call import BadCall
from substrate.telemetry.trace.events.policy import PolicyDecision
from substrate.values import replace, value
from substrate.world.egress.rules import BadRule, Rules, parse_rule

if TYPE_CHECKING:
    from collections.abc import Callable

    from substrate.session.approving import Approving
    from substrate.session.approving_shared import View
    from substrate.session.daemon import Daemon
    from substrate.session.doors import Client
    from substrate.session.live_world import LiveWorld
    from substrate.session.loop import Waiting

REACH, READ = "reach", "read"
_KINDS: Final = {REACH: "net", READ: "fs"}
_MOST_WAITING: Final = 16
#: different things that a session is asked for
_MOST_ASKED: Final = 200
_LONGEST: Final = 300
_ACTION: Final = "scopes"


@value
class Wanted:
    """`what`: reach a host (a rule), or read a path."""

    what: str
    text: str


class Refused(Exception):
    """What is not asked about: why, and by which rule."""

    def __init__(self, why: str, rule: str | None = None) -> None:
        super().__init__(why)
        self.rule = rule


class ScopeRequests:
    """Of one session; a part of its supervisor's loop."""

    def __init__(self, daemon: Daemon, paused: Callable[[], Any], *, terminal: bool) -> None:
        self._daemon, self._paused, self._terminal = daemon, paused, terminal
        self._approver: Approving | View | None = None
        #: by question: who waits for its answer
        self._waiting: dict[int, tuple[Wanted, list[Client]]] = {}
        self._refused = 0
        self._known: dict[Wanted, bool] = {}
        self._number = 0
        #: what was granted, for worlds to come
        self.hosts: tuple[str, ...] = ()
        self.paths: tuple[bytes, ...] = ()

    # --- what is asked

    @property
    def state(self) -> bytes:
        """Where substrate keeps its own."""
        return self._daemon.session.home.path

    def take(
        self, client: Client, given: dict[str, Any], span: str | None, world: LiveWorld
    ) -> None:
        """Answers now, or when somebody has. Raises BadCall."""
        wanted = parse(given)
        reason = given.get("reason", "")
        if not isinstance(reason, str) or len(reason) > _LONGEST or not reason.isprintable():
            raise BadCall("a reason is one line")
        known = self._known.get(wanted)
        if known is not None:
            self._answer(client, wanted, known, "answered before")
            return
        try:
            if self._is_there(wanted, world):
                self._answer(client, wanted, True, "it is there already")
                return
            if len(self._known) + len(self._waiting) >= _MOST_ASKED:
                raise Refused(f"{_MOST_ASKED} different things were asked for")
            if len(self._waiting) >= _MOST_WAITING:
                raise Refused(f"{_MOST_WAITING} requests wait for an answer")
        except Refused as refused:
            self._refused += 1
            if self._refused <= _MOST_ASKED:  # whoever tries without an end is told of for a while
                self._tell(wanted, span, "denied", str(refused), rule=refused.rule)
            self._answer(client, wanted, False, str(refused))
            return
        for asked, clients in self._waiting.values():
            if asked == wanted and len(clients) < _MOST_WAITING:
                client.busy = True
                clients.append(client)
                return
        self._ask(client, wanted, reason, span)

    def _ask(self, client: Client, wanted: Wanted, reason: str, span: str | None) -> None:
        session = self._daemon.session
        gating = gated_command.load(session.settings, session.workspace.path, session.workspace)
        if self._approver is None:
            gated_command.may_ask(gating, session, _ACTION, self._paused, terminal=self._terminal)
            self._approver = gating.asking()
        assert self._approver is not None
        self._number += 1
        text = f"a program asks for it{': ' * bool(reason)}{reason}"
        verdict = rules.Verdict(
            action=rules.ASK, rule=None, layer="", reason=text, risk="medium",
            risk_reason="it goes beyond what the policy gives",
        )  # fmt: skip
        argv = (wanted.what.encode(), os.fsencode(wanted.text))
        asked = Asked(
            ticket=self._number,
            action=_ACTION,
            held=Held(argv=argv, program=b"", cwd=session.workspace.path),
            verdict=verdict,
            policy_digest=gating.broker.digest,
            span=span or "",
            touches=(wanted.text,),
            kind=SCOPE,
        )
        client.busy = True
        self._waiting[self._number] = wanted, [client]
        answer = self._approver.ask(asked, time.monotonic())
        if answer is not None:
            self._take(replace(answer, ticket=asked.ticket))

    def _is_there(self, wanted: Wanted, world: LiveWorld) -> bool:
        """Whether it needs no answer. Raises Refused for what nobody is asked about."""
        return _reaches(wanted, world) if wanted.what == REACH else _reads(self, wanted, world)

    # --- the loop

    def wait_for(self, waiting: Waiting) -> None:
        if self._approver is None:
            return
        for number, (_, clients) in tuple(self._waiting.items()):
            if all(client.is_gone for client in clients):
                del self._waiting[number]
                self._approver.withdraw(number)
        self._pump(waiting.now)
        for fd, events in self._approver.fds():
            waiting.on(fd, events, _nothing)  # the next turn looks
        waiting.until(self._approver.next_look())

    def _pump(self, now: float) -> None:
        assert self._approver is not None
        self._approver.pump(now)
        for answer in self._approver.answers():
            self._take(answer)

    def _take(self, answer: Answer) -> None:
        number = answer.ticket if isinstance(answer.ticket, int) else 0
        found = self._waiting.pop(number, None)
        if found is None:
            return
        wanted, clients = found
        allowed, why = answer.allowed, ""
        if answer.approved_by is not None:  # a person has said so, and not the time
            self._known[wanted] = allowed
        if allowed:
            try:
                self._tell(wanted, None, "allowed", answer.line or None, by=answer)
                self._grant(wanted)  # after what says so
            except Exception as failed:  # noqa: BLE001 - an edge: it is denied, and ends nobody else
                allowed, why = False, str(failed)
                self._known.pop(wanted, None)
        if not allowed:
            try:
                self._tell(wanted, None, "denied", why or answer.line or None, by=answer)
            except Exception as failed:  # noqa: BLE001 - as above
                self._daemon.log(f"that {wanted.text} was denied is not on the record: {failed!r}")
        how = "for this session" if allowed else why or answer.line or "nobody allowed it"
        if allowed and wanted.what == READ:
            how += ", from its next world on"
        for client in clients:
            self._answer(client, wanted, allowed, how)

    def _grant(self, wanted: Wanted) -> None:
        if wanted.what == READ:
            self.paths = (*self.paths, os.fsencode(wanted.text))
            return
        living = self._daemon.worlds.living
        if living is not None and living.world.network is not None:
            living.world.network.allow([wanted.text])
        self.hosts = (*self.hosts, wanted.text)

    def close(self) -> None:
        if self._approver is not None:
            self._approver.close()

    # --- what is told

    def _answer(self, client: Client, wanted: Wanted, allowed: bool, why: str) -> None:
        found = {
            "schema": "substrate.session.scopes/1",
            wanted.what: wanted.text,
            "allowed": allowed,
            "why": why,
        }
        client.answer(doors.plain(found))

    def _tell(
        self,
        wanted: Wanted,
        span: str | None,
        done: str,
        why: str | None,
        *,
        rule: str | None = None,
        by: Answer | None = None,
    ) -> None:
        session = self._daemon.session
        if not session.started:
            return
        told = PolicyDecision(
            kind=_KINDS[wanted.what],
            subject=wanted.text,
            decision="deny" if by is None else "ask",
            action=done,
            rule=rule,
            policy_digest="" if by is None else self._digest(),
            reason=why,
            approved_by=None if by is None else by.approved_by,
            approved_for_us=NO_END_US if by is not None and done == "allowed" else None,
            extra=(("asked_by", "request_scopes"), *(() if by is None else by.extra)),
        )
        session.writer.append([told.event("broker", span_id=span)])

    def _digest(self) -> str:
        living = self._daemon.worlds.living
        scopes = None if living is None else living.world.scopes
        return "" if scopes is None else scopes.digest


def parse(given: dict[str, Any]) -> Wanted:
    """Of the arguments `host` or `path`, one of them. Raises BadCall."""
    host, path = given.get("host"), given.get("path")
    if isinstance(host, str) and path is None:
        if len(host) > _LONGEST or not host.isprintable() or not host.isascii():
            raise BadCall("a host is a name or an address, such as example.com:443")
        try:
            rule = parse_rule(host, "allow")
        except BadRule as wrong:
            raise BadCall(str(wrong)) from None
        if rule.wildcard or (
            rule.range is not None and rule.range.bits < 8 * len(rule.range.address)
        ):
            raise BadCall("one host is asked for at a time: example.com:443, or 203.0.113.7:22")
        return Wanted(what=REACH, text=host)
    if isinstance(path, str) and host is None:
        plain = path.startswith("/") and "\0" not in path and os.path.normpath(path) == path
        if not plain or len(path) > 4096 or not path.isprintable():
            raise BadCall("a path is absolute, and without `.` and `..`")
        return Wanted(what=READ, text=path)
    raise BadCall("request_scopes takes a host or a path")


def _reaches(wanted: Wanted, world: LiveWorld) -> bool:
    network = world.network
    if network is None or not world.is_filtered:
        raise Refused(f"the network of this world is {world.frame.net}, which nothing opens")
    scopes = world.scopes
    if scopes is not None and scopes.locked:
        raise Refused(f"{scopes.locked} of the policy is final", f"final of {scopes.locked}")
    allow, deny = network.rules_in_force()
    rule = parse_rule(wanted.text, "allow")
    denying = [parse_rule(text, "deny") for text in deny]
    asked = _decide(Rules([rule], denying), wanted.text)
    if asked is not None:
        raise Refused(asked[0], asked[1])
    return (
        _decide(Rules([parse_rule(text, "allow") for text in allow], denying), wanted.text) is None
    )


def _decide(found: Rules, text: str) -> tuple[str, str | None] | None:
    """None where a host is reached by these rules; else why not, and by which."""
    rule = parse_rule(text, "allow")
    if rule.range is not None:
        decision = found.address(rule.range.address, rule.low_port or 443)
    elif rule.low_port:
        decision = found.connect(rule.name, rule.low_port)
    else:
        decision = found.name(rule.name)
    return None if decision.allowed else (decision.reason, decision.rule or None)


def _reads(requests: ScopeRequests, wanted: Wanted, world: LiveWorld) -> bool:
    path = os.fsencode(wanted.text)
    covers, scopes = world.covers, world.scopes
    if path in requests.paths:
        return True
    if scopes is not None and scopes.locked:
        raise Refused(f"{scopes.locked} of the policy is final", f"final of {scopes.locked}")
    if scopes is not None and any(_is_in(path, each) for each in scopes.hidden):
        raise Refused("fs.read_deny of the policy covers it", "fs.read_deny")
    home = os.path.realpath(requests.state)
    if _is_in(path, home) or _is_in(home, path):
        raise Refused("SUBSTRATE_HOME lies there, which no world sees")
    if path in world.settings.hide:
        raise Refused("the setting `hide` covers it")
    covered = {*covers.directories, *covers.files}
    if path in covered:
        return False
    above = next((each for each in covers.directories if _is_in(path, each)), None)
    if above is not None:
        raise Refused(f"{os.fsdecode(above)} is hidden as a whole: ask for that")
    return True


def _is_in(path: bytes, directory: bytes) -> bool:
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


def _nothing() -> None:
    return
