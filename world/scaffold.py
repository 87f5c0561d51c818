"""What every world has besides the host's files: /dev, /proc, /sys, /run, and what hides paths.

It is put together in a world's own mount namespace before the world's files are known, and the
root is brought to it. Invariants: as in tree.py. Spec: world.md §2, §3, §7.
"""

from __future__ import annotations

import _socket
import errno
import os

from substrate.world import linux, tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from substrate.world.spec import Frame, WorldSpec

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


class Scaffold:
    """Where a world's root is put together: a tmpfs in its own mount namespace, in which stands
    what every world has besides the host's tree (/dev, /proc, /sys, /run) with what is hidden of
    that, and a place for the root. In the end it is left, with what covers hidden paths."""

    __slots__ = ("_cover", "_covered", "_moved", "_root", "_tree", "inside")
    _PLACES = (b"dev", b"proc", b"sys", b"run")

    def __init__(self, frame: Frame, step: Callable[[str], None]) -> None:
        """Needs nothing of the world's files. Runs in the world's own namespaces, with its ids,
        while the host's tree is there; `step` is told what is being done."""
        step("/dev")
        devpts = [("newinstance", None), ("ptmxmode", "0666"), ("mode", "0620")]
        no_programs = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NOEXEC
        mounts = [
            (b"dev", _dev()),
            (b"dev/pts", linux.new_mount("devpts", [*devpts], no_programs)),
            *((b"dev/" + name, _device(name)) for name in _DEVICES),
        ]
        step("/proc")
        mounts.append((b"proc", linux.new_mount("proc", [], tree.LOCKED_DOWN)))
        step("/sys")
        mounts.append((b"sys", _sys(frame)))
        step("/run")
        mounts.append((b"run", _run(frame)))
        step("scaffold")
        mounts.append((b"cover", _cover()))
        self._tree = linux.new_mount("tmpfs", [("mode", "755"), ("size", "64k")], tree.LOCKED_DOWN)
        for name in (*self._PLACES, b"cover", b"root"):
            os.mkdir(name, 0o755, dir_fd=self._tree)
        linux.mount_setattr(
            self._tree,
            set_flags=linux.MOUNT_ATTR_RDONLY | tree.LOCKED_DOWN,
            propagation=linux.MS_UNBINDABLE,  # what is bound of the host's tree is without it
        )
        # over the old root, from which paths start all the same: nothing of the host is covered
        linux.move_mount(self._tree, b"/")
        self._covered = 1
        for path, fd in mounts:
            tree.attach_at(self._tree, fd, path)
        #: the socket at which processes of the world ask for its supervisor
        self.inside: _socket.socket | None = None
        if frame.inside:
            step("/run/substrate")
            place, self.inside = _door()
            tree.attach_at(self._tree, place, b"run/substrate")
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        self._cover = os.open(b"cover", flags, dir_fd=self._tree)
        step("/proc")
        _close_proc(self._tree)
        step("/sys")
        for path in _SYS_HIDDEN:
            _lay_over(self._tree, path, self._cover, b"directory")
        self._moved = [(b"/" + n, os.open(n, flags, dir_fd=self._tree)) for n in self._PLACES]
        self._root = -1

    def leave_host(self) -> None:
        """Makes the scaffold the root of every process here: nothing of the host is in sight then."""
        os.fchdir(self._tree)
        linux.pivot_root_here()
        self._covered = 0

    def take(self, root_fd: int) -> None:
        """Attaches the detached mount that becomes the world's root."""
        at = os.open(b"root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._tree)
        linux.move_mount(root_fd, b"", dir_fd=at)
        os.close(at)
        self._root = root_fd

    def furnish(self, spec: WorldSpec, step: Callable[[str], None]) -> None:
        """Moves what every world has into the root that was taken, and covers what is hidden there;
        `step` is told what is being done."""
        for path, fd in self._moved:
            step(os.fsdecode(path))
            try:
                tree.attach_at(self._root, fd, path)
            except FileNotFoundError:
                if path != b"/run":
                    raise
                os.close(fd)  # a host without one, such as a small container, has no services there
        step("hidden paths")
        for path in spec.viewed:
            _view_again(self._root, path, self._cover, userxattr=spec.frame.backend == "ns-user")
        for path in spec.hidden_directories:
            _lay_over(self._root, path, self._cover, b"directory")
        for path in spec.hidden_files:
            _lay_over(self._root, path, self._cover, b"file")

    def leave(self) -> None:
        """Makes the root that was taken the one of every process here; the scaffold goes."""
        os.fchdir(self._root)
        linux.pivot_root_here(self._covered)
        for fd in (self._root, self._cover, self._tree):
            os.close(fd)


def _dev() -> int:
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
    proc = tree.open_beneath(root_fd, b"proc", os.O_RDONLY | os.O_DIRECTORY)
    dev = tree.open_beneath(root_fd, b"dev", os.O_PATH)
    with os.scandir(proc) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if name.isdigit() or entry.is_symlink():
                continue
            if entry.is_dir(follow_symlinks=False):
                fd = linux.open_tree(name, recursive=True, dir_fd=proc)
                attributes = linux.MOUNT_ATTR_RDONLY | tree.LOCKED_DOWN
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
        at = tree.open_beneath(root_fd, path, flags)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES):
            return
        raise
    fd = linux.open_tree(kind, dir_fd=cover_fd)
    linux.move_mount(fd, b"", dir_fd=at)
    os.close(at)
    os.close(fd)


def _sys(frame: Frame) -> int:
    """A read-only /sys: a fresh one shows only the world's own network devices; with the
    host's network namespace a user namespace may only bind the host's (sysfs(5))."""
    attributes = linux.MOUNT_ATTR_RDONLY | tree.LOCKED_DOWN
    if frame.net != "host" or frame.backend == "ns-root":
        return linux.new_mount("sysfs", [], attributes)
    fd = linux.open_tree("/sys", recursive=True)
    linux.mount_setattr(fd, set_flags=attributes, recursive=True)
    return fd


def _run(frame: Frame) -> int:
    """A fresh /run: the host's holds sockets of its services (world.md §3)."""
    fd = linux.new_mount("tmpfs", [("mode", "755"), ("size", "64m")], tree.NOSUID_NODEV)
    os.mkdir("lock", dir_fd=fd)
    os.chmod("lock", 0o1777, dir_fd=fd)
    os.mkdir("user", 0o755, dir_fd=fd)
    own = f"user/{frame.uid}"
    os.mkdir(own, 0o700, dir_fd=fd)
    if frame.inside:
        os.mkdir("substrate", 0o755, dir_fd=fd)
    if frame.net == "host":
        _keep_resolv_conf(fd)
    return fd


def _door() -> tuple[int, _socket.socket]:
    """A detached tmpfs that nobody can write to, with a socket that listens in it: no file of the
    host's is bound, and nobody in the world can put another one there."""
    fd = linux.new_mount("tmpfs", [("mode", "755"), ("size", "4k")], tree.LOCKED_DOWN)
    socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    # every user of the world may ask: who it is, the supervisor knows by its process
    before = os.umask(0o111)
    try:
        os.fchdir(fd)
        socket.bind(b"inside")
    finally:
        os.umask(before)
        os.chdir("/")
    socket.listen(64)
    linux.mount_setattr(fd, set_flags=linux.MOUNT_ATTR_RDONLY | tree.LOCKED_DOWN)
    return fd, socket


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
    fd = linux.new_mount("tmpfs", [("mode", "755"), ("size", "4k")], tree.LOCKED_DOWN)
    os.mkdir("directory", 0o000, dir_fd=fd)
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o000, dir_fd=fd))
    linux.mount_setattr(fd, set_flags=linux.MOUNT_ATTR_RDONLY | tree.LOCKED_DOWN)
    return fd


def _view_again(root_fd: int, path: bytes, cover_fd: int, *, userxattr: bool) -> None:
    """Shows a directory of a bind through a read-only overlay of itself.

    A cover on one of the host's own directory entries goes when the host renames something over
    that entry or removes it; the entries of an overlay are ours alone."""
    flags = os.O_PATH | os.O_DIRECTORY
    try:
        below = tree.open_beneath(root_fd, path, flags)
    except FileNotFoundError:
        return
    empty = os.open(b"directory", flags | os.O_CLOEXEC, dir_fd=cover_fd)
    os.fchdir(root_fd)  # the world's own /proc is below it; the old one may be out of sight
    options: list[tuple[str, str | int | None]] = [
        ("lowerdir", f"proc/self/fd/{below}:proc/self/fd/{empty}")
    ]
    if userxattr:
        options.append(("userxattr", None))
    view = linux.new_mount("overlay", options, tree.NOSUID_NODEV | linux.MOUNT_ATTR_RDONLY)
    linux.move_mount(view, b"", dir_fd=below)
    for fd in (view, empty, below):
        os.close(fd)
