"""What becomes of the entries that an apply displaces: removed, or kept (reverse_make.py).

Invariant: nothing displaced is touched before the apply is committed. Spec: world.md §4, §5.
"""

from __future__ import annotations

from collections.abc import Iterable

from substrate.world.aside import displaced_aside, remove_aside
from substrate.world.identity import Identity
from substrate.world.intent import Before
from substrate.world.job import Job
from substrate.world.journal import Journal
from substrate.world.plan import Operation
from substrate.world.source import LayerSource


class Removing:
    """Keeps nothing."""

    #: number of the reverse layer
    number: int | None = None

    def start(self, job: Job) -> None:
        self.job = job

    def begin(self) -> dict[str, object]:
        """Fields of the journal's first line."""
        return {}

    def prepare(self, before: Before, journal: Journal) -> None:
        """Before anything is staged: makes what the pre-images need. Raises OSError."""

    def record(self, source: LayerSource, before: Before) -> None:
        """Everything is staged, nothing was renamed. Raises OSError."""

    def sync(self) -> None:
        """Waits until what was prepared is on disk. Raises OSError."""

    def drop(self) -> None:
        """Takes away what was prepared: the apply failed. Raises OSError."""

    def keep(self, operation: Operation, displaced: Identity) -> bool:
        """The apply is committed: takes what an operation displaced from its place aside.
        False when it should be kept, and is gone.

        Raises OSError, Stranger when something else lies there."""
        aside_fd, name = self.job.parents.aside(operation)
        remove_aside(aside_fd, name, displaced_aside(operation, displaced))
        return True

    def change_times(self) -> Iterable[tuple[int, int, int]]:
        """What it knows of change times that the apply has set (restored.py)."""
        return ()

    def finish(self) -> None:
        """Everything displaced was taken. Raises OSError."""

    def close(self) -> None:
        """Closes what was opened."""
