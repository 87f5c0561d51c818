"""What an approver is told of an exec that is held. Loaded with the first question.

Spec: policy.md §3: command, cwd, parent chain, risk, rule.
"""

from __future__ import annotations

import os

from substrate.policy.names import last_name
from substrate.policy.wrappers import scripts_in
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
    held = held_of(hold, who, digest, looks)
    path = next((word[5:] for word in held.variables or () if word[:5] == b"PATH="), b"")
    return Asked(
        ticket=hold.number,
        action=action,
        held=held,
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


def held_of(
    hold: Hold, who: Process, digest: Callable[[Hold, bytes], str | None], looks: Looks
) -> Held:
    """What is held, as it is at the moment; what is equal later is the same still."""
    script, script_digest = _script_of(hold, who, digest, looks)
    return Held(
        argv=hold.argv,
        program=hold.programs[0] if hold.programs else b"",
        cwd=who.cwd,
        interpreters=hold.programs[1:],
        digests=tuple(digest(hold, path) or "" for path in hold.programs),
        cut=hold.cut,
        variables=looks.variables_of(hold.tid),
        script=script,
        script_digest=script_digest,
    )


def _script_of(
    hold: Hold, who: Process, digest: Callable[[Hold, bytes], str | None], looks: Looks
) -> tuple[bytes, str]:
    """What the words give an interpreter to read, and its digest: "" where it cannot be told. A script that is
    exec'd is a program of the hold itself."""
    if len(hold.programs) != 1:
        return b"", ""
    words = scripts_in(last_name(hold.programs[0].removesuffix(b" (deleted)")), hold.argv)
    if not words:
        return b"", ""
    path = looks.path_of(hold.tid, words[0])
    if (
        path is None and who.is_first
    ):  # nobody may look into our own program: it stands where it was put
        path = os.path.normpath(os.path.join(who.cwd, words[0]))
    if path is None or len(words) > 1:  # its words can be read in several ways
        return words[0], ""
    return path, digest(hold, path) or ""
