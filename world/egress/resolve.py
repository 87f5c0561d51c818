"""Names to addresses by the host's getaddrinfo(3), which blocks: in a few threads.

What it is: a queue, at most `threads` lookups at work, answers kept for a short time, one lookup
for all who ask for the same name at once. What it is not: it judges no address.

A call in libc cannot be cancelled. One that takes longer than `limit_s` is written off: who
asked gets an error, its thread is replaced, and ends whenever libc returns. At most `stuck`
threads may be written off at a time; beyond that nothing new is begun, and requests fail at
once, with a text that says so.

Invariants: callbacks come from the loop, once, never from within `resolve`; all state belongs
to the loop's thread but for what `_lock` guards (a worker's job, who is idle, what is finished,
the eventfd). Nothing is kept longer or in greater number than the constants say.

Sources: getaddrinfo(3), gai_strerror(3), eventfd(2), RFC 6724, RFC 4291 §2.5.5.2.
"""

from __future__ import annotations

import _socket
import _thread
import os

from substrate.values import value
from substrate.world.egress import loop as at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from substrate.world.egress.loop import Loop, Timer

    Lookup = Callable[[bytes], "list[Any]"]

KEEP_S: Final = 30.0
KEEP_ERROR_S: Final = 2.0
_MOST_KEPT: Final = 1024
_MOST_ADDRESSES: Final = 64
_IDLE_S: Final = 10.0
_MAPPED: Final = b"\0" * 10 + b"\xff\xff"


@value
class Resolved:
    """`addresses` of 4 or 16 bytes in the order of getaddrinfo, or `error`: why there is none."""

    name: str
    addresses: tuple[bytes, ...] = ()
    error: str = ""


class _Worker:
    """A thread; `job` is the name it is to look up."""

    __slots__ = ("job", "wake")

    def __init__(self, job: _Job) -> None:
        self.job: _Job | None = job
        self.wake = _thread.allocate_lock()
        self.wake.acquire()


class _Job:
    """A lookup and who waits for it."""

    __slots__ = ("asked", "found", "name", "timer", "written_off")

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[Callable[[Resolved], None]] = []
        self.found: Resolved | None = None
        self.timer: Timer | None = None
        self.written_off = False


def _getaddrinfo(name: bytes) -> list[Any]:
    return _socket.getaddrinfo(name, None, _socket.AF_UNSPEC, _socket.SOCK_STREAM)


class Resolver:
    """See the module. `stuck_now` and `stuck_ever` count the lookups that were written off."""

    def __init__(
        self,
        loop: Loop,
        *,
        threads: int = 4,
        stuck: int = 8,
        queue: int = 256,
        limit_s: float = 10.0,
        idle_s: float = _IDLE_S,
        lookup: Lookup = _getaddrinfo,
    ) -> None:
        self._loop = loop
        self._threads, self._stuck, self._queue_most = threads, stuck, queue
        self._limit_s, self._idle_s = limit_s, idle_s
        self._lookup = lookup
        self._jobs: dict[str, _Job] = {}  # queued or at work
        self._queue: list[_Job] = []
        self._kept: dict[str, tuple[float, Resolved]] = {}
        self._at_work = 0
        self.stuck_now = 0
        self.stuck_ever = 0
        self._lock = _thread.allocate_lock()
        self._idle: list[_Worker] = []
        self._finished: list[_Job] = []
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        loop.register(self._event, at.IN, self._collect)

    def resolve(self, name: str, done: Callable[[Resolved], None]) -> None:
        """`done(resolved)` in one of the next rounds. Bounded: by `limit_s` in the queue and
        as much at work."""
        known = self._known(name)
        if known is not None:
            self._loop.soon(lambda: done(known))
            return
        job = self._jobs.get(name)
        if job is not None:
            job.asked.append(done)
            return
        refusal = self._refusal(name)
        if refusal:
            failed = Resolved(name=name, error=refusal)
            self._loop.soon(lambda: done(failed))
            return
        job = self._jobs[name] = _Job(name)
        job.asked.append(done)
        self._queue.append(job)
        job.timer = self._loop.after(self._limit_s, lambda: self._expired(job))
        self._begin()

    def close(self) -> None:
        """Forgets everything; nobody is called any more. Threads end when libc lets them."""
        for job in self._jobs.values():
            if job.timer is not None:
                job.timer.cancel()
        self._jobs.clear()
        self._queue.clear()
        self._kept.clear()
        self._loop.unregister(self._event)
        with self._lock:
            os.close(self._event)
            self._event = -1
            for worker in self._idle:
                worker.wake.release()  # without a job: it ends
            self._idle.clear()
            self._finished.clear()

    def _known(self, name: str) -> Resolved | None:
        kept = self._kept.get(name)
        if kept is None:
            return None
        if kept[0] <= self._loop.now:
            del self._kept[name]
            return None
        return kept[1]

    def _refusal(self, name: str) -> str:
        """Why nothing is begun for a name; "" where it may be."""
        if not name or "\0" in name or not name.isascii():
            return "not a name that can be looked up"
        if self.stuck_now >= self._stuck:
            return f"{self.stuck_now} lookups hang in the host's resolver; no more are begun"
        if len(self._queue) >= self._queue_most:
            return f"{len(self._queue)} lookups wait already"
        return ""

    def _begin(self) -> None:
        """Gives what is queued to threads, as many as may work."""
        while self._queue and self._at_work < self._threads and self.stuck_now < self._stuck:
            job = self._queue.pop(0)
            if job.timer is not None:
                job.timer.cancel()
            job.timer = self._loop.after(self._limit_s, lambda job=job: self._expired(job))  # type: ignore[misc]
            try:
                self._hand(job)
            except RuntimeError as error:  # no thread can be had
                self._answer(job, Resolved(name=job.name, error=f"no thread: {error}"))
                continue
            self._at_work += 1

    def _hand(self, job: _Job) -> None:
        with self._lock:
            if self._idle:
                worker = self._idle.pop()
                worker.job = job
                worker.wake.release()
                return
        _thread.start_new_thread(self._work, (_Worker(job),))

    def _work(self, worker: _Worker) -> None:
        """The thread."""
        while worker.job is not None:
            job, worker.job = worker.job, None
            found = _look_up(self._lookup, job.name)
            with self._lock:
                if self._event < 0:
                    return
                job.found = found
                self._finished.append(job)
                os.eventfd_write(self._event, 1)
                if job.written_off:
                    return  # it has been replaced
                self._idle.append(worker)
            if not worker.wake.acquire(True, self._idle_s):
                with self._lock:
                    if worker in self._idle:
                        self._idle.remove(worker)
                        return
                worker.wake.acquire()  # a job was handed over in this moment: it is free

    def _collect(self, _: int) -> None:
        """Takes what threads have finished."""
        with self._lock:
            os.eventfd_read(self._event)
            finished, self._finished = self._finished, []
        for job in finished:
            if job.written_off:
                self.stuck_now -= 1
            else:
                self._at_work -= 1
                assert job.found is not None
                self._answer(job, job.found)
        self._begin()

    def _expired(self, job: _Job) -> None:
        """A job has waited or worked for too long."""
        if job in self._queue:
            self._queue.remove(job)
            text = f"the host's resolver was busy for {self._limit_s:g} s"
        else:
            with self._lock:
                if job.found is not None:
                    return  # `_collect` is about to answer
                job.written_off = True
            self._at_work -= 1
            self.stuck_now += 1
            self.stuck_ever += 1
            text = f"the host's resolver gave no answer within {self._limit_s:g} s"
        self._answer(job, Resolved(name=job.name, error=text))
        if self.stuck_now >= self._stuck:
            for waiting in self._queue[:]:
                self._queue.remove(waiting)
                self._answer(waiting, Resolved(name=waiting.name, error=self._refusal("a")))
        self._begin()

    def _answer(self, job: _Job, found: Resolved) -> None:
        if job.timer is not None:
            job.timer.cancel()
        if self._jobs.get(job.name) is not job:
            return  # closed
        del self._jobs[job.name]
        if len(self._kept) >= _MOST_KEPT:
            del self._kept[next(iter(self._kept))]  # the oldest
        keep_s = KEEP_ERROR_S if found.error else KEEP_S
        self._kept[job.name] = (self._loop.now + keep_s, found)
        for done in job.asked:
            done(found)


def _look_up(lookup: Lookup, name: str) -> Resolved:
    """Never raises, for it runs at the top of a thread; `error` is for people."""
    try:
        # bytes: for text, Python would load its IDNA codec
        addresses = tuple(dict.fromkeys(_addresses(lookup(name.encode("ascii")))))
    except _socket.gaierror as error:
        return Resolved(name=name, error=error.strerror or "the host's resolver failed")
    except (OSError, ValueError, MemoryError) as error:
        return Resolved(name=name, error=f"the host's resolver failed: {error}")
    if not addresses:
        return Resolved(name=name, error="the host's resolver knows no address that can be used")
    return Resolved(name=name, addresses=addresses[:_MOST_ADDRESSES])


def _addresses(infos: list[Any]) -> list[bytes]:
    """The addresses as bytes. One with a scope (link-local) is left out: which link a name
    means nobody can check."""
    found = []
    for family, _, _, _, place in infos:
        if family == _socket.AF_INET:
            found.append(_socket.inet_pton(family, place[0]))
        elif family == _socket.AF_INET6 and not place[3] and "%" not in place[0]:
            raw = _socket.inet_pton(family, place[0])
            found.append(raw[12:] if raw.startswith(_MAPPED) else raw)
    return found
