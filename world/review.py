"""From pending changes to a plan that can be applied: what is the host's is left to it, what
conflicts is decided.

Only the order of the steps: keep.py, plan.py, conflict.py, resolve.py in turn. Touches nothing.
Spec: world.md §5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from substrate.world.bases import Bases
from substrate.world.busy import refuse_mount_points
from substrate.world.change import MODIFIED, Change
from substrate.world.conflict import check
from substrate.world.keep import keep_hosts
from substrate.world.layers import LayerStack
from substrate.world.plan import Plan, plan
from substrate.world.resolve import OnConflict, Resolved, resolve
from substrate.world.restored import load_restored


def review_plan(
    changes: Sequence[Change],
    stack: LayerStack,
    world_directory: bytes,
    bases: Bases,
    select: Callable[[bytes], bool] | None,
    on_conflict: OnConflict,
    preimage: Callable[[str], bytes | None],
) -> Resolved:
    """The plan for the changes that `select` takes, and its conflicts, decided where that was
    wanted. `preimage`: as for `resolve`. Raises OSError, StateError."""
    planned = plan(keep_hosts(changes, stack, bases), stack, select=select, bases=bases)
    refuse_mount_points(planned)
    found = check(planned, stack, load_restored(world_directory)) if planned.changes else []
    return resolve(planned, found, on_conflict, stack, preimage)


def hard_linked(planned: Plan) -> tuple[bytes, ...]:
    """The files of the host that get another content while names of theirs that the plan does
    not change go on with the old one: a new file comes in place of each name."""
    names = Counter(
        (c.before.dev, c.before.inode)
        for c in planned.changes
        if c.before is not None and c.before.type == "file"
    )
    return tuple(
        c.path
        for c in planned.changes
        if c.kind == MODIFIED
        and c.before is not None
        and c.before.type == "file"
        and c.before.nlink > names[c.before.dev, c.before.inode]
    )
