"""Verified frames for the verbs, and which part of a session a name means.

`SESSION` is a session's id, the end of one, a world, or `last`; `SPAN` a command (`last`, its
number, `SESSION:NUMBER`, the end of its id) or a program below it (the end of its span's id).
Spec: trace.md §3, §10.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from substrate.cli import output
from substrate.cli.messages import warn
from substrate.cli.target import NothingFound, files_of
from substrate.errors import TraceCorrupt, UsageError
from substrate.session.history import Line
from substrate.session.store import SessionFiles
from substrate.telemetry.capture.seen_span import SpanLines
from substrate.telemetry.trace.frames import Frame, FrameKind, Frames, FrameWarning, load_frames
from substrate.telemetry.trace.spans import find_span, parse_span_name

#: what is so of every session that goes on
_ORDINARY = (FrameWarning.CHAIN_NOT_SEALED, FrameWarning.PARTIAL_EVIDENCE)


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


def tell_warnings(frames: Frames) -> None:
    """On standard error: what somebody who looks at the frames must know."""
    for warning in frames.warnings:
        if warning not in _ORDINARY:
            warn(f"{warning.value}: `substrate trace verify` says more")


# --- names


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A session, and the span of it that was named (still by its name), or "" for all of it.
    `instead`: why the name is no session's, where it might have been one."""

    files: SessionFiles
    span: str
    instead: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSpan:
    """A span of a verified trace. `command`: it is a command, and not a program below one.
    `start`, `end`: its command_start and command_end, or its process_start."""

    span_id: str
    command: bool
    ordinal: int | None
    start: Line
    end: Line | None

    def lines(self) -> SpanLines:
        return SpanLines(self.span_id, command=self.command)


def place_of_span(name: str) -> Place:
    """`<session>:<span>`, or a span of the directory's session. Raises UsageError."""
    named = parse_span_name(name)
    return Place(files=files_of(named.session or None), span=named.span)


def place_of(name: str | None, *, last_is_span: bool) -> Place:
    """What a name means that is a session's or a span's: a session's if it can be one. `last` is
    the last command if `last_is_span`, else the newest session. Raises UsageError."""
    if name is None:
        return Place(files=files_of(None), span="")
    if ":" in name or (name == "last" and last_is_span):
        return place_of_span(name)
    try:
        return Place(files=files_of(name), span="")
    except UsageError as no_session:
        try:
            place = place_of_span(name)
        except NothingFound:
            raise no_session from None
        return replace(place, instead=no_session.args[0])


def span_at(frames: Frames, place: Place) -> FoundSpan | None:
    """The span that was named, if one was. Raises UsageError, TraceCorrupt."""
    if not place.span:
        return None
    try:
        return load_span(frames, place.span)
    except UsageError as no_span:
        if not place.instead:
            raise
        raise UsageError(f"{place.instead}; and {no_span.args[0]}", hint=no_span.hint) from None


def load_span(frames: Frames, name: str) -> FoundSpan:
    """The span of a verified trace that a person names. Raises UsageError, TraceCorrupt."""
    commands: dict[str, Line] = {}
    programs: dict[str, Line] = {}
    ends: dict[str, Line] = {}
    for frame in frames:
        line = frame.event
        kind, span_id = line["event_type"], line.get("span_id")
        if span_id is None:
            continue
        if kind == "command_start":
            commands.setdefault(span_id, line)
        elif kind == "command_end":
            ends[span_id] = line
        elif kind == "process_start":
            programs.setdefault(span_id, _slim(line))
    listed = list(commands)
    span_id = find_span(name, listed, programs)
    command = span_id in commands
    return FoundSpan(
        span_id=span_id,
        command=command,
        ordinal=listed.index(span_id) + 1 if command else None,
        start=commands[span_id] if command else programs[span_id],
        end=ends.get(span_id) if command else None,
    )


def _slim(line: Line) -> Line:
    """Of a program's line what names it: there may be a hundred thousand."""
    argv = line["body"].get("argv")
    return {
        "event_type": line["event_type"],
        "seq": line["seq"],
        "mono_us": line["mono_us"],
        "ts": line["ts"],
        "body": {"argv": argv if isinstance(argv, list) else []},
    }
