"""Command spans by the names that people give them: `last`, `3`, `<session>:3`, an id's end.

Pure. Process spans have no ordinal, only ids. trace.md §3.
"""

from __future__ import annotations

from dataclasses import dataclass

from substrate.errors import UsageError
from substrate.telemetry.trace.ids import match_span

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

#: of an id, where it consists of digits
_SHORTEST_END = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanName:
    """What was typed: the session's name or id ("" for the current one), and the span's."""

    session: str
    span: str


def parse_span_name(text: str) -> SpanName:
    """`<session>:<span>` or `<span>`. Raises UsageError for an empty part."""
    session, colon, span = text.rpartition(":")
    if not span or (colon and not session):
        raise UsageError(
            f"{text!r} names no span",
            hint="a span is `last`, its number, `<session>:<number>`, or the end of its id",
        )
    return SpanName(session=session, span=span)


def command_spans(events: Iterable[dict[str, Any]]) -> list[str]:
    """The ids of the command spans in the order of their starts: ordinal n is at n - 1."""
    return [
        event["span_id"]
        for event in events
        if event["event_type"] == "command_start" and "span_id" in event
    ]


def find_span(name: str, commands: list[str], others: Iterable[str] = ()) -> str:
    """The id of the span that `name` (without a session) means.

    `last` and numbers (from 1) are of `commands`; four digits or more that are no such number,
    and all else, are the end of an id among `commands` and `others`: who asks for command 7
    of three means none whose id happens to end in 7. Raises UsageError.
    """
    if name == "last":
        if not commands:
            raise UsageError("the session has no command yet")
        return commands[-1]
    if name.isascii() and name.isdigit() and (not name.startswith("0") or name == "0"):
        number = int(name) if len(name) < 16 else len(commands) + 1
        if 0 < number <= len(commands):
            return commands[number - 1]
        if len(name) < _SHORTEST_END:
            raise UsageError(
                f"there is no command {name}: the session has {len(commands)}",
                hint="`substrate log` lists them",
            )
    return match_span(name, {*commands, *others})
