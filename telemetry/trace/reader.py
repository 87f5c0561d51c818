"""Reading a trace: verify it, iterate over its events. `following.py` goes on as it is written.

The library's fast reader, and the second implementation beside `telemetry/verifier.py`, with
which it shares error codes and no code. It judges the chain; blobs, notes, amendments and
evidence classes are the verifier's and others' business. Streams: memory is bounded by one
line, one chunk, and what `Story` keeps. For the verdict on a long trace a second process
reads ahead (`ahead.py`). trace.md §2, §5, §9.

Invariant: no event is handed out of a line that is not accepted, and none behind it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from dataclasses import dataclass

from substrate.errors import StateError, TraceCorrupt
from substrate.telemetry.trace.ahead import Ahead
from substrate.telemetry.trace.check import BadLine, LineChecker
from substrate.telemetry.trace.envelope import GENESIS
from substrate.telemetry.trace.files import DURABLE, LOCK, TRACE, Durable, parse_durable
from substrate.telemetry.trace.line import MAX_LINE_BYTES
from substrate.telemetry.trace.merkle import MerkleTree
from substrate.telemetry.trace.proof import BatchProof
from substrate.telemetry.trace.story import Oddity, Story, Untrue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

VERIFIED, SO_FAR, FAILED, UNUSABLE = "verified", "verified_so_far", "failed", "unusable"

#: these say "cannot be judged", all others "does not hold"
_UNUSABLE_CODES = frozenset(("E_EMPTY", "E_UNREADABLE", "E_TORN", "E_VERSION"))
_CHUNK_BYTES = 1 << 17
_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_FOREIGN = ((b"\x1f\x8b", "gzip"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a trace does not hold: stable code, message, seq and byte offset of the line."""

    code: str
    message: str
    seq: int | None
    offset: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found in the lines that hold, and the fault of the first that does not.

    `integrity`: `verified`, `verified_so_far` (a writer is at work), `failed`, `unusable`.
    `head`: hex SHA-256 of the last line that holds; `size_bytes` ends behind it.
    `drops`: events lost by `log_drop`; `open_spans` in the order of their starts.
    """

    integrity: str
    session_id: str | None
    events: int
    size_bytes: int
    head: str | None
    sealed: bool
    complete: bool
    drops: int
    gaps: int
    recoveries: int
    redactions: int
    open_spans: tuple[str, ...]
    torn_bytes: int
    warnings: tuple[Oddity, ...]
    fault: Fault | None

    @property
    def ok(self) -> bool:
        return self.fault is None


class TraceReader:
    """A trace opened for reading: a session directory, or a trace file. Close it.

    Only what was in the file at opening is read; `live` says whether a writer was at work.
    Raises StateError (E_UNREADABLE) for what is no regular file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._directory = -1
        self.fd = -1
        self._ahead: Ahead | None = None
        try:
            self._open(os.fspath(path))
            self.live = self._has_writer()
            # Before the size: `durable` may lag behind the trace, never lead it.
            self._durable_bytes = self._neighbour(DURABLE)
            self.size_bytes = os.fstat(self.fd).st_size
        except BaseException:
            self.close()
            raise
        self.story = Story()
        self.checker = LineChecker()
        self._proof: BatchProof | None = None
        self.torn_bytes = 0

    def __enter__(self) -> TraceReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        for fd in (self.fd, self._directory):
            if fd >= 0:
                os.close(fd)
        self.fd = self._directory = -1

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        """The accepted events in order, some hundred at a time. To be used once.

        Raises TraceCorrupt with code, seq and offset at the first line that does not hold, and
        at the end of a torn trace (E_TORN); what came before has been handed out.
        """
        yield from self._batches()
        self._end()

    def check(self) -> None:
        """Read all as `batches` does, and hand out nothing: faster. To be used once."""
        self._proof = BatchProof(self.checker, self.story)
        for _ in self.batches():
            pass

    def events(self) -> Iterator[dict[str, Any]]:
        """`batches`, one by one."""
        for batch in self.batches():
            yield from batch

    # --- opening ----------------------------------------------------------------------------

    def _open(self, path: str) -> None:
        try:
            fd = os.open(path, _OPEN_FLAGS)
        except OSError as error:
            raise _unreadable(f"{path} cannot be opened: {error.strerror}") from error
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            self._directory = fd
            try:
                fd = os.open(TRACE, _OPEN_FLAGS | os.O_NOFOLLOW, dir_fd=fd)
            except OSError as error:
                raise _unreadable(f"{path}: no {TRACE}: {error.strerror}") from error
        elif os.path.basename(path) == TRACE:
            self._directory = os.open(
                os.path.dirname(os.path.realpath(path)) or ".", _OPEN_FLAGS | os.O_DIRECTORY
            )
        self.fd = fd
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _unreadable(f"{path} is not a regular file")
        start = os.pread(fd, 2, 0)
        for magic, name in _FOREIGN:
            if start == magic:
                raise _unreadable(f"{path} is {name}, not a trace")
        if start in (b"{\0", b"\0{"):
            raise _unreadable(f"{path} is UTF-16, not a trace")

    def _neighbour(self, name: str) -> bytes | None:
        fd = self.open_neighbour(name)
        if fd is None:
            return None
        try:
            return os.pread(fd, 128, 0)
        finally:
            os.close(fd)

    def open_neighbour(self, name: str) -> int | None:
        """A file beside the trace, open for reading; None where there is none."""
        if self._directory < 0:
            return None
        try:
            fd = os.open(name, _OPEN_FLAGS | os.O_NOFOLLOW, dir_fd=self._directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(f"{name} cannot be opened: {error.strerror}") from error
        return fd

    def _has_writer(self) -> bool:
        fd = self.open_neighbour(LOCK)
        if fd is None:
            return False
        try:
            if os.fstat(fd).st_size == 0:
                return False
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    # --- reading ----------------------------------------------------------------------------

    def _durable(self) -> Durable | None:
        raw = self._durable_bytes
        if raw is None or not raw.strip(b"\0"):
            return None
        durable = parse_durable(raw)
        if durable is None:
            raise TraceCorrupt("`durable` is no record of 86 bytes", code="E_DURABLE")
        return durable

    def _batches(self) -> Iterator[list[dict[str, Any]]]:
        if self.size_bytes == 0 and not self.live:
            raise self._bad("E_EMPTY", "the trace is empty")
        durable = self._durable()
        if durable is not None and durable.size == 0:
            if durable.head != GENESIS:
                raise self._durable_is_wrong(durable)
            durable = None
        tree = MerkleTree() if self._may_be_sealed() else None
        rest = b""
        position = 0
        while position < self.size_bytes:
            goal = self.size_bytes
            if durable is not None and position < durable.size:
                goal = min(goal, durable.size)
            if self._proof is not None and tree is None and not self.live:
                if not rest and self._follow_ahead():
                    position = self.checker.offset
                    durable = self._pass_durable(durable)
                    continue
                if self._ahead is None:
                    self._ahead = Ahead.start(self.fd, position, goal, self.checker, self._proof)
                if self._ahead is not None and position < self._ahead.cut.offset:
                    goal = self._ahead.cut.offset
            chunk = os.pread(self.fd, min(_CHUNK_BYTES, goal - position), position)
            if not chunk:
                break
            position += len(chunk)
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            if lines:
                objs, problem = self._accept(lines, tree)
                if objs:
                    yield objs
                if problem is not None:
                    raise problem
                durable = self._pass_durable(durable)
            if len(rest) > MAX_LINE_BYTES and not self._is_torn(rest, position):
                raise self._bad("E_LINE_TOO_LONG", f"longer than {MAX_LINE_BYTES} bytes")
            if len(rest) > MAX_LINE_BYTES:
                break
        if durable is not None:
            raise self._durable_is_wrong(durable)
        self.torn_bytes = self.size_bytes - self.checker.offset

    def _pass_durable(self, durable: Durable | None) -> Durable | None:
        """`durable` itself until the position is there; None from there on. Raises E_DURABLE."""
        checker = self.checker
        if durable is None or checker.offset < durable.size:
            return durable
        if (checker.offset, checker.head) != (durable.size, durable.head):
            raise self._durable_is_wrong(durable)
        return None

    def _follow_ahead(self) -> bool:
        """Take what was found ahead, if we are there; True if the position has moved."""
        ahead, checker, story = self._ahead, self.checker, self.story
        if ahead is None or checker.offset < ahead.cut.offset:
            return False
        self._ahead = None
        start = checker.offset
        try:
            if (checker.offset, checker.seq, checker.head) == ahead.cut.place:
                for lines, size, head, said, objs in ahead.findings():
                    if said is None:
                        story.tell(objs)
                    elif story.sealed or not story.tell_quiet([*said[:2]], said[2]):
                        break
                    checker.go_on(lines, head, size)
        finally:
            ahead.close()
        return checker.offset > start

    def _accept(
        self, lines: list[bytes], tree: MerkleTree | None
    ) -> tuple[list[dict[str, Any]], BadLine | None]:
        """The objects of the lines that hold, and the fault of the first that does not."""
        checker, story = self.checker, self.story
        if story.sealed:
            return [], self._bad("E_AFTER_SEAL", "a line follows the seal")
        if self._proof is not None and self._proof.prove(lines):
            if tree is not None:
                tree.add(lines)
            return [], None
        start = checker.offset
        problem: BadLine | None = None
        try:
            objs = checker.check(lines)
        except BadLine as bad:
            problem, objs = bad, bad.before
        try:
            taken = story.tell(objs)
            if tree is not None:
                tree.add(lines[:taken])
            if taken < len(objs):
                root = tree.root() if tree is not None else str(objs[taken]["body"].get("root"))
                story.hear_seal(objs[taken], root)
        except Untrue as wrong:
            index = wrong.seq - objs[0]["seq"]
            return objs[:index], self._back_to(index, objs, lines, start, wrong.code, wrong.reason)
        if taken + 1 < len(objs) or (taken < len(objs) and problem is not None):
            index = taken + 1
            objs = objs[:index]
            self._go_back(index, objs, lines, start)
            return objs, self._bad("E_AFTER_SEAL", "a line follows the seal")
        if self._proof is not None:
            self._proof.learn(lines, objs)
        return objs, problem

    def _back_to(
        self,
        index: int,
        objs: list[dict[str, Any]],
        lines: list[bytes],
        start: int,
        code: str,
        reason: str,
    ) -> BadLine:
        self._go_back(index, objs[:index], lines, start)
        self.checker.seq = objs[index]["seq"]
        self.checker.head = objs[index]["prev_hash"]
        return self._bad(code, reason)

    def _go_back(
        self, index: int, objs: list[dict[str, Any]], lines: list[bytes], start: int
    ) -> None:
        """The position behind the first `index` lines, which hold."""
        self.checker.offset = start + sum(map(len, lines[:index])) + index
        if objs:
            self.checker.seq = objs[-1]["seq"] + 1
            self.checker.head = hashlib.sha256(lines[index - 1]).hexdigest()

    def _may_be_sealed(self) -> bool:
        """Only then the tree is made: is the type named in what may be the last line?"""
        start = max(0, self.size_bytes - 8192)
        return b'"event_type":"chain_seal"' in os.pread(self.fd, 8192, start)

    def _is_torn(self, rest: bytes, position: int) -> bool:
        """Can `rest` and all behind it be half a line and then pages that were never written?"""
        nul = rest.find(0)
        if not 0 <= nul <= MAX_LINE_BYTES or rest[nul:].strip(b"\0"):
            return False
        while position < self.size_bytes:
            chunk = os.pread(self.fd, _CHUNK_BYTES, position)
            if not chunk:
                break
            if chunk.strip(b"\0"):
                return False
            position += len(chunk)
        return True

    def _end(self) -> None:
        if self.torn_bytes and not (self.live or self._has_writer()):
            raise self._bad(
                "E_TORN",
                f"the last {self.torn_bytes} bytes are no whole line; what is before them holds",
            )
        if self.torn_bytes:
            self.live = True
        if not self.live:
            for seq in self.story.open_spans.values():
                self.story.warn("W_OPEN_SPAN", "command_start without its end", seq)

    def _bad(self, code: str, reason: str) -> BadLine:
        return BadLine(code, reason, self.checker.seq, self.checker.offset, [])

    def _durable_is_wrong(self, durable: Durable) -> BadLine:
        checker = self.checker
        return self._bad(
            "E_DURABLE",
            f"`durable` says {durable.size} bytes ending in {durable.head}; the line that ends at "
            f"{checker.offset} is {checker.head}",
        )


def verify(path: str | os.PathLike[str]) -> Verdict:
    """Read all of a trace and say what holds. Whatever is wrong with it is in the verdict."""
    try:
        reader = TraceReader(path)
    except StateError as problem:
        return _unopened(problem)
    with reader:
        fault = None
        try:
            reader.check()
        except TraceCorrupt as wrong:
            message = wrong.reason if isinstance(wrong, BadLine) else wrong.args[0]
            fault = Fault(code=wrong.code, message=message, seq=wrong.seq, offset=wrong.offset)
        story, checker = reader.story, reader.checker
        integrity = SO_FAR if reader.live else VERIFIED
        if fault is not None:
            integrity = UNUSABLE if fault.code in _UNUSABLE_CODES else FAILED
        return Verdict(
            integrity=integrity,
            session_id=checker.session_id,
            events=checker.seq,
            size_bytes=checker.offset,
            head=checker.head if checker.seq else None,
            sealed=story.sealed,
            complete=story.complete and fault is None,
            drops=story.drops,
            gaps=story.gaps,
            recoveries=story.recoveries,
            redactions=len(story.redactions),
            open_spans=tuple(story.open_spans),
            torn_bytes=reader.torn_bytes,
            warnings=story.warnings(),
            fault=fault,
        )


def read_events(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The events of a trace, each accepted before it is handed out. Raises TraceCorrupt."""
    with TraceReader(path) as reader:
        yield from reader.events()


def _unreadable(message: str) -> StateError:
    return StateError(message, code="E_UNREADABLE")


def _unopened(problem: StateError) -> Verdict:
    fault = Fault(code=problem.code, message=str(problem.args[0]), seq=None, offset=None)
    return Verdict(
        integrity=UNUSABLE,
        session_id=None,
        events=0,
        size_bytes=0,
        head=None,
        sealed=False,
        complete=False,
        drops=0,
        gaps=0,
        recoveries=0,
        redactions=0,
        open_spans=(),
        torn_bytes=0,
        warnings=(),
        fault=fault,
    )
