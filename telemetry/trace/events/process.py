"""Processes and their system calls as capture saw them (trace.md §4; capture.md §4).

`proc` is a number unique in the session, because pids are used again. Batches are columns
and rows, so that one hash covers many records; they may hold at most MAX_ROWS rows and
MAX_BATCH_BYTES bytes a line.
"""

from __future__ import annotations

from .body import Body, body
from .command import Rusage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .body import Extra, Text

MAX_ROWS = 256
MAX_BATCH_BYTES = 512 * 1024

#: columns of a batch, in this order
COLUMNS = ("mono_us", "proc", "tid", "call", "path", "path2", "flags", "result")
#: further columns of collapsed file rows: last time and count
COLLAPSED_COLUMNS = (*COLUMNS, "last_us", "count")


@body
class Credentials(Body):
    """Effective and saved ids at exec, and whether no_new_privs took a set-id bit away."""

    uid: int
    gid: int
    euid: int
    egid: int
    setid_lost: bool | None = None
    extra: Extra = ()


@body
class InheritedFd(Body):
    """What a descriptor is when the program starts. `kind`: file, pipe, socket, tty, other.

    A file has path and mode (`r`, `w`, `rw`, `a`), a pipe or socket its inode.
    """

    fd: int
    kind: str
    path: Text | None = None
    mode: str | None = None
    inode: int | None = None
    extra: Extra = ()


@body
class ProcessFork(Body):
    event_type = "process_fork"
    proc: int
    parent: int
    pid: int
    host_pid: int
    extra: Extra = ()


@body
class ProcessStart(Body):
    """A successful exec. `exe_digest`: plain SHA-256 for executables (trace.md §6)."""

    event_type = "process_start"
    proc: int
    parent: int | None
    pid: int
    host_pid: int
    exe: Text
    exe_digest: str | None
    argv: tuple[Text, ...]
    cwd: Text
    interpreter: Text | None
    credentials: Credentials | None
    fds: tuple[InheritedFd, ...]
    start_ticks: int | None = None
    extra: Extra = ()


@body
class ProcessExit(Body):
    """`exit` or `signal`; neither if the end was not seen."""

    event_type = "process_exit"
    proc: int
    rusage: Rusage | None
    exit: int | None = None
    signal: int | None = None
    extra: Extra = ()


@body
class FileBatch(Body):
    """Rows in file order; a row has one value per column, null where there is none."""

    event_type = "file_batch"
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    extra: Extra = ()


@body
class SyscallBatch(Body):
    """As FileBatch, for level `all`: every call."""

    event_type = "syscall_batch"
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    extra: Extra = ()
