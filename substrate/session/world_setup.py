"""From settings and the host as it is to a world that can be started.

Reads the host's mount table and password file; decides nothing by what a tree
contains. Two steps: `describe_world` once for a new world (what is kept in its meta.json),
`spec_of` at each start. Spec: world.md §1, §2.
"""

from __future__ import annotations

import os
import pwd
import time

from substrate.errors import ConfigError, HostUnsupported, StateError
from substrate.session import guarding, layer_place, stand_ins
from substrate.session.net_rules import net_plan
from substrate.session.stand_ins import Ready
from substrate.values import replace, value
from substrate.world import hidden, idmap, linux, mount_plan, mountinfo
from substrate.world.layers import SCRATCH, TRUSTED, USER, gone, is_there
from substrate.world.scope import cache_roots
from substrate.world.spec import NAMESPACED, Frame, OverlaySpec, WorldSpec

from .world_file import OPEN, WorldFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from substrate.session.covers import Covers
    from substrate.session.home import Home
    from substrate.session.settings import Settings
    from substrate.session.store import SessionFiles
    from substrate.session.workspace import Workspace
    from substrate.world.cgroup import CgroupSet
    from substrate.world.layers import LayerStack


_ENGINES = (b"/var/lib/docker", b"/var/lib/containerd", b"/var/lib/containers", b"/var/lib/kubelet")


@value
class HostView:
    """What a world's plan depends on. Paths absolute and without symlinks."""

    mounts: tuple[mountinfo.Mount, ...]
    user_home: bytes
    uid: int
    gid: int


def look_at_host() -> HostView:
    """Reads the mount table and who runs."""
    uid = os.geteuid()
    home = os.environb.get(b"HOME", b"")
    if not home.startswith(b"/"):
        try:
            home = os.fsencode(pwd.getpwuid(uid).pw_dir)
        except KeyError:
            home = b"/"
    with open("/proc/self/mountinfo", "rb") as file:
        mounts = mountinfo.parse_mountinfo(file.read())
    return HostView(mounts=mounts, user_home=os.path.realpath(home), uid=uid, gid=os.getegid())


def describe_world(
    host: HostView,
    home: Home,
    settings: Settings,
    backend: str,
    name: str,
    workspace: Workspace,
    session_id: str,
) -> tuple[WorldFile, tuple[str, ...]]:
    """A new world's description, and notes for the user. Its layers' directory is made where
    that is not the session's own.

    Raises HostUnsupported with a code of world.md §1."""
    from substrate.session.host_look import HostLook

    place = layer_place.Place()
    if backend == "guard":
        guarding.refuse_settings(settings, host, workspace.path)
        _refuse_chroot(host)  # whose mounts, and so other names of what is hidden, are not known
    if backend != "none":
        place = layer_place.make(
            home, host.mounts, session_id.encode(), userxattr=backend == "ns-user"
        )
        _refuse_chroot(host)
    own = (home.path, place.directory) if place.directory else (home.path,)
    look = HostLook(host.uid, host.gid, backend, home.path + b"/worlds")
    adopted: tuple[tuple[int, bytes], ...] = ()
    if backend == "ns-user":
        named = [os.path.realpath(p) for p in (workspace.path, *settings.rw) if os.path.isdir(p)]
        if os.path.isfile(workspace.path + b"/.git"):
            from substrate.session.repository import repository_elsewhere

            repository = repository_elsewhere(workspace.path)
            named += [] if repository is None else [repository]
        writable = [p for p in (host.user_home, b"/tmp", b"/var/tmp") if os.path.isdir(p)]
        temporary = os.path.realpath(os.environb.get(b"TMPDIR") or b"/tmp")
        if temporary != b"/" and os.path.isdir(temporary) and os.access(temporary, os.W_OK):
            writable.append(temporary)  # where compilers and mktemp(1) write
        existing = (*map(os.path.realpath, writable), *named)
        _refuse_root_as_workspace(existing)
        keep_out = (*own, *_secret_directories(host.user_home, existing))
        planned = mount_plan.plan_rootless(host.mounts, existing, look, keep_out, workspace.path)
        # last, and of the home nothing but its own owner is looked at: newgrp(1) changes all of it
        homes = [host.user_home] if _is_foreign_home(host) else []
        adopted = stand_ins.foreign_tops(host.uid, host.gid, planned.overlays, [*named, *homes])
    elif backend == "guard":
        workspace_only = (os.path.realpath(workspace.path),)
        planned = mount_plan.MountPlan(overlays=workspace_only, read_only=(), notes=())
    elif backend == "none":
        planned = mount_plan.MountPlan(overlays=(), read_only=(), notes=())
    else:
        # mounts of containers by the dozen, in places that are hidden
        engines = [e for e in _ENGINES if not mountinfo.is_below(workspace.path, e)]
        planned = mount_plan.plan_root(
            host.mounts, look, (*own, *engines), idmapped=backend == "ns-root-idmap"
        )
    births = layer_place.without_births(place.directory or home.path) if planned.overlays else ""
    extents = _extents(host, backend, int(name[1:]))
    index = {target: i for i, target in enumerate(planned.overlays)}
    now = time.time_ns()
    return (
        WorldFile(
            name=name,
            state=OPEN,
            backend=backend,
            workspace=workspace.path,
            workspace_key=workspace.key,
            mounts=planned.overlays,
            read_only=planned.read_only,
            xattr_prefix=USER if _is_rootless(backend, host) else TRUSTED,
            id_extents=extents,
            uid=0 if backend in ("ns-root-idmap", "ns-root") else host.uid,
            gid=0 if backend in ("ns-root-idmap", "ns-root") else host.gid,
            started_ns=now,
            clock_offset_ns=now - time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            caches=cache_roots(host.user_home, os.environb.get(b"XDG_CACHE_HOME")),
            layers_at=place.directory,
            inodes=tuple(map(_inode, planned.overlays)),
            spines=tuple((index[s.target], s.ways, s.bare) for s in planned.spines),
            adopted=adopted,
        ),
        tuple(
            note
            for note in (
                *planned.notes,
                *_unmapped(workspace.path, extents if backend != "ns-user" else ()),
                guarding.NOTE if backend == "guard" else "",
                place.note,
                births,
            )
            if note
        ),
    )


def _is_rootless(backend: str, host: HostView) -> bool:
    """Whether all files of the world are the user's, whoever's they are on the host."""
    return backend == "ns-user" or (backend == "guard" and host.uid != 0)


def _refuse_chroot(host: HostView) -> None:
    if not any(mount.mount_point == b"/" for mount in host.mounts):
        raise HostUnsupported(
            "the root directory is no mount point: this is a chroot, which has no worlds",
            hint="enter the tree as a container does, by pivot_root (bwrap, `docker run`)",
        )


def _is_foreign_home(host: HostView) -> bool:
    status = os.stat(host.user_home) if os.path.isdir(host.user_home) else None
    return status is not None and (status.st_uid, status.st_gid) != (host.uid, host.gid)


def _inode(target: bytes) -> int:
    """What tells that the place is still the one that the world began with."""
    return 0 if target == b"/" or target in SCRATCH else os.stat(target).st_ino


def _secret_directories(user_home: bytes, needed: Iterable[bytes]) -> list[bytes]:
    """Directly in a home, what is hidden and so needs no overlay."""
    paths = [user_home + b"/" + n for n in hidden.HOME_SECRETS if b"/" not in n and b"*" not in n]
    return [p for p in paths if not any(mountinfo.is_below(need, p) for need in needed)]


def _refuse_root_as_workspace(roots: tuple[bytes, ...]) -> None:
    if b"/" in roots:
        raise HostUnsupported(
            "the home or the current directory is /, which a rootless world cannot overlay",
            hint="change to the directory that you work in, or set HOME",
        )


def _extents(host: HostView, backend: str, number: int) -> tuple[tuple[int, int, int], ...]:
    if backend == "ns-user":
        return ((host.uid, host.uid, 1), (host.gid, host.gid, 1))
    if backend != "ns-root-idmap":
        return ()
    taken: list[tuple[int, int]] = []
    for path in ("/etc/subuid", "/etc/subgid"):
        try:
            with open(path, "rb") as file:
                taken += idmap.parse_subordinate(file.read())
        except FileNotFoundError:
            continue
    return idmap.choose_extents(number, taken)


def _unmapped(path: bytes, extents: tuple[tuple[int, int, int], ...]) -> tuple[str, ...]:
    """A note where a world with shifted ids has no id for the owner of its workspace."""
    status = os.stat(path)
    if not extents or all(idmap.is_mapped(extents, i) for i in (status.st_uid, status.st_gid)):
        return ()
    return (
        f"E-UNMAPPED-OWNER: {os.fsdecode(path)} belongs to {status.st_uid}:{status.st_gid}, which no "
        "world with shifted ids has, so it stays read-only (--backend ns-root shifts none)",
    )


def spec_of(
    world: WorldFile,
    files: SessionFiles,
    stack: LayerStack,
    settings: Settings,
    host: HostView,
    covers: Covers,
    cgroups: CgroupSet,
    ready: Ready,
    frame: Frame,
) -> WorldSpec:
    """What the zygote needs to start the world on the newest layer of `stack`."""
    if frame.backend == "guard":
        return guarding.spec_of(files, stack, covers, cgroups, frame)
    *frozen, newest = [layer.number for layer in stack.layers] or [0]
    overlays = tuple(
        OverlaySpec(
            target=mount.target,
            lowers=(
                *(stack.upper(source, mount.index) for source in stack.sources(frozen)),
                *((ready.over[mount.index],) if mount.index in ready.over else ()),
            ),
            upper=stack.upper(newest, mount.index),
            work=stack.work(newest, mount.index),
            lowest=ready.lowest.get(mount.index, b""),
            no_exec=b"noexec" in mountinfo.mount_of(host.mounts, mount.target).options,
        )
        for mount in ready.present
    )
    orphans = {m.mount_point for m in host.mounts if mountinfo.is_orphan(m)}
    return WorldSpec(
        frame=frame,
        number=1,
        run_dir=files.run_path,
        overlays=overlays,
        hidden_directories=(*covers.directories, *sorted(orphans)),
        hidden_files=covers.files,
        viewed=covers.viewed,
        bound=tuple(sorted(filter(_exists, {*world.read_only, *ready.bound} - orphans))),
        written=(world.workspace,) if settings.shell_only else (),
        read_only=tuple(filter(_exists, _to_bind(settings.ro))),
        cgroup_dirs=cgroups.directories,
    )


def frame_of(
    world: WorldFile,
    settings: Settings,
    cgroups: CgroupSet,
    *,
    terminal: bool,
    observed: bool,
) -> Frame:
    """What the zygote needs to begin with a world of which nothing else is known yet. `terminal`:
    the command gets one; `observed`: it brings a filter for what is evidence."""
    plan = net_plan(settings, world.backend)
    return Frame(
        backend=world.backend,
        id_extents=world.id_extents,
        uid=world.uid,
        gid=world.gid,
        net=settings.net,
        dns_loopback=plan.dns_loopback,
        ranges=plan.ranges,
        host_ports=plan.host_ports,
        ports=plan.ports,
        seat=world.backend in NAMESPACED and not terminal,
        allow_ptrace=settings.ptrace,
        allow_userns=settings.userns,
        observed=observed,
        cgroup_unified=cgroups.birthplace,
        cgroup_tasks=cgroups.tasks,
    )


def _to_bind(asked: tuple[bytes, ...]) -> list[bytes]:
    """The real paths of `asked`, but those in /sys, which no world can write.

    Raises ConfigError for what a world has of its own and not from the host."""
    paths = [os.path.realpath(path) for path in asked]
    for path in paths:
        if path == b"/":
            raise ConfigError(
                "/ as a whole cannot be shown read-only",
                hint="name the directories that no command should change",
            )
        for own in (b"/dev", b"/proc", b"/run"):
            if mountinfo.is_below(path, own):
                raise ConfigError(
                    f"{os.fsdecode(path)} cannot be shown read-only: a world has "
                    f"{os.fsdecode(own)} of its own",
                    hint="leave it out of `ro`",
                )
    return [path for path in paths if not mountinfo.is_below(path, b"/sys")]


def _exists(path: bytes) -> bool:
    """As lexists(3), without asking the server of a filesystem that is mounted there."""
    try:
        linux.cached_type(path)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # such as a mount whose server is gone: it is there to be bound
    return True


def make_ready(
    world: WorldFile, files: SessionFiles, home: Home, stack: LayerStack, host: HostView
) -> Ready:
    """What the world's overlays lie on for one command.

    A place that was overlaid when the world began and is not what it was (a mount that has gone, another
    directory under its name) is bound read-only as it is now. Raises StateError where the
    world holds changes of it, HostUnsupported (E-LOWER-SUBMOUNT)."""
    present = []
    strange = []
    for mount in stack.mounts:
        if is_there(mount):
            present.append(mount)
            continue
        if any(not stack.is_empty(number, mount.index) for number in stack.numbers):
            raise gone(mount)
        if os.path.isdir(mount.target):
            strange.append(mount.target)
    if world.backend != "ns-user":
        return Ready(present=tuple(present), bound=tuple(strange))
    pending = len(stack.layers) > 1
    ready = stand_ins.refresh(world, files, host.mounts, present, (home.path,), pending=pending)
    return replace(ready, bound=tuple(dict.fromkeys((*ready.bound, *strange))))


def refuse_hidden_cwd(cwd: bytes, spec: WorldSpec) -> None:
    """A command cannot start in a directory that its world does not show."""
    for path in spec.hidden_directories:
        if mountinfo.is_below(cwd, path):
            raise StateError(
                f"the current directory lies in {os.fsdecode(path)}, which worlds do not see",
                hint="change to another directory, or use --no-world",
            )


def stdio_owner(world: WorldFile) -> tuple[int, int] | None:
    """The host's ids of the world's user, for pipes; None where they are ours already."""
    if world.backend != "ns-root-idmap":
        return None
    _, host_first, _ = world.id_extents[0]
    return host_first + world.uid, host_first + world.gid
