"""What a command did, in numbers: files by what was done to them, programs, endpoints, losses.

Told the lines of a session in order. The numbers are those that `command_end` carries where it
does; else they are counted from the batches, by distinct paths. What was collapsed and what
capture could not see always come from the batches and the `coverage` events themselves. Pure.

Invariant: a call that failed counts as failed and as nothing else. Memory: a number for each
path, at most LISTED names of programs and endpoints, whatever the length of the trace.
Spec: capture.md §4.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from substrate.telemetry.trace.events.net import NetAccept, NetConnect, NetListen
from substrate.telemetry.trace.events.notice import Coverage
from substrate.telemetry.trace.events.process import ProcessFork, ProcessStart
from substrate.telemetry.trace.octets import bytes_of
from substrate.telemetry.trace.rfc8785 import CanonicalError

from .fake_names import FakeNames
from .intents import UNOBSERVED
from .seen_events import endpoint_of, read_event
from .seen_intent import (
    CREATE,
    DELETE,
    EXEC,
    LINK,
    LIST,
    LOOK,
    META,
    READ,
    READWRITE,
    RENAME,
    WRITE,
)
from .seen_rows import BATCHES, read_rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from .seen_rows import Row
    from .seen_span import SpanLines

#: how many programs and endpoints are listed
LISTED: Final = 32
#: intent → what it counts as, by the rules of `summary`
_COUNTED: Final = {
    READ: ("read",),
    EXEC: ("read",),
    WRITE: ("written",),
    READWRITE: ("read", "written"),
    CREATE: ("created", "written"),
    LINK: ("created", "written"),
    DELETE: ("deleted",),
    META: ("meta",),
    LOOK: ("looked_up",),
    LIST: ("looked_up",),
    RENAME: ("renamed",),
}
#: the counts of files, in the order in which they are shown; `perhaps_read`: opened to read,
#: where nobody saw whether that went well
FILE_COUNTS: Final = (
    *("read", "perhaps_read", "written", "created", "deleted", "renamed", "meta", "looked_up"),
)
#: of an attempt that the world denied
_ESCAPE: Final = "escape"
#: those that `command_end.summary` has only where they are not 0
_LEFT_OUT: Final = ("perhaps_read", "more_programs", "more_endpoints")


@dataclass(slots=True, kw_only=True)
class Names:
    """The first LISTED of some names, in order, and how many there are."""

    listed: list[Any] = field(default_factory=list)
    count: int = 0
    _marks: set[int] = field(default_factory=set)

    def add(self, name: Any) -> None:
        mark = hash(str(name))
        if mark in self._marks:
            return
        self._marks.add(mark)
        self.count += 1
        if len(self.listed) < LISTED:
            self.listed.append(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was seen of a span. `told`: whether the numbers are `command_end`'s own.

    `files`: by FILE_COUNTS. `rows`, `calls`: of the batches, `calls` - `rows` were collapsed.
    `unobserved`: calls whose result nobody saw. `denied`: calls that the world denied, by name. `programs`, `endpoints`: in the form of a line."""

    told: bool
    processes: int
    failed: int
    files: dict[str, int]
    programs: tuple[Any, ...]
    programs_count: int
    endpoints: tuple[Any, ...]
    endpoints_count: int
    rows: int
    calls: int
    unobserved: int
    denied: dict[str, int]
    coverage: tuple[dict[str, Any], ...]


class SummaryBuilder:
    """`take` the lines of a session in order, then `finish`."""

    def __init__(self, lines: SpanLines) -> None:
        self._lines = lines
        self._touched: set[int] = set()
        self._perhaps: set[int] = set()
        self._files = dict.fromkeys(FILE_COUNTS, 0)
        self._procs: set[int] = set()
        self._programs, self._endpoints = Names(), Names()
        self._fakes = FakeNames()
        self._failed = self._rows = self._calls = self._unobserved = self._events = 0
        self._denied: dict[str, int] = {}
        self._coverage: list[dict[str, Any]] = []
        self._told: dict[str, Any] | None = None

    def take(self, line: dict[str, Any]) -> None:
        """Raises TraceCorrupt for a body that cannot be read; of a batch, the rows before it count."""
        if not self._lines.has(line):
            return
        kind = line["event_type"]
        if kind in BATCHES:
            self._events += 1
            for row in read_rows(line):
                self._take_row(row)
        elif kind == "process_start":
            self._events += 1
            self._procs.add(read_event(ProcessStart, line).proc)
            self._programs.add(line["body"]["exe"])
        elif kind == "process_fork":
            self._events += 1
            self._procs.add(read_event(ProcessFork, line).proc)
        elif kind == "dns_query":
            self._fakes.learn(line)
        elif kind == "net_connect":
            self._events += 1
            self._fakes.learn(line)
            connect = read_event(NetConnect, line)
            domain = connect.domain if connect.domain is not None else connect.name
            path = line["body"].get("path")
            self._endpoints.add(
                endpoint_of(connect.protocol, domain, connect.ip, connect.port, path)
            )
        elif kind == "net_listen":
            self._events += 1
            read_event(NetListen, line)
        elif kind == "net_accept":
            self._events += 1
            read_event(NetAccept, line)
        elif kind == "coverage":
            self._events += 1
            read_event(Coverage, line)
            self._coverage.append(line["body"])
        elif kind == "command_end":
            self._told = _summary_of(line["body"])

    def _take_row(self, row: Row) -> None:
        self._rows += 1
        self._calls += row.count
        if row.intent == _ESCAPE:
            self._denied[row.call] = self._denied.get(row.call, 0) + row.count
        if row.error:
            self._failed += row.count
            return
        if row.result == UNOBSERVED:
            self._unobserved += row.count
        if row.result == UNOBSERVED and row.intent == READ:
            # counted as read where another call was seen to read it
            if self._is_first("read?", row.key):
                self._perhaps.add(hash(("read", row.key)))
            return
        path = row.key
        if row.path2 is not None and row.intent in (LINK, RENAME):
            path2 = row.path2 if isinstance(row.path2, str) else row.path2["b64"]
            path = path2 if row.intent == LINK else f"{path}\0{path2}"
        for what in _COUNTED.get(row.intent, ()):
            self._count(what, path)

    def _count(self, what: str, path: str) -> None:
        if self._is_first(what, path):
            self._files[what] += 1

    def _is_first(self, what: str, path: str) -> bool:
        mark = hash((what, path))
        if mark in self._touched:
            return False
        self._touched.add(mark)
        return True

    def finish(self) -> Seen | None:
        """None where nothing was captured of the span."""
        told = self._told
        if told is None and not self._events:
            return None
        programs, endpoints = self._programs, Names()
        for name in map(self._fakes.endpoint, self._endpoints.listed):
            endpoints.add(name)
        endpoints.count += self._endpoints.count - len(self._endpoints.listed)
        self._files["perhaps_read"] = len(self._perhaps - self._touched)
        counted = Seen(
            told=False,
            processes=len(self._procs),
            failed=self._failed,
            files={name: self._files[name] for name in FILE_COUNTS},
            programs=tuple(programs.listed),
            programs_count=programs.count,
            endpoints=tuple(endpoints.listed),
            endpoints_count=endpoints.count,
            rows=self._rows,
            calls=self._calls,
            unobserved=self._unobserved,
            denied=self._denied,
            coverage=tuple(self._coverage),
        )
        if told is None:
            return counted
        return replace(
            counted,
            told=True,
            processes=told["processes"],
            failed=told["failed"],
            files={name: told.get(name, 0) for name in FILE_COUNTS},
            programs=tuple(told["programs"]),
            programs_count=len(told["programs"]) + told.get("more_programs", 0),
            endpoints=tuple(told["endpoints"]),
            endpoints_count=len(told["endpoints"]) + told.get("more_endpoints", 0),
            denied=told.get("denied", {}),
        )


def _summary_of(body: dict[str, Any]) -> dict[str, Any] | None:
    """`command_end.summary` if it has all its fields in their types; else the batches tell."""
    found = body.get("summary")
    if type(found) is not dict:
        return None
    for name in (*FILE_COUNTS, *_LEFT_OUT, "processes", "failed"):
        count = found.get(name, 0 if name in _LEFT_OUT else None)
        if type(count) is not int or count < 0:
            return None
    denied = found.get("denied", {})
    if type(denied) is not dict or not all(type(count) is int for count in denied.values()):
        return None
    for name in ("programs", "endpoints"):
        if type(found.get(name)) is not list or not all(map(_is_octets, found[name])):
            return None
    return found


def _is_octets(item: Any) -> bool:
    try:
        bytes_of(item)
    except CanonicalError:
        return False
    return True
