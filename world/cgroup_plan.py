"""Where a world's control groups can be made on this host: chosen by looking, not by trying.

Reads the cgroup filesystems, changes nothing (world.cgroup does). Invariant: every controller
that a limit asks for is either in exactly one hierarchy of the plan or in `missing` with the
reason; a world never gets out of a limit that its caller is under.
Spec: world.md §7 "Limits"; cgroups(7); the kernel's cgroup-v2.rst ("no internal processes",
"delegation").

Version 2 first, then each missing controller by itself on version 1 (hosts may have both):
- v1: a child of the caller's own group of that controller (/proc/self/cgroup), which is
  always inside the caller's own limits.
- v2: a controller can be given to children only by a group without processes of its own. So
  the new group stands beside the caller's, in its parent, where that is writable and the
  caller's own group sets no limit that a sibling would escape; else below the caller's own,
  after the caller moved itself into a leaf, which is right only when it is alone there.
A v2 hierarchy without controllers is used all the same: it kills a whole group at once.
"""

from __future__ import annotations

import os

from substrate.values import value
from substrate.world.limits import CONTROLLERS
from substrate.world.mountinfo import Mount, is_below, parse_mountinfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.world.limits import Limits


@value
class Hierarchy:
    """One place where a group is made."""

    version: int
    parent: bytes  # directory in which the world's group is made
    controllers: tuple[str, ...]  # that limit it there
    enable: tuple[str, ...] = ()  # v2: to add to the parent's cgroup.subtree_control
    needs_leaf: bool = False  # v2: the caller first moves itself into a child of `parent`


@value
class Plan:
    """What `world.cgroup.create` is to do. `missing`: controller -> why it is not used."""

    limits: Limits
    hierarchies: tuple[Hierarchy, ...]
    missing: tuple[tuple[str, str], ...]

    def versions(self) -> dict[str, int]:
        """controller -> 1 or 2, for `limits.enforcement`."""
        return {c: h.version for h in self.hierarchies for c in h.controllers}


def choose(limits: Limits, *, self_cgroup: bytes, mountinfo: bytes, root: bytes = b"/") -> Plan:
    """The plan for these limits. `self_cgroup` and `mountinfo` are the texts of
    /proc/self/cgroup and /proc/self/mountinfo; `root` is where the mount points are found."""
    wanted = tuple(c for name, c in CONTROLLERS.items() if getattr(limits, name) is not None)
    groups = _own_groups(self_cgroup)
    mounts = parse_mountinfo(mountinfo)
    missing = dict.fromkeys(wanted, "no cgroup hierarchy with it is mounted")
    found: list[Hierarchy] = []
    for mount in mounts:
        if mount.filesystem == b"cgroup2" and not found:
            found.extend(_unified(mount, groups.get("", b"/"), wanted, missing, root))
    has_group_kill = bool(found)
    for mount in mounts:
        if mount.filesystem == b"cgroup":
            have = {c for h in found for c in h.controllers}
            asked = [c for c in wanted if c not in have]
            if not has_group_kill:
                asked.append("freezer")
            found.extend(_legacy(mount, groups, asked, missing, root))
    have = {c for h in found for c in h.controllers}
    return Plan(
        limits=limits,
        hierarchies=tuple(found),
        missing=tuple((c, missing[c]) for c in wanted if c not in have),
    )


def _own_groups(text: bytes) -> dict[str, bytes]:
    """controller -> the caller's path in its hierarchy; "" is the unified one."""
    groups = {}
    for line in text.splitlines():
        number, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        for controller in controllers.decode().split(","):
            if controller or number == b"0":
                groups[controller] = path
    return groups


def _directory(mount: Mount, path: bytes, root: bytes) -> bytes | None:
    """Where a group's path lies in a mount that may show only a part of the hierarchy."""
    if not is_below(path, mount.root) or b"/.." in path:
        return None
    inside = path[len(mount.root.rstrip(b"/")) :].strip(b"/")
    top = os.path.join(root, mount.mount_point.lstrip(b"/"))
    return os.path.join(top, inside) if inside else top


def _blocked(directory: bytes, mount: Mount) -> str:
    """Why no group can be made in a directory, or ""."""
    shown = os.fsdecode(directory)
    if mount.read_only:
        return f"{shown} is mounted read-only"
    if not os.path.isdir(directory):
        return f"{shown} does not exist"
    if not os.access(directory, os.W_OK | os.X_OK):
        return f"{shown} is not writable for uid {os.geteuid()}"
    if not os.access(directory + b"/cgroup.procs", os.W_OK):
        return f"{shown}/cgroup.procs is not writable for uid {os.geteuid()}"
    return ""


# --- version 2

#: file -> text that means "no limit"
_LIMIT_FILES: Final = (b"pids.max", b"memory.max", b"memory.high", b"cpu.max")


def _unified(
    mount: Mount, path: bytes, wanted: tuple[str, ...], missing: dict[str, str], root: bytes
) -> list[Hierarchy]:
    own = _directory(mount, path, root)
    if own is None:
        why = f"the caller's group {os.fsdecode(path)} is outside of what is mounted"
        missing.update(dict.fromkeys(wanted, why))
        return []
    top = os.path.join(root, mount.mount_point.lstrip(b"/"))
    best: Hierarchy | None = None
    reasons = []
    for directory in (own,) if own == top else (os.path.dirname(own), own):
        why = _blocked(directory, mount) or _not_a_domain(directory)
        if not why and directory != own:
            why = _own_limit(own)
        if why:
            reasons.append(why)
            continue
        candidate, why = _offer(directory, wanted)
        if why:
            reasons.append(why)
        if best is None or len(candidate.controllers) > len(best.controllers):
            best = candidate
    available = _words(own + b"/cgroup.controllers")
    for controller in wanted:
        missing[controller] = (
            "; ".join(reasons)
            if controller in available
            else f"{os.fsdecode(own)}/cgroup.controllers does not name it (not delegated)"
        )
    return [best] if best is not None else []


def _offer(directory: bytes, wanted: tuple[str, ...]) -> tuple[Hierarchy, str]:
    """What a directory can give to a child, and why not more ("" when all that it has)."""
    available = _words(directory + b"/cgroup.controllers")
    enabled = _words(directory + b"/cgroup.subtree_control")
    usable = [c for c in wanted if c in available]
    to_enable = [c for c in usable if c not in enabled]
    needs_leaf, why = False, ""
    is_root = not os.path.exists(directory + b"/cgroup.type")
    if to_enable and not is_root:
        inhabitants = _words(directory + b"/cgroup.procs")
        needs_leaf = bool(inhabitants)
        if needs_leaf and set(inhabitants) != {str(os.getpid())}:
            why = f"{os.fsdecode(directory)} holds other processes too (no internal processes)"
    if to_enable and not os.access(directory + b"/cgroup.subtree_control", os.W_OK):
        why = f"{os.fsdecode(directory)}/cgroup.subtree_control is not writable"
    if why:
        usable = [c for c in usable if c in enabled]
        to_enable, needs_leaf = [], False
    hierarchy = Hierarchy(
        version=2,
        parent=directory,
        controllers=tuple(usable),
        enable=tuple(to_enable),
        needs_leaf=needs_leaf,
    )
    return hierarchy, why


def _not_a_domain(directory: bytes) -> str:
    kind = b" ".join(_read(directory + b"/cgroup.type").split())
    if kind in (b"", b"domain"):
        return ""
    return f"{os.fsdecode(directory)} is of type {kind.decode()}"


def _own_limit(own: bytes) -> str:
    for name in _LIMIT_FILES:
        text = _read(own + b"/" + name)
        if text and text.split()[:1] != [b"max"]:
            return f"{os.fsdecode(own)} has a {name.decode()} that a sibling would escape"
    return ""


def _read(path: bytes) -> bytes:
    """The text of a cgroup file, empty where this kernel or group does not have it."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _words(path: bytes) -> tuple[str, ...]:
    return tuple(_read(path).decode().split())


# --- version 1


def _legacy(
    mount: Mount,
    groups: dict[str, bytes],
    asked: list[str],
    missing: dict[str, str],
    root: bytes,
) -> list[Hierarchy]:
    here = [c for c in asked if c.encode() in mount.super_options and c in groups]
    if not here:
        return []
    directory = _directory(mount, groups[here[0]], root)
    if directory is None:
        why = f"the caller's group {os.fsdecode(groups[here[0]])} is outside of what is mounted"
    else:
        why = _blocked(directory, mount)
    if why or directory is None:
        missing.update(dict.fromkeys(here, why))
        return []
    return [Hierarchy(version=1, parent=directory, controllers=tuple(here))]
