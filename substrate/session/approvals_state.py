"""The questions of a session: who waits, for what, until when, and what was answered.

A pure object. Events go in as calls, with the time; effects come out as values, in the order in
which they are to be done. It asks nobody, reads no clock and writes no file (approving.py does).

Theory of operation. A question belongs to an *action*, the command that a user gave: the same held
exec, asked by several processes of it or again, is one question. Once answered it is known for the
rest of the action, also that nobody answered; for the session, where the answer says so. What wrappers
run (`env git push`) was shown with the question: below the process that was allowed it is not asked
again under the same rule. Who asks for ever is bounded: so many questions at once, so many in an action,
and none any more when nobody has answered some.

Invariants: nothing is allowed but by an answer, or by an earlier one to exactly the same held thing;
every ticket gets one answer unless it is withdrawn; after its deadline a question is denied.
Spec: policy.md §3.
"""

from __future__ import annotations

from substrate.session import approvals_values as values
from substrate.session.approvals_values import Answer, Approval, Kept, Question
from substrate.values import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, TypeAlias

    from substrate.session.approvals_values import Asked

    Effect: TypeAlias = "Told | Put | Closed | Keep"

#: open at one time
MOST_OPEN: Final = 16
#: put to somebody in one action
MOST_OF_ACTION: Final = 20
#: waiting for one question
MOST_WAITING: Final = 4096
#: in a row without an answer: then nobody is there
MOST_UNANSWERED: Final = 3
#: allowed in one action, and remembered for what they run
MOST_WRAPPERS: Final = 256
MOST_APPROVALS: Final = 1000
MOST_ACTIONS: Final = 1024


@value
class Told:
    """Somebody that waited has an answer."""

    answer: Answer


@value
class Put:
    """A question is to be put to whoever can answer."""

    question: Question


@value
class Closed:
    """A question is over. `allowed` None: it was withdrawn, or nobody answered (`how`)."""

    question: Question
    how: str
    allowed: bool | None
    by: str = ""


@value
class Keep:
    """What the session keeps has changed. `lasting`: by an answer, so it must reach the disk."""

    kept: Kept
    lasting: bool


class _Open:
    """A question with those that wait for it."""

    __slots__ = ("key", "question", "waiters")

    def __init__(self, question: Question, key: str) -> None:
        self.question, self.key = question, key
        self.waiters = [question.asked]


class _Action:
    """What is known of one command."""

    __slots__ = ("allowed", "answered", "over", "put", "unanswered")

    def __init__(self) -> None:
        #: key → the answer that was given, for any ticket
        self.answered: dict[str, Answer] = {}
        self.allowed: list[tuple[Asked, Answer]] = []
        self.put = 0
        self.unanswered = 0
        #: why nothing is asked any more: (how, words)
        self.over: tuple[str, str] | None = None

    def note_allowed(self, asked: Asked, answer: Answer) -> None:
        """For what a wrapper runs below this process."""
        wraps = len(asked.verdict.read_as) > 1 and bool(asked.procs)
        if answer.allowed and wraps and len(self.allowed) < MOST_WRAPPERS:
            self.allowed.append((asked, answer))


class Approvals:
    """See the module. `digest`: keyed, of bytes, hex. `show`: a held thing in words, no secrets."""

    def __init__(
        self,
        kept: Kept,
        *,
        timeout_s: float,
        digest: Callable[[bytes], str],
        show: Callable[[Asked], str],
    ) -> None:
        self.kept = kept
        self.timeout_s = timeout_s
        self._digest = digest
        self._show = show
        self._open: dict[int, _Open] = {}
        self._actions: dict[str, _Action] = {}

    # --- what is asked

    def ask(self, asked: Asked, now: float, *, reachable: Callable[[], bool]) -> list[Effect]:
        """One exec waits. `reachable`: whether anybody can be asked; called only if it matters."""
        key = self._digest(b"approval\0" + asked.held.packed()) if asked.held.is_exact else ""
        action = self._action(asked.action)
        known = self._known(asked, key, action)
        if known is not None:
            action.note_allowed(asked, known)
            return [Told(answer=replace(known, ticket=asked.ticket))]
        for waiting in self._open.values():
            if key and waiting.key == key and waiting.question.asked.action == asked.action:
                if len(waiting.waiters) >= MOST_WAITING:
                    return [self._refuse(asked, values.FLOOD, "too many processes wait for it")]
                waiting.waiters.append(asked)
                return []
        if action.over is not None:
            return [self._refuse(asked, *action.over)]
        if action.put >= MOST_OF_ACTION:
            words = f"its command has asked {MOST_OF_ACTION} questions already"
            return [self._refuse(asked, values.FLOOD, words)]
        if len(self._open) >= MOST_OPEN:
            words = f"{MOST_OPEN} questions are open already"
            return [self._refuse(asked, values.FLOOD, words)]
        if not reachable():
            return [self._refuse(asked, values.NOBODY, "there is nobody to ask")]
        return self._put(asked, key, action, now)

    def _put(self, asked: Asked, key: str, action: _Action, now: float) -> list[Effect]:
        action.put += 1
        question = Question(
            number=self.kept.next_number, asked=asked, put_at=now, deadline=now + self.timeout_s
        )
        self._open[question.number] = _Open(question, key)
        self.kept = replace(self.kept, next_number=question.number + 1)
        return [Keep(kept=self.kept, lasting=False), Put(question=question)]

    def _action(self, name: str) -> _Action:
        found = self._actions.get(name)
        if found is None:
            found = self._actions[name] = _Action()
            if len(self._actions) > MOST_ACTIONS:  # somebody does not say when they end
                busy = {waiting.question.asked.action for waiting in self._open.values()}
                for old in [n for n in self._actions if n not in busy and n != name][:1]:
                    del self._actions[old]
        return found

    def _known(self, asked: Asked, key: str, action: _Action) -> Answer | None:
        if key and key in action.answered:
            return _again(action.answered[key])
        for approval in self.kept.approvals:
            if key and approval.key == key:
                return _of_session(approval)
        for allowed, answer in action.allowed:
            if _runs_inside(asked, allowed):
                return _again(answer)
        return None

    def _refuse(self, asked: Asked, how: str, words: str, number: int = 0) -> Told:
        line = f"denied: {self._show(asked)}: {words}{_rule(asked)}"
        return Told(
            answer=Answer(
                ticket=asked.ticket, allowed=False, how=how, number=number, line=line,
                hint=_HINTS.get(how, ""), extra=_extra(how, number),
            )
        )  # fmt: skip

    # --- what is answered

    def open_questions(self) -> tuple[Question, ...]:
        """Those that wait for an answer, oldest first."""
        return tuple(waiting.question for waiting in self._open.values())

    def is_exact(self, number: int) -> bool:
        """Whether an answer to it can hold longer than for this once."""
        return number in self._open and bool(self._open[number].key)

    def answer(self, number: int, choice: str, by: str, *, at_us: int) -> list[Effect]:
        """Somebody said so. A number that is not open, any more, changes nothing. `by`: channel, uid,
        pid; `at_us`: the wall clock's time. A lasting choice for what is not exact is for this once."""
        waiting = self._open.get(number)
        if waiting is None:
            return []
        allowed = choice in values.ALLOWING
        scope = {values.SESSION: values.SESSION, values.ALWAYS: values.ALWAYS}.get(choice, "once")
        if choice == values.NEVER:
            scope = values.ALWAYS
        if not waiting.key or len(self.kept.approvals) >= MOST_APPROVALS:
            scope = values.ONCE
        asked = waiting.question.asked
        action = self._action(asked.action)
        action.unanswered = 0
        if choice == values.REST:
            action.over = (values.BY_PERSON, "all of this command was denied")
        effects: list[Effect] = []
        if scope != values.ONCE:
            approval = Approval(
                number=number, key=waiting.key, allowed=allowed, scope=scope,
                shown=self._show(asked), by=by, at_us=at_us,
            )  # fmt: skip
            self.kept = replace(self.kept, approvals=(*self.kept.approvals, approval))
            effects.append(Keep(kept=self.kept, lasting=True))
        for found in list(self._open.values()):
            same = found is waiting or (scope != values.ONCE and found.key == waiting.key)
            rest = choice == values.REST and found.question.asked.action == asked.action
            if same or rest:
                effects += self._close(found, allowed, scope, by, number)
        return effects

    def _close(
        self, waiting: _Open, allowed: bool, scope: str, by: str, number: int
    ) -> list[Effect]:
        asked = waiting.question.asked
        words = f"denied: {self._show(asked)}: no, said {by}{_rule(asked)}"
        answer = Answer(
            ticket=None, allowed=allowed, how=values.BY_PERSON, number=number, scope=scope,
            line="" if allowed else words, hint="" if allowed else _NO,
            approved_by=by, approved_for_us=None if scope == values.ONCE else values.NO_END_US,
            extra=_extra(values.BY_PERSON, number, scope),
        )  # fmt: skip
        return self._settle(waiting, answer, allowed, by)

    def _settle(
        self, waiting: _Open, answer: Answer, allowed: bool | None, by: str = ""
    ) -> list[Effect]:
        question = waiting.question
        del self._open[question.number]
        action = self._action(question.asked.action)
        if waiting.key:
            action.answered[waiting.key] = answer
        told: list[Effect] = []
        for asked in waiting.waiters:
            action.note_allowed(asked, answer)
            told.append(Told(answer=replace(answer, ticket=asked.ticket)))
        return [*told, Closed(question=question, how=answer.how, allowed=allowed, by=by)]

    def fail(self, number: int, words: str) -> list[Effect]:
        """The one channel that could have answered has failed: denied, and said why."""
        waiting = self._open.get(number)
        return [] if waiting is None else self._unanswered(waiting, values.FAILED, words)

    def _unanswered(self, waiting: _Open, how: str, words: str) -> list[Effect]:
        told = self._refuse(waiting.question.asked, how, words, waiting.question.number)
        return self._settle(waiting, told.answer, None)

    # --- what ends

    def tick(self, now: float) -> list[Effect]:
        """Denies what nobody has answered in its time."""
        effects: list[Effect] = []
        for waiting in [w for w in self._open.values() if w.question.deadline <= now]:
            action = self._action(waiting.question.asked.action)
            action.unanswered += 1
            if action.unanswered >= MOST_UNANSWERED and action.over is None:
                words = f"nobody has answered {action.unanswered} questions of its command"
                action.over = (values.TIMEOUT, words)
            words = f"nobody answered within {self.timeout_s:g} s"
            effects += self._unanswered(waiting, values.TIMEOUT, words)
        return effects

    def next_look(self) -> float | None:
        """When `tick` has something to do."""
        return min((w.question.deadline for w in self._open.values()), default=None)

    def withdraw(self, ticket: object) -> list[Effect]:
        """Who waited is gone. A question that nobody waits for is over."""
        for waiting in self._open.values():
            left = [asked for asked in waiting.waiters if asked.ticket != ticket]
            if len(left) < len(waiting.waiters):
                waiting.waiters = left
                if left:
                    return []
                del self._open[waiting.question.number]
                return [Closed(question=waiting.question, how=values.ENDED, allowed=None)]
        return []

    def end_action(self, name: str) -> list[Effect]:
        """The command is over: nothing of it is asked or known any more."""
        effects: list[Effect] = []
        for waiting in [w for w in self._open.values() if w.question.asked.action == name]:
            del self._open[waiting.question.number]
            effects.append(Closed(question=waiting.question, how=values.ENDED, allowed=None))
        self._actions.pop(name, None)
        return effects

    def forget(self, number: int) -> list[Effect]:
        """Takes back what was answered for the session; what was let run is not undone."""
        left = tuple(a for a in self.kept.approvals if a.number != number)
        if len(left) == len(self.kept.approvals):
            return []
        for action in self._actions.values():
            gone = [k for k, a in action.answered.items() if a.number == number]
            for key in gone:
                del action.answered[key]
            action.allowed = [(a, n) for a, n in action.allowed if n.number != number]
        self.kept = replace(self.kept, approvals=left)
        return [Keep(kept=self.kept, lasting=True)]

    def close(self) -> list[Effect]:
        """Denies what is open."""
        effects: list[Effect] = []
        for waiting in list(self._open.values()):
            effects += self._unanswered(waiting, values.ENDED, "the session has ended")
        return effects


_NO = "the answer holds for this command; who decides can be asked again with another one"
_HINTS = {
    values.NOBODY: "run it at a terminal, have `substrate approvals ls --wait` run in another one, "
    "or allow it in the policy: `substrate policy explain`",
    values.TIMEOUT: "ask whoever decides to answer in time; [approval] timeout in the policy is how long",
    values.FLOOD: "run fewer such commands in one, or allow them in the policy",
    values.FAILED: "correct [approval] webhook in the policy, or answer at a terminal",
}


def _extra(how: str, number: int, scope: str = "") -> tuple[tuple[str, object], ...]:
    """What the trace has besides: the question's number, how it was answered, for what."""
    found: tuple[tuple[str, object], ...] = (("answer", how),)
    if number:
        found = (("approval", number), *found)
    return (*found, ("scope", scope)) if scope else found


def _again(answer: Answer) -> Answer:
    extra = _extra(values.EARLIER, answer.number, answer.scope if answer.approved_by else "")
    return replace(answer, how=values.EARLIER, extra=extra)


def _of_session(approval: Approval) -> Answer:
    return Answer(
        ticket=None, allowed=approval.allowed, how=values.EARLIER, number=approval.number,
        scope=approval.scope,
        line="" if approval.allowed else f"denied: {approval.shown}: no, said {approval.by} before",
        hint="" if approval.allowed else f"substrate approvals forget {approval.number}",
        approved_by=approval.by, approved_for_us=values.NO_END_US,
        extra=_extra(values.EARLIER, approval.number, approval.scope),
    )  # fmt: skip


def _rule(asked: Asked) -> str:
    verdict = asked.verdict
    if verdict.rule is None:
        return ""
    return f" (rule {verdict.rule}{': ' if verdict.reason else ''}{verdict.reason})"


def _runs_inside(asked: Asked, allowed: Asked) -> bool:
    """Whether it is what an allowed wrapper runs: shown with the question, below its process, in its
    directory, under the rule that was asked about, and the program that its words led to."""
    if not allowed.procs or allowed.procs[0] not in asked.procs or asked.held.cut:
        return False
    if asked.held.cwd != allowed.held.cwd or asked.verdict.rule != allowed.verdict.rule:
        return False
    lines = list(zip(allowed.verdict.read_as, allowed.leads, strict=False))
    return any(
        asked.held.program in leads and _same_line(asked.held.argv, line)
        for line, leads in lines[1:]
    )


def _same_line(argv: tuple[bytes, ...], line: tuple[bytes, ...]) -> bool:
    if not argv or not line or argv[1:] != line[1:]:
        return False
    return argv[0].rpartition(b"/")[2] == line[0].rpartition(b"/")[2]
