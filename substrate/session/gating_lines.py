"""What the gate denied, told in a line that an agent can act on: what, which rule, how to go on.

Logic only. Everything of a program is quoted; control characters are shown by whoever prints
(cli/messages.py). Unlike what denials.py tells, this was decided and not guessed. Spec: policy.md §5.
"""

from __future__ import annotations

import os

from substrate.session.denials import MOST, Denial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.policy.rules import Verdict
    from substrate.session.approvals_values import Answer
    from substrate.telemetry.capture.holds import Gated

_MOST_SHOWN: Final = 120
#: different denials that are kept; those after them are only counted
_MOST_KEPT: Final = 1000
EXPLAIN: Final = "`substrate policy explain last` says what would allow it"
_ALONE: Final = "its changes have to be dropped, which a command of its own can have: `substrate -c` with it alone"
_NOBODY: Final = "nobody could be asked: run it at a terminal, or allow it by a rule"


class Refusals:
    """What was denied, each thing once, in the order of the first time."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._more = 0

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, gated: Gated, verdict: Verdict | None, answer: Answer | None, how: str) -> None:
        """An exec that did not happen, or was killed."""
        what = in_words(gated.argv or (gated.path,))
        if gated.decision == "kill" or verdict is None or gated.reason != "callback":
            from substrate.session.gating_record import WHY

            word = "killed" if gated.decision == "kill" else "denied"
            why = WHY.get(gated.reason, gated.reason)
            self.put(f"{word}: {what}: {why}")
        elif answer is not None and answer.line:
            self.put(answer.line, answer.hint)
        else:
            self.put(f"denied: {what} {ruled(verdict)}", hint_of(verdict, how))

    def put(self, text: str, hint: str = "") -> None:
        key = (text, hint)
        if key not in self._counts and len(self._counts) >= _MOST_KEPT:
            self._more += 1
        else:
            self._counts[key] = self._counts.get(key, 0) + 1

    def lines(self) -> tuple[Denial, ...]:
        """At most three; the last one counts what is left."""
        told = list(self._counts.items())
        left = self._more
        if len(told) + bool(left) > MOST:
            left += len(told) - (MOST - 1)
            told = told[: MOST - 1]
        found = [
            Denial(code="policy_denied", text=_line(text, hint, count))
            for (text, hint), count in told
        ]
        if left:
            more = f"denied: {left} more: `substrate trace show last` lists them"
            found.append(Denial(code="policy_denied", text=more))
        return tuple(found)


def _line(text: str, hint: str, count: int) -> str:
    times = "" if count < 2 else f" ({count} times)"
    return f"{text}{times}; {hint}" if hint else text + times


def ruled(verdict: Verdict) -> str:
    """Which rule, and its reason; else why without one."""
    if verdict.rule:
        return f"(rule {verdict.rule}{verdict.reason and f': {verdict.reason}'})"
    if verdict.reason or not verdict.layer:
        return f"({verdict.reason or 'no rule allows it'})"
    return f'(no rule allows it, and default_action = "{verdict.action}" in {verdict.layer})'


def hint_of(verdict: Verdict, how: str) -> str:
    """How to go on after a denial. `how`: why nobody was asked."""
    if how:
        return _NOBODY
    return _ALONE if verdict.action == "isolate" else EXPLAIN


def in_words(argv: tuple[bytes, ...]) -> str:
    """A command line, quoted, and cut in the middle where it is long."""
    if len(argv) > 2 * _MOST_SHOWN:  # each is one letter at least: the middle is not shown
        argv = (*argv[:_MOST_SHOWN], *argv[-_MOST_SHOWN:])
    text = " ".join(_quoted(os.fsdecode(_ends(word))) for word in argv)
    if len(text) <= _MOST_SHOWN:
        return text
    half = _MOST_SHOWN // 2
    return f"{text[:half]} … {text[-half:]}"


def _ends(word: bytes) -> bytes:
    """As much of a long word as can be shown of it; a letter has four bytes at most."""
    most = 4 * _MOST_SHOWN
    return word if len(word) <= 2 * most else word[:most] + word[-most:]


def _quoted(word: str) -> str:
    plain = word and all(c.isalnum() or c in "@%+=:,./_-" for c in word)
    return word if plain else "'" + word.replace("'", "'\\''") + "'"
