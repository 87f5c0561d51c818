"""Compares what a program told of itself with what was captured: nothing lost, added or moved.

Logic without I/O. `find_faults` gives a text for each thing that is wrong, none when all is right.
The invariant: every told fact is in the capture, in the task's own order, and the capture holds
nothing else of the compared calls; the only ways out are those that the capture itself declares
(`lost`, `blind`) or the case names (`may_also`), and none of them lets a fact through that differs.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from tests.telemetry.capture.facts import (
    COMPARED,
    ERESTARTNOINTR,
    OPENS,
    RESTARTS,
    Blind,
    Captured,
    Fact,
    Kind,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A fact by the program itself."""

    fact: Fact
    writes: bool = False  #: an open for writing
    spot: str = ""  #: required, unless this blind spot is declared
    got_argv: tuple[bytes, ...] | None = None  #: of an exec: what the new program got


def nothing(_: Fact) -> bool:
    return False


def find_faults(
    told: Iterable[Told],
    captured: Captured,
    *,
    may_also: Callable[[Fact], bool] = nothing,
    restarts: bool = False,
) -> list[str]:
    """What is wrong with `captured`.

    `may_also`: what else the run does of itself (a loader's opens). `restarts`: the program lets the
    kernel begin interrupted calls again, and sees only their last end."""
    told = [_as_seen(item, captured) for item in told if _is_required(item, captured)]
    faults = _find_emptiness(told, captured)
    got = [
        _without_results(fact, captured) for fact in captured.facts if _is_compared(fact, captured)
    ]
    faults += _find_births(got, captured)
    missing = 0
    expected_of, got_of = _by_task(told, lambda item: item.fact.tid), _by_task(got, lambda f: f.tid)
    for tid in dict.fromkeys([*expected_of, *got_of]):
        row = _Row(expected_of.get(tid, []), got_of.get(tid, []), captured, may_also, restarts)
        faults += row.faults
        missing += row.missing
    declared = sum(captured.lost.values())
    if missing > declared:
        faults.append(f"{missing} facts are missing, {declared} are declared as lost")
    return faults


class _Row:
    """One task: two sequences, walked side by side."""

    def __init__(
        self,
        told: list[Told],
        got: list[Fact],
        captured: Captured,
        may_also: Callable[[Fact], bool],
        restarts: bool,
    ) -> None:
        self.faults: list[str] = []
        self.missing = 0
        at = 0
        for index, fact in enumerate(got):
            ahead = at
            # what was told and is not there is missing; it cannot come later, order is kept
            while ahead < len(told) and not _agree(told[ahead], fact, captured):
                ahead += 1
            if ahead == at < len(told):
                at += 1
            elif may_also(fact) or _is_begun_again(fact, got, index + 1, restarts, captured):
                continue
            elif ahead < len(told):
                self._lack(told[at:ahead])
                at = ahead + 1
            else:
                near = f"; told next: {_text(told[at].fact)}" if at < len(told) else ""
                self.faults.append(f"not told, or not in this order: {_text(fact)}{near}")
        self._lack(told[at:])
        # a fault of the order shows as something missing and something too much
        if self.missing and not captured.lost:
            self.faults = self.faults[:6]

    def _lack(self, told: list[Told]) -> None:
        self.missing += len(told)
        self.faults += [f"missing: {_text(item.fact)}" for item in told[:6] if self.missing < 20]


def _is_required(item: Told, captured: Captured) -> bool:
    if item.fact.kind is Kind.FORK and Blind.FORKS in captured.blind:
        return False
    if item.fact.kind is Kind.EXIT and Blind.EXITS in captured.blind:
        return False
    if item.fact.kind is Kind.CALL and item.fact.call in captured.unseen:
        return False
    return item.spot not in captured.blind


def _is_compared(fact: Fact, captured: Captured) -> bool:
    if fact.kind is Kind.FORK:  # some may be seen by what a child does later
        return Blind.FORKS not in captured.blind
    return fact.kind is not Kind.CALL or fact.call in COMPARED


def _as_seen(item: Told, captured: Captured) -> Told:
    return replace(item, fact=_without_results(item.fact, captured))


def _without_results(fact: Fact, captured: Captured) -> Fact:
    """Where results are not seen, an exec that failed looks like one that did not."""
    if Blind.RESULTS in captured.blind and fact.call in ("execve", "execveat"):
        return replace(fact, kind=Kind.EXEC, call="", result=None)
    return fact


def _find_emptiness(told: list[Told], captured: Captured) -> list[str]:
    """A comparison of nothing must not pass."""
    faults = []
    kinds = {item.fact.kind for item in told}
    if Kind.EXEC not in kinds:
        faults.append("the program told no exec, not even its own")
    if Kind.EXIT not in kinds and Blind.EXITS not in captured.blind:
        faults.append("the program told no end, not even its own")
    if unseen := {item.fact.call for item in told if item.fact.kind is Kind.CALL} - captured.calls:
        faults.append(f"the capture does not look at {', '.join(sorted(unseen))}")
    return faults


def _find_births(got: list[Fact], captured: Captured) -> list[str]:
    """A task's fork comes before anything that it did."""
    if Blind.FORKS in captured.blind or captured.lost or not got:
        return []
    born = {got[0].tid}
    faults = []
    for fact in got:
        if fact.tid not in born:
            faults.append(f"of a task of which no fork is known by then: {_text(fact)}")
            born.add(fact.tid)
        if fact.kind is Kind.FORK and fact.result is not None:
            born.add(fact.result)
    return faults[:6]


def _by_task(items: Iterable[T], tid_of: Callable[[T], int]) -> dict[int, list[T]]:
    found: dict[int, list[T]] = defaultdict(list)
    for item in items:
        found[tid_of(item)].append(item)
    return found


def _is_begun_again(
    fact: Fact, got: list[Fact], following_at: int, restarts: bool, captured: Captured
) -> bool:
    """Whether this is an interrupted call of which the program saw only the next go."""
    if fact.kind is not Kind.CALL:
        return False
    if fact.result is None:  # nobody knows that it was interrupted
        if not restarts or not _may_lack_result(fact, captured):
            return False
        before = got[following_at - 2] if following_at > 1 else fact
        if (before.call, before.path, before.result) == (fact.call, fact.path, None):
            return True
    elif fact.result not in RESTARTS or (fact.result != ERESTARTNOINTR and not restarts):
        return False
    if following_at >= len(got):
        return False
    following = got[following_at]
    if fact.call in ("clone", "clone3", "fork", "vfork"):
        return following.kind is Kind.FORK or following.call == fact.call
    return (following.call, following.path) == (fact.call, fact.path)


def _agree(item: Told, got: Fact, captured: Captured) -> bool:
    told = item.fact
    return (
        told.kind is got.kind
        and (told.call == got.call or told.kind is not Kind.CALL)
        and (not got.abi or (told.abi or "native") == got.abi or told.kind is not Kind.CALL)
        and _agree_on_text(told.path, got.path, got.cut)
        and _agree_on_text(told.path2, got.path2, got.cut)
        and _agree_on_result(item, got, captured)
        and _agree_on_words(item, got, captured)
        and _agree_on_addresses(told, got, captured)
        and (told.data is None or got.data is None or _agree_on_text(told.data, got.data, got.cut))
    )


def _agree_on_addresses(told: Fact, got: Fact, captured: Captured) -> bool:
    if told.call in ("accept", "accept4") and Blind.RESULTS in captured.blind:
        return got.addresses == ()  # who it is, is part of the result
    return told.addresses == got.addresses


def _agree_on_text(told: bytes | None, got: bytes | None, cut: bool) -> bool:
    if told is None or got is None:
        return told is got
    # what is cut to nothing agrees with everything: it must hold at least a part
    return told == got or (cut and bool(got) and told.startswith(got))


def _agree_on_words(item: Told, got: Fact, captured: Captured) -> bool:
    if got.kind is not Kind.EXEC:
        return True
    if item.fact.argv is None:  # an exec that failed, and looks like one that did not
        return Blind.RESULTS in captured.blind
    told = [words for words in (item.fact.argv, item.got_argv) if words is not None]
    return any(_are_words(words, got) for words in told)


def _are_words(told: tuple[bytes, ...], got: Fact) -> bool:
    if got.argv is None:
        return False
    if got.argv == told:
        return True
    ours, theirs = (b"".join(word + b"\0" for word in words) for words in (told, got.argv))
    return got.cut and len(got.argv) > 0 and ours.startswith(theirs.removesuffix(b"\0"))


def _may_lack_result(got: Fact, captured: Captured, *, writes: bool = False) -> bool:
    if Blind.RESULTS in captured.blind:
        return got.kind is not Kind.EXIT
    return Blind.READ_RESULTS in captured.blind and got.call in OPENS and not writes


def _agree_on_result(item: Told, got: Fact, captured: Captured) -> bool:
    told = item.fact.result
    if got.result is None:
        return _may_lack_result(got, captured, writes=item.writes)
    if told == -errno.EINTR and got.kind is Kind.CALL:
        return got.result == told or got.result in RESTARTS - {ERESTARTNOINTR}
    return told == got.result


def _text(fact: Fact) -> str:
    parts = [str(fact.kind), f"tid {fact.tid}", fact.call]
    parts += [repr(path) for path in (fact.path, fact.path2) if path is not None]
    parts += [address.decode(errors="replace") for address in fact.addresses]
    parts += [fact.abi, f"argv {fact.argv!r:.120}" if fact.argv is not None else ""]
    return " ".join(part for part in parts if part)[:600] + f" = {fact.result}"
