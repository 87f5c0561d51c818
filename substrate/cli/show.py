"""`substrate show SPAN`: everything that the record has about one command.

Reads the trace and, for the recorded bytes of a stream, the blob pack. Spec: trace.md §4, §6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from substrate.cli import output
from substrate.cli.log import as_object as span_object
from substrate.cli.log import command_text, exit_text
from substrate.cli.messages import warn
from substrate.cli.show_seen import load_seen, seen_object, seen_pairs
from substrate.cli.target import NothingFound, Target, named_span
from substrate.cli.verb import Verb
from substrate.errors import UsageError
from substrate.session.history import History, Span
from substrate.session.recorded import diff_entries
from substrate.telemetry.capture.seen_summary import Seen
from substrate.telemetry.trace.blob_reader import BlobReader

_LETTERS = {
    "added": "A",
    "modified": "M",
    "deleted": "D",
    "renamed": "R",
    "meta": "m",
    "type_changed": "T",
}
STREAMS = ("stdin", "stdout", "stderr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    target: Target
    span: Span
    entries: tuple[dict[str, Any], ...]  # of its fs_diff
    isolation: dict[str, Any] | None
    seen: Seen | None
    problem: Exception | None


def run(name: str, world: str | None) -> Result:
    """Finds the command. Raises UsageError, NothingFound and what reading raises."""
    target, history, span = named_span(name, world)
    entries: list[dict[str, Any]] = []
    for line in span.diffs:
        entries += diff_entries(target.files, line)
    seen, unread = load_seen(target, span)
    return Result(
        target=target,
        span=span,
        entries=tuple(entries),
        isolation=_isolation(history, span),
        seen=seen,
        problem=history.problem or unread,
    )


def _isolation(history: History, span: Span) -> dict[str, Any] | None:
    context = span.start["body"].get("replay_context", {})
    found: dict[str, Any] | None = context.get("isolation")
    if found is None and history.start is not None:
        found = history.start["body"].get("isolation")
    return found


def stream_bytes(result: Result, name: str) -> bytes:
    """What was recorded of a stream. Raises NothingFound, StateError where it was erased."""
    if result.span.end is None:
        raise NothingFound("the command has no recorded end, so its streams were not kept")
    stream = result.span.end["body"].get(name)
    if stream is not None and stream.get("joined"):
        raise NothingFound(
            f"{name} was one with {stream['joined']}", hint=f"show it with --{stream['joined']}"
        )
    if stream is None or stream["blob"] is None:
        if stream is None or stream["size"] == 0:
            return b""
        raise NothingFound(f"nothing was kept of {name} ({stream['size']} bytes passed)")
    blobs = BlobReader(result.target.files.fd)
    try:
        return blobs.read(stream["blob"]["commitment"])
    finally:
        blobs.close()


def as_object(result: Result) -> dict[str, Any]:
    start = result.span.start["body"]
    end = None if result.span.end is None else result.span.end["body"]
    return {
        **span_object(result.span),
        "session": result.target.files.session_id,
        "world": result.target.world.name,
        "cwd": start["cwd"],
        "scaffolding": start["display"].get("scaffolding"),
        "tool_call": start.get("tool_call"),
        "umask": start["umask"],
        "env_names": start["env_names"],
        "env_withheld": start["env_withheld"],
        "terminal": start["terminal"],
        "policy_decision": start["policy_decision"],
        "isolation": result.isolation,
        "rusage": None if end is None else end["rusage"],
        "streams": {name: None if end is None else end[name] for name in STREAMS},
        "reason": None if end is None else end.get("reason"),
        "capture": None if result.seen is None else seen_object(result.seen),
        "fs_diff": list(result.entries),
    }


def render(result: Result, form: str) -> None:
    if form != "table":
        output.put_object("show", as_object(result), form)
        return
    span, start = result.span, result.span.start["body"]
    end = {} if span.end is None else span.end["body"]
    decision = start["policy_decision"]
    output.put_pairs(
        [
            ("command", command_text(span)),
            *_around(start),
            ("span", f"{span.ordinal} = {span.span_id}"),
            ("session", f"{result.target.files.session_id} (world {result.target.world.name})"),
            ("directory", output.show_path(start["cwd"])),
            ("started", output.show_time(span.start["ts"])),
            ("ended", _end_text(span)),
            ("decision", f"{decision['action']}: {decision['reason']}"),
            ("isolation", _isolation_text(result.isolation)),
            ("resources", _rusage_text(end.get("rusage"))),
            *((name, _stream_text(end.get(name))) for name in STREAMS),
            (
                "environment",
                f"{len(start['env_names'])} variables, {len(start['env_withheld'])} withheld",
            ),
            *seen_pairs(result.seen),
            ("layer", "none" if start["layer"] is None else start["layer"]),
            ("changes", len(result.entries) or "none"),
        ]
    )
    for entry in result.entries:
        path = output.show_path(entry["path"])
        if entry.get("from_path") is not None:
            path = f"{output.show_path(entry['from_path'])} -> {path}"
        what = entry.get("what")
        tail = f" ({', '.join(what)})" if what and entry["kind"] == "meta" else ""
        output.put_visible(f"  {_LETTERS.get(entry['kind'], '?')} {path}{tail}")


def _around(start: dict[str, Any]) -> list[tuple[str, str]]:
    """What an agent put around the command, and the call of its tool that it belongs to."""
    found = []
    around = start["display"].get("scaffolding")
    if around is not None:
        files = [output.show_path(around[n]) for n in ("snapshot", "note") if n in around]
        found.append(("run by", f"{around['by']}, with {' and '.join(files)}"))
    call = start.get("tool_call")
    if call is not None:
        how = "as its caller says" if call["by"] == "environment" else "by its text"
        if "of" in call:
            how += f", one of {call['of']}"
        found.append(("tool call", f"{call['call_id']} ({how})"))
    return found


def _end_text(span: Span) -> str:
    if span.end is None:
        return exit_text(span)
    body = span.end["body"]
    text = f"{exit_text(span)}, after {output.show_duration(body['duration_us'])}"
    return f"{text}: {body['reason']}" if body.get("reason") else text


def _isolation_text(isolation: dict[str, Any] | None) -> str:
    if isolation is None:
        return "not recorded"
    layers = isolation["layers"]
    off = [f"{name} ({layer.get('why')})" for name, layer in layers.items() if not layer["on"]]
    text = f"{isolation['backend']}: {', '.join(n for n, layer in layers.items() if layer['on'])}"
    return f"{text}; off: {', '.join(off)}" if off else text


def _rusage_text(rusage: dict[str, int] | None) -> str:
    if rusage is None:
        return "not recorded"
    user, system = (output.show_duration(rusage[name]) for name in ("utime_us", "stime_us"))
    return f"{user} user, {system} system, {output.show_size(rusage['maxrss_kib'] * 1024)} memory"


def _stream_text(stream: dict[str, Any] | None) -> str:
    if stream is None:
        return "not recorded"
    if stream.get("joined"):
        return f"one with {stream['joined']}"
    text = f"{stream['size']} bytes"
    return text if stream["recorded"] else f"{text}, not all kept"


@click.command("show", cls=Verb)
@click.argument("span", default="last")
@click.option("--stdout", "stream", flag_value="stdout", help="Print what was recorded of stdout.")
@click.option("--stderr", "stream", flag_value="stderr", help="Print what was recorded of stderr.")
@click.option("--stdin", "stream", flag_value="stdin", help="Print what was recorded of stdin.")
@output.world_option
@output.format_option
def command(span: str, stream: str | None, world: str | None, form: str) -> int:
    """Examples:
      substrate show last
      substrate show 3 --stdout | less

    Shows one command: what ran, under which isolation, how it ended, what it changed, and what
    was captured of it: programs, files by what was done to them, endpoints, losses. SPAN
    is last, a number of `substrate log`, SESSION:NUMBER, or the end of a span's id."""
    if stream is not None and form != "table":
        raise UsageError(f"--{stream} prints bytes, --format {form} an object: give one of them")
    result = run(span, world)
    if stream is not None:
        output.put_bytes(stream_bytes(result, stream))
        return 0
    render(result, form)
    if result.problem is not None:
        warn(f"there is more that cannot be read: {result.problem}")
        return 3
    return 0
