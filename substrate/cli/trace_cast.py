"""`substrate trace cast`: what commands showed on their terminals, as recordings that a player plays.

Verifies first. What is printed is the blob as it was written: its secrets are covered. What is not whole is said on
standard error. Without `record_terminal` there is nothing. Spec: shell.md §2.
"""

from __future__ import annotations

import os

import click

from substrate.cli import output
from substrate.cli.messages import warn
from substrate.cli.target import NothingFound
from substrate.cli.trace_frames import place_of, span_at, tell_warnings, verified_frames
from substrate.cli.verb import Verb
from substrate.session.history import Line
from substrate.telemetry.capture.seen_events import read_event
from substrate.telemetry.trace.blob_reader import BlobReader
from substrate.telemetry.trace.events.command import TerminalRecording

_SHORT = 12


@click.command("cast", cls=Verb)
@click.argument("name", metavar="[SESSION|SPAN]", required=False)
@output.format_option
def cast_command(name: str | None, form: str) -> int:
    """Examples:
      substrate trace cast
      substrate trace cast last > session.cast

    Lists what commands showed on their terminals, where that was recorded (--record-terminal), or prints
    the recording of one: asciicast v2, which `asciinema play` plays. SPAN is a command: its number, w3:2, the
    end of its id."""
    place = place_of(name, last_is_span=True)
    frames = verified_frames(os.fsdecode(place.files.path))
    tell_warnings(frames)
    span = span_at(frames, place)
    lines = None if span is None else span.lines()
    found: list[tuple[Line, TerminalRecording]] = []
    for frame in frames:
        event = frame.event
        if (lines is None or lines.has(event)) and event["event_type"] == "terminal_recording":
            read = read_event(TerminalRecording, event)
            if read is not None:
                found.append((event, read))
    if not found:
        raise NothingFound(
            "nothing of a terminal was recorded here", hint="run with --record-terminal"
        )
    if span is None:
        _put_list(found, form)
        return 0
    (_, told) = found[-1]
    if told.blob is None:
        raise NothingFound("nothing of that terminal was kept")
    blobs = BlobReader(place.files.fd)
    try:
        output.put_bytes(blobs.read(told.blob.commitment))
    finally:
        blobs.close()
    if not told.recorded:
        warn("the recording is cut: more was shown than --record-terminal=SIZE allowed")
    if told.covered:
        warn(f"lines with secrets that are covered: {told.covered}")
    return 0


def _put_list(found: list[tuple[Line, TerminalRecording]], form: str) -> None:
    rows = [
        {
            "span": line["span_id"],
            "format": told.format,
            "columns": told.columns,
            "rows": told.rows,
            "size": told.size,
            "recorded": told.recorded,
            "covered": told.covered,
        }
        for line, told in found
    ]
    if form != "table":
        output.put_rows("trace.cast", "recordings", rows, form)
        return
    output.put_table(
        ("SPAN", "SIZE", "TERMINAL", "WHOLE"),
        (
            (
                str(row["span"])[-_SHORT:],
                row["size"],
                f"{row['columns']}x{row['rows']}",
                "yes" if row["recorded"] else "no",
            )
            for row in rows
        ),
    )
