"""The lock of the one writer, which is also the mark of an unclean end.

A held `flock` says that a writer lives; a free lock with text in it says that one died
without closing (docs/adr/0001). The text is left as it was until `mark` is called, so
that a death during recovery keeps the boot id of the first one. It is not a lock between
threads: one writer is one object.

flock belongs to the open file description, so a forked child that kept the descriptor
would hold the session after a `kill -9` of the writer, and a LOCK_UN by it would take
the lock from the parent. The descriptor is close-on-exec, and every lock that is held
is closed (never unlocked) in a child of `os.fork`. Processes that are forked below
Python must be forked before the lock is taken (trace.md §1). trace.md §1, §5.
"""

from __future__ import annotations

import os
import time

from substrate.errors import SessionBusy, StateError
from substrate.telemetry.trace.files import LOCK, open_file, read_exactly, write_all_at
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.telemetry.trace.system import System

_MAX_TEXT = 256
_MAX_ATTEMPTS = 16
_PROBE_ATTEMPTS = 3
_PROBE_PAUSE_S = 0.002
_held: set[SessionLock] = set()


@value
class Owner:
    """Who writes, or wrote: `start_ticks` tells a reused pid from the same process."""

    pid: int
    start_ticks: int
    boot_id: str


def parse_owner(text: bytes) -> Owner | None:
    """`"<pid> <start ticks> <boot id>\\n"`, None if the text is anything else."""
    words = text.decode("latin-1").split()
    if len(words) != 3 or not (words[0].isdigit() and words[1].isdigit()):
        return None
    return Owner(pid=int(words[0]), start_ticks=int(words[1]), boot_id=words[2])


class SessionLock:
    """A held lock. `left_behind` is the text of a writer that did not close (b"" if none)."""

    def __init__(self, system: System, fd: int, left_behind: bytes) -> None:
        self._system = system
        self._fd = fd
        self.left_behind = left_behind
        _held.add(self)

    @classmethod
    def acquire(cls, system: System, dir_fd: int) -> SessionLock:
        """Take the lock or raise SessionBusy, which names the holder, within 10 ms."""
        for _attempt in range(_MAX_ATTEMPTS):
            fd = open_file(system, dir_fd, LOCK, os.O_RDWR | os.O_CREAT)
            try:
                free = _try_for_a_moment(system, fd)
                text = read_exactly(system, fd, _MAX_TEXT, 0)
                if not free:
                    raise _busy(text)
                linked = _is_linked(fd, dir_fd)
            except BaseException:
                system.close(fd)
                raise
            if linked:
                return cls(system, fd, text)
            system.close(fd)  # someone put another file in its place: that one counts
        raise StateError("the lock of the session is replaced again and again")

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def mark(self) -> None:
        """Write who holds it: from now on, a free lock with this text is an unclean end."""
        text = b"%d %d %s\n" % (
            self._system.pid(),
            self._system.start_ticks(),
            self._system.boot_id().encode("ascii"),
        )
        write_all_at(self._system, self._fd, text, 0)
        if len(text) < len(self.left_behind):
            self._system.truncate(self._fd, len(text))

    def release(self, *, clean: bool) -> None:
        """Let go; `clean` empties the file first. Nothing happens if it is not held."""
        if not self.held:
            return
        try:
            if clean:
                self._system.truncate(self._fd, 0)
        finally:
            self.drop()

    def drop(self) -> None:
        """Close the descriptor and nothing else (in a forked child the parent keeps it)."""
        _held.discard(self)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._system.close(fd)


def _try_for_a_moment(system: System, fd: int) -> bool:
    """A verifier asks whether a writer lives by trying a shared lock: outlast that instant."""
    for _attempt in range(_PROBE_ATTEMPTS):
        if system.try_lock(fd):
            return True
        time.sleep(_PROBE_PAUSE_S)
    return system.try_lock(fd)


def _is_linked(fd: int, dir_fd: int) -> bool:
    try:
        named = os.stat(LOCK, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), named)


def _busy(text: bytes) -> SessionBusy:
    owner = parse_owner(text)
    if owner is None:
        return SessionBusy(
            "another supervisor holds the session, it has not written who it is yet",
            hint="try again; `fuser` on the session's lock file names the process",
        )
    return SessionBusy(
        f"another supervisor holds the session: pid {owner.pid}",
        hint=f"see it with `ps -o pid,lstart,args -p {owner.pid}`; end it or wait for it. If no "
        "such process is in sight, it runs in another pid namespace, or a child of it kept "
        "the lock: `fuser` on the session's lock file names the process",
    )


def _drop_all_in_child() -> None:
    for lock in tuple(_held):
        lock.drop()


os.register_at_fork(after_in_child=_drop_all_in_child)
