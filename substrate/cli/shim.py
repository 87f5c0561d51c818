"""`substrate shim deploy|status|remove`: commands on PATH that ask the session before they run."""

from __future__ import annotations

import os
import shlex
from typing import Any

import click

from substrate.cli import in_world, output
from substrate.cli.messages import say, warn
from substrate.cli.verb import Verb, VerbGroup
from substrate.shim import deploying, place, standing
from substrate.telemetry.trace.octets import text_or_b64

_dir = click.option("--dir", "directory", metavar="DIR", help="Another directory of shims.")
_dry_run = click.option("--dry-run", is_flag=True, help="Only say what would be done.")


def _directory(given: str | None) -> bytes:
    return place.absolute(os.fsencode(given) if given else place.default_directory())


def path_line(directory: bytes) -> str:
    """What a shell has to be told."""
    return f"export PATH={shlex.quote(os.fsdecode(directory))}:$PATH"


@click.group("shim", cls=VerbGroup)
def command() -> None:
    """Examples:
      substrate shim deploy
      eval "$(substrate shim deploy)"
      substrate shim status

    Puts a shim before commands such as git, curl and bash: it asks the session's supervisor, and
    becomes the real command. Shims are a convenience: what is called by an absolute path goes past
    them, and meets the exec gate of a world only."""


@command.command("deploy", cls=Verb)
@_dir
@click.option("--commands", metavar="A,B", default="", help="These in place of the usual ones.")
@click.option("--all", "every", is_flag=True, help="Also those of the list that are not installed.")
@click.option(
    "--fail",
    type=click.Choice(("closed", "open")),
    default="closed",
    help="What a shim does where no supervisor can be asked: refuse (125), or run the command.",
)
@click.option("--python", is_flag=True, help="The stub in Python, also where the C one was built.")
@_dry_run
@output.format_option
def deploy_command(
    directory: str | None,
    commands: str,
    every: bool,
    fail: str,
    python: bool,
    dry_run: bool,
    form: str,
) -> int:
    """Examples:
      substrate shim deploy
      substrate shim deploy --commands git,curl,bash
      eval "$(substrate shim deploy)"

    Makes the directory of shims, or a new one in place of the older, at once. Prints the line that
    puts it first in PATH."""
    in_world.refuse_here()
    planned = deploying.plan(
        _directory(directory),
        [name.strip() for name in commands.split(",")] if commands else [],
        every=every,
        fail_open=fail == "open",
        python=python,
    )
    if dry_run:
        place.is_ours(planned.directory)
    else:
        deploying.deploy(planned)
    if form != "table":
        output.put_object("shim_deploy", _as_object(planned, dry_run), form)
        return 0
    done = "would make" if dry_run else "made"
    names = ", ".join(planned.commands) or "none"
    say(
        f"substrate: {done} {len(planned.commands)} shims in {os.fsdecode(planned.directory)}: {names}"
    )
    if planned.left_out:
        say(f"substrate: not installed, and left out: {', '.join(planned.left_out)} (--all)")
    if planned.absent:
        say(
            f"substrate: not installed, so that their shims find nothing: {', '.join(planned.absent)}"
        )
    if planned.stub == "python":
        warn("the stub is Python's: each command costs some 20 ms more (`substrate doctor`)")
    output.put(path_line(planned.directory))
    return 0


def _as_object(planned: deploying.Plan, dry_run: bool) -> dict[str, Any]:
    return {
        "directory": text_or_b64(planned.directory),
        "commands": list(planned.commands),
        "left_out": list(planned.left_out),
        "fail": "open" if planned.fail_open else "closed",
        "stub": planned.stub,
        "path_line": path_line(planned.directory),
        "dry_run": dry_run,
    }


@command.command("status", cls=Verb)
@_dir
@output.format_option
def status_command(directory: str | None, form: str) -> int:
    """Examples:
      substrate shim status
      substrate shim status --format json

    Shows each shim: what it stands for, and whether something goes past it. Exit status 1 where one
    does not do what it is for, or where there are none."""
    path = _directory(directory)
    found = standing.look(path)
    if found is None:
        if form != "table":
            output.put_object("shim", {"directory": text_or_b64(path), "deployed": False}, form)
        else:
            say(f"substrate: there are no shims in {os.fsdecode(path)}")
            say("hint: substrate shim deploy")
        return 1
    if form == "jsonl":
        output.put_rows("shim", "shims", [_row(shim) for shim in found.shims], form)
    elif form == "json":
        output.put_object("shim", _standing(found), form)
    else:
        _show(found)
    return 0 if found.well else 1


def _row(shim: standing.Shim) -> dict[str, Any]:
    return {
        "name": shim.name,
        "state": shim.state,
        "original": None if shim.original is None else text_or_b64(shim.original),
        "before": None if shim.before is None else text_or_b64(shim.before),
    }


def _standing(found: standing.Standing) -> dict[str, Any]:
    return {
        "directory": text_or_b64(found.directory),
        "deployed": True,
        "well": found.well,
        "stub": found.stub,
        "stale": found.stale,
        "fail": "open" if found.fail_open else "closed",
        "substrate": text_or_b64(found.substrate),
        "substrate_works": found.substrate_works,
        "position": found.position,
        "shims": [_row(shim) for shim in found.shims],
        "unprotected": list(found.unprotected),
    }


def _show(found: standing.Standing) -> None:
    rows = []
    for shim in found.shims:
        what = os.fsdecode(shim.original) if shim.original is not None else "-"
        past = f"{os.fsdecode(shim.before)} comes first" if shim.before is not None else ""
        rows.append((shim.name, shim.state, what, past))
    output.put_table(("shim", "state", "stands for", ""), rows)
    stale = ", stale: `substrate shim deploy` makes them anew" if found.stale else ""
    output.put_visible(f"directory: {os.fsdecode(found.directory)}")
    output.put_visible(f"stub: {found.stub}{stale}; without a supervisor: {_fails(found)}")
    if found.position is None:
        output.put_visible(f"PATH: the directory is not in it: {path_line(found.directory)}")
    else:
        output.put_visible(f"PATH: place {found.position}")
    if not found.substrate_works:
        output.put_visible("shells: the command substrate is not where it was: deploy again")
    if found.unprotected:
        output.put_visible(f"without a shim: {', '.join(found.unprotected)}")
    output.put_visible(
        "past every shim: what is called by its absolute path; in a world the exec gate sees it"
    )


def _fails(found: standing.Standing) -> str:
    return "the command runs unasked" if found.fail_open else "refused (125)"


@command.command("remove", cls=Verb)
@_dir
@_dry_run
@output.format_option
def remove_command(directory: str | None, dry_run: bool, form: str) -> int:
    """Examples:
      substrate shim remove
      substrate shim remove --dir ~/shims --dry-run

    Takes the directory of shims away. Exit status 1 where there was none."""
    in_world.refuse_here()
    path = _directory(directory)
    names = deploying.remove(path, dry_run=dry_run)
    if form != "table":
        fields = {
            "directory": text_or_b64(path),
            "removed": list(names or ()),
            "was_there": names is not None,
            "dry_run": dry_run,
        }
        output.put_object("shim_remove", fields, form)
    elif names is None:
        say(f"substrate: there are no shims in {os.fsdecode(path)}")
    else:
        done = "would remove" if dry_run else "removed"
        say(f"substrate: {done} {len(names)} shims: {os.fsdecode(path)}")
    return 0 if names is not None else 1
