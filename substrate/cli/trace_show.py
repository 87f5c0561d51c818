"""`substrate trace show`: the record line by line, or what capture saw, of a session or a span.

Verifies first: a record that does not hold yields only the verdict (trace.md §10). Everything is
printed as it is read, so that a long trace needs no more memory than a short one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import click

from substrate.cli import output
from substrate.cli.messages import warn
from substrate.cli.seen import HEADINGS, Choice, Entries, entry_object, entry_text, offset_text
from substrate.cli.seen_options import choice_of, seen_options, time_options
from substrate.cli.stream_bytes import parse_stream, put_stream_bytes
from substrate.cli.trace_frames import (
    FoundSpan,
    frame_object,
    place_of,
    put_frame,
    span_at,
    tell_warnings,
    verified_frames,
)
from substrate.cli.verb import Verb
from substrate.errors import TraceCorrupt, UsageError
from substrate.telemetry.trace.frames import Frame, Frames


@click.command("show", cls=Verb)
@click.argument("name", metavar="[SESSION|SPAN]", required=False)
@click.option("--type", "kinds", multiple=True, metavar="TYPE", help="Only events of this type.")
@click.option(
    "--stream",
    metavar="N:in|out",
    help="Print what was recorded of a connection, into or out of the world.",
)
@seen_options
@time_options
@output.format_option
def show_command(
    name: str | None, kinds: tuple[str, ...], stream: str | None, form: str, **words: Any
) -> int:
    """Examples:
      substrate trace show
      substrate trace show w3 --type command_end --format jsonl
      substrate trace show last --files --failed
      substrate trace show 3 --files --path '*.py' --since 1.5
      substrate trace show w3:2 --procs --net
      substrate trace show last --stream 7000001:in

    Prints the record line by line: number, time, span, origin, type, body. Without a name that
    of this directory's world. SESSION is a session or world, SPAN a command (its number, w3:2,
    the end of its id) or a program below it.

    --procs, --files, --net and --syscalls print what was captured instead, an entry a line:
    seconds from the start of the span (or session), process, what was done, result, how many
    calls were collapsed into it, and to what. With one of them, last is the last command; without,
    the newest session. --stream prints the bytes of a recorded connection (run --record-net), which
    --net lists by its number."""
    choice = choice_of(words)
    if choice is not None and kinds:
        raise UsageError("--type chooses lines, the views entries", hint="give one of them")
    if stream is not None and (choice is not None or kinds or form != "table"):
        raise UsageError("--stream prints bytes and nothing else", hint="give it alone")
    wanted = None if stream is None else parse_stream(stream)
    place = place_of(name, last_is_span=choice is not None or wanted is not None)
    frames = verified_frames(os.fsdecode(place.files.path))
    tell_warnings(frames)
    span = span_at(frames, place)
    if choice is not None:
        return _put_entries(frames, span, choice, form)
    lines = None if span is None else span.lines()
    if wanted is not None:
        events = (f.event for f in frames if lines is None or lines.has(f.event))
        return put_stream_bytes(events, place.files, *wanted)
    chosen = (
        frame
        for frame in frames
        if (lines is None or lines.has(frame.event))
        and (not kinds or frame.event["event_type"] in kinds)
    )
    _put_frames(frames, chosen, form)
    return 0


def _put_frames(frames: Frames, chosen: Iterator[Frame], form: str) -> None:
    if form == "json":
        output.put_stream("trace.show", _head(frames), "frames", map(frame_object, chosen))
        return
    for frame in chosen:
        put_frame(frame, form)


def _put_entries(frames: Frames, span: FoundSpan | None, choice: Choice, form: str) -> int:
    lines = None if span is None else span.lines()
    entries = Entries(choice, lines)
    for frame in frames:  # a name is told after the call that connected to its address
        if lines is None or lines.has(frame.event):
            entries.names.learn(frame.event)
    found = (entry for frame in frames for entry in entries.take(frame.event))
    if form == "table":
        some = False
        for entry in found:
            if not some:
                output.put(HEADINGS)
            some = True
            output.put_visible(entry_text(entry, offset_text(entry, entries.base_us or 0)))
    else:
        objects = (entry_object(entry, entries.base_us or 0) for entry in found)
        if form == "json":
            head = {**_head(frames), "span": None if span is None else span.span_id}
            output.put_stream("trace.seen", head, "entries", objects)
        else:
            for each in objects:
                output.put_object("trace.seen", each, "jsonl")
    return tell_problem(entries.problem)


def _head(frames: Frames) -> dict[str, Any]:
    return {"warnings": [str(warning.value) for warning in frames.warnings]}


def tell_problem(problem: TraceCorrupt | None) -> int:
    """The status where a body could not be read: what else there is was shown."""
    if problem is None:
        return 0
    warn(f"left out what cannot be read: {problem}")
    return 3
