"""`substrate snapshot [NAME]`: names the present state of a world, or lists the names."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from substrate.cli import output
from substrate.cli.messages import say
from substrate.cli.target import pending_target
from substrate.cli.verb import Verb
from substrate.errors import UsageError
from substrate.session.pending import open_pending
from substrate.session.stack_file import SnapshotMark, load_stack_file
from substrate.session.undo import forget_snapshot, snapshot


def as_object(mark: SnapshotMark) -> dict[str, Any]:
    return {
        "name": mark.name,
        "at": _time_of(mark).isoformat().replace("+00:00", "Z"),
        "layers": list(mark.layers),
        "applies": mark.applies,
    }


def _time_of(mark: SnapshotMark) -> datetime:
    return datetime.fromtimestamp(mark.at_us / 1_000_000, UTC)


def render(marks: tuple[SnapshotMark, ...], form: str) -> None:
    if form != "table":
        output.put_rows("snapshot", "snapshots", [as_object(mark) for mark in marks], form)
        return
    rows = [
        (mark.name, output.show_time(_time_of(mark).isoformat()), len(mark.layers))
        for mark in marks
    ]
    output.put_table(("NAME", "MADE", "LAYERS"), rows)


@click.command("snapshot", cls=Verb)
@click.argument("name", required=False)
@click.option("--force", is_flag=True, help="Move a name that exists to the present state.")
@click.option("--remove", is_flag=True, help="Drop the name; the state stays as it is.")
@output.world_option
@output.format_option
def command(name: str | None, force: bool, remove: bool, world: str | None, form: str) -> int:
    """Examples:
      substrate snapshot before-refactoring
      substrate snapshot

    Gives the present state of the current world a name, to which `substrate rollback NAME`
    goes back. It costs nothing: no file is copied. Without NAME it lists the names."""
    target = pending_target(world)
    if name is None:
        if force or remove:
            raise UsageError("there is no name", hint="for example: substrate snapshot before")
        render(load_stack_file(target.files).snapshots, form)
        return 0
    with open_pending(target.home, target.files.session_id) as held:
        if remove:
            forget_snapshot(held, name)
            say(f"substrate: world {held.world.name}: snapshot {name} was dropped")
            return 0
        mark = snapshot(held, name, replace_old=force)
    if form != "table":
        render((mark,), form)
    else:
        count = len(mark.layers)
        layers = "1 layer" if count == 1 else f"{count} layers"
        say(f"substrate: world {target.world.name}: snapshot {name} ({layers})")
    return 0
