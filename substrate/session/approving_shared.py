"""One approver for all commands of a session: each command's gate sees its own questions only.

A session has one file of approvals, one terminal and one door, so there is one `Approving`; tickets
are numbered by each command's engine, so the same number can be two questions'. A view puts the command's span before
it. Not the questions themselves (approving.py). Invariants: an answer goes to the command that asked; a question is asked by
the policy of its command. Spec: policy.md §3.
"""

from __future__ import annotations

from substrate.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from substrate.policy.rules import Policy
    from substrate.session.approvals_values import Answer, Asked
    from substrate.session.approving import Approving
    from substrate.session.loop import Waiting


class SharedApproving:
    """`opens`: opens the one approver, with the first question of all."""

    def __init__(self, opens: Callable[[], Approving]) -> None:
        self._opens = opens
        self.one: Approving | None = None
        self._answers: dict[str, list[Answer]] = {}

    def view(self, action: str, policy: Policy | None = None) -> View:
        """Of the command whose span this is. `policy`: by which it is asked, that of the first one where there is
        none. Raises what opening raises."""
        if self.one is None:
            self.one = self._opens()
        return View(self, self.one, action, policy or self.one.policy)

    def wait_for(self, waiting: Waiting) -> None:
        """A part of the loop of a session that lives: whoever comes to the door is answered also while no
        command is there that has asked, and told that nothing is open."""
        if self.one is None:
            return
        self.one.pump(waiting.now)
        if self.collect():
            waiting.changed = True  # whoever asked may have looked for it before
        for fd, events in self.one.fds():
            waiting.on(fd, events, _nothing)  # the next turn looks
        waiting.until(self.one.next_look())

    def collect(self) -> bool:
        """Sorts what was answered by who asked; whether there was anything."""
        assert self.one is not None
        answers = self.one.answers()
        for answer in answers:
            ticket = answer.ticket
            if isinstance(ticket, tuple):
                action, own = ticket
                self._answers.setdefault(action, []).append(replace(answer, ticket=own))
        return bool(answers)

    def take(self, action: str) -> list[Answer]:
        self.collect()
        return self._answers.pop(action, [])

    def close(self) -> None:
        if self.one is not None:
            self.one.close()


class View:
    """An approver as one command's gate has it."""

    def __init__(
        self, shared: SharedApproving, one: Approving, action: str, policy: Policy
    ) -> None:
        self._shared, self._one, self._action, self._policy = shared, one, action, policy
        self._open: set[object] = set()

    @property
    def is_asking(self) -> bool:
        return self._one.is_asking

    def ask(self, asked: Asked, now: float) -> Answer | None:
        self._one.hold_to(self._policy)
        known = self._one.ask(replace(asked, ticket=(self._action, asked.ticket)), now)
        if known is None:
            self._open.add(asked.ticket)
            return None
        return replace(known, ticket=asked.ticket)

    def answers(self) -> list[Answer]:
        found = self._shared.take(self._action)
        self._open.difference_update(answer.ticket for answer in found)
        return found

    def withdraw(self, ticket: object) -> None:
        self._open.discard(ticket)
        self._one.withdraw((self._action, ticket))

    def end_action(self, action: str) -> None:
        self._one.end_action(action)

    def fds(self) -> tuple[tuple[int, int], ...]:
        return self._one.fds()

    def next_look(self) -> float | None:
        return self._one.next_look()

    def pump(self, now: float) -> None:
        self._one.pump(now)

    def close(self) -> None:
        """The others go on asking."""
        for ticket in tuple(self._open):
            self.withdraw(ticket)


def _nothing() -> None:
    """It is looked at in the next turn."""
