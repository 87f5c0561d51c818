"""What an approver is told of an exec that is held. Loaded with the first question.

Spec: policy.md §3: command, cwd, parent chain, risk, rule.
"""

from __future__ import annotations

from substrate.session.approvals_values import Asked, Held

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from substrate.policy.rules import Verdict
    from substrate.session.gating import Process
    from substrate.telemetry.capture.holds import Hold


def asked_of(
    action: str,
    policy_digest: str,
    hold: Hold,
    who: Process,
    verdict: Verdict,
    digest: Callable[[Hold, bytes], str | None],
) -> Asked:
    """`digest`: hex SHA-256 of a program of what is held, None where it cannot be had."""
    return Asked(
        ticket=hold.number,
        action=action,
        held=Held(
            argv=hold.argv,
            program=hold.programs[0] if hold.programs else b"",
            cwd=who.cwd,
            interpreters=hold.programs[1:],
            digests=tuple(digest(hold, path) or "" for path in hold.programs),
            cut=hold.cut,
        ),
        verdict=verdict,
        policy_digest=policy_digest,
        span=who.span,
        procs=who.procs,
        chain=who.chain,
    )
