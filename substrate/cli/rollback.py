"""`substrate rollback NAME`: the world goes back to a snapshot."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import click

from substrate.cli import output
from substrate.cli.asking import Ask, confirm
from substrate.cli.diff import change_object
from substrate.cli.messages import say
from substrate.cli.progress import working
from substrate.cli.target import Target, pending_target
from substrate.cli.verb import Verb
from substrate.session.pending import open_pending, phrase
from substrate.session.summary import change_line
from substrate.session.undo import Undone, look_back, rollback
from substrate.values import as_dict


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`outcome`: rolled back, planned, kept (the answer was no)."""

    world: str
    name: str
    outcome: str
    undone: Undone


def run(target: Target, name: str, *, dry_run: bool, ask: Ask | None = None) -> Result:
    """Rolls back. Raises SessionBusy, UsageError, StateError."""
    with open_pending(target.home, target.files.session_id) as held:
        with working("comparing"):
            undone = look_back(held, name)
        outcome = "planned"
        if not dry_run:
            outcome = "kept"
            question = f"roll world {held.world.name} back to {name}: {_phrase(undone)}?"
            if ask is None or not undone.layers or ask(question):
                rollback(held, name, undone)
                outcome = "rolled back"
        return Result(world=held.world.name, name=name, outcome=outcome, undone=undone)


def _phrase(undone: Undone) -> str:
    parts = []
    if undone.layers:
        parts.append(f"{', '.join(undone.names)} undone: {phrase(undone.counts, undone.changes)}")
    if undone.restored:
        count = len(undone.restored)
        parts.append(f"{'1 layer' if count == 1 else f'{count} layers'} back")
    return "; ".join(parts) or "nothing had changed"


def as_object(result: Result) -> dict[str, Any]:
    return {
        "world": result.world,
        "snapshot": result.name,
        "outcome": result.outcome,
        "dropped": list(result.undone.layers),
        "restored": list(result.undone.restored),
        "counts": as_dict(result.undone.counts),
        "changes": [change_object(change) for change in result.undone.changes],
    }


def render(result: Result, form: str) -> None:
    if form != "table":
        output.put_object("rollback", as_object(result), form)
        return
    if result.outcome == "planned":
        for change in result.undone.changes:
            output.put_visible(change_line(change))
    words = {"planned": "would be", "kept": "stays, and is not", "rolled back": "is"}
    say(
        f"substrate: world {result.world} {words[result.outcome]} back at {result.name}: "
        f"{_phrase(result.undone)}"
    )


@click.command("rollback", cls=Verb)
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Show what would be undone, touch nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output.world_option
@output.format_option
def command(name: str, dry_run: bool, yes: bool, world: str | None, form: str) -> int:
    """Example:
      substrate rollback before-refactoring

    Makes the current world what it was at the snapshot NAME: what came later is undone, what
    was undone since comes back. Refused where something was applied to the host in between."""
    may_ask = not yes and form == "table" and sys.stdin is not None and sys.stdin.isatty()
    result = run(pending_target(world), name, dry_run=dry_run, ask=confirm if may_ask else None)
    render(result, form)
    return 1 if result.outcome == "kept" else 0
