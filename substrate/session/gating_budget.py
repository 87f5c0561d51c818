"""The count of programs that a policy lets a command run (`[limits] execs`), when it is used up.

Counting is the gate's (gating.py). Here is what is told of it: the denial of one more, the event, the line for a
user. Spec: policy.md §1; shell.md §5 ("every stop is a `budget` event").
"""

from __future__ import annotations

from substrate.policy import rules
from substrate.session.denials import Denial
from substrate.telemetry.trace.events.notice import Budget
from substrate.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.policy.rules import Policy, Verdict
    from substrate.telemetry.trace.envelope import Event

CODE: Final = "execs_limit"


def _layer(policy: Policy) -> str:
    said = (
        each.name for each in reversed(policy.layers) if each.limits.execs == policy.limits.execs
    )
    return next(said, "")


def denied(verdict: Verdict, policy: Policy) -> Verdict:
    """Of one program more than may run."""
    most = policy.limits.execs
    return replace(
        verdict,
        action=rules.DENY,
        rule=f"limits.execs of {_layer(policy)}",
        layer=_layer(policy),
        place="",
        reason=f"{most} programs were run, and no more may be",
    )


def spent(policy: Policy, span: str) -> Event:
    """That a command was ended by it."""
    most = policy.limits.execs or 0
    body = Budget(budget="execs", used=most, limit=most, stopped="the command")
    return body.event("broker", span_id=span)


def told(policy: Policy) -> Denial:
    text = (
        f"the command was ended: it had run {policy.limits.execs} programs, the most that limits.execs of "
        f"{_layer(policy)} allows (124)"
    )
    return Denial(code=CODE, text=text)
