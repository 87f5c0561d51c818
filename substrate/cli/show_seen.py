"""What capture saw of one command, as `substrate show` tells it.

Counts, names and losses; the entries themselves are `trace show`'s, the processes `trace tree`'s.
Spec: capture.md §4.
"""

from __future__ import annotations

import os
from typing import Any

from substrate.cli import output
from substrate.cli.target import Target
from substrate.errors import TraceCorrupt
from substrate.session.history import Span
from substrate.telemetry.capture.seen_span import SpanLines
from substrate.telemetry.capture.seen_summary import Seen, SummaryBuilder
from substrate.telemetry.trace.reader import TraceReader

#: how many programs and endpoints are named
_SHOWN_NAMES = 8


def load_seen(target: Target, span: Span) -> tuple[Seen | None, TraceCorrupt | None]:
    """What was captured of it, and the first body that could not be read. A second reading: which
    command is meant is known behind the last line only, and what was captured is too much to keep."""
    told = span.end is not None and "summary" in span.end["body"]
    if not (span.captured or told):
        return None, None
    builder = SummaryBuilder(SpanLines(span.span_id, command=True))
    unread: TraceCorrupt | None = None
    with TraceReader(os.fsdecode(target.files.path)) as reader:
        try:
            for line in reader.events():
                try:
                    builder.take(line)
                except TraceCorrupt as wrong:
                    unread = unread or wrong
        except TraceCorrupt as wrong:
            if wrong.code != "E_TORN":  # load_history has met the same
                unread = unread or wrong
    return builder.finish(), unread


def seen_object(seen: Seen) -> dict[str, Any]:
    """What was captured. `from_record`: whether the command's end told the numbers, or they were
    counted from the batches. `collapsed`: calls that share a row with another."""
    return {
        "from_record": seen.told,
        "processes": seen.processes,
        "failed": seen.failed,
        **seen.files,
        "programs": list(seen.programs),
        "programs_count": seen.programs_count,
        "endpoints": list(seen.endpoints),
        "endpoints_count": seen.endpoints_count,
        "calls": seen.calls,
        "rows": seen.rows,
        "collapsed": seen.calls - seen.rows,
        "unobserved": seen.unobserved,
        "denied": seen.denied,
        "coverage": list(seen.coverage),
    }


_FILE_WORDS = {
    "read": "read",
    "perhaps_read": "perhaps read",
    "written": "written",
    "created": "created",
    "deleted": "deleted",
    "renamed": "renamed",
    "meta": "with other attributes",
    "looked_up": "looked up",
}


def seen_pairs(seen: Seen | None) -> list[tuple[str, str]]:
    if seen is None:
        return []
    files = [f"{count} {_FILE_WORDS[name]}" for name, count in seen.files.items() if count]
    calls = f"{seen.calls} calls in {seen.rows} rows"
    calls += f", {seen.calls - seen.rows} collapsed" if seen.calls != seen.rows else ""
    calls += f", {seen.failed} failed" if seen.failed else ""
    calls += f", of {seen.unobserved} the result was not seen" if seen.unobserved else ""
    if seen.denied:
        named = ", ".join(f"{name} {count}" for name, count in seen.denied.items())
        calls += f", denied by the world: {named}"
    return [
        ("processes", f"{seen.processes}{_listed(seen.programs, seen.programs_count)}"),
        ("files", ", ".join(files) or "none"),
        ("endpoints", _listed(seen.endpoints, seen.endpoints_count).removeprefix(": ") or "none"),
        ("calls", calls),
        ("captured", "; ".join(map(_coverage_text, seen.coverage)) or "what was not, is not known"),
    ]


def _listed(names: tuple[Any, ...], count: int) -> str:
    """`: make, cc1 and 3 more`."""
    shown = [output.show_path(name) for name in names[:_SHOWN_NAMES]]
    more = f" and {count - len(shown)} more" if count > len(shown) else ""
    return f": {', '.join(shown)}{more}" if shown else ""


def _coverage_text(body: dict[str, Any]) -> str:
    blind = body["blind_spots"]
    lost = body["lost"]
    text = f"by {body['backend']}, level {body['level']}; "
    if not lost:
        text += "nothing lost"
    else:
        by = ", ".join(f"{why} {count}" for why, count in (body.get("lost_by") or {}).items())
        text += f"{lost} records LOST{f' ({by})' if by else ''}"
    return f"{text}; not seen: {', '.join(blind)}" if blind else text
