"""The exec gate of one command, as its supervisor answers for it.

Theory of operation. The policy's table is armed in the capture engine, which lets through what the table
allows without a word to us. Every other exec is held: `hear` decides it by the broker, and answers at
once, or puts a question and answers when that is answered (`tick`). What came of each is told by the
engine again (`judged`), and only that is written: what was denied, killed, asked, audited or isolated
is an event `policy_decision`; of what was plainly allowed there is the start of the process. The table
never denies by itself, so that each denial names its rule.

Invariants: what cannot be decided, asked or answered is denied; an exec that waits has a bound (the
engine's own, behind the question's); nothing is approved here.

Not here: the decision (policy/), the question (approving.py), what a user is told (gating_lines.py), the
command itself before it starts (gating_top.py). Spec: policy.md §4, capture.md §3.
"""

from __future__ import annotations

import time

from substrate.policy import rules
from substrate.policy.names import LOADERS
from substrate.telemetry.capture import gate
from substrate.values import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from substrate.policy.broker import Broker
    from substrate.policy.rules import Verdict
    from substrate.session.approvals_values import Answer
    from substrate.session.approving import Approving
    from substrate.session.approving_shared import View
    from substrate.session.denials import Denial
    from substrate.session.gating_lines import Refusals
    from substrate.telemetry.capture.backends import AnyBackend
    from substrate.telemetry.capture.holds import Gated, Hold
    from substrate.telemetry.trace.events.policy import PolicyDecision

    #: (fd, events of poll(2)) of whoever asks
    Watched = tuple[tuple[int, int], ...]

#: how long an answer may take, where the policy says nothing (policy.md §1)
_ASK_S: Final = 60.0
#: the engine waits so much longer, so that the reason told is the approver's
_LONGER_S: Final = 5.0
#: between two tries to hand over answers for which the engine had no room
_AGAIN_S: Final = 0.01
#: behind the last name of a file that has none any more (proc(5))
_DELETED: Final = b" (deleted)"
_UNTOLD: Final = "a dynamic loader is to map what cannot be told: give it the path of a file"
_CHANGED: Final = "its program was changed while it was asked about"
#: with these a command says that it goes elsewhere
_GOES: Final = ((b"cd",), (b"pushd",), (b"popd",), (b"env",), (b"sudo",))
#: answers that let an exec through
_LETS: Final = (rules.ALLOW, rules.AUDIT)


@value
class Process:
    """Who wants to exec. `procs`: its number in the session, then those of its parents; `chain`: the names
    of their programs."""

    span: str
    cwd: bytes
    procs: tuple[int, ...] = ()
    chain: tuple[bytes, ...] = ()


@value
class _Judged:
    """What was decided of an exec that is or was held."""

    hold: Hold
    verdict: Verdict
    answer: Answer | None = None
    #: "" where it was, else why nobody was asked
    how: str = ""
    #: of its programs, when it was asked about
    digests: tuple[str, ...] = ()


class Gating:
    """See the module. Made for every command, also where nothing has to be held."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        #: what is in force: strict, racy or off (capturing.Choice)
        self.force = "off"
        #: whether all that the command changes is dropped anyway
        self.isolated = False
        self._refusals: Refusals | None = None
        #: opens what asks, None where nobody may be asked
        self.opens: Callable[[], Approving | View] | None = None
        self.approver: Approving | View | None = None
        self._backend: AnyBackend | None = None
        self._digest: Callable[[Hold, bytes], str | None] = lambda hold, path: None
        self._action = ""
        self._judged: dict[int, _Judged] = {}
        #: argv that somebody has allowed together with the whole command
        self._allowed: dict[tuple[bytes, ...], Answer] = {}
        #: where that counts; None where the command itself goes elsewhere
        self._allowed_in: bytes | None = None
        self._unsent: list[tuple[int, int]] = []
        self._unsent_since = 0.0
        #: who was refused last, and what
        self._refused: tuple[int | None, tuple[bytes, ...]] | None = None
        self._over = False

    # --- before it starts

    @property
    def needed(self) -> bool:
        """Whether any exec could come out otherwise than allowed."""
        return self.broker.armed[2]

    def arm(self, backend: AnyBackend) -> None:
        """Before the backend is attached. Raises CaptureError."""
        table, otherwise, _ = self.broker.armed
        wait_s = self.broker.policy.approval.timeout_s
        hold_ms = int(((_ASK_S if wait_s is None else wait_s) + _LONGER_S) * 1000)
        backend.arm(table, otherwise, hold_ms)  # type: ignore[union-attr]
        self._backend = backend

    def begin(self, action: str, digest: Callable[[Hold, bytes], str | None]) -> None:
        """`action`: the span of the command. `digest`: hex SHA-256 of a program of what is held, None where
        it cannot be had."""
        self._action, self._digest = action, digest

    def asking(self) -> Approving | View | None:
        """Who asks; opened with the first question."""
        if self.approver is None and self.opens is not None and not self._over:
            self.approver = self.opens()
        return self.approver

    def allow_with(self, verdict: Verdict, answer: Answer, cwd: bytes) -> None:
        """Somebody has allowed the whole command: what it was read as needs no second question, in its
        directory. Elsewhere the same words are another thing, unless the command says that it goes there."""
        goes = any(_plain(argv)[:1] in _GOES for argv in verdict.read_as)
        self._allowed_in = None if goes else cwd
        for argv in verdict.read_as:
            self._allowed[_plain(argv)] = answer

    # --- while it runs

    def hear(self, hold: Hold, who: Process) -> None:
        """Decides an exec that is held."""
        programs = tuple(path.removesuffix(_DELETED) for path in hold.programs)
        mapped: bytes | None = b""
        if programs and programs[0][programs[0].rfind(b"/") + 1 :] in LOADERS:
            from substrate.session.gating_loader import mapped_by

            mapped = mapped_by(hold)
        subject = rules.Subject(
            argv=hold.argv,
            program=programs[0] if programs else b"",
            name=hold.path,
            interpreters=programs[1:],
            before=hold.before,
            cwd=who.cwd,
            mapped=mapped or b"",
            cut=hold.cut,
        )

        def digest(path: bytes) -> str | None:
            """Of a file as the kernel named it, where it has no name any more."""
            named = hold.programs[programs.index(path)] if path in programs else path
            return self._digest(hold, named)

        # what it runs in turn by an exec meets the gate by itself
        verdict = self.broker.compiled.decide(subject, digest, whole=False)
        if mapped is None:
            verdict = replace(verdict, action=rules.DENY, reason=_UNTOLD)
        if verdict.action == rules.ASK:
            self._ask(hold, who, verdict)
            return
        self._judged[hold.number] = _Judged(hold=hold, verdict=verdict)
        lets = verdict.action in _LETS or (self.isolated and verdict.action == rules.ISOLATE)
        self._answer(hold.number, lets)

    def _ask(self, hold: Hold, who: Process, verdict: Verdict) -> None:
        known = self._allowed.get(_plain(hold.argv))
        if hold.cut or self._allowed_in not in (None, who.cwd):
            known = None
        if known is None and (approver := self.asking()) is not None and not self._over:
            from substrate.session.gating_ask import asked_of

            asked = asked_of(self._action, self.broker.digest, hold, who, verdict, self._digest)
            self._judged[hold.number] = _Judged(
                hold=hold, verdict=verdict, digests=asked.held.digests
            )
            known = approver.ask(asked, time.monotonic())
            if known is None:
                return  # it comes by `tick`
        how = "" if known is not None else "nobody"
        self._judged[hold.number] = _Judged(hold=hold, verdict=verdict, answer=known, how=how)
        self._answer(hold.number, known is not None and known.allowed)

    def _answer(self, number: int, allowed: bool) -> None:
        self._unsent.append((number, gate.ALLOW if allowed else gate.DENY))
        self._send()

    def _send(self) -> None:
        """In their order. The engine takes so many at once; the rest goes a moment later."""
        assert self._backend is not None
        while self._unsent:
            number, decision = self._unsent[0]
            if not self._backend.answer(number, decision, gate.BY_CALLBACK):  # type: ignore[union-attr]
                self._unsent_since = time.monotonic()
                return
            del self._unsent[0]

    def fds(self) -> Watched:
        """What to poll for, and for what; `tick` then."""
        return () if self.approver is None else self.approver.fds()

    def next_look(self) -> float | None:
        """When `tick` has something to do by itself."""
        looks = [self._unsent_since + _AGAIN_S] if self._unsent else []
        if self.approver is not None and (look := self.approver.next_look()) is not None:
            looks.append(look)
        return min(looks, default=None)

    def tick(self, now: float) -> None:
        """Hands on what has been answered; cheap where there is nothing."""
        if self.approver is not None:
            self.approver.pump(now)
            for answer in self.approver.answers():
                from substrate.session.gating_lines import in_words

                number = answer.ticket
                held = self._judged.get(number) if isinstance(number, int) else None
                if held is not None and held.answer is None:
                    hold, verdict = held.hold, held.verdict
                    if answer.allowed and self._digests_of(hold) != held.digests:
                        line = f"denied: {in_words(hold.argv)}: {_CHANGED}"
                        answer = replace(answer, allowed=False, line=line, hint="")
                    self._judged[hold.number] = _Judged(hold=hold, verdict=verdict, answer=answer)
                    self._answer(hold.number, answer.allowed)
        if self._unsent:
            self._send()

    def _digests_of(self, hold: Hold) -> tuple[str, ...]:
        return tuple(self._digest(hold, path) or "" for path in hold.programs)

    # --- what came of it

    def judged(self, gated: Gated) -> PolicyDecision | None:
        """What is written of an exec that the gate decided; None for what was plainly allowed."""
        held = self._judged.pop(gated.number, None)
        waits = held is not None and held.answer is None and not held.how
        if waits and self.approver is not None:
            self.approver.withdraw(gated.number)
        if gated.decision == "allow" and (held is None or held.verdict.action == rules.ALLOW):
            return None
        from substrate.session.gating_record import decision_of

        hold = None if held is None else held.hold
        verdict = None if held is None else held.verdict
        answer = None if held is None else held.answer
        how = "" if held is None else held.how
        tried = (None if hold is None else hold.tid, gated.argv)
        again = hold is not None and tried == self._refused  # along PATH, past what it may not run
        self._refused = None if gated.decision == "allow" else tried
        if gated.decision != "allow" and gated.reason != "dying" and not again:
            self.refusals.add(gated, verdict, answer, how)
        return decision_of(gated, hold, verdict, answer, how, self.broker.digest)

    def end(self) -> None:
        """The command is over: nobody is asked any more."""
        self._over = True
        if self.approver is not None and self._action:
            self.approver.end_action(self._action)

    @property
    def refusals(self) -> Refusals:
        if self._refusals is None:
            from substrate.session.gating_lines import Refusals

            self._refusals = Refusals()
        return self._refusals

    def close(self) -> None:
        """Gives the terminal back. May be called twice."""
        self._over = True
        if self.approver is not None:
            self.approver.close()

    def denials(self) -> tuple[Denial, ...]:
        """What to tell the user: a line for each thing that was denied."""
        return () if self._refusals is None else self._refusals.lines()


def _plain(argv: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """An argv whose program goes by its last name: the shell looks the path up."""
    return (argv[0][argv[0].rfind(b"/") + 1 :], *argv[1:]) if argv else argv
