"""The zygote's side of a world's start: namespaces, ids, overlays (world.md §2, "Order that works").

Two steps. `prepare` forks the world's first process for a frame, which then makes all that needs
nothing of the world's files (first.py); `Prepared.start` gives it these. The zygote is
single-threaded. Each side reports a failure by a FAILED message on the world's socket (step,
errno, text); a world that did not become READY leaves nothing behind, since everything that was
made for it lives in its own namespaces.
"""

from __future__ import annotations

import errno
import os

from substrate.world import first, linux, trampoline, tree, wire
from substrate.world.spec import world_from_plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable
    from typing import NoReturn

    from substrate.world.spec import Frame, WorldSpec

#: before Linux 5.7, or by a container's filter
_NO_CLONE3 = (errno.E2BIG, errno.EINVAL, errno.ENOSYS, errno.EPERM)
#: of the first process from its birth; the others it makes itself, while the zygote goes on, and
#: a cgroup namespace once it is in the world's groups
_AT_BIRTH = linux.CLONE_NEWNS | linux.CLONE_NEWPID
_KINDS = {
    "ns-root-idmap": (_AT_BIRTH | linux.CLONE_NEWUSER, first.contained),
    "ns-root": (_AT_BIRTH, first.contained),
    "ns-user": (_AT_BIRTH | linux.CLONE_NEWUSER, first.rootless),
    "guard": (0, first.guarded),
    "none": (0, first.bare),
}

_no_namespace: OSError | None = None
_program = -1


def get_ready() -> None:
    """Makes what all worlds have from the zygote.

    A mount namespace of its own, in which lowers are attached for the moment in which an overlay
    takes them: mounts of the host still come in, ours do not go out. Where that fails there are no
    root backends; their launch says so. And the program of seats, which belongs to us then, so
    that a world cannot read it. Where that fails each first process makes one."""
    global _no_namespace, _program
    try:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_SLAVE)
    except OSError as error:
        _no_namespace = error
    try:
        _program = trampoline.prepare()
    except OSError:
        _program = -1


class Prepared:
    """A world of which nothing but the frame is known. `pid`: of its first process; 0 when that
    was never there, or has ended."""

    def __init__(self, frame: Frame, end: _socket.socket) -> None:
        """Forks the first process. A failure is told on `end`, which is the world's from here on."""
        self.frame, self.pid = frame, 0
        self._end = end
        self._open = True
        self._userns = -1
        self._first, theirs = wire.pair()
        self._step = first.Steps("fork")
        try:
            self._fork(theirs)
        except OSError as error:
            self._failed(error)
        finally:
            theirs.close()

    def _fork(self, theirs: _socket.socket) -> None:
        if self.frame.backend not in _KINDS:
            raise ValueError(f"no such world backend: {self.frame.backend}")
        flags, body = _KINDS[self.frame.backend]
        if body is first.contained and _no_namespace is not None:
            self._step("namespaces")
            raise _no_namespace

        def run(groups: list[int]) -> NoReturn:
            first.run(body, self.frame, self._end, theirs, _program, groups)

        self.pid = fork(self.frame, flags, run, self._step)
        if body is first.contained:
            if flags & linux.CLONE_NEWUSER:
                self._step("map ids")
                _map_ids(self.pid, self.frame.id_extents)
                self._userns = _user_namespace(self.pid, self._first)
            wire.send(self._first, first.PLACED)

    def start(self, memory: int) -> WorldSpec:
        """Gives the first process what is in `memory` (wire.pack_value of a WorldSpec), and the
        parts of the root. Whether that succeeds, the world's socket tells; what it was given is
        returned either way."""
        if self._open:
            self._try("start", lambda: wire.send(self._first, first.BUILD, fds=(memory,)))
        spec = world_from_plain(wire.unpack_value(memory))
        if self._open and self.frame.backend in ("ns-root-idmap", "ns-root"):
            self._try("mount overlays", lambda: self._hand_over(spec))
        self.close()
        return spec

    def _try(self, step: str, act: Callable[[], None]) -> None:
        self._step(step)
        try:
            act()
        except (BrokenPipeError, ConnectionResetError):
            self.close()  # the first process has ended, and has said why if it could
        except OSError as error:
            self._failed(error)

    def _hand_over(self, spec: WorldSpec) -> None:
        """We, who keep the host's rights, make the parts of the root; the first process gets them
        as fds."""
        below = tree.Lowest(spec, userxattr=False)
        userns = None if self._userns < 0 else self._userns
        try:
            for target, fd in tree.detached_parts(spec, below, userns):
                try:
                    wire.send(self._first, first.PART, target, fds=(fd,))
                finally:
                    os.close(fd)
            wire.send(self._first, first.PARTS_END)
        finally:
            below.detach()

    def _failed(self, error: OSError) -> None:
        try:
            text = error.strerror or str(error)
            wire.send(self._end, wire.FAILED, self._step.now, error.errno or 0, text)
        except BrokenPipeError:
            return  # nobody waits for this world any more
        finally:
            self.close()

    def close(self) -> None:
        """Keeps nothing of it here. A first process that waits ends by that."""
        self._open = False
        self._first.close()
        self._end.close()
        if self._userns >= 0:
            os.close(self._userns)
            self._userns = -1


def fork(
    frame: Frame, flags: int, run: Callable[[list[int]], NoReturn], step: Callable[[str], None]
) -> int:
    """Forks the first process with CLONE_* `flags`, which runs `run` with the files by which it
    joins its cgroups.

    It is born in the group of version 2 and moves itself into those of version 1: a process
    that is moved by another one, or by way of `cgroup.procs`, costs milliseconds (CgroupSet).
    The files are opened here, with the host's rights and before any namespace is left."""
    step("cgroups")
    files = [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in frame.cgroup_tasks]
    group = -1
    try:
        if frame.cgroup_unified:
            group = os.open(frame.cgroup_unified, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        step("fork")
        try:
            pid = linux.clone(flags) if group < 0 else linux.clone_into(group, flags)
        except OSError as error:
            if group < 0 or error.errno not in _NO_CLONE3:
                raise
            files.append(os.open(b"cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=group))
            pid = linux.clone(flags)
        if pid == 0:
            run(files)
        return pid
    finally:
        for fd in (*files, group):
            if fd >= 0:
                os.close(fd)


def _map_ids(pid: int, extents: tuple[tuple[int, int, int], ...]) -> None:
    """Writes the id maps of a process' new user namespace (user_namespaces(7))."""
    lines = b"\n".join(b"%d %d %d" % extent for extent in extents)
    first.write(b"/proc/%d/uid_map" % pid, lines)
    first.write(b"/proc/%d/gid_map" % pid, lines)


def _user_namespace(pid: int, its: _socket.socket) -> int:
    """An fd of a process' user namespace. Opening that of another process takes CAP_SYS_PTRACE
    over it (proc(5)), which a container's root lacks; it hands out its own then."""
    try:
        return os.open(b"/proc/%d/ns/user" % pid, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        wire.send(its, first.NAME_IT)
    message = wire.receive(its)
    if message is None or message.kind != first.NAMESPACE:
        raise OSError(errno.EPERM, "the new process did not hand out its user namespace")
    return message.fds[0]
