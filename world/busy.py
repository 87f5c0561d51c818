"""What stands in the way of an apply without being a conflict: mounts, immutable files, rights.

Not a judgement of who changed what (conflict.py). A file or directory on which something is
mounted cannot be renamed (rename(2) EBUSY), so it is refused before anything is staged; what
only shows in the attempt is named by path. Invariant: the host is as it was when one of these
errors is raised. Spec: world.md §5.
"""

from __future__ import annotations

import errno
import os

from substrate.errors import StateError
from substrate.world.mountinfo import parse_mountinfo
from substrate.world.plan import Operation, Plan

_WHY = {
    errno.EBUSY: "something is mounted on it, or the kernel uses it (swap, a loop device)",
    errno.EPERM: "it or its directory is immutable or append-only (lsattr), or belongs to "
    "somebody else",
    errno.EACCES: "you may not write to its directory",
    errno.EROFS: "its filesystem is read-only",
    errno.ETXTBSY: "a program runs from it",
    errno.EXDEV: "on an overlay (a container's root) a directory that a lower brought (the image) "
    "cannot be renamed",
}


def refuse_mount_points(plan: Plan) -> None:
    """Raises StateError for the first path of a plan on which something is mounted. The root of
    one of the world's own mounts only ever has its mode and the like changed, in place."""
    with open("/proc/self/mountinfo", "rb") as file:
        points = {mount.mount_point for mount in parse_mountinfo(file.read())}
    for operation in plan.operations:
        for change in (operation.change, *operation.removed):
            if change.path in points and operation.name:
                raise StateError(
                    f"nothing was applied: something is mounted on {os.fsdecode(change.path)!r}",
                    hint="unmount it, or apply other paths",
                    code="E-APPLY-BUSY",
                )


def in_the_way(operation: Operation | None, error: BaseException) -> StateError | None:
    """An error of the host while an operation was done, as a message that names its path; None
    for one that is told otherwise."""
    if operation is None or not isinstance(error, OSError) or error.errno not in _WHY:
        return None
    path = os.fsdecode(operation.change.path)
    return StateError(
        f"nothing was applied: {path!r} cannot be changed: {_WHY[error.errno]} "
        f"({error.strerror or error})",
        hint="remove what stands in the way, or apply other paths",
        code="E-APPLY-BUSY",
    )
