"""The child that becomes a command: everything between fork and exec (world.md §2, steps 5-9).

A command begins in a *seat*: a child that the holder forks ahead of the request, which gives
up its rights at once and waits. The request (wire.RUN) comes to the seat's own socket, so a
world's first command costs no fork when it is asked for; later ones are forked on request.
Invariants: rights are cut before the request is read; between HELLO and exec nothing happens
but waiting for the go; every fd above 2 closes at exec; a command of a world is never exec'd by
this Python itself (trampoline.py).
"""

from __future__ import annotations

import _signal
import fcntl
import os
import resource  # noqa: F401 - here, since in a world it may come from what the world wrote
import struct

from substrate.world import capabilities, limits, linux, trampoline, wire
from substrate.world.spec import CLOSED, TERMINAL, CommandSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import NoReturn

    from substrate.world.spec import WorldSpec

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


def fork_seat(world: WorldSpec, end: _socket.socket, program: int, seat: _socket.socket) -> int:
    """Forks a child that waits on `seat` for its RUN; returns its pid. `program`: the fd of
    trampoline.prepare, -1 without a world."""
    return _fork(world, end, program, seat, None)


def fork_command(world: WorldSpec, end: _socket.socket, program: int, message: wire.Message) -> int:
    """Forks a child for a RUN that is there already; returns its pid."""
    pid = _fork(world, end, program, None, message)
    for fd in message.fds:
        os.close(fd)
    return pid


def _fork(
    world: WorldSpec,
    end: _socket.socket,
    program: int,
    seat: _socket.socket | None,
    message: wire.Message | None,
) -> int:
    pid = os.fork()
    if pid == 0:
        step = _Steps()
        try:
            _give_up_rights(world, step)
            if message is None:
                assert seat is not None
                message = wire.receive(seat)
            if message is not None:
                _become(message, end, program, step)
        except OSError as error:
            wire.send(end, wire.FAILED, step.now, error.errno or 0, error.strerror or str(error))
        except Exception as error:  # noqa: BLE001 - a process edge: the supervisor reports it
            wire.send(end, wire.FAILED, step.now, 0, f"internal error: {error!r}")
        finally:
            os._exit(_FAILED_STATUS)
    return pid


def _give_up_rights(world: WorldSpec, step: _Steps) -> None:
    """What does not depend on the command."""
    _signal.set_wakeup_fd(-1)
    for number in _SIGNALS:  # what the zygote ignores would stay ignored through exec
        if _signal.getsignal(number) != _signal.SIG_DFL:
            _signal.signal(number, _signal.SIG_DFL)
    os.setsid()
    step("score for the out-of-memory killer")
    _prefer_over_holder()
    step("credentials")
    if world.backend != "none":
        capabilities.restrict(world.backend)


def _become(message: wire.Message, end: _socket.socket, program: int, step: _Steps) -> NoReturn:
    """Takes the request's form and execs it."""
    step("prepare")
    memory, go, *stdio = message.fds
    spec = CommandSpec(**wire.unpack_value(memory))
    for number in spec.ignored_signals:
        _signal.signal(number, _signal.SIG_IGN)
    step("terminal")
    master = slave = -1
    if spec.terminal is not None:
        master, slave = os.openpty()
        columns, rows = spec.terminal
        fcntl.ioctl(slave, _TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        fcntl.ioctl(slave, _TIOCSCTTY, 0)
    for fd, source in enumerate(spec.stdio):
        if source == TERMINAL:
            os.dup2(slave, fd)
        elif source >= 0:
            os.dup2(stdio[source], fd)
        elif source == CLOSED:
            os.close(fd)
    step("limits")
    limits.apply_rlimits(spec.rlimits)
    os.umask(spec.umask)
    step(f"chdir {os.fsdecode(spec.cwd)}")
    os.chdir(spec.cwd)
    step("hello")
    wire.send(end, wire.HELLO, fds=(master,) if master >= 0 else ())
    if os.read(go, 1) != b"g":
        os._exit(125)
    linux.mark_close_on_exec(3)
    step(f"exec {os.fsdecode(spec.file)}")
    if program >= 0:
        trampoline.leap(program, go, spec)
    _exec(spec)


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


def _exec(spec: CommandSpec) -> NoReturn:
    """Without a world: execve(2) by this Python, as the trampoline does it."""
    environ = dict(spec.environ)
    worst: OSError | None = None
    for file in trampoline.files_to_try(spec):
        try:
            os.execve(file, spec.argv, environ)
        except (FileNotFoundError, NotADirectoryError) as error:
            worst = worst or error
        except PermissionError as error:
            worst = error
    assert worst is not None
    raise worst
