"""Reading a trace in order to go on writing it: how far it holds, and where its chain stands.

Reads only. Streams, so memory is bounded by one line and one chunk. Raises TraceCorrupt,
with seq and byte offset, for damage that recovery must not touch. trace.md §5.
"""

from __future__ import annotations

from substrate.errors import StateError, TraceCorrupt
from substrate.sha256 import sha256
from substrate.telemetry.trace.chain import Chain
from substrate.telemetry.trace.envelope import check_envelope
from substrate.telemetry.trace.files import Durable, read_chunks, read_exactly
from substrate.telemetry.trace.line import MAX_LINE_BYTES
from substrate.telemetry.trace.parsing import parse_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from substrate.telemetry.trace.check import LineChecker
    from substrate.telemetry.trace.system import System


class Survey:
    """What was found. `torn_from`: byte where the torn tail begins, None if there is none.

    `whole_history`: the chain was read from its start, so spans and producers are known.
    `last_mono_us`: of the last line. `named_torn_files`: those that a `recovery` names.
    """

    def __init__(self, chain: Chain, file_size: int, *, whole_history: bool) -> None:
        self.chain = chain
        self.file_size = file_size
        self.whole_history = whole_history
        self.torn_from: int | None = None
        self.last_mono_us = 0
        self.named_torn_files: set[str] = set()

    def follow(self, obj: dict[str, Any], line: bytes) -> None:
        self.chain.follow(obj, line)
        self.last_mono_us = obj["mono_us"]
        if obj["event_type"] == "recovery":
            self.named_torn_files.add(str(obj["body"].get("torn_file")))


def survey(
    system: System, fd: int, durable: Durable | None, *, clean: bool, end: int | None = None
) -> Survey:
    """How far the trace `fd` holds, up to `end` (default: its size).

    `clean`: after a clean end, the prefix that `durable` names is believed if its last line
    is the one it says; only what follows is read. Else all is read.
    Raises TraceCorrupt, StateError if there is no whole line at all.
    """
    size = system.size(fd) if end is None else end
    if durable is not None and durable.size > size:
        raise TraceCorrupt(
            f"{durable.size} bytes were synced, the trace has only {size}",
            offset=size,
            code="E_DURABLE",
            hint="the file was cut; nothing was changed. Take it from a copy",
        )
    found = None
    if clean and durable is not None and durable.size:
        found = _from_last_line(system, fd, durable, size)
    if found is None:
        chain = Chain("")
        found = Survey(chain, size, whole_history=True)
    if found.chain.size < size:  # after a clean end there is nothing left to read
        _read_on(system, fd, durable, found, size)
    if not found.chain.next_seq:
        raise StateError(
            "the trace has no whole line: the session never began",
            code="E_EMPTY",
            hint="remove the session's directory",
        )
    if found.torn_from is None and found.chain.size < size:
        problem = TraceCorrupt("the last line has no newline", code="E_TORN")
        _judge(system, fd, found, durable, problem)
    return found


def _read_on(system: System, fd: int, durable: Durable | None, found: Survey, size: int) -> None:
    """Takes in what follows the survey's position, up to `size`."""
    from substrate.telemetry.trace.check import LineChecker

    start = found.chain.size
    checker = LineChecker(
        session_id=found.chain.session_id or None,
        seq=found.chain.next_seq,
        head=found.chain.head,
        offset=start,
    )
    synced = start if durable is None else durable.size
    to_compare = durable if synced > start else None
    for lines in _line_batches(system, fd, start, size, synced):
        problem = _take_in(found, checker, lines)
        if to_compare is not None and found.chain.size >= synced:
            _compare(found, to_compare)
            to_compare = None
        if problem is not None:
            _judge(system, fd, found, durable, problem)
            break


def last_line(system: System, fd: int, end: int) -> bytes | None:
    """The line that ends at byte `end`, without its newline; None if none does."""
    if end < 1 or read_exactly(system, fd, 1, end - 1) != b"\n":
        return None
    reach = 4096
    while True:
        start = max(0, end - 1 - reach)
        content = read_exactly(system, fd, end - 1 - start, start)
        at = content.rfind(b"\n")
        if at >= 0:
            return content[at + 1 :]
        if start == 0:
            return content
        if reach > MAX_LINE_BYTES:
            return None
        reach *= 8


def _from_last_line(system: System, fd: int, durable: Durable, size: int) -> Survey | None:
    """The survey at the durable position, or None if its last line is not what it says."""
    line = last_line(system, fd, durable.size)
    if line is None or sha256(line).hexdigest() != durable.head:
        return None
    obj = parse_line(line)
    check_envelope(obj)
    chain = Chain(obj["session_id"], resumed=True)
    chain.size = durable.size - len(line) - 1
    found = Survey(chain, size, whole_history=False)
    found.follow(obj, line)
    return found


def _line_batches(
    system: System, fd: int, start: int, end: int, border: int
) -> Iterator[list[bytes]]:
    """Whole lines without newlines; a batch ends at the byte `border`, if a line does.

    A line longer than 1 MiB ends the reading: what comes is given as one bad line.
    """
    rest = b""
    for chunk in _chunks_with_border(system, fd, start, end, border):
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        if lines:
            yield lines
        if len(rest) > MAX_LINE_BYTES:
            yield [rest]
            return


def _chunks_with_border(
    system: System, fd: int, start: int, end: int, border: int
) -> Iterator[bytes]:
    border = min(max(start, border), end)
    yield from read_chunks(system, fd, start, border)
    yield from read_chunks(system, fd, border, end)


def _take_in(found: Survey, checker: LineChecker, lines: list[bytes]) -> TraceCorrupt | None:
    """Follow the lines that are accepted; the problem of the first one that is not."""
    from substrate.telemetry.trace.check import BadLine

    chain = found.chain
    problem: TraceCorrupt | None = None
    try:
        objs = checker.check(lines)
    except BadLine as bad:
        objs, problem = bad.before, bad
    for obj, line in zip(objs, lines, strict=False):
        if chain.sealed:
            return TraceCorrupt("a line follows the seal", code="E_AFTER_SEAL")
        if not chain.session_id:
            chain.session_id = obj["session_id"]
        try:
            found.follow(obj, line)
        except (KeyError, TypeError) as error:
            return TraceCorrupt(
                f"the body of {obj['event_type']} is malformed: {error!r}", code="E_LOG_DROP"
            )
    return problem


def _compare(found: Survey, durable: Durable) -> None:
    """At the first end of a line at or behind the synced position: it must be that very line."""
    chain = found.chain
    if (chain.size, chain.head) != (durable.size, durable.head):
        raise TraceCorrupt(
            f"`durable` says {durable.size} bytes that end in {durable.head}, the line that ends "
            f"at {chain.size} is {chain.head}",
            seq=chain.next_seq - 1,
            offset=durable.size,
            code="E_DURABLE",
            hint="the trace or `durable` was changed; nothing was touched",
        )


def _judge(
    system: System, fd: int, found: Survey, durable: Durable | None, problem: TraceCorrupt
) -> None:
    """Is what follows the last accepted line a torn tail? Else raise."""
    at = found.chain.size
    message = getattr(problem, "reason", problem.args[0])  # BadLine's is without the place
    if durable is not None and at < durable.size:
        raise TraceCorrupt(
            f"below the synced position ({durable.size}): {message}",
            seq=found.chain.next_seq,
            offset=at,
            code=problem.code,
            hint="this is damage, not a torn tail: nothing was changed. The chain is never "
            "repaired; keep the file as it is, and start a new session",
        )
    if durable is None and not _looks_torn(system, fd, found):
        raise TraceCorrupt(
            f"`durable` cannot be read, and lines follow a bad one: {message}",
            seq=found.chain.next_seq,
            offset=at,
            code=problem.code,
            hint="without `durable` this cannot be told from damage: nothing was changed",
        )
    found.torn_from = at


def _looks_torn(system: System, fd: int, found: Survey) -> bool:
    """Nothing like a line of this session follows the bad one, or its pages were never written."""
    chain = found.chain
    mark = b'"session_id":"%b"' % (chain.session_id.encode("ascii") or b"ses_")
    first = True
    carried = b""
    for chunk in read_chunks(system, fd, chain.size, found.file_size):
        content = carried + chunk
        if first:
            head, newline, content = content.partition(b"\n")
            if b"\0" in head:
                return True
            carried = b""
            if not newline:
                continue
            first = False
        if mark in content:
            return False
        carried = content[-len(mark) :]
    return True
