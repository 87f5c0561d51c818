"""Which lines of a trace belong to a span: to a command, or to one program below it.

Told the lines of a session in their order, it knows the processes of the span by their fork and
exec events, so that what names a process only by its number, or a connection only by its own, is
found too. A process span is its process from that exec on and all below it. Pure.

Memory: a number for each process of the span and for each of its open connections. trace.md §3.
"""

from __future__ import annotations

from .seen_events import happened_us
from .seen_rows import BATCHES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .seen_rows import Row

#: no process and no connection has it
_NONE = -1


class SpanLines:
    """`has` of every line in order, then `has_row` of the rows of a batch that it has."""

    def __init__(self, span_id: str, *, command: bool) -> None:
        self._command = command
        self._spans = {span_id}
        self._span_id = span_id
        self.procs: set[int] = set()
        self._connections: set[int] = set()
        #: of a process span: its process, and when it began to be this program
        self._first: tuple[int, int] | None = None

    def has(self, line: dict[str, Any]) -> bool:
        kind, body = line["event_type"], line["body"]
        span = line.get("span_id")
        named = span in self._spans
        if kind == "process_start":
            return self._start(line, body, named)
        if kind == "process_fork":
            found = named or _number(body, "parent") in self.procs
            if found:
                self._add(_number(body, "proc"))
            return found
        if kind in BATCHES:  # they carry the id of the command
            return named or (not self._command and bool(self.procs))
        connection = _number(body, "connection")
        if kind == "net_close":
            known = connection in self._connections
            self._connections.discard(connection)
            return named or known
        found = named or _number(body, "proc") in self.procs
        if found and connection != _NONE and kind in ("net_connect", "net_accept"):
            self._connections.add(connection)
        return found

    def has_row(self, row: Row) -> bool:
        if self._command:
            return True
        if row.proc not in self.procs:
            return False
        if self._first is not None and row.proc == self._first[0]:
            return row.last_us >= self._first[1]
        return True

    def _start(self, line: dict[str, Any], body: dict[str, Any], named: bool) -> bool:
        proc = _number(body, "proc")
        found = named or line.get("parent_span_id") in self._spans or proc in self.procs
        if not found:
            return False
        if not self._command and line.get("span_id") == self._span_id and proc != _NONE:
            self._first = (proc, happened_us(line))
        if "span_id" in line:
            self._spans.add(line["span_id"])
        self._add(proc)
        return True

    def _add(self, proc: int) -> None:
        if proc != _NONE:
            self.procs.add(proc)


def _number(body: dict[str, Any], name: str) -> int:
    """A number of a body that nobody has looked at yet; _NONE for anything else."""
    item = body.get(name)
    return item if type(item) is int else _NONE
