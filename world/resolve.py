"""What is done about conflicts: one side wins, or both are merged, or nothing is applied.

Not the finding of them (conflict.py) and not the merge of two texts (merge3.py). A step between
the check and the apply: a plan goes in, and comes out with what was decided. `ours` is the
world's version, which is applied over what the host changed; `theirs` is the host's, which
stays. A tree that is applied as one step (new, deleted or replaced) is decided as one: where
the host wins anywhere in it, all of it is left out. `merge` takes what can be merged, a
text that both sides changed and whose base is kept, and leaves every other conflict standing.
What was decided holds for the host's files as the plan saw them: the apply looks again.
Invariant: no conflict goes unmentioned; it is resolved, or it stands. Spec: world.md §5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from substrate.world.aspects import CONTENT, Aspects, differ
from substrate.world.bases import AllSides, Sides
from substrate.world.change import META, MODIFIED, Change
from substrate.world.conflict import Conflict, Resolution
from substrate.world.layers import LayerStack
from substrate.world.merge3 import merge
from substrate.world.plan import Operation, Plan, plan
from substrate.world.preimages import is_text


class OnConflict(StrEnum):
    """What to do about conflicts, as it is asked for."""

    FAIL = "fail"
    OURS = "ours"
    THEIRS = "theirs"
    MERGE = "merge"


#: bytes of one side above which a text is not merged
_LARGEST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """`plan`: what is left to do. `conflicts`: all of them, each with its resolution, None for
    one that stands. `left_out`: further paths that are not applied, since they are of one tree
    with a conflict that the host won."""

    plan: Plan
    conflicts: tuple[Conflict, ...]
    left_out: tuple[bytes, ...] = ()


def resolve(
    planned: Plan,
    conflicts: Sequence[Conflict],
    choice: OnConflict,
    stack: LayerStack,
    preimage: Callable[[str], bytes | None],
) -> Resolved:
    """Decides conflicts that `check` found of a plan.

    `preimage`: the content that a keyed digest is of, where it was kept (preimages.py). Raises
    OSError, StateError for a file that changed while it was read."""
    if not conflicts or choice is OnConflict.FAIL:
        return Resolved(plan=planned, conflicts=tuple(conflicts))
    if choice is OnConflict.OURS:
        return Resolved(
            plan=replace(planned, resolved=frozenset(c.path for c in conflicts)),
            conflicts=_all(conflicts, Resolution.OURS),
        )
    if choice is OnConflict.THEIRS:
        return _hosts_win(planned, conflicts, stack)
    return _merge_all(planned, conflicts, stack, preimage)


def _all(conflicts: Iterable[Conflict], resolution: Resolution) -> tuple[Conflict, ...]:
    return tuple(replace(c, resolution=resolution) for c in conflicts)


def _steps(planned: Plan) -> dict[bytes, Operation]:
    """Each path's operation."""
    return {
        change.path: operation
        for operation in planned.operations
        for change in (operation.change, *operation.added, *operation.removed)
    }


def _hosts_win(planned: Plan, conflicts: Sequence[Conflict], stack: LayerStack) -> Resolved:
    steps = _steps(planned)
    lost = {steps[c.path].number for c in conflicts}
    stay = {c.path for c in conflicts}
    return Resolved(
        plan=plan(
            [c for c in planned.changes if steps[c.path].number not in lost],
            stack,
            bases=planned.bases,
        ),
        conflicts=_all(conflicts, Resolution.THEIRS),
        left_out=tuple(
            c.path for c in planned.changes if steps[c.path].number in lost and c.path not in stay
        ),
    )


# --- merging


def _merge_all(
    planned: Plan,
    conflicts: Sequence[Conflict],
    stack: LayerStack,
    preimage: Callable[[str], bytes | None],
) -> Resolved:
    changes = {c.path: c for c in planned.changes}
    contents: dict[bytes, bytes] = {}
    said: list[Conflict] = []
    if planned.bases is None:
        return Resolved(plan=planned, conflicts=tuple(conflicts))
    with AllSides(planned.bases, stack) as sides:
        for conflict in conflicts:
            change = changes[conflict.path]
            found = _merged(change, sides.of(change), preimage)
            if isinstance(found, str):
                said.append(replace(conflict, detail=f"{conflict.detail}; {found}"))
                continue
            said.append(replace(conflict, resolution=Resolution.MERGED))
            if found is None:
                del changes[conflict.path]
            elif isinstance(found, Change):
                changes[conflict.path] = found
            else:
                contents[conflict.path] = found
    return Resolved(
        plan=replace(
            plan(list(changes.values()), stack, bases=planned.bases),
            resolved=frozenset(c.path for c in said if c.resolution is not None),
            contents=contents,
        ),
        conflicts=tuple(said),
    )


def _merged(
    change: Change, sides: Sides, preimage: Callable[[str], bytes | None]
) -> bytes | Change | str | None:
    """The merged content; the change that is left, or None for nothing, where the host has all
    of it already; or why it cannot be merged, as the end of a sentence."""
    before, after = change.before, change.after
    if change.kind != MODIFIED or before is None or after is None or after.type != "file":
        return "only a text that both changed can be merged"
    base = sides.base(change)
    if not isinstance(base, Aspects) or base.content is None:
        return "what the world began with is not known, so it cannot be merged"
    touched = {what.partition(":")[0] for what in change.what}
    if differ(base, sides.here(change)) & touched != {CONTENT}:
        return "more than its content would have to be merged"
    if max(before.size, after.size) > _LARGEST_BYTES:
        return "it is too large to be merged"
    hosts, worlds = sides.read(change, before), sides.read(change, after)
    if not is_text(hosts) or not is_text(worlds):
        return "it is binary, so it cannot be merged"
    was = preimage(base.content)
    if was is None:
        return "what the world began with was not kept, so it cannot be merged"
    merged = merge(was, worlds, hosts)
    if merged.content is None:
        count = len(merged.clashes)
        lines = ", ".join(str(clash.start + 1) for clash in merged.clashes[:5])
        if count == 1:
            return f"1 place clashes (line {lines})"
        return f"{count} places clash (lines {lines}{' ...' if count > 5 else ''})"
    if merged.content != hosts:
        return merged.content
    what = tuple(w for w in change.what if w not in ("content", "mtime"))
    return Change(change.path, META, before, after, change.mount, what) if what else None
