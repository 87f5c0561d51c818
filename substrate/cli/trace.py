"""`substrate trace ls|show|tail|verify|scan`: the record itself.

`show` verifies first: a record that does not hold yields only the verdict (trace.md §10).
`tail` takes accepted lines as they come and ends with an error where one does not hold.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

import click

from substrate.cli import output
from substrate.cli.messages import warn
from substrate.cli.session import as_object as session_object
from substrate.cli.session import run as run_sessions
from substrate.cli.status import writer_state
from substrate.cli.target import files_of, open_existing_home
from substrate.cli.trace_scan import scan_command
from substrate.cli.trace_verify import verify_command
from substrate.cli.verb import VerbGroup
from substrate.errors import TraceCorrupt
from substrate.session import store
from substrate.session.history import Line
from substrate.telemetry.trace.frames import (
    Frame,
    FrameKind,
    Frames,
    FrameWarning,
    frame_of,
    load_frames,
)
from substrate.telemetry.trace.reader import TraceReader, follow

#: what is so of every session that goes on
_ORDINARY = (FrameWarning.CHAIN_NOT_SEALED, FrameWarning.PARTIAL_EVIDENCE)


# --- frames (trace.md §10)


def frame_object(frame: Frame) -> dict[str, Any]:
    """A frame for programs: its line, nothing added but its kind."""
    return {"frame": str(frame.kind.value), **frame.event}


def frame_text(frame: Frame) -> str:
    """A frame for people."""
    line = frame.event
    span = line.get("span_id", "")[-6:] or "-"
    when = output.show_time(line["ts"]) + line["ts"][19:23]
    body = json.dumps(line["body"], ensure_ascii=False, separators=(",", ":"))
    mark = "" if frame.kind is FrameKind.EVENT else f"{frame.kind.value} "
    return (
        f"{frame.seq:>5}  {when}  {span:<6}  {frame.origin:<8}  {mark}{line['event_type']}  {body}"
    )


def put_frame(frame: Frame, form: str) -> None:
    if form == "table":
        output.put_visible(frame_text(frame))
    else:
        output.put_object("trace.show", frame_object(frame), "jsonl")


def verified_frames(path: str) -> Frames:
    """The frames of a record that holds; a torn tail is told. Raises TraceCorrupt."""
    frames = load_frames(path)
    fault = frames.verdict.fault
    if fault is not None:
        raise TraceCorrupt(
            fault.message,
            seq=fault.seq,
            offset=fault.offset,
            code=fault.code,
            hint="`substrate trace verify` says more; the next command in its world recovers a "
            "tail that a killed run left"
            if fault.code == "E_TORN"
            else "`substrate trace verify` says more; keep the file as it is",
        )
    return frames


# --- commands


@click.group("trace", cls=VerbGroup)
def command() -> None:
    """Example:
      substrate trace verify

    Shows, follows, verifies and scans the record of a session."""


@command.command("ls")
@output.format_option
def list_command(form: str) -> int:
    """Example:
      substrate trace ls

    Lists the records: their sessions, lines and state."""
    home = open_existing_home()
    entries = run_sessions(home)
    rows = []
    for entry in entries:
        found = session_object(entry)
        files = store.open_session(home, entry.session_id)
        found["writer"] = writer_state(files.fd)[0]
        os.close(files.fd)
        rows.append(found)
    if form != "table":
        output.put_rows("trace.ls", "traces", rows, form)
        return 0
    output.put_table(
        ("SESSION", "WORLD", "LINES", "WRITER", "ENDED"),
        (
            (
                row["session"],
                row["world"] or "-",
                row["lines"] or 0,
                row["writer"],
                row["problem"] or (row["status"] or "no"),
            )
            for row in rows
        ),
    )
    return 0


@command.command("show")
@click.argument("session", required=False)
@click.option("--type", "kinds", multiple=True, metavar="TYPE", help="Only events of this type.")
@output.format_option
def show_command(session: str | None, kinds: tuple[str, ...], form: str) -> int:
    """Examples:
      substrate trace show
      substrate trace show w3 --type command_end --format jsonl

    Prints the record line by line: number, time, span, origin, type, body. Without SESSION
    that of this directory's world."""
    frames = verified_frames(os.fsdecode(files_of(session).path))
    for warning in frames.warnings:
        if warning not in _ORDINARY:
            warn(f"{warning.value}: `substrate trace verify` says more")
    chosen = (f for f in frames if not kinds or f.event["event_type"] in kinds)
    if form == "json":
        warnings = [str(warning.value) for warning in frames.warnings]
        listed = [frame_object(f) for f in chosen]
        output.put_object("trace.show", {"warnings": warnings, "frames": listed})
        return 0
    for frame in chosen:
        put_frame(frame, form)
    return 0


@command.command("tail")
@click.argument("session", required=False)
@click.option("-f", "--follow", "follows", is_flag=True, help="Go on as lines are written.")
@click.option("-n", "count", type=click.IntRange(0), default=10, help="How many lines (10).")
@click.option("--timeout", type=click.FloatRange(0), metavar="S", help="With -f: end after this.")
@output.format_option
def tail_command(
    session: str | None, follows: bool, count: int, timeout: float | None, form: str
) -> int:
    """Example:
      substrate trace tail -f

    Prints the last lines of the record. With -f it goes on until the session has ended."""
    path = os.fsdecode(files_of(session).path)
    form = "jsonl" if form == "json" else form
    last: deque[Line] = deque(maxlen=count)
    seen, ended = 0, False
    with TraceReader(path) as reader:
        try:
            for line in reader.events():
                last.append(line)
                seen, ended = seen + 1, ended or line["event_type"] == "session_end"
        except TraceCorrupt as wrong:
            if wrong.code != "E_TORN" or not follows:
                _put_lines(last, form)
                raise
    _put_lines(last, form)
    if not follows or ended:
        return 0
    until = None if timeout is None else time.monotonic() + timeout
    for line in follow(path, stopped=lambda: until is not None and time.monotonic() >= until):
        if line["seq"] >= seen:
            _put_lines([line], form)
            if line["event_type"] == "session_end":
                break
    return 0


def _put_lines(lines: Iterable[Line], form: str) -> None:
    for line in lines:
        put_frame(frame_of(line), form)
    flush()


def flush() -> None:
    """What is printed is seen at once."""
    if sys.stdout is not None:
        sys.stdout.flush()


command.add_command(verify_command)
command.add_command(scan_command)
