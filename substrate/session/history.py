"""The story of a session, read back from its trace: commands, changes, how it began and ended.

For the verbs that show things; `-c` never loads it. Reads accepted lines only, streaming; a
session that is being written is read as far as it is now. Invariant: what is given was in the
chain; a bad line ends the story with `problem`, nothing is smoothed over. A torn tail is no
problem of the story: it is what a killed run leaves, and the next opening recovers it
(trace.md §5). Spec: trace.md §3, §10.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from substrate.errors import TraceCorrupt, UsageError
from substrate.session.store import SessionFiles
from substrate.telemetry.capture.seen_events import CAPTURE_TYPES
from substrate.telemetry.trace.reader import TraceReader
from substrate.telemetry.trace.spans import find_span

Line = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Span:
    """One command. `start`, `end`, `diffs`, `cuts` (of its layer): lines of the trace. `closed_by`: `recovery` where
    its end was never written. `captured`: whether lines of capture name it."""

    ordinal: int
    span_id: str
    start: Line
    end: Line | None = None
    diffs: list[Line] = field(default_factory=list)
    cuts: list[Line] = field(default_factory=list)
    #: the `fs_diff` of each of its soft layers: it shared its layer with others
    softs: list[Line] = field(default_factory=list)
    closed_by: str | None = None
    captured: bool = False


@dataclass(slots=True, kw_only=True)
class History:
    """A session. `problem`: the first line that does not hold; `torn_bytes`: behind the last
    whole line."""

    session_id: str
    start: Line | None = None
    end: Line | None = None
    spans: list[Span] = field(default_factory=list)
    #: lines without a span of their own: worlds, recoveries, applies
    others: list[Line] = field(default_factory=list)
    #: the `fs_diff` of all soft layers
    softs: list[Line] = field(default_factory=list)
    lines: int = 0
    torn_bytes: int = 0
    problem: TraceCorrupt | None = None

    def span(self, name: str) -> Span:
        """The span that a person names: `last`, a number, the end of an id. Raises UsageError."""
        if not self.spans:
            raise UsageError("the session has no command yet", hint="run one first")
        wanted = find_span(name, [span.span_id for span in self.spans])
        return next(span for span in self.spans if span.span_id == wanted)


def load_history(files: SessionFiles) -> History:
    """Reads the whole trace; a line that does not hold is the `problem`, what came before it
    is there."""
    found = History(session_id=files.session_id)
    by_id: dict[str, Span] = {}
    with TraceReader(os.fsdecode(files.path)) as reader:
        try:
            for line in reader.events():
                found.lines += 1
                _take(found, by_id, line)
        except TraceCorrupt as problem:
            if problem.code == "E_TORN":
                found.torn_bytes = reader.torn_bytes
            else:
                found.problem = problem
    return found


def _killed(found: History, line: Line) -> Span | None:
    """The command whose layer a killed supervisor left, for whoever came next to record: the last
    one that began with it, since a number is given again where a layer stayed empty; but none that
    joined another one in it."""
    if line["event_type"] not in ("fs_diff", "layer_cut") or line["body"].get("shared_with"):
        return None  # the layer of several is none's alone
    layer = line["body"]["layer"]
    with_it = {s.span_id: s for s in found.spans if s.start["body"].get("layer") == layer}
    own = [s for s in with_it.values() if s.start.get("parent_span_id") not in with_it]
    return next((s for s in reversed(own) if not s.softs), None)


def _take_soft(found: History, by_id: dict[str, Span], line: Line) -> None:
    """What tells of a part of a layer, and is never taken for what tells of all of it."""
    if line["event_type"] != "fs_diff":
        return
    found.softs.append(line)
    span = by_id.get(line.get("span_id", ""))
    if span is not None:
        span.softs.append(line)


def _take(found: History, by_id: dict[str, Span], line: Line) -> None:
    kind = line["event_type"]
    if kind in CAPTURE_TYPES:  # long, and nobody's but the views'
        named = by_id.get(line.get("span_id", "")) or by_id.get(line.get("parent_span_id", ""))
        if named is not None:
            named.captured = True
        return
    if kind in ("fs_diff", "layer_cut") and line["body"].get("soft"):
        _take_soft(found, by_id, line)
        return
    span = by_id.get(line.get("span_id", "")) or _killed(found, line)
    if kind == "command_start":
        span_id = line.get("span_id", "")
        span = Span(ordinal=len(found.spans) + 1, span_id=span_id, start=line)
        by_id[span_id] = span
        found.spans.append(span)
    elif kind == "command_end" and span is not None:
        span.end = line
    elif kind == "fs_diff" and span is not None:
        span.diffs.append(line)
    elif kind == "layer_cut" and span is not None:
        span.cuts.append(line)
    elif kind == "session_start":
        found.start = line
    elif kind == "session_end":
        found.end = line
    else:
        if kind == "recovery":
            for span_id in line["body"].get("closed_spans", ()):
                if span_id in by_id:
                    by_id[span_id].closed_by = "recovery"
        if span is None:
            found.others.append(line)
