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
    from substrate.session.gating_looks import Looks
    from substrate.telemetry.capture.holds import Hold


def asked_of(
    action: str,
    policy_digest: str,
    hold: Hold,
    who: Process,
    verdict: Verdict,
    digest: Callable[[Hold, bytes], str | None],
    looks: Looks,
) -> Asked:
    """`digest`: hex SHA-256 of a program of what is held, None where it cannot be had."""
    variables = looks.variables_of(hold.tid)
    path = next((word[5:] for word in variables or () if word[:5] == b"PATH="), b"")
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
            variables=variables,
        ),
        leads=tuple(
            looks.leads_to(hold.tid, line[0], path) if line and path else frozenset()
            for line in verdict.read_as
        ),
        verdict=verdict,
        policy_digest=policy_digest,
        span=who.span,
        procs=who.procs,
        chain=who.chain,
    )
