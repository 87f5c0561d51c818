"""The verbs `approvals` and `approve` of a control socket: JSON in, JSON out, and long polls.

Logic only: who may call at all is the socket's business (its place, its peer). Two verbs:

`approvals` `{"wait": bool, "after": N}` → the open questions and what the session keeps. With `wait`
the answer comes when a question with a number above `after` is open.
`approve` `{"number": N, "choice": once|session|always|deny|never|rest|edit|forget, "rule": TEXT}` → what
became of it.

Answers have `schema` (substrate.approvals/1), or `error`, `message`, `hint`. Invariant: a request that is
not understood changes nothing. Spec: policy.md §3, shell.md §2.
"""

from __future__ import annotations

import time

from substrate.errors import SubstrateError, UsageError
from substrate.session import approvals_text as text
from substrate.session.approvals_values import CHOICES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, Protocol

    from substrate.session.approvals_state import Approvals
    from substrate.session.approvals_values import Peer, Question

    class Decider(Protocol):
        """What answers (approving.Approving)."""

        state: Approvals
        notes: list[str]

        def decide(self, number: int, choice: str, by: str, rule: str = "") -> None: ...
        def forget_approval(self, number: int) -> bool: ...


SCHEMA: Final = "substrate.approvals/1"
EDIT, FORGET = "edit", "forget"
_LARGEST: Final = 65536
_MOST_WAITING: Final = 16
_MOST_ARGV: Final = 200
_READING_S: Final = 60.0


class Desk:
    """Answers the two verbs, now or when there is something to tell."""

    def __init__(self, decider: Decider) -> None:
        self._decider = decider
        #: token → the number above which a question is news
        self._waiting: dict[object, int] = {}
        self._seen: float | None = None

    def is_watched(self, now: float) -> bool:
        """Whether somebody waits for questions, or did a moment ago: they may be reading one."""
        return bool(self._waiting) or (self._seen is not None and now - self._seen < _READING_S)

    def verb(self, name: str, arguments: str, peer: Peer, token: object) -> str | None:
        """The answer, or None: later, by `told`."""
        import json

        self._seen = time.monotonic() if self._waiting or name == "approve" else self._seen
        try:
            given = _parse(arguments)
            if name == "approvals":
                if given.get("wait") is True:
                    return self._wait(given, token)
                return json.dumps(self._list())
            if name == "approve":
                return json.dumps(self._approve(given, peer))
            raise UsageError(f"there is no verb {name!r} of questions")
        except SubstrateError as error:
            return json.dumps({
                "error": type(error).__name__, "message": str(error), "hint": error.hint,
            })  # fmt: skip

    def told(self) -> list[tuple[object, str]]:
        """Those whose wait is over, each with its answer."""
        import json

        newest = max((q.number for q in self._decider.state.open_questions()), default=0)
        over = [token for token, after in self._waiting.items() if newest > after]
        for token in over:
            del self._waiting[token]
            self._seen = time.monotonic()
        return [(token, json.dumps(self._list())) for token in over]

    def forget(self, token: object) -> None:
        """Its client is gone."""
        self._waiting.pop(token, None)

    def _wait(self, given: dict[str, Any], token: object) -> str | None:
        import json

        after = given.get("after", 0)
        if type(after) is not int or after < 0:
            raise UsageError(f"after is {after!r:.80}, expected the number of a question")
        if any(q.number > after for q in self._decider.state.open_questions()):
            return json.dumps(self._list())
        if len(self._waiting) >= _MOST_WAITING:
            raise UsageError(f"{_MOST_WAITING} wait for questions already", hint="end one of them")
        self._waiting[token] = after
        return None

    def _list(self) -> dict[str, Any]:
        state = self._decider.state
        now = time.monotonic()
        return {
            "schema": SCHEMA,
            "questions": [_shown(q, state.is_exact(q.number), now) for q in state.open_questions()],
            "approvals": [
                {
                    "number": a.number, "allowed": a.allowed, "scope": a.scope,
                    "command": a.shown, "by": a.by, "at_us": a.at_us,
                }
                for a in state.kept.approvals
            ],
            "notes": [text.show_text(note) for note in self._decider.notes],
        }  # fmt: skip

    def _approve(self, given: dict[str, Any], peer: Peer) -> dict[str, Any]:
        number, choice, rule = given.get("number"), given.get("choice"), given.get("rule", "")
        if type(number) is not int or number < 1:
            raise UsageError(
                f"the number is {number!r:.80}", hint="`substrate approvals ls` has the numbers"
            )
        if choice not in (*CHOICES, EDIT, FORGET) or type(rule) is not str:
            raise UsageError(
                f"there is no answer {choice!r:.80}", hint=f"one of {', '.join(CHOICES)}"
            )
        if choice == FORGET:
            if not self._decider.forget_approval(number):
                raise UsageError(
                    f"nothing that holds for the session was answered to question {number}",
                    hint="`substrate approvals ls` shows what was",
                )
            return {"schema": SCHEMA, "number": number, "choice": choice}
        if all(question.number != number for question in self._decider.state.open_questions()):
            raise UsageError(
                f"question {number} is not open (any more)", hint="`substrate approvals ls`"
            )
        lasting = choice not in ("once", "deny", "rest")
        if lasting and not self._decider.state.is_exact(number):
            raise UsageError(
                f"what question {number} is about cannot be recognised again",
                hint="answer it for this once",
            )
        self._decider.decide(number, choice, peer.named("control"), rule)
        return {"schema": SCHEMA, "number": number, "choice": choice}


def _parse(arguments: str) -> dict[str, Any]:
    import json

    if len(arguments) > _LARGEST:
        raise UsageError("the arguments are too long")
    try:
        found = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        raise UsageError("the arguments are not JSON") from None
    if not isinstance(found, dict):
        raise UsageError("the arguments are no JSON object")
    return found


def _shown(question: Question, exact: bool, now: float) -> dict[str, Any]:
    """A question as JSON. The words are the exact ones: whoever may answer may see them."""
    asked = question.asked
    verdict = asked.verdict
    return {
        "number": question.number,
        "kind": asked.kind,
        "command": text.cut_middle(text.show_argv(asked.held.argv, cut=asked.held.cut), 4000),
        "argv": [text.cut_middle(text.show_word(w), 200) for w in asked.held.argv[:_MOST_ARGV]],
        "exact": exact,
        "program": text.show_path(asked.held.program),
        "sha256": list(asked.held.digests),
        "interpreters": [text.show_path(path) for path in asked.held.interpreters],
        "cwd": text.show_path(asked.held.cwd),
        "variables": [
            text.show_redacted_line(v) for v in text.shown_variables(asked.held.variables)
        ],
        "parents": [text.show_redacted_line(line) for line in asked.chain[:8]],
        "rule": verdict.rule,
        "reason": verdict.reason,
        "place": verdict.place,
        "risk": verdict.risk,
        "risk_reason": verdict.risk_reason,
        "touches": [text.show_text(t)[:200] for t in asked.touches[:50]],
        "span": asked.span,
        "action": asked.action,
        "left_s": max(0, round(question.deadline - now)),
    }
