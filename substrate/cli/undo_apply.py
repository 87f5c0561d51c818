"""`substrate undo --apply`: the last apply is taken back; its half of the verb's file (undo.py)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from substrate.cli import output
from substrate.cli.asking import Ask
from substrate.cli.diff import change_object
from substrate.cli.messages import say
from substrate.cli.progress import working
from substrate.cli.target import Target
from substrate.errors import SubstrateError
from substrate.session import undo_apply
from substrate.session.pending import open_pending, phrase
from substrate.session.summary import change_line
from substrate.session.undo_apply import Reviewed
from substrate.telemetry.trace.events.layers import Undo
from substrate.values import as_dict
from substrate.world.reverse_check import UndoRefused


class FinishedNow(SubstrateError):
    """What was asked for has been done: by the call before this one, which was killed."""

    exit_status = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`outcome`: undone, planned, kept (the answer was no), conflicts (the host changed since)."""

    world: str
    outcome: str
    reviewed: Reviewed


def run(target: Target, *, dry_run: bool, ask: Ask | None) -> Result:
    """Undoes the apply. Raises SessionBusy, NothingToUndo, FinishedNow, StateError."""
    with open_pending(target.home, target.files.session_id, also_applied=True) as held:
        if held.finished == Undo.event_type:
            raise FinishedNow(
                f"an undo of an apply of world {held.world.name} had been cut short; it was "
                "finished now",
                hint="again, and it is the apply before that",
            )
        with working("comparing"):
            reviewed = undo_apply.review(held)
        name = held.world.name
        outcome = "conflicts" if reviewed.conflicts else "planned"
        if not (dry_run or reviewed.conflicts):
            outcome = "kept"
            question = (
                f"undo the apply of world {name}: {phrase(reviewed.counts, reviewed.changes)}?"
            )
            if ask is None or ask(question):
                try:
                    with working("undoing"):
                        undo_apply.carry_out(held, reviewed)
                    outcome = "undone"
                except UndoRefused:
                    outcome = "conflicts"
        return Result(world=name, outcome=outcome, reviewed=reviewed)


def as_object(result: Result) -> dict[str, Any]:
    reviewed = result.reviewed
    return {
        "world": result.world,
        "outcome": result.outcome,
        "apply_seq": reviewed.line["seq"],
        "counts": as_dict(reviewed.counts),
        "changes": [change_object(change) for change in reviewed.changes],
        "conflicts": [
            {
                "path": output.as_json(c.path),
                "reason": str(c.reason.value),
                "detail": c.detail,
            }
            for c in reviewed.conflicts
        ],
    }


def render(result: Result, form: str) -> None:
    if form != "table":
        output.put_object("undo.apply", as_object(result), form)
        return
    reviewed = result.reviewed
    for conflict in reviewed.conflicts:
        output.put_visible(f"conflict {os.fsdecode(conflict.path)}: {conflict.detail}")
    if result.outcome == "planned":
        for change in reviewed.changes:
            output.put_visible(change_line(change))
    if result.outcome == "conflicts":
        say("substrate: nothing was undone: the host changed since the apply")
        say("hint: put the host's versions aside, then undo the apply again")
        return
    words = {"planned": "would be undone", "kept": "stays", "undone": "was undone"}
    say(
        f"substrate: world {result.world}: the apply {words[result.outcome]}: "
        f"{phrase(reviewed.counts, reviewed.changes)}"
    )
    if result.outcome == "undone":
        but = ", but for what was undone since" if reviewed.off else ""
        say(f"substrate: what it had applied is pending again{but}")
