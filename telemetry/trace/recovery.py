"""Opening a session again: after a clean end by its last line, else by reading all of it.

What it never does: change a byte of the synced prefix, or take damage in it for a torn tail.

Theory of operation. `durable` names a prefix. After an unclean end every line of it is
checked; damage there is refused and nothing is touched. Behind it, the first line that is
not accepted and all that follows moves to `trace.torn-<n>`; the copy is whole and synced
before the trace is cut. What is kept behind the prefix is written once more in place: after
a failed sync the page cache holds what the disk may not. A death in the middle of recovery
leaves a torn file that no `recovery` event names yet; the next one names it.

Without a readable `durable` the prefix is unknown. Then only what looks torn is moved (no
newline, or NUL bytes, or nothing acceptable behind it); anything else is refused.
trace.md §5; docs/adr/0001.
"""

from __future__ import annotations

import os

from substrate.errors import StateError
from substrate.sha256 import bulk
from substrate.telemetry.trace.blobs import BlobPack
from substrate.telemetry.trace.chain import Chain
from substrate.telemetry.trace.files import (
    DURABLE,
    EMPTY_PREFIX,
    TRACE,
    Durable,
    load_durable,
    open_file,
    read_chunks,
    write_all,
    write_all_at,
)
from substrate.telemetry.trace.lock import SessionLock, parse_owner
from substrate.telemetry.trace.survey import Survey, survey
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.telemetry.trace.envelope import Event
    from substrate.telemetry.trace.system import System
    from substrate.telemetry.trace.writer import TraceWriter

TORN_PREFIX = "trace.torn-"
_ASIDE = "trace.torn.part"


@value
class Torn:
    """Bytes that were moved away: name of their file, size, hex SHA-256."""

    name: str
    size: int
    digest: str


@value
class Recovered:
    """What recovery did. `acknowledged_lost` is `no` or `unknown`, see `_loss`."""

    torn: tuple[Torn, ...]
    acknowledged_lost: str
    closed_spans: tuple[str, ...]


def reopen(
    writer_class: type[TraceWriter],
    dir_fd: int,
    *,
    durability: str,
    digest_key: bytes,
    system: System,
    lock: SessionLock | None,
) -> tuple[TraceWriter, Recovered | None]:
    """`TraceWriter.open`: see there."""
    if lock is None:
        lock = SessionLock.acquire(system, dir_fd)
    opened: list[int] = []
    blobs: BlobPack | None = None
    try:
        try:
            opened.append(open_file(system, dir_fd, TRACE, os.O_RDWR | os.O_APPEND))
        except FileNotFoundError as error:
            raise StateError("the session has no trace.jsonl") from error
        fd = opened[0]
        durable = load_durable(system, dir_fd)
        clean = not lock.left_behind
        found = survey(system, fd, durable, clean=clean)
        clean = clean and found.torn_from is None
        if not clean and not found.whole_history:
            found = survey(system, fd, durable, clean=False)
        torn: list[Torn] = []
        if not clean:
            torn = _move_torn_away(system, dir_fd, fd, found)
            _write_again(system, dir_fd, durable or EMPTY_PREFIX, found.chain.size)
        if found.chain.sealed:
            if not clean:
                system.fdatasync(fd)
                lock.release(clean=True)
            raise StateError(
                "the session is sealed, nothing may follow in its trace",
                code="E_AFTER_SEAL",
                hint="what happens after the seal goes to amendments.jsonl",
            )
        blobs = BlobPack.open(dir_fd, digest_key, system=system)
        if not clean:
            blobs.recover()
        opened.append(open_file(system, dir_fd, DURABLE, os.O_RDWR | os.O_CREAT))
        writer = writer_class(
            system=system,
            dir_fd=dir_fd,
            lock=lock,
            fd=fd,
            durable_fd=opened[1],
            chain=found.chain,
            durable=durable or EMPTY_PREFIX,
            durability=durability,
            blobs=blobs,
            directory_to_sync=not clean or durable is None,
            history_known=found.whole_history,
        )
        recovered = None
        if not clean:
            recovered = _finish(system, writer, lock, found, durable, torn)
        lock.mark()
        return writer, recovered
    except BaseException:
        if blobs is not None:
            blobs.close()
        for each in opened:
            system.close(each)
        lock.drop()
        raise


def read_history(system: System, fd: int, chain: Chain) -> Chain:
    """The chain with its whole history: producers, spans, drops. Raises TraceCorrupt."""
    prefix = Durable(size=chain.size, head=chain.head)
    return survey(system, fd, prefix, clean=False, end=chain.size).chain


# --- the torn tail --------------------------------------------------------------------------


def _move_torn_away(system: System, dir_fd: int, fd: int, found: Survey) -> list[Torn]:
    """Copy the tail aside, cut it off. Gives every torn file that no event names yet."""
    orphans = _orphans(system, dir_fd, found)
    if found.torn_from is None:
        return orphans
    start, end = found.torn_from, found.file_size
    digest = _digest(system, fd, start, end)
    if not (orphans and (orphans[-1].size, orphans[-1].digest) == (end - start, digest)):
        name = f"{TORN_PREFIX}{_next_number(system, dir_fd)}"
        aside = open_file(system, dir_fd, _ASIDE, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            for chunk in read_chunks(system, fd, start, end):
                write_all(system, aside, chunk)
            system.fsync(aside)
        finally:
            system.close(aside)
        system.rename(_ASIDE, name, dir_fd)
        system.fsync(dir_fd)
        orphans.append(Torn(name=name, size=end - start, digest=digest))
    system.truncate(fd, start)
    system.fsync(fd)
    return orphans


def _orphans(system: System, dir_fd: int, found: Survey) -> list[Torn]:
    orphans = []
    for number in _numbers(system, dir_fd):
        name = f"{TORN_PREFIX}{number}"
        if name in found.named_torn_files:
            continue
        fd = open_file(system, dir_fd, name, os.O_RDONLY)
        try:
            size = system.size(fd)
            orphans.append(Torn(name=name, size=size, digest=_digest(system, fd, 0, size)))
        finally:
            system.close(fd)
    return orphans


def _numbers(system: System, dir_fd: int) -> list[int]:
    endings = (
        name.removeprefix(TORN_PREFIX)
        for name in system.names(dir_fd)
        if name.startswith(TORN_PREFIX)
    )
    return sorted(int(ending) for ending in endings if ending.isascii() and ending.isdigit())


def _next_number(system: System, dir_fd: int) -> int:
    return max(_numbers(system, dir_fd), default=0) + 1


def _digest(system: System, fd: int, start: int, end: int) -> str:
    hasher = bulk()
    for chunk in read_chunks(system, fd, start, end):
        hasher.update(chunk)
    return hasher.hexdigest()


def _write_again(system: System, dir_fd: int, durable: Durable, end: int) -> None:
    """Make the pages of the kept tail dirty, so that the next sync really writes them."""
    if durable.size >= end:
        return
    fd = open_file(system, dir_fd, TRACE, os.O_RDWR)  # pwrite needs one without O_APPEND
    try:
        offset = durable.size
        for chunk in read_chunks(system, fd, offset, end):
            write_all_at(system, fd, chunk, offset)
            offset += len(chunk)
        system.fdatasync(fd)
    finally:
        system.close(fd)


# --- the record of it -----------------------------------------------------------------------


def _finish(
    system: System,
    writer: TraceWriter,
    lock: SessionLock,
    found: Survey,
    durable: Durable | None,
    torn: list[Torn],
) -> Recovered:
    boot_id = system.boot_id()
    lost = _loss(lock, durable, torn, boot_id)
    spans = writer.open_spans
    events = _events(torn, boot_id, lost, found)
    writer.append(events)
    writer.make_durable()
    return Recovered(torn=tuple(torn), acknowledged_lost=lost, closed_spans=spans)


def _loss(lock: SessionLock, durable: Durable | None, torn: list[Torn], boot_id: str) -> str:
    """Can an acknowledged event be among what is not there?

    Under the same boot the page cache has survived, and `durable` was rewritten before each
    acknowledgement, so it is exact: no. After another boot `durable` may lag; if nothing was
    torn then fdatasync(2)'s promise alone says no; if something was, nobody can tell.
    """
    owner = parse_owner(lock.left_behind)
    if durable is None:
        return "unknown"
    same_boot = owner is not None and owner.boot_id == boot_id
    return "no" if same_boot or not torn else "unknown"


def _events(torn: list[Torn], boot_id: str, lost: str, found: Survey) -> list[Event]:
    """One `recovery` a torn file (or one without), the last one naming the closed spans."""
    from substrate.telemetry.trace.events.chain import Recovery
    from substrate.telemetry.trace.events.command import CommandEnd

    spans = found.chain.open_spans
    events = []
    for place, part in enumerate(torn or [None]):
        last = place == max(len(torn), 1) - 1
        recovery = Recovery(
            torn_bytes=part.size if part else 0,
            torn_digest=part.digest if part else None,
            boot_id=boot_id,
            acknowledged_lost=lost,
            closed_spans=tuple(spans) if last else (),
            torn_file=part.name if part else None,
        )
        events.append(recovery.event("shell"))
    for span, start_mono_us in spans.items():
        end = CommandEnd(
            duration_us=max(0, found.last_mono_us - start_mono_us),
            rusage=None,
            stdin=None,
            stdout=None,
            stderr=None,
            fs_diff=None,
            scopes_used=(),
            ended_by="recovery",
            reason="the supervisor died; the duration ends with the last event before that",
        )
        events.append(end.event("shell", span_id=span))
    return events
