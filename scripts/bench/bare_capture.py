"""A capture backend by itself: no world, no trace, no supervisor. What the engine alone costs.

What it is: `run`, which does for one command what a supervisor does (filters, hand-over, attach,
go, drain until nothing is left) and counts the records, or `known_calls` of them. What it is
not: it decodes nothing further and writes nothing down; it counts when the clock has stopped, for that
costs Python more than the engine the record. It is written against
telemetry/capture/backend.py; `plug` is the one place that knows where backends and filters
come from. A backend is made for each sample, as for each command.

The command is spawned as a small program that waits (capture_launch.c): it takes no_new_privs,
installs the filters, writes the number of the listener that one of them has, and reads a byte.
Nothing of that may be a call that the filters leave to a tracer, for there is none yet; so the
listener is not sent, but taken by pidfd_getfd(2) (seccomp(2), no_new_privs in prctl(2)). The clock
of `run` begins before that, at the making of the backend.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from capture_workloads import EXEC, OPEN, UNLINK, Known

if TYPE_CHECKING:
    from substrate.telemetry.capture.backend import Backend

NEW_LISTENER = 1 << 3  # SECCOMP_FILTER_FLAG_NEW_LISTENER, as filters.NEW_LISTENER
_NR_PIDFD_GETFD = 438  # everywhere
#: of what the launcher is given
_FIRST_FD = 100
_LOOK_AGAIN_MS = 100
_LIBC = ctypes.CDLL(None, use_errno=True)


class NotHere(Exception):
    """There is no such backend in this version, or not on this host; the text says which."""


class Failed(Exception):
    """The command or its capture did not do what it is timed for."""


@dataclass(frozen=True, slots=True)
class Program:
    """A seccomp program: struct sock_filter[], and the flags that it is installed with."""

    code: bytes
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Plugged:
    """A backend that was made for one command, and the filters that the command installs."""

    backend: Backend
    programs: tuple[Program, ...] = ()


def plug(name: str, level: str) -> Plugged:
    """Makes backend `name` (bpf, hybrid, notify, ptrace, python) at `level` for one command.

    It is timed, and the bench calls it once before that, so that what it imports is there.
    Raises NotHere."""
    from substrate.telemetry.capture import backends, engine, filters
    from substrate.telemetry.capture.backend import CaptureError

    try:
        if name not in backends.NAMES:
            raise NotHere(f"this version has no backend {name}")
        if shutil.which("gcc") is None:
            raise NotHere("no gcc")
        backend = backends.make(name, level)
    except CaptureError as error:
        raise NotHere(str(error)) from error
    installed = engine.programs_of(name, level)
    flags = filters.NEW_LISTENER | filters.WAIT_KILLABLE
    programs = (Program(installed.notify, flags), Program(installed.trace))
    return Plugged(backend, tuple(program for program in programs if program.code))


@dataclass(frozen=True, slots=True)
class Done:
    """What one command gave. `seconds` from the making of the backend until everything was drained."""

    seconds: float
    status: int
    records: int
    size_bytes: int
    lost: int
    data: bytes = b""


def run(
    make: Callable[[], Plugged],
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    keep: bool = False,
) -> Done:
    """Makes a backend, runs `argv` under it, its output to /dev/null, and closes it.

    `keep`: the records are kept; else they are counted and dropped. Raises Failed, OSError,
    and what the backend raises; no process of the tree is left then."""
    pid, command = 0, None
    drained: list[bytes] = []
    start = time.perf_counter()
    plugged = make()
    backend = plugged.backend
    try:
        pid, command = _spawn(plugged.programs, argv, env)
        backend.attach(pid, _take_listener(pid, command))
        command.send(b"g")
        _drain(backend, drained)
        waited = _wait(pid)
        seconds = time.perf_counter() - start
        root, pid = pid, 0
        records, recorded = _count(drained, root)
        lost = sum(backend.lost().values())
    finally:
        if command is not None:
            command.close()
        if pid:
            _kill(pid)
        backend.close()
    # an engine that waits for its tracees in this process has reaped it: its record tells
    status = waited if waited is not None else recorded
    if status is None:
        raise Failed("neither the kernel nor a record tells how the command ended")
    size_bytes = sum(map(len, drained))
    return Done(seconds, status, records, size_bytes, lost, b"".join(drained) if keep else b"")


def _drain(backend: Backend, into: list[bytes]) -> None:
    # as the product does: much is looked at now, little now and then (session/capturing.py)
    urgent, either = select.poll(), select.poll()
    for poll in (urgent, either):
        poll.register(backend.fileno(), select.POLLIN)
    either.register(backend.soft_fileno(), select.POLLIN)
    while True:
        data = backend.drain()
        if not data:
            if backend.finished():
                return
            if not urgent.poll(_LOOK_AGAIN_MS):
                either.poll(_LOOK_AGAIN_MS)
            continue
        into.append(data)


def _count(drained: list[bytes], pid: int) -> tuple[int, int | None]:
    """(number of records, exit status of `pid` if recorded)."""
    from substrate.telemetry.capture.records import EXIT, HEAD

    number, status = 0, None
    for data in drained:
        at = 0
        while at < len(data):
            size, kind, _, _, tid, _, _, result, *_ = HEAD.unpack_from(data, at)
            if kind == EXIT and tid == pid and result >= 0:
                status = os.waitstatus_to_exitcode(result)
            at += size
            number += 1
    return number, status


def _wait(pid: int) -> int | None:
    try:
        _, ended = os.waitpid(pid, 0)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(ended)


def _kill(pid: int) -> None:
    """Ends our own child, unless it was reaped by the backend: then the pid is nobody's."""
    try:
        if os.waitpid(pid, os.WNOHANG)[0] == 0:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    except ChildProcessError:
        return


# --- the command's side


@functools.cache
def _launcher() -> tuple[str, tempfile.TemporaryDirectory[str]]:
    """capture_launch.c, compiled; and where it is, which goes with this process."""
    top = tempfile.TemporaryDirectory(prefix="substrate-bench-launch-")
    program = os.path.join(top.name, "capture_launch")
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "capture_launch.c")
    subprocess.run(("gcc", "-O2", "-static", "-Wall", "-o", program, source), check=True)
    return program, top


def _spawn(
    programs: tuple[Program, ...], argv: Sequence[str], env: Mapping[str, str]
) -> tuple[int, socket.socket]:
    path = shutil.which(argv[0])
    if path is None:
        raise Failed(f"there is no {argv[0]}")
    launcher, _ = _launcher()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.ExitStack() as kept:
        kept.callback(theirs.close)
        words = [launcher, str(_FIRST_FD)]
        actions = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1)]
        actions.append((os.POSIX_SPAWN_DUP2, theirs.fileno(), _FIRST_FD))
        for number, program in enumerate(programs, _FIRST_FD + 1):
            fd = os.memfd_create("filter")
            kept.callback(os.close, fd)
            os.write(fd, program.code)
            actions.append((os.POSIX_SPAWN_DUP2, fd, number))
            words += [str(number), str(program.flags)]
        words += ["--", path, *argv[1:]]
        return os.posix_spawn(launcher, words, dict(env), file_actions=actions), ours


def _take_listener(pid: int, command: socket.socket) -> int | None:
    word = command.recv(16)
    if not word:
        raise Failed("the command did not install its filters")
    (number,) = struct.unpack("=i", word)
    if number < 0:
        return None
    pidfd = os.pidfd_open(pid)
    try:
        fd = int(_LIBC.syscall(_NR_PIDFD_GETFD, pidfd, number, 0))
    finally:
        os.close(pidfd)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return fd


# --- what was recorded

_KINDS = {
    **dict.fromkeys(("open", "openat", "openat2", "creat"), OPEN),
    **dict.fromkeys(("unlink", "unlinkat"), UNLINK),
}


def known_calls(data: bytes) -> Known:
    """The calls of records by (what, last part of the path), as the peers' logs are read."""
    from substrate.telemetry.capture import calls, records

    names = calls.by_number()
    seen: Known = Counter()
    for head, at, end in records.read_records(data):
        _, kind, flags, _, _, nr, _, result, *_ = head
        if kind == records.EXEC:
            what = EXEC
        elif kind == records.CALL and nr in names and names[nr][0] in _KINDS:
            what = _KINDS[names[nr][0]]
            if result < 0 and not flags & records.UNOBSERVED:
                continue
        else:
            continue
        for tag, _, text in records.read_items(data, at, end):
            if tag == records.PATH:
                seen[what, os.fsdecode(text.rpartition(b"/")[2])] += 1
                break
    return seen
