"""`substrate trace scan`: secrets that stand in lines which are written already (trace.md §6).

The redactor's rules of today over the record as it is. Prints where, never what. It repairs
nothing: what it finds stands in the line until the whole session is deleted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import click

from substrate.cli import output
from substrate.cli.messages import say
from substrate.cli.target import files_of
from substrate.cli.verb import Verb
from substrate.errors import TraceCorrupt
from substrate.session.history import Line
from substrate.telemetry.trace.reader import read_events
from substrate.telemetry.trace.secret_rules import find_secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something like a secret in a line. `place`: its place in the body; never the text."""

    seq: int
    event_type: str
    place: str
    kind: str
    length: int


def scan(lines: Iterable[Line]) -> Iterator[Finding]:
    """What the redactor's rules find in lines that are written already."""
    for line in lines:
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


@click.command("scan", cls=Verb)
@click.argument("session", required=False)
@output.format_option
def scan_command(session: str | None, form: str) -> int:
    """Example:
      substrate trace scan

    Looks for secrets that the redactor missed when the lines were written, by the rules of
    today. Prints where, never what. Exit status 1 when there are some."""
    files = files_of(session)
    problem: TraceCorrupt | None = None
    found: list[Finding] = []
    try:
        found.extend(scan(read_events(os.fsdecode(files.path))))
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
