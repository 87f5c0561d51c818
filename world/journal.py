"""The journal of an apply: what was about to be done, so that a crash can be undone.

Not a log for people. JSON lines in `<world directory>/apply.journal`, in this order: `begin`
(`reverse`: the layer that is being made, `undo`: the one that is being used up); `intent` for
each operation and `widen` for each directory opened up, synced before the host is touched;
`private` for each directory of our own beside the targets, `copied` for each pre-image that
is a copy, `made` for each directory that is staged, written at once; `staged` for each
operation and `ready`, synced before the first name is changed; `open` for each directory that
must be opened once more afterwards; `committed`, synced when every name was changed; then the
file is removed. A last line without its end is one that was not synced, and is as if it were
not there. Version 1 knew nothing of reverse layers. Spec: world.md §4, §5.
"""

from __future__ import annotations

import json
import os
from typing import Any

from substrate.errors import StateError
from substrate.world.journal_lines import what_is_wrong

NAME = b"apply.journal"
VERSION = 2
_READABLE = (1, VERSION)


class JournalDamaged(StateError):
    """A line of a journal is not what an apply wrote."""

    def __init__(self, world_directory: bytes, number: int, why: str) -> None:
        super().__init__(
            f"line {number} of {os.fsdecode(world_directory + b'/' + NAME)} is damaged: {why}",
            hint="look at the files that an apply cut short may have left (.substrate-*), then "
            "`substrate world gc --forget-apply WORLD`",
            code="E-JOURNAL-DAMAGED",
        )


def text(path: bytes) -> str:
    """A path as JSON can hold it (surrogateescape)."""
    return path.decode("utf-8", "surrogateescape")


def octets(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


class Journal:
    """The writer. One at a time: `create` fails while another apply is unfinished."""

    def __init__(self, world_fd: int, fd: int) -> None:
        self._world_fd = world_fd
        self._fd = fd
        self._lines: list[str] = []

    @classmethod
    def create(cls, world_directory: bytes, identifier: str, **fields: Any) -> Journal:
        world_fd = os.open(world_directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            fd = os.open(NAME, flags, 0o600, dir_fd=world_fd)
        except FileExistsError:
            os.close(world_fd)
            raise StateError(
                f"an earlier apply of {os.fsdecode(world_directory)} is unfinished",
                hint="it is finished or undone by `recover`, which runs at the next start",
                code="E-APPLY-UNFINISHED",
            ) from None
        except BaseException:
            os.close(world_fd)
            raise
        journal = cls(world_fd, fd)
        journal.add("begin", version=VERSION, id=identifier, **fields)
        return journal

    def add(self, kind: str, **fields: Any) -> None:
        self._lines.append(json.dumps({"type": kind, **fields}, separators=(",", ":")) + "\n")

    def sync(self) -> None:
        """Writes what was added and waits until it is on disk. Raises OSError."""
        self.write()
        os.fsync(self._fd)
        os.fsync(self._world_fd)

    def commit(self) -> None:
        """Adds `committed` and syncs. Raises OSError; the line is not in the journal then."""
        size = os.fstat(self._fd).st_size
        self.add("committed")
        try:
            self.sync()
        except BaseException:
            self._lines.clear()
            os.ftruncate(self._fd, size)
            raise

    def write(self) -> None:
        """Writes what was added: it outlives us, if not a power cut. Raises OSError."""
        data = memoryview("".join(self._lines).encode())
        while data:
            data = data[os.write(self._fd, data) :]
        self._lines.clear()

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._world_fd)

    def remove(self) -> None:
        os.unlink(NAME, dir_fd=self._world_fd)
        os.fsync(self._world_fd)


def load_journal(world_directory: bytes) -> list[dict[str, Any]] | None:
    """The lines of an unfinished apply, or None. Raises JournalDamaged, StateError for one of
    another version."""
    try:
        with open(world_directory + b"/" + NAME, "rb") as stream:
            data = stream.read()
    except FileNotFoundError:
        return None
    whole = data[: data.rfind(b"\n") + 1]
    lines = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise JournalDamaged(world_directory, number, str(error)) from None
        if number == 1 and type(found) is dict and found.get("version") not in _READABLE:
            raise StateError(
                f"the apply journal has version {found.get('version')!r}, expected {VERSION} or older",
                hint="recover it with the version of substrate that wrote it",
            )
        wrong = what_is_wrong(found, number)
        if wrong:
            raise JournalDamaged(world_directory, number, wrong)
        lines.append(found)
    return lines


def exists(world_directory: bytes) -> bool:
    return os.path.lexists(world_directory + b"/" + NAME)


def remove_journal(world_directory: bytes) -> None:
    os.unlink(world_directory + b"/" + NAME)
