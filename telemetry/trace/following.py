"""Following a trace while it is written: the lines that are there, then those that come.

Only whole lines that the chain accepts are handed out; half a line, or NULs behind the last one,
are waited for. A writer may take lines back that it had not made durable: after a write that
failed, or when a session is opened again after a kill (recovery.py). Then the file is read again
from its start, the caller is told from which seq on lines were taken back, and those that stand
in their place follow. Lines below the `durable` position are never taken back: if one of those
changes, or the file is another one than was followed, that is E_CHANGED.

How it waits: it looks at the file's size again after a moment, first of 10 ms, then longer up to
POLL_S while nothing comes. Not by inotify(7): that tells nothing of what other hosts write on a
network file system, or of what lies below an overlay or FUSE, so the clock would be needed all
the same; four calls of fstat a second are not to be felt. trace.md §2, §5.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque

from substrate.errors import StateError, TraceCorrupt
from substrate.telemetry.trace.check import BadLine, LineChecker
from substrate.telemetry.trace.files import DURABLE, Durable, parse_durable
from substrate.telemetry.trace.line import MAX_LINE_BYTES
from substrate.telemetry.trace.reader import TraceReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Line = dict[str, Any]

#: the longest time between two looks
POLL_S = 0.25
_SHORTEST_S = 0.01
_CHUNK_BYTES = 1 << 17
#: how many lines back the place is found where other lines stand now; a group commit is shorter
_REMEMBERED = 8192
#: how often in a row a file that does not hold is looked at again before that is said
_TRIES = 3


def _ignore(seq: int) -> None:
    """Nobody wants to know that lines were taken back."""


class Follower:
    """`present` once, if wanted, then `coming`. Close it.

    `taken_back` is called with the seq of the first line that is no longer there.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, taken_back: Callable[[int], None] = _ignore
    ) -> None:
        self._reader = TraceReader(path)
        self._checker = LineChecker()
        self._durable_fd = self._reader.open_neighbour(DURABLE)
        self._taken_back = taken_back
        #: of the last lines that were handed out: seq, hash
        self._known: deque[tuple[int, str]] = deque(maxlen=_REMEMBERED)
        #: the last one that was seen
        self._durable: Durable | None = None
        self._position = 0
        self._rest = b""
        self._changed_ns = -1
        #: looks in a row at which the file did not hold
        self._bad = 0

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()
        if self._durable_fd is not None:
            os.close(self._durable_fd)
            self._durable_fd = None

    def present(self) -> Iterator[Line]:
        """The lines that are there now, judged as `TraceReader.events` does, which raises
        TraceCorrupt: after E_TORN, `coming` goes on in front of the torn bytes."""
        checker = self._checker = self._reader.checker
        try:
            for batch in self._reader.batches():
                self._remember(batch)
                yield from batch
        finally:
            self._start_over(checker.offset)

    def coming(self, stopped: Callable[[], bool], *, poll_s: float = POLL_S) -> Iterator[Line]:
        """The lines behind those, and those that are written from now on, until `stopped()`,
        which is asked at every look. Ends behind a seal.

        Raises TraceCorrupt, StateError (E_UNREADABLE) if the trace was removed."""
        wait_s = min(_SHORTEST_S, poll_s)
        while not stopped():
            found = self._look()
            for line in found:
                yield line
                if line["event_type"] == "chain_seal":
                    return
            if found:
                wait_s = min(_SHORTEST_S, poll_s)
            else:
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, poll_s)

    # --- one look

    def _look(self) -> list[Line]:
        """What is new. Empty for nothing, or for what is not whole yet."""
        state = os.fstat(self._reader.fd)
        if state.st_nlink == 0:
            raise StateError(
                "the trace was removed while it was followed",
                hint="`substrate session ls` lists the sessions that are there",
                code="E_UNREADABLE",
            )
        if state.st_size < self._position:
            return self._look_again()
        chunk = os.pread(self._reader.fd, _CHUNK_BYTES, self._position)
        if not chunk:
            changed_ns, self._changed_ns = self._changed_ns, state.st_mtime_ns
            if changed_ns == state.st_mtime_ns and not self._bad:
                return []
            if self._last_line_holds():
                self._bad = 0
                return []
            return self._look_again()
        self._note_durable()
        lines = (self._rest + chunk).split(b"\n")
        rest = lines.pop()
        try:
            objs = self._checker.check(lines)
        except BadLine as bad:
            self._remember(bad.before)
            self._start_over(self._checker.offset)
            return bad.before or self._look_again()
        self._remember(objs)
        if b"\0" in rest:  # pages that were never written: whatever follows them is no line
            self._start_over(self._checker.offset)
            return objs
        if len(rest) > MAX_LINE_BYTES:
            raise self._wrong("E_LINE_TOO_LONG", f"longer than {MAX_LINE_BYTES} bytes")
        self._rest = rest
        self._position += len(chunk)
        self._bad = 0
        return objs

    def _look_again(self) -> list[Line]:
        """Reads the file from its start, and gives what stands where another was followed."""
        self._note_durable()
        again = _Again(self._known, self._checker.seq, self._durable)
        try:
            again.read(self._reader.fd)
        except TraceCorrupt:
            self._bad += 1
            if self._bad >= _TRIES:
                raise
            return []  # a recovery may be at work
        self._bad = 0
        self._checker, self._known = again.checker, again.known
        self._start_over(again.checker.offset)
        if again.differs is not None:
            self._taken_back(again.differs)
        return again.fresh

    def _last_line_holds(self) -> bool:
        """Whether the last line is the one that was accepted; by its hash so are all before it. Other
        lines of the same length may stand there: they were written between two looks."""
        end = self._checker.offset
        start = max(0, end - MAX_LINE_BYTES - 2)
        lines = os.pread(self._reader.fd, end - start, start).split(b"\n")
        if end == 0:
            return True
        return len(lines) > 1 and hashlib.sha256(lines[-2]).hexdigest() == self._checker.head

    def _start_over(self, offset: int) -> None:
        self._position, self._rest = offset, b""

    def _remember(self, objs: list[Line]) -> None:
        """The hashes of lines that were just accepted: each one is in the line behind it."""
        if not objs:
            return
        self._known += [(obj["seq"] - 1, obj["prev_hash"]) for obj in objs[1:]]
        self._known.append((objs[-1]["seq"], self._checker.head))

    def _note_durable(self) -> None:
        if self._durable_fd is None:
            return
        raw = os.pread(self._durable_fd, 128, 0)
        if raw == os.pread(self._durable_fd, 128, 0):  # else it is being written
            durable = parse_durable(raw)
            if durable is not None and durable.size >= (self._durable or durable).size:
                self._durable = durable

    def _wrong(self, code: str, message: str) -> BadLine:
        return BadLine(code, message, self._checker.seq, self._checker.offset, [])


class _Again:
    """The file once more from its start, beside what was known of it.

    `differs`: the first seq at which lines were taken back; None where none were. `fresh`: the
    lines that were not handed out."""

    def __init__(
        self, known: deque[tuple[int, str]], following: int, durable: Durable | None
    ) -> None:
        self.checker = LineChecker()
        self.known: deque[tuple[int, str]] = deque(maxlen=_REMEMBERED)
        self.fresh: list[Line] = []
        self.differs: int | None = None
        self._before = dict(known)
        self._following = following
        self._oldest = known[0][0] if known else following
        self._durable = durable if durable is not None and durable.size else None

    def read(self, fd: int) -> None:
        """Raises TraceCorrupt where it does not hold, or lines changed that may not."""
        rest, position = b"", 0
        while chunk := os.pread(fd, _CHUNK_BYTES, position):
            position += len(chunk)
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            offset = self.checker.offset
            objs = self.checker.check(lines)
            hashes = [*(obj["prev_hash"] for obj in objs[1:]), self.checker.head]
            for obj, line, mark in zip(objs, lines, hashes, strict=True) if objs else ():
                offset += len(line) + 1
                self._take(obj, mark, offset)
            if len(rest) > MAX_LINE_BYTES or b"\0" in rest:
                break
        if self._durable is not None:
            raise self._changed("the trace is shorter than what was durable already")
        if self.differs is None and self.checker.seq < self._following:
            self._differ(self.checker.seq)

    def _take(self, obj: Line, mark: str, offset: int) -> None:
        durable, seq = self._durable, obj["seq"]
        if durable is not None and offset >= durable.size:
            if (offset, mark) != (durable.size, durable.head):
                raise self._changed("lines that were durable already are other ones now")
            self._durable = None
        if self.differs is None and self._before.get(seq, mark) != mark:
            self._differ(seq)
        if self.differs is not None or seq >= self._following:
            self.fresh.append(obj)
        self.known.append((seq, mark))

    def _differ(self, seq: int) -> None:
        if seq < self._oldest or (seq == self._oldest and seq > 0):
            raise self._changed("the trace changed further back than can be compared")
        self.differs = seq

    def _changed(self, message: str) -> TraceCorrupt:
        return TraceCorrupt(f"{message}: it changed while it was followed", code="E_CHANGED")


def follow(
    path: str | os.PathLike[str],
    *,
    stopped: Callable[[], bool],
    poll_s: float = POLL_S,
    taken_back: Callable[[int], None] = _ignore,
) -> Iterator[Line]:
    """The lines of a trace from its first on, and those that are written, until `stopped()`."""
    with Follower(path, taken_back=taken_back) as follower:
        yield from follower.coming(stopped, poll_s=poll_s)
