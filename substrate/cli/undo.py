"""`substrate undo [SPAN…]`: commands are taken back, as if they had not been run.

The newest, or earlier ones where nothing that came later builds on them. `--apply` takes the last
apply back instead, which changes the host. Spec: world.md §4.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from substrate.cli import output, undo_apply
from substrate.cli.asking import Ask, confirm
from substrate.cli.diff import change_object
from substrate.cli.messages import say
from substrate.cli.progress import working
from substrate.cli.target import Target, pending_target, readable_target, same_world
from substrate.cli.verb import Verb
from substrate.errors import UsageError
from substrate.session import soft_spans
from substrate.session.history import Span
from substrate.session.pending import Held, open_pending, phrase
from substrate.session.summary import change_line
from substrate.session.undo import BuiltOn, Choice, Undone, choose, look, undo
from substrate.values import as_dict
from substrate.world.change import summary
from substrate.world.soft_undo import NothingLeft


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`outcome`: undone, planned, kept (the answer was no), depends (others build on it), refused
    (nothing of it can be told apart). `refused`: paths of a command that shared its layer that stay,
    and why."""

    world: str
    outcome: str
    undone: Undone
    choice: Choice
    refused: tuple[tuple[bytes, str], ...] = ()


def run(
    target: Target,
    spans: Sequence[str],
    *,
    with_deps: bool,
    dry_run: bool,
    ask: Ask | None = None,
) -> Result:
    """Undoes. Raises SessionBusy, NothingToUndo, UsageError, StateError."""
    with open_pending(target.home, target.files.session_id) as held:
        if spans and (shared := soft_spans.named(held, held.history(), spans)):
            return _run_soft(held, shared[0], dry_run=dry_run, ask=ask)
        with working("comparing"):
            choice = choose(held, spans, with_deps=with_deps)
            undone = look(held, choice)
        outcome = "depends" if choice.others else "planned"
        if not dry_run:
            what = ", ".join(undone.names)
            question = (
                f"undo {what} in world {held.world.name}: {phrase(undone.counts, undone.changes)}?"
            )
            try:
                if choice.others:
                    raise BuiltOn(choice.others, choice.names, "undone")
                outcome = "kept"
                if ask is None or ask(question):
                    undo(held, choice, with_deps=with_deps)
                    outcome = "undone"
            except BuiltOn:
                outcome = "depends"
        return Result(world=held.world.name, outcome=outcome, undone=undone, choice=choice)


def _run_soft(held: Held, span: Span, *, dry_run: bool, ask: Ask | None) -> Result:
    """Of a command that shared its layer: what can be told apart."""
    with working("comparing"):
        found = soft_spans.choose_undo(held, span)
    name, changes, refused = f"command {span.ordinal}", found.changes, found.refused
    outcome = "planned" if changes else "refused"
    counts = summary(changes)
    if changes and not dry_run:
        outcome = "kept"
        if ask is None or ask(
            f"undo {name} in world {held.world.name}: {phrase(counts, changes)}?"
        ):
            try:
                changes = soft_spans.undo(held, span, found)
                outcome, counts = "undone", summary(changes)
            except NothingLeft as nothing:
                outcome, refused = "refused", nothing.refused
    return Result(
        world=held.world.name,
        outcome=outcome,
        undone=Undone(layers=(), names=(name,), changes=changes, counts=counts),
        choice=Choice(layers=(), spans=(span.span_id,), others={}, names={}),
        refused=tuple(refused.items()),
    )


def others_object(choice: Choice) -> list[dict[str, Any]]:
    return [
        {"layer": n, "name": choice.names[n], "paths": [output.as_json(p) for p in paths]}
        for n, paths in choice.others.items()
    ]


def as_object(result: Result) -> dict[str, Any]:
    undone = result.undone
    return {
        "world": result.world,
        "outcome": result.outcome,
        "layers": list(undone.layers),
        "spans": list(result.choice.spans),
        "counts": as_dict(undone.counts),
        "changes": [change_object(change) for change in undone.changes],
        "depends": others_object(result.choice),
        "refused": [{"path": output.as_json(p), "why": why} for p, why in result.refused],
    }


def put_others(choice: Choice) -> None:
    """The layers that share paths, one line a path."""
    for number, paths in choice.others.items():
        for path in paths:
            output.put_visible(f"{choice.names[number]}: {os.fsdecode(path)}")


def render(result: Result, form: str) -> None:
    if form != "table":
        output.put_object("undo", as_object(result), form)
        return
    undone = result.undone
    what, counts = ", ".join(undone.names), phrase(undone.counts, undone.changes)
    if result.outcome in ("planned", "depends"):
        put_others(result.choice)
    for path, why in result.refused:
        output.put_visible(f"refused {os.fsdecode(path)}: {why}")
    if result.outcome == "refused":
        say(f"substrate: nothing was undone: nothing of {what} can be told apart")
        return
    if result.outcome == "planned":
        for change in result.undone.changes:
            output.put_visible(change_line(change))
    if result.outcome == "depends":
        say(f"substrate: nothing was undone: later commands touched what {what} changed")
        say("hint: --with-deps undoes them too, --dry-run --with-deps shows what that would be")
        return
    words = {"planned": "would be undone", "kept": "kept", "undone": "undone"}
    say(f"substrate: world {result.world}: {what} {words[result.outcome]}: {counts}")


@click.command("undo", cls=Verb)
@click.argument("spans", metavar="[SPAN]...", nargs=-1)
@click.option("--apply", "of_apply", is_flag=True, help="The last apply: the host is put back.")
@click.option("--with-deps", is_flag=True, help="Also what later commands built on it.")
@click.option("--dry-run", is_flag=True, help="Show what would be undone, touch nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output.world_option
@output.format_option
def command(
    spans: tuple[str, ...],
    of_apply: bool,
    with_deps: bool,
    dry_run: bool,
    yes: bool,
    world: str | None,
    form: str,
) -> int:
    """Examples:
      substrate undo
      substrate undo 3
      substrate undo 3 --with-deps --dry-run
      substrate undo --apply

    Takes back what the last command changed in the current world, or what the commands SPAN
    (last, a number of `substrate log`, a span's id) did. Refused, with the list, where a later
    command touched the same paths, their parents or children (exit status 1).

    With --apply the last apply is taken back: what it displaced comes back to the host, all or
    nothing, and the changes are pending again. Refused where the host changed one of the files
    since."""
    may_ask = not yes and form == "table" and sys.stdin is not None and sys.stdin.isatty()
    if of_apply:
        if spans or with_deps:
            raise UsageError(
                "--apply takes the last apply back, not commands",
                hint="undo the apply first, then the commands",
            )
        done = undo_apply.run(
            readable_target(world), dry_run=dry_run, ask=confirm if may_ask else None
        )
        undo_apply.render(done, form)
        return 0 if done.outcome in ("undone", "planned") else 1
    target = same_world(spans, world) if spans else pending_target(world)
    result = run(
        target,
        [name.rpartition(":")[2] for name in spans],
        with_deps=with_deps,
        dry_run=dry_run,
        ask=confirm if may_ask else None,
    )
    render(result, form)
    return 0 if result.outcome in ("undone", "planned") else 1
