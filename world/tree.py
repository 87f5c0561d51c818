"""The files of a world: overlays of the host's tree, and binds of what is not overlaid.

Not what every world has besides (scaffold.py). Nothing here is visible on the host. Invariants:
targets inside the world are opened by fd without following a symlink (an earlier command of
the same world could have planted one) and mounted by fd; a step that fails, fails the world
(world.md §2, §7). Which paths, is decided by the caller.
"""

from __future__ import annotations

import errno
import os

from substrate.world import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from substrate.world.spec import OverlaySpec, WorldSpec

NOSUID_NODEV = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
LOCKED_DOWN = NOSUID_NODEV | linux.MOUNT_ATTR_NOEXEC


def make_private() -> None:
    """No mount of this namespace reaches another one from here on (mount_namespaces(7))."""
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)


def open_beneath(root_fd: int, path: bytes, flags: int) -> int:
    """Opens an absolute world path below `root_fd`, through no symlink (openat2(2))."""
    resolve = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS
    return linux.openat2(root_fd, path.lstrip(b"/") or b".", flags, resolve)


def mount_overlay(spec: OverlaySpec, lowest: bytes, *, userxattr: bool) -> int:
    """A detached overlay of `spec` over the directory `lowest`; returns its fd. What may not be
    executed on the host, may not in the world.

    Directories are given as /proc/self/fd paths: an option is at most 255 bytes long
    (fsconfig(2)), and the world's mountinfo then names no path of the state directory.
    `volatile` because a copy-up that syncs costs milliseconds a file (world.md §3). No
    devices: a node of the host outside /dev (in a chroot's tree) is one in the world too."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    attributes = LOCKED_DOWN if spec.no_exec else NOSUID_NODEV
    opened: list[int] = []

    def fd_path(path: bytes) -> str:
        opened.append(os.open(path, flags))
        return f"/proc/self/fd/{opened[-1]}"

    try:
        lowers = [fd_path(path) for path in (*spec.lowers, lowest)]
        tail: list[tuple[str, str | int | None]] = [
            ("upperdir", fd_path(spec.upper)),
            ("workdir", fd_path(spec.work)),
            ("volatile", None),
        ]
        if userxattr:
            tail.append(("userxattr", None))
        else:
            tail += [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")]
        separate: list[tuple[str, str | int | None]] = [("lowerdir+", path) for path in lowers]
        try:
            return linux.new_mount("overlay", separate + tail, attributes)
        except linux.MountFailed as error:
            if error.errno != errno.EINVAL or "lowerdir+" not in str(error.strerror):
                raise
        return mount_by_one_option(lowers, tail, attributes)
    finally:
        for fd in opened:
            os.close(fd)


def mount_by_one_option(
    lowers: list[str],
    tail: list[tuple[str, str | int | None]],
    attributes: int = NOSUID_NODEV,
) -> int:
    """Before Linux 6.7 one option names all lowers, as /proc/self/fd paths here. With their
    255 bytes that would be 14; from /proc/self/fd itself the names are short enough for 60."""
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    os.chdir("/proc/self/fd")
    try:
        joined = ":".join(path.removeprefix("/proc/self/fd/") for path in lowers)
        return linux.new_mount("overlay", [("lowerdir", joined), *tail], attributes)
    finally:
        os.fchdir(here)
        os.close(here)


class Lowest:
    """What lies below the layers of an overlay: the host's directory, or a view of it.

    overlayfs refuses a lower that is inside another one (ELOOP), and frozen layers usually
    are inside the host's directory. A read-only overlay of that directory is a filesystem of
    its own, so its files can lie below them; it costs the second level of stacking, of the
    two that the kernel allows, and is used only where it is needed (docs/adr/0003)."""

    def __init__(self, spec: WorldSpec, *, userxattr: bool) -> None:
        self._run_dir = spec.run_dir
        self._userxattr = userxattr
        self._empty: bytes | None = None
        self._attached: list[bytes] = []

    def mount(self, overlay: OverlaySpec, lowest: bytes, number: int) -> int:
        """The detached overlay `overlay` over `lowest`.

        Not by trying: a mount that the kernel refuses so late has left its mark of a
        volatile mount in the work directory."""
        if any(_is_inside(path, overlay.target) for path in overlay.lowers):
            lowest = self._view(lowest, number)
        return mount_overlay(overlay, lowest, userxattr=self._userxattr)

    def _view(self, lowest: bytes, number: int) -> bytes:
        if self._empty is None:  # an overlay without an upper needs a second lower
            fd = linux.new_mount("tmpfs", [("mode", "755"), ("size", "4k")], LOCKED_DOWN)
            os.mkdir("empty", 0o755, dir_fd=fd)
            self._empty = self.attach(fd, b"empty") + b"/empty"
        empty = os.open(self._empty, os.O_PATH | os.O_CLOEXEC)
        below = os.open(lowest, os.O_PATH | os.O_CLOEXEC)
        options: list[tuple[str, str | int | None]] = [
            ("lowerdir", f"/proc/self/fd/{empty}:/proc/self/fd/{below}")
        ]
        if self._userxattr:
            options.append(("userxattr", None))
        try:
            view = linux.new_mount("overlay", options, NOSUID_NODEV)
            return self.attach(view, b"view-%d" % number)
        finally:
            os.close(empty)
            os.close(below)

    def attach(self, fd: int, name: bytes) -> bytes:
        """Attaches a mount below the run directory, where a lower has to be; closes `fd`."""
        path = self._run_dir + b"/" + name
        os.makedirs(path, 0o700, exist_ok=True)
        linux.move_mount(fd, path)
        os.close(fd)
        self._attached.append(path)
        return path

    def detach(self) -> None:
        """Takes the attached mounts away again: overlays have clones of their own."""
        while self._attached:
            linux.umount(self._attached.pop())


def _is_inside(path: bytes, directory: bytes) -> bool:
    real, outer = os.path.realpath(path), os.path.realpath(directory)
    return (
        real.startswith(outer.rstrip(b"/") + b"/") and os.stat(real).st_dev == os.stat(outer).st_dev
    )


def detached_parts(
    spec: WorldSpec, below: Lowest, userns_fd: int | None
) -> Iterator[tuple[bytes, int]]:
    """Root backends: an overlay of `/`, one more for each writable submount, read-only binds;
    (target, fd of the detached mount), the root first.

    Runs in the zygote, in its private mount namespace, as the host's root. With `userns_fd`
    each lower is an id-mapped view of the host's tree (mount_setattr(2) MOUNT_ATTR_IDMAP). The
    caller detaches what is `below` when nobody waits for that any more."""
    bound = list(spec.bound)
    for number, overlay in enumerate(spec.overlays):
        while bound and bound[0] < overlay.target:
            path = bound.pop(0)
            yield path, _read_only_bind(path, userns_fd)
        lowest = overlay.target
        if userns_fd is not None:
            fd = linux.open_tree(overlay.target)
            linux.mount_setattr(fd, set_flags=linux.MOUNT_ATTR_IDMAP, userns_fd=userns_fd)
            lowest = below.attach(fd, b"low-%d" % number)
        yield overlay.target, below.mount(overlay, lowest, number)
    for path in bound:
        yield path, _read_only_bind(path, userns_fd)
    for path in spec.written:
        yield path, _bind(path, userns_fd)
    for path in spec.read_only:
        yield path, _read_only_bind(path, userns_fd)


def clone_host() -> int:
    """Rootless: an fd of a detached, read-only copy of the host's tree with all its mounts."""
    fd = linux.open_tree(b"/", recursive=True)
    linux.mount_setattr(fd, set_flags=linux.MOUNT_ATTR_RDONLY | NOSUID_NODEV, recursive=True)
    return fd


def attach_parts(spec: WorldSpec, root_fd: int) -> None:
    """Rootless: attaches overlays on the places that may be written, and what is bound, below
    `root_fd`. Runs in the world's own namespaces."""
    below = Lowest(spec, userxattr=True)
    bound = list(spec.bound)
    for number, overlay in enumerate(spec.overlays):
        while bound and bound[0] < overlay.target:
            _bind_below(root_fd, bound.pop(0))
        fd = below.mount(overlay, overlay.lowest or overlay.target, number)
        attach_at(root_fd, fd, overlay.target)
    for path in bound:
        _bind_below(root_fd, path)
    for path in spec.written:
        attach_at(root_fd, _bind(path, None), path)
    for path in spec.read_only:
        _bind_below(root_fd, path)


def _bind_below(root_fd: int, path: bytes) -> None:
    """Binds a path of the host read-only at its place below the root."""
    attach_at(root_fd, _read_only_bind(path, None), path)


def _read_only_bind(path: bytes, userns_fd: int | None) -> int:
    """A detached read-only bind of one of the host's own mounts with all below it."""
    return _bind(path, userns_fd, linux.MOUNT_ATTR_RDONLY)


def _bind(path: bytes, userns_fd: int | None, attributes: int = 0) -> int:
    """A detached bind of a directory of the host with all below it.

    A filesystem that cannot be id-mapped shows its owners as nobody (mount_setattr(2))."""
    fd = linux.open_tree(path, recursive=True)
    linux.mount_setattr(fd, set_flags=attributes | NOSUID_NODEV, recursive=True)
    if userns_fd is not None:
        try:
            linux.mount_setattr(fd, set_flags=linux.MOUNT_ATTR_IDMAP, userns_fd=userns_fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM):
                raise
    return fd


def attach_at(root_fd: int, fd: int, target: bytes) -> None:
    """Attaches the detached mount `fd` at a path below the root; closes `fd`."""
    at = open_beneath(root_fd, target, os.O_PATH)
    linux.move_mount(fd, b"", dir_fd=at)
    os.close(at)
    os.close(fd)
