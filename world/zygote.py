"""The zygote: a small single-threaded process that starts worlds and cleans up after them.

Forked by the supervisor before it takes a lock or loads anything large: the cost of a fork
grows with memory, and a forked child would keep the writer's lock alive (trace.md §1). It
keeps the host's rights while worlds give theirs up, so it is the one that removes cgroups.
End of file on its socket means that the supervisor is gone: every world is killed, its
cgroups are removed, and the zygote ends. The lock of a world is held, as an open file, from
its START until all its processes are dead; children close theirs when the world is ready.
"""

from __future__ import annotations

import _signal
import _socket
import gc
import os
import select

from substrate.values import value
from substrate.world import holder, launch, linux, wire
from substrate.world.cgroup import remove_directories
from substrate.world.spec import world_from_plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

_QUIETED = (_signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGTSTP)


def serve(socket: _socket.socket) -> NoReturn:
    """The zygote's life; never returns."""
    os.setsid()
    for number in _QUIETED:
        _signal.signal(number, _signal.SIG_IGN)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in range(3):
        os.dup2(null, fd)
    holder.hardening_filter()
    launch.prepare()
    gc.freeze()  # a collection in a child would touch, and so copy, every page of ours
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    _signal.signal(_signal.SIGCHLD, lambda *_: None)
    _signal.set_wakeup_fd(wake_write)
    poll = select.poll()
    poll.register(socket.fileno(), select.POLLIN)
    poll.register(wake_read, select.POLLIN)
    worlds: dict[int, _Started] = {}
    announced: list[bytes] = []
    while True:
        for fd, _ in poll.poll():
            if fd == wake_read:
                os.read(wake_read, 4096)
                _bury(socket, worlds)
                continue
            message = wire.receive(socket)
            if message is None:
                _end_all(worlds, announced)
            elif message.kind == wire.GROUPS:
                announced += message.fields
            elif message.kind == wire.START:
                _start(socket, message, worlds)


@value
class _Started:
    number: int
    cgroup_dirs: tuple[bytes, ...]
    lock: tuple[int, ...]  # an fd, or none


def _start(socket: _socket.socket, message: wire.Message, worlds: dict[int, _Started]) -> None:
    memory, end_fd, *lock = message.fds
    spec = world_from_plain(wire.unpack_value(memory))
    end = _socket.socket(fileno=end_fd)
    try:
        pid = launch.launch(spec, end)
    except OSError:  # launch has said what
        remove_directories(spec.cgroup_dirs)
        _close(lock)
        wire.send(socket, wire.GONE, spec.number)
    else:
        worlds[pid] = _Started(number=spec.number, cgroup_dirs=spec.cgroup_dirs, lock=tuple(lock))
        for fd in lock:
            os.pwrite(fd, b"%d %d" % (pid, linux.start_ticks(pid)), 0)
    end.close()


def _bury(socket: _socket.socket | None, worlds: dict[int, _Started]) -> None:
    """Reaps what has ended; a world whose process ended is gone: says so."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid in worlds:
            world = worlds.pop(pid)
            remove_directories(world.cgroup_dirs)
            _close(world.lock)
            if socket is not None:
                try:
                    wire.send(socket, wire.GONE, world.number)
                except OSError:
                    socket = None  # the supervisor is gone too: its end of file comes next


def _close(lock: Iterable[int]) -> None:
    for fd in lock:
        os.close(fd)


def _end_all(worlds: dict[int, _Started], announced: list[bytes]) -> NoReturn:
    for pid in worlds:
        os.kill(pid, _signal.SIGKILL)
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    remove_directories(tuple(announced))
    os._exit(0)
