"""Which places of the host a world overlays, and which it binds read-only.

Pure: mounts and paths in, a plan out. Root backends overlay `/` and every other mount below
it that can be written; rootless ones bind everything read-only and overlay the places that
the user writes to: home, workspace, /tmp, /var/tmp (world.md §1). An overlay does not show
what is mounted below its lower, so each such mount is planned by itself: overlaid when it
can be, bound read-only otherwise, with a note. Invariant: targets are listed outermost
first, and no target lies on a kernel tree (/proc, /sys, /dev) or under /run.
"""

from __future__ import annotations

import os

from substrate.values import value
from substrate.world.mountinfo import (
    Mount,
    can_be_lower,
    is_below,
    is_kernel_tree,
    mount_of,
    submounts,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: every world makes these anew
_OWN = (b"/proc", b"/sys", b"/dev", b"/run")


@value
class MountPlan:
    """Absolute paths without symlinks. `notes`: what a person should know, one line each."""

    overlays: tuple[bytes, ...]
    read_only: tuple[bytes, ...]
    notes: tuple[str, ...]


def plan_root(
    mounts: tuple[Mount, ...], is_directory: Callable[[bytes], bool], keep_out: tuple[bytes, ...]
) -> MountPlan:
    """The plan of a root backend. `keep_out`: places that are hidden anyway."""
    return _plan(mounts, (b"/",), is_directory, keep_out, bound_already=False)


def plan_rootless(
    mounts: tuple[Mount, ...],
    writable: tuple[bytes, ...],
    is_directory: Callable[[bytes], bool],
    keep_out: tuple[bytes, ...],
    is_mapped: Callable[[bytes], bool],
) -> MountPlan:
    """The plan of `ns-user`; `writable` are the roots, those inside another one drop out.

    Not where a directory on the way from the outer one to it belongs to somebody else
    (`is_mapped`: owner and group exist in the world): such a directory cannot be copied up
    (EOVERFLOW), and so nothing below it could be written."""
    roots = [
        path
        for path in dict.fromkeys(writable)
        if not any(
            path != outer and is_below(path, outer) and all(map(is_mapped, _between(outer, path)))
            for outer in writable
        )
    ]
    return _plan(mounts, tuple(sorted(roots)), is_directory, keep_out, bound_already=True)


def _between(outer: bytes, inner: bytes) -> list[bytes]:
    """The directories that `inner` lies in, below `outer`."""
    found = []
    while (inner := os.path.dirname(inner)) != outer:
        found.append(inner)
    return found


def _plan(
    mounts: tuple[Mount, ...],
    roots: tuple[bytes, ...],
    is_directory: Callable[[bytes], bool],
    keep_out: tuple[bytes, ...],
    *,
    bound_already: bool,
) -> MountPlan:
    overlays: list[bytes] = []
    read_only: list[bytes] = []
    notes: list[str] = []
    for root in roots:
        here = mount_of(mounts, root)
        if bound_already and (here.read_only or not can_be_lower(here)):
            notes.append(f"{_show(root)} stays read-only: {_why(here)}")
            continue
        overlays.append(root)
        for mount in submounts(mounts, root):
            point = mount.mount_point
            if is_kernel_tree(mount) or any(is_below(point, own) for own in (*_OWN, *keep_out)):
                continue
            if mount.read_only or not can_be_lower(mount) or not is_directory(point):
                read_only.append(point)
                if not mount.read_only:
                    notes.append(f"{_show(point)} is read-only in the world: {_why(mount)}")
            else:
                overlays.append(point)
    return MountPlan(
        overlays=tuple(sorted(overlays)), read_only=tuple(sorted(read_only)), notes=tuple(notes)
    )


def _why(mount: Mount) -> str:
    if mount.read_only:
        return "it is mounted read-only"
    if not can_be_lower(mount):
        return f"{mount.filesystem.decode(errors='replace')} cannot be overlaid"
    return "it is a single file mounted by itself"


def _show(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
