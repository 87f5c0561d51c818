"""The approver of one command, where a session has several at once.

Tickets of two commands can be the same; here each command's are its own, and so are the answers that it
gets. What is polled and pumped is the session's: doing it for each command is cheap and changes nothing.
"""

from __future__ import annotations

from substrate.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.session.approvals_values import Answer, Asked
    from substrate.session.approving import Approving


class Shared:
    """Hands the answers of one Approving to the commands that wait for them."""

    def __init__(self, approving: Approving) -> None:
        self.approving = approving
        self._answers: dict[str, list[Answer]] = {}

    def of(self, action: str) -> ApprovalsOf:
        """An approver for the command with this span."""
        self._answers.setdefault(action, [])
        return ApprovalsOf(self, action)

    def take(self, action: str) -> list[Answer]:
        for answer in self.approving.answers():
            assert isinstance(answer.ticket, tuple)
            owner, ticket = answer.ticket
            if owner in self._answers:
                self._answers[owner].append(replace(answer, ticket=ticket))
        found = self._answers.get(action, [])
        if found:
            self._answers[action] = []
        return found

    def drop(self, action: str) -> None:
        self._answers.pop(action, None)


class ApprovalsOf:
    """An approver (approving.Approving) for one command."""

    def __init__(self, shared: Shared, action: str) -> None:
        self._shared, self._action = shared, action
        self._approving = shared.approving

    def ask(self, asked: Asked, now: float) -> Answer | None:
        ticket = (self._action, asked.ticket)
        answer = self._approving.ask(replace(asked, ticket=ticket, action=self._action), now)
        return None if answer is None else replace(answer, ticket=asked.ticket)

    def fds(self) -> tuple[tuple[int, int], ...]:
        return self._approving.fds()

    def next_look(self) -> float | None:
        return self._approving.next_look()

    def pump(self, now: float) -> None:
        self._approving.pump(now)

    @property
    def is_asking(self) -> bool:
        return self._approving.is_asking

    def answers(self) -> list[Answer]:
        return self._shared.take(self._action)

    def withdraw(self, ticket: object) -> None:
        self._approving.withdraw((self._action, ticket))

    def end_action(self, action: str) -> None:
        """The command is over: what was answered in this moment is for nobody."""
        self._approving.end_action(action)
        self._shared.take(action)
        self._shared.drop(action)
