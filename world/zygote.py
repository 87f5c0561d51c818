"""The zygote: a small single-threaded process that starts worlds and cleans up after them.

Forked by the supervisor before it takes a lock or loads anything large: the cost of a fork
grows with memory, and a forked child would keep the writer's lock alive (trace.md §1). It
keeps the host's rights while worlds give theirs up, so it is the one that removes cgroups.
End of file on its socket means that the supervisor is gone: every world is killed, its
cgroups are removed, and the zygote ends. The lock of a world is held, as an open file, from
its START until all its processes are dead.
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
from substrate.world.spec import NAMESPACED, Frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
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
    holder.hardening_filter(observed=True)
    launch.get_ready()
    gc.freeze()  # a collection in a child would touch, and so copy, every page of ours
    _Zygote(socket).serve()


@value
class _Started:
    number: int
    namespaced: bool
    cgroup_dirs: tuple[bytes, ...]
    lock: tuple[int, ...]  # an fd, or none


def _sign(lock: int, pid: int) -> None:
    """Says in the lock which process is the first of its world."""
    text = b"%d %d %s" % (pid, linux.start_ticks(pid), linux.boot_id().encode())
    try:
        os.pwrite(lock, text, 0)
    except OSError:
        # a full disk: the lock itself is held all the same, while we live
        os.ftruncate(lock, 0)


class _Zygote:
    def __init__(self, socket: _socket.socket) -> None:
        self._socket = socket
        self._wake, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _signal.set_wakeup_fd(wake)
        self._prepared: launch.Prepared | None = None
        self._worlds: dict[int, _Started] = {}  # by the pid of their first process
        self._announced: list[bytes] = []
        self._serving: set[int] = set()  # processes that serve networks
        self._loaded: _socket.socket | None = None  # of a process that waits for a network

    def serve(self) -> NoReturn:
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._wake:
                    os.read(fd, 4096)
                    self._bury()
                    continue
                message = wire.receive(self._socket)
                if message is None:
                    self._end_all()
                elif message.kind == wire.GROUPS:
                    self._announced += message.fields
                elif message.kind == wire.PREPARE:
                    self._prepare(message)
                elif message.kind == wire.START:
                    self._start(message)
                elif message.kind == wire.LOAD:
                    self._load(message.text(0))
                elif message.kind == wire.EGRESS:
                    self._serve_network(message)

    def _prepare(self, message: wire.Message) -> None:
        memory, end = message.fds
        self._drop_prepared()
        frame = Frame(**wire.unpack_value(memory))
        self._prepared = launch.Prepared(frame, _socket.socket(fileno=end))

    def _drop_prepared(self) -> None:
        if self._prepared is not None:
            self._prepared.close()
            if self._prepared.pid:
                os.kill(self._prepared.pid, _signal.SIGKILL)
            self._prepared = None

    def _start(self, message: wire.Message) -> None:
        memory, *lock = message.fds
        prepared, self._prepared = self._prepared, None
        assert prepared is not None
        spec = prepared.start(memory)
        world = _Started(
            number=spec.number,
            namespaced=spec.frame.backend in NAMESPACED,
            cgroup_dirs=spec.cgroup_dirs,
            lock=tuple(lock),
        )
        if prepared.pid == 0:
            self._is_gone(world)
            return
        self._worlds[prepared.pid] = world
        for fd in lock:
            _sign(fd, prepared.pid)

    def _load(self, mode: str) -> None:
        """Forks the process that is to be a world's way out, which takes as long to load as a world
        to be made. It ends with its socket, and with us."""
        self._drop_loaded()
        parent = os.getpid()
        ours, theirs = wire.pair()
        pid = os.fork()
        if pid == 0:
            try:
                self._wait_for_network(parent, theirs, mode)
            finally:
                os._exit(1)
        self._serving.add(pid)
        theirs.close()
        self._loaded = ours

    def _drop_loaded(self) -> None:
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None

    def _wait_for_network(self, parent: int, socket: _socket.socket, mode: str) -> NoReturn:
        """The life of that process; it holds nothing of ours meanwhile."""
        linux.prctl(linux.PR_SET_PDEATHSIG, _signal.SIGKILL)
        _signal.set_wakeup_fd(-1)
        if os.getppid() != parent:
            os._exit(0)
        kept = os.dup2(socket.detach(), 3, inheritable=False)
        linux.close_range(kept + 1)
        serve = _server(mode)
        message = wire.receive(_socket.socket(fileno=kept))
        if message is None:
            os._exit(0)
        memory, end, *network = message.fds
        serve(parent, memory, end, dict(zip(_names(message), network, strict=True)))

    def _serve_network(self, message: wire.Message) -> None:
        """Has the process begin that is a world's way out: the one that waits, or a new one."""
        if not self._hand_over(message):
            parent = os.getpid()
            memory, end, *network = message.fds
            pid = os.fork()
            if pid == 0:
                try:
                    self._socket.close()
                    named = dict(zip(_names(message), network, strict=True))
                    serve = _server("veth" if "inside" in named else "filtered")
                    serve(parent, memory, end, named)
                finally:
                    os._exit(1)
            self._serving.add(pid)
        for fd in message.fds:
            os.close(fd)

    def _hand_over(self, message: wire.Message) -> bool:
        """Gives a network to the process that waits for one; False where there is none."""
        if self._loaded is None:
            return False
        try:
            wire.send(self._loaded, message.kind, *message.fields, fds=tuple(message.fds))
        except (BrokenPipeError, ConnectionResetError):
            return False  # it was killed
        finally:
            self._drop_loaded()
        return True

    def _bury(self) -> None:
        """Reaps what has ended; a world whose first process ended is gone."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._serving.discard(pid)
            if pid in self._worlds:
                self._is_gone(self._worlds.pop(pid))
            elif self._prepared is not None and self._prepared.pid == pid:
                self._prepared.pid = 0

    def _is_gone(self, world: _Started) -> None:
        if not world.namespaced:
            self._end_orphans()
        remove_directories(world.cgroup_dirs)
        for fd in world.lock:
            os.close(fd)
        try:
            wire.send(self._socket, wire.GONE, world.number)
        except BrokenPipeError:
            return  # the supervisor is gone too: its end of file comes next

    def _end_orphans(self) -> None:
        """What a first process without namespaces left, if it was killed: its children are ours now."""
        own = {*self._serving, *self._worlds}
        if self._prepared is not None and self._prepared.pid:
            own.add(self._prepared.pid)
        holder.end_below(frozenset(own))

    def _end_all(self) -> NoReturn:
        self._drop_prepared()
        self._drop_loaded()
        for pid in self._worlds:
            os.kill(pid, _signal.SIGKILL)
        # without a world nothing goes along with its first process: what that left is ours now
        holder.end_below()
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
        remove_directories(tuple(self._announced))
        os._exit(0)


def _server(mode: str) -> Callable[[int, int, int, dict[str, int]], NoReturn]:
    """What serves a network of that mode; takes its time to be loaded."""
    if mode == "veth":
        from substrate.world.egress import veth

        return veth.serve
    from substrate.world.egress import engine

    return engine.serve


def _names(message: wire.Message) -> list[str]:
    return [message.text(i) for i in range(len(message.fields))]
