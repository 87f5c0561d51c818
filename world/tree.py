"""The mount tree of a world: overlays, /dev, /proc, /sys, /run and what is hidden.

Runs in the world's own mount namespace, before the command exists; nothing here is visible
on the host. Invariants: targets inside the world are opened by fd without following a
symlink (an earlier command of the same world could have planted one) and mounted by fd; a
step that fails, fails the world (world.md §2, §7). Which paths, is decided by the caller.
"""

from __future__ import annotations

import errno
import os

from substrate.world import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from substrate.world.spec import OverlaySpec, WorldSpec

NOSUID_NODEV = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
LOCKED_DOWN = NOSUID_NODEV | linux.MOUNT_ATTR_NOEXEC
#: A bind of a device is the host's own inode, whose mode and times its owner could change; that
#: a mount is read-only does not keep the device itself from being written (mount(8)).
_DEVICE = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NOEXEC
_DEVICES = (b"null", b"zero", b"full", b"random", b"urandom", b"tty")
_DEV_LINKS = (
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
)
#: Files of /proc that nobody may read in a world. Those that can be written are covered without
#: being named: what there is, depends on the kernel's drivers.
_PROC_MASKED = frozenset(
    b"allocinfo iomem ioports kallsyms kcore keys key-users kmsg kpagecgroup kpagecount kpageflags"
    b" latency_stats mtrr sched_debug slabinfo sysrq-trigger timer_list timer_stats"
    b" vmallocinfo".split()
)
#: Tables of the firmware, and meters of energy by which other users' work can be measured.
_SYS_HIDDEN = (b"sys/firmware", b"sys/devices/virtual/powercap")


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
    for path in (*bound, *spec.read_only):
        yield path, _read_only_bind(path, userns_fd)


def attach_parts(parts: list[tuple[bytes, int]]) -> int:
    """Attaches the parts in this mount namespace, the world's; returns an fd of the root.

    The root lies over /proc of the old tree until that is left: a place that every user can
    reach, while the directories above the layers are the host's root's alone."""
    (_, root_fd), *others = parts
    linux.move_mount(root_fd, b"/proc")
    for target, fd in others:
        _attach_at(root_fd, fd, target)
    return root_fd


def overlay_writable_roots(spec: WorldSpec) -> int:
    """Rootless: the host's tree recursively bound and read-only, overlays on the places
    that may be written. Runs in the world's own namespaces; returns an fd of the root."""
    root = spec.run_dir + b"/root"
    linux.mount("/", root, None, linux.MS_BIND | linux.MS_REC)
    attributes = linux.MOUNT_ATTR_RDONLY | NOSUID_NODEV
    linux.mount_setattr(linux.AT_FDCWD, root, set_flags=attributes, recursive=True)
    below = Lowest(spec, userxattr=True)
    bound = list(spec.bound)
    for number, overlay in enumerate(spec.overlays):
        while bound and bound[0] < overlay.target:
            _bind_below(root, bound.pop(0))
        fd = below.mount(overlay, overlay.lowest or overlay.target, number)
        over = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        _attach_at(over, fd, overlay.target)
        os.close(over)
    for path in (*bound, *spec.read_only):
        _bind_below(root, path)
    return os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _bind_below(root: bytes, path: bytes) -> None:
    """Binds a path of the host read-only at its place below the root."""
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    _attach_at(root_fd, _read_only_bind(path, None), path)
    os.close(root_fd)


def _read_only_bind(path: bytes, userns_fd: int | None) -> int:
    """A detached read-only bind of one of the host's own mounts with all below it.

    A filesystem that cannot be id-mapped shows its owners as nobody (mount_setattr(2))."""
    fd = linux.open_tree(path, recursive=True)
    linux.mount_setattr(fd, set_flags=linux.MOUNT_ATTR_RDONLY | NOSUID_NODEV, recursive=True)
    if userns_fd is not None:
        try:
            linux.mount_setattr(fd, set_flags=linux.MOUNT_ATTR_IDMAP, userns_fd=userns_fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM):
                raise
    return fd


def _attach_at(root_fd: int, fd: int, target: bytes) -> None:
    """Attaches the detached mount `fd` at a path below the root; closes `fd`."""
    at = open_beneath(root_fd, target, os.O_PATH)
    linux.move_mount(fd, b"", dir_fd=at)
    os.close(at)
    os.close(fd)


class Furniture:
    """What every world has besides the host's tree, as detached mounts: `mounts` are (place, fd)
    in the order in which they are attached, `cover` is the fd of `_cover`."""

    __slots__ = ("cover", "mounts")

    def __init__(self, spec: WorldSpec, step: Callable[[str], None]) -> None:
        """Needs nothing of the world's root. Runs in the world's own namespaces, with its ids;
        `step` is told what is being done."""
        step("/dev")
        devpts = [("newinstance", None), ("ptmxmode", "0666"), ("mode", "0620")]
        no_programs = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NOEXEC
        self.mounts = [
            (b"/dev", _dev(spec)),
            (b"/dev/pts", linux.new_mount("devpts", [*devpts], no_programs)),
            *((b"/dev/" + name, _device(name)) for name in _DEVICES),
        ]
        step("/proc")
        self.cover = _cover()
        # binds need a source that is attached; the real one covers it there
        self.mounts.append((b"/proc", os.dup(self.cover)))
        self.mounts.append((b"/proc", linux.new_mount("proc", [], LOCKED_DOWN)))
        step("/sys")
        self.mounts.append((b"/sys", _sys(spec)))
        step("/run")
        self.mounts.append((b"/run", _run(spec)))


def furnish(
    root_fd: int, furniture: Furniture, spec: WorldSpec, step: Callable[[str], None]
) -> None:
    """Attaches the furniture below the root, and covers what is hidden there; `step` is told what
    is being done."""
    for path, fd in furniture.mounts:
        step("/" + os.fsdecode(path.split(b"/")[1]))
        try:
            _attach_at(root_fd, fd, path)
        except FileNotFoundError:
            if path != b"/run":
                raise
            os.close(fd)  # a host without one, such as a small container, has no services there
    step("/proc")
    _close_proc(root_fd)
    step("/sys")
    for path in _SYS_HIDDEN:
        _lay_over(root_fd, path, furniture.cover, b"directory")
    step("hidden paths")
    for path in spec.viewed:
        _view_again(root_fd, path, furniture.cover, userxattr=spec.backend == "ns-user")
    _hide(root_fd, furniture.cover, spec)
    os.close(furniture.cover)


def _dev(spec: WorldSpec) -> int:
    """A detached tmpfs with the entries of a minimal /dev; mounts go on top later."""
    fd = linux.new_mount("tmpfs", [("mode", "755"), ("size", "64m")], linux.MOUNT_ATTR_NOSUID)
    for name in _DEVICES:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=fd))
    os.mkdir("pts", 0o755, dir_fd=fd)
    os.mkdir("shm", dir_fd=fd)
    os.chmod("shm", 0o1777, dir_fd=fd)
    for target, link in _DEV_LINKS:
        os.symlink(target, link, dir_fd=fd)
    return fd


def _device(name: bytes) -> int:
    """A detached bind of one of the host's devices."""
    fd = linux.open_tree(b"/dev/" + name)
    linux.mount_setattr(fd, set_flags=_DEVICE)
    return fd


def _close_proc(root_fd: int) -> None:
    """Of a new /proc only the processes stay as they are: every other directory becomes
    read-only, every file that could be written or is on the list shows the world's /dev/null.

    Not by a list of what is known to be dangerous: a driver may put its own there, and in a
    world without a user namespace its owner, the host's root, is the one inside."""
    proc = open_beneath(root_fd, b"proc", os.O_RDONLY | os.O_DIRECTORY)
    dev = open_beneath(root_fd, b"dev", os.O_PATH)
    with os.scandir(proc) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if name.isdigit() or entry.is_symlink():
                continue
            if entry.is_dir(follow_symlinks=False):
                fd = linux.open_tree(name, recursive=True, dir_fd=proc)
                attributes = linux.MOUNT_ATTR_RDONLY | LOCKED_DOWN
                linux.mount_setattr(fd, set_flags=attributes, recursive=True)
            elif name in _PROC_MASKED or entry.stat(follow_symlinks=False).st_mode & 0o222:
                fd = linux.open_tree(b"null", dir_fd=dev)
            else:
                continue
            linux.move_mount(fd, name, dir_fd=proc)  # one name, and no link: none is followed
            os.close(fd)
    os.close(dev)
    os.close(proc)


def _lay_over(root_fd: int, path: bytes, cover_fd: int, kind: bytes) -> None:
    """Covers a path where it is there. One that is not, or runs through a symlink now, shows
    nothing of the host: an overlay shows a lower file at its own path only."""
    flags = os.O_PATH | (os.O_DIRECTORY if kind == b"directory" else os.O_NOFOLLOW)
    try:
        at = open_beneath(root_fd, path, flags)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES):
            return
        raise
    fd = linux.open_tree(kind, dir_fd=cover_fd)
    linux.move_mount(fd, b"", dir_fd=at)
    os.close(at)
    os.close(fd)


def _sys(spec: WorldSpec) -> int:
    """A read-only /sys: a fresh one shows only the world's own network devices; with the
    host's network namespace a user namespace may only bind the host's (sysfs(5))."""
    attributes = linux.MOUNT_ATTR_RDONLY | LOCKED_DOWN
    if spec.net != "host" or spec.backend == "ns-root":
        return linux.new_mount("sysfs", [], attributes)
    fd = linux.open_tree("/sys", recursive=True)
    linux.mount_setattr(fd, set_flags=attributes, recursive=True)
    return fd


def _run(spec: WorldSpec) -> int:
    """A fresh /run: the host's holds sockets of its services (world.md §3)."""
    fd = linux.new_mount("tmpfs", [("mode", "755"), ("size", "64m")], NOSUID_NODEV)
    os.mkdir("lock", dir_fd=fd)
    os.chmod("lock", 0o1777, dir_fd=fd)
    os.mkdir("user", 0o755, dir_fd=fd)
    own = f"user/{spec.uid}"
    os.mkdir(own, 0o700, dir_fd=fd)
    if spec.net == "host":
        _keep_resolv_conf(fd)
    return fd


def _keep_resolv_conf(run_fd: int) -> None:
    """/etc/resolv.conf often is a link into /run: its text is put where the link points."""
    target = os.path.realpath(b"/etc/resolv.conf")
    if not target.startswith(b"/run/"):
        return
    try:
        with open(target, "rb") as source:
            text = source.read(1 << 20)
    except FileNotFoundError:
        return
    at = run_fd
    parts = target[len(b"/run/") :].split(b"/")
    for part in parts[:-1]:
        os.mkdir(part, 0o755, dir_fd=at)
        at = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
    fd = os.open(parts[-1], os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=at)
    os.write(fd, text)
    os.close(fd)


def _cover() -> int:
    """A detached read-only tmpfs with an empty directory and an empty file, both of mode 000: what
    hidden paths show. Returns its fd."""
    fd = linux.new_mount("tmpfs", [("mode", "755"), ("size", "4k")], LOCKED_DOWN)
    os.mkdir("directory", 0o000, dir_fd=fd)
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o000, dir_fd=fd))
    linux.mount_setattr(fd, set_flags=linux.MOUNT_ATTR_RDONLY | LOCKED_DOWN)
    return fd


def _view_again(root_fd: int, path: bytes, cover_fd: int, *, userxattr: bool) -> None:
    """Shows a directory of a bind through a read-only overlay of itself.

    A cover on one of the host's own directory entries goes when the host renames something over
    that entry or removes it; the entries of an overlay are ours alone."""
    flags = os.O_PATH | os.O_DIRECTORY
    try:
        below = open_beneath(root_fd, path, flags)
    except FileNotFoundError:
        return
    empty = os.open(b"directory", flags | os.O_CLOEXEC, dir_fd=cover_fd)
    os.fchdir(root_fd)  # the world's own /proc is below it; the old one may be out of sight
    options: list[tuple[str, str | int | None]] = [
        ("lowerdir", f"proc/self/fd/{below}:proc/self/fd/{empty}")
    ]
    if userxattr:
        options.append(("userxattr", None))
    view = linux.new_mount("overlay", options, NOSUID_NODEV | linux.MOUNT_ATTR_RDONLY)
    linux.move_mount(view, b"", dir_fd=below)
    for fd in (view, empty, below):
        os.close(fd)


def _hide(root_fd: int, cover_fd: int, spec: WorldSpec) -> None:
    """Covers the hidden paths."""
    for path in spec.hidden_directories:
        _lay_over(root_fd, path, cover_fd, b"directory")
    for path in spec.hidden_files:
        _lay_over(root_fd, path, cover_fd, b"file")
