"""Why an apply did not happen: errors that carry the list.

Not the finding of it (conflict.py, plan.py). Invariant: when one of these is raised, the host
is as it was. Spec: world.md §5.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from substrate.errors import StateError
from substrate.world.conflict import Conflict, ConflictReason
from substrate.world.plan import Danger, Operation


class ApplyConflict(StateError):
    """Nothing was applied: the host changed beside the world. `conflicts` says where."""

    def __init__(self, conflicts: Sequence[Conflict]) -> None:
        first = conflicts[0]
        more = f" and {len(conflicts) - 1} more" if len(conflicts) > 1 else ""
        super().__init__(
            f"nothing was applied: {os.fsdecode(first.path)!r}: {first.detail}{more}",
            hint="look at both sides; then `substrate apply --on-conflict ours` takes the world's, "
            "`theirs` leaves the host's, `merge` merges texts; or apply other paths",
            code="E-APPLY-CONFLICT",
        )
        self.conflicts = tuple(conflicts)


class DangerRefused(StateError):
    """Nothing was applied: the plan holds entries that must be allowed by name."""

    def __init__(self, dangers: Sequence[Danger]) -> None:
        first = dangers[0]
        more = f" and {len(dangers) - 1} more" if len(dangers) > 1 else ""
        super().__init__(
            f"nothing was applied: {os.fsdecode(first.path)!r} is a danger: {first.reason}{more}",
            hint="apply the other paths, or allow special files after a look at them",
            code="E-APPLY-DANGER",
        )
        self.dangers = tuple(dangers)


def host_changed(operation: Operation, when: str) -> ApplyConflict:
    """The conflict that shows only while the apply runs."""
    conflict = Conflict(
        path=operation.change.path,
        reason=ConflictReason.HOST_CHANGED,
        detail=f"the host changed it {when}",
    )
    return ApplyConflict([conflict])
