"""`substrate apply [PATH…]`: what is pending comes to the host, all of it or nothing.

The call is the decision: ordinary changes are not asked about. What is dangerous (setuid,
devices, capabilities …) needs a yes at a terminal or `--allow-special`. Spec: world.md §5.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from substrate.cli import output
from substrate.cli.diff import change_object
from substrate.cli.messages import say, warn
from substrate.cli.paths import absolute, selector
from substrate.cli.progress import working
from substrate.cli.target import NothingFound, Target, pending_target
from substrate.cli.verb import Verb
from substrate.session.pending import (
    ApplyConflict,
    DangerRefused,
    Done,
    Held,
    Review,
    open_pending,
    phrase,
)
from substrate.session.summary import change_line
from substrate.values import as_dict
from substrate.world.scope import is_within

#: asks about the dangers of a review
Ask = Callable[[Review], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`outcome`: applied, planned (a dry run), conflicts, refused. `outside`: changed paths that
    do not lie in the workspace."""

    world: str
    workspace: bytes
    outcome: str
    review: Review
    done: Done | None
    recovered: str | None

    @property
    def outside(self) -> list[bytes]:
        return [c.path for c in self.review.changes if not is_within(c.path, self.workspace)]


def run(
    target: Target,
    paths: Sequence[bytes],
    *,
    dry_run: bool,
    allow_special: bool,
    ask: Ask | None = None,
) -> Result:
    """Applies. Raises SessionBusy, StateError, NothingFound for paths that did not change."""
    with open_pending(target.home, target.files.session_id) as held:
        return _apply(held, paths, dry_run, allow_special, ask)


def _apply(
    held: Held, paths: Sequence[bytes], dry_run: bool, allow_special: bool, ask: Ask | None
) -> Result:
    select = selector(paths)
    with working("comparing"):
        reviewed = held.review(select)
    review = reviewed[0]
    if paths and not review.changes:
        raise NothingFound(
            f"nothing is pending at {os.fsdecode(paths[0])}",
            hint="`substrate diff --name-only` lists what is",
        )
    outcome, done = "planned", None
    if not dry_run:
        if review.dangers and not review.conflicts and not allow_special and ask is not None:
            allow_special = ask(review)
        try:
            with working("applying"):
                done = held.apply(
                    select=select, paths=paths, allow_special=allow_special, reviewed=reviewed
                )
            outcome = "applied"
        except ApplyConflict:
            outcome = "conflicts"
        except DangerRefused:
            outcome = "refused"
    elif review.conflicts:
        outcome = "conflicts"
    return Result(
        world=held.world.name,
        workspace=held.world.workspace,
        outcome=outcome,
        review=review,
        done=done,
        recovered=None if held.recovered is None else str(held.recovered.value),
    )


def as_object(result: Result) -> dict[str, Any]:
    review = result.review
    return {
        "world": result.world,
        "outcome": result.outcome,
        "over": result.done is not None and result.done.over,
        "outside": [output.as_json(path) for path in result.outside],
        "counts": as_dict(review.counts),
        "changes": [change_object(change) for change in review.changes],
        "conflicts": [
            {
                "path": output.as_json(c.path),
                "reason": str(c.reason.value),
                "detail": c.detail,
            }
            for c in review.conflicts
        ],
        "dangers": [
            {"path": output.as_json(d.path), "reason": str(d.reason.value)} for d in review.dangers
        ],
        "recovered": result.recovered,
    }


def render(result: Result, form: str) -> None:
    if result.recovered is not None:
        warn(f"an earlier apply had been cut short; it was {result.recovered.replace('_', ' ')}")
    if form != "table":
        output.put_object("apply", as_object(result), form)
        return
    review = result.review
    if result.outcome == "planned":
        for change in review.changes:
            output.put_visible(change_line(change))
    if result.outside and result.outcome in ("planned", "applied"):
        some = ", ".join(os.fsdecode(path) for path in result.outside[:4])
        more = f" and {len(result.outside) - 4} more" if len(result.outside) > 4 else ""
        warn(f"outside of {os.fsdecode(result.workspace)}: {some}{more}")
    for conflict in review.conflicts:
        output.put_visible(f"conflict {os.fsdecode(conflict.path)}: {conflict.detail}")
    for danger in review.dangers:
        output.put_visible(f"danger {os.fsdecode(danger.path)}: {danger.reason.value}")
    if result.outcome == "planned":
        say(f"substrate: world {result.world} would apply: {phrase(review.counts)}")
    elif result.outcome == "applied":
        assert result.done is not None
        say(f"substrate: world {result.world} applied: {phrase(review.counts)}")
        if not result.done.over:
            say("substrate: the rest of it is still pending")
    elif result.outcome == "conflicts":
        say("substrate: nothing was applied: the host changed beside the world")
        say("hint: look at both, then discard, or apply other paths: substrate apply PATH...")
    else:
        say("substrate: nothing was applied: some of it is dangerous")
        say("hint: apply the other paths, or all with --allow-special after a look at them")
    _say_what_is_left(result.done)


def _say_what_is_left(done: Done | None) -> None:
    if done is None:
        return
    for path in done.kept_owner[:20]:
        warn(f"{os.fsdecode(path)} stayed yours: you may not give it to its owner in the world")
    if len(done.kept_owner) > 20:
        warn(f"and {len(done.kept_owner) - 20} more paths stayed yours")
    for path in done.left:
        warn(f"{os.fsdecode(path)} could not be removed: `substrate world gc` tries again")


def ask_at_terminal(review: Review) -> bool:
    """Shows the dangers on standard error and asks."""
    for danger in review.dangers:
        say(f"danger: {os.fsdecode(danger.path)}: {danger.reason.value}")
    return click.confirm("apply these too?", default=False, err=True)


@click.command("apply", cls=Verb)
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Show what would be done, touch nothing.")
@click.option("--yes", is_flag=True, help="Ask nothing; what is dangerous is refused.")
@click.option("--allow-special", is_flag=True, help="Also setuid files, devices, capabilities.")
@output.world_option
@output.format_option
def command(
    paths: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    allow_special: bool,
    world: str | None,
    form: str,
) -> int:
    """Examples:
      substrate apply
      substrate apply src/ README.md
      substrate apply --dry-run

    Brings what is pending in the current world to the host: all of it, or only PATHs. Nothing
    is applied when any of it conflicts with what changed on the host meanwhile (exit status
    1). After all of it was applied, the world is over."""
    target = pending_target(world)
    may_ask = not yes and sys.stdin is not None and sys.stdin.isatty() and form == "table"
    result = run(
        target,
        absolute(paths),
        dry_run=dry_run,
        allow_special=allow_special,
        ask=ask_at_terminal if may_ask else None,
    )
    render(result, form)
    return 0 if result.outcome in ("applied", "planned") else 1
