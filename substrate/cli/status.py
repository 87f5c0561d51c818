"""`substrate status`: the current world of the directory.

Reads; takes no lock and changes nothing. Spec: shell.md §1, world.md §4.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from typing import Any

import click

from substrate.cli import in_world, output
from substrate.cli.target import Target, pending_target
from substrate.cli.verb import Verb
from substrate.session.history import History, load_history
from substrate.session.summary import count_phrase
from substrate.telemetry.trace.files import LOCK
from substrate.telemetry.trace.lock import parse_owner
from substrate.values import as_dict
from substrate.world.change import Summary, is_time_alone, summary
from substrate.world.diff import diff_pending
from substrate.world.layers import is_there

#: what of the supervisor's answer is shown in a world
_INSIDE = {name: name for name in ("world", "workspace", "backend", "session")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    target: Target
    history: History
    counts: Summary
    times: int
    in_use: bool
    writer: str  # clean | in use | not closed
    owner_pid: int | None
    gone: tuple[bytes, ...]  # places that are not what they were, with something pending in them


def run(world: str | None) -> Result:
    """Looks at the world. Raises NothingFound and what reading raises."""
    target = pending_target(world)
    history = load_history(target.files)
    stack, in_use = target.frozen_stack()
    writer, pid = writer_state(target.files.fd)
    changes = diff_pending(stack, skip_gone=True)
    return Result(
        target=target,
        history=history,
        counts=summary(changes),
        in_use=in_use,
        times=sum(map(is_time_alone, changes)),
        writer=writer,
        owner_pid=pid,
        gone=tuple(
            mount.target
            for mount in stack.mounts
            if not is_there(mount)
            and not all(stack.is_empty(number, mount.index) for number in stack.numbers)
        ),
    )


def writer_state(dir_fd: int) -> tuple[str, int | None]:
    """How the trace's writer left its lock (docs/adr/0001), and the pid that it names."""
    try:
        fd = os.open(LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError:
        return "clean", None
    try:
        owner = parse_owner(os.read(fd, 256))
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return "in use", owner.pid if owner else None
        return ("not closed", owner.pid) if owner else ("clean", None)
    finally:
        os.close(fd)


def network_of(history: History) -> str:
    """The network of the last start of its world."""
    modes = [line["body"] for line in history.others if line["event_type"] == "world_start"]
    return str(modes[-1].get("network", "unknown")) if modes else "unknown"


def notes_of(result: Result) -> list[str]:
    """What a person should know of the world: as it was said when it was started, and now."""
    lines = result.history.others
    starts = [line["body"] for line in lines if line["event_type"] == "world_start"]
    said = dict.fromkeys(str(note) for body in starts for note in body.get("notes") or ())
    gone = (
        f"{os.fsdecode(p)} is gone or replaced: what is pending there is not counted"
        for p in result.gone
    )
    return [*said, *gone, *_of_a_command_without_end(result)]


def _of_a_command_without_end(result: Result) -> tuple[str, ...]:
    if not result.in_use:
        return ()
    if result.writer == "in use":
        return ("a command is running: what it changes is pending when it has ended",)
    return ("a command was killed: the next command, apply or undo finds what it changed",)


def as_object(result: Result) -> dict[str, Any]:
    world = result.target.world
    return {
        "world": world.name,
        "state": world.state,
        "workspace": output.as_json(world.workspace),
        "backend": world.backend,
        "network": network_of(result.history),
        "session": result.target.files.session_id,
        "commands": len(result.history.spans),
        "pending": as_dict(result.counts),
        "notes": notes_of(result),
        "trace": {
            "lines": result.history.lines,
            "torn_bytes": result.history.torn_bytes,
            "writer": result.writer,
            "pid": result.owner_pid,
            "problem": None if result.history.problem is None else str(result.history.problem),
        },
    }


def render(result: Result, form: str) -> None:
    if form != "table":
        output.put_object("status", as_object(result), form)
        return
    world, history = result.target.world, result.history
    trace = f"{history.lines} lines, {result.writer}"
    if result.owner_pid is not None:
        trace += f" (pid {result.owner_pid})"
    if history.torn_bytes:
        trace += f", {history.torn_bytes} torn bytes that the next command moves away"
    if history.problem is not None:
        trace = f"DAMAGED: {history.problem}"
    pairs = [
        ("world", f"{world.name} ({world.state})"),
        ("workspace", os.fsdecode(world.workspace)),
        ("backend", world.backend),
        ("network", network_of(history)),
        ("commands", len(history.spans)),
        ("pending", count_phrase(result.counts, result.times) or "nothing"),
        ("session", result.target.files.session_id),
        ("trace", trace),
        *(("note", note) for note in notes_of(result)),
    ]
    output.put_pairs(pairs)


@click.command("status", cls=Verb)
@output.world_option
@output.format_option
def command(world: str | None, form: str) -> int:
    """Example:
      substrate status

    Shows the current world of this directory: what it is made with, what is pending in it,
    and how its record is. Exit status 1 where there is none. In a world: what its supervisor
    tells those inside."""
    if world is None and in_world.is_here():
        return in_world.answer("status", form, _INSIDE)
    result = run(world)
    render(result, form)
    return 3 if result.history.problem is not None else 0
