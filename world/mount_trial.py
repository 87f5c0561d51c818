"""Tries out which mounts can be the lower of an overlay, where their type does not tell.

Not a plan (mount_plan.py). A child in namespaces of its own makes a read-only overlay of each place
and lets it go again; nothing of it is seen on the host. Invariant: it ends in bounded
time: a server that does not answer (a FUSE program that hangs, a network filesystem whose host
is gone) is given up after a while, and its mount counts as refused. Spec: world.md §1.
"""

from __future__ import annotations

import _signal
import os
import select
import time

from substrate.world import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: how long one place may take to answer
PATIENCE_S = 2.0
_NO_ANSWER = "it does not answer"


def refusals(
    points: Sequence[bytes], empty: bytes, *, rootless: bool, idmapped: bool
) -> dict[bytes, str]:
    """Why the kernel makes no overlay of a directory, for those of `points` of which it does not.

    `empty`: a directory of ours to mount on. `rootless`: as the world of a user without
    rights would; `idmapped`: with owners shifted. Raises OSError for a failure of the trial's own."""
    found: dict[bytes, str] = {}
    waiting = list(points)
    while waiting:
        answered = _try_some(waiting, empty, rootless=rootless, idmapped=idmapped)
        found.update({point: why for point, why in answered if why})
        waiting = waiting[len(answered) :]
        if waiting:
            found[waiting.pop(0)] = _NO_ANSWER
    return found


def _try_some(
    points: list[bytes], empty: bytes, *, rootless: bool, idmapped: bool
) -> list[tuple[bytes, str]]:
    """The answers of one child, up to the first place that does not answer."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    uid, gid = os.geteuid(), os.getegid()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            linux.prctl(linux.PR_SET_PDEATHSIG, _signal.SIGKILL)
            make = _prepare(empty, (uid, gid) if rootless else None, idmapped=idmapped)
            for point in points:
                os.write(writing, _answer(make, point).encode() + b"\n")
        except OSError as error:
            os.write(writing, f"!{error.strerror}\n".encode())
        finally:
            os._exit(0)
    os.close(writing)
    answers: list[str] = []
    try:
        for line in _lines(reading, len(points)):
            if line.startswith("!"):
                raise OSError(0, f"no overlay could be tried out: {line[1:]}")
            answers.append(line)
    finally:
        os.close(reading)
        os.kill(pid, _signal.SIGKILL)
        if len(answers) == len(points):
            os.waitpid(pid, 0)  # else it may hang in the kernel: whoever ends first, reaps it
    return list(zip(points, answers, strict=False))


def _lines(fd: int, count: int) -> list[str]:
    """Up to `count` lines, each in its time."""
    text = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    until = time.monotonic() + PATIENCE_S
    while text.count(b"\n") < count:
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            break
        more = os.read(fd, 4096)
        if not more:
            break
        text += more
        until = time.monotonic() + PATIENCE_S
    return text.decode(errors="replace").split("\n")[:-1][:count]


def _prepare(
    empty: bytes, rootless: tuple[int, int] | None, *, idmapped: bool
) -> Callable[[bytes], None]:
    """Enters namespaces where an empty tmpfs is the second lower that each overlay needs."""
    userns = _shifted_namespace() if idmapped else -1
    if rootless is None:
        linux.unshare(linux.CLONE_NEWNS)
    else:
        linux.prctl(linux.PR_SET_DUMPABLE, 1)  # else its own /proc files are root's (proc(5))
        linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
        _write(b"/proc/self/setgroups", b"deny")
        for kind, number in zip((b"uid", b"gid"), rootless, strict=True):
            _write(b"/proc/self/%s_map" % kind, b"%d %d 1" % (number, number))
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("none", empty, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=4k,mode=755")
    for name in (b"/top", b"/low"):
        os.mkdir(empty + name)

    def make(point: bytes) -> None:
        lower = os.open(point, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        attached = False
        try:
            if userns >= 0:
                fd = linux.open_tree(point)
                linux.mount_setattr(fd, set_flags=linux.MOUNT_ATTR_IDMAP, userns_fd=userns)
                linux.move_mount(fd, empty + b"/low")
                attached = True
                os.close(fd)
                os.close(lower)
                lower = os.open(empty + b"/low", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            top = os.open(empty + b"/top", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            options: list[tuple[str, str | int | None]] = [
                ("lowerdir", f"/proc/self/fd/{top}:/proc/self/fd/{lower}")
            ]
            if rootless is not None:
                options.append(("userxattr", None))
            os.close(linux.new_mount("overlay", options))
            os.close(top)
        finally:
            os.close(lower)
            if attached:
                linux.umount(empty + b"/low")

    return make


def _answer(make: Callable[[bytes], None], point: bytes) -> str:
    try:
        make(point)
    except OSError as error:
        step = (error.strerror or str(error)).partition(": ")[0]
        if step == "mount_setattr":
            return "its owners cannot be shifted (the backend ns-root needs no shift)"
        return f"the kernel makes no overlay of it ({os.strerror(error.errno or 0)})"
    return ""


def _shifted_namespace() -> int:
    """An fd of a user namespace with some shifted map, of a child that has ended by then."""
    ready, made = os.pipe2(os.O_CLOEXEC)
    pid = linux.clone(linux.CLONE_NEWUSER)
    if pid == 0:
        os.close(made)
        os.read(ready, 1)
        os._exit(0)
    os.close(ready)
    try:
        for kind in (b"uid", b"gid"):
            _write(b"/proc/%d/%s_map" % (pid, kind), b"0 1073741824 65536")
        return os.open(b"/proc/%d/ns/user" % pid, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(made)
        os.waitpid(pid, 0)


def _write(path: bytes, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)
