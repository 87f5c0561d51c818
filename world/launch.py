"""Starts one world: namespaces, mounts, pid 1 (world.md §2, "Order that works").

Called in the zygote, which is single-threaded. Each child reports a failure by a FAILED
message on the world's socket (step, errno, text) and ends; a world that did not become
READY leaves nothing behind, since everything it made lives in its own namespaces.
"""

from __future__ import annotations

import _signal
import _socket
import errno
import fcntl
import os
import struct
import sys

from substrate.world import holder, linux, tree, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from substrate.world.spec import WorldSpec

    Body = Callable[[WorldSpec, _socket.socket, "_Steps"], None]

# zygote → first process, on a socket of their own
_NAME_IT = b"n"  # asks for an fd of the user namespace
_PLACED = b"p"  # ids are mapped
_PART = b"m"  # target; a detached mount
_PARTS_END = b"e"
# first process → zygote
_NAMESPACE = b"u"  # an fd of it
#: before Linux 5.7, or by a container's filter
_NO_CLONE3 = (errno.E2BIG, errno.EINVAL, errno.ENOSYS, errno.EPERM)
#: finders of sys.meta_path that read no file (importlib.machinery)
_BUILT_IN = ("BuiltinImporter", "FrozenImporter")
#: of the first process from its birth; the others it makes itself, while the zygote goes on, and
#: a cgroup namespace once it is in the world's groups
_AT_BIRTH = linux.CLONE_NEWNS | linux.CLONE_NEWPID


class _Steps:
    """Which step is under way, for the message when it fails."""

    def __init__(self) -> None:
        self.now = "fork"

    def __call__(self, name: str) -> None:
        self.now = name


def _other_namespaces(spec: WorldSpec) -> int:
    """The CLONE_NEW* flags of what is not there from birth."""
    network = linux.CLONE_NEWNET if spec.net == "none" else 0
    return linux.CLONE_NEWUTS | linux.CLONE_NEWIPC | network


_unprepared: OSError | None = None


def prepare() -> None:
    """Gives the zygote a mount namespace of its own, in which lowers are attached for the
    moment in which an overlay takes them. Mounts of the host still come in, ours do not go
    out. Where that fails there are no root backends: their launch says so."""
    global _unprepared
    try:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_SLAVE)
    except OSError as error:
        _unprepared = error


def launch(spec: WorldSpec, end: _socket.socket) -> int:
    """Forks the world; returns the pid of its first process.

    Raises OSError for what failed on this side, after the supervisor was told; the child is
    gone then, or about to be."""
    step = _Steps()
    try:
        return _launch(spec, end, step)
    except OSError as error:
        wire.send(end, wire.FAILED, step.now, error.errno or 0, error.strerror or str(error))
        raise


def _launch(spec: WorldSpec, end: _socket.socket, step: _Steps) -> int:
    if spec.backend in ("ns-root-idmap", "ns-root"):
        return _launch_as_root(spec, end, step)
    if spec.backend == "ns-user":
        return _fork(spec, end, _AT_BIRTH | linux.CLONE_NEWUSER, _rootless, step)
    if spec.backend == "none":
        return _fork(spec, end, 0, _bare, step)
    raise ValueError(f"no such world backend: {spec.backend}")


def _launch_as_root(spec: WorldSpec, end: _socket.socket, step: _Steps) -> int:
    """The world's first process is forked into its namespaces at once; we, who keep the
    host's rights, map its ids, make its overlays, and hand them over as fds."""
    step("namespaces")
    if _unprepared is not None:
        raise _unprepared
    ours, theirs = wire.pair()
    mapped = spec.backend == "ns-root-idmap"

    def body(spec: WorldSpec, end: _socket.socket, inner: _Steps) -> None:
        ours.close()
        _contained(spec, end, theirs, inner)

    try:
        flags = _AT_BIRTH | (linux.CLONE_NEWUSER if mapped else 0)
        pid = _fork(spec, end, flags, body, step)
        theirs.close()
        userns = None
        if mapped:
            step("map ids")
            _map_ids(pid, spec.id_extents)
            userns = _user_namespace(pid, ours)
        wire.send(ours, _PLACED)
        step("mount overlays")
        below = tree.Lowest(spec, userxattr=False)
        try:
            for target, fd in tree.detached_parts(spec, below, userns):
                wire.send(ours, _PART, target, fds=(fd,))
                os.close(fd)
            wire.send(ours, _PARTS_END)
        finally:
            below.detach()
        if userns is not None:
            os.close(userns)
        return pid
    finally:
        ours.close()  # a child that still waits reads end of file and ends


def _fork(spec: WorldSpec, end: _socket.socket, flags: int, body: Body, step: _Steps) -> int:
    """Forks the first process with CLONE_* `flags`, in its cgroups, where it does `body`.

    It is born in the group of version 2 and moves itself into those of version 1: a process
    that is moved by another one, or by way of `cgroup.procs`, costs milliseconds (CgroupSet).
    The files are opened here, with the host's rights and before any namespace is left."""
    step("cgroups")
    files = [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in spec.cgroup_tasks]
    group = -1
    try:
        if spec.cgroup_unified:
            group = os.open(spec.cgroup_unified, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        step("fork")
        try:
            pid = linux.clone(flags) if group < 0 else linux.clone_into(group, flags)
        except OSError as error:
            if group < 0 or error.errno not in _NO_CLONE3:
                raise
            files.append(os.open(b"cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=group))
            pid = linux.clone(flags)
        if pid == 0:
            _run_child(spec, end, files, body)
        return pid
    finally:
        for fd in (*files, group):
            if fd >= 0:
                os.close(fd)


def _run_child(
    spec: WorldSpec, end: _socket.socket, cgroup_files: list[int], body: Body
) -> NoReturn:
    steps = _Steps()
    try:
        steps("cgroups")
        for fd in cgroup_files:
            os.write(fd, b"0")
            os.close(fd)
        body(spec, end, steps)
    except OSError as error:
        wire.send(end, wire.FAILED, steps.now, error.errno or 0, error.strerror or str(error))
    except Exception as error:  # noqa: BLE001 - a process edge: the supervisor reports it
        wire.send(end, wire.FAILED, steps.now, 0, f"internal error: {error!r}")
    finally:
        os._exit(1)


def _die_with_parent() -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, _signal.SIGKILL)


# --- the first process of each kind of world


def _contained(spec: WorldSpec, end: _socket.socket, parent: _socket.socket, step: _Steps) -> None:
    """Root backends: takes over what the zygote made."""
    step("namespaces")
    linux.unshare(_other_namespaces(spec))
    step("wait for the zygote")
    message = _next(parent)
    if message.kind == _NAME_IT:
        with open("/proc/self/ns/user", "rb") as namespace:
            wire.send(parent, _NAMESPACE, fds=(namespace.fileno(),))
        message = _next(parent)
    if message.kind != _PLACED:
        raise wire.WireError("the zygote did not say that ids are mapped")
    step("enter the user namespace")
    if spec.backend == "ns-root-idmap":
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    _die_with_parent()  # a change of credentials clears it (prctl(2))
    linux.unshare(linux.CLONE_NEWCGROUP)  # its root is the group where we are now
    tree.make_private()
    furniture = tree.Furniture(spec, step)  # while the zygote makes overlays
    step("mount overlays")
    parts = []
    while (message := _next(parent)).kind == _PART:
        parts.append((message.fields[0], message.fds[0]))
    parent.close()
    _settle(spec, end, tree.attach_parts(parts), furniture, step)


def _next(parent: _socket.socket) -> wire.Message:
    message = wire.receive(parent)
    if message is None:
        os._exit(1)  # it failed, and has said why
    return message


def _bare(spec: WorldSpec, end: _socket.socket, step: _Steps) -> None:
    """No world: a subreaper that runs the commands as they would run without substrate."""
    _die_with_parent()
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    step("hold")
    holder.hold(spec, end)


def _rootless(spec: WorldSpec, end: _socket.socket, step: _Steps) -> None:
    _die_with_parent()
    step("map ids")
    linux.prctl(linux.PR_SET_DUMPABLE, 1)  # else /proc/self/uid_map belongs to root (proc(5))
    _write(b"/proc/self/setgroups", b"deny")
    ((_, host_uid, _), (_, host_gid, _)) = spec.id_extents
    _write(b"/proc/self/uid_map", b"%d %d 1" % (spec.uid, host_uid))
    _write(b"/proc/self/gid_map", b"%d %d 1" % (spec.gid, host_gid))
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    step("namespaces")
    linux.unshare(linux.CLONE_NEWCGROUP | _other_namespaces(spec))
    tree.make_private()
    furniture = tree.Furniture(spec, step)
    step("mount overlays")
    _settle(spec, end, tree.overlay_writable_roots(spec), furniture, step)


def _settle(
    spec: WorldSpec,
    end: _socket.socket,
    root_fd: int,
    furniture: tree.Furniture,
    step: _Steps,
) -> None:
    """What every pid 1 does once its root is mounted; does not return."""
    tree.furnish(root_fd, furniture, spec, step)
    step("enter the root")
    _import_no_more()
    os.fchdir(root_fd)
    linux.pivot_root_here()
    if spec.net == "none":
        step("loopback")
        _loopback_up()
    step("hold")
    holder.hold(spec, end)


# --- pieces


def _import_no_more() -> None:
    """From the world's root on, modules would be read from what the world may have written, and
    run with pid 1's rights. What is not loaded by now is an error; only what is part of the
    interpreter itself can still be imported."""
    sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "__name__", "") in _BUILT_IN]
    sys.path_hooks.clear()
    sys.path.clear()
    sys.path_importer_cache.clear()


def _write(path: bytes, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


def _map_ids(pid: int, extents: tuple[tuple[int, int, int], ...]) -> None:
    """Writes the id maps of a process' new user namespace (user_namespaces(7))."""
    lines = b"\n".join(b"%d %d %d" % extent for extent in extents)
    _write(b"/proc/%d/uid_map" % pid, lines)
    _write(b"/proc/%d/gid_map" % pid, lines)


def _user_namespace(pid: int, its: _socket.socket) -> int:
    """An fd of a process' user namespace. Opening that of another process takes CAP_SYS_PTRACE
    over it (proc(5)), which a container's root lacks; it hands out its own then."""
    try:
        return os.open(b"/proc/%d/ns/user" % pid, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        wire.send(its, _NAME_IT)
    message = wire.receive(its)
    if message is None or message.kind != _NAMESPACE:
        raise OSError(errno.EPERM, "the new process did not hand out its user namespace")
    return message.fds[0]


def _loopback_up() -> None:
    """Sets IFF_UP on `lo` of this network namespace (netdevice(7))."""
    get_flags, set_flags, up = 0x8913, 0x8914, 0x1
    socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    request = fcntl.ioctl(socket.fileno(), get_flags, struct.pack("16sH22x", b"lo", 0))
    (flags,) = struct.unpack_from("H", request, 16)
    fcntl.ioctl(socket.fileno(), set_flags, struct.pack("16sH22x", b"lo", flags | up))
    socket.close()
