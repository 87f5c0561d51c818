"""Starts one world: namespaces, mounts, pid 1 (world.md §2, "Order that works").

Called in the zygote, which is single-threaded. Each child reports a failure by a FAILED
message on the world's socket (step, errno, text) and ends; a world that did not become
READY leaves nothing behind, since everything it made lives in its own namespaces.
"""

from __future__ import annotations

import _signal
import _socket
import fcntl
import os
import struct

from substrate.world import holder, linux, tree, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from substrate.world.spec import WorldSpec

_ALL = (
    linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC
)  # and a cgroup namespace, once the process is in the world's groups


class _Steps:
    """Which step is under way, for the message when it fails."""

    def __init__(self) -> None:
        self.now = "fork"

    def __call__(self, name: str) -> None:
        self.now = name


def namespaces(spec: WorldSpec) -> int:
    """The CLONE_NEW* flags of the world, the user namespace left out."""
    return _ALL | (linux.CLONE_NEWNET if spec.net == "none" else 0)


def launch(spec: WorldSpec, end: _socket.socket) -> int:
    """Forks the world; returns the pid whose end is the world's end."""
    if spec.backend == "ns-root-idmap":
        pid = os.fork()
        body: Callable[[WorldSpec, _socket.socket, _Steps], None] = _idmapped
    elif spec.backend == "ns-root":
        pid = linux.clone(namespaces(spec))
        body = _root
    elif spec.backend == "ns-user":
        pid = linux.clone(namespaces(spec) | linux.CLONE_NEWUSER)
        body = _rootless
    elif spec.backend == "none":
        pid = os.fork()
        body = _bare
    else:
        raise ValueError(f"no such world backend: {spec.backend}")
    if pid == 0:
        _run_child(spec, end, body)
    return pid


def _run_child(
    spec: WorldSpec,
    end: _socket.socket,
    body: Callable[[WorldSpec, _socket.socket, _Steps], None],
) -> NoReturn:
    steps = _Steps()
    try:
        body(spec, end, steps)
    except OSError as error:
        wire.send(end, wire.FAILED, steps.now, error.errno or 0, error.strerror or str(error))
    except Exception as error:  # noqa: BLE001 - a process edge: the supervisor reports it
        wire.send(end, wire.FAILED, steps.now, 0, f"internal error: {error!r}")
    finally:
        os._exit(1)


def _die_with_parent() -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, _signal.SIGKILL)


def _join_cgroups(spec: WorldSpec) -> None:
    """Moves this process, and so everything that it will fork, into the world's groups.

    Before everything else: the kernel waits for a grace period of RCU here, some
    milliseconds in which the supervisor loads what it needs."""
    for path in spec.cgroup_procs:
        _write(path, b"0")
    if spec.backend in ("ns-root", "ns-user"):
        linux.unshare(linux.CLONE_NEWCGROUP)  # its root is where we are now


# --- the three backends; each ends in pid 1 of the world


def _root(spec: WorldSpec, end: _socket.socket, step: _Steps) -> None:
    _die_with_parent()
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    step("cgroups")
    _join_cgroups(spec)
    step("mount overlays")
    tree.make_private()
    root = tree.overlay_everything(spec, None)
    _settle(spec, end, _open_root(root), step)


def _bare(spec: WorldSpec, end: _socket.socket, step: _Steps) -> None:
    """No world: a subreaper that runs the commands as they would run without substrate."""
    _die_with_parent()
    step("cgroups")
    _join_cgroups(spec)
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
    step("cgroups")
    _join_cgroups(spec)
    step("mount overlays")
    tree.make_private()
    root = tree.overlay_writable_roots(spec)
    _settle(spec, end, _open_root(root), step)


def _idmapped(spec: WorldSpec, end: _socket.socket, step: _Steps) -> None:
    """The stage process: mounts as the host's root, enters the user namespace, forks pid 1
    there and waits for it (the pid namespace must belong to the user namespace)."""
    _die_with_parent()
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    step("cgroups")
    _join_cgroups(spec)
    step("user namespace")
    userns = _mapped_user_namespace(spec.id_extents)
    linux.unshare(linux.CLONE_NEWNS)
    step("mount overlays")
    tree.make_private()
    root = tree.overlay_everything(spec, userns)
    step("enter the user namespace")
    os.chdir(root)
    linux.setns(userns, linux.CLONE_NEWUSER)
    os.close(userns)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    _die_with_parent()  # a change of credentials clears it (prctl(2))
    step("namespaces")
    linux.unshare(namespaces(spec) & ~linux.CLONE_NEWPID | linux.CLONE_NEWCGROUP)
    pid = linux.clone(linux.CLONE_NEWPID)
    if pid == 0:
        _run_child(spec, end, _first_process)
    end.close()
    os.waitpid(pid, 0)


def _first_process(spec: WorldSpec, end: _socket.socket, step: _Steps) -> None:
    _die_with_parent()
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    step("bind the root")
    # pivot_root needs a mount that this user namespace made itself (world.md §2). By fd: the
    # world's root may not search the 0700 directories above it
    root_fd = linux.open_tree(b".", recursive=True)
    linux.move_mount(root_fd, b".")
    _settle(spec, end, root_fd, step)


def _settle(spec: WorldSpec, end: _socket.socket, root_fd: int, step: _Steps) -> None:
    """What every pid 1 does once its root is mounted; does not return."""
    tree.furnish(root_fd, spec, step)
    step("enter the root")
    os.fchdir(root_fd)
    linux.pivot_root_here()
    if spec.net == "none":
        step("loopback")
        _loopback_up()
    step("hold")
    holder.hold(spec, end)


# --- pieces


def _open_root(path: bytes) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _write(path: bytes, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


def _mapped_user_namespace(extents: tuple[tuple[int, int, int], ...]) -> int:
    """An fd of a new user namespace with these maps (user_namespaces(7)).

    The namespace needs a process in it only until the fd is open."""
    ready, waits = os.pipe()
    pid = linux.clone(linux.CLONE_NEWUSER)
    if pid == 0:
        try:
            os.close(waits)
            os.read(ready, 1)
        finally:
            os._exit(0)
    os.close(ready)
    try:
        lines = b"\n".join(b"%d %d %d" % extent for extent in extents)
        _write(b"/proc/%d/uid_map" % pid, lines)
        _write(b"/proc/%d/gid_map" % pid, lines)
        return os.open(b"/proc/%d/ns/user" % pid, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(waits)
        os.waitpid(pid, 0)


def _loopback_up() -> None:
    """Sets IFF_UP on `lo` of this network namespace (netdevice(7))."""
    get_flags, set_flags, up = 0x8913, 0x8914, 0x1
    socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    request = fcntl.ioctl(socket.fileno(), get_flags, struct.pack("16sH22x", b"lo", 0))
    (flags,) = struct.unpack_from("H", request, 16)
    fcntl.ioctl(socket.fileno(), set_flags, struct.pack("16sH22x", b"lo", flags | up))
    socket.close()
