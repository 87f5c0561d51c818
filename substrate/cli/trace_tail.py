"""`substrate trace tail`: the last lines of a record, and those that come.

Takes accepted lines as they come and ends with an error where one does not hold. What a writer
takes back (following.py) is told: it had been printed. Ends with 0 behind `session_end` or when
its time is out, and by Ctrl-C with 130, as every verb.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click

from substrate.cli import output
from substrate.cli.messages import warn
from substrate.cli.seen import Entries, Entry, clock_text, entry_object, entry_text
from substrate.cli.seen_options import choice_of, seen_options
from substrate.cli.target import files_of
from substrate.cli.trace_frames import put_frame
from substrate.cli.trace_show import tell_problem
from substrate.cli.verb import Verb
from substrate.errors import TraceCorrupt
from substrate.session.history import Line
from substrate.telemetry.trace.following import Follower
from substrate.telemetry.trace.frames import frame_of


@click.command("tail", cls=Verb)
@click.argument("session", required=False)
@click.option("-f", "--follow", "follows", is_flag=True, help="Go on as lines are written.")
@click.option("-n", "count", type=click.IntRange(0), default=10, help="How many lines (10).")
@click.option("--timeout", type=click.FloatRange(0), metavar="S", help="With -f: end after this.")
@seen_options
@output.format_option
def tail_command(
    session: str | None,
    follows: bool,
    count: int,
    timeout: float | None,
    form: str,
    **words: Any,
) -> int:
    """Examples:
      substrate trace tail -f
      substrate trace tail -f --procs --net
      substrate trace tail -f --files --path src --format jsonl

    Prints the last lines of the record. With -f it goes on until the session has ended.
    --procs, --files, --net and --syscalls print what is captured instead, an entry a line,
    by the wall clock. Only whole lines are printed; where a writer that was killed or met a
    full disk takes lines back, that is said, and those that stand there now follow."""
    choice = choice_of(words)
    path = os.fsdecode(files_of(session).path)
    form = "jsonl" if form == "json" else form
    shown: _Lines | _Seen = _Lines(form) if choice is None else _Seen(Entries(choice, None), form)
    ended = False
    with Follower(path, taken_back=_tell_taken_back) as follower:
        last: deque[Any] = deque(maxlen=count)
        try:
            for line in follower.present():
                last.extend(shown.of(line))
                ended = ended or line["event_type"] == "session_end"
        except TraceCorrupt as wrong:
            if wrong.code != "E_TORN" or not follows:
                shown.put(last)
                raise
        shown.put(last)
        if follows and not ended:
            _follow(follower, shown.put, shown.of, timeout)
    return tell_problem(shown.problem)


def _follow(
    follower: Follower,
    put: Callable[[Iterable[Any]], None],
    of: Callable[[Line], Iterable[Any]],
    timeout: float | None,
) -> None:
    until = None if timeout is None else time.monotonic() + timeout
    for line in follower.coming(lambda: until is not None and time.monotonic() >= until):
        put(of(line))
        if line["event_type"] == "session_end":
            return


def _tell_taken_back(seq: int) -> None:
    warn(
        f"the lines from seq {seq} on were taken back: they were not on the disk yet; "
        "what follows stands in their place"
    )


class _Lines:
    """A line of the record is shown as a frame."""

    problem: TraceCorrupt | None = None

    def __init__(self, form: str) -> None:
        self._form = form

    def of(self, line: Line) -> Iterator[Line]:
        yield line

    def put(self, lines: Iterable[Line]) -> None:
        for line in lines:
            put_frame(frame_of(line), self._form)
        flush()


class _Seen:
    """A line of the record is shown as the entries in it that were asked for."""

    def __init__(self, entries: Entries, form: str) -> None:
        self._entries, self._form = entries, form

    @property
    def problem(self) -> TraceCorrupt | None:
        return self._entries.problem

    def of(self, line: Line) -> Iterator[Entry]:
        return self._entries.take(line)

    def put(self, entries: Iterable[Entry]) -> None:
        some = False
        for entry in entries:
            some = True
            if self._form == "table":
                output.put_visible(entry_text(entry, clock_text(entry)))
            else:
                output.put_object(
                    "trace.seen", entry_object(entry, self._entries.base_us or 0), "jsonl"
                )
        if some:
            flush()


def flush() -> None:
    """What is printed is seen at once."""
    if sys.stdout is not None:
        sys.stdout.flush()
