"""The broker's policy and its decisions (trace.md §4; policy.md)."""

from __future__ import annotations

from .body import Body, body

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .body import Extra, Text


@body
class PolicyLayer(Body):
    """One file or profile that the policy was made from."""

    name: Text
    digest: str
    trusted: bool | None = None
    extra: Extra = ()


@body
class PolicyLoaded(Body):
    """At start and at each hot reload. `digest`: of the policy in force."""

    event_type = "policy_loaded"
    digest: str
    layers: tuple[PolicyLayer, ...]
    extra: Extra = ()


@body
class PolicyDecision(Body):
    """`kind`: exec, fs, net or api; `decision`: allow, deny, ask or isolate; `action`: what was
    done. `approved_for_us`: how long an approval holds, left out for once."""

    event_type = "policy_decision"
    kind: str
    subject: Text
    decision: str
    action: str
    rule: str | None
    policy_digest: str
    reason: str | None = None
    approved_by: str | None = None
    approved_for_us: int | None = None
    extra: Extra = ()
