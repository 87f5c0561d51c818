"""Pid 1 of a world, once that is made: it forks the commands, reaps everything, and dies with the
supervisor.

For the backend `none` the same process serves without namespaces: as a subreaper it still
knows when the last process is gone and ends what is left.

Theory of operation. One poll loop over two things: the world's socket and SIGCHLD's wakeup
pipe. End of file on the socket means that the supervisor is gone: the holder exits, and the
kernel kills every process of the pid namespace. Everything that it receives on the socket
comes from the supervisor (nothing in the world can open it: the holder is undumpable, keeps
more capabilities than the world, and commands have every fd above 2 closed). wait4 answers
ECHILD exactly when no other process lives, since orphans become pid 1's children: that is
the quiet moment at which a layer may be cut (world.md §4).
"""

from __future__ import annotations

import _signal
import _socket
import os
import select

from substrate.world import command, limits, linux, seccomp, trampoline, wire
from substrate.world.descendants import descendants_of
from substrate.world.egress import listeners
from substrate.world.spec import NAMESPACED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from substrate.world.guard import Guard
    from substrate.world.spec import Frame


#: the version of Landlock that scopes abstract sockets
SCOPES = 6
#: between two looks at what is left
_PAUSE_MS = 2
_filters: dict[tuple[bool, bool, bool, bool], bytes] = {}


def hardening_filter(
    backend: str = "",
    *,
    allow_ptrace: bool = False,
    allow_userns: bool = False,
    observed: bool = False,
) -> bytes:
    """The filter of worlds, built once a process: the zygote calls this before it is asked
    for a world.

    With `allow_userns` cgroup namespaces are allowed too, but not where the root of a nested
    user namespace is the host's root by its files: all groups of version 1 would be its own.
    `observed`: of commands that bring a filter for what is evidence (seccomp.evidence)."""
    key = (allow_ptrace, allow_userns, allow_userns and backend != "ns-root", observed)
    if key not in _filters:
        _filters[key] = seccomp.build_filter(
            machine=linux.MACHINE,
            allow_ptrace=key[0],
            allow_userns=key[1],
            allow_cgroupns=key[2],
            observed=seccomp.EVIDENCE if observed else frozenset(),
        )
    return _filters[key]


class Holder:
    """What is pid 1's own. It is made before the world's files are there, with a seat for the
    first command; `hold` serves."""

    def __init__(
        self, frame: Frame, end: _socket.socket, zygote: _socket.socket, program: int
    ) -> None:
        """`zygote` is not for the seat; `program`: the fd of trampoline.prepare, or -1. Raises
        OSError."""
        self._frame, self._end = frame, end
        self._wake, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        _signal.signal(
            _signal.SIGINT, _signal.SIG_DFL
        )  # a handler would let the world signal pid 1
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _signal.set_wakeup_fd(wake)
        self._commands: set[int] = set()  # and seats, which may have become commands
        self._spares: set[int] = set()  # seats that were asked for
        self._seat: tuple[int, _socket.socket, int] | None = None  # see _make_seat
        self._program = -1
        self._guard: Guard | None = None
        self._poll = select.poll()
        self._watched: dict[int, Callable[[int], None]] = {}
        if frame.backend in NAMESPACED:
            self._program = program if program >= 0 else trampoline.prepare()
            linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
            if frame.net == "host" and linux.landlock_abi() >= SCOPES:
                # no namespace keeps the world from the host's abstract sockets: X11, D-Bus. One
                # scope for all commands, which may use those of each other.
                linux.landlock_scope_abstract_sockets()
        if frame.seat:

            def before() -> None:
                zygote.close()
                harden(frame, observed=frame.observed)

            self._seat = self._make_seat(before, end)

    def _make_seat(
        self, before: Callable[[], None], tell: _socket.socket | None = None
    ) -> tuple[int, _socket.socket, int]:
        """Its pid; the socket on which it is given a command; a pipe that ends when it waits there.
        A failure is told on `tell`, or by the end of its socket. Raises OSError."""
        door, seat = wire.pair()
        try:
            waits, ends = os.pipe2(os.O_CLOEXEC)
            try:
                pid = command.fork_seat(self._frame, tell or seat, self._program, seat, before)
            except OSError:
                os.close(waits)
                raise
            finally:
                os.close(ends)
        except OSError:
            door.close()
            raise
        finally:
            seat.close()
        self._commands.add(pid)
        return pid, door, waits

    def guard(self, guard: Guard) -> None:
        """What commands without namespaces are under."""
        self._guard = guard
        guard.begin(self._watch, _others)

    def _watch(self, fd: int, events: int, ready: Callable[[int], None] | None) -> None:
        """Has `ready` called for these events of an fd; None: no more."""
        if ready is None:
            self._watched.pop(fd, None)
            self._poll.unregister(fd)
        else:
            self._watched[fd] = ready
            self._poll.register(fd, events)

    def wait_for_seat(self) -> None:
        """Waits until the seat needs nothing of the host's tree any more."""
        if self._seat is not None:
            os.read(self._seat[2], 1)

    def hold(self) -> NoReturn:
        """Serves as pid 1 until the supervisor is gone; never returns."""
        try:
            if self._seat is None:
                wire.send(self._end, wire.READY)
            else:
                pid, door, waits = self._seat
                wire.send(self._end, wire.READY, pid, fds=(door.fileno(),))
                door.close()
                os.close(waits)
            if self._frame.backend in NAMESPACED:
                _use_own_null()
            harden(self._frame)
            wire.send(self._end, wire.SETTLED)
            self._serve()
        except OSError as error:
            text = error.strerror or str(error)
            wire.send(self._end, wire.FAILED, "hold", error.errno or 0, text)
        except Exception as error:  # noqa: BLE001 - a process edge: the supervisor reports it
            wire.send(self._end, wire.FAILED, "hold", 0, repr(error))
        finally:
            os._exit(1)

    def _serve(self) -> NoReturn:
        poll = self._poll
        poll.register(self._end.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            for fd, events in poll.poll():
                if fd == self._wake:
                    os.read(fd, 4096)
                    self._reap()
                elif fd == self._end.fileno():
                    self._answer()
                elif fd in self._watched:  # else it was let go in this round
                    self._watched[fd](events)

    def _answer(self) -> None:
        message = wire.receive(self._end)
        if message is None:
            _end(self._frame)
        elif message.kind == wire.RUN:
            pid = command.fork_command(self._frame, self._program, message, self._guard)
            wire.send(self._end, wire.STARTED, pid)
            if pid:
                self._commands.add(pid)
            else:
                self._reap()  # who waits for the quiet moment is told of it again
        elif message.kind == wire.SEAT:
            self._make_spare()
        elif message.kind == wire.SIGNAL:
            _signal_commands(message, self._commands)
        elif message.kind == wire.SIGNAL_ONE:
            _signal_one(message, self._commands)
        elif message.kind == wire.ROOT:
            _send_root(message)
        elif message.kind == wire.SOCKETS:
            _send_sockets(self._end, message.number(0))
        elif message.kind == wire.LISTEN:
            _send_listeners(message)
        elif message.kind == wire.WHO:
            wire.send(self._end, wire.NAMES, *[_name(pid) for pid in _others()[:16]])

    def _make_spare(self) -> None:
        """A seat for the next command. Where there can be none the world goes on without."""
        try:
            pid, door, waits = self._make_seat(lambda: None)
        except OSError:
            wire.send(self._end, wire.SEATED)
            return
        os.close(waits)
        self._spares.add(pid)
        wire.send(self._end, wire.SEATED, pid, fds=(door.fileno(),))
        door.close()

    def _reap(self) -> None:
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                wire.send(self._end, wire.QUIET)
                return
            if pid == 0:
                if self._spares and self._spares.issuperset(_others()):
                    wire.send(self._end, wire.QUIET, *self._spares)
                return
            self._spares.discard(pid)
            if pid in self._commands:
                self._commands.discard(pid)
                wire.send(
                    self._end, wire.EXITED, pid, status,
                    int(used.ru_utime * 1_000_000), int(used.ru_stime * 1_000_000), used.ru_maxrss,
                    used.ru_minflt, used.ru_majflt, used.ru_inblock, used.ru_oublock,
                    used.ru_nvcsw, used.ru_nivcsw,
                )  # fmt: skip


def _send_root(message: wire.Message) -> None:
    """An fd of the world's root: nobody outside can reach it by /proc without more rights than the
    world has. It opens nothing by itself (O_PATH)."""
    answer = _socket.socket(fileno=message.fds[0])
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        wire.send(answer, wire.ROOT, fds=(root,))
    except (BrokenPipeError, ConnectionResetError):
        return  # nobody waits any more
    finally:
        os.close(root)
        answer.close()


def _send_sockets(end: _socket.socket, count: int) -> None:
    """TCP sockets of the world's network, for who may not make them there: connections to ports that
    are published."""
    made = []
    try:
        for _ in range(min(count, wire.MOST_FDS)):
            made.append(_socket.socket(_socket.AF_INET, _socket.SOCK_STREAM))
        wire.send(end, wire.SOCKETS, fds=tuple(socket.fileno() for socket in made))
    except OSError:
        wire.send(end, wire.SOCKETS)  # there can be none now
    finally:
        for socket in made:
            socket.close()


def _send_listeners(message: wire.Message) -> None:
    """Listeners of the world's network, by their names; FAILED where it can have one of them not."""
    answer = _socket.socket(fileno=message.fds[0])
    made: dict[str, int] = {}
    try:
        try:
            made = listeners.open_ports(message.number(i) for i in range(len(message.fields)))
        except OSError as error:
            text = error.strerror or str(error)
            wire.send(answer, wire.FAILED, "listen", error.errno or 0, text)
        else:
            wire.send(answer, wire.LISTEN, *made, fds=tuple(made.values()))
    except (BrokenPipeError, ConnectionResetError):
        return  # nobody waits any more
    finally:
        for fd in made.values():
            os.close(fd)
        answer.close()


def _use_own_null() -> None:
    """Puts 0-2 on the world's /dev/null: the one that the zygote had is the host's own file, which
    its owner could change."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for standard in range(3):
        os.dup2(null, standard)
    os.close(null)


def harden(frame: Frame, *, observed: bool = False) -> None:
    """What pid 1 and every seat keep for good, besides their ids; nothing without a world.
    `observed`: of a seat whose command brings a filter for what is evidence. Pid 1 itself, and so a
    command that is forked on request, denies it by its own."""
    if frame.backend == "none":
        return
    if frame.backend == "guard":  # we answer for the commands, which have filters of their own
        limits.refuse_core_dumps()
        return
    limits.refuse_core_dumps()
    linux.install_filter(
        hardening_filter(
            frame.backend,
            allow_ptrace=frame.allow_ptrace,
            allow_userns=frame.allow_userns,
            observed=observed,
        )
    )


def _end(frame: Frame) -> NoReturn:
    """The supervisor is gone: so is everything here."""
    if frame.backend not in NAMESPACED:  # no pid namespace that would take them along
        end_below()
    os._exit(0)


def end_below(spared: frozenset[int] = frozenset()) -> None:
    """Kills all processes below this one, but those `spared`, until none is left that it may kill. A
    look at what there is misses what is forked meanwhile, so there are more until nothing is found."""
    pause = select.poll()
    while sum(_kill(pid, _signal.SIGKILL) for pid in _others() if pid not in spared):
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        pause.poll(_PAUSE_MS)


def _signal_commands(message: wire.Message, commands: set[int]) -> None:
    number, scope = message.number(0), message.text(1)
    spared = {message.number(i) for i in range(2, len(message.fields))}
    if scope == "all":
        targets = [pid for pid in _others() if pid not in spared]
    elif scope == "group":
        targets = [-pid for pid in commands - spared]
    else:
        targets = list(commands - spared)
    for target in targets:
        _kill(target, number)


def _signal_one(message: wire.Message, commands: set[int]) -> None:
    """To one command: its process, its group, or all that came of it as far as that shows."""
    number, scope, pid = message.number(0), message.text(1), message.number(2)
    alive = pid in commands
    if scope == "tree":
        # it leads a session of its own, by which those are found whose parents have ended
        targets = [other for other in _others() if _session_of(other) == pid]
        if alive:
            targets += [other for other in descendants_of(pid) if other not in targets]
            targets.append(pid)
        for target in dict.fromkeys(targets):
            _kill(target, number)
    elif alive:
        _kill(-pid if scope == "group" else pid, number)


def _session_of(pid: int) -> int:
    """0 of one that is gone (getsid(2))."""
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return 0


def _kill(pid: int, number: int) -> bool:
    """False where it is gone, or has more rights than we: set-user-id programs without a world."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _others() -> list[int]:
    """The pids of all processes of the world but this one, by /proc: everything in the pid
    namespace as pid 1, else all descendants."""
    me = os.getpid()
    if me == 1:
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]
    return descendants_of(me)


def _name(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read(64).rstrip(b"\n")
    except (FileNotFoundError, ProcessLookupError):
        return b"(ended)"
