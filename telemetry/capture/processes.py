"""The processes of a command: who made whom, and where each stands. Logic only.

A *process* is a thread group, with a number of its own in the session (`proc`): the kernel uses
pids again. What processes can share is a cell: the working directory and root (CLONE_FS); a thread that
was made without sharing it has one of its own.
Records come in the order of the ring, in which a task is told before what it does; a task that was
never told (a loss, a backend that cannot order two processors) becomes a process of its own, whose
parent is not known, so that nothing it did is lost.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CLONE_FS = 0x200
CLONE_FILES = 0x400
_MOST_ENDED = 4096


class Place:
    """Where processes that share it stand; `cwd` None: not known."""

    __slots__ = ("cwd", "root")

    def __init__(self, cwd: bytes | None, root: bytes = b"") -> None:
        self.cwd, self.root = cwd, root


class Process:
    """One thread group. `span`, `program`: of its last exec, or of the process it was forked from;
    a program is the last part of its file's name. `born_us`: when it was made (CLOCK_BOOTTIME), 0
    where nobody told."""

    __slots__ = (
        *("born_us", "files", "host_pid", "open_rows", "parent", "pid", "place", "proc", "program"),
        *("span", "started", "tasks", "writes"),
    )

    def __init__(
        self, proc: int, parent: Process | None, host_pid: int, pid: int, place: Place, span: str
    ) -> None:
        self.proc, self.parent, self.host_pid, self.pid = proc, parent, host_pid, pid
        self.place, self.span = place, span
        self.program = b""
        self.born_us = 0
        self.tasks = 1
        self.started = False  # it has exec'd
        #: rows that may still take another call of the same kind (batches.py)
        self.open_rows: dict[object, list[object]] = {}
        self.writes = False  # the direction of these
        #: descriptor -> path, for backends that cannot ask; shared by CLONE_FILES
        self.files: dict[int, bytes] = {}


class Tree:
    """All of them, by task. `number()` gives the next `proc`."""

    def __init__(
        self, root_tid: int, span: str, number: Callable[[], int], cwd: bytes | None = None
    ) -> None:
        self._number = number
        self.root = Process(number(), None, root_tid, 0, Place(cwd), span)
        self.by_tid: dict[int, Process] = {root_tid: self.root}
        #: of threads that do not stand where their process does
        self._own_places: dict[int, Place] = {}
        self.strays = 0  # tasks that nobody told of
        #: processes that have ended, by the pid that they had; the last ones
        self._ended: dict[int, Process] = {}

    def find(self, tid: int) -> Process:
        """The process of a task."""
        found = self.by_tid.get(tid)
        if found is None:
            self.strays += 1
            found = Process(self._number(), None, tid, 0, Place(None), self.root.span)
            self.by_tid[tid] = found
        return found

    def knows(self, tid: int) -> bool:
        return tid in self.by_tid

    def place_of(self, process: Process, tid: int) -> Place:
        """Where a task of a process stands."""
        return self._own_places.get(tid, process.place)

    def renamed(self, old: bytes, new: bytes, *, exchanged: bool) -> None:
        """A directory has another name: who stands below it stands there now."""
        places = {process.place for process in self.by_tid.values()}
        for place in places.union(self._own_places.values()):
            for here, there in ((old, new), (new, old)) if exchanged else ((old, new),):
                if place.cwd is not None and (place.cwd + b"/").startswith(here + b"/"):
                    place.cwd = there + place.cwd[len(here) :]
                    break

    def fork(self, parent: Process, by: int, tid: int, pid: int, flags: int) -> Process:
        """A new process. `by`: the task that made it."""
        place = self.place_of(parent, by)
        if not flags & CLONE_FS:
            place = Place(place.cwd, place.root)
        made = Process(self._number(), parent, tid, pid, place, parent.span)
        made.program = parent.program
        made.files = parent.files if flags & CLONE_FILES else dict(parent.files)
        self.by_tid[tid] = made
        return made

    def thread(self, parent: Process, by: int, tid: int, flags: int) -> None:
        """A new thread. `flags`: of clone(2), 0 where nobody knows them: then it is as most are."""
        parent.tasks += 1
        self.by_tid[tid] = parent
        place = self.place_of(parent, by)
        if flags and not flags & CLONE_FS:
            place = Place(place.cwd, place.root)
        if place is not parent.place:
            self._own_places[tid] = place

    def moved(self, process: Process, old: int, tid: int) -> None:
        """A thread that was no leader has exec'd: it has the leader's number now."""
        self.by_tid.pop(old, None)
        self.by_tid[tid] = process
        process.place = self._own_places.pop(old, process.place)
        self._own_places.pop(tid, None)
        process.tasks = 1

    def ended(self, tid: int) -> Process | None:
        """A task has ended; its process, if that has ended with it."""
        process = self.by_tid.pop(tid, None)
        if process is None:
            return None
        self._own_places.pop(tid, None)
        process.tasks -= 1
        if tid != process.host_pid:
            return None
        self._ended.pop(tid, None)
        self._ended[tid] = process
        if len(self._ended) > _MOST_ENDED:
            del self._ended[next(iter(self._ended))]
        return process

    def had(self, host_pid: int, time_us: int) -> Process | None:
        """Who had a pid at a time, as far as that is told."""
        for found in (self.by_tid.get(host_pid), self._ended.get(host_pid)):
            if found is not None and found.host_pid == host_pid and found.born_us <= time_us:
                return found
        return None
