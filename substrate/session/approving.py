"""Who is asked, and how: the questions of a session with its terminal, webhook and socket.

The outside of approvals_state.Approvals: gives it the time and what people say, does what it wants
done. Channels, in their order: the terminal that we are in the foreground of; with it, or without, the
control socket, if somebody waits there; a webhook where there is no terminal. The first answer counts.
Nothing here waits, but `ask_now`, before there is a loop.

Invariants: without a channel a question is denied and not held; what a channel cannot do (write a rule,
reach a server) is never taken for a yes; `close` gives the terminal back and answers everybody.
Spec: policy.md §3.
"""

from __future__ import annotations

import os
import select
import time

from substrate.errors import ConfigError, SubstrateError
from substrate.policy.rules import ALLOW, WAIT
from substrate.session import approvals_state as states
from substrate.session import approvals_values as values
from substrate.session.approvals_values import Answer, Peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Final

    from substrate.policy.rules import Policy
    from substrate.session.approvals_control import Desk
    from substrate.session.approvals_door import Door
    from substrate.session.approvals_state import Effect
    from substrate.session.approvals_terminal import Paused, TerminalAsking
    from substrate.session.approvals_values import Asked, Question
    from substrate.session.approvals_webhook import WebhookAsking
    from substrate.session.approving_shared import View
    from substrate.session.asked_client import Remote
    from substrate.session.home import Home
    from substrate.session.store import SessionFiles

TIMEOUT_S: Final = 60.0
_MOST_WEBHOOKS: Final = 4
#: in what a policy says of itself that does not count (merge.py)
_OF_APPROVAL: Final = ": approval."


def _no_remote(_asked: Asked) -> Remote | None:
    return None


def open_approving(
    *,
    home: Home,
    files: SessionFiles,
    policy: Policy,
    digest: Callable[[bytes], str],
    paused: Callable[[], Paused | None],
    terminal: bool,
    door: bool,
    environ: Mapping[bytes, bytes] = os.environb,
    remote_of: Callable[[Asked], Remote | None] = _no_remote,
) -> Approving:
    """Of a session whose lock is ours. `digest`: keyed, hex. `paused`: what of the command meets the
    terminal, if it is there yet. `terminal`: a person may be asked. `door`: it listens itself, as no
    control socket does. `remote_of`: the terminal of who called what asks. Raises StateError, OSError."""
    from substrate.session.approvals_file import load_kept

    return Approving(
        home=home, files=files, policy=policy, digest=digest, paused=paused, terminal=terminal,
        door=door, kept=load_kept(files), environ=environ, remote_of=remote_of,
    )  # fmt: skip


class Approving:
    """An approver: see the module. The calls are those of the loop's thread."""

    def __init__(
        self,
        *,
        home: Home,
        files: SessionFiles,
        policy: Policy,
        digest: Callable[[bytes], str],
        paused: Callable[[], Paused | None],
        terminal: bool,
        door: bool,
        kept: values.Kept,
        environ: Mapping[bytes, bytes],
        remote_of: Callable[[Asked], Remote | None] = _no_remote,
    ) -> None:
        self._remote_of = remote_of
        #: questions that stand on the terminal of a client
        self._remotes: dict[int, Remote] = {}
        self._home, self._files, self.policy = home, files, policy
        self._paused, self._may_ask, self._environ = paused, terminal, environ
        self.timeout_s = policy.approval.timeout_s or TIMEOUT_S
        self.state = states.Approvals(kept, timeout_s=self.timeout_s, digest=digest, show=_show)
        self._answers: list[Answer] = []
        self._terminal: TerminalAsking | None = None
        #: put to the terminal, oldest first; the first one stands on it
        self._queue: list[Question] = []
        self._webhooks: dict[int, WebhookAsking] = {}
        self._waiting_webhooks: list[Question] = []
        self._desk: Desk | None = None
        self._door: Door | None = None
        #: for a control socket
        self._told: list[tuple[object, str]] = []
        self._closed = False
        #: for whoever is asked, besides the question: what of [approval] does not count, what could not be stored
        self.notes = [text for text in policy.ignored if _OF_APPROVAL in text]
        self._noted = 0  # how many of them stood on the terminal
        if door:
            from substrate.session.approvals_door import Door

            self._door = Door(files.fd)

    def hold_to(self, policy: Policy) -> None:
        """By which policy the next question is asked: that of its command, which may be a newer one."""
        if policy is self.policy:
            return
        self.policy = policy
        self.timeout_s = self.state.timeout_s = policy.approval.timeout_s or TIMEOUT_S

    # --- for the gate

    def ask(self, asked: Asked, now: float) -> Answer | None:
        """The answer where it is known; None: it comes by `answers`."""
        effects = self.state.ask(asked, now, reachable=lambda: self._is_reachable(asked))
        known = [effect for effect in effects if isinstance(effect, states.Told)]
        if known:
            answer = known[0].answer
            # what goes beyond a world is given by a person alone
            is_exec = asked.kind == values.EXEC
            if answer.how == values.NOBODY and is_exec and self._allows_without():
                return _unasked(answer)
            return answer
        self._do(effects, now)
        return None

    def answers(self) -> list[Answer]:
        """What was answered since the last call."""
        answers, self._answers = self._answers, []
        return answers

    def withdraw(self, ticket: object) -> None:
        self._do(self.state.withdraw(ticket), time.monotonic())

    def end_action(self, action: str) -> None:
        self._do(self.state.end_action(action), time.monotonic())

    # --- for the loop

    def fds(self) -> tuple[tuple[int, int], ...]:
        found: list[tuple[int, int]] = []
        if self._terminal is not None:
            found += self._terminal.fds()
        found += ((asking.fileno(), select.POLLIN) for asking in self._webhooks.values())
        if self._door is not None:
            found += self._door.fds()
        return tuple(found)

    def next_look(self) -> float | None:
        looks = [self.state.next_look()]
        if self._terminal is not None:
            looks.append(self._terminal.next_look())
        return min((look for look in looks if look is not None), default=None)

    def pump(self, now: float) -> None:
        self._do(self.state.tick(now), now)
        if self._terminal is not None:
            self._pump_terminal(now)
        for asking in list(self._webhooks.values()):
            self._pump_webhook(asking, now)
        if self._door is not None:
            self._pump_door()

    @property
    def is_asking(self) -> bool:
        """Whether the terminal is ours now."""
        return self._terminal is not None and self._terminal.is_taken

    def close(self) -> None:
        """May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._do(self.state.close(), time.monotonic())
        for asking in self._webhooks.values():
            asking.close()
        self._webhooks.clear()
        if self._terminal is not None:
            self._terminal.close()
            self._terminal = None
        if self._door is not None:
            self._door.close()

    # --- for a control socket

    def verb(self, name: str, arguments: str, peer: Peer, token: object) -> str | None:
        """`approvals` or `approve` with its JSON: the answer's, or None: later, by `told`."""
        return self._at_desk().verb(name, arguments, peer, token)

    def told(self) -> list[tuple[object, str]]:
        """(token, answer) of polls that are over now."""
        self._tell()
        told, self._told = self._told, []
        return told

    def forget(self, token: object) -> None:
        if self._desk is not None:
            self._desk.forget(token)

    def _at_desk(self) -> Desk:
        if self._desk is None:
            from substrate.session.approvals_control import Desk

            self._desk = Desk(self)
        return self._desk

    def _pump_door(self) -> None:
        assert self._door is not None
        for request in self._door.requests():
            told = self.verb(request.name, request.arguments, request.peer, request.client)
            if told is not None:
                self._door.answer(request.client, told)
        for client in self._door.gone:
            self.forget(client)
        self._door.gone.clear()
        self._tell()

    def _tell(self) -> None:
        for token, text in [] if self._desk is None else self._desk.told():
            if self._door is None or not self._door.answer(token, text):
                self._told.append((token, text))

    # --- what people say

    def decide(self, number: int, choice: str, by: str, rule: str = "") -> None:
        """Somebody has answered. A rule that is to be written is, before the answer counts; raises
        ConfigError where it cannot be: then nothing was answered."""
        question = next((q for q in self.state.open_questions() if q.number == number), None)
        if question is None:
            return
        if choice == "edit":
            self._write(question, values.ALWAYS, by, rule)
            choice = values.ALWAYS
        elif choice in (values.ALWAYS, values.NEVER):
            self._write(question, choice, by, "")
        now = time.monotonic()
        at_us = time.time_ns() // 1000
        self._do(self.state.answer(number, choice, by, at_us=at_us), now)

    def replied(self, client: object, number: int, choice: str, rule: str) -> None:
        """A client answers a question that stands on its terminal; none of others."""
        remote = self._remotes.get(number)
        if remote is None or remote.client is not client:
            return
        try:
            self.decide(number, choice, remote.name, rule)
        except SubstrateError as error:
            remote.say(number, f"{error}; {error.hint}")

    def lost(self, client: object) -> None:
        """A client has gone, or cannot show what it was asked: whoever else can be asked is."""
        now = time.monotonic()
        for number, remote in tuple(self._remotes.items()):
            if remote.client is not client:
                continue
            del self._remotes[number]
            remote.over(number, "")
            remote.resume()
            question = next((q for q in self.state.open_questions() if q.number == number), None)
            if question is not None and self.policy.approval.webhook is not None:
                self._waiting_webhooks.append(question)
            elif question is not None and not self._is_watched():
                self._do(self.state.fail(number, "its terminal was closed"), now)
        self._start_webhooks(now)

    def asks_at(self, client: object) -> bool:
        """Whether a question stands on a client's terminal."""
        return any(remote.client is client for remote in self._remotes.values())

    def forget_approval(self, number: int) -> bool:
        """Takes back what was answered for the session."""
        effects = self.state.forget(number)
        self._do(effects, time.monotonic())
        return bool(effects)

    def _write(self, question: Question, choice: str, by: str, typed: str) -> None:
        from substrate.session import approvals_rules as rules

        if not self.state.is_exact(question.number):
            raise ConfigError("it cannot be recognised again", hint="answer for this once")
        action = "deny" if choice == values.NEVER else "allow"
        said = f"by {by}, {time.strftime('%Y-%m-%d %H:%M')}, session {self._files.session_id}"
        if typed:
            made = rules.typed_rules(self.policy, question.asked, typed, action, said)
        else:
            made = rules.exact_rules(self.policy, question.asked, action, said)
        for rule in made:
            rules.add_rule(rules.user_policy_path(self._environ), rule)

    def _line_of(self, question: Question) -> str:
        """What an edited rule begins as: the one part that has to be asked, else the whole."""
        from substrate.session import approvals_rules as rules
        from substrate.session.approvals_text import show_argv

        lines = rules.asking_lines(self.policy, question.asked)
        return show_argv(lines[0] if len(lines) == 1 else question.asked.held.argv)

    # --- what the state wants done

    def _do(self, effects: list[Effect], now: float) -> None:
        for effect in effects:
            if isinstance(effect, states.Told):
                self._answers.append(effect.answer)
            elif isinstance(effect, states.Keep):
                self._keep(effect)
            elif isinstance(effect, states.Put):
                self._put(effect.question, now)
            else:
                self._over(effect, now)
        if effects:
            self._next_on_terminal(now)
            self._tell()

    def _keep(self, effect: states.Keep) -> None:
        from substrate.session.approvals_file import save_kept

        try:
            save_kept(self._files, effect.kept, sync=effect.lasting)
        except OSError as error:
            self.notes.append(f"an approval holds for this run only: {error.strerror}")

    def _put(self, question: Question, now: float) -> None:
        remote = self._remote_of(question.asked)
        if remote is not None:
            number = question.number
            self._remotes[number] = remote
            remote.put(question, exact=self.state.is_exact(number), line=self._line_of(question))
        elif self._has_terminal():
            self._queue.append(question)
        elif self.policy.approval.webhook is not None:
            self._waiting_webhooks.append(question)
            self._start_webhooks(now)

    def _over(self, closed: states.Closed, now: float) -> None:
        number = closed.question.number
        remote = self._remotes.pop(number, None)
        if remote is not None:
            remote.over(number, _told_line(closed))
        asking = self._webhooks.pop(number, None)
        if asking is not None:
            asking.close()
        self._waiting_webhooks = [q for q in self._waiting_webhooks if q.number != number]
        on_terminal = any(q.number == number for q in self._queue)
        self._queue = [q for q in self._queue if q.number != number]
        if self._terminal is not None and on_terminal:
            line = _told_line(closed)
            if self._terminal.number == number:
                self._terminal.take_away(line, now)
        self._start_webhooks(now)

    # --- channels

    def _is_reachable(self, asked: Asked) -> bool:
        if self._remote_of(asked) is not None:
            return True
        if self._has_terminal() or self.policy.approval.webhook is not None:
            return True
        return self._is_watched() or self.policy.approval.without_terminal == WAIT

    def _is_watched(self) -> bool:
        """Whether somebody waits at the socket, or for it to be there."""
        if self._desk is not None and self._desk.is_watched(time.monotonic()):
            return True
        from substrate.session.approvals_door import is_watched

        return is_watched(self._files.fd)

    def _allows_without(self) -> bool:
        """What the user's own policy says of a question that nobody can be asked."""
        return self.policy.approval.without_terminal == ALLOW

    def _has_terminal(self) -> bool:
        if self._terminal is not None:
            return not self._terminal.gone
        if not self._may_ask:
            return False
        from substrate.session.approvals_terminal import TerminalAsking, open_terminal

        fd = open_terminal()
        if fd is None:
            return False
        term = self._environ.get(b"TERM", b"")
        self._terminal = TerminalAsking(fd, self._paused(), escapes=term not in (b"", b"dumb"))
        return True

    def _next_on_terminal(self, now: float) -> None:
        terminal = self._terminal
        if terminal is None or terminal.gone:
            return
        if not self._queue:
            return
        if terminal.number == 0:
            first = self._queue[0]
            terminal.show(
                first, now, exact=self.state.is_exact(first.number), others=len(self._queue) - 1,
                line=lambda: self._line_of(first),
            )  # fmt: skip
            if len(self.notes) > self._noted:
                terminal.say("; ".join(self.notes[self._noted :]))
                self._noted = len(self.notes)
        else:
            terminal.count(len(self._queue) - 1)

    def _pump_terminal(self, now: float) -> None:
        terminal = self._terminal
        assert terminal is not None
        number = terminal.number
        said = terminal.pump(now)
        if terminal.gone:
            self._terminal_gone(now)
        elif said is not None:
            choice, rule = said
            try:
                self.decide(number, choice, f"{terminal.name} uid={os.geteuid()}", rule)
            except SubstrateError as error:
                terminal.say(f"{error}; {error.hint}")
        elif terminal.is_idle:
            # somebody else may ask on it, and it may be another one the next time
            terminal.close()
            self._terminal = None

    def _terminal_gone(self, now: float) -> None:
        terminal, self._terminal = self._terminal, None
        assert terminal is not None
        terminal.close()
        waiting, self._queue = self._queue, []
        for question in waiting:
            if self.policy.approval.webhook is not None:
                self._waiting_webhooks.append(question)
            elif not self._is_watched():
                self._do(self.state.fail(question.number, "its terminal was closed"), now)
        self._start_webhooks(now)

    def _start_webhooks(self, now: float) -> None:
        while self._waiting_webhooks and len(self._webhooks) < _MOST_WEBHOOKS:
            from substrate.session.approvals_webhook import WebhookAsking

            question = self._waiting_webhooks.pop(0)
            url = self.policy.approval.webhook
            assert url is not None
            try:
                asking = WebhookAsking(question, url, self._home.fd, self._files.session_id, now)
            except (SubstrateError, OSError) as error:
                self._do(self.state.fail(question.number, f"its webhook: {error}"), now)
                continue
            self._webhooks[question.number] = asking

    def _pump_webhook(self, asking: WebhookAsking, now: float) -> None:
        if asking.number not in self._webhooks:
            return  # closed in this round
        result = asking.pump()
        if result is None:
            return
        choice, by, failed = result
        del self._webhooks[asking.number]
        if failed:
            self._do(self.state.fail(asking.number, f"its webhook: {failed}"), now)
        else:
            self.decide(asking.number, choice, f"webhook{by}")
        self._start_webhooks(now)


def _show(asked: Asked) -> str:
    from substrate.session.approvals_text import show_redacted

    return show_redacted(asked)


def _told_line(closed: states.Closed) -> str:
    """What stays on the terminal of a question that stood there."""
    shown = _show(closed.question.asked)
    if closed.allowed is None:
        return f"question {closed.question.number} is over ({closed.how}): {shown}"
    return f"{'allowed' if closed.allowed else 'denied'} ({closed.question.number}): {shown}"


def _unasked(answer: Answer) -> Answer:
    from substrate.values import replace

    by = "policy: without_terminal = allow"
    return replace(answer, allowed=True, line="", hint="", approved_by=by)


def ask_now(
    approving: Approving | View,
    asked: Asked,
    *,
    watch: int = -1,
    gone: Callable[[], bool] = lambda: False,
) -> Answer:
    """Asks and waits, before a loop runs. `watch` is polled besides; when it is readable `gone` is
    asked whether to give up."""
    now = time.monotonic()
    answer = approving.ask(asked, now)
    while answer is None or approving.is_asking:
        poll = select.poll()
        for fd, events in approving.fds():
            poll.register(fd, events)
        if watch >= 0:
            poll.register(watch, select.POLLIN)
        look = approving.next_look()
        ready = poll.poll(None if look is None else max(0.0, look - now) * 1000 + 1)
        if any(fd == watch for fd, _ in ready) and gone() and answer is None:
            approving.withdraw(asked.ticket)
            line = f"denied: {_show(asked)}: nobody waits for it any more"
            answer = Answer(ticket=asked.ticket, allowed=False, how=values.ENDED, line=line)
        now = time.monotonic()
        approving.pump(now)
        for found in approving.answers():
            if found.ticket == asked.ticket and answer is None:
                answer = found
    return answer
