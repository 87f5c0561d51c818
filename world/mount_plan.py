"""Which places of the host a world overlays, and which it binds read-only.

Pure: mounts, paths and a look at the host in, a plan out. Root backends overlay `/` and every other
mount below it that can be written; rootless ones bind everything read-only and overlay the places
that the user writes to: home, workspace, /tmp, /var/tmp (world.md §1). An overlay does not show
what is mounted below its lower, so each such mount is planned by itself: overlaid when it
can be, bound read-only otherwise, with a note.

Rootless there is more to it: mounts that were there before the user namespace are locked, and
a directory above a locked mount cannot be a lower (mount_namespaces(7)). Such a directory becomes part of
a *spine*: a private directory stands in for it, and each directory beside the way to
the mount is overlaid by itself (standin.py, docs/adr/0010).

Invariant: targets are listed outermost first, and no target lies on a kernel tree (/proc, /sys, /dev)
or under /run.
"""

from __future__ import annotations

import os

from substrate.errors import HostUnsupported
from substrate.values import value
from substrate.world.aliases import aliases
from substrate.world.layers import SCRATCH
from substrate.world.mountinfo import (
    Mount,
    can_be_lower,
    is_below,
    is_kernel_tree,
    is_orphan,
    mount_of,
    mounted_on,
    owner_of_fuse,
    submounts,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence
    from typing import Final, Protocol

    class Look(Protocol):
        """How the host is looked at."""

        uid: int

        def why_no_directory(self, path: bytes) -> str:
            """Why a mount is not one of a directory, "" where it is; asks no server and no
            other process."""

        def is_mapped(self, path: bytes) -> bool:
            """Whether owner and group exist in a rootless world."""

        def is_writable(self, path: bytes) -> bool:
            """Whether the user may make entries in a directory."""

        def is_open(self, path: bytes) -> bool:
            """Whether the user may enter a directory."""

        def entries(self, directory: bytes) -> tuple[tuple[bytes, bool], ...]:
            """Name, and whether it is a directory, of each entry."""

        def refusals(self, points: Sequence[bytes]) -> dict[bytes, str]:
            """Why the kernel makes no overlay of some of these, tried out."""


#: every world makes these anew
_OWN = (b"/proc", b"/sys", b"/dev", b"/run")
#: the kernel takes these for an overlay whatever their state, so nothing is tried out
_PLAIN: Final = frozenset(b"btrfs ext2 ext3 ext4 f2fs tmpfs xfs".split())
#: overlays that a rootless world is made of at most; each costs a command half a millisecond
MAX_OVERLAYS = 128
#: entries beside the way to the mounts, at most; each needs a copy or a mount
MAX_BESIDE = 2048


@value
class Spine:
    """Directories that cannot be lowers since something is mounted below them.

    `target`: of the overlay whose lower is the stand-in. `ways`: the directories, relative to it, b"" first;
    parents before children. `bare`: too much lies beside the ways, so none of it is shown."""

    target: bytes
    ways: tuple[bytes, ...]
    bare: bool = False


@value
class MountPlan:
    """Absolute paths without symlinks. `notes`: what a person should know, one line each."""

    overlays: tuple[bytes, ...]
    read_only: tuple[bytes, ...]
    notes: tuple[str, ...]
    spines: tuple[Spine, ...] = ()


def plan_root(
    mounts: tuple[Mount, ...], look: Look, keep_out: tuple[bytes, ...], *, idmapped: bool
) -> MountPlan:
    """The plan of a root backend. `keep_out`: places that are hidden anyway; `idmapped`: what cannot
    be id-mapped cannot be overlaid."""
    plan = _Plan(mounts, look, keep_out)
    plan.overlays.append(b"/")
    if mount_of(mounts, b"/").read_only:
        plan.notes.append("/ is mounted read-only: what is changed in it cannot be applied")
    plan.add_below(b"/", known=_PLAIN - {b"tmpfs"} if idmapped else _PLAIN)
    plan.tell_twice()
    return plan.finish()


def plan_rootless(
    mounts: tuple[Mount, ...],
    writable: tuple[bytes, ...],
    look: Look,
    keep_out: tuple[bytes, ...],
    workspace: bytes,
) -> MountPlan:
    """The plan of `ns-user`; `writable` are the roots, those inside another one drop out.

    Not where it, or a directory on the way from the outer one to it, belongs to somebody else: such
    a directory cannot be copied up (EOVERFLOW), and so nothing in it could be written. Raises
    HostUnsupported (E-LOWER-SUBMOUNT) where too much lies beside the way to a mount."""
    plan = _Plan(mounts, look, keep_out)
    for root in sorted(dict.fromkeys(writable)):
        here = mount_of(mounts, root)
        if here.read_only or not can_be_lower(here):
            plan.notes.append(f"{_show(root)} stays read-only: {_why(here)}")
        elif any(_holds(mounts, look, overlay, here, root) for overlay in plan.overlays):
            continue
        else:
            plan.overlays.append(root)
        plan.add_below(root, known=_PLAIN, only_writable=True)
    plan.split(workspace, writable)
    return plan.finish()


def _holds(mounts: tuple[Mount, ...], look: Look, overlay: bytes, here: Mount, root: bytes) -> bool:
    """Whether `root`, which lies on the mount `here`, can be written to in an overlay: all
    directories from the target on, and itself, can be copied up."""
    if not is_below(root, overlay) or mount_of(mounts, overlay).mount_id != here.mount_id:
        return False
    while root != overlay:
        if not look.is_mapped(root):
            return False
        root = os.path.dirname(root)
    return True


def seats(
    mounts: tuple[Mount, ...],
    target: bytes,
    targets: Container[bytes],
    is_open: Callable[[bytes], bool],
) -> tuple[bytes, ...]:
    """The places below an overlay's target that keep the host's directory from being its lower:
    locked mounts; or what they lie in, where that is the inner one of `targets`, which is mounted
    there anyway, or a directory that the user may not enter (not `is_open`), which is bound whole."""
    found = set()
    for point in mounted_on(mounts, target):
        way = target.rstrip(b"/")
        for name in point[len(way) + 1 :].split(b"/"):
            way += b"/" + name
            if way == point or way in targets or not is_open(way):
                found.add(way)
                break
    return tuple(sorted(found))


def ways_to(target: bytes, places: Sequence[bytes]) -> tuple[bytes, ...]:
    """The directories from a target on that places lie in, relative to it, b"" first."""
    ways = {target}
    for place in places:
        while (place := os.path.dirname(place)) not in ways:
            ways.add(place)
    return tuple(sorted(way[len(target) :].lstrip(b"/") for way in ways))


class _Plan:
    """A plan that is being made."""

    def __init__(self, mounts: tuple[Mount, ...], look: Look, keep_out: tuple[bytes, ...]) -> None:
        self.mounts = mounts
        self.look = look
        self.keep_out = keep_out
        self.overlays: list[bytes] = []
        self.read_only: list[bytes] = []
        self.spines: list[Spine] = []
        self.notes: list[str] = []
        #: why → the places that are read-only for it
        self.because: dict[str, list[bytes]] = {}

    def tell_twice(self) -> None:
        """Tells of places that show the same files: in a world each is by itself."""
        pairs = []
        for point in sorted(self.overlays):
            others = (a for a in aliases([point], self.mounts) if b"/" < a < point)
            alias = next((a for a in others if not any(is_below(a, own) for own in _OWN)), None)
            if alias is not None:
                pairs.append(f"{_show(point)} (as {_show(alias)})")
        if pairs:
            more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
            self.notes.append(
                f"mounted twice: {', '.join(pairs[:3])}{more}: what the world changes in one place is "
                "not seen in the other before it is applied"
            )

    def finish(self) -> MountPlan:
        for why, places in self.because.items():
            self.notes.append(f"{_name(places)} in the world: {why}")
        return MountPlan(
            overlays=tuple(sorted(dict.fromkeys(self.overlays))),
            read_only=tuple(sorted(dict.fromkeys(self.read_only))),
            notes=tuple(dict.fromkeys(self.notes)),
            spines=tuple(sorted(self.spines, key=lambda s: s.target)),
        )

    def add_below(
        self, root: bytes, *, known: frozenset[bytes], only_writable: bool = False
    ) -> None:
        """Every mount below `root`, overlaid or bound. `known`: types that need no trial."""
        found: list[tuple[Mount, str]] = []
        for mount in submounts(self.mounts, root):
            point = mount.mount_point
            if is_kernel_tree(mount) or any(is_below(point, p) for p in (*_OWN, *self.keep_out)):
                continue
            if not self.look.is_open(os.path.dirname(point)):
                continue  # out of the user's reach, and of the world's
            if is_orphan(mount):
                self.because.setdefault("what is mounted there was removed", []).append(point)
                continue
            found.append((mount, self._why_bound(mount)))
        asked = [
            m.mount_point
            for m, why in found
            if not why
            and m.filesystem not in known
            and not (only_writable and mounted_on(self.mounts, m.mount_point))
        ]
        refused = self.look.refusals(asked) if asked else {}
        for mount, why in found:
            point = mount.mount_point
            why = why or refused.get(point, "")
            if why or (only_writable and not self.look.is_writable(point)):
                self.read_only.append(point)
                if why and not mount.read_only:
                    self.because.setdefault(why, []).append(point)
            else:
                self.overlays.append(point)

    def _why_bound(self, mount: Mount) -> str:
        if mount.read_only or not can_be_lower(mount):
            return _why(mount)
        owner = owner_of_fuse(mount)
        if owner is not None and owner not in (self.look.uid, 0):
            # their server may keep us out, or waiting
            return f"a FUSE filesystem of uid {owner} is not overlaid"
        return self.look.why_no_directory(mount.mount_point)

    # --- spines

    def split(self, workspace: bytes, wanted: Sequence[bytes]) -> None:
        """Makes spines of the overlays that have mounts below them."""
        for target in sorted(self.overlays):
            points = seats(self.mounts, target, self.overlays, self.look.is_open)
            if points:
                self._split(target, points, workspace, wanted)

    def _split(
        self, target: bytes, points: tuple[bytes, ...], workspace: bytes, wanted: Sequence[bytes]
    ) -> None:
        taken = {*points, *self.overlays}
        ways = ways_to(target, points)
        beside: list[bytes] = []
        count = 0
        for way in ways:
            directory = target + b"/" + way if way else target
            for name, is_directory in self.look.entries(directory):
                path = directory + b"/" + name
                if (
                    path in taken
                    or path[len(target) + 1 :] in ways
                    or any(is_below(path, k) for k in self.keep_out)
                ):
                    continue
                count += 1
                if is_directory:
                    beside.append(path)
        bare = count > MAX_BESIDE
        if bare:
            if not _is_scratch(target, workspace):
                raise _too_much(target, points[0], count)
            # the way to what must be there is kept, nothing else
            beside = [b for b in beside if any(is_below(w, b) for w in wanted)]
            self.notes.append(
                f"{_show(target)} is empty in the world: {_show(points[0])} is mounted in it, "
                f"and of {count} entries beside that each would need a mount"
            )
        self._overlay_beside(target, points[0], beside, workspace, wanted)
        self.spines.append(Spine(target=target, ways=ways, bare=bare))
        if not bare:
            self.notes.append(
                f"{_show(points[0])} is mounted in {_show(target)}: directories beside the way to it "
                "can be written to in the world, but not renamed or removed (EBUSY)"
            )

    def _overlay_beside(
        self,
        target: bytes,
        point: bytes,
        beside: list[bytes],
        workspace: bytes,
        wanted: Sequence[bytes],
    ) -> None:
        """Overlays the directories that most want to be written to: those of the workspace
        and on the way to what was named, those that tools keep their state in, the others."""

        def rank(path: bytes) -> int:
            if is_below(path, workspace) or any(is_below(w, path) for w in wanted):
                return 0
            return 1 if os.path.basename(path).startswith(b".") else 2

        writable = sorted((b for b in beside if self.look.is_writable(b)), key=rank)
        room = max(0, MAX_OVERLAYS - len(self.overlays))
        kept, left = writable[:room], writable[room:]
        if left and rank(left[0]) == 0:
            raise _too_much(target, point, len(writable))
        self.overlays += kept
        if left:
            self.notes.append(
                f"{len(left)} directories of {_show(target)} are read-only in the world, such as "
                f"{_show(left[0])}: {_show(point)} is mounted beside them, and each would need an "
                "overlay (name one with --rw and it has its own)"
            )


def _too_much(target: bytes, point: bytes, count: int) -> HostUnsupported:
    return HostUnsupported(
        f"{_show(point)} is mounted below {_show(target)}, which a rootless world cannot overlay "
        f"then: {count} entries lie beside the way to it",
        code="E-LOWER-SUBMOUNT",
        hint=f"unmount {_show(point)}, work in a smaller directory, or run as root",
    )


def _is_scratch(target: bytes, workspace: bytes) -> bool:
    return any(is_below(target, s) for s in SCRATCH) and not is_below(target, workspace)


def _why(mount: Mount) -> str:
    if mount.read_only:
        return "it is mounted read-only"
    return f"{mount.filesystem.decode(errors='replace')} cannot be overlaid"


def _name(places: list[bytes]) -> str:
    """The subject of a sentence, with its verb."""
    shown = [_show(place) for place in places[:4]]
    if len(places) > 4:
        shown.append(f"{len(places) - 4} more")
    if len(shown) == 1:
        return f"{shown[0]} is read-only"
    return f"{', '.join(shown[:-1])} and {shown[-1]} are read-only"


def _show(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
