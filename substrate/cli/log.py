"""`substrate log`: the commands of a session, one a line.

Reads the trace only. Spec: shell.md §1, trace.md §3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from substrate.cli import output
from substrate.cli.status import writer_state
from substrate.cli.target import Target, readable_target
from substrate.cli.verb import Verb
from substrate.session.history import History, Span, load_history
from substrate.session.world_file import OPEN

_SIGNS = (
    ("added", "+"),
    ("modified", "~"),
    ("deleted", "-"),
    ("renamed", ">"),
    ("meta", "m"),
    ("type_changed", "t"),
)


#: what ends layers, and what is said of them then
_LEAVES = {"undo": "undone", "fs_apply": "applied", "fs_discard": "discarded"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    target: Target
    history: History


def run(world: str | None) -> Result:
    """Reads the session. Raises NothingFound and what reading raises."""
    target = readable_target(world)
    return Result(target=target, history=load_history(target.files))


def exit_text(span: Span) -> str:
    """How it ended: a status, SIGn, a word for the rest."""
    if span.end is None:
        return "killed" if span.closed_by else "running"
    body = span.end["body"]
    if body["ended_by"] == "recovery":
        return "killed"
    if body["ended_by"] not in ("exit", "signal"):
        return str(body["ended_by"])
    if "signal" in body:
        return f"sig {body['signal']}"
    return str(body.get("exit", "?"))


def command_text(span: Span) -> str:
    """The redacted text of `-c`, else argv."""
    return words_text(span.start["body"])


def words_text(start: dict[str, Any]) -> str:
    """The same of the body of a `command_start`."""
    display = start["display"]
    if display.get("cmd") is not None:
        return output.show_path(display["cmd"])
    return output.show_words(display["argv"])


def counts_of(span: Span) -> dict[str, int]:
    """What it changed, by kind, where its end says so."""
    diff = None if span.end is None else span.end["body"].get("fs_diff")
    return {kind: diff[kind] for kind, _ in _SIGNS} if diff else {}


def counts_text(span: Span) -> str:
    counts = counts_of(span)
    return " ".join(f"{sign}{counts[kind]}" for kind, sign in _SIGNS if counts.get(kind))


def states(result: Result) -> dict[str, str]:
    """Span id → what became of what the command changed: pending, undone, applied, discarded;
    no entry where it changed nothing. One that was applied in parts (`apply PATH`, or without its
    scratch) is pending."""
    became: dict[int, str] = {}
    for line in result.history.others:
        _follow(became, line["event_type"], line["body"])
    over = "" if result.target.world.state == OPEN else result.target.world.state
    return {
        span.span_id: became.get(span.diffs[-1]["body"]["layer"], over or "pending")
        for span in result.history.spans
        if span.diffs and any(counts_of(span).values())
    }


def _follow(became: dict[int, str], kind: str, body: dict[str, Any]) -> None:
    """What an event does to the layers that are not pending."""
    layers = body.get("layers") or ()
    if kind == "undo" and "apply_seq" in body:
        back, left, state = layers, (), ""
    elif kind == "rollback":
        back, left, state = body.get("restored") or (), body.get("dropped") or (), "undone"
    elif kind in _LEAVES and body.get("outcome", "applied") == "applied" and "applied" not in body:
        back, left, state = (), layers, _LEAVES[kind]
    else:
        return
    for number in back:
        became.pop(number, None)
    became.update(dict.fromkeys(left, state))


def _changes_text(span: Span, state: str) -> str:
    """What it changed, and what became of that where it is not pending."""
    text = counts_text(span)
    return f"{text} {state}" if state in ("undone", "applied", "discarded") else text


def as_object(span: Span) -> dict[str, Any]:
    end = None if span.end is None else span.end["body"]
    return {
        "ordinal": span.ordinal,
        "span": span.span_id,
        "started": span.start["ts"],
        "duration_us": None if end is None else end["duration_us"],
        "exit": None if end is None else end.get("exit"),
        "signal": None if end is None else end.get("signal"),
        "ended_by": span.closed_by if end is None else end["ended_by"],
        "changes": counts_of(span),
        "display": command_text(span),
        "layer": span.start["body"]["layer"],
    }


def render(result: Result, form: str) -> None:
    became = states(result)
    if form != "table":
        objects = [
            {**as_object(span), "state": became.get(span.span_id)} for span in result.history.spans
        ]
        output.put_rows("log", "commands", objects, form)
        return
    rows = []
    written = writer_state(result.target.files.fd)[0] == "in use"
    for span in result.history.spans:
        took = "" if span.end is None else output.show_duration(span.end["body"]["duration_us"])
        rows.append(
            (
                span.ordinal,
                output.show_time(span.start["ts"]),
                took,
                "killed" if span.end is None and not written else exit_text(span),
                _changes_text(span, became.get(span.span_id, "")),
                command_text(span),
            )
        )
    output.put_table(("N", "STARTED", "TOOK", "EXIT", "CHANGES", "COMMAND"), rows)


@click.command("log", cls=Verb)
@output.world_option
@output.format_option
def command(world: str | None, form: str) -> int:
    """Example:
      substrate log

    Lists the commands of the current world, oldest first, with how they ended and how many
    files each changed (+ added, ~ modified, - deleted, m attributes, t type). What is not
    pending any more is marked: undone, applied or discarded."""
    result = run(world)
    render(result, form)
    if result.history.problem is not None:
        raise result.history.problem
    return 0
