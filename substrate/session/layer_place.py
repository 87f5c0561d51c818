"""Where the layers of a world lie: in its session, or on a tmpfs where that cannot hold them.

An overlay is no upper of an overlay, and a container's root is one; nor is a network
filesystem. There the layers go to a tmpfs that the host has already (one mounted for them
would end with the command that mounted it): `<tmpfs>/substrate-<uid>-<random>/<session>`,
of which `$SUBSTRATE_HOME/layers` links to the upper part and the world's description keeps
the whole. Not the layers themselves (world/layers.py).

Invariants: such a directory is made and never adopted, it is ours and of mode 0700; no world
sees it; it goes with the layers. When the tmpfs was emptied (a restart), an open world is
refused with what it had; it never goes on as if nothing had been changed. Spec: world.md §1,
E-UPPER-OVERLAY.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from substrate.errors import HostUnsupported, SessionBusy
from substrate.values import value
from substrate.world import linux
from substrate.world.mountinfo import can_be_upper, mount_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from substrate.session.home import Home
    from substrate.world.mountinfo import Mount

#: a tmpfs with less room than this is no place for layers; with this much, the first one is taken
LEAST_BYTES = 16 << 20
ENOUGH_BYTES = 256 << 20

_LINK = b"/layers"
_LOCK_WAIT_S = 5.0


@value
class Place:
    """`directory`: where `layers` is made; empty for the session's own. `note`: why, for a
    person; empty there too."""

    directory: bytes = b""
    note: str = ""


def unfit(home_path: bytes, mounts: tuple[Mount, ...]) -> str:
    """The filesystem of the home if layers cannot be written there, "" where they can.

    A read-only one is left to the errors that it gives, a chroot (where no mount may hold the
    root) to the backends."""
    try:
        mount = mount_of(mounts, os.path.realpath(home_path))
    except LookupError:
        return ""
    if mount.read_only or can_be_upper(mount):
        return ""
    return mount.filesystem.decode(errors="replace")


def make(
    home: Home,
    mounts: tuple[Mount, ...],
    name: bytes,
    *,
    userxattr: bool,
    environ: Mapping[bytes, bytes] | None = None,
) -> Place:
    """The place for the layers of the session (or probe) `name`; makes its directory when it
    is on a tmpfs. `userxattr`: marks are kept in `user.` attributes.

    Raises HostUnsupported with E-UPPER-OVERLAY when no tmpfs will do, OSError."""
    lies_on = unfit(home.path, mounts)
    if not lies_on:
        return Place()
    shown = os.fsdecode(home.path)
    parent = _parent(home, mounts, os.environb if environ is None else environ)
    if parent is None:
        raise HostUnsupported(
            f"SUBSTRATE_HOME {shown} lies on {lies_on}, which cannot hold layers, and no tmpfs "
            f"with {LEAST_BYTES >> 20} MiB of room stands in",
            code="E-UPPER-OVERLAY",
            hint=remedy(),
        )
    directory = parent + b"/" + name
    os.mkdir(directory, 0o700)
    if userxattr and not _keeps_user_attributes(directory):
        os.rmdir(directory)
        raise HostUnsupported(
            f"SUBSTRATE_HOME {shown} lies on {lies_on}, which cannot hold layers, and the tmpfs "
            f"{os.fsdecode(parent)} keeps no user attributes (Linux 6.6 and later do)",
            code="E-UPPER-OVERLAY",
            hint=remedy(),
        )
    return Place(
        directory=directory,
        note=f"SUBSTRATE_HOME lies on {lies_on}, which cannot hold layers: they lie in "
        f"{os.fsdecode(parent)} instead, take memory, and are lost when that tmpfs is emptied "
        "(by a restart)",
    )


def without_births(path: bytes) -> str:
    """What it means that the filesystem of the layers keeps no times of birth, "" where it does."""
    if linux.birth_time_ns(linux.AT_FDCWD, path) is not None:
        return ""
    return (
        "the filesystem that holds the layers keeps no times of birth (E-BTIME): what the host "
        "changes after a world began counts as changed beside it, even if the world saw it so"
    )


def beside(directory: bytes, session_id: str) -> bytes:
    """The place for a fork's layers where its origin has `directory`; empty where that has none.

    Raises OSError."""
    if not directory:
        return b""
    made = os.path.dirname(directory) + b"/" + session_id.encode()
    os.mkdir(made, 0o700)
    return made


def remedy() -> str:
    """What to do about a home that cannot hold layers. A volume must not lie inside of what a
    rootless world overlays (the user's home); a new one belongs to root."""
    volume = (
        "in a container: `docker run -v substrate:/substrate -e SUBSTRATE_HOME=/substrate`"
        if os.geteuid() == 0
        else "outside of your home"
    )
    return (
        "give them a tmpfs (`docker run --tmpfs /tmp`), or, to keep them over a restart, set "
        f"SUBSTRATE_HOME to a directory of your own on a disk or volume, {volume}"
    )


def parent_of_all(home: Home) -> bytes | None:
    """The directory on a tmpfs that holds the layers of this home's worlds; None for none."""
    try:
        parent = os.readlink(home.path + _LINK)
    except FileNotFoundError:
        return None
    return parent if _is_ours(parent) else None


def is_there(directory: bytes) -> bool:
    """Whether a directory that a world's description names is there, and ours."""
    return _is_ours(os.path.dirname(directory)) and _is_ours(directory)


def remove(home: Home, session_id: str) -> None:
    """Takes away what a session has on a tmpfs, with all that is in it. Raises OSError."""
    parent = parent_of_all(home)
    if parent is not None:
        _remove_from(parent, session_id.encode())


def strays(home: Home) -> tuple[bytes, ...]:
    """The names in this home's directory that no session and no living probe has."""
    parent = parent_of_all(home)
    if parent is None:
        return ()
    # in this order: a session is there before its place is
    names = os.listdir(parent)
    return tuple(name for name in names if not _has_owner(home, name))


def remove_stray(home: Home, name: bytes) -> None:
    """Takes away one of `strays`. Raises OSError."""
    parent = parent_of_all(home)
    if parent is not None:
        _remove_from(parent, name)


def _has_owner(home: Home, name: bytes) -> bool:
    if name.startswith(b"probe-"):
        return os.path.exists(b"/proc/" + name.split(b"-")[1])
    return os.path.isdir(home.path + b"/sessions/" + name)


def _remove_from(parent: bytes, name: bytes) -> None:
    if not os.path.lexists(parent + b"/" + name):
        return
    from substrate.world.removal import remove_tree

    fd = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        remove_tree(fd, name)
    finally:
        os.close(fd)


# --- the home's directory on a tmpfs


def _parent(home: Home, mounts: tuple[Mount, ...], environ: Mapping[bytes, bytes]) -> bytes | None:
    """This home's directory on a tmpfs, made where there is none; None where none can be.

    One at a time: a second one would be found neither by `remove` nor by what hides it."""
    lock_fd = _lock(home)
    try:
        known = parent_of_all(home)
        if known is not None:
            return known
        for base in _by_room(mounts, environ):
            path = b"%s/substrate-%d-%s" % (base, os.geteuid(), os.urandom(8).hex().encode())
            try:
                os.mkdir(path, 0o700)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EROFS):
                    raise
                continue  # the next one may do
            _link(home, path)
            return path
        return None
    finally:
        os.close(lock_fd)


def _lock(home: Home) -> int:
    """An fd that holds the lock until it is closed. Of a file that is open for writing: NFS, one of
    the filesystems that bring us here, locks no other (flock(2))."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(home.path + _LINK + b".lock", flags, 0o600)
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                raise SessionBusy(
                    f"another substrate holds the lock of {os.fsdecode(home.path)}",
                    hint="run the command again",
                ) from None
            time.sleep(0.005)


def _link(home: Home, path: bytes) -> None:
    temporary = home.path + _LINK + b".%d" % os.getpid()
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.symlink(path, temporary)
    os.rename(temporary, home.path + _LINK)


def _by_room(mounts: tuple[Mount, ...], environ: Mapping[bytes, bytes]) -> list[bytes]:
    """The tmpfs directories that will do: the first with enough room, then by room."""
    runtime = environ.get(b"XDG_RUNTIME_DIR", b"")
    own = b"/run/user/%d" % os.geteuid()
    rooms: dict[bytes, int] = {}
    for path in (b"/dev/shm", runtime, own, b"/run", b"/tmp"):
        if not path.startswith(b"/"):
            continue
        base = os.path.realpath(path)
        if not os.path.isdir(base) or not os.access(base, os.W_OK | os.X_OK):
            continue
        mount = mount_of(mounts, base)
        if mount.filesystem != b"tmpfs" or mount.read_only:
            continue
        if not _is_safe_above(base):
            continue
        status = os.statvfs(base)
        # a tmpfs without a limit reports no blocks at all (tmpfs(5), size=0)
        room = status.f_bavail * status.f_frsize if status.f_blocks else ENOUGH_BYTES
        if room >= LEAST_BYTES:
            rooms.setdefault(base, room)
    order = list(rooms)
    return sorted(order, key=lambda base: (-min(rooms[base], ENOUGH_BYTES), order.index(base)))


def _is_safe_above(base: bytes) -> bool:
    """Whether nobody else can move away what we make in it."""
    status = os.stat(base)
    if status.st_uid not in (0, os.geteuid()):
        return False
    return bool(status.st_mode & 0o1000) or not status.st_mode & 0o022


def _is_ours(path: bytes) -> bool:
    """A directory, no link to one, that is ours and closed to everybody else."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return (
        status.st_mode & 0o170000 == 0o040000
        and status.st_uid == os.geteuid()
        and not status.st_mode & 0o077
    )


def _keeps_user_attributes(directory: bytes) -> bool:
    name = "user.substrate"
    try:
        os.setxattr(directory, name, b"y")
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return False
    os.removexattr(directory, name)
    return True
