"""What a world does not see: the lists, live sockets, the user's own paths, and their other names.

Looks at the host before the world starts; mounts nothing (world/tree.py does), decides by no tree's
content. Invariants: substrate's own state is covered or there is no world; what should be covered and
is not, is in `left_open`, what the user or his agent sees all the same in `shown`, and both stand in
the record. Spec: world.md §2 "Hidden by default", §3.
"""

from __future__ import annotations

import os

from substrate.errors import ConfigError, StateError
from substrate.session import layer_place
from substrate.session.request import RUN
from substrate.values import value
from substrate.world import aliases, hidden, mountinfo, sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from substrate.session.home import Home
    from substrate.session.request import RunRequest
    from substrate.session.settings import Settings
    from substrate.session.world_file import WorldFile
    from substrate.session.world_setup import HostView
    from substrate.world.hidden_again import HiddenAgain


@value
class Covers:
    """Real paths. `viewed`: directories that are shown through a read-only overlay, so that what
    is covered in them stays covered when the host replaces it."""

    directories: tuple[bytes, ...] = ()
    files: tuple[bytes, ...] = ()
    viewed: tuple[bytes, ...] = ()
    shown: tuple[bytes, ...] = ()  # would be covered, but for the user's or the agent's sake
    left_open: tuple[tuple[bytes, str], ...] = ()  # should be covered, and why it is not


def covers_of(
    world: WorldFile,
    home: Home,
    settings: Settings,
    host: HostView,
    request: RunRequest,
    bound: tuple[bytes, ...],
    again: HiddenAgain | None = None,
) -> Covers:
    """The covers of a world for one command. `bound`: what this one shows by read-only binds,
    besides those that the world began with; `again`: of a session that asks for one command after the other.

    Raises StateError where substrate's own state would stay open, ConfigError for a path of
    `hide` or `show` that cannot be."""
    if world.backend == "none":
        return Covers()
    with open("/etc/passwd", "rb") as file:
        accounts = hidden.parse_passwd(file.read())
    with open("/proc/net/unix", "rb") as file:
        socket_paths = sockets.parse_proc_net_unix(file.read())
    files = hidden.HostFiles(host.uid)
    needed = (world.workspace, *settings.rw)
    _refuse_to_show_state(home, settings.show)
    asked: dict[str, Any] = {
        "home": host.user_home,
        "uid": host.uid,
        "state_dir": home.path,
        "accounts": accounts,
        "needed": needed,
        "shown": (*settings.show, *_sign_ins(request, host)),
    }
    found = hidden.hidden_paths(files=files, **asked) if again is None else again(**asked)
    _refuse_open_state(home, found.left_open)
    masked = sockets.socket_masks(
        socket_paths,
        files=files,
        home=host.user_home,
        needed=needed,
        runtime_dir=os.environb.get(b"XDG_RUNTIME_DIR"),
    )
    directories = [*found.directories, *masked.directories]
    single_files = [*found.files, *masked.files]
    elsewhere = layer_place.parent_of_all(home)
    if elsewhere is not None:
        directories.append(elsewhere)
    left_open = list(found.left_open)
    hides = []
    for path in settings.hide:
        seen = files.find(path)
        if seen is None:
            left_open.append((path, _why_not_found(path)))
            continue
        _refuse_to_hide(path, seen[0])
        (directories if seen[1] else single_files).append(seen[0])
        hides.append(seen[0])
    for alias in aliases.aliases((*directories, *single_files), host.mounts):
        seen = files.find(alias)
        if seen is not None and not any(mountinfo.is_below(path, seen[0]) for path in needed):
            (directories if seen[1] else single_files).append(seen[0])
    # /run is made anew in every world
    directories = [d for d in dict.fromkeys(directories) if not mountinfo.is_below(d, b"/run")]
    _refuse_to_show(settings.show, directories)
    viewed, replaceable = _views(hides, world, (*bound, *map(os.path.realpath, settings.ro)), host)
    return Covers(
        directories=tuple(directories),
        files=tuple(dict.fromkeys(single_files)),
        viewed=viewed,
        shown=found.shown,
        left_open=(*left_open, *replaceable),
    )


def _sign_ins(request: RunRequest, host: HostView) -> tuple[bytes, ...]:
    """Where the agent that `run` names keeps its sign-in: it cannot work without."""
    if request.kind != RUN:
        return ()
    names = hidden.AGENTS.get(os.path.basename(request.file), ())
    return tuple(os.path.join(host.user_home, name) for name in names)


def _why_not_found(path: bytes) -> str:
    if not os.path.lexists(path):
        return "it is not there; what is made there later is seen by a world that runs"
    raise ConfigError(
        f"{os.fsdecode(path)} cannot be hidden: it leads through a link of another user, or to "
        "nowhere",
        hint="name the place itself in `hide`",
    )


def _refuse_to_hide(path: bytes, real: bytes) -> None:
    if real == b"/" or any(mountinfo.is_below(real, tree) for tree in (b"/proc", b"/sys", b"/dev")):
        raise ConfigError(
            f"{os.fsdecode(path)} cannot be hidden: every world makes it itself",
            hint="take it out of `hide`; `substrate config show --origin` says where that stands",
        )


def _refuse_to_show_state(home: Home, shown: tuple[bytes, ...]) -> None:
    real = os.path.realpath(home.path)
    for path in shown:
        if mountinfo.is_below(real, os.path.realpath(path)) or mountinfo.is_below(
            os.path.realpath(path), real
        ):
            raise ConfigError(
                f"{os.fsdecode(path)} cannot be shown: SUBSTRATE_HOME lies there",
                hint="name what is to be seen in it; no world sees its own layers and records",
            )


def _refuse_to_show(wanted: Iterable[bytes], directories: list[bytes]) -> None:
    """A part of a directory that is covered as a whole cannot be shown."""
    for path in wanted:
        real = os.path.realpath(path)
        for directory in directories:
            if real != directory and mountinfo.is_below(real, directory):
                raise ConfigError(
                    f"{os.fsdecode(path)} cannot be shown: {os.fsdecode(directory)} is hidden "
                    "as a whole",
                    hint=f"show {os.fsdecode(directory)}, if all of it may be seen",
                )


def _refuse_open_state(home: Home, left_open: tuple[tuple[bytes, str], ...]) -> None:
    """A world never sees the layers, traces and keys of worlds: where they would have to stay
    open, there is none."""
    real = os.path.realpath(home.path)
    for path, why in left_open:
        if path == real:
            raise StateError(
                f"SUBSTRATE_HOME {os.fsdecode(home.path)} cannot be hidden from a world: {why}",
                hint="set SUBSTRATE_HOME to a directory that holds nothing else, or work elsewhere",
            )


def _views(
    asked: list[bytes], world: WorldFile, bound: tuple[bytes, ...], host: HostView
) -> tuple[tuple[bytes, ...], tuple[tuple[bytes, str], ...]]:
    """Of the paths that the user hides, those that a bind mount of the host's own tree shows: the
    directories to view them through, and the paths for which that cannot be done.

    A cover lies on the directory entry. Where that is the host's own, and the host renames
    something over it or removes it, the kernel takes the cover away (detach_mounts, called by
    vfs_rename). Entries of an overlay are the world's."""
    binds = [*world.read_only, *bound]
    if world.backend == "ns-user":
        binds.append(b"/")
    viewed: dict[bytes, None] = {}
    replaceable = []
    for path in asked:
        bind = max((b for b in binds if mountinfo.is_below(path, b)), key=len, default=None)
        overlay = max(
            (m for m in world.mounts if mountinfo.is_below(path, m)), key=len, default=None
        )
        if bind is None or (overlay is not None and len(overlay) >= len(bind)):
            continue
        parent = os.path.dirname(path)
        inside = (*world.mounts, *binds, *[mount.mount_point for mount in host.mounts])
        if parent == b"/" or any(p != parent and mountinfo.is_below(p, parent) for p in inside):
            replaceable.append((path, "covered only until the host replaces it"))
        else:
            viewed[parent] = None
    outer = [p for p in viewed if not any(p != o and mountinfo.is_below(p, o) for o in viewed)]
    return tuple(outer), tuple(replaceable)
