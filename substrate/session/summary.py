"""What people and programs are told after a run: a line, a question, an object.

Pure but for `ask`, which gets its terminal as functions. Loaded after the command, so off its
way; still nothing heavy, since its user waits. Spec: shell.md §1, world.md §4.
"""

from __future__ import annotations

import os

from substrate.values import as_dict
from substrate.world.change import is_time_alone, summary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from substrate.session.supervisor import Outcome
    from substrate.world.change import Change, Summary

_VERBS = {
    "added": "added",
    "modified": "modified",
    "deleted": "deleted",
    "renamed": "renamed",
    "meta": "with other attributes",
    "type_changed": "of another type",
    "times": "with a new time alone",
}
_SIGNS = {
    "added": "A",
    "modified": "M",
    "deleted": "D",
    "renamed": "R",
    "meta": "m",
    "type_changed": "T",
}
#: how many paths `show` lists before it counts
MAX_SHOWN = 60
QUESTION = "apply, keep, discard or show? [a/K/d/s] "


def count_phrase(counts: Summary, times: int = 0) -> str:
    """`3 files added, 1 modified`; empty where there is nothing. `times`: those among the ones
    with other attributes of which the time alone is another."""
    parts: list[str] = []
    numbers = {**as_dict(counts), "meta": counts.meta - times, "times": times}
    for kind, words in _VERBS.items():
        number = numbers[kind]
        if number:
            noun = "" if parts else (" file" if number == 1 else " files")
            parts.append(f"{number}{noun} {words}")
    return ", ".join(parts)


def summary_line(outcome: Outcome) -> str:
    """The line after a command; empty where there is nothing to say."""
    times = sum(map(is_time_alone, outcome.changes))
    phrase = count_phrase(summary(outcome.changes), times)
    if outcome.world is None:
        return "substrate: no world: the command ran on the host itself, recorded"
    if not phrase:
        return ""
    continued = " (continued)" if outcome.continued else ""
    return f"substrate: world {outcome.world}{continued}: {phrase} (apply | discard | diff)"


def change_line(change: Change) -> str:
    """`M path`, as a list of changes shows it."""
    path = os.fsdecode(change.path)
    if change.old_path is not None:
        path = f"{os.fsdecode(change.old_path)} -> {path}"
    return f"{_SIGNS[change.kind]} {path}"


def outcome_object(outcome: Outcome) -> dict[str, Any]:
    """How a run ended, for `--json` and `--json-status` (schema substrate.run/1).

    `by`: command, signal, timeout, policy, or substrate (it never ran). Times in microseconds."""
    ended = outcome.ended
    by = {"exit": "command", "signal": "signal", "timeout": "timeout", "denied": "policy"}
    found: dict[str, Any] = {
        "schema": "substrate.run/1",
        "exit_status": outcome.exit_status,
        "by": by.get(ended.ended_by, "substrate"),
        "ended_by": ended.ended_by,
        "duration_us": ended.duration_us,
        "session": outcome.session_id,
        "span": outcome.span_id,
        "world": outcome.world,
        "continued": outcome.continued,
        "layer": outcome.layer,
        "changes": as_dict(summary(outcome.changes)),
        "notes": list(outcome.notes),
        "denials": [{"code": d.code, "text": clean(d.text)} for d in outcome.denials],
    }
    if ended.status is not None and os.WIFSIGNALED(ended.status):
        found["signal"] = os.WTERMSIG(ended.status)
    if ended.failed is not None:
        found["failed"] = {"step": ended.failed[0], "errno": ended.failed[1]}
        found["error"] = clean(f"{ended.failed[0]}: {ended.failed[2]}")
    return found


def clean(text: str) -> str:
    """Text for JSON: bytes of names that are not UTF-8 as escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def ask(changes: Iterable[Change], read: Callable[[], str], say: Callable[[str], None]) -> str:
    """Asks until the answer is apply, keep or discard. `read` gives a line, "" at the end of
    the input, which is no answer: the changes are kept."""
    while True:
        answer = read()
        if not answer:
            return "keep"
        word = answer.strip().lower()
        if word in ("s", "show"):
            for line in shown(changes):
                say(line)
            continue
        for full in ("apply", "keep", "discard"):
            if word in (full, full[0]):
                return full
        if not word:
            return "keep"
        say(f"substrate: {answer.strip()!r} is none of apply, keep, discard, show")


def shown(changes: Iterable[Change]) -> list[str]:
    """The changes one a line. Deletions are never among those that are only counted."""
    listed = list(changes)
    if len(listed) <= MAX_SHOWN:
        return [change_line(change) for change in listed]
    kept = [c for c in listed if c.kind == "deleted"]
    others = [c for c in listed if c.kind != "deleted"][: max(0, MAX_SHOWN - len(kept))]
    lines = [change_line(c) for c in sorted([*kept, *others], key=lambda c: c.path)]
    return [*lines, f"… and {len(listed) - len(lines)} more: `substrate diff` shows all"]
