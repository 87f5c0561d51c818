"""What verbs print: tables for people, JSON for programs, both from the same rows.

stdout is data. Invariants: JSON always carries `schema`; names that are not UTF-8 are
`{"b64": …}` in JSON (trace.md §2) and escapes in tables; nothing of a file's name acts on the
terminal. Spec: conventions.md "CLI".
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import click

from substrate.cli.messages import has_colour, visible
from substrate.telemetry.trace.octets import bytes_of, text_or_b64

FORMATS = ("table", "json", "jsonl")
Command = Callable[..., Any]
Row = Mapping[str, Any]


def format_option(command: Command) -> Command:
    """`--format table|json|jsonl`, handed on as `form`."""
    return click.option(
        "--format",
        "form",
        type=click.Choice(FORMATS),
        default="table",
        help="table for people, json or jsonl for programs.",
    )(command)


def world_option(command: Command) -> Command:
    """`--world NAME|SESSION` in place of the directory's current world."""
    return click.option(
        "--world",
        "--session",
        metavar="NAME",
        help="A world (w3) or session in place of the directory's current one.",
    )(command)


def put(text: str) -> None:
    """A line on standard output."""
    if sys.stdout is not None:
        sys.stdout.write(text + "\n")


def put_visible(text: str) -> None:
    """A line with text of others in it: its control characters as escapes."""
    put(visible(text))


def put_bytes(content: bytes) -> None:
    """Bytes on standard output as they are."""
    if sys.stdout is not None:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()


def put_lines(content: bytes) -> None:
    """Lines that programs take byte for byte; a terminal gets them with escapes."""
    if not on_terminal():
        put_bytes(content)
        return
    for line in content.decode("utf-8", "surrogateescape").removesuffix("\n").split("\n"):
        put("\t".join(map(visible, line.split("\t"))))


def put_object(verb: str, fields: Mapping[str, Any], form: str = "json") -> None:
    """One object with `schema`; indented unless `form` is jsonl."""
    whole = {"schema": f"substrate.{verb}/1", **fields}
    # json escapes control characters itself, but not those above ASCII (U+009B, U+202E)
    escape = on_terminal()
    put(json.dumps(whole, ensure_ascii=escape, indent=None if form == "jsonl" else 2))


def put_rows(verb: str, name: str, rows: Sequence[Row], form: str) -> None:
    """Many objects: one with a list called `name`, or one a line."""
    if form == "json":
        put_object(verb, {name: list(rows)})
        return
    for row in rows:
        put_object(verb, row, "jsonl")


def put_stream(verb: str, head: Row, name: str, rows: Iterable[Row]) -> None:
    """One object with `head` and a list called `name`, written as its rows come: they are never
    all in memory."""
    # json escapes control characters itself, but not those above ASCII (U+009B, U+202E)
    escape = on_terminal()
    whole = json.dumps({"schema": f"substrate.{verb}/1", **head}, ensure_ascii=escape)
    put(f"{whole[:-1]}, {json.dumps(name)}: [")
    before = ""
    for row in rows:
        if before:
            put(before + ",")
        before = json.dumps(row, ensure_ascii=escape)
    put(f"{before}]}}")


def put_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns as wide as they must be; the last one is cut at the edge of a terminal."""
    texts = [[visible(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *texts, strict=True)]
    limit = width()
    bold, plain = ("\x1b[1m", "\x1b[0m") if has_colour(1) else ("", "")
    for number, cells in enumerate([list(headings), *texts]):
        line = "  ".join(
            cell.ljust(width) for cell, width in zip(cells, widths, strict=True)
        ).rstrip()
        if limit and len(line) > limit:
            line = line[: limit - 1] + "…"
        put(f"{bold}{line}{plain}" if number == 0 else line)


def put_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """`name: value` lines, aligned."""
    listed = list(pairs)
    width = max((len(name) for name, _ in listed), default=0) + 1
    for name, text in listed:
        put(f"{name + ':':<{width}} {visible(str(text))}")


def on_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def width() -> int:
    """Columns of the terminal; 0 where there is none."""
    if not on_terminal():
        return 0
    return os.get_terminal_size(sys.stdout.fileno()).columns


# --- values as people read them


def as_json(path: bytes) -> str | dict[str, str]:
    return text_or_b64(path)


def show_path(raw: bytes | str | dict[str, str]) -> str:
    """A path of a line or of the kernel as text."""
    return os.fsdecode(raw if isinstance(raw, (bytes, str)) else bytes_of(raw))


def show_words(words: Iterable[str | dict[str, str]]) -> str:
    """argv as one would type it."""
    import shlex

    return shlex.join(show_path(word) for word in words)


def show_time(ts: str) -> str:
    """A timestamp of the trace in local time, to the second."""
    return datetime.fromisoformat(ts).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def show_duration(us: int) -> str:
    """Microseconds as 12ms, 3.4s, 5m12s, 2h03m."""
    if us < 1_000_000:
        return f"{us / 1000:.0f}ms"
    seconds = us / 1_000_000
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes}m{int(seconds % 60):02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def show_size(size: int) -> str:
    """Bytes as 512, 1.5K, 3.0M."""
    if size < 1024:
        return str(size)
    number, at = size / 1024, 0
    while number >= 1024 and at < 3:
        number, at = number / 1024, at + 1
    return f"{number:.1f}{'KMGT'[at]}"
