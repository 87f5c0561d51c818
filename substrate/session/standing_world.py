"""A world that is started before its command comes, and whether it is still what would be started now.

Half of a join would be the start of its world. So a session that lives starts the next one, on a layer of its
own, when the last one is gone (docs/adr/0030). What a world shows was looked up when it was started; a host
goes on meanwhile. So before a command gets it, everything is decided once more, as for a new one: it has to come to the
same spec, on the same mounts, and every place that was mounted or covered has to be the file that it was, with the
owner and mode that it had, and so has every directory above it. Else it is thrown away. Not its start (live_world.py). Only of root
backends: a rootless world is made of the mounts that the host had. Invariant: a world that fits differs from one that is started now
in nothing but its age. Spec: shell.md §2, world.md §2.
"""

from __future__ import annotations

import os

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.world.mountinfo import Mount
    from substrate.world.spec import WorldSpec

    #: device, inode, mode, owner, group; None: there is nothing
    Identity = tuple[int, int, int, int, int] | None

#: whose next world may be started ahead
BACKENDS = ("ns-root-idmap", "ns-root")


@value
class Seen:
    """What a world was started from. `mounts`: the host's; `places`: path by path, what it is."""

    spec: WorldSpec
    mounts: tuple[Mount, ...]
    places: tuple[tuple[bytes, Identity], ...]


def see(spec: WorldSpec, mounts: tuple[Mount, ...]) -> Seen:
    """To be called before the world is asked for: what changes meanwhile tells then. Raises OSError."""
    paths: dict[bytes, None] = {b"/": None}
    points = {mount.mount_point for mount in mounts}  # the server of one that is bound may be gone
    for path in (
        *(overlay.target for overlay in spec.overlays),
        *(path for path in (*spec.bound, *spec.read_only) if path not in points),
        *(*spec.viewed, *spec.hidden_directories, *spec.hidden_files),
    ):
        while path not in paths:
            paths[path] = None
            path = os.path.dirname(path)
    return Seen(spec=spec, mounts=mounts, places=tuple([(path, _identity(path)) for path in paths]))


def fits(seen: Seen, spec: WorldSpec, mounts: tuple[Mount, ...]) -> bool:
    """Whether a world that was started from `seen` is what `spec` would be now."""
    return (
        seen.spec == spec
        and seen.mounts == mounts
        and all(_identity(path) == identity for path, identity in seen.places)
    )


def _identity(path: bytes) -> Identity:
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino, found.st_mode, found.st_uid, found.st_gid
