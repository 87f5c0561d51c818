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
from substrate.policy.names import LOADERS, last_name
from substrate.telemetry.capture import gate
from substrate.values import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from substrate.policy.broker import Broker
    from substrate.policy.decide import Compiled, Digest
    from substrate.policy.rules import Subject, Verdict
    from substrate.session.approvals_values import Answer, Held
    from substrate.session.approving import Approving
    from substrate.session.approving_shared import View
    from substrate.session.denials import Denial
    from substrate.session.gating_allowed import Allowed
    from substrate.session.gating_lines import Refusals
    from substrate.session.gating_looks import Looks
    from substrate.session.gating_plumbing import Plumbing
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
CHANGED: Final = "its program or script was changed while it was asked about"
_PART: Final = "a part of the git command that was let through"
_DROPS: Final = "{}; what it changes is to be dropped, whatever is answered"
#: a decision may take so long without being counted
_FREE_S: Final = 0.001
#: beyond that so much in all, for one command; then no more of an argv is read than its beginning
_MOST_S: Final = 5.0
_BEGINNING: Final = 16 << 10
#: scripts that were asked about, and whose interpreters may come yet
_MOST_SCRIPTS: Final = 256
#: answers that let an exec through
_LETS: Final = (rules.ALLOW, rules.AUDIT)


@value
class Process:
    """Who wants to exec. `procs`: its number in the session, then those of its parents; `chain`: the names
    of their programs. `is_first`: it is the command itself, which a program of ours execs."""

    span: str
    cwd: bytes
    procs: tuple[int, ...] = ()
    chain: tuple[bytes, ...] = ()
    is_first: bool = False


@value
class _Judged:
    """What was decided of an exec that is or was held."""

    hold: Hold
    verdict: Verdict
    answer: Answer | None = None
    #: "" where it was, else why nobody was asked
    how: str = ""
    who: Process | None = None
    #: what it was when it was asked about
    held: Held | None = None
    #: the command itself, which was asked about as a whole
    of_first: bool = False


@value
class _Script:
    """One that was allowed by an answer: `#!/usr/bin/env node` execs `node SCRIPT` in its place."""

    program: bytes
    digest: str
    words: tuple[bytes, ...]
    cwd: bytes
    rule: str | None
    answer: Answer


class Patience:
    """How much the decisions about one command may read. Whoever makes them reads as fast as he does: what takes
    longest is bounded by time, which many decisions share."""

    __slots__ = ("spent_s",)

    def __init__(self) -> None:
        #: that they have taken, beyond what each may
        self.spent_s = 0.0

    def decide(
        self,
        compiled: Compiled,
        subject: Subject,
        digest: Digest | None = None,
        *,
        whole: bool = True,
    ) -> Verdict:
        """As Compiled.decide; of the beginning of an argv, where much time has gone already. The time of
        `digest` is not counted."""
        if self.spent_s > _MOST_S:
            argv, cut = _beginning(subject.argv, cut=subject.cut)
            subject = replace(subject, argv=argv, cut=cut)
        elsewhere_s = 0.0

        def apart(path: bytes) -> str | None:
            nonlocal elsewhere_s
            assert digest is not None
            at_s = time.thread_time()
            found = digest(path)
            elsewhere_s += time.thread_time() - at_s
            return found

        began_s = time.thread_time()
        verdict = compiled.decide(subject, None if digest is None else apart, whole=whole)
        self.spent_s += max(0.0, time.thread_time() - began_s - elsewhere_s - _FREE_S)
        return verdict


class Gating:
    """See the module. Made for every command, also where nothing has to be held."""

    def __init__(self, broker: Broker, looks: Looks | None = None) -> None:
        self.broker = broker
        #: what the command is run with
        self.environ: tuple[tuple[bytes, bytes], ...] = ()
        #: what is in force: strict, racy or off (capture_choice.Choice)
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
        self._looks = looks
        #: what our own program execs the command with, by its task: nobody may look into that one
        self._own: dict[int, tuple[tuple[bytes, bytes], ...]] = {}
        self._plumbing: Plumbing | None = None
        #: what somebody has allowed together with the whole command, and what that comes to
        self._given: tuple[Verdict, Answer, bytes] | None = None
        self._given_held: Held | None = None
        self._allowed: Allowed | None = None
        #: the command itself, where it is asked about when it is exec'd: until it runs
        self._first: tuple[tuple[bytes, ...], Verdict] | None = None
        #: that it was denied: whoever execs it tries the next directory of PATH
        self._first_denied: _Judged | None = None
        self._scripts: dict[int, _Script] = {}
        #: shared with what its processes have run beside it, and with their shims
        self.patience = Patience()
        self._unsent: list[tuple[int, int]] = []
        self._unsent_since = 0.0
        #: who was refused last, and what
        self._refused: tuple[int | None, tuple[bytes, ...]] | None = None
        self._over = False
        #: how many programs it may run, and did; None: as many as it likes
        self.most_execs = broker.policy.limits.execs
        self._count = [0]
        #: called once, when one more is wanted
        self.on_spent: Callable[[], None] | None = None
        self._was_spent = False

    # --- before it starts

    @property
    def needed(self) -> bool:
        """Whether any exec could come out otherwise than allowed."""
        return self.most_execs is not None or self._first is not None or self.broker.armed[2]

    def ask_first(self, argv: tuple[bytes, ...], verdict: Verdict) -> None:
        """The command is asked about as a whole, when it is exec'd. Before `arm`."""
        if argv and last_name(argv[0]):
            self._first = (argv, verdict)

    def arm(self, backend: AnyBackend) -> None:
        """Before the backend is attached. Raises CaptureError."""
        table, otherwise, _ = self.broker.armed
        if self.most_execs is not None:  # each is to be counted
            table, otherwise = gate.pack_table({}), gate.ASK
        elif self._first is not None:
            from substrate.policy.armed import armed_of

            told, rest = self.broker.compiled.gate_table()
            named = {last_name(self._first[0][0]): gate.ASK}
            table, otherwise, _ = armed_of({**told, **named}, rest)
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

    def allow_with(
        self, verdict: Verdict, answer: Answer, cwd: bytes, held: Held | None = None
    ) -> None:
        """Somebody has allowed the whole command: what it was read as needs no second question, where it is
        that (gating_allowed.py). `held`: as it was on the host, before there was a world to look at."""
        self._given, self._allowed, self._given_held = (verdict, answer, cwd), None, held

    # --- while it runs

    def hear(self, hold: Hold, who: Process) -> None:
        """Decides an exec that is held."""
        programs = tuple(path.removesuffix(_DELETED) for path in hold.programs)
        self._own.pop(hold.tid, None)
        if who.is_first:
            self._own[hold.tid] = self.environ
            if (denied := self._first_denied) is not None:
                self._settle(replace(denied, hold=hold))
                return
        else:
            self._first = None  # it runs, and so does this one
        mapped: bytes | None = b""
        if programs and last_name(programs[0]) in LOADERS:
            from substrate.session.gating_loader import mapped_by

            mapped = mapped_by(hold)
        script = b""
        if len(programs) == 1 and (word := _script_in(hold)):
            script = self.looks.path_of(hold.tid, word) or b""
        subject = rules.Subject(
            argv=hold.argv,
            program=programs[0] if programs else b"",
            name=hold.path,
            interpreters=programs[1:],
            before=hold.before,
            cwd=who.cwd,
            mapped=mapped or b"",
            script=script,
            cut=hold.cut,
        )

        def digest(path: bytes) -> str | None:
            """Of a file as the kernel named it, where it has no name any more."""
            named = hold.programs[programs.index(path)] if path in programs else path
            return self._digest(hold, named)

        # what it runs in turn by an exec meets the gate by itself
        verdict = self.patience.decide(self.broker.compiled, subject, digest, whole=False)
        if self._first is not None and verdict.action not in (rules.DENY, rules.ISOLATE):
            verdict = self._first[1]
        if mapped is None:
            verdict = replace(verdict, action=rules.DENY, reason=_UNTOLD)
        held_back = verdict.action in (rules.ASK, rules.DENY)
        if held_back and _is_git(programs) and self.plumbing.is_part(hold, who, verdict):
            verdict = replace(verdict, action=rules.ALLOW, reason=_PART)
        if verdict.action == rules.ASK and verdict.isolates and not self.isolated:
            reason = _DROPS.format(verdict.reason or "isolate")
            verdict = replace(verdict, action=rules.ISOLATE, reason=reason)
        if self._is_spent:
            verdict = self._spent(verdict)
        if verdict.action == rules.ASK:
            self._ask(hold, who, verdict)
            return
        self._judged[hold.number] = _Judged(hold=hold, verdict=verdict)
        lets = verdict.action in _LETS or (self.isolated and verdict.action == rules.ISOLATE)
        if lets and _is_git(programs):
            self.plumbing.note(hold, who.procs)
        self._answer(hold.number, lets)

    def _ask(self, hold: Hold, who: Process, verdict: Verdict) -> None:
        known = self._known(hold, who, verdict)
        judged = _Judged(hold=hold, verdict=verdict, who=who, of_first=self._first is not None)
        if known is None and (approver := self.asking()) is not None and not self._over:
            from substrate.session.gating_ask import asked_of

            asked = asked_of(
                self._action, self.broker.digest, hold, who, verdict, self._digest, self.looks
            )
            judged = replace(judged, held=asked.held)
            self._judged[hold.number] = judged
            known = approver.ask(asked, time.monotonic())
            if known is None:
                return  # it comes by `tick`
        self._settle(replace(judged, answer=known, how="" if known is not None else "nobody"))

    def _known(self, hold: Hold, who: Process, verdict: Verdict) -> Answer | None:
        """What was answered already."""
        script = self._scripts.get(hold.tid)
        if script is not None and verdict.of_script and not hold.cut:
            word = _script_in(hold)
            if (
                (script.cwd, script.rule) == (who.cwd, verdict.rule)
                and hold.argv[hold.argv.index(word) + 1 :] == script.words
                and self.looks.path_of(hold.tid, word) == script.program
                and self._digest(hold, script.program) == script.digest
            ):
                return script.answer
        if self._given is None:
            return None
        if who.is_first and hold.argv == self._given[0].read_as[0] and self._is_given(hold, who):
            return self._given[1]  # the very command, as we exec it
        if self._allowed is None:
            from substrate.session.gating_allowed import Allowed

            self._allowed = Allowed(*self._given, self.environ, self.looks)
        return self._allowed.take(hold, who.cwd)

    def _is_given(self, hold: Hold, who: Process) -> bool:
        """Whether the world has the files that the host had, as far as that could be told."""
        given = self._given_held
        if given is None:
            return True
        from substrate.session.gating_ask import held_of

        now = held_of(hold, who, self._digest, self.looks)
        pairs = ((given.digests[0], now.digests[:1]), (given.script_digest, (now.script_digest,)))
        return all(not was or is_now == (was,) for was, is_now in pairs)

    def _settle(self, held: _Judged) -> None:
        """An exec that was asked about has its answer, or nobody had one."""
        hold, answer, who = held.hold, held.answer, held.who
        assert who is not None
        self._judged[hold.number] = held
        if held.of_first and (answer is None or not answer.allowed):
            self._first_denied = held
        if answer is not None and answer.allowed:
            if _is_git(hold.programs):
                self.plumbing.note(hold, who.procs)
            if held.verdict.at_once and len(held.verdict.read_as) > 1:
                self.allow_with(held.verdict, answer, who.cwd)
            digest = self._digest(hold, hold.programs[0]) if len(hold.programs) > 1 else None
            if digest is not None and not hold.cut:
                if len(self._scripts) >= _MOST_SCRIPTS:
                    self._scripts.clear()
                self._scripts[hold.tid] = _Script(
                    program=hold.programs[0],
                    digest=digest,
                    words=hold.argv[1:],
                    cwd=who.cwd,
                    rule=held.verdict.rule,
                    answer=answer,
                )
        self._answer(hold.number, answer is not None and answer.allowed)

    @property
    def plumbing(self) -> Plumbing:
        if self._plumbing is None:
            from substrate.session.gating_plumbing import Plumbing

            self._plumbing = Plumbing()
        return self._plumbing

    @property
    def looks(self) -> Looks:
        if self._looks is None:
            from substrate.session.gating_looks import Looks

            self._looks = Looks(self._own)
        return self._looks

    @property
    def execs(self) -> int:
        """How many programs it has run, with all that count with it."""
        return self._count[0]

    def count_with(self, other: Gating) -> None:
        """What a process of a command has run beside it is of that command: a budget that each could have
        anew would be none; nor would a bound for how long is read. Before it is decided."""
        self._count, self.patience = other._count, other.patience

    @property
    def _is_spent(self) -> bool:
        return self.most_execs is not None and self.execs >= self.most_execs

    def _spent(self, verdict: Verdict) -> Verdict:
        """One more program than it may run: it is denied, and whoever runs the command ends it."""
        from substrate.session.gating_budget import denied

        was_spent, self._was_spent = self._was_spent, True
        if self.on_spent is not None and not was_spent:
            self.on_spent()
        return denied(verdict, self.broker.policy)

    def _answer(self, number: int, allowed: bool) -> None:
        self._count[0] += allowed
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
                    if answer.allowed and self._is_spent:
                        held = replace(held, verdict=self._spent(held.verdict))
                        answer = replace(answer, allowed=False, line="", hint="")
                    elif answer.allowed and not self._is_same(held):
                        line = f"denied: {in_words(held.hold.argv)}: {CHANGED}"
                        answer = replace(answer, allowed=False, line=line, hint="")
                    self._settle(replace(held, answer=answer))
        if self._unsent:
            self._send()

    def _is_same(self, held: _Judged) -> bool:
        """Whether it still is what was asked about."""
        from substrate.session.gating_ask import held_of

        assert held.who is not None
        return held_of(held.hold, held.who, self._digest, self.looks) == held.held

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
        found = () if self._refusals is None else self._refusals.lines()
        if self._was_spent:
            from substrate.session.gating_budget import told

            return (told(self.broker.policy), *found)
        return found


def _is_git(programs: tuple[bytes, ...]) -> bool:
    return bool(programs) and last_name(programs[0])[:3] == b"git"


def _script_in(hold: Hold) -> bytes:
    """The word that names what an interpreter is to read; b"" where it is none, or is given none."""
    from substrate.policy.wrappers import script_in

    return script_in(last_name(hold.programs[0].removesuffix(_DELETED)), hold.argv)


def _beginning(argv: tuple[bytes, ...], *, cut: bool) -> tuple[tuple[bytes, ...], bool]:
    """As many words as have room, and whether that is not all: what rules hold back may be behind."""
    room = _BEGINNING
    for number, word in enumerate(argv):
        room -= len(word) + 1
        if room < 0:
            return argv[:number], True
    return argv, cut
