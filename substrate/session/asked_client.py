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
from substrate.session import approvals_text as text
from substrate.session import client_call
from substrate.session.approvals_values import Asked, Held, Question

if TYPE_CHECKING:
    from typing import Any, Final

    from substrate.session.approvals_terminal import Paused
    from substrate.session.doors import Client

#: of one thing that is asked about, to begin with: what is longer is shown cut
_MOST_TEXT: Final = 16_000
_MOST_CHAIN: Final = 8
#: of a rule that is proposed
_MOST_LINE: Final = 1000
#: a packet holds 64 KiB, with what is around it
_MOST_PACKET: Final = 60_000
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

    def say(self, number: int, words: str) -> None:
        """What is wrong with the answer that was given."""
        self.client.send(client_call.WRONG, number, words[:1000])

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
    """A question as it travels, in one packet; bytes as the characters of the same numbers, which JSON writes
    as six each. What is cut says so."""
    most = _MOST_TEXT
    while True:
        packet = json.dumps(_fields(question, exact, line, most))
        if len(packet) <= _MOST_PACKET:
            return packet
        most //= 2


def _fields(question: Question, exact: bool, line: str, most: int) -> dict[str, Any]:
    """`most`: of any of it, in characters."""
    asked, held, verdict = question.asked, question.asked.held, question.asked.verdict
    argv = _front(held.argv, most)
    cut = held.cut or argv != held.argv
    read_as = _lines(verdict.read_as[1:], most)
    with_ = text.shown_variables(held.variables)
    touches = [text.cut_middle(each, most) for each in asked.touches[:_MOST_CHAIN]]
    if len(asked.touches) > _MOST_CHAIN:
        touches.append(f"{len(asked.touches) - _MOST_CHAIN} more")
    return {
        "put_at": question.put_at,
        "deadline": question.deadline,
        "exact": exact and not cut,
        # a part of a rule is none: then it is typed
        "line": line if len(line) <= min(most, _MOST_LINE) else "",
        "argv": [_text(word) for word in argv],
        "cut": cut,
        "program": _text(_middle(held.program, most)),
        "cwd": _text(_middle(held.cwd, most)),
        "interpreters": [_text(_middle(each, most)) for each in held.interpreters[:_MOST_CHAIN]],
        "kind": asked.kind,
        # as they are shown there: so many of them, and the number of the others
        "variables": [text.show_redacted_line(each) for each in with_[: text.CHAIN]],
        "more_variables": len(with_[text.CHAIN :]),
        "chain": [text.show_redacted_line(each) for each in asked.chain[: text.CHAIN]],
        "touches": touches,
        "read_as": [[_text(word) for word in each] for each in read_as],
        "verdict": [
            verdict.action,
            verdict.rule and text.cut_middle(verdict.rule, most),
            *(text.cut_middle(each, most) for each in (verdict.layer, verdict.reason)),
            text.cut_middle(verdict.place, most),
            verdict.risk,
            text.cut_middle(verdict.risk_reason, most),
        ],
    }


def _front(argv: tuple[bytes, ...], most: int) -> tuple[bytes, ...]:
    """Words of it, as far as they have room."""
    found = []
    for word in argv:
        found.append(word[: max(0, most)])
        most -= len(word) + 1
        if most <= 0:
            break
    return tuple(found)


def _lines(lines: tuple[tuple[bytes, ...], ...], most: int) -> list[tuple[bytes, ...]]:
    """Command lines, as far as they have room, and what says that there are more of them."""
    found: list[tuple[bytes, ...]] = []
    for number, line in enumerate(lines):
        words = _front(line, most)
        if words != line:
            left = len(lines) - number - 1
            more = f" and {left} more command lines" if left else ""
            return [*found, (*words, f"[… cut{more}]".encode())]
        found.append(words)
        most -= sum(map(len, words)) + len(words)
    return found


def _middle(raw: bytes, most: int) -> bytes:
    """At most so much of it, from both ends."""
    if len(raw) <= most:
        return raw
    half = most // 2
    return raw[:half] + b" ...[%d more]... " % (len(raw) - 2 * half) + raw[len(raw) - half :]


def unpacked(number: int, packet: str) -> tuple[Question, bool, str]:
    """(question, exact, line) of what `packed` made. Raises ValueError, KeyError, TypeError."""
    given: dict[str, Any] = json.loads(packet)
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
            variables=(
                *(each.encode() for each in given["variables"]),
                *[b"\xe2\x80\xa6"] * min(int(given["more_variables"]), text.MOST_VARIABLES),
            ),
        ),
        verdict=Verdict(
            action=action,
            rule=rule,
            layer=layer,
            reason=reason,
            place=place,
            risk=risk,
            risk_reason=risk_reason,
            read_as=((), *(tuple(map(_bytes, each)) for each in given["read_as"])),
        ),
        policy_digest="",
        chain=tuple(each.encode() for each in given["chain"]),
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


def _bytes(sent: str) -> bytes:
    return sent.encode("latin-1")
