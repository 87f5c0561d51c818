"""What killed processes left in a home: sessions that never began, files that never were whole.

Not what is kept for a while and then collected (collect.py), nor an apply that was cut short
(host_change.py). What was done to a stack and not told is told, also of a world that nobody opens
any more. Nothing that is swept was ever part of a state: a session in which no command ran
and that is no fork, one that was on its way out, what was being written beside a file, a layer
or a segment that was being made or removed. Invariants: what somebody works with is left alone
(its session's lock is held); a record of a command is never touched. Spec: shell.md §2,
world.md §4.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from substrate.errors import SubstrateError
from substrate.session import running, store
from substrate.session.history import load_history
from substrate.session.home import Home
from substrate.session.pending import finish
from substrate.session.stack_file import boot_id, load_stack_file
from substrate.session.store import SessionFiles
from substrate.session.world_file import load_world
from substrate.telemetry.trace.lock import SessionLock
from substrate.telemetry.trace.system import REAL
from substrate.world import journal, reverse
from substrate.world.removal import remove_tree

_UNFINISHED = (store.UNFINISHED, b".old")
#: links of the home while they are being replaced
_LINKS = (b"trace.jsonl.", b"layers.")
_COMMAND = b'"event_type":"command_start"'
#: what a session tells of before anything is done in it
_BEFORE_ANYTHING = ("fork", "recovery")
_LOOKED_AT = 1 << 16  # bytes of a trace in which its first command nearly always begins


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """One thing that was taken away, or would be. `problem`: why it was not."""

    kind: str  # session | unfinished (files) | record (what was done and not told)
    what: str
    problem: str = ""


def sweep(home: Home, *, dry_run: bool) -> list[Swept]:
    """Takes away what nobody needs; a part that fails is reported and the rest goes on."""
    found = []
    for session_id in store.list_sessions(home):
        try:
            for kind, what in _in_session(home, session_id, dry_run):
                found.append(Swept(kind=kind, what=what))
        except SubstrateError:
            continue  # in use; or damaged, which is said where its layers are looked at
        except OSError as error:
            found.append(Swept(kind="unfinished", what=session_id, problem=str(error)))
    for directory, name in _names_of_the_dead(home):
        try:
            if not dry_run:
                _remove(directory, name)
            found.append(Swept(kind="unfinished", what=os.fsdecode(name)))
        except OSError as error:
            found.append(Swept(kind="unfinished", what=os.fsdecode(name), problem=str(error)))
    return found


def _names_of_the_dead(home: Home) -> Iterator[tuple[bytes, bytes]]:
    """(directory, name) of what belongs to a process that is gone: sessions on their way out,
    links that were to replace others."""
    for name in os.listdir(home.path):
        if name.startswith(store.GONE):
            pid = name[len(store.GONE) :].partition(b"-")[0]
        elif name.startswith(_LINKS):
            pid = name.rpartition(b".")[2]
        else:
            continue
        if _is_dead(pid):
            yield home.path, name
    current = home.path + b"/current"
    for name in os.listdir(current):
        if b"." in name and _is_dead(name.rpartition(b".")[2]):
            yield current, name


def _is_dead(pid: bytes) -> bool:
    return pid.isdigit() and not os.path.exists(b"/proc/" + pid)


def _in_session(home: Home, session_id: str, dry_run: bool) -> list[tuple[str, str]]:
    """(kind, what) of it. Raises SessionBusy, StateError, OSError."""
    files = store.open_session(home, session_id)
    try:
        if _never_began(files):
            if dry_run or _with_lock(_remove_session, home, files):
                return [("session", session_id)]
            return []
        found = []
        if _is_unfinished(files):
            if not dry_run:
                finish(home, session_id)
            found.append(("record", session_id))
        names = _unfinished(files)
        if names and (dry_run or _with_lock(_remove_unfinished, home, files)):
            found += [("unfinished", f"{session_id}: {os.fsdecode(n)}") for _, n in names]
        return found
    finally:
        os.close(files.fd)


def _with_lock(
    remove: Callable[[Home, SessionFiles], bool], home: Home, files: SessionFiles
) -> bool:
    lock = SessionLock.acquire(REAL, files.fd)
    try:
        running.wait_until_gone(files)
        return remove(home, files)
    finally:
        lock.drop()


def _is_unfinished(files: SessionFiles) -> bool:
    """Whether something is to be told yet, or the world to be ended or taken up. What has a
    journal is not ours (collect.py)."""
    found = load_stack_file(files)
    if journal.exists(files.world_path):
        return False
    ending = found.ending not in ("", load_world(files).state)
    return bool(found.unrecorded) or found.intended is not None or ending


def _remove_session(home: Home, files: SessionFiles) -> bool:
    if not _never_began(files):
        return False  # it has begun meanwhile
    store.remove_session(home, files.session_id)
    return True


def _never_began(files: SessionFiles) -> bool:
    """Whether nothing was done in it and it is no fork. Raises StateError, TraceCorrupt."""
    try:
        with open(files.path + b"/trace.jsonl", "rb") as file:
            start = file.read(_LOOKED_AT)
    except FileNotFoundError:
        start = b""
    if _COMMAND in start:
        return False  # so it is with nearly all of them
    is_fork = False
    if start:
        history = load_history(files)
        if history.spans or history.problem is not None:
            return False
        if any(line["event_type"] not in _BEFORE_ANYTHING for line in history.others):
            return False  # a fork that was applied or discarded as it was
        # also one that is over, and has given the layers of its base up
        is_fork = any(line["event_type"] == "fork" for line in history.others)
    whole = os.path.exists(files.world_path + b"/meta.json")
    return not (whole and (is_fork or load_stack_file(files).elsewhere))


def _unfinished(files: SessionFiles) -> list[tuple[bytes, bytes]]:
    """(directory, name) of what was not finished, beside the world's files and its layers."""
    place = os.path.dirname(load_world(files).layers_path(files))
    found = []
    for directory in dict.fromkeys((files.world_path, place)):
        names = os.listdir(directory) if os.path.isdir(directory) else []
        found += [(directory, name) for name in names if name.endswith(_UNFINISHED)]
    if not journal.exists(files.world_path):  # else they belong to the apply that it is of
        for directory in (files.world_path + reverse.DIRECTORY,):
            names = os.listdir(directory) if os.path.isdir(directory) else []
            found += [(directory, name) for name in names if name in (reverse.NEW, reverse.OLD)]
    segments = place + b"/squash"
    if os.path.isdir(segments):
        stack_file = load_stack_file(files)
        now = stack_file.segments if stack_file.boot_id == boot_id() else ()
        used = {b"%d" % segment.identifier for segment in now}
        found += [(segments, name) for name in os.listdir(segments) if name not in used]
    return found


def _remove_unfinished(home: Home, files: SessionFiles) -> bool:
    for directory, name in _unfinished(files):
        _remove(directory, name)
    return True


def _remove(directory: bytes, name: bytes) -> None:
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_tree(fd, name)
    finally:
        os.close(fd)
