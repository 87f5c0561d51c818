"""`substrate policy explain SPAN|EVENT|@GROUP`: why something was decided as it was."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import click

from substrate.cli import output
from substrate.cli.policy_check import put_allowing, shown
from substrate.cli.policy_here import load_here, repository_here
from substrate.cli.policy_show import put_groups
from substrate.cli.target import NothingFound, files_of
from substrate.cli.trace_frames import (
    place_of_span,
    span_at,
    tell_warnings,
    verified_frames,
)
from substrate.cli.verb import Verb
from substrate.errors import UsageError
from substrate.policy.groups import GROUPS
from substrate.policy.profiles import NAMES, profile_text
from substrate.policy.recorded_decisions import RecordedDecision, explain
from substrate.suggestion import did_you_mean
from substrate.telemetry.trace.frames import Frames

Chosen = Callable[[dict[str, Any]], bool]


def choose(name: str) -> tuple[Frames, Chosen]:
    """The verified trace, and which of its events are meant. Raises UsageError, TraceCorrupt."""
    session, mark, number = name.rpartition("#")
    if mark:
        if not (number.isascii() and number.isdecimal()):
            raise UsageError(
                f"{name!r} names no event",
                hint="an event is `#` and its number in `substrate trace show`",
            )
        frames = verified_frames(os.fsdecode(files_of(session.removesuffix(":") or None).path))
        wanted = int(number)
        return frames, lambda event: event["seq"] == wanted
    place = place_of_span(name)
    frames = verified_frames(os.fsdecode(place.files.path))
    span = span_at(frames, place)
    assert span is not None
    return frames, span.lines().has


def run(name: str) -> list[RecordedDecision]:
    """Raises NothingFound where nothing was decided."""
    frames, has = choose(name)
    tell_warnings(frames)
    found = explain((frame.event for frame in frames), load_here(), has)
    if not found:
        raise NothingFound(
            f"{name}: nothing was decided there",
            hint="decisions are of commands and programs; `substrate trace show --type policy_decision` lists those of a session",
        )
    return found


def as_object(each: RecordedDecision) -> dict[str, Any]:
    return {
        "seq": each.seq,
        "ts": each.ts,
        "kind": each.kind,
        "argv": [output.as_json(word) for word in each.argv],
        "subject": output.as_json(each.subject),
        "decision": each.decision,
        "action": each.action,
        "rule": each.rule,
        "layer": each.layer,
        "place": each.place,
        "reason": each.reason,
        "approved_by": each.approved_by,
        "same_policy": each.same_policy,
        "allows": (each.allowing.text or None) if each.allowing is not None else None,
    }


_NO_RULE = {"net": "none: what no rule names is refused"}


def _put(each: RecordedDecision) -> None:
    what = shown(each.argv) if each.argv else output.show_path(each.subject)
    done = "" if each.action == each.decision else f", {each.action}"
    pairs: list[tuple[str, object]] = [
        (each.kind, what),
        ("decision", each.decision + done),
        ("rule", each.rule or _NO_RULE.get(each.kind, "none: the default action")),
    ]
    if each.layer:
        pairs.append(("layer", each.layer))
    if each.place:
        pairs.append(("where", each.place))
    if each.reason:
        pairs.append(("reason", each.reason))
    if each.approved_by:
        pairs.append(("approved by", each.approved_by))
    if each.same_policy is False:
        pairs.append(("note", "the policy was changed since: rule and place may be others"))
    pairs.append(("event", f"#{each.seq}, {output.show_time(each.ts)}"))
    output.put_pairs(pairs)
    if each.allowing is not None:
        put_allowing(each.allowing.text, each.allowing.instead)
    output.put("")


def _explain_groups(name: str, form: str) -> int:
    if name not in GROUPS:
        raise UsageError(
            f"there is no group {name!r}",
            hint=did_you_mean(name, GROUPS, f"there are {', '.join(GROUPS)}"),
        )
    expansion = load_here().expand(repository_here(), (name,))
    if form == "table":
        put_groups(expansion)
        return 0
    rows = [{"rule": m.rule, "source": m.source} for m in expansion.members[name]]
    if form == "jsonl":
        output.put_rows("policy.group", "members", rows, form)
    else:
        whole = {"group": name, "members": rows, "notes": list(expansion.notes)}
        output.put_object("policy.group", whole)
    return 0


@click.command("explain", cls=Verb)
@click.argument("name", metavar="[SPAN|EVENT|@GROUP]", required=False)
@click.option("--profile", type=click.Choice(NAMES), help="Print a built-in profile.")
@output.format_option
def explain_command(name: str | None, profile: str | None, form: str) -> int:
    """Examples:
      substrate policy explain last
      substrate policy explain w3:2
      substrate policy explain '#120'
      substrate policy explain @git-remotes
      substrate policy explain --profile coding-agent

    Says of a command (SPAN: last, its number, w3:2, the end of an id) or of one event (# and its
    number in `substrate trace show`) what was decided: which rule, of which layer, where it is
    written, and what would allow it. Of a group of the network: whom it comes to here, and what
    says so. With --profile: what a built-in profile says."""
    if profile is not None:
        if name is not None:
            raise UsageError(
                "--profile takes no name besides", hint="substrate policy explain --profile ci"
            )
        sys.stdout.write(profile_text(profile).decode())
        return 0
    if name is not None and name.startswith("@"):
        return _explain_groups(name, form)
    found = run(name or "last")
    if form != "table":
        output.put_rows("policy.explain", "decisions", [as_object(each) for each in found], form)
        return 0
    for each in found:
        _put(each)
    return 0
