"""What stands in for the host below the overlays of a rootless world, made ready for a command.

Which stand-ins a world has is decided when it begins and kept in its meta.json; how they are
made is world/standin.py. Invariant: before every command each of them shows the host as it is now,
so that a world does not go on with old files. Spec: world.md §2; docs/adr/0010.
"""

from __future__ import annotations

import os
import stat

from substrate.errors import HostUnsupported
from substrate.session.host_look import is_open
from substrate.values import value
from substrate.world import mount_plan, mountinfo
from substrate.world.layers import SCRATCH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from substrate.session.store import SessionFiles
    from substrate.session.world_file import WorldFile
    from substrate.world.layers import OverlayMount
    from substrate.world.standin import Adoption

#: entries that are looked at for foreign owners in one directory tree
_LOOKED_AT = 1024


_NOTHING: dict[int, bytes] = {}


@value
class Ready:
    """What the overlays of a world lie on for one command. `present`: those that are made.
    `lowest`, `over`: by index of the mount, what stands in for its target and what lies over
    that. `bound`: paths to bind read-only. `notes`: what a person should know."""

    present: tuple[OverlayMount, ...]
    lowest: dict[int, bytes] = _NOTHING
    over: dict[int, bytes] = _NOTHING
    bound: tuple[bytes, ...] = ()
    notes: tuple[str, ...] = ()


def foreign_tops(
    uid: int, gid: int, targets: Sequence[bytes], wanted: Iterable[bytes]
) -> tuple[tuple[int, bytes], ...]:
    """(index of the mount, directory in it) of each wanted directory that holds something which
    the user may write to and the user namespace has no owner for.

    A look at the first thousand entries, breadth first, has to do: a walk of every workspace would cost
    each new world more than it is worth."""
    found = []
    for path in dict.fromkeys(wanted):
        if _has_foreign(path, uid, gid):
            index = max(
                (i for i, t in enumerate(targets) if mountinfo.is_below(path, t)),
                key=lambda i: len(targets[i]),
                default=None,
            )
            if index is not None:
                found.append((index, path[len(targets[index]) :].lstrip(b"/")))
    return tuple(found)


def _has_foreign(path: bytes, uid: int, gid: int) -> bool:
    def is_foreign(place: bytes, status: os.stat_result) -> bool:
        return (
            (status.st_uid, status.st_gid) != (uid, gid)
            and not stat.S_ISLNK(status.st_mode)
            and os.access(place, os.W_OK, effective_ids=True)
        )

    try:
        if is_foreign(path, os.lstat(path)):
            return True
    except OSError:
        return False
    waiting = [path + b"/.git", path]
    left = _LOOKED_AT
    for directory in waiting:
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if is_foreign(entry.path, entry.stat(follow_symlinks=False)):
                        return True
                    if entry.is_dir(follow_symlinks=False) and entry.name != b".git":
                        waiting.append(entry.path)
                    left -= 1
                    if not left:
                        return False
        except OSError:
            continue  # there is none, or it is closed to the user
    return False


def refresh(
    world: WorldFile,
    files: SessionFiles,
    mounts: tuple[mountinfo.Mount, ...],
    present: Sequence[OverlayMount],
    covered: Iterable[bytes],
    *,
    pending: bool,
) -> Ready:
    """Makes the stand-ins of a rootless world's mounts ready.

    `present`: the overlays that will be made; `covered`: other places that are covered in the world.
    `pending`: the world has layers beside the newest one. Raises HostUnsupported (E-LOWER-SUBMOUNT) where something
    was mounted since the world began that its overlays cannot do with, OSError."""
    spines = {index: (ways, bare) for index, ways, bare in world.spines}
    targets = frozenset(m.target for m in present)
    points = {m.index: mount_plan.seats(mounts, m.target, targets, is_open) for m in present}
    notes: list[str] = []
    for mount in present:
        late = _late(mount, points[mount.index], spines.get(mount.index))
        if late is not None:
            _refuse_late(world, mount, late, pending)
            spines[mount.index] = mount_plan.ways_to(mount.target, points[mount.index]), True
            notes.append(
                f"{os.fsdecode(mount.target)} shows only what this world wrote in it: "
                f"{os.fsdecode(late)} was mounted there since the world began"
            )
    if not spines and not world.adopted:
        return Ready(present=tuple(present))
    from substrate.world import standin

    directory = files.world_path + b"/standin"
    places = {*covered, *targets, *world.read_only}
    lowest: dict[int, bytes] = {}
    over: dict[int, bytes] = {}
    bound: list[bytes] = []
    for mount in present:
        if mount.index in spines:
            ways, bare = spines[mount.index]
            bound += standin.refresh_spine(
                directory,
                mount.index,
                mount.target,
                ways,
                places.__contains__,
                bare=bare,
                mounted=frozenset(points[mount.index]),
                budget=standin.spine_budget(),
            )
            lowest[mount.index] = standin.path_of(directory, mount.index, standin.SPINE)
    elsewhere = frozenset(places)
    tops: dict[int, list[bytes]] = {}
    for index, top in world.adopted:
        tops.setdefault(index, []).append(top)
    for mount in present:
        if mount.index in tops:
            adopted = standin.adopt(
                directory,
                mount.index,
                mount.target,
                tops[mount.index],
                elsewhere - {mount.target},
                standin.adoption_budget(),
            )
            over[mount.index] = standin.path_of(directory, mount.index, standin.ADOPTED)
            if not pending:
                notes += _tell(mount.target, adopted)
    return Ready(
        present=tuple(present),
        lowest=lowest,
        over=over,
        bound=tuple(bound),
        notes=tuple(notes),
    )


def remove(world_path: bytes) -> None:
    """Takes a world's stand-ins away: it is over, or makes them again when it goes on."""
    if not os.path.lexists(world_path + b"/standin"):
        return
    from substrate.world.removal import remove_tree

    fd = os.open(world_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_tree(fd, b"standin")
    finally:
        os.close(fd)


def _late(
    mount: OverlayMount, points: Sequence[bytes], spine: tuple[tuple[bytes, ...], bool] | None
) -> bytes | None:
    """A mount point below an overlay's target that the world's plan did not know of and that its
    lower cannot do with."""
    ways = () if spine is None else spine[0]
    start = len(mount.target.rstrip(b"/")) + 1
    for point in points:
        if point[start:].rpartition(b"/")[0] not in ways:
            return point
    return None


def _refuse_late(world: WorldFile, mount: OverlayMount, point: bytes, pending: bool) -> None:
    scratch = any(mountinfo.is_below(mount.target, s) for s in SCRATCH)
    if scratch and not mountinfo.is_below(mount.target, world.workspace):
        return
    shown = os.fsdecode(point)
    raise HostUnsupported(
        f"{shown} was mounted since world {world.name} began, which cannot be put together with it",
        code="E-LOWER-SUBMOUNT",
        hint=(
            f"unmount {shown}; or apply or discard the world and begin a new one"
            if pending
            else f"unmount {shown}, or add --fresh for a new world"
        ),
    )


def _tell(top: bytes, adopted: Adoption) -> list[str]:
    shown = os.fsdecode(top)
    notes = []
    if adopted.files:
        notes.append(
            f"{adopted.files} files ({adopted.size_bytes:,} bytes) of other owners or groups in {shown} "
            "are copies of yours in the world; an apply leaves them their group"
        )
    if adopted.left_count:
        names = ", ".join(os.fsdecode(path) for path in adopted.left)
        notes.append(
            f"E-UNMAPPED-OWNER: {adopted.left_count} files or directories of other owners or groups in "
            f"{shown} stay read-only in the world, such as {names}: too many or too large to copy"
        )
    return notes
