"""Decisions that stand in a trace, with what is known of their rules.

Pure. Where a decision names no rule (the gate's own table answered), the policy that is in force now is asked; that
it is the same one, its digest says. Spec: policy.md §5, trace.md §4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from substrate.policy import recorded_net
from substrate.policy.allowing import GOES, Allowing, what_allows
from substrate.policy.broker import Broker
from substrate.policy.rules import CommandRule, Subject
from substrate.telemetry.trace.octets import bytes_of

#: what rules are called that are none of a command
_TABLES = ("fs.", "limits.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedDecision:
    """One decision. `kind`: exec, fs, net, api, or command for that on a whole command. `layer`, `place`: of
    the rule, where it is known. `same_policy`: the policy then was the one in force now; None where the
    trace does not say. `allowing`: what would let it through, None where it did run."""

    seq: int
    ts: str
    kind: str
    argv: tuple[bytes, ...]
    subject: bytes
    decision: str
    action: str
    rule: str | None
    layer: str | None
    place: str | None
    reason: str
    approved_by: str | None
    same_policy: bool | None
    allowing: Allowing | None


def explain(
    events: Iterable[dict[str, Any]], broker: Broker, has: Callable[[dict[str, Any]], bool]
) -> list[RecordedDecision]:
    """All decisions of those events for which `has` holds; `events`: all of a trace, in its order."""
    digest = ""
    scopes: dict[str, Any] = {}
    found = []
    for event in events:
        body = event["body"]
        kind = event["event_type"]
        mine = has(event)  # of every line, in their order: it follows who forked whom
        if kind == "policy_loaded" and any(layer["name"] != "net" for layer in body["layers"]):
            digest = body["digest"]
        elif kind == "world_start":
            scopes = body.get("scopes") or {}
        elif recorded_net.is_refusal(event) and mine:
            found.append(_refusal(event, body, scopes, digest, broker))
        elif kind == "policy_decision" and mine:
            found.append(_decision(event, body, broker))
        elif kind == "command_start" and mine:
            found.append(_command(event, body, broker, digest))
    return found


def _decision(
    event: Mapping[str, Any], body: Mapping[str, Any], broker: Broker
) -> RecordedDecision:
    argv = tuple(bytes_of(word) for word in body.get("argv") or ())
    subject = bytes_of(body["subject"])
    ran = body["action"] in (*GOES, "allowed")
    return _explained(
        event,
        broker,
        kind=body["kind"],
        argv=argv,
        subject=subject,
        decision=body["decision"],
        action=body["action"],
        rule=body.get("rule"),
        reason=body.get("reason") or "",
        approved_by=body.get("approved_by"),
        digest=body.get("policy_digest") or "",
        ran=ran,
    )


def _refusal(
    event: Mapping[str, Any],
    body: Mapping[str, Any],
    scopes: Mapping[str, Any],
    digest: str,
    broker: Broker,
) -> RecordedDecision:
    """Of the network."""
    rule, layer = body.get("rule"), None
    if rule is not None:
        rule, layer = recorded_net.layer_in(scopes, rule)
    return RecordedDecision(
        seq=event["seq"],
        ts=event["ts"],
        kind="net",
        argv=(),
        subject=recorded_net.subject_of(body).encode(),
        decision="deny",
        action="deny",
        rule=rule,
        layer=layer,
        place=None,
        reason=body.get("reason") or "",
        approved_by=None,
        same_policy=digest == broker.digest if digest else None,
        allowing=recorded_net.what_allows(body, rule, layer or ""),
    )


def _command(
    event: Mapping[str, Any], body: Mapping[str, Any], broker: Broker, digest: str
) -> RecordedDecision:
    decision = body["policy_decision"]
    argv = tuple(bytes_of(word) for word in body["display"]["argv"])
    return _explained(
        event,
        broker,
        kind="command",
        argv=argv,
        subject=argv[0] if argv else b"",
        decision=decision["action"],
        action=decision["action"],
        rule=decision.get("rule"),
        reason=decision["reason"],
        approved_by=None,
        digest=digest,
        ran=decision["action"] in GOES,
    )


def _explained(
    event: Mapping[str, Any],
    broker: Broker,
    *,
    kind: str,
    argv: tuple[bytes, ...],
    subject: bytes,
    decision: str,
    action: str,
    rule: str | None,
    reason: str,
    approved_by: str | None,
    digest: str,
    ran: bool,
) -> RecordedDecision:
    layer = place = None
    if rule is None and argv and decision not in GOES and kind in ("exec", "command"):
        program = subject if subject.startswith(b"/") else b""
        now = broker.decide(Subject(argv=argv, program=program))
        if now.action == decision:
            rule = now.rule
            reason = now.reason or reason
    found = rule_named(broker, rule)
    if found is not None:
        layer, place = found[0], found[1].place
    elif rule is not None and rule.startswith(_TABLES):
        layer = rule.partition(" of ")[2]
    allowing = None
    if not ran and argv and kind in ("exec", "command"):
        program = subject if subject.startswith(b"/") else b""
        allowing = what_allows(broker.policy, Subject(argv=argv, program=program))
    return RecordedDecision(
        seq=event["seq"],
        ts=event["ts"],
        kind=kind,
        argv=argv,
        subject=subject,
        decision=decision,
        action=action,
        rule=rule,
        layer=layer,
        place=place,
        reason=reason,
        approved_by=approved_by,
        same_policy=digest == broker.digest if digest else None,
        allowing=allowing,
    )


def rule_named(broker: Broker, name: str | None) -> tuple[str, CommandRule] | None:
    """(name of its layer, the rule) in the policy that is in force now."""
    for layer in broker.policy.layers:
        for rule in layer.commands:
            if rule.name == name:
                return layer.name, rule
    return None
