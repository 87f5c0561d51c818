"""`substrate trace ls|show|cast|tree|tail|verify|scan`: the record itself."""

from __future__ import annotations

import os

import click

from substrate.cli import output
from substrate.cli.session import as_object as session_object
from substrate.cli.session import run as run_sessions
from substrate.cli.status import writer_state
from substrate.cli.target import open_existing_home
from substrate.cli.trace_cast import cast_command
from substrate.cli.trace_scan import scan_command
from substrate.cli.trace_show import show_command
from substrate.cli.trace_tail import tail_command
from substrate.cli.trace_tree import tree_command
from substrate.cli.trace_verify import verify_command
from substrate.cli.verb import VerbGroup
from substrate.session import store


@click.group("trace", cls=VerbGroup)
def command() -> None:
    """Example:
      substrate trace verify

    Shows, draws, follows, verifies and scans the record of a session."""


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


command.add_command(show_command)
command.add_command(cast_command)
command.add_command(tree_command)
command.add_command(tail_command)
command.add_command(verify_command)
command.add_command(scan_command)
