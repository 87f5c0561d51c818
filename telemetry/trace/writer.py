"""The one writer of a session's chain: events in, durable lines out.

It owns the files `trace.jsonl`, `durable` and `lock`, and the writing end of the blob pack.
It is for one thread; many producers go through `group.py`. It does not decide which event
may be lost, and does not wait for space.

Invariant: the file is always a whole number of lines that the chain has accepted, except
between a failed write and the truncation that follows it; if that truncation fails too, the
writer has ended and recovery puts it right. `durable` never leads: it is written after the
sync that it speaks of. Every body passes the redactor before it becomes a line, and the
pack is synced before a line that can name a new blob is written. trace.md §1, §5, §6.
"""

from __future__ import annotations

import os

from substrate.errors import StateError, UsageError
from substrate.telemetry.trace.blobs import BlobPack
from substrate.telemetry.trace.body_bytes import body_bytes, without_secrets
from substrate.telemetry.trace.chain import Chain
from substrate.telemetry.trace.files import (
    DURABLE,
    EMPTY_PREFIX,
    TRACE,
    Durable,
    create_file,
    render_durable,
    write_all,
    write_all_at,
)
from substrate.telemetry.trace.lock import SessionLock
from substrate.telemetry.trace.system import REAL
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from substrate.telemetry.trace.chain import State
    from substrate.telemetry.trace.envelope import Event
    from substrate.telemetry.trace.recovery import Recovered
    from substrate.telemetry.trace.system import System

    Stamped = tuple[Event, int, int, bytes | None]

#: trace.md §5; `command`: the caller syncs before it hands back an exit status
DURABILITIES = ("command", "event", "none")

#: what needs to know the whole history of the chain
_NEED_HISTORY = frozenset(("log_drop", "chain_seal"))


@value
class Position:
    """Where the chain stands: `seq` of the last line (-1: none), `size` in bytes, `head`.

    `durable_size`: bytes that the disk has acknowledged.
    """

    seq: int
    size: int
    head: str
    durable_size: int


class TraceWriter:
    """Made by `create` or `open`. `blobs` is the session's pack, to `put` contents into."""

    def __init__(
        self,
        *,
        system: System,
        dir_fd: int,
        lock: SessionLock,
        fd: int,
        durable_fd: int,
        chain: Chain,
        durable: Durable,
        durability: str,
        blobs: BlobPack,
        directory_to_sync: bool,
        history_known: bool,
    ) -> None:
        self._system = self.system = system
        self._dir_fd = dir_fd
        self._lock = lock
        self._fd = fd
        self._durable_fd = durable_fd
        self._chain = chain
        self._durable = durable
        self.durability = durability
        self._directory_to_sync = directory_to_sync
        self._history_known = history_known
        self._failed = ""
        self.blobs = blobs

    @classmethod
    def create(
        cls,
        dir_fd: int,
        session_id: str,
        *,
        durability: str,
        digest_key: bytes,
        system: System = REAL,
        lock: SessionLock | None = None,
    ) -> TraceWriter:
        """Start the chain of a new session in its directory, which the caller keeps open.

        The caller has made the directory (0700) and syncs its parent if it wants to. `lock`:
        the session's, if the caller has taken it already; it is the writer's from here on.
        Raises SessionBusy, StateError if there is a trace already, OSError.
        """
        _check_durability(durability)
        if lock is None:
            lock = SessionLock.acquire(system, dir_fd)
        opened: list[int] = []
        blobs: BlobPack | None = None
        try:
            opened.append(create_file(system, dir_fd, TRACE, os.O_APPEND))
            lock.mark()
            opened.append(create_file(system, dir_fd, DURABLE))
            # Also reserves the block, so that no later update can meet a full disk.
            write_all_at(system, opened[1], render_durable(EMPTY_PREFIX), 0)
            blobs = BlobPack.create(dir_fd, digest_key, system=system)
            return cls(
                system=system,
                dir_fd=dir_fd,
                lock=lock,
                fd=opened[0],
                durable_fd=opened[1],
                chain=Chain(session_id),
                durable=EMPTY_PREFIX,
                durability=durability,
                blobs=blobs,
                directory_to_sync=True,
                history_known=True,
            )
        except BaseException:
            if blobs is not None:
                blobs.close()
            for fd in opened:
                system.close(fd)
            lock.drop()
            raise

    @classmethod
    def open(
        cls,
        dir_fd: int,
        *,
        durability: str,
        digest_key: bytes,
        system: System = REAL,
        lock: SessionLock | None = None,
    ) -> tuple[TraceWriter, Recovered | None]:
        """Go on with a session. After an unclean end it is recovered first (recovery.py).

        `lock`: the session's, if the caller has taken it already.

        Raises SessionBusy; TraceCorrupt for damage below the durable position, with nothing
        changed; StateError if it is sealed (E_AFTER_SEAL) or not there; OSError.
        """
        _check_durability(durability)
        from substrate.telemetry.trace.recovery import reopen

        return reopen(
            cls,
            dir_fd,
            durability=durability,
            digest_key=digest_key,
            system=system,
            lock=lock,
        )

    @property
    def failed(self) -> bool:
        """Has it ended by a failure, or was it closed? Then it takes nothing any more."""
        return bool(self._failed)

    @property
    def session_id(self) -> str:
        return self._chain.session_id

    @property
    def open_spans(self) -> tuple[str, ...]:
        """Command spans with a start and no end yet, in the order of their starts."""
        return tuple(self._chain.open_spans)

    @property
    def drops(self) -> int:
        """Events that the session has lost so far: `cumulative` of the last `log_drop`."""
        if not self._history_known:
            self._learn_history()
        return self._chain.drops

    @property
    def position(self) -> Position:
        chain = self._chain
        return Position(
            seq=chain.next_seq - 1,
            size=chain.size,
            head=chain.head,
            durable_size=self._durable.size,
        )

    def append(self, events: Iterable[Event]) -> Position:
        """Write the events as one batch, stamped now; synced too if durability is `event`.

        All or nothing: on any error none of them is in the chain, and the writer goes on
        unless it says that it has ended. Raises UsageError or CanonicalError for an event that
        may not be a line, OSError (ENOSPC, EIO), StateError once the writer has ended.
        """
        wall_us, mono_us = self._system.wall_us(), self._system.mono_us()
        self.append_stamped([(event, wall_us, mono_us, body_bytes(event)) for event in events])
        if self.durability == "event":
            self.sync()
        return self.position

    def append_stamped(self, events: Sequence[Stamped]) -> None:
        """`append` without a sync, of events that were stamped when they came.

        Each is (event, wall clock µs since the epoch, CLOCK_BOOTTIME µs, its `body_bytes`).
        """
        self._need_usable()
        chain = self._chain
        if not self._history_known and any(e[0].event_type in _NEED_HISTORY for e in events):
            self._learn_history()
        before = chain.state()
        try:
            extend = chain.extend
            batch = b"".join(
                [
                    extend(
                        event if body is not None else without_secrets(event),
                        wall_us,
                        mono_us,
                        body,
                    )
                    for event, wall_us, mono_us, body in events
                ]
            )
            self._sync_blobs()
        except BaseException:
            chain.restore(before)
            raise
        self._write(batch, before)

    def _write(self, batch: bytes, before: State) -> None:
        try:
            write_all(self._system, self._fd, batch)
        except BaseException as error:
            # Until the half batch is gone, no line may follow it.
            self._failed = f"a write failed ({error}) and could not be taken back"
            self._chain.restore(before)
            self._system.truncate(self._fd, self._chain.size)
            self._failed = ""
            raise

    def sync(self) -> Position:
        """Make every line durable, then say so in `durable`. With durability `none`: nothing.

        Raises OSError if the disk does not take it. The writer has ended then: the kernel
        forgets pages that it could not write, so a second try would prove nothing.
        """
        self._need_usable()
        if self.durability != "none":
            self.make_durable()
        return self.position

    def make_durable(self) -> None:
        """What `sync` does, whatever the durability: recovery ends with it."""
        self._need_usable()
        chain = self._chain
        if self._durable.size == chain.size and not self._directory_to_sync:
            return
        # Taken before the sync: a line that another thread appends meanwhile is not in it.
        durable = Durable(size=chain.size, head=chain.head)
        try:
            self._system.fdatasync(self._fd)
            if self._directory_to_sync:
                self._system.fsync(self._dir_fd)
                self._directory_to_sync = False
            write_all_at(self._system, self._durable_fd, render_durable(durable), 0)
        except BaseException as error:
            self._failed = f"a sync failed ({error}): what the disk holds is not known"
            raise
        self._durable = durable

    def _sync_blobs(self) -> None:
        if self.blobs.dirty and self.durability != "none":
            self.blobs.sync()

    def close(self, *, clean: bool = True) -> None:
        """Sync (unless durability is `none`), mark the end as clean, let go of the lock.

        With `clean=False`, or after a failure, the mark stays and the next opening recovers.
        Raises OSError or StateError if the last sync fails; it is closed all the same.
        Closing twice is harmless.
        """
        if self._fd < 0:
            return
        try:
            if clean and not self._failed and self._lock.held:
                try:
                    self._sync_blobs()
                finally:
                    self.sync()  # the lines that are there name none of the lost blobs
                self._lock.release(clean=True)
        finally:
            self._drop()

    def _drop(self) -> None:
        self.blobs.close()
        fds = (self._fd, self._durable_fd)
        self._fd = self._durable_fd = -1
        for fd in fds:
            if fd >= 0:
                self._system.close(fd)
        self._lock.drop()
        self._failed = self._failed or "the writer is closed"

    def _need_usable(self) -> None:
        if self._failed:
            raise StateError(
                f"the trace writer has ended: {self._failed}",
                hint="open the session again: recovery keeps every acknowledged event",
            )
        if not self._lock.held:
            raise RuntimeError("a forked child has no part in its parent's trace writer")

    def _learn_history(self) -> None:
        """Read the chain from its start: after a clean end only the last line was read."""
        from substrate.telemetry.trace.recovery import read_history

        self._chain = read_history(self._system, self._fd, self._chain)
        self._history_known = True


def _check_durability(durability: str) -> None:
    if durability not in DURABILITIES:
        raise UsageError(f"durability is {durability!r}, expected {', '.join(DURABILITIES)}")
