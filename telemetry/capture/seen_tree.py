"""The processes of a span as a tree, made from its fork, exec and exit events.

A node is a process, not a program: what one process execs one after the other stands in its
node, in order. Losses show: a process without a fork, or whose parent nobody introduced, is a
node at the top and says so. Pure; told lines in order. Drawing it is the command line's business.

Invariant: the result is a forest with every process exactly once, whatever the events claim (a
process as its own ancestor loses the edge that closed the circle), and nothing here recurses, so
that no depth is too deep. Memory: a node for each process, a number for each path it touched.
Spec: trace.md §3, §4.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from substrate.telemetry.trace.events.process import ProcessExit, ProcessFork, ProcessStart

from .intents import UNOBSERVED
from .seen_events import happened_us, read_event
from .seen_intent import CREATE, READ, READWRITE, WRITE
from .seen_rows import BATCHES, read_rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from .seen_rows import Row
    from .seen_span import SpanLines

_READS = frozenset((READ, READWRITE))
_WRITES = frozenset((WRITE, READWRITE, CREATE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One successful exec. `exe`, `argv`, `cwd` in the form of the line (trace.md §2)."""

    span_id: str | None
    began_us: int
    exe: Any
    argv: tuple[Any, ...]
    cwd: Any
    interpreter: Any


@dataclass(slots=True, kw_only=True)
class Process:
    """A node. Times are CLOCK_BOOTTIME µs. `perhaps_read`: files that it opened to read,
    where nobody saw whether that went well. `began_us`, `ended_us`: None where the
    event is not there. `exit`, `signal`: as in `process_exit`."""

    proc: int
    seq: int
    parent: int | None = None
    pid: int | None = None
    host_pid: int | None = None
    began_us: int | None = None
    ended_us: int | None = None
    programs: list[Program] = field(default_factory=list)
    exit: int | None = None
    signal: int | None = None
    cpu_us: int | None = None
    maxrss_kib: int | None = None
    read: int = 0
    perhaps_read: int = 0
    written: int = 0
    failed: int = 0
    connections: int = 0
    #: the parent that it named is not there, or was below it; or its beginning was not seen
    lost_parent: bool = False
    children: list[Process] = field(default_factory=list)

    @property
    def duration_us(self) -> int | None:
        if self.began_us is None or self.ended_us is None:
            return None
        return max(0, self.ended_us - self.began_us)


class TreeBuilder:
    """`take` the lines of a session in order, then `finish` once."""

    def __init__(self, lines: SpanLines) -> None:
        self._lines = lines
        self._processes: dict[int, Process] = {}
        self._touched: set[int] = set()
        #: who is named as the parent of what
        self._named: dict[int, int] = {}

    def take(self, line: dict[str, Any]) -> None:
        """Raises TraceCorrupt for a body that cannot be read; of a batch, the rows before it count."""
        if not self._lines.has(line):
            return
        kind = line["event_type"]
        if kind == "process_fork":
            self._fork(line, read_event(ProcessFork, line))
        elif kind == "process_start":
            self._start(line, read_event(ProcessStart, line))
        elif kind == "process_exit":
            self._exit(line, read_event(ProcessExit, line))
        elif kind in BATCHES:
            for row in read_rows(line):
                if row.proc is not None and self._lines.has_row(row):
                    self._touch(line, row, row.proc)
        elif kind == "net_connect":
            proc = line["body"].get("proc")
            if type(proc) is int:
                self._node(line, proc).connections += 1

    def finish(self) -> list[Process]:
        """The processes that have no parent here, in the order of their first events."""
        for proc, parent in self._named.items():
            node = self._processes[proc]
            node.parent = parent
            above = self._processes.get(parent)
            if above is not None and above is not node:
                above.children.append(node)
        inner = {child.proc for node in self._processes.values() for child in node.children}
        roots = [node for node in self._processes.values() if node.proc not in inner]
        reached = {node.proc for node, _ in walk(roots)}
        for node in self._processes.values():
            if node.proc not in reached:
                root = self._open_circle(node)
                roots.append(root)
                reached.update(found.proc for found, _ in walk([root]))
        roots.sort(key=lambda node: node.seq)
        for root in roots[1:]:  # the first is what the command began with: its parent is not here
            if root.parent != roots[0].parent or root.began_us is None:
                root.lost_parent = True
        return roots

    def _open_circle(self, node: Process) -> Process:
        """A process below a circle of parents: the first told of that circle, cut off above."""
        climbed: dict[int, Process] = {}
        while node.proc not in climbed:
            climbed[node.proc] = node
            assert node.parent is not None
            node = self._processes[node.parent]
        members = list(climbed.values())
        members = members[members.index(node) :]
        first = min(members, key=lambda member: member.seq)
        assert first.parent is not None
        above = self._processes[first.parent]
        above.children = [child for child in above.children if child is not first]
        first.lost_parent = True
        return first

    # --- lines

    def _node(self, line: dict[str, Any], proc: int) -> Process:
        node = self._processes.get(proc)
        if node is None:
            node = self._processes[proc] = Process(proc=proc, seq=line["seq"])
        return node

    def _fork(self, line: dict[str, Any], body: ProcessFork) -> None:
        node = self._node(line, body.proc)
        self._named.setdefault(body.proc, body.parent)
        node.pid, node.host_pid = body.pid, body.host_pid
        if node.began_us is None:
            node.began_us = happened_us(line)

    def _start(self, line: dict[str, Any], body: ProcessStart) -> None:
        node = self._node(line, body.proc)
        if body.parent is not None:
            self._named.setdefault(body.proc, body.parent)
        node.pid, node.host_pid = body.pid, body.host_pid
        if node.began_us is None:
            node.began_us = happened_us(line)
        raw = line["body"]
        node.programs.append(
            Program(
                span_id=line.get("span_id"),
                began_us=happened_us(line),
                exe=raw["exe"],
                argv=tuple(raw["argv"]),
                cwd=raw["cwd"],
                interpreter=raw["interpreter"],
            )
        )

    def _exit(self, line: dict[str, Any], body: ProcessExit) -> None:
        node = self._node(line, body.proc)
        node.ended_us = happened_us(line)
        node.exit, node.signal = body.exit, body.signal
        if body.rusage is not None:
            node.cpu_us = body.rusage.utime_us + body.rusage.stime_us
            node.maxrss_kib = body.rusage.maxrss_kib

    def _touch(self, line: dict[str, Any], row: Row, proc: int) -> None:
        node = self._node(line, proc)
        if row.error:
            node.failed += row.count
            return
        if row.intent in _READS and row.result == UNOBSERVED:
            if self._is_first(proc, 2, row.key):
                node.perhaps_read += 1
        elif row.intent in _READS and self._is_first(proc, 0, row.key):
            node.read += 1
        if row.intent in _WRITES and self._is_first(proc, 1, row.key):
            node.written += 1

    def _is_first(self, proc: int, way: int, path: str) -> bool:
        """Whether a process touches a path for the first time in this way. Kept as 64 bits that
        nobody outside can aim at (PYTHONHASHSEED), not as text: paths are long and many."""
        mark = hash((proc, way, path))
        if mark in self._touched:
            return False
        self._touched.add(mark)
        return True


def walk(roots: list[Process], most: int | None = None) -> Iterator[tuple[Process, int]]:
    """Every process with its depth, parents before children, in order. `most`: of the depth."""
    left = [(root, 0) for root in reversed(roots)]
    while left:
        node, depth = left.pop()
        yield node, depth
        if most is None or depth < most:
            left += [(child, depth + 1) for child in reversed(node.children)]


def count_below(roots: list[Process]) -> dict[int, int]:
    """How many processes are below each, by its number."""
    ordered = [node for node, _ in walk(roots)]
    below: dict[int, int] = {}
    for node in reversed(ordered):
        below[node.proc] = sum(below[child.proc] + 1 for child in node.children)
    return below
