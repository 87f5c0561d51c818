"""Where the new entries of an apply come from: staged out of the world's layers.

Not the making of a single entry (stage.py). A tree is one operation: its directories are
made open to us, filled, and completed from the bottom up. The journal hears of each
directory before anything is put into it. Spec: world.md §5.
"""

from __future__ import annotations

import os

from substrate.world.aside import Aside, remove_aside, staged_aside
from substrate.world.beneath import LOOKUP, open_beneath
from substrate.world.change import Change, FileState
from substrate.world.entry import Entry
from substrate.world.identity import Inode
from substrate.world.job import Job, join, path_in_mount
from substrate.world.journal import Journal
from substrate.world.plan import Operation
from substrate.world.stage import Stager


class LayerSource:
    """Copies of what the layers hold."""

    def __init__(self) -> None:
        self.stagers: dict[int, Stager] = {}

    def start(self, job: Job) -> None:
        self.job = job
        self.stagers = {i: Stager(v, job.plan.contents) for i, v in job.views.items()}

    def intent(self) -> dict[int, dict[str, object]]:
        """Fields of the journal's intents, by number of the operation."""
        return {}

    def stage(self, operation: Operation, journal: Journal) -> str | None:
        """Makes the new entry of an operation in its place aside, complete. Gives a regular
        file's content digest. Raises OSError, StateError."""
        stager = self.stagers[operation.change.mount]
        relative = path_in_mount(operation)
        aside_fd, name = self.job.parents.aside(operation)
        aside = self.job.parents.aside_path(operation)
        state = operation.after
        if operation.change.before is not None:
            stager.before[relative] = operation.change.before
        digest = stager.stage(relative, state, aside, aside_fd, name, open_directory=True)
        if state.type != "directory":
            return digest
        made = stager.made[relative]
        journal.add("made", n=operation.number, inode=made[2])
        journal.write()
        directories: list[tuple[bytes, FileState]] = [(b"", state)]
        start = len(operation.change.path)
        for change in operation.added:
            inner = change.path[start:]
            parent, _, child = (name + inner).rpartition(b"/")
            entry = _after(change)
            fd = open_beneath(aside_fd, parent, LOOKUP)
            try:
                place = join(aside, parent)
                stager.stage(relative + inner, entry, place, fd, child, open_directory=True)
            finally:
                os.close(fd)
            if entry.type == "directory":
                journal.add("made", n=operation.number, inode=stager.made[relative + inner][2])
                journal.write()
                directories.append((inner, entry))
        for inner, entry in reversed(directories):  # children before their directory
            parent, _, child = (name + inner).rpartition(b"/")
            fd = open_beneath(aside_fd, parent, LOOKUP)
            try:
                stager.finish_directory(relative + inner, entry, fd, child)
            finally:
                os.close(fd)
        return None

    def made(self, operation: Operation) -> Inode:
        """The inode of what was staged."""
        return self.stagers[operation.change.mount].made[path_in_mount(operation)]

    def aside(self, operation: Operation, *, half: bool) -> Aside:
        made = self.stagers[operation.change.mount].made
        return staged_aside(operation, path_in_mount(operation), made, half=half)

    def entries(self, operation: Operation) -> dict[bytes, Entry]:
        """What was staged, by the path below the operation's (b"" is its own)."""
        found = self.stagers[operation.change.mount].entries
        relative, start = path_in_mount(operation), len(operation.change.path)
        inner = (c.path[start:] for c in operation.added)
        return {path: found[relative + path] for path in (b"", *inner)}

    def drop(self, operation: Operation, *, half: bool) -> None:
        """Takes away what was staged. Raises OSError, Stranger."""
        aside_fd, name = self.job.parents.aside(operation)
        remove_aside(aside_fd, name, self.aside(operation, half=half))

    def kept_owner(self) -> list[bytes]:
        return [path for s in self.stagers.values() for path in s.kept_owner]


def _after(change: Change) -> FileState:
    assert change.after is not None
    return change.after
