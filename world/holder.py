"""Pid 1 of a world: it forks the commands, reaps everything, and dies with the supervisor.

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
import errno
import fcntl
import os
import select
import struct

from substrate.world import capabilities, limits, linux, seccomp, wire
from substrate.world.spec import CommandSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from substrate.world.spec import WorldSpec

_TIOCSCTTY = 0x540E
_TIOCSWINSZ = 0x5414
_SIGNALS = tuple(set(range(1, 32)) - {_signal.SIGKILL, _signal.SIGSTOP})
#: in `CommandSpec.stdio`
CLOSED, TERMINAL, NULL = -1, -2, -3


_filters: dict[bool, bytes] = {}


def hardening_filter(*, allow_ptrace: bool) -> bytes:
    """The filter of worlds, built once a process: the zygote calls this before it is asked
    for a world."""
    if allow_ptrace not in _filters:
        _filters[allow_ptrace] = seccomp.build_filter(
            machine=linux.MACHINE, allow_ptrace=allow_ptrace
        )
    return _filters[allow_ptrace]


def hold(spec: WorldSpec, end: _socket.socket) -> NoReturn:
    """Serves as pid 1 until the supervisor is gone; never returns."""
    end = _socket.socket(fileno=_keep_only(end.detach()))
    try:
        _serve(spec, end)
    except Exception as error:  # noqa: BLE001 - a process edge: the supervisor reports it
        wire.send(end, wire.FAILED, "hold", getattr(error, "errno", 0) or 0, repr(error))
    finally:
        os._exit(1)


def _serve(spec: WorldSpec, end: _socket.socket) -> NoReturn:
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # a handler would let the world signal pid 1
    _signal.signal(_signal.SIGCHLD, lambda *_: None)
    _signal.set_wakeup_fd(wake_write)
    if spec.backend != "none":
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        linux.install_filter(hardening_filter(allow_ptrace=spec.allow_ptrace))
    wire.send(end, wire.READY)
    poll = select.poll()
    poll.register(end.fileno(), select.POLLIN)
    poll.register(wake_read, select.POLLIN)
    commands: set[int] = set()
    while True:
        for fd, _ in poll.poll():
            if fd == wake_read:
                os.read(wake_read, 4096)
                _reap(end, commands)
                continue
            message = wire.receive(end)
            if message is None:
                _end(spec)
            elif message.kind == wire.RUN:
                commands.add(_start(spec, end, message))
            elif message.kind == wire.SIGNAL:
                _signal_commands(message, commands)
            elif message.kind == wire.WHO:
                wire.send(end, wire.NAMES, *[_name(pid) for pid in _others()[:16]])


def _keep_only(fd: int) -> int:
    """Leaves open only 0-2 (on /dev/null) and `fd`, moved to 3."""
    wanted = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64)
    null = os.open("/dev/null", os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    os.dup2(wanted, 3, inheritable=False)
    linux.close_range(4)
    return 3


def _reap(end: _socket.socket, commands: set[int]) -> None:
    while True:
        try:
            pid, status, used = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            wire.send(end, wire.QUIET)
            return
        if pid == 0:
            return
        if pid in commands:
            commands.discard(pid)
            wire.send(
                end, wire.EXITED, pid, status,
                int(used.ru_utime * 1_000_000), int(used.ru_stime * 1_000_000), used.ru_maxrss,
                used.ru_minflt, used.ru_majflt, used.ru_inblock, used.ru_oublock,
                used.ru_nvcsw, used.ru_nivcsw,
            )  # fmt: skip


def _end(spec: WorldSpec) -> NoReturn:
    """The supervisor is gone: so is everything here."""
    if spec.backend == "none":  # no pid namespace that would take them along
        while others := _others():
            for pid in others:
                _kill(pid, _signal.SIGKILL)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
    os._exit(0)


def _signal_commands(message: wire.Message, commands: set[int]) -> None:
    number, scope = message.number(0), message.text(1)
    if scope == "all":
        targets = _others()
    elif scope == "group":
        targets = [-pid for pid in commands]
    else:
        targets = list(commands)
    for target in targets:
        _kill(target, number)


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _others() -> list[int]:
    """The pids of all processes of the world but this one, by /proc: everything in the pid
    namespace as pid 1, else all descendants."""
    me = os.getpid()
    if me == 1:
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]
    found: list[int] = []
    waiting = [me]
    while waiting:
        pid = waiting.pop()
        try:
            with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
                children = [int(word) for word in file.read().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += children
        waiting += children
    return found


def _name(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read(64).rstrip(b"\n")
    except (FileNotFoundError, ProcessLookupError):
        return b"(ended)"


def _start(world: WorldSpec, end: _socket.socket, message: wire.Message) -> int:
    """Forks a command that says HELLO and waits for its go."""
    memory, go, *stdio = message.fds
    spec = CommandSpec(**wire.unpack_value(memory))
    pid = os.fork()
    if pid == 0:
        step = ["prepare"]
        try:
            _become(world, spec, end, go, stdio, step)
        except OSError as error:
            wire.send(end, wire.FAILED, step[0], error.errno or 0, error.strerror or str(error))
        except Exception as error:  # noqa: BLE001 - a process edge: the supervisor reports it
            wire.send(end, wire.FAILED, step[0], 0, f"internal error: {error!r}")
        finally:
            os._exit(126)
    for fd in (go, *stdio):
        os.close(fd)
    return pid


def _become(
    world: WorldSpec,
    spec: CommandSpec,
    end: _socket.socket,
    go: int,
    stdio: list[int],
    step: list[str],
) -> NoReturn:
    """The child: everything between fork and exec."""
    _signal.set_wakeup_fd(-1)
    for number in _SIGNALS:  # what the zygote ignores would stay ignored through exec
        _signal.signal(number, _signal.SIG_DFL)
    for number in spec.ignored_signals:
        _signal.signal(number, _signal.SIG_IGN)
    os.setsid()
    step[0] = "terminal"
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
    step[0] = "limits"
    limits.apply_rlimits(spec.rlimits)
    os.umask(spec.umask)
    step[0] = "credentials"
    if world.backend != "none":
        capabilities.restrict(world.backend)
    step[0] = "score for the out-of-memory killer"
    _prefer_over_holder()
    step[0] = f"chdir {os.fsdecode(spec.cwd)}"
    os.chdir(spec.cwd)
    step[0] = "hello"
    wire.send(end, wire.HELLO, fds=(master,) if master >= 0 else ())
    if os.read(go, 1) != b"g":
        os._exit(125)
    linux.mark_close_on_exec(3)
    step[0] = f"exec {os.fsdecode(spec.file)}"
    _exec(spec)


def _prefer_over_holder() -> None:
    """When the world's memory runs out, the kernel ends a command, not pid 1.

    An undumpable process' own files in /proc belong to root (proc(5)); what we are allowed
    by now is what the command will be, so nothing is gained by looking into us meanwhile."""
    linux.prctl(linux.PR_SET_DUMPABLE, 1)
    with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
        score = int(file.read())
        file.seek(0)
        file.write(str(min(1000, score + 100)))
    linux.prctl(linux.PR_SET_DUMPABLE, 0)


def _exec(spec: CommandSpec) -> NoReturn:
    """execve(2), with the search that execvp(3) makes; raises the error that says most."""
    environ = dict(spec.environ)
    if b"/" in spec.file:
        os.execve(spec.file, spec.argv, environ)
    worst = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    denied: OSError | None = None
    for directory in environ.get(b"PATH", b"/usr/local/bin:/usr/bin:/bin").split(b":"):
        try:
            os.execve((directory or b".") + b"/" + spec.file, spec.argv, environ)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            denied = error
    raise denied or worst
