"""`substrate discard`: what is pending is thrown away, and the world is over."""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass, replace

import click

from substrate.cli import output
from substrate.cli.messages import say
from substrate.cli.progress import working
from substrate.cli.retention import retention_of
from substrate.cli.target import Target, pending_target
from substrate.cli.verb import Verb
from substrate.session.collect import collect_now_and_then
from substrate.session.lost_layers import LayersLost
from substrate.session.pending import (
    Removed,
    finish,
    give_up_lost,
    make_room,
    open_pending,
    phrase,
)
from substrate.session.restack import RecordLater
from substrate.session.summary import change_line
from substrate.values import as_dict
from substrate.world.change import Summary, summary

_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`outcome`: discarded, planned, kept (the answer was no), unrecorded (on the way, where the
    disk is too full to record it)."""

    world: str
    outcome: str
    counts: Summary
    paths: tuple[str, ...]


def run(target: Target, *, dry_run: bool, ask: bool) -> Result:
    """Discards. Raises SessionBusy, StateError.

    Somebody may discard because the disk is full: where not even that can be recorded, the
    layers go first. Or because they are lost: what is known of them is recorded."""
    try:
        result = _run(target, dry_run, ask, None)
        if result.outcome != "unrecorded":
            return result
    except LayersLost as found:
        if dry_run:
            raise
        lost = give_up_lost(target.home, target.files.session_id, found.lost)
        return _run(target, False, False, lost)
    except OSError as error:
        if dry_run or error.errno not in _FULL:
            raise
        result = None
    name = target.world.name
    question = f"the disk is full; discard world {name} before that is recorded?"
    if result is None and ask and not click.confirm(question, default=False, err=True):
        return Result(world=name, outcome="kept", counts=Summary(), paths=())
    try:
        removed = make_room(target.home, target.files.session_id)
        if result is None:
            return _run(target, False, False, removed)
        finish(target.home, target.files.session_id)
        return replace(result, outcome="discarded")
    except OSError as error:
        if result is None:
            raise
        raise RecordLater(f"world {name} was discarded", error) from error


def _run(target: Target, dry_run: bool, ask: bool, removed: Removed | None) -> Result:
    with open_pending(target.home, target.files.session_id, lenient=True) as held:
        changes = held.changes()
        counts, outcome = summary(changes), "planned"
        if not dry_run:
            outcome = "kept"
            question = f"discard world {held.world.name}: {phrase(counts)}?"
            if not ask or click.confirm(question, default=False, err=True):
                try:
                    with working("discarding"):
                        counts = held.discard(removed)
                    outcome = "discarded"
                except RecordLater as later:
                    full = isinstance(later.__cause__, OSError) and later.__cause__.errno in _FULL
                    if removed is not None or not full:
                        raise
                    outcome = "unrecorded"
        return Result(
            world=held.world.name,
            outcome=outcome,
            counts=counts,
            paths=tuple(change_line(change) for change in changes),
        )


def render(result: Result, form: str) -> None:
    if form != "table":
        fields = {
            "world": result.world,
            "outcome": result.outcome,
            "counts": as_dict(result.counts),
        }
        output.put_object("discard", fields, form)
        return
    if result.outcome == "planned":
        for line in result.paths:
            output.put_visible(line)
    words = {"planned": "would discard", "kept": "kept", "discarded": "discarded"}
    say(f"substrate: world {result.world} {words[result.outcome]}: {phrase(result.counts)}")


@click.command("discard", cls=Verb)
@click.option("--dry-run", is_flag=True, help="Show what would be lost, touch nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output.world_option
@output.format_option
def command(dry_run: bool, yes: bool, world: str | None, form: str) -> int:
    """Example:
      substrate discard

    Throws away what is pending in the current world, which is over then. The record of what
    ran stays. On a terminal it asks first."""
    target = pending_target(world)
    ask = not yes and form == "table" and sys.stdin is not None and sys.stdin.isatty()
    result = run(target, dry_run=dry_run, ask=ask)
    render(result, form)
    if result.outcome == "discarded":
        collect_now_and_then(target.home, retention_of())
    return 1 if result.outcome == "kept" else 0
