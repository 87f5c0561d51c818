"""The options of `trace show` and `trace tail` that choose among what capture recorded.

Words of a call in, a `Choice` out. Raises UsageError for words that do not go together. Spec:
shell.md §1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from substrate.cli.paths import pattern
from substrate.cli.seen import VIEWS, Choice
from substrate.errors import UsageError

_US = {"us": 1, "ms": 1_000, "s": 1_000_000, "": 1_000_000, "m": 60_000_000, "h": 3_600_000_000}
_TIME_HINT = "a time is 1.5, 250ms, 2m or 1h from the start of what is shown"
#: filter → the views it is for
_FOR = {
    "--path": ("files", "syscalls"),
    "--call": ("files", "syscalls"),
    "--proc": tuple(VIEWS),
    "--failed": tuple(VIEWS),
}

_OPTIONS = (
    click.option("--procs", is_flag=True, help="Processes: fork, exec, exit."),
    click.option("--files", is_flag=True, help="What was done to files."),
    click.option("--net", is_flag=True, help="Connections, listeners, names asked for."),
    click.option("--syscalls", is_flag=True, help="Every call on record; --files is part of it."),
    click.option(
        "--proc", "procs_given", multiple=True, type=click.IntRange(0), metavar="N",
        help="Only process N, as --procs and `trace tree` number them.",
    ),
    click.option(
        "--path", "globs", multiple=True, metavar="GLOB",
        help="Only these paths and what is below: '*.py', src/**/*.c, /etc.",
    ),
    click.option("--call", "calls", multiple=True, metavar="NAME", help="Only this system call."),
    click.option("--failed", is_flag=True, help="Only what failed or was denied."),
)  # fmt: skip
_TIMES = (
    click.option(
        "--since", metavar="TIME", help="Only from this long after the start (1.5, 250ms)."
    ),
    click.option("--until", metavar="TIME", help="Only up to this long after the start."),
)


def seen_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The views, and which of their entries; handed on as `**words` for `choice_of`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def time_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_TIMES):
        command = option(command)
    return command


def choice_of(words: dict[str, Any]) -> Choice | None:
    """What the words of a call choose; None where they name no view. Raises UsageError."""
    views = frozenset(view for view in VIEWS if words[view])
    given = {
        "--proc": words["procs_given"],
        "--path": words["globs"],
        "--call": words["calls"],
        "--failed": words["failed"],
        "--since": words.get("since"),
        "--until": words.get("until"),
    }
    for name, value in given.items():
        wanted = _FOR.get(name, tuple(VIEWS))
        if value not in (None, (), False) and not views & frozenset(wanted):
            some = ", ".join(f"--{view}" for view in wanted)
            raise UsageError(f"{name} chooses among what was captured", hint=f"give one of {some}")
    since, until = (_offset_us(name, given[name]) for name in ("--since", "--until"))
    if since is not None and until is not None and since > until:
        raise UsageError(f"--since {words['since']} is after --until {words['until']}")
    if not views:
        return None
    return Choice(
        views=views,
        procs=frozenset(words["procs_given"]),
        paths=tuple(pattern(text) for text in words["globs"]),
        calls=frozenset(words["calls"]),
        failed=words["failed"],
        since_us=since,
        until_us=until,
    )


def _offset_us(name: str, text: Any) -> int | None:
    """`1.5`, `+250ms`: microseconds. Raises UsageError."""
    if text is None:
        return None
    plain = str(text).strip().removeprefix("+")
    number = plain.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = _US.get(plain[len(number) :])
    if unit is None or not number.isascii() or not number.replace(".", "", 1).isdigit():
        raise UsageError(f"{name}: {text!r} is no time", hint=_TIME_HINT)
    if len(number) > 15:
        raise UsageError(f"{name}: {text!r} is too long", hint=_TIME_HINT)
    return int(float(number) * unit)
