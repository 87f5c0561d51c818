"""What the host does not let the caller change: found before an apply touches anything.

Not conflicts (conflict.py) and not dangers (danger.py): a right that is missing. A world without rights
lets its user do to copies of other people's files what the host does not (chmod, replace in a
sticky directory), a root world overlays places that are mounted read-only, and a place that is mounted
twice can hold two versions of one file. Without this the kernel would refuse in the middle of the
apply, path by path. Invariant: a look only; what it does not
see, the kernel still refuses then, and the apply is rolled back. Spec: world.md §5 ("Runs as the
user, never with more rights").
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from substrate.errors import StateError
from substrate.world.change import Change
from substrate.world.layers import LayerStack
from substrate.world.plan import Operation, OperationKind, Plan
from substrate.world.upper import at
from substrate.world.view import HOST, MountView


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """One path; `why` is the rest of a sentence about it."""

    path: bytes
    why: str


class ApplyDenied(StateError):
    """Nothing was applied: the host refuses some of it to whoever applies. `denied` says what."""

    def __init__(self, denied: list[Denied]) -> None:
        shown = "; ".join(f"{os.fsdecode(d.path)!r} {d.why}" for d in denied[:5])
        more = f" and {len(denied) - 5} more" if len(denied) > 5 else ""
        super().__init__(
            f"nothing was applied: {shown}{more}",
            hint="apply the other paths (substrate apply PATH...), or as somebody who may",
            code="E-APPLY-DENIED",
        )
        self.denied = tuple(denied)


def find_denied(plan: Plan, stack: LayerStack) -> list[Denied]:
    """The operations of a plan that the host would refuse to us, by path. Raises OSError,
    StateError where a directory of the host cannot be reached."""
    views: dict[int, MountView] = {}
    place: tuple[int, bytes] | None = None
    why_not_there = ""
    directory: os.stat_result | None = None
    names: dict[tuple[int, int, bytes], bytes] = {}
    found: list[Denied] = []
    try:
        for operation in plan.operations:  # they come by directory
            change = operation.change
            if change.mount not in views:
                mount = next(m for m in stack.mounts if m.index == change.mount)
                views[change.mount] = MountView(stack, mount)
            if place != (change.mount, operation.parent):
                place = change.mount, operation.parent
                fd, _ = views[change.mount].open_parent(HOST, operation.parent)
                try:
                    directory = os.fstat(fd)
                    why_not_there = _why_no_entry(fd, directory)
                finally:
                    os.close(fd)
            assert directory is not None
            name = directory.st_dev, directory.st_ino, operation.name
            why = _why_not(operation, directory, why_not_there)
            if names.setdefault(name, change.path) != change.path:
                other = os.fsdecode(names[name])
                why = f"is the same file as {other!r} on the host: apply one of them"
            if why:
                found.append(Denied(path=change.path, why=why))
    finally:
        for view in views.values():
            view.close()
    return found


def _why_no_entry(fd: int, directory: os.stat_result) -> str:
    """Why no name can be changed in a directory; "" where it can."""
    if os.fstatvfs(fd).f_flag & os.ST_RDONLY:
        return "lies on a filesystem that is mounted read-only"
    if directory.st_uid == os.geteuid():
        return ""  # its mode is opened up for the time of the apply
    if not os.access(at(fd, ""), os.W_OK | os.X_OK, effective_ids=True):
        return f"lies in a directory of uid {directory.st_uid} that you may not write to"
    return ""


def _why_not(operation: Operation, directory: os.stat_result, why_not_there: str) -> str:
    read_only = why_not_there.endswith("read-only")
    if operation.kind is OperationKind.META:
        return why_not_there if read_only else _why_no_meta(operation.change)
    if why_not_there:
        return why_not_there
    before = operation.change.before
    ours = os.geteuid()
    if (
        before is not None
        and ours not in (0, before.uid, directory.st_uid)
        and directory.st_mode & stat.S_ISVTX
    ):
        return f"belongs to uid {before.uid} and its directory is sticky: only they may replace it"
    return ""


def _why_no_meta(change: Change) -> str:
    before = change.before
    assert before is not None
    if os.geteuid() in (0, before.uid):
        return ""
    return f"belongs to uid {before.uid}, who alone may change its mode, times and attributes"
