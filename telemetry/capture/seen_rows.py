"""The rows of a `file_batch` or `syscall_batch`, read back from a line of a trace.

The line's own `columns` decide where a value stands: a column may be missing, be new, or stand
elsewhere. What a traced process chose (paths) is kept as the line has it (trace.md §2), and is
not made fit for a terminal here. Pure.

Invariant: every row of a body that is read has been looked at: a body whose rows do not fit its
columns, or whose values have other types, is a TraceCorrupt that names the line, never a guess.
Spec: trace.md §4, capture.md §4.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from substrate.errors import TraceCorrupt
from substrate.telemetry.trace.octets import bytes_of
from substrate.telemetry.trace.rfc8785 import CanonicalError

from .seen_intent import intent_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Final

    #: text, or `{"b64": …}` for bytes that are not UTF-8
    Octets = str | dict[str, str]

BATCHES: Final = frozenset(("file_batch", "syscall_batch"))

#: columns that are attributes of a row; others are kept beside them
_KNOWN: Final = frozenset(
    (
        *("mono_us", "proc", "tid", "call", "path", "path2", "flags", "result"),
        *("last_us", "count", "intent"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One call, or `count` calls that were collapsed: the first at `mono_us`, the last at
    `last_us` (CLOCK_BOOTTIME). `result`: a number, an errno's name, `unobserved`, or None.
    `intent`: as the row says it; empty where it is not known. `more`: columns that this version does not know."""

    mono_us: int
    last_us: int
    proc: int | None
    tid: int | None
    call: str
    path: Octets | None
    path2: Octets | None
    flags: str | None
    result: int | str | None
    count: int
    intent: str
    more: dict[str, Any]

    @property
    def key(self) -> str:
        """The path as one text, to compare and count by."""
        return self.path["b64"] + "\0" if isinstance(self.path, dict) else self.path or ""

    @property
    def error(self) -> str:
        """The name of the errno that it failed with; empty where it did not, or nobody saw."""
        result = self.result
        if type(result) is int:
            return errno.errorcode.get(-result, str(result)) if result < 0 else ""
        # what is no error's name is an address in hexadecimal, or nobody saw it
        return result if type(result) is str and result[:1] == "E" else ""


def read_rows(line: dict[str, Any]) -> Iterator[Row]:
    """The rows of a batch, in their order. Raises TraceCorrupt (code `body`, with its seq)."""
    body = line["body"]
    columns, rows = body.get("columns"), body.get("rows")
    if type(columns) is not list or not all(type(name) is str for name in columns):
        raise _wrong(line, "columns", "a list of names", columns)
    if len(set(columns)) != len(columns):
        raise _wrong(line, "columns", "each name once", columns)
    if type(rows) is not list:
        raise _wrong(line, "rows", "a list", rows)
    unknown = [name for name in columns if name not in _KNOWN]
    width = len(columns)
    for number, values in enumerate(rows):
        if type(values) is not list or len(values) != width:
            raise _wrong(line, f"rows[{number}]", f"{width} values", values)
        yield _row(line, number, dict(zip(columns, values, strict=True)), unknown)


def _row(line: dict[str, Any], number: int, found: dict[str, Any], unknown: list[str]) -> Row:
    get = found.get
    mono_us, last_us, proc, tid = get("mono_us"), get("last_us"), get("proc"), get("tid")
    call, flags, result, count = get("call"), get("flags"), get("result"), get("count")
    for name, item in (("mono_us", mono_us), ("last_us", last_us), ("proc", proc), ("tid", tid)):
        if item is not None and type(item) is not int:
            raise _wrong(line, f"rows[{number}].{name}", "a number or null", item)
    if type(call) is not str:
        raise _wrong(line, f"rows[{number}].call", "a name", call)
    if flags is not None and type(flags) is not str:
        raise _wrong(line, f"rows[{number}].flags", "text or null", flags)
    if result is not None and type(result) not in (int, str):
        raise _wrong(line, f"rows[{number}].result", "a number, a name or null", result)
    if count is None:
        count = 1
    elif type(count) is not int or count < 1:
        raise _wrong(line, f"rows[{number}].count", "1 or more", count)
    intent = get("intent")
    if intent is None:
        intent = intent_of(call, flags)
    elif type(intent) is not str:
        raise _wrong(line, f"rows[{number}].intent", "a word or null", intent)
    if mono_us is None:
        mono_us = line["mono_us"]
    return Row(
        mono_us=mono_us,
        last_us=mono_us if last_us is None else last_us,
        proc=proc,
        tid=tid,
        call=call,
        path=_octets(line, number, "path", get("path")),
        path2=_octets(line, number, "path2", get("path2")),
        flags=flags,
        result=result,
        count=count,
        intent=intent,
        more={name: found[name] for name in unknown},
    )


def _octets(line: dict[str, Any], number: int, name: str, item: Any) -> Octets | None:
    if item is None or type(item) is str:
        return item
    try:
        bytes_of(item)
    except CanonicalError as problem:
        raise _wrong(line, f"rows[{number}].{name}", str(problem), item) from problem
    checked: dict[str, str] = item
    return checked


def _wrong(line: dict[str, Any], where: str, expected: str, got: object) -> TraceCorrupt:
    return TraceCorrupt(
        f"{line['event_type']}.{where}: expected {expected}, got {got!r:.80}",
        seq=line["seq"],
        code="body",
    )
