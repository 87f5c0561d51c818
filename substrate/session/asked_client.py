"""A question of a joined command, put to whoever has called it, on the caller's own terminal.

The supervisor has no terminal; its client has. The question travels as a packet to the client, which shows it
(asked_here.py) and says what was answered; the supervisor decides as of any other channel. Only clients of `control`
are asked, as a world's own process would answer for itself. Nothing of the command is
written to the terminal until the client has given it back. Not the
questions themselves (approving.py). Invariant: only the client that was asked can answer. Spec: policy.md §3, shell.md §2.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from substrate.policy.rules import Verdict
from substrate.session import client_call
from substrate.session.approvals_values import Asked, Held, Question

if TYPE_CHECKING:
    from typing import Any, Final

    from substrate.session.approvals_terminal import Paused
    from substrate.session.doors import Client

#: of what is asked about: what is longer is shown cut
_MOST_WORDS, _MOST_WORD = 200, 2000
_MOST_CHAIN: Final = 8
_MOST_TEXT: Final = 40_000
#: said in place of an answer: the terminal is the command's again
BACK: Final = "back"


class Remote:
    """The terminal of a client. `paused`: what of its command meets it."""

    def __init__(self, client: Client, paused: Paused | None) -> None:
        self.client, self._paused = client, paused

    def put(self, question: Question, *, exact: bool, line: str) -> None:
        """Asks there."""
        if self._paused is not None:
            self._paused.catch_up()
            self._paused.pause()
        self.client.send(client_call.QUESTION, question.number, packed(question, exact, line))

    def say(self, number: int, text: str) -> None:
        """What is wrong with the answer that was given."""
        self.client.send(client_call.WRONG, number, text[:1000])

    def over(self, number: int, line: str) -> None:
        """It is answered, or not asked any more."""
        self.client.send(client_call.OVER, number, line[:4000])

    def resume(self) -> None:
        """The client has given the terminal back, or never took it."""
        if self._paused is not None:
            self._paused.resume()

    @property
    def name(self) -> str:
        peer = self.client.peer
        return f"terminal of pid={peer.pid} uid={peer.uid}"


def packed(question: Question, exact: bool, line: str) -> str:
    """A question as it travels; bytes as the characters of the same numbers."""
    asked, held = question.asked, question.asked.held
    argv = [word[:_MOST_WORD] for word in held.argv[:_MOST_WORDS]]
    while len(argv) > 1 and sum(map(len, argv)) > _MOST_TEXT // 4:
        argv = argv[: len(argv) // 2]
    cut = held.cut or tuple(argv) != held.argv
    verdict = asked.verdict
    return json.dumps(
        {
            "put_at": question.put_at,
            "deadline": question.deadline,
            "exact": exact and not cut,
            "line": line[:1000],
            "argv": [_text(word) for word in argv],
            "cut": cut,
            "program": _text(held.program),
            "cwd": _text(held.cwd),
            "interpreters": [_text(each) for each in held.interpreters[:_MOST_CHAIN]],
            "kind": asked.kind,
            "variables": None
            if held.variables is None
            else [_text(each[:100]) for each in held.variables[:_MOST_WORDS]],
            "chain": [_text(each[:_MOST_WORD]) for each in asked.chain[:_MOST_CHAIN]],
            "touches": [each[:200] for each in asked.touches[:_MOST_CHAIN]],
            "verdict": [
                *(verdict.action, verdict.rule, verdict.layer, verdict.reason[:1000]),
                *(verdict.place, verdict.risk, verdict.risk_reason[:1000]),
            ],
        }
    )


def unpacked(number: int, text: str) -> tuple[Question, bool, str]:
    """(question, exact, line) of what `packed` made. Raises ValueError, KeyError, TypeError."""
    given: dict[str, Any] = json.loads(text)
    action, rule, layer, reason, place, risk, risk_reason = given["verdict"]
    asked = Asked(
        ticket=number,
        action="",
        kind=given["kind"],
        held=Held(
            argv=tuple(map(_bytes, given["argv"])),
            program=_bytes(given["program"]),
            cwd=_bytes(given["cwd"]),
            interpreters=tuple(map(_bytes, given["interpreters"])),
            cut=bool(given["cut"]),
            variables=None
            if given["variables"] is None
            else tuple(map(_bytes, given["variables"])),
        ),
        verdict=Verdict(
            action=action,
            rule=rule,
            layer=layer,
            reason=reason,
            place=place,
            risk=risk,
            risk_reason=risk_reason,
        ),
        policy_digest="",
        chain=tuple(map(_bytes, given["chain"])),
        touches=tuple(given["touches"]),
    )
    question = Question(
        number=number,
        asked=asked,
        put_at=float(given["put_at"]),
        deadline=float(given["deadline"]),
    )
    return question, bool(given["exact"]), str(given["line"])


def _text(raw: bytes) -> str:
    return raw.decode("latin-1")


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")
