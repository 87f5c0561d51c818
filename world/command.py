"""The children that become commands: everything between fork and exec (world.md §2, steps 5-9).

In a world a command begins in a *seat*: a child that the holder forks ahead of the request, which
gives up its rights at once and becomes the trampoline, that waits for a script (script.py): what
takes time has happened when the command is known. A command that gets a terminal is forked on
request and prepared here, and so is one without a world. Invariants: rights are cut before the
request is read; between HELLO and exec nothing happens but waiting for the go; every fd above 2
closes at exec; a command of a world is exec'd by the trampoline, and not by this Python.
"""

from __future__ import annotations

import _signal
import _socket
import fcntl
import os
import resource  # noqa: F401 - here, since in a world it may come from what the world wrote
import struct

from substrate.world import capabilities, limits, linux, script, trampoline, wire
from substrate.world.spec import CLOSED, TERMINAL, CommandSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from substrate.world.guard import Guard
    from substrate.world.spec import Frame

_TIOCSCTTY = 0x540E
_TIOCSWINSZ = 0x5414
_SIGNALS = tuple(set(range(1, 32)) - {_signal.SIGKILL, _signal.SIGSTOP})
_FAILED_STATUS = 126


class _Steps:
    """Which step is under way, for the message when it fails."""

    def __init__(self) -> None:
        self.now = "prepare"

    def __call__(self, name: str) -> None:
        self.now = name


def fork_seat(
    frame: Frame,
    end: _socket.socket,
    program: int,
    seat: _socket.socket,
    before: Callable[[], None],
) -> int:
    """Forks a child that does `before` and waits on `seat` for its script; returns its pid.
    `program`: the fd of trampoline.prepare. Until it waits, a failure is told on `end`."""

    def act(step: _Steps) -> NoReturn:
        before()
        _give_up_rights(frame, step)
        os.chdir("/")  # a root is moved for all that stand in it (pivot_root(2))
        _become_seat(program, seat)

    return _fork(act, end)


def fork_command(
    frame: Frame, program: int, message: wire.Message, guard: Guard | None = None
) -> int:
    """Forks a child for a RUN; returns its pid, or 0 where there can be no more processes, which is told
    on its go socket. `program`: -1 where there are no namespaces. `guard`: what it is put under then, in
    a world."""
    memory, go, *stdio = message.fds
    ours = _socket.socket(fileno=go)
    listening = None if guard is None else wire.pair()

    def act(step: _Steps) -> NoReturn:
        _give_up_rights(frame, step)
        if program < 0:
            step("prepare")
            spec = CommandSpec(**wire.unpack_value(memory))

            def confine() -> None:
                if guard is not None and listening is not None:
                    guard.confine(listening[1], step)

            _exec(spec, ours, stdio, step, confine)
        if len(message.fields) == 3:
            step("terminal")
            stdio.append(_make_terminal(message.number(1), message.number(2), ours))
        step("seat")
        give, seat = wire.pair()
        script.hand_over(message.number(0), memory, give, ours, stdio)
        _become_seat(program, seat)

    try:
        pid = _fork(act, ours)
    except OSError as error:
        pid = 0
        _tell_of_no_fork(ours, error)
    ours.close()
    if guard is not None and listening is not None:
        listening[1].close()
        if pid:
            guard.take_listener(listening[0])
        else:
            listening[0].close()
    for fd in (memory, *stdio):
        os.close(fd)
    return pid


def _tell_of_no_fork(go: _socket.socket, error: OSError) -> None:
    try:
        text = error.strerror or str(error)
        wire.send(go, wire.FAILED, "fork", error.errno or 0, text)
    except (BrokenPipeError, ConnectionResetError):
        return  # nobody waits any more


def _fork(act: Callable[[_Steps], NoReturn], tell: _socket.socket) -> int:
    pid = os.fork()
    if pid == 0:
        # an fd that `act` does not replace
        tell = _socket.socket(fileno=fcntl.fcntl(tell.fileno(), fcntl.F_DUPFD_CLOEXEC, 10))
        step = _Steps()
        try:
            act(step)
        except OSError as error:
            wire.send(tell, wire.FAILED, step.now, error.errno or 0, error.strerror or str(error))
        except Exception as error:  # noqa: BLE001 - a process edge: the supervisor reports it
            wire.send(tell, wire.FAILED, step.now, 0, f"internal error: {error!r}")
        finally:
            os._exit(_FAILED_STATUS)
    return pid


def _give_up_rights(frame: Frame, step: _Steps) -> None:
    """What does not depend on the command."""
    _signal.set_wakeup_fd(-1)
    for number in _SIGNALS:  # what the zygote ignores would stay ignored through exec
        if _signal.getsignal(number) != _signal.SIG_DFL:
            _signal.signal(number, _signal.SIG_DFL)
    os.setsid()
    step("score for the out-of-memory killer")
    _prefer_over_holder()
    step("credentials")
    if frame.backend != "none":
        capabilities.restrict(frame.backend)


def _become_seat(program: int, seat: _socket.socket) -> NoReturn:
    """The streams of a seat are its own socket, until it has a command's."""
    for standard in range(3):
        os.dup2(seat.fileno(), standard)
    trampoline.become(program, seat.fileno())


def _make_terminal(columns: int, rows: int, go: _socket.socket) -> int:
    """A terminal that this session gets; returns its fd. The other side's goes to the supervisor."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, _TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    fcntl.ioctl(slave, _TIOCSCTTY, 0)
    wire.send(go, wire.MASTER, fds=(master,))
    os.close(master)
    return slave


def _prefer_over_holder() -> None:
    """When the world's memory runs out, the kernel ends a command, not pid 1.

    An undumpable process' own files in /proc belong to root (proc(5)), so we are dumpable for
    a moment. Only while we still have more capabilities than the world: its processes could
    write to our memory (ptrace(2), "access mode checking") and then speak for the holder."""
    linux.prctl(linux.PR_SET_DUMPABLE, 1)
    fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
    score = int(os.read(fd, 16))
    os.pwrite(fd, b"%d" % min(1000, score + 100), 0)
    os.close(fd)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)


def _install(program: bytes, flags: int) -> int:
    """A filter takes a right to administer, or the promise to gain no rights (seccomp(2))."""
    try:
        return linux.install_filter(program, flags)
    except PermissionError:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        return linux.install_filter(program, flags)


def _exec(
    spec: CommandSpec,
    go: _socket.socket,
    stdio: list[int],
    step: _Steps,
    confine: Callable[[], None],
) -> NoReturn:
    """Without namespaces: what a script does, by this Python (script.py). `confine`: what a world
    without them puts a command under."""
    if spec.terminal is not None:
        step("terminal")
        stdio.append(_make_terminal(*spec.terminal, go))
    for fd, source in enumerate(spec.stdio):
        if source == TERMINAL:
            os.dup2(stdio[-1], fd)
        elif source >= 0:
            os.dup2(stdio[source], fd)
        elif source == CLOSED:
            os.close(fd)
    for number in spec.ignored_signals:
        _signal.signal(number, _signal.SIG_IGN)
    step("limits")
    limits.apply_rlimits(spec.rlimits)
    os.umask(spec.umask)
    step(f"chdir {os.fsdecode(spec.cwd)}")
    os.chdir(spec.cwd)
    confine()
    fds: tuple[int, ...] = ()
    if spec.notify:
        step("filter")
        fds = (_install(spec.notify, script.LISTENER),)
    if spec.open_to_tracer:
        linux.prctl(linux.PR_SET_DUMPABLE, 1)
    step("hello")
    wire.send(go, wire.HELLO, fds=fds)
    if os.read(go.fileno(), 1) != b"g":
        os._exit(125)
    if spec.trace:  # only once there is a tracer: without one its calls answer ENOSYS
        step("filter")
        _install(spec.trace, 0)
    linux.mark_close_on_exec(3)
    for fd, source in spec.extra:
        os.dup2(stdio[source], fd)
    step(f"exec {os.fsdecode(spec.file)}")
    environ = dict(spec.environ)
    worst: OSError | None = None
    for file in script.files_to_try(spec):
        try:
            os.execve(file, spec.argv, environ)
        except (FileNotFoundError, NotADirectoryError) as error:
            worst = worst or error
        except PermissionError as error:
            worst = error
    assert worst is not None
    raise worst
