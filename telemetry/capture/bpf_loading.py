"""The maps and programs of one backend, made while whoever wants them goes on.

Most of it is the kernel's work: it looks through each program before it takes it. None of that needs
what comes before a command begins, and the programs do not need one another. So two threads do it:
one makes the ring and loads the largest program, the other one loads the rest; each is about half.
Where there is one processor only, nothing is lost by that.

Invariants:
  - what the kernel does not let us do at all (the first map) is told by the constructor, all else by
    `wait`, and nothing is attached before that has returned;
  - the threads take no signals (one would make the kernel give up a program in the middle), and do
    nothing any more when `wait` or `close` returns;
  - everything is a descriptor of ours, and closed by `close`, whatever has failed.

Sources: bpf(2).
"""

from __future__ import annotations

import _signal
import os
from _thread import allocate_lock, start_new_thread

from substrate.telemetry.capture import bpf_layout
from substrate.telemetry.capture.bpf_system import (
    ARRAY,
    HASH,
    MMAPABLE,
    NO_PREALLOC,
    RINGBUF,
    create_map,
    load_program,
    load_types,
    update_map,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable
    from typing import Final

    from substrate.telemetry.capture.bpf_layout import Limits
    from substrate.telemetry.capture.bpf_program import Programs

#: what takes longest
_LARGEST: Final = "sys_exit"
#: those that write no records of their own, so that they need not wait for the ring
_WITHOUT_RING: Final = ("sys_enter", "sched_process_exec", "ours")


class Loading:
    """See the module. `maps`, `programs`: descriptors by name, all of them once `wait` has returned."""

    def __init__(
        self, limits: Limits, tables: Callable[[], bytes], make: Callable[[], Programs]
    ) -> None:
        """`make` gives what is to be loaded, and is called by a thread. Raises CaptureError."""
        self.maps: dict[str, int] = {}
        self.programs: dict[str, int] = {}
        self._limits, self._make = limits, make
        self._made: Programs | None = None
        self._types = -1
        self._failures: list[BaseException] = []
        self._has_ring, self._has_programs = allocate_lock(), allocate_lock()
        self._running: list[LockType] = []  # of each thread, held while it runs
        for lock in (self._has_ring, self._has_programs):
            lock.acquire()
        try:
            self._make_map("state", ARRAY, bpf_layout.STATE_SIZE, 1, MMAPABLE)
            self._start(self._make_ring_and_largest)
            self._make_maps(tables())
            self._start(self._load_others)
        except BaseException:
            if len(self._running) == 1:  # there is nobody else who would give it programs
                self._has_programs.release()
            self.close()
            raise

    def wait(self) -> None:
        """Until all is there. Raises what a thread has failed with."""
        self._wait_for_threads()
        if self._failures:
            raise self._failures[0]

    def close(self) -> None:
        self._wait_for_threads()
        for fd in (*self.programs.values(), *self.maps.values(), self._types):
            if fd >= 0:
                os.close(fd)
        self.maps, self.programs, self._types = {}, {}, -1

    def _wait_for_threads(self) -> None:
        for running in self._running:
            with running:  # given back at once: whoever is interrupted here may wait again
                pass
        self._running.clear()

    def _make_maps(self, tables: bytes) -> None:
        """All but the ring, which takes four times as long as these together."""
        limits, cpus = self._limits, _count_cpus()
        for name, kind, size, entries, flags in (
            ("tree", HASH, bpf_layout.SLOT_SIZE, limits.tasks, NO_PREALLOC),
            ("long", HASH, bpf_layout.LONG_SIZE, limits.tasks, NO_PREALLOC),
            ("scratch", ARRAY, limits.scratch, cpus, 0),
            ("walk", ARRAY, bpf_layout.WALK_SIZE, cpus, 0),
            ("tables", ARRAY, len(tables), 1, 0),
        ):
            self._make_map(name, kind, size, entries, flags)
        update_map("tables", self.maps["tables"], 0, tables)

    def _make_map(self, name: str, kind: int, size: int, entries: int, flags: int) -> None:
        self.maps[name] = create_map(name, kind, 4, size, entries, flags)

    def _start(self, work: Callable[[], None]) -> None:
        ended = allocate_lock()
        ended.acquire()

        def run() -> None:
            try:
                _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
                work()
            except BaseException as error:  # noqa: BLE001 - a thread's edge: `wait` raises it
                self._failures.append(error)
            finally:
                # whoever waits for what failed finds that it is not there
                ended.release()

        start_new_thread(run, ())
        self._running.append(ended)

    def _make_ring_and_largest(self) -> None:
        try:
            self.maps["ring"] = create_map("ring", RINGBUF, 0, 0, self._limits.ring)
        finally:
            self._has_ring.release()
        with self._has_programs:
            if self._made is not None:
                self._load(self._made, _LARGEST)

    def _load_others(self) -> None:
        try:
            made = self._make()
            self._types = load_types(made.types)
            self._made = made
        finally:
            self._has_programs.release()
        for name in _WITHOUT_RING:
            self._load(made, name)
        with self._has_ring:
            if "ring" not in self.maps:
                return
        for name in made.code:
            if name != _LARGEST and name not in _WITHOUT_RING:
                self._load(made, name)

    def _load(self, made: Programs, name: str) -> None:
        code, functions = made.code[name]
        self.programs[name] = load_program(
            name,
            code,
            functions=functions,
            types=self._types,
            maps=[self.maps.get(one, -1) for one in bpf_layout.MAPS],
        )


def _count_cpus() -> int:
    """One more than the highest number that a CPU can have."""
    fd = os.open("/sys/devices/system/cpu/possible", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(fd, 4096).replace(b",", b"-").split(b"-")[-1]) + 1
    finally:
        os.close(fd)
