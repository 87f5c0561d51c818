"""A shim outside of worlds: a command of the host that asks whether it may run.

It runs on the host, beside the session's world, and nothing of it is captured: what is on the record is that it was
asked for, and what was decided. No world contains it, so what no rule names is asked about (policy.md §1): on the
terminal of who called it, else by the session's other channels, else it is denied with what would allow it. A policy that
only observes, and rules that allow or audit, let it pass. Not what a world's processes ask (inside.py), nor a command
that the supervisor runs (executing.py). Invariants: nothing passes that is not on the record first; a question ends with its
asker. Spec: shell.md §3, policy.md §1, §3.
"""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

from substrate.policy import rules
from substrate.session import client_call, gated_command, gating_lines, gating_top
from substrate.session.gating import Patience
from substrate.telemetry.trace.events.notice import Bypass
from substrate.telemetry.trace.events.policy import PolicyDecision
from substrate.telemetry.trace.ids import new_span_id
from substrate.telemetry.trace.octets import text_or_b64
from substrate.values import replace

if TYPE_CHECKING:
    from typing import Any, Final

    from substrate.policy.rules import Policy, Verdict
    from substrate.session.approvals_values import Answer, Held
    from substrate.session.approving_shared import View
    from substrate.session.client_call import Call
    from substrate.session.daemon import Daemon
    from substrate.session.doors import Client
    from substrate.session.gating import Gating
    from substrate.session.loop import Waiting

_MOST_SUBJECT: Final = 1000
_MOST_WORDS: Final = 64
#: so long for one bound of what is read
_PATIENT_S: Final = 600.0
#: profiles under which SUBSTRATE_BYPASS is ignored (shell.md §3)
_HELD: Final = frozenset(("builtin:coding-agent", "builtin:locked-down"))
_OBSERVES: Final = "builtin:observe"


class Waits:
    """A shim whose question somebody was asked."""

    def __init__(
        self, client: Client, call: Call, gating: Gating, verdict: Verdict, view: View, held: Held
    ) -> None:
        self.client, self.call, self.gating, self.verdict = client, call, gating, verdict
        self.view, self.held = view, held


class Outside:
    """See the module. A part of the loop."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._waits: dict[str, Waits] = {}  # by their spans
        self._patience, self._patient_until = Patience(), 0.0

    def answer(self, client: Client, call: Call) -> None:
        """Answers an EXECUTE of mode `shim` or `ask`, now or later. `ask` alone runs nothing: it wants to know
        whether a bypass is granted, and what it goes on to do is asked for again."""
        daemon = self._daemon
        daemon.start_record()
        gating = gated_command.load(
            daemon.settings, call.cwd, daemon.session.workspace, daemon.session.standing
        )
        gating.patience = self._patience_now()
        span = new_span_id()
        if call.flags.bypass:
            granted = self._tell_bypass(gating.broker.policy, call, span)
            if granted:
                client.send(client_call.ACCEPTED, span, call.parent or "", '{"bypass":"recorded"}')
                client.close()
                return
        if call.mode == client_call.ASK:
            client.send(client_call.ACCEPTED, span, call.parent or "", "{}")
            client.close()
            return
        verdict = decide(gating, call)
        if verdict.action in (rules.ALLOW, rules.AUDIT):
            self._let(client, call, gating, verdict, None, span)
        elif verdict.action == rules.ASK:
            self._ask(client, call, gating, verdict, span)
        else:
            self._deny(client, call, gating, verdict, None, span)

    def _patience_now(self) -> Patience:
        """Of all that ask here, for a while: who asks for too much must not keep the others waiting for ever,
        nor have them asked about for ever."""
        now = time.monotonic()
        if now >= self._patient_until:
            self._patience, self._patient_until = Patience(), now + _PATIENT_S
        return self._patience

    # --- people

    def _ask(self, client: Client, call: Call, gating: Gating, verdict: Verdict, span: str) -> None:
        from substrate.session.approvals_values import Asked

        session = self._daemon.session
        gated_command.may_ask(
            *(gating, session, span, self._daemon.paused), terminal=self._daemon.is_beside
        )
        view = view_of(gating)
        held = gating_top.held_of(call.file, call.argv, call.cwd, call.environ)
        asked = Asked(
            ticket=span,
            action=span,
            held=held,
            verdict=verdict,
            policy_digest=gating.broker.digest,
            span=span,
        )
        waits = self._waits[span] = Waits(client, call, gating, verdict, view, held)
        client.busy = True
        client.on_packet = self._daemon.asked.hear
        client.on_gone = lambda: self._withdraw(span)
        answer = view.ask(asked, time.monotonic())
        if answer is not None:
            self._told(span, waits, answer)

    def client_of(self, span: str) -> Client | None:
        """Who waits for this span's answer, and can be asked."""
        waits = self._waits.get(span)
        return waits.client if waits is not None and waits.call.flags.asks else None

    def _withdraw(self, span: str) -> None:
        waits = self._waits.pop(span, None)
        if waits is not None:
            self._daemon.asked.lost(waits.client)
            waits.view.end_action(span)
            waits.view.withdraw(span)
            waits.view.close()

    def _told(self, span: str, waits: Waits, answer: Answer) -> None:
        del self._waits[span]
        waits.client.on_gone = _nothing
        if answer.allowed:
            answer = gating_top.if_same(answer, waits.held, waits.call.file, waits.call.environ)
        act = self._let if answer.allowed else self._deny
        waits.view.end_action(span)
        try:
            act(waits.client, waits.call, waits.gating, waits.verdict, answer, span)
        except Exception as error:  # noqa: BLE001 - an edge: it is not run, and ends nobody else
            self._daemon.log(f"a shim could not be answered: {error!r}")
            waits.client.fail(f"its answer could not be recorded: {error}", "run it again")
        waits.view.close()

    def wait_for(self, waiting: Waiting) -> None:
        """Until somebody answers."""
        if not self._waits:
            return
        first = next(iter(self._waits.values()))
        first.view.pump(waiting.now)  # all of them have one approver
        for span, waits in tuple(self._waits.items()):
            for answer in waits.view.answers():
                if answer.ticket == span:
                    self._told(span, waits, answer)
                    waiting.changed = True
        for fd, events in first.view.fds():
            waiting.on(fd, events or select.POLLIN, _nothing)
        waiting.until(first.view.next_look())

    def close(self) -> None:
        for span in tuple(self._waits):
            self._withdraw(span)

    # --- the answer, and the record

    def _let(
        self,
        client: Client,
        call: Call,
        gating: Gating,
        verdict: Verdict,
        answer: Answer | None,
        span: str,
    ) -> None:
        self._record(call, gating, verdict, answer, "shim", span)
        client.send(client_call.ACCEPTED, span, call.parent or "", "{}")
        client.close()

    def _deny(
        self,
        client: Client,
        call: Call,
        gating: Gating,
        verdict: Verdict,
        answer: Answer | None,
        span: str,
    ) -> None:
        self._record(call, gating, verdict, answer, "deny", span)
        line = f"denied: {gating_lines.in_words(call.argv)} {gating_lines.ruled(verdict)}"
        if answer is not None and answer.how == "nobody":
            line = f"{line}; nobody could be asked: run it at a terminal, or allow it: {_rule_of(call)}"
        elif answer is not None and answer.line:
            line = answer.line
        elif hint := gating_lines.hint_of(verdict, ""):
            line = f"{line}; {hint}"
        client.send(client_call.DENIED, 126, f"substrate: {line}"[:4000], verdict.rule or "")
        client.close()

    def _record(
        self,
        call: Call,
        gating: Gating,
        verdict: Verdict,
        answer: Answer | None,
        action: str,
        span: str,
    ) -> None:
        words = b" ".join(call.argv)[:_MOST_SUBJECT].decode("utf-8", "backslashreplace")
        extra: list[tuple[str, Any]] = [("asked_by", "shim"), ("in_world", False)]
        if answer is not None:
            extra += [("how", answer.how), *answer.extra]
        told = PolicyDecision(
            kind="exec",
            subject=f"{os.fsdecode(call.file)}: {words}".encode(
                "utf-8", "backslashreplace"
            ).decode(),
            decision=rules.ALLOW if verdict.action == rules.AUDIT else verdict.action,
            action=action,
            rule=verdict.rule,
            policy_digest=gating.broker.digest,
            reason=verdict.reason or None,
            approved_by=None if answer is None else answer.approved_by,
            approved_for_us=None if answer is None else answer.approved_for_us,
            extra=tuple(extra),
        )
        event = told.event("shim", span_id=span, parent_span_id=call.parent)
        self._daemon.session.writer.append([event])

    def _tell_bypass(self, policy: Policy, call: Call, span: str) -> bool:
        """Whether it is granted; either is on the record."""
        why = why_no_bypass(policy)
        event = bypass_event(call, why, span if not why else call.parent)
        self._daemon.session.writer.append([event])
        return not why


def decide(gating: Gating, call: Call) -> Verdict:
    """What the policy says of a program where no world contains it."""
    program = gating_top.look_up(call.file, call.cwd)
    subject = rules.Subject(
        argv=call.argv, program=program, name=call.file, cwd=call.cwd, in_world=False
    )
    verdict = gating.patience.decide(gating.broker.compiled, subject, gating_top.digest_of)
    lets = verdict.action in (rules.ALLOW, rules.AUDIT)
    if lets and verdict.is_cut and gating.broker.compiled.holds_back:
        reason = "there is more in it than could be read"  # and no exec of it meets a rule later
        return replace(verdict, action=rules.ASK, rule=None, reason=reason)
    if verdict.action == rules.ISOLATE or (verdict.action == rules.ASK and verdict.isolates):
        reason = f"{verdict.reason or 'isolate'}; there is no world to isolate it in"
        return replace(verdict, action=rules.DENY, reason=reason)
    if verdict.action == rules.ASK and verdict.rule is None and observes(gating.broker.policy):
        # only what no rule names, and nothing else would ask about
        contained = gating.patience.decide(
            gating.broker.compiled, replace(subject, in_world=True), gating_top.digest_of
        )
        if contained.action in (rules.ALLOW, rules.AUDIT):
            return replace(contained, action=rules.AUDIT)
    return verdict


def view_of(gating: Gating) -> View:
    from substrate.session.approving_shared import View

    view = gating.opens() if gating.opens is not None else None
    assert isinstance(view, View)
    return view


def observes(policy: Policy) -> bool:
    """Whether it is there to see what runs, and stops nothing."""
    names = {layer.name for layer in policy.layers}
    return policy.default_action == rules.AUDIT or (_OBSERVES in names and not names & _HELD)


def why_no_bypass(policy: Policy) -> str:
    """Why SUBSTRATE_BYPASS is ignored; "" where the user's own settings grant it."""
    held = next((layer.name for layer in policy.layers if layer.name in _HELD), "")
    if held:
        return f"the profile {held.removeprefix('builtin:')} is in force"
    if any(layer.final or any(rule.final for rule in layer.commands) for layer in policy.layers):
        return "the policy has rules that are final"
    return ""


def bypass_event(call: Call, why: str, span: str | None) -> Any:
    """That somebody set SUBSTRATE_BYPASS. `why`: it is ignored, "" where it is granted."""
    words = tuple(word[:_MOST_SUBJECT] for word in call.argv[:_MOST_WORDS])
    told = Bypass(
        by=f"shim {os.fsdecode(os.path.basename(call.file))}".encode(
            "utf-8", "backslashreplace"
        ).decode(),
        command=words,
        allowed=not why,
        reason=why or None,
        extra=(("program", text_or_b64(call.file)), ("mode", call.mode)),
    )
    return told.event("shim", span_id=span)


def _rule_of(call: Call) -> str:
    """The rule that would let it pass, as a line of a user's policy."""
    import json

    name = os.path.basename(call.argv[0] or call.file).decode("utf-8", "backslashreplace")
    return f'[[command]] match = [{json.dumps(name)}, "**"], action = "allow" in your policy.toml'


def _nothing() -> None:
    """It is looked at in the next turn."""
