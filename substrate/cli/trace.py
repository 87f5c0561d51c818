"""`substrate trace ls|show|tail|verify|scan`: the record itself.

`verify` is the standalone verifier with its own flags and exit statuses (trace.md §9); the
others read checked lines only (trace.md §10): what does not hold ends the list with an error.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click

from substrate.cli import output
from substrate.cli.messages import say
from substrate.cli.progress import working
from substrate.cli.session import as_object as session_object
from substrate.cli.session import run as run_sessions
from substrate.cli.status import writer_state
from substrate.cli.target import open_existing_home, readable_target
from substrate.cli.verbs import Suggesting
from substrate.errors import TraceCorrupt
from substrate.session import store
from substrate.session.history import Line, open_trace, read_lines
from substrate.session.store import SessionFiles
from substrate.telemetry.trace.check import LineChecker
from substrate.telemetry.trace.secret_rules import find_secrets

#: between two looks at a trace that grows
_POLL_S = 0.1


def files_of(session: str | None) -> SessionFiles:
    """The session that is named, else the one of the directory."""
    if session is None:
        return readable_target(None).files
    home = open_existing_home()
    return store.open_session(home, store.resolve_session(home, session))


# --- frames (trace.md §10)

_FRAMES = {"gap": "GAP", "log_drop": "LOG_DROP", "redaction": "REDACTION"}


def frame_of(line: Line) -> dict[str, Any]:
    """A line as a frame: one origin, nothing added but its kind."""
    return {"frame": _FRAMES.get(line["event_type"], "EVENT"), **line}


def frame_text(line: Line) -> str:
    """A line for people."""
    frame = _FRAMES.get(line["event_type"], "EVENT")
    span = line.get("span_id", "")[-6:] or "-"
    when = output.show_time(line["ts"]) + line["ts"][19:23]
    body = json.dumps(line["body"], ensure_ascii=False, separators=(",", ":"))
    mark = "" if frame == "EVENT" else f"{frame} "
    return f"{line['seq']:>5}  {when}  {span:<6}  {line['origin']:<8}  {mark}{line['event_type']}  {body}"


def put_frame(line: Line, form: str) -> None:
    if form == "table":
        output.put_visible(frame_text(line))
    else:
        output.put_object("trace", frame_of(line), "jsonl")


def follow(files: SessionFiles, over: Callable[[], bool]) -> Iterator[Line]:
    """Checked lines as they are written; ends when `over` says so and all are read."""
    fd = open_trace(files)
    try:
        checker = LineChecker()
        rest = b""
        last = False
        while True:
            chunk = os.read(fd, 1 << 18)
            if chunk:
                *whole, rest = (rest + chunk).split(b"\n")
                yield from checker.check(whole)
                continue
            if last:
                return
            last = over()
            if not last:
                select.select([], [], [], _POLL_S)
    finally:
        os.close(fd)


# --- scan (trace.md §6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something like a secret in a line. `place`: its place in the body; never the text."""

    seq: int
    event_type: str
    place: str
    kind: str
    length: int


def scan(lines: Iterator[tuple[Line, bytes]]) -> Iterator[Finding]:
    """What the redactor's rules find in lines that are written already."""
    for line, _ in lines:
        for place, text in _texts(line["body"], ""):
            for start, end, kind in find_secrets(text, literal="argv" in place):
                yield Finding(
                    seq=line["seq"],
                    event_type=line["event_type"],
                    place=place,
                    kind=kind,
                    length=end - start,
                )


def _texts(item: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(item, str):
        yield place, item
    elif isinstance(item, dict):
        for key, each in item.items():
            yield from _texts(each, f"{place}.{key}" if place else key)
    elif isinstance(item, list):
        for number, each in enumerate(item):
            yield from _texts(each, f"{place}[{number}]")


# --- commands


@click.group("trace", cls=Suggesting)
def command() -> None:
    """\b
    Example:
      substrate trace verify

    Shows, follows, verifies and scans the record of a session."""


@command.command("ls")
@output.format_option
def list_command(form: str) -> int:
    """\b
    Example:
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
    """\b
    Examples:
      substrate trace show
      substrate trace show w3 --type command_end --format jsonl

    Prints the record line by line: number, time, span, origin, type, body. Without SESSION
    that of this directory's world."""
    lines = (line for line, _ in read_lines(files_of(session)))
    chosen = (line for line in lines if not kinds or line["event_type"] in kinds)
    if form == "json":
        output.put_rows("trace.show", "frames", [frame_of(line) for line in chosen], form)
        return 0
    for line in chosen:
        put_frame(line, form)
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
    """\b
    Example:
      substrate trace tail -f

    Prints the last lines of the record. With -f it goes on until the session has ended."""
    files = files_of(session)
    known = [line for line, _ in read_lines(files)]
    form = "jsonl" if form == "json" else form
    for line in known[len(known) - min(count, len(known)) :]:
        put_frame(line, form)
    if not follows:
        return 0
    until = None if timeout is None else time.monotonic() + timeout
    ended = any(line["event_type"] == "session_end" for line in known)

    def over() -> bool:
        return ended or (until is not None and time.monotonic() >= until)

    for line in follow(files, over):
        if line["seq"] >= len(known):
            put_frame(line, form)
            ended = ended or line["event_type"] == "session_end"
            flush()
    return 0


def flush() -> None:
    """What is printed is seen at once."""
    import sys

    if sys.stdout is not None:
        sys.stdout.flush()


class _Verify(click.Command):
    """All words go to the verifier, also --help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.args = args
        return []


@command.command("verify", cls=_Verify)
@click.pass_context
def verify_command(ctx: click.Context) -> int:
    """\b
    Example:
      substrate trace verify --strict

    Verifies the record of a session, a session directory or a trace.jsonl."""
    from substrate.telemetry import verifier

    words = list(ctx.args)
    if "--help" in words or "-h" in words:
        output.put(VERIFY_HELP)
        return 0
    at = _path_at(words)
    if at is None:
        words.append(os.fsdecode(files_of(None).path))
    elif not os.path.lexists(words[at]):
        words[at] = os.fsdecode(files_of(words[at]).path)
    with working("verifying"):
        return verifier.main(words)


def _path_at(words: list[str]) -> int | None:
    """Which word is no option and no value of one; None where there is none."""
    for at, word in enumerate(words):
        before = words[at - 1] if at else ""
        if not word.startswith("-") and before not in ("--require", "--fingerprint"):
            return at
    return None


VERIFY_HELP = """\
Examples:
  substrate trace verify
  substrate trace verify w3 --strict
  substrate trace verify --json /mnt/evidence/ses_…/

Usage: substrate trace verify [OPTIONS] [SESSION|DIRECTORY|trace.jsonl]

Verifies the record: every line, the chain, the contents. It is telemetry/verifier.py, one
file that can be copied anywhere and needs nothing else. Without an argument: the record of
this directory's world.

Options:
  --full                    parse every line (default)
  --fast                    bytes, chain and tree only
  --no-blobs                leave the contents out
  --strict                  exit status 4 if there are warnings
  --require CLASS           exit status 4 below this evidence class
  --reject-local-authority  a signature by a key of the same user counts as none
  --fingerprint HEX         the last line must have this hash
  --json                    the verdict as one JSON object
  --quiet                   print nothing, exit status only

Exit status: 0 verified, 1 integrity failed, 2 usage, 3 input unusable, 4 below --require or
warnings under --strict."""


@command.command("scan")
@click.argument("session", required=False)
@output.format_option
def scan_command(session: str | None, form: str) -> int:
    """\b
    Example:
      substrate trace scan

    Looks for secrets that the redactor missed when the lines were written, by the rules of
    today. Prints where, never what. Exit status 1 when there are some."""
    files = files_of(session)
    problem: TraceCorrupt | None = None
    found: list[Finding] = []
    try:
        found.extend(scan(read_lines(files)))
    except TraceCorrupt as wrong:
        problem = wrong
    if form != "table":
        rows = [
            {
                "seq": f.seq,
                "event_type": f.event_type,
                "place": f.place,
                "kind": f.kind,
                "length": f.length,
            }
            for f in found
        ]
        output.put_rows("trace.scan", "findings", rows, form)
    else:
        for f in found:
            output.put_visible(
                f"seq {f.seq} {f.event_type} {f.place}: {f.kind}, {f.length} characters"
            )
        say(f"substrate: {len(found)} found" if found else "substrate: nothing was found")
    if problem is not None:
        raise problem
    return 1 if found else 0
