"""Reading ahead in a second process, for a verdict on a long trace.

Theory of operation. A window of the trace is cut at a line. A forked child reads the second
half while its parent reads the first; it takes seq and head from the line before the cut, and
says of one chunk after the other what `LineChecker` and `Story` would have to be told. The
parent believes it only if it arrives at the cut with exactly the seq and head that the child
began with: then what the child found is what it would have found itself. A chunk with
anything that can be a fault, or an event of the record itself (`RESERVED_TYPES`), ends the
child's findings, and the parent reads on from there; so every fault is found by one piece of
code, in one process.

What it is not: it judges nothing. Invariant: a verdict is the same with it and without it;
without fork, with one CPU, or beside other threads it does nothing. Memory is bounded by a
window. trace.md §9.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import signal
from dataclasses import dataclass

from substrate.telemetry.trace.check import BadLine, LineChecker
from substrate.telemetry.trace.envelope import RESERVED_TYPES
from substrate.telemetry.trace.parsing import LineCorrupt, parse_lines
from substrate.telemetry.trace.proof import BatchProof
from substrate.telemetry.trace.story import Story

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    #: lines, bytes with newlines, head behind them; first and last time and counters if they
    #: say nothing else, else None and the objects for `Story.tell`
    Finding = tuple[
        int, int, str, tuple[str, str, dict[str, tuple[int, int]]] | None, list[dict[str, Any]]
    ]

_WINDOW_BYTES = 64 << 20
#: below that a fork costs more than it saves
_LEAST_BYTES = 4 << 20
_CHUNK_BYTES = 1 << 17
#: more than two whole lines
_CUT_BYTES = 1 << 22
#: what `Story.tell` looks at; the body only of events that say something
_TOLD = ("event_type", "seq", "ts", "span_id", "producer", "producer_seq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Where the child begins: byte offset, and the seq and head of a chain that gets there."""

    offset: int
    seq: int
    head: str

    @property
    def place(self) -> tuple[int, int, str]:
        return self.offset, self.seq, self.head


class _Listener(Story):
    """A Story that remembers what it was told quietly, and has no past."""

    said: tuple[str, str, dict[str, tuple[int, int]]]

    def tell_quiet(self, times: Sequence[str], counters: dict[str, tuple[int, int]]) -> bool:
        if list(times) != sorted(times):
            return False
        self.said = times[0], times[-1], counters
        return True


class Ahead:
    """A child at work on the bytes from `cut.offset` to at most `end`. Close it."""

    def __init__(self, cut: Cut, pid: int, pipe: int) -> None:
        self.cut = cut
        self._pid = pid
        self._pipe = pipe

    @classmethod
    def start(
        cls, fd: int, start: int, end: int, checker: LineChecker, proof: BatchProof
    ) -> Ahead | None:
        """For a parent that has accepted all before `start`; None where it does not pay."""
        end = min(end, start + _WINDOW_BYTES)
        if end - start < _LEAST_BYTES or checker.session_id is None or not _may_fork():
            return None
        cut = _find_cut(fd, (start + end) // 2, end)
        if cut is None:
            return None
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork()
        except OSError:  # no memory or no process to be had: one process has to do
            os.close(ours)
            os.close(theirs)
            return None
        if pid == 0:
            status = 1
            try:
                checker.seq, checker.head, checker.offset = cut.seq, cut.head, cut.offset
                found = list(_look(fd, end, checker, proof))
                with open(theirs, "wb") as pipe:
                    marshal.dump(found, pipe)
                status = 0
            finally:
                os._exit(status)  # nothing of the parent's may run here, not even its handlers
        os.close(theirs)
        return cls(cut, pid, ours)

    def findings(self) -> list[Finding]:
        """Waits for the child. Nothing if it has failed: then the parent reads by itself."""
        with open(self._pipe, "rb") as pipe:
            self._pipe = -1
            raw = pipe.read()
        if not self._reap():
            return []
        found: list[Finding] = marshal.loads(raw)
        return found

    def close(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        if self._pid > 0:
            os.kill(self._pid, signal.SIGKILL)
            self._reap()

    def _reap(self) -> bool:
        pid, self._pid = self._pid, -1
        try:
            return os.waitpid(pid, 0)[1] == 0
        except ChildProcessError:  # SIGCHLD is ignored: how it ended is not known
            return False


def _may_fork() -> bool:
    return len(os.sched_getaffinity(0)) > 1 and len(os.listdir("/proc/self/task")) == 1


def _find_cut(fd: int, near: int, end: int) -> Cut | None:
    """The end of the first whole line behind `near`."""
    raw = os.pread(fd, min(_CUT_BYTES, end - near), near)
    first = raw.find(b"\n")
    last = raw.find(b"\n", first + 1)
    if first < 0 or last < 0:
        return None
    line = raw[first + 1 : last]
    try:
        (obj,) = parse_lines([line])
    except LineCorrupt:
        return None
    seq = obj.get("seq")
    if type(seq) is not int:
        return None
    return Cut(offset=near + last + 1, seq=seq + 1, head=hashlib.sha256(line).hexdigest())


def _look(fd: int, end: int, checker: LineChecker, proof: BatchProof) -> Iterator[Finding]:
    """The child: chunk by chunk until something has to be judged."""
    listener = _Listener()
    proof.tell_to(listener)
    rest, position = b"", checker.offset
    while position < end:
        chunk = os.pread(fd, min(_CHUNK_BYTES, end - position), position)
        if not chunk:
            return
        position += len(chunk)
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        if not lines:
            continue
        seq, offset = checker.seq, checker.offset
        if proof.prove(lines):
            yield checker.seq - seq, checker.offset - offset, checker.head, listener.said, []
            continue
        try:
            objs = checker.check(lines)
        except BadLine:
            return
        if not RESERVED_TYPES.isdisjoint([obj["event_type"] for obj in objs]):
            return
        told = [{**{k: obj[k] for k in _TOLD if k in obj}, "body": _said_by(obj)} for obj in objs]
        yield len(lines), checker.offset - offset, checker.head, None, told
        proof.learn(lines, objs)


def _said_by(obj: dict[str, Any]) -> dict[str, Any]:
    drops = obj["body"].get("drops")
    return {"drops": drops} if obj["event_type"] == "session_end" and type(drops) is int else {}
