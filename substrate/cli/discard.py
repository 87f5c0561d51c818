"""`substrate discard`: what is pending is thrown away, and the world is over."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import click

from substrate.cli import output
from substrate.cli.messages import say
from substrate.cli.progress import working
from substrate.cli.retention import retention_of
from substrate.cli.target import Target, pending_target
from substrate.cli.verb import Verb
from substrate.session import reserve
from substrate.session.collect import collect_now_and_then
from substrate.session.discarding import Removed, discard, give_up_lost, make_room
from substrate.session.lost_layers import LayersLost
from substrate.session.pending import finish, open_pending, phrase
from substrate.session.restack import RecordLater
from substrate.session.summary import change_line
from substrate.values import as_dict
from substrate.world.change import Summary, summary


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

    Somebody may discard because the disk is full: the home has a reserve for that; where even
    that is taken, the layers go before it is recorded. Or because they are lost: what is known of
    them is recorded."""
    try:
        try:
            result = _run(target, dry_run, ask, None)
        except OSError as error:
            if error.errno not in reserve.FULL or not reserve.give_up(target.home.fd):
                raise
            result = _run(target, dry_run, ask, None)
    except LayersLost as found:
        if dry_run:
            raise
        lost = give_up_lost(target.home, target.files.session_id, found.lost)
        return _run(target, False, False, lost)
    except OSError as error:
        if dry_run or error.errno not in reserve.FULL:
            raise
        return _discard_first(target, ask)
    finally:
        reserve.keep(target.home.fd)
    if result.outcome != "unrecorded":
        return result
    return _record(target, result)


def _discard_first(target: Target, ask: bool) -> Result:
    """The layers go, then it is recorded."""
    name = target.world.name
    question = f"the disk is full; discard world {name} before that is recorded?"
    if ask and not click.confirm(question, default=False, err=True):
        return Result(world=name, outcome="kept", counts=Summary(), paths=())
    removed = make_room(target.home, target.files.session_id)
    return _run(target, False, False, removed)


def _record(target: Target, result: Result) -> Result:
    """It was discarded while the disk became full: the rest of it."""
    try:
        reserve.give_up(target.home.fd)
        make_room(target.home, target.files.session_id)
        finish(target.home, target.files.session_id)
    except OSError as error:
        raise RecordLater(f"world {result.world} was discarded", error) from error
    finally:
        reserve.keep(target.home.fd)
    return replace(result, outcome="discarded")


def _run(target: Target, dry_run: bool, ask: bool, removed: Removed | None) -> Result:
    with open_pending(target.home, target.files.session_id, lenient=True) as held:
        changes = held.changes()
        counts, outcome = summary(changes), "planned"
        if not dry_run:
            outcome = "kept"
            question = f"discard world {held.world.name}: {phrase(counts, changes)}?"
            if not ask or click.confirm(question, default=False, err=True):
                try:
                    with working("discarding"):
                        counts = discard(held, removed)
                    outcome = "discarded"
                except RecordLater as later:
                    cause = later.__cause__
                    full = isinstance(cause, OSError) and cause.errno in reserve.FULL
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
        collect_now_and_then(target.home, retention_of)
    return 1 if result.outcome == "kept" else 0
