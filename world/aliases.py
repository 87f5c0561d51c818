"""Other paths that lead to the same files: places of a filesystem that is mounted twice.

A bind mount of a home, or of a directory in it, shows what was hidden at the first place.
Pure: the mount table in, paths out; nothing is looked at on the disk. Not hard links, which
nobody can find by a path. Spec: world.md §2 "Hidden by default", proc_pid_mountinfo(5).
"""

from __future__ import annotations

from substrate.world.mountinfo import Mount, is_below, mount_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def mounted_twice(mounts: tuple[Mount, ...]) -> dict[tuple[int, int], list[Mount]]:
    """The mounts of each filesystem that has more than one."""
    by_device: dict[tuple[int, int], list[Mount]] = {}
    for mount in mounts:
        by_device.setdefault(mount.device, []).append(mount)
    return {device: several for device, several in by_device.items() if len(several) > 1}


def aliases(paths: Iterable[bytes], mounts: tuple[Mount, ...]) -> tuple[bytes, ...]:
    """Where else each path, or a part of what lies below it, can be seen.

    `paths` are absolute and without symlinks. A mount of something inside a path is named
    whole. Paths that are not there (the other mount covers less) may be among the answers."""
    twice = mounted_twice(mounts)
    if not twice:
        return ()
    found: dict[bytes, None] = {}
    for path in paths:
        here = mount_of(mounts, path)
        if here.device not in twice:
            continue
        inside = _join(here.root, path[len(here.mount_point.rstrip(b"/")) :])
        for other in twice[here.device]:
            if is_below(inside, other.root):
                rest = inside[len(other.root.rstrip(b"/")) :]
                alias = _join(other.mount_point, rest)
            elif is_below(other.root, inside):
                alias = other.mount_point
            else:
                continue
            if alias != path and not is_below(alias, path):
                found[alias] = None
    return tuple(found)


def _join(directory: bytes, rest: bytes) -> bytes:
    return (directory.rstrip(b"/") + rest).rstrip(b"/") or b"/"
