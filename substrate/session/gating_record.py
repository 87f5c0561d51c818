"""The events of a policy: that it was loaded, and what it decided of an exec (trace.md §4).

Logic only. What is written is redacted by the writer, as every line.
"""

from __future__ import annotations

from substrate.telemetry.trace.events.policy import PolicyDecision, PolicyLayer, PolicyLoaded
from substrate.telemetry.trace.octets import text_or_b64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from substrate.policy.rules import Policy, Verdict
    from substrate.session.approvals_values import Answer
    from substrate.telemetry.capture.holds import Gated, Hold
    from substrate.telemetry.trace.envelope import Event

#: an audited exec is one that is allowed, and told of
_DECIDED: Final = {"audit": "allow"}
_DONE: Final = {"kill": "killed", "deny": "denied", "allow": "allowed"}
#: why the engine itself decided, for people
WHY: Final = {
    "unreadable": "its path, its arguments or its file could not be read",
    "raced": "what ran was not what had been asked about: it was changed in between",
    "unapproved": "what ran had not been asked about",
    "timeout": "nobody answered in time",
    "client": "it could not be asked about: too many execs waited",
    "dying": "it was ended while it waited",
}


def loaded(policy: Policy) -> Event:
    """That a policy is in force."""
    layers = tuple(
        PolicyLayer(name=layer.name, digest=layer.digest, trusted=layer.trusted)
        for layer in policy.layers
    )
    extra = (("ignored", list(policy.ignored)),) if policy.ignored else ()
    return PolicyLoaded(digest=policy.digest, layers=layers, extra=extra).event("broker")


def decision_of(
    gated: Gated,
    hold: Hold | None,
    verdict: Verdict | None,
    answer: Answer | None,
    how: str,
    digest: str,
) -> PolicyDecision:
    """What came of one exec. `verdict`: None where the policy had no say; `how`: why nobody was asked."""
    extra: list[tuple[str, Any]] = [
        ("argv", [text_or_b64(word) for word in gated.argv]),
        ("gate", gated.reason),
    ]
    if hold is not None and hold.programs:
        extra.append(("programs", [text_or_b64(path) for path in hold.programs]))
    if verdict is not None:
        extra += [("layer", verdict.layer), ("risk", verdict.risk)]
        extra += [("place", verdict.place)] if verdict.place else []
        extra += [("audited", True)] if verdict.action == "audit" else []
    if answer is not None:
        extra += [("how", answer.how), *answer.extra]
    elif how:
        extra.append(("how", how))
    reason = WHY.get(gated.reason, "")
    if verdict is not None and verdict.reason:
        reason = f"{verdict.reason}; {reason}" if reason else verdict.reason
    return PolicyDecision(
        kind="exec",
        subject=gated.path,
        decision=_decision(gated, verdict),
        action=_DONE.get(gated.decision, "denied"),
        rule=None if verdict is None else verdict.rule,
        policy_digest=digest,
        reason=reason or None,
        approved_by=None if answer is None else answer.approved_by,
        approved_for_us=None if answer is None else answer.approved_for_us,
        extra=tuple(extra),
    )


def _decision(gated: Gated, verdict: Verdict | None) -> str:
    if gated.decision == "kill" or verdict is None:
        return "deny" if gated.decision != "allow" else "allow"
    return _DECIDED.get(verdict.action, verdict.action)
