"""`substrate world ls|start|exec|stop|fork|gc`: the worlds of this user, one whose supervisor stays, a
second one on the same layers, and taking away what is left over."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import click

from substrate.cli import output
from substrate.cli.messages import say, warn
from substrate.cli.progress import working
from substrate.cli.retention import retention_of
from substrate.cli.target import here, open_existing_home, pending_target
from substrate.cli.verb import VerbGroup
from substrate.errors import SessionBusy, StateError, SubstrateError, UsageError
from substrate.session import store
from substrate.session.collect import Collected, Retention, collect, disk_bytes, forget_apply
from substrate.session.forking import fork, switch_to
from substrate.session.home import Home
from substrate.session.pending import Held, open_pending
from substrate.session.undo import layers_at
from substrate.session.world_file import OPEN, WorldFile, load_world
from substrate.values import replace
from substrate.world.diff import diff_pending
from substrate.world.layers import is_frozen


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A world. `pending`: changes that are not applied. `problem`: why it cannot be read."""

    name: str
    session_id: str
    world: WorldFile | None
    pending: int | None
    size_bytes: int
    problem: str = ""
    is_current: bool = False  # of the directory that we are in


def run(home: Home, *, everything: bool) -> list[Entry]:
    """All worlds by number; those that are over and hold no layers only with `everything`."""
    entries = []
    current = _current(home)
    for name, session_id in store.list_worlds(home).items():
        entry = replace(_look(home, name, session_id), is_current=session_id == current)
        gone = entry.world is not None and entry.world.state != OPEN and not entry.size_bytes
        if everything or not gone:
            entries.append(entry)
    return entries


def _current(home: Home) -> str | None:
    try:
        return store.current_session(home, here())
    except SubstrateError:
        return None  # such as a directory that was deleted: it has none


def _look(home: Home, name: str, session_id: str) -> Entry:
    try:
        files = store.open_session(home, session_id)
    except SubstrateError as error:
        return Entry(
            name=name, session_id=session_id, world=None, pending=None, size_bytes=0,
            problem=str(error),
        )  # fmt: skip
    try:
        world = load_world(files)
        stack = world.stack(files)
        frozen = tuple(layer for layer in stack.layers if is_frozen(stack, layer.number))
        pending = (
            len(diff_pending(replace(stack, layers=frozen), skip_gone=True))
            if world.state == OPEN
            else 0
        )
        size = disk_bytes(world.layers_path(files)) if stack.layers else 0
        return Entry(
            name=name, session_id=session_id, world=world, pending=pending, size_bytes=size
        )
    except (SubstrateError, OSError) as error:
        return Entry(
            name=name, session_id=session_id, world=None, pending=None, size_bytes=0,
            problem=str(error),
        )  # fmt: skip
    finally:
        os.close(files.fd)


def as_object(entry: Entry) -> dict[str, Any]:
    world = entry.world
    return {
        "world": entry.name,
        "session": entry.session_id,
        "workspace": None if world is None else output.as_json(world.workspace),
        "state": "damaged" if world is None else world.state,
        "backend": None if world is None else world.backend,
        "current": entry.is_current,
        "pending": entry.pending,
        "size_bytes": entry.size_bytes,
        "problem": entry.problem or None,
    }


def render(entries: list[Entry], form: str) -> None:
    if form != "table":
        output.put_rows("world.ls", "worlds", [as_object(entry) for entry in entries], form)
        return
    rows: list[tuple[object, ...]] = []
    for entry in entries:
        world = entry.world
        if world is None:
            rows.append((entry.name, "damaged", "", "", entry.problem))
            continue
        size = output.show_size(entry.size_bytes)
        state = f"{world.state} *" if entry.is_current and world.state == OPEN else world.state
        rows.append((entry.name, state, entry.pending, size, os.fsdecode(world.workspace)))
    output.put_table(("WORLD", "STATE", "PENDING", "SIZE", "WORKSPACE"), rows)


@click.group("world", cls=VerbGroup)
def command() -> None:
    """Example:
      substrate world ls

    Lists worlds, starts one that stays, forks one, and removes what nobody needs any more."""


@command.command("ls")
@click.option("--all", "everything", is_flag=True, help="Also worlds that are over and empty.")
@output.format_option
def list_command(everything: bool, form: str) -> int:
    """Example:
      substrate world ls --format jsonl

    Lists the worlds with what is pending in each and what they take on the disk. A * marks the
    current one of this directory."""
    with working("looking"):
        entries = run(open_existing_home(), everything=everything)
    render(entries, form)
    return 0


@command.command(
    "start", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED, metavar="[FLAGS OF A RUN]...")
def start_command(flags: tuple[str, ...]) -> int:
    """Examples:
      substrate world start
      substrate world start --fresh --net none --timeout 10m

    Starts a supervisor that stays, and holds the world of this directory: commands join it at once
    instead of starting one each, several at a time, and what they leave in the background goes on. Takes the flags
    of `substrate run`. It ends by `substrate world stop`."""
    from substrate.cli.serve_session import launch

    try:
        found = launch([b"run", *(os.fsencode(word) for word in flags), b"--", b"true"])
    except SessionBusy as busy:
        raise SessionBusy(
            str(busy),
            hint="where it was started already, `substrate -c` joins it and `substrate world stop` ends it; "
            "`world start --fresh` starts another one",
        ) from None
    say(f"substrate: world {found['world']} is started (pid {found['pid']})")
    return 0


@command.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("world")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, required=True, metavar="-- CMD...")
def exec_command(world: str, words: tuple[str, ...]) -> int:
    """Example:
      substrate world exec w3 -- ls -l

    Runs a program in a world, whatever directory it is of: beside what runs there, where its session
    stays. Exit status as of `run`."""
    from substrate.cli.main import hold_closed_fds, run_form

    program = [os.fsencode(word) for word in words]
    return run_form([b"run", b"--world", os.fsencode(world), b"--", *program], hold_closed_fds())


@command.command("stop")
@click.argument("world", required=False)
def stop_command(world: str | None) -> int:
    """Examples:
      substrate world stop
      substrate world stop w3

    Ends the supervisor of a world that was started, and all that runs in it. What was changed stays
    pending. WORLD is a world's name, a session's id, or the end of one; else this directory's."""
    return end_session(world)


def end_session(name: str | None) -> int:
    """Ends the session that lives, if it does."""
    from substrate.session import live_call

    home = open_existing_home()
    session_id = _current(home) if name is None else store.resolve_session(home, name)
    if session_id is None:
        raise UsageError("this directory has no world", hint="name one: `substrate world ls`")
    files = store.open_session(home, session_id)
    try:
        found = live_call.ask(files, "end")
        if found is None:
            say("substrate: it is not running: nothing was ended")
            return 1
    finally:
        os.close(files.fd)
    say(f"substrate: world {found['world']} is stopped; what was changed is pending")
    return 0


def _switch(held: Held, name: str, session_id: str) -> None:
    try:
        switch_to(held, session_id)
    except OSError as error:
        raise StateError(
            f"world {name} is a fork of {held.world.name}, but it could not be made the current "
            f"one: {error.strerror}",
            hint=f"use it with --world {name}",
        ) from error


def collected_object(item: Collected) -> dict[str, Any]:
    return {
        "kind": item.kind,
        "what": item.what,
        "size_bytes": item.size_bytes,
        "problem": item.problem or None,
    }


@command.command("fork")
@click.option("--at", metavar="SPAN|SNAPSHOT", help="The state after a command, or a snapshot.")
@click.option("--switch", is_flag=True, help="Make it the current world of the directory.")
@output.world_option
@output.format_option
def fork_command(at: str | None, switch: bool, world: str | None, form: str) -> int:
    """Example:
      substrate world fork --at 3 --switch

    Makes a second world on the layers of the current one, with a record of its own: both go on
    from the same state and do not see each other. Nothing is copied."""
    target = pending_target(world)
    with open_pending(target.home, target.files.session_id) as held:
        held.record_left()
        numbers = layers_at(held.stack.numbers, held.stack_file, held.history(), at)
        name, session_id = fork(held, numbers)
        if switch:
            _switch(held, name, session_id)
    if form != "table":
        fields = {"world": target.world.name, "new_world": name, "session": session_id}
        output.put_object("world.fork", fields, form)
    else:
        put = "it is the current one now" if switch else f"use it with --world {name}"
        say(f"substrate: world {name} is a fork of {target.world.name}: {put}")
    return 0


@command.command("gc")
@click.option("--all", "everything", is_flag=True, help="Now, whatever the retention says.")
@click.option("--keep", metavar="TIME", help="Keep what is younger: 12h, 7d [gc.keep].")
@click.option("--quota", metavar="SIZE", help="What it may take before that: 20g [gc.quota].")
@click.option("--dry-run", is_flag=True, help="Show what would be removed, touch nothing.")
@click.option(
    "--forget-apply",
    "forget_apply_of",
    metavar="WORLD",
    help="Drop the journal of an apply that was cut short and cannot be put right.",
)
@output.format_option
def gc_command(
    everything: bool,
    keep: str | None,
    quota: str | None,
    dry_run: bool,
    forget_apply_of: str | None,
    form: str,
) -> int:
    """Examples:
      substrate world gc --dry-run
      substrate world gc --all

    Removes the layers of worlds that were applied or discarded, and of commands that were
    undone, once they are older than `gc.keep` or take more than `gc.quota`; and what killed runs
    left: applies that were cut short, sessions in which nothing ran, unfinished files, control
    groups, probes. What is pending stays, and so do snapshots, what a fork stands on, and the
    record."""
    home = open_existing_home()
    if forget_apply_of is not None:
        done = forget_apply(home, store.resolve_session(home, forget_apply_of))
        say("substrate: the journal was dropped" if done else "substrate: there is no such journal")
        return 0 if done else 1
    if everything and (keep or quota):
        raise UsageError("--all keeps nothing", hint="leave --keep and --quota out")
    retention = retention_of(keep, quota)
    if everything:
        retention = Retention(keep_s=0, quota_bytes=0)
    with working("removing"):
        items = collect(home, retention, dry_run=dry_run)
    if form != "table":
        output.put_rows("world.gc", "removed", [collected_object(item) for item in items], form)
    else:
        for item in items:
            if not item.problem:
                size = f" ({output.show_size(item.size_bytes)})" if item.size_bytes else ""
                output.put_visible(f"{item.kind} {item.what}{size}")
        total = output.show_size(sum(item.size_bytes for item in items if not item.problem))
        say(f"substrate: {total} {'would be' if dry_run else 'were'} freed")
    failed = [item for item in items if item.problem]
    for item in failed:
        warn(f"{item.kind} {item.what}: {item.problem}")
    return 3 if failed else 0
