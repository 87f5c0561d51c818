"""What a session needed, as its trace tells: programs with their argv, whom it reached, what it wrote.

Reads events, one by one. Not a policy yet (learn.py). Invariant: only what went through is a need; what was
refused or denied is not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from substrate.errors import TraceCorrupt
from substrate.policy.rules import Subject
from substrate.telemetry.trace.octets import bytes_of
from substrate.telemetry.trace.rfc8785 import CanonicalError


@dataclass(slots=True, kw_only=True)
class Needs:
    """`subjects`: each different exec, with how often. `scopes`: whom it talked to, with the connections.
    `written`: paths. `tops`: the command lines that were handed to substrate. `uncaptured`: commands
    without captured programs; `long_us`: the longest command."""

    subjects: dict[Subject, int] = field(default_factory=dict)
    tops: dict[Subject, int] = field(default_factory=dict)
    scopes: dict[str, int] = field(default_factory=dict)
    written: set[bytes] = field(default_factory=set)
    lists_left_out: int = 0
    commands: int = 0
    captured: int = 0
    _started: dict[str, Subject] = field(default_factory=dict)

    @property
    def uncaptured(self) -> int:
        return max(0, self.commands - self.captured)


def collect(events: Iterable[Mapping[str, Any]]) -> Needs:
    """Raises TraceCorrupt for a body that cannot be read."""
    needs = Needs()
    for event in events:
        take = _TAKES.get(event["event_type"])
        if take is not None:
            try:
                take(needs, event, event["body"])
            except (KeyError, TypeError, CanonicalError) as problem:
                raise TraceCorrupt(
                    f"{event['event_type']} cannot be read: {problem!r:.80}",
                    seq=event.get("seq"),
                    code="body",
                ) from problem
    return needs


def _command_start(needs: Needs, event: Mapping[str, Any], body: Mapping[str, Any]) -> None:
    argv = tuple(bytes_of(word) for word in body["display"]["argv"])
    subject = Subject(argv=argv, cwd=bytes_of(body["cwd"]))
    needs.commands += 1
    needs._started[event.get("span_id", "")] = subject


def _command_end(needs: Needs, event: Mapping[str, Any], body: Mapping[str, Any]) -> None:
    subject = needs._started.pop(event.get("span_id", ""), None)
    if subject is None or body["ended_by"] == "denied":
        return
    needs.tops[subject] = needs.tops.get(subject, 0) + 1
    for scope in body["scopes_used"]:
        name = scope["scope"]
        if scope["connections"] and isinstance(name, str):
            needs.scopes[name] = needs.scopes.get(name, 0) + scope["connections"]


def _process_start(needs: Needs, event: Mapping[str, Any], body: Mapping[str, Any]) -> None:
    interpreter = body["interpreter"]
    subject = Subject(
        argv=tuple(bytes_of(word) for word in body["argv"]),
        program=bytes_of(body["exe"]),
        interpreters=() if interpreter is None else (bytes_of(interpreter),),
        cwd=bytes_of(body["cwd"]),
    )
    if body["parent"] is None:
        needs.captured += 1
    needs.subjects[subject] = needs.subjects.get(subject, 0) + 1


def _fs_diff(needs: Needs, event: Mapping[str, Any], body: Mapping[str, Any]) -> None:
    entries = body.get("entries")
    if entries is None:
        needs.lists_left_out += 1
        return
    for entry in entries:
        needs.written.add(os.path.normpath(bytes_of(entry["path"])))


_TAKES = {
    "command_start": _command_start,
    "command_end": _command_end,
    "process_start": _process_start,
    "fs_diff": _fs_diff,
}
