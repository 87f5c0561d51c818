"""The story of a session, read back from its trace: commands, changes, how it began and ended.

For the verbs that show things; `-c` never loads it. Reads only whole, checked lines, streaming;
a session that is being written is read as far as it is now, and a torn tail is left to the
recovery. Invariant: what is given was in the chain; a bad line ends the story with `problem`,
nothing is smoothed over. Spec: trace.md §3, §10.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from substrate.errors import StateError, TraceCorrupt, UsageError
from substrate.session.store import SessionFiles
from substrate.telemetry.trace.check import BadLine, LineChecker
from substrate.telemetry.trace.files import TRACE
from substrate.telemetry.trace.ids import match_span
from substrate.telemetry.trace.line import MAX_LINE_BYTES

Line = dict[str, Any]
_CHUNK = 1 << 18


@dataclass(slots=True, kw_only=True)
class Span:
    """One command. `start`, `end`, `diffs`: lines of the trace. `closed_by`: `recovery` where
    its end was never written."""

    ordinal: int
    span_id: str
    start: Line
    end: Line | None = None
    diffs: list[Line] = field(default_factory=list)
    closed_by: str | None = None


@dataclass(slots=True, kw_only=True)
class History:
    """A session. `problem`: the first line that does not hold, or what is wrong with the end."""

    session_id: str
    start: Line | None = None
    end: Line | None = None
    spans: list[Span] = field(default_factory=list)
    #: lines without a span of their own: worlds, recoveries, diffs of left layers, applies
    others: list[Line] = field(default_factory=list)
    lines: int = 0
    problem: TraceCorrupt | None = None

    def span(self, name: str) -> Span:
        """The span that a person names: `last`, a number, the end of an id (trace.md §3)."""
        if not self.spans:
            raise UsageError("the session has no command yet", hint="run one first")
        if name == "last":
            return self.spans[-1]
        if name.isdigit() and len(name) < 7:
            number = int(name)
            if 1 <= number <= len(self.spans):
                return self.spans[number - 1]
            raise UsageError(
                f"there is no command {number}, the session has {len(self.spans)}",
                hint="`substrate log` lists them",
            )
        wanted = match_span(name, (span.span_id for span in self.spans))
        return next(span for span in self.spans if span.span_id == wanted)


def read_lines(files: SessionFiles) -> Iterator[tuple[Line, bytes]]:
    """Checked lines with their bytes, from the first one on. Raises TraceCorrupt at the first
    that does not hold, StateError where there is no trace; a line without its end is left out."""
    fd = open_trace(files)
    try:
        checker = LineChecker()
        rest = b""
        while chunk := os.read(fd, _CHUNK):
            *whole, rest = (rest + chunk).split(b"\n")
            if len(rest) > MAX_LINE_BYTES:
                whole.append(rest)
            try:
                objects = checker.check(whole)
            except BadLine as bad:
                yield from zip(bad.before, whole, strict=False)
                raise
            yield from zip(objects, whole, strict=True)
    finally:
        os.close(fd)


def open_trace(files: SessionFiles) -> int:
    """An fd for reading; raises StateError."""
    path = os.fsdecode(files.path) + "/" + TRACE
    try:
        fd = os.open(
            TRACE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=files.fd
        )
    except OSError as error:
        raise StateError(
            f"{path} cannot be read: {error.strerror}",
            hint="`substrate session rm` removes a session that has no trace",
        ) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StateError(f"{path} is not a regular file", hint="move it away")
    return fd


def load_history(files: SessionFiles) -> History:
    """Reads the whole trace; a line that does not hold is the `problem`, what came before it
    is there."""
    found = History(session_id=files.session_id)
    by_id: dict[str, Span] = {}
    try:
        for line, _ in read_lines(files):
            found.lines += 1
            _take(found, by_id, line)
    except TraceCorrupt as problem:
        found.problem = problem
    return found


def _take(found: History, by_id: dict[str, Span], line: Line) -> None:
    kind = line["event_type"]
    span = by_id.get(line.get("span_id", ""))
    if kind == "command_start":
        span_id = line.get("span_id", "")
        span = Span(ordinal=len(found.spans) + 1, span_id=span_id, start=line)
        by_id[span_id] = span
        found.spans.append(span)
    elif kind == "command_end" and span is not None:
        span.end = line
    elif kind == "fs_diff" and span is not None:
        span.diffs.append(line)
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
