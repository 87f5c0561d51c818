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
import fcntl
import os
import select

from substrate.world import command, limits, linux, seccomp, trampoline, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from substrate.world.spec import WorldSpec


#: the version of Landlock that scopes abstract sockets
SCOPES = 6
_filters: dict[tuple[bool, bool, bool], bytes] = {}


def hardening_filter(
    backend: str = "", *, allow_ptrace: bool = False, allow_userns: bool = False
) -> bytes:
    """The filter of worlds, built once a process: the zygote calls this before it is asked
    for a world.

    With `allow_userns` cgroup namespaces are allowed too, but not where the root of a nested
    user namespace is the host's root by its files: all groups of version 1 would be its own."""
    key = (allow_ptrace, allow_userns, allow_userns and backend != "ns-root")
    if key not in _filters:
        _filters[key] = seccomp.build_filter(
            machine=linux.MACHINE, allow_ptrace=key[0], allow_userns=key[1], allow_cgroupns=key[2]
        )
    return _filters[key]


def hold(spec: WorldSpec, end: _socket.socket) -> NoReturn:
    """Serves as pid 1 until the supervisor is gone; never returns."""
    end = _socket.socket(fileno=_move(end.detach()))
    try:
        linux.close_range(4)
        _serve(spec, end)
    except OSError as error:
        wire.send(end, wire.FAILED, "hold", error.errno or 0, error.strerror or str(error))
    except Exception as error:  # noqa: BLE001 - a process edge: the supervisor reports it
        wire.send(end, wire.FAILED, "hold", 0, repr(error))
    finally:
        os._exit(1)


def _serve(spec: WorldSpec, end: _socket.socket) -> NoReturn:
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # a handler would let the world signal pid 1
    _signal.signal(_signal.SIGCHLD, lambda *_: None)
    _signal.set_wakeup_fd(wake_write)
    program = -1
    if spec.backend != "none":
        program = trampoline.prepare()
        limits.refuse_core_dumps()
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        if spec.net == "host" and linux.landlock_abi() >= SCOPES:
            # no namespace keeps the world from the host's abstract sockets: X11, D-Bus
            linux.landlock_scope_abstract_sockets()
        linux.install_filter(
            hardening_filter(
                spec.backend, allow_ptrace=spec.allow_ptrace, allow_userns=spec.allow_userns
            )
        )
    theirs, seat = wire.pair()
    wire.send(end, wire.READY, fds=(theirs.fileno(),))  # the first command can come meanwhile
    theirs.close()
    commands = {command.fork_seat(spec, end, program, seat)}
    seat.close()
    poll = select.poll()
    poll.register(end.fileno(), select.POLLIN)
    poll.register(wake_read, select.POLLIN)
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
                commands.add(command.fork_command(spec, end, program, message))
            elif message.kind == wire.SIGNAL:
                _signal_commands(message, commands)
            elif message.kind == wire.WHO:
                wire.send(end, wire.NAMES, *[_name(pid) for pid in _others()[:16]])


def _move(fd: int) -> int:
    """Puts 0-2 on /dev/null and `fd` at 3, behind which every other one is closed."""
    wanted = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64)
    null = os.open("/dev/null", os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    os.dup2(wanted, 3, inheritable=False)
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
