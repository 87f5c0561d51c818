"""Many producers, one writer: a bounded ring, batches, and acknowledgements that hold.

Theory of operation. `submit` makes the bytes of an event's body, stamps it and puts it into
the ring. Who has the turn takes all that is there as a batch: one write, one sync, and only
then are the waiting producers released, so a sync is shared by all who came during the one
before. The turn is taken by a producer that waits and finds nobody at work (a leader: it saves
two switches between threads), for one batch; else by the writer's thread. Whatever is out of
the ordinary (a full disk, an event that is no line) a leader leaves to the thread. An event that cannot be
a line fails alone, not its batch. A ring that is full, or a disk that is, meets the overflow
policy: `block` (the producer waits), `drop` (counted, `log_drop` tells), `halt` (the session
is to be stopped). Losses are counted outside the ring (`losses.py`); one place is kept free
for a `log_drop`, one for the `session_end`.

What it is not: it does not know sockets or processes. It is not on the path of `-c`, which
uses `TraceWriter` itself.

Invariant: an event that was acknowledged is in the chain, and on the disk as far as the
durability promises (trace.md §5); events stand in the order in which `submit` took them.
trace.md §4 (overflow), §5 (group commit).
"""

from __future__ import annotations

import errno
import os
import threading
import time

from substrate.errors import StateError, SubstrateError, UsageError
from substrate.telemetry.trace import chain
from substrate.telemetry.trace.body_bytes import body_bytes
from substrate.telemetry.trace.entries import lose, stamped, weigh
from substrate.telemetry.trace.gathering import Gathering
from substrate.telemetry.trace.losses import BUFFER_FULL, DISK_FULL, Losses
from substrate.telemetry.trace.rfc8785 import CanonicalError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from substrate.telemetry.trace.entries import Entry
    from substrate.telemetry.trace.envelope import Event
    from substrate.telemetry.trace.writer import Position, TraceWriter


OVERFLOWS = ("block", "drop", "halt")

_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
#: places of the ring that ordinary events cannot take: a log_drop and the session_end
_RESERVED = 2
_MAX_BATCH_EVENTS = 4096
_RETRY_S = 0.05
_CARRIED_RETRY_S = 0.5
#: their acknowledgement promises durability under `command`, and so for all before them
_SYNCED_TYPES = frozenset(("command_end", "session_end", "chain_seal"))


class EventDropped(StateError):
    """The ring or the disk was full, and the overflow policy is `drop`: it is not in the chain."""


class GroupWriter:
    """The ring before a TraceWriter, which it owns from now on. Thread-safe.

    Sizes: `ring_events` places, `ring_bytes` of bodies. `overflow`: one of OVERFLOWS.
    `blobs` is the session's pack: put a content before the event that names it is submitted.
    """

    def __init__(
        self,
        writer: TraceWriter,
        *,
        overflow: str = "block",
        ring_events: int = 65_536,
        ring_bytes: int = 64 << 20,
    ) -> None:
        if overflow not in OVERFLOWS:
            raise UsageError(f"overflow is {overflow!r}, expected {', '.join(OVERFLOWS)}")
        if ring_events <= _RESERVED:
            raise UsageError(f"a ring of {ring_events} places has none for events")
        chain.accelerate()
        self._writer = writer
        self._system = writer.system
        self.blobs = writer.blobs
        self._overflow = overflow
        self._ring_events, self._ring_bytes = ring_events, ring_bytes
        #: events that were lost since the last entry of the ring
        self._losses = Losses()
        #: of the writer's thread: lost with a batch that the full disk did not take
        self._carried = Losses()
        self._drops = writer.drops
        self._pid = os.getpid()
        self._main = threading.main_thread().ident
        self._mutex = threading.Lock()
        #: the ring; entries stay in it until they are written or lost
        self._ring: list[Entry] = []
        self.weight = 0
        self._in_flight = 0
        self._tickets = 0
        self._acknowledged = 0
        self._errors: dict[int, Exception] = {}
        self._waiting: list[tuple[int, threading.Lock]] = []
        self._blocked: list[threading.Lock] = []
        self._wake = threading.Lock()
        self._wake.acquire()
        self._asleep = False
        self._sync_wanted = 0
        #: does somebody have the turn: the only one to touch the writer, and `_carried`
        self._writing = False
        #: a leader has left its turn, and its batch in the ring, to the thread
        self._left_over = False
        self._gathering = Gathering(self._mutex)
        self._closing = False
        self._ended: Exception | None = None
        self._disk_full = False
        self._thread = threading.Thread(target=self._run, name="trace-writer", daemon=True)
        self._thread.start()

    # --- producers --------------------------------------------------------------------------

    @property
    def disk_is_full(self) -> bool:
        """Is the writer waiting for space? Then a command's result says so."""
        return self._disk_full

    @property
    def drops(self) -> int:
        """Events that the session has lost so far."""
        return self._drops

    @property
    def position(self) -> Position:
        return self._writer.position

    def submit(self, event: Event, *, timeout_s: float = 60.0) -> int:
        """Take an event; its ticket is for `wait`. It is in order, but not yet in the chain.

        Raises EventDropped, StateError (ended, halted, or no space within `timeout_s` under
        `block`), UsageError for a body that is not JSON.
        """
        ticket = self._submit(event, timeout_s)
        if self._asleep:
            with self._mutex:
                self._rouse()
        return ticket

    def _submit(self, event: Event, timeout_s: float) -> int:
        """`submit`, for one who sees to it that somebody takes the turn."""
        body = body_bytes(event)
        weight = weigh(event, body)
        with self._mutex:
            if self._full(weight) and event.event_type != "session_end":
                self._overflowed(event, weight, timeout_s)
            return self._put(event, weight, body)

    def submit_all(self, events: Sequence[Event], *, timeout_s: float = 60.0) -> int:
        """`submit` for many in a row; the ticket of the last one covers them all.

        Under `drop`, those without a place are dropped and the rest is taken: no EventDropped.
        """
        bodies = list(map(body_bytes, events))
        weights = list(map(weigh, events, bodies))
        with self._mutex:
            ticket = self._tickets
            for event, weight, body in zip(events, weights, bodies, strict=True):
                if self._full(weight) and event.event_type != "session_end":
                    try:
                        self._overflowed(event, weight, timeout_s)
                    except EventDropped:
                        continue
                ticket = self._put(event, weight, body)
            self._rouse()
            return ticket

    def append(self, event: Event, *, timeout_s: float = 60.0) -> None:
        """`submit` and `wait`."""
        self.wait(self._submit(event, timeout_s), timeout_s=timeout_s)

    def wait(self, ticket: int, *, timeout_s: float = 60.0) -> None:
        """Until the event of `ticket` is acknowledged: durable, as far as was promised.

        One that writes for all waits as long as the disk does, whatever `timeout_s` says.
        Raises what befell it: UsageError or CanonicalError for an event that may not be a line,
        EventDropped, StateError if the writer has ended or `timeout_s` is over.
        """
        deadline = time.monotonic() + timeout_s
        while self._acknowledged < ticket or self._errors:
            with self._mutex:
                if self._acknowledged >= ticket:
                    self._raise_error_of(ticket)
                    return
                self._need_alive()
                leads = self._may_lead()
                if leads:
                    self._writing = True
                else:
                    waiter = (ticket, threading.Lock())
                    waiter[1].acquire()
                    self._waiting.append(waiter)
                    if not self._writing:
                        self._rouse()
            if leads:
                self._lead()
            elif not waiter[1].acquire(timeout=max(0.0, deadline - time.monotonic())):
                with self._mutex:
                    if waiter in self._waiting:
                        self._waiting.remove(waiter)
                        raise StateError(
                            f"the trace writer has not acknowledged an event in {timeout_s} s"
                        )

    def flush(self, *, timeout_s: float = 60.0) -> None:
        """Until all that was submitted so far is in the chain and, unless `none`, synced."""
        with self._mutex:
            self._need_alive()
            # A ticket of its own: what is under way may have passed the point of its sync.
            ticket = self._sync_wanted = self._tickets = self._tickets + 1
            self._rouse()
        self.wait(ticket, timeout_s=timeout_s)

    def close(self, *, clean: bool = True, timeout_s: float = 60.0) -> None:
        """Write what is in the ring, sync, close the writer. Closing twice is harmless."""
        with self._mutex:
            self._closing = True
            self._rouse()
            self._release(self._blocked)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise StateError(f"the trace writer has not ended in {timeout_s} s")
        self._writer.close(clean=clean and self._ended is None)
        if self._ended is not None:
            raise StateError(f"the trace writer has ended: {self._ended}") from self._ended

    # --- under the mutex --------------------------------------------------------------------

    def _put(self, event: Event, weight: int, body: bytes | None) -> int:
        if self._ended is not None or self._closing or self._pid != os.getpid():
            self._need_alive()
            raise StateError("the trace writer is closed")
        wall_us, mono_us = self._system.wall_us(), self._system.mono_us()
        if self._losses:  # they come before the first event that was taken after them
            self._put_losses(wall_us, mono_us)
        self._tickets = ticket = self._tickets + 1
        self._ring.append((event, wall_us, mono_us, weight, ticket, body))
        self.weight += weight
        self._gathering.count(len(self._ring))
        return ticket

    def _put_losses(self, wall_us: int, mono_us: int) -> None:
        losses, self._losses = self._losses, Losses()
        self._tickets += 1
        self._ring.append((losses, wall_us, mono_us, 0, self._tickets, None))

    def _full(self, weight: int) -> bool:
        return len(self._ring) + self._in_flight >= self._ring_events - _RESERVED or (
            self.weight + weight > self._ring_bytes and self.weight > 0
        )

    def _overflowed(self, event: Event, weight: int, timeout_s: float) -> None:
        if self._overflow == "drop":
            reason = DISK_FULL if self._disk_full else BUFFER_FULL
            self._losses.add(reason, event, weight)
            self._drops += 1
            raise EventDropped(f"the ring is full: a {event.event_type} was dropped", code=reason)
        if self._overflow == "halt":
            error = StateError("the ring is full and the overflow policy is `halt`", code="HALTED")
            self._ended = self._ended or error
            self._rouse()
            raise error
        deadline = time.monotonic() + timeout_s
        while self._full(weight):
            self._need_alive()
            if self._closing:
                raise StateError("the trace writer is closed")
            gate = threading.Lock()
            gate.acquire()
            self._blocked.append(gate)
            self._rouse()
            self._mutex.release()
            try:
                in_time = gate.acquire(timeout=max(0.0, deadline - time.monotonic()))
            finally:
                self._mutex.acquire()
            if not in_time and self._full(weight):
                raise StateError(
                    f"no space in the ring for {timeout_s} s"
                    + (": the disk is full" if self._disk_full else ""),
                    code=DISK_FULL if self._disk_full else BUFFER_FULL,
                )

    def _need_alive(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError("a forked child has no part in its parent's trace writer")
        if self._ended is not None:
            raise StateError(
                f"the trace writer has ended: {self._ended}",
                code=self._ended.code if isinstance(self._ended, SubstrateError) else "",
            ) from self._ended

    def _raise_error_of(self, ticket: int) -> None:
        error = self._errors.pop(ticket, None)
        if error is not None:
            raise error

    def _rouse(self) -> None:
        if self._asleep:
            self._asleep = False
            self._wake.release()

    def _release(self, gates: list[threading.Lock]) -> None:
        while gates:
            gates.pop().release()

    # --- a leader ---------------------------------------------------------------------------

    def _lead(self) -> None:
        """Write one batch in the thread of a producer, which has taken the turn."""
        batch: list[Entry] = []
        try:
            self._gather()
            with self._mutex:
                batch, sync_until = self._take_batch()
            if batch:
                self._writer.append_stamped(
                    stamped(batch, self._carried, self._writer.drops, self._system)
                )
            if self._must_sync(batch, sync_until):
                self._writer.sync()
            self._acknowledge(batch, sync_until, {}, led=True)
        except BaseException as error:
            self._leave_to_the_thread(batch, error)
            if not isinstance(error, Exception):
                raise

    def _leave_to_the_thread(self, batch: list[Entry], error: BaseException) -> None:
        """Nothing of `batch` is in the chain, or, if anything else went wrong, it is the end."""
        with self._mutex:
            if isinstance(error, (UsageError, CanonicalError)) or (
                isinstance(error, OSError) and error.errno in _FULL and not self._writer.failed
            ):
                self._ring[:0] = batch
                self._in_flight = 0
                self._left_over = True
            elif self._ended is None:
                self._ended = error if isinstance(error, Exception) else StateError(repr(error))
            self._writing = self._left_over
            self._rouse()

    def _may_lead(self) -> bool:
        # Not the main thread: a signal's handler may raise there at any place.
        busy = self._writing or self._closing or self._carried
        return not busy and threading.get_ident() != self._main

    def _gather(self) -> None:
        if self._writer.durability == "event":
            self._gathering.wait(lambda: self._ring)

    # --- the writer's thread ----------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._round():
                pass
        except Exception as error:  # noqa: BLE001 - the edge of a thread: told to every producer
            with self._mutex:
                self._ended = self._ended or error
        finally:
            with self._mutex:
                self._closing = True
                for _, gate in self._waiting:
                    gate.release()
                self._waiting.clear()
                self._release(self._blocked)

    def _round(self) -> bool:
        """Write one batch; False when there is no more to do."""
        with self._mutex:
            self._writing, self._left_over = self._writing and not self._left_over, False
            todo = self._todo()
            ending = self._closing or self._ended is not None
            last_try = ending and not todo
            if not self._writing and (self._ended is not None or (last_try and not self._carried)):
                return False
            # Who has the turn rouses the thread at its end, if there is anything left.
            sleeping = self._asleep = self._writing or not (todo or last_try)
            self._writing = self._writing or not sleeping
        if sleeping:
            self._sleep()
            with self._mutex:
                if self._writing or not self._carried:
                    return True
                self._writing = True
        self._gather()
        with self._mutex:
            batch, sync_until = self._take_batch()
        errors = self._write(batch)
        if self._must_sync(batch, sync_until):
            self._writer.sync()
        self._acknowledge(batch, sync_until, errors, led=False)
        if last_try and self._carried:
            raise StateError(f"the disk is full: {self._carried.count} lost events are not told of")
        return True

    def _sleep(self) -> None:
        """Until there is something to do; while losses wait to be told, not for long."""
        if self._wake.acquire(timeout=_CARRIED_RETRY_S if self._carried else -1):
            return
        with self._mutex:
            if self._asleep:
                self._asleep = False
            else:
                self._wake.acquire()  # roused in this very moment

    def _take_batch(self) -> tuple[list[Entry], int]:
        """What to write now, and the ticket of the flush that it reaches (0 if none)."""
        if len(self._ring) > _MAX_BATCH_EVENTS:
            batch = self._ring[:_MAX_BATCH_EVENTS]
            del self._ring[:_MAX_BATCH_EVENTS]
            reached = 0
        else:
            if self._losses:  # they came after all that is in the ring
                self._put_losses(self._system.wall_us(), self._system.mono_us())
            batch, self._ring = self._ring, []
            reached = self._sync_wanted if self._sync_wanted > self._acknowledged else 0
        self._in_flight = len(batch)
        return batch, reached

    def _todo(self) -> bool:
        return bool(self._ring or self._losses or self._sync_wanted > self._acknowledged)

    def _must_sync(self, batch: list[Entry], sync_until: int) -> bool:
        if self._writer.durability == "command":
            return sync_until > 0 or any(
                getattr(entry[0], "event_type", "") in _SYNCED_TYPES for entry in batch
            )
        return self._writer.durability == "event"

    def _write(self, batch: list[Entry]) -> dict[int, Exception]:
        """Into the file; what befell events that are not in it, by ticket."""
        errors: dict[int, Exception] = {}
        if not batch and not self._carried:
            return errors
        try:
            self._write_when_there_is_space(batch, errors)
        except (UsageError, CanonicalError):
            for entry in batch:  # one of them may not be a line: find out which
                try:
                    self._write_when_there_is_space([entry], errors)
                except (UsageError, CanonicalError) as error:
                    errors[entry[4]] = error
        return errors

    def _write_when_there_is_space(self, batch: list[Entry], errors: dict[int, Exception]) -> None:
        while True:
            try:
                self._writer.append_stamped(
                    stamped(batch, self._carried, self._writer.drops, self._system)
                )
            except OSError as error:
                if error.errno not in _FULL or self._overflow == "halt":
                    raise
                self._disk_full = True
                if self._overflow == "drop":
                    self._lose(batch, errors)
                    return
                if self._closing:
                    raise
                time.sleep(_RETRY_S)
            else:
                self._disk_full = False
                self._carried = Losses()
                return

    def _lose(self, batch: list[Entry], errors: dict[int, Exception]) -> None:
        for ticket in lose(batch, self._carried):
            errors[ticket] = EventDropped("the disk is full", code=DISK_FULL)
        with self._mutex:
            self._drops += len(errors)

    def _acknowledge(
        self, batch: list[Entry], sync_until: int, errors: dict[int, Exception], *, led: bool
    ) -> None:
        last = max(sync_until, batch[-1][4] if batch else 0)
        weight = sum(entry[3] for entry in batch)
        with self._mutex:
            self._in_flight = 0
            self.weight -= weight
            self._acknowledged = max(last, self._acknowledged)
            self._errors.update(errors)
            while len(self._errors) > self._ring_events:  # of producers that never asked
                del self._errors[next(iter(self._errors))]
            released = [waiter for waiter in self._waiting if waiter[0] <= last]
            self._waiting = [waiter for waiter in self._waiting if waiter[0] > last]
            self._gathering.expected = len(released) + led
            self._release(self._blocked)
            self._writing = False
            if self._todo() or self._closing or self._ended is not None:
                self._rouse()
        for _, gate in released:
            gate.release()
