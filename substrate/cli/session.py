"""`substrate session ls|show|end|rm`: sessions, each with its record and its world."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

import click

from substrate.cli import output
from substrate.cli.log import as_object as span_object
from substrate.cli.messages import say
from substrate.cli.target import open_existing_home
from substrate.cli.verb import VerbGroup
from substrate.errors import StateError, SubstrateError, UsageError
from substrate.session import live_call, running, store
from substrate.session.collect import disk_bytes
from substrate.session.fork_bases import refuse_while_forked
from substrate.session.history import History, load_history
from substrate.session.home import Home
from substrate.session.summary import count_phrase
from substrate.session.world_file import OPEN, WorldFile, load_world
from substrate.telemetry.trace.lock import SessionLock
from substrate.telemetry.trace.system import REAL
from substrate.world.change import summary
from substrate.world.diff import diff_pending


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A session; `problem` says what of it cannot be read; `live`: a supervisor of it stays."""

    session_id: str
    world: WorldFile | None
    history: History | None
    problem: str = ""
    live: bool = False


def look(home: Home, session_id: str) -> Entry:
    """A session as far as it can be read."""
    world: WorldFile | None = None
    history: History | None = None
    problem = ""
    live = False
    try:
        files = store.open_session(home, session_id)
        try:
            live = live_call.is_live(files)
            history = load_history(files)
            if history.problem is not None:
                problem = str(history.problem)
            world = load_world(files)
        finally:
            os.close(files.fd)
    except SubstrateError as error:
        problem = problem or str(error)
    return Entry(session_id=session_id, world=world, history=history, problem=problem, live=live)


def run(home: Home) -> list[Entry]:
    return [look(home, session_id) for session_id in store.list_sessions(home)]


def as_object(entry: Entry) -> dict[str, Any]:
    world, history = entry.world, entry.history
    start = None if history is None else history.start
    end = None if history is None else history.end
    return {
        "session": entry.session_id,
        "world": None if world is None else world.name,
        "state": None if world is None else world.state,
        "workspace": None if world is None else output.as_json(world.workspace),
        "started": None if start is None else start["ts"],
        "ended": None if end is None else end["ts"],
        "status": None if end is None else end["body"]["status"],
        "commands": None if history is None else len(history.spans),
        "lines": None if history is None else history.lines,
        "live": entry.live,
        "problem": entry.problem or None,
    }


def render(entries: list[Entry], form: str) -> None:
    if form != "table":
        output.put_rows("session.ls", "sessions", [as_object(entry) for entry in entries], form)
        return
    rows = []
    for entry in entries:
        found = as_object(entry)
        rows.append(
            (
                entry.session_id,
                found["world"] or "-",
                "live" if entry.live else found["state"] or "damaged",
                "" if found["started"] is None else output.show_time(found["started"]),
                "" if found["commands"] is None else found["commands"],
                entry.problem if entry.world is None else os.fsdecode(entry.world.workspace),
            )
        )
    output.put_table(("SESSION", "WORLD", "STATE", "STARTED", "COMMANDS", "WORKSPACE"), rows)


def remove(home: Home, session_id: str, *, force: bool) -> None:
    """Removes a session for good: its record, its contents, its world.

    Raises StateError where something is pending and `force` is not set, SessionBusy."""
    files = store.open_session(home, session_id)
    try:
        lock = SessionLock.acquire(REAL, files.fd)
        try:
            running.wait_until_gone(files)
            name, key = _refuse_pending(files, force)
            refuse_while_forked(home, session_id, name or session_id)
            if key is not None:
                store.clear_current(home, key, session_id)
            store.remove_session(home, session_id)
        finally:
            lock.drop()
    finally:
        os.close(files.fd)


def _refuse_pending(files: store.SessionFiles, force: bool) -> tuple[str | None, bytes | None]:
    """The world's name and its directory's key, None where they cannot be read."""
    try:
        world = load_world(files)
        changes = diff_pending(world.stack(files), skip_gone=True) if world.state == OPEN else []
    except SubstrateError as error:
        if force:
            return None, None
        raise StateError(
            f"what is pending in {files.session_id} cannot be read: {error}",
            hint="--force removes it all the same",
        ) from error
    if changes and not force:
        raise StateError(
            f"world {world.name} has changes pending: {count_phrase(summary(changes))}",
            hint=f"`substrate diff --world {world.name}` shows them; apply or discard them, or "
            "remove them too with --force",
        )
    return world.name, world.workspace_key


@click.group("session", cls=VerbGroup)
def command() -> None:
    """Example:
      substrate session ls

    Lists, shows, ends and removes sessions: a session is a record and a world."""


@command.command("ls")
@output.format_option
def list_command(form: str) -> int:
    """Example:
      substrate session ls --format json

    Lists all sessions, oldest first."""
    render(run(open_existing_home()), form)
    return 0


@command.command("show")
@click.argument("session", default="last")
@output.format_option
def show_command(session: str, form: str) -> int:
    """Example:
      substrate session show last

    Shows one session. SESSION is an id, the end of one, a world's name (w3), or last."""
    home = open_existing_home()
    entry = look(home, store.resolve_session(home, session))
    found = as_object(entry)
    path = home.path + b"/sessions/" + entry.session_id.encode()
    found["size_bytes"] = disk_bytes(path)
    start = None if entry.history is None else entry.history.start
    if form == "table":
        isolation = start["body"]["isolation"]["backend"] if start else "not recorded"
        size = output.show_size(found.pop("size_bytes"))
        workspace = "" if entry.world is None else os.fsdecode(entry.world.workspace)
        pairs = {**found, "workspace": workspace, "isolation": isolation, "size": size}
        output.put_pairs((k, "-" if v is None else v) for k, v in pairs.items())
        output.put_pairs([("directory", os.fsdecode(path))])
    else:
        found["start"] = None if start is None else start["body"]
        spans = [] if entry.history is None else entry.history.spans
        found["list"] = [span_object(span) for span in spans]
        output.put_object("session.show", found, form)
    return 3 if entry.problem else 0


@command.command("end")
@click.argument("session", required=False)
def end_command(session: str | None) -> int:
    """Examples:
      substrate session end
      substrate session end w3

    Ends a session whose supervisor stays, and all that runs in its world. What was changed stays
    pending, and the record is there. SESSION as for `show`; else this directory's."""
    from substrate.cli.world import end_session

    return end_session(session)


@command.command("rm")
@click.argument("session")
@click.option("--force", is_flag=True, help="Also one with pending changes; they are lost.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Show what would be removed, touch nothing.")
def remove_command(session: str, force: bool, yes: bool, dry_run: bool) -> int:
    """Example:
      substrate session rm w3

    Removes a session for good: its record, what it recorded, its world. Asks on a terminal;
    elsewhere it wants --yes."""
    home = open_existing_home()
    session_id = store.resolve_session(home, session)
    size = output.show_size(disk_bytes(home.path + b"/sessions/" + session_id.encode()))
    if dry_run:
        say(f"substrate: would remove {session_id} ({size})")
        return 0
    if not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise UsageError(
                "a session is removed for good, and there is nobody to ask", hint="add --yes"
            )
        if not click.confirm(f"remove {session_id} ({size}) for good?", default=False, err=True):
            return 1
    remove(home, session_id, force=force)
    say(f"substrate: removed {session_id} ({size})")
    return 0
