"""A shim outside of worlds: a command of the host that asks whether it may run.

It runs on the host, beside the session's world, and nothing of it is captured: what is on the record
is that it was asked for, and what was decided. Not what a world's processes ask (inside.py), nor a command
that the supervisor runs (executing.py). Invariant: an answer is given at once. Spec: shell.md §3.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from substrate.session import client_call
from substrate.telemetry.trace.events.policy import PolicyDecision
from substrate.telemetry.trace.ids import new_span_id

if TYPE_CHECKING:
    from substrate.session.client_call import Call
    from substrate.session.doors import Client
    from substrate.session.inside import DecideExec
    from substrate.session.live_session import LiveSession

_MOST_SUBJECT = 1000


def answer(session: LiveSession, client: Client, call: Call, decide: DecideExec) -> None:
    """Answers an EXECUTE of mode `shim` or `ask`, and closes. `ask` alone runs nothing: what the asker goes
    on to do is asked for again. No profile that grants a bypass is known here, so it is ignored."""
    decided = decide(call, call.parent)
    span = new_span_id()
    if decided.allowed and session.started and call.mode == client_call.SHIM:
        subject = b" ".join(call.argv)[:_MOST_SUBJECT].decode("utf-8", "backslashreplace")
        told = PolicyDecision(
            kind="exec",
            subject=f"{os.fsdecode(call.file)}: {subject}".encode(
                "utf-8", "backslashreplace"
            ).decode(),
            decision="allow",
            action="shim",
            rule=None,
            policy_digest=decided.digest,
        )
        session.writer.append([told.event("shell", span_id=span, parent_span_id=call.parent)])
    if decided.allowed:
        client.send(client_call.ACCEPTED, span, call.parent or "", "{}")
    else:
        client.send(client_call.DENIED, 126, decided.line, decided.rule)
    client.close()
