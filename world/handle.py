"""The supervisor's side of worlds: start one, run commands in it, end it.

Owns fds only; the event loop that waits on them belongs to the caller. Invariant: closing
a `World` ends every process in it, since its holder then reads end of file.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import struct

import substrate.world.egress  # noqa: F401 - a package of the zygote's, for the import cache to keep it
from substrate.errors import HostUnsupported
from substrate.values import replace
from substrate.world import limits, script, wire
from substrate.world.spec import NAMESPACED, to_plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from substrate.world.script import Script
    from substrate.world.spec import CommandSpec, Frame, WorldSpec

#: a world that is not ready by then never will be
START_TIMEOUT_MS = 30_000
#: for listeners that are asked of it later
_LISTEN_MS = 5_000
#: of wire.REFUSED
_REFUSAL = struct.Struct("=BI")


class StartFailed(HostUnsupported):
    """A world did not start: `step`, `errno` and `text` as the kernel gave them."""

    def __init__(self, backend: str, step: str, number: int, text: str) -> None:
        super().__init__(f"a world with backend {backend} did not start: {step}: {text}")
        self.backend, self.step, self.errno, self.text = backend, step, number, text


class Go:
    """A command that is about to start: what it says until its exec, and its go. `give` lets it
    exec, `close` before that ends it. Nobody else can speak for it: the kernel names the sender."""

    def __init__(
        self, socket: _socket.socket, settle: Callable[[], None], compiled: Script | None
    ) -> None:
        #: its pid in the world: 0 until that is told, -1 where there is none
        self.number = 0
        self.signals: list[tuple[int, str]] = []  # that wait for it
        self._socket = socket
        self._settle = settle
        self._script = compiled

    def fileno(self) -> int:
        """The fd to poll for messages."""
        return self._socket.fileno()

    def receive(self) -> wire.Message | None:
        """HELLO, MASTER, or FAILED; None when it is gone, or has exec'd."""
        message = wire.receive(self._socket)
        if message is None or message.kind != wire.REFUSED:
            return message
        number, done = _REFUSAL.unpack(message.fields[0])
        step = "seat" if self._script is None else self._script.failed(done)
        fields = [step.encode("utf-8", "surrogateescape"), b"%d" % number]
        fields.append(os.strerror(number).encode())
        return wire.Message(wire.FAILED, fields, message.fds, message.pid)

    def give(self) -> None:
        """Lets the command exec, once the holder is settled. It can be given before HELLO, where
        nothing has to happen between. Raises StartFailed where the holder fails, OSError."""
        self._settle()
        try:
            self._socket.send(b"g")
        except (BrokenPipeError, ConnectionResetError):
            return  # it was killed: its end tells

    def failed(self, pid: int) -> wire.Message | None:
        """FAILED, when command `pid` has ended without its exec; None when that did not fail."""
        self._socket.setblocking(False)
        try:
            message = self.receive()
        except BlockingIOError:
            return None
        return message if message is not None and message.pid == pid else None

    def close(self) -> None:
        self._socket.close()


class World:
    """A started world, or one that is starting."""

    def __init__(self, spec: WorldSpec, socket: _socket.socket) -> None:
        self.spec = spec
        self.socket = socket
        self.holder_pid = 0
        self.ended = False
        self._settled = False
        self._failure: StartFailed | None = None  # that nobody was told of yet
        self.network: dict[
            str, int
        ] = {}  # fds of a filtered or routed one, by their names, for who takes them
        #: the listening socket at /run/substrate/inside, for who takes it; -1: there is none
        self.inside = -1
        self._seat: _socket.socket | None = None  # for the next command (command.py)
        self._sitting = 0  # its pid
        self._idle: set[int] = set()  # pids, in the world, of seats that are no commands
        self._asked = 0  # seats that were asked for, and are not here yet
        self._given_up = 0  # how many of these are of no use, as a command was run meanwhile
        self._starting: list[Go] = []  # commands that were asked for and whose pid is not told yet

    def fileno(self) -> int:
        """The fd to poll for messages."""
        return self.socket.fileno()

    def wait_ready(self) -> None:
        """Waits until the world's files are there; raises StartFailed."""
        if not self.holder_pid:
            self._await(wire.READY)

    def take_inside(self) -> int:
        """The socket of its door, which is the caller's then; -1 where it has none."""
        taken, self.inside = self.inside, -1
        return taken

    def _close_inside(self) -> None:
        fd = self.take_inside()
        if fd >= 0:
            os.close(fd)

    def _settle(self) -> None:
        if not self._settled:
            self._await(wire.SETTLED)

    def _await(self, kind: bytes) -> None:
        if self._failure is not None:
            raise self._failure
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLIN)
        backend = self.spec.frame.backend
        while True:
            if not poll.poll(START_TIMEOUT_MS):
                late = f"not ready after {START_TIMEOUT_MS // 1000} s"
                raise StartFailed(backend, "start", 0, late)
            message = wire.receive(self.socket)
            if message is None:
                raise StartFailed(backend, "start", 0, "its first process ended early")
            if message.kind == wire.FAILED:
                raise StartFailed(backend, message.text(0), message.number(1), message.text(2))
            self._notice(message)
            if message.kind == kind:
                return
            if message.kind not in (wire.NETWORK, wire.INSIDE):
                raise wire.WireError(f"a new world said {message.kind!r}")

    def _sit(self, message: wire.Message) -> None:
        if message.fds:
            self._leave_seat()
            self._seat = _socket.socket(fileno=message.fds[0])
            self._sitting = message.number(0)
            self._idle.add(self._sitting)

    def _leave_seat(self) -> None:
        """Nobody comes to the seat: it ends."""
        if self._seat is not None:
            self._seat.close()
            self._seat = None

    def receive(self) -> wire.Message | None:
        """The next message, IGNORED for one that is of no interest; None when the world is dead."""
        message = wire.receive(self.socket)
        if message is not None:
            self._notice(message)
        return message

    def _notice(self, message: wire.Message) -> None:
        if message.kind == wire.NETWORK:
            names = (message.text(i) for i in range(len(message.fields)))
            self.network = dict(zip(names, message.fds, strict=True))
        elif message.kind == wire.INSIDE:
            (self.inside,) = message.fds
        elif message.kind == wire.READY:
            self.holder_pid = message.pid
            self._sit(message)
        elif message.kind == wire.SETTLED:
            self._settled = True
        elif message.kind == wire.SEATED:
            self._asked -= 1
            self._sit(message)
            if self._given_up:
                self._given_up -= 1
                self._leave_seat()
        elif message.kind == wire.STARTED:
            go = self._starting.pop(0)
            go.number = message.number(0) or -1
            self._catch_up(go)
            if go.number > 0:
                message.kind = wire.IGNORED
        elif message.kind == wire.EXITED and message.number(0) in self._idle:
            self._idle.discard(message.number(0))
            message.kind = wire.IGNORED
        elif message.kind == wire.QUIET:
            left = {message.number(i) for i in range(len(message.fields))}
            if not left <= self._idle:
                message.kind = wire.IGNORED

    def _catch_up(self, go: Go) -> None:
        """Sends the signals that waited for its pid. A world that died has nobody left to tell."""
        try:
            for number, scope in go.signals:
                self.signal_one(go, number, scope)
        except (BrokenPipeError, ConnectionResetError):
            return

    def ask_for_seat(self) -> bool:
        """Has a seat made for the next command, which then starts at once; SEATED says that it is
        there, or that there can be none. A world's first command has one.

        False where none is made: without a world; and in `ns-root`, where a command has every right
        to read the program, so that the seat would be dumpable for the moment of its exec."""
        if self.spec.frame.backend not in ("ns-root-idmap", "ns-user"):
            return False
        wire.send(self.socket, wire.SEAT)
        self._asked += 1
        return True

    def run(self, command: CommandSpec, stdio: tuple[int, ...]) -> Go:
        """Asks for a command with these fds (indexed by `command.stdio`), when the world is ready;
        it need not be yet. Raises OSError, StartFailed."""
        if self.spec.frame.observed and not command.notify:
            # the world's own filter lets pass what that one has to deny
            raise ValueError("a command of an observed world brings a filter for what is evidence")
        own = replace(command, rlimits=limits.within_own(command.rlimits))
        compiled: Script | None = None
        if self.spec.frame.backend in NAMESPACED:
            compiled = script.compile_script(own, len(stdio))
        ours, theirs = wire.pair()
        go = Go(ours, self._settle, compiled)
        try:
            self.wait_ready()
            if compiled is None:
                self._ask_holder(wire.pack_value(to_plain(own)), (), theirs, stdio)
                self._starting.append(go)
            else:
                self._run_script(compiled, own, theirs, stdio, go)
            return go
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()

    def _run_script(
        self,
        compiled: Script,
        command: CommandSpec,
        go: _socket.socket,
        stdio: tuple[int, ...],
        told: Go,
    ) -> None:
        memory, length = script.pack(compiled), len(compiled.content)
        if command.terminal is None and self._seat is not None and not _is_closed(self._seat):
            self._idle.discard(self._sitting)
            told.number = self._sitting
            try:
                script.hand_over(length, memory, self._seat, go, stdio)
            except (BrokenPipeError, ConnectionResetError):
                return  # it has ended in this moment: its go socket is closed
            finally:
                os.close(memory)
                self._leave_seat()
            return
        self._given_up = self._asked
        self._ask_holder(memory, (length, *(command.terminal or ())), go, stdio)
        self._starting.append(told)
        self._leave_seat()

    def _ask_holder(
        self, memory: int, fields: tuple[int, ...], go: _socket.socket, stdio: tuple[int, ...]
    ) -> None:
        """Closes `memory`."""
        try:
            wire.send(self.socket, wire.RUN, *fields, fds=(memory, go.fileno(), *stdio))
        except (BrokenPipeError, ConnectionResetError):
            return  # it has ended, and the world's socket tells why
        finally:
            os.close(memory)

    def open_root(self) -> int:
        """An O_PATH fd of the world's root, from its holder. Raises OSError, StartFailed; HostUnsupported
        where the world has ended."""
        self.wait_ready()
        self._settle()
        ours, theirs = wire.pair()
        try:
            wire.send(self.socket, wire.ROOT, fds=(theirs.fileno(),))
            theirs.close()
            message = wire.receive(ours)
        finally:
            ours.close()
            theirs.close()
        if message is None or message.kind != wire.ROOT or len(message.fds) != 1:
            raise HostUnsupported("the world has ended", hint="its layer can still be undone")
        return message.fds[0]

    def take_network(self) -> dict[str, int]:
        """What belongs to a filtered or routed network, which is the caller's then."""
        taken, self.network = self.network, {}
        return taken

    def ask_for_sockets(self, count: int) -> None:
        """Has the world send that many sockets of its network (SOCKETS); none where it
        cannot make them."""
        wire.send(self.socket, wire.SOCKETS, count)

    def wait_network(self) -> None:
        """Waits until what belongs to its filtered network is here, or the world has failed, which
        whoever waits for it is told."""
        if not self.network and self._failure is None:
            try:
                self._await(wire.NETWORK)
            except StartFailed as failed:
                self._failure = failed

    def listen(self, ports: tuple[int, ...]) -> dict[str, int]:
        """Listeners on these ports of its network (egress.listeners), which are the caller's, by
        their names; all or none. Raises OSError: EADDRINUSE where a program of the world has one."""
        ours, theirs = wire.pair()
        poll = select.poll()
        poll.register(ours.fileno(), select.POLLIN)
        try:
            wire.send(self.socket, wire.LISTEN, *ports, fds=(theirs.fileno(),))
            theirs.close()
            message = wire.receive(ours) if poll.poll(_LISTEN_MS) else None
        finally:
            ours.close()
            theirs.close()
        if message is None:
            raise OSError(errno.ESRCH, "the world did not answer")
        if message.kind != wire.LISTEN:
            raise OSError(message.number(1), message.text(2))
        return dict(zip(map(os.fsdecode, message.fields), message.fds, strict=True))

    @property
    def idle(self) -> frozenset[int]:
        """The pids, in the world, of seats that wait for a command."""
        return frozenset(self._idle)

    def signal(self, number: int, scope: str) -> None:
        """Sends a signal to the commands: their `main` process, process `group`, or `all`
        processes of the world."""
        wire.send(self.socket, wire.SIGNAL, number, scope, *self._idle)

    def signal_one(self, go: Go, number: int, scope: str) -> None:
        """Sends a signal to one command: its `main` process, its `group`, or the `tree` of all that
        came of it, as far as that shows."""
        if go.number > 0:
            wire.send(self.socket, wire.SIGNAL_ONE, number, scope, go.number)
        elif not go.number:
            go.signals.append((number, scope))

    def close(self) -> None:
        """Ends the world; `Zygote.wait_gone` tells when nothing of it is left."""
        if not self.ended:
            self.ended = True
            self.socket.close()
            for fd in self.take_network().values():
                os.close(fd)
            self._close_inside()
            if self._seat is not None:
                self._seat.close()


def _is_closed(seat: _socket.socket) -> bool:
    """Whether nobody sits there any more: a process of the world may have ended it."""
    poll = select.poll()
    poll.register(seat.fileno(), 0)
    return bool(poll.poll(0))


class Zygote:
    """The process that starts worlds; fork it early (zygote.py).

    What only the zygote needs is imported in it, while we go on on another CPU; what both need,
    before it."""

    def __init__(self) -> None:
        self.socket, theirs = wire.pair()
        self._prepared: tuple[Frame, _socket.socket] | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.socket.close()
                from substrate.world import zygote

                zygote.serve(theirs)
            finally:
                os._exit(1)
        theirs.close()

    def announce_groups(self, directories: tuple[bytes, ...]) -> None:
        """Names the cgroups of a world before they are made, so that none outlives us even if
        we are killed before `start`."""
        self._send(wire.GROUPS, *directories)

    def prepare(self, frame: Frame) -> None:
        """Has the zygote begin with a world: the next `start` takes it, if it is of that frame.
        Where that world is rootless, it is made of what is mounted on the host now."""
        ours, theirs = wire.pair()
        memory = wire.pack_value(to_plain(frame))
        try:
            self._send(wire.PREPARE, fds=(memory, theirs.fileno()))
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(memory)
            theirs.close()
        if self._prepared is not None:
            self._prepared[1].close()
        self._prepared = (frame, ours)

    def start(self, spec: WorldSpec, lock: int | None = None) -> World:
        """Asks for a world and returns at once; `World.wait_ready` waits for it. `lock`: an open
        file that stays open until every process of the world is dead, whoever else is killed;
        it says which process is the first. The caller closes its own copy."""
        if self._prepared is None or self._prepared[0] != spec.frame:
            self.prepare(spec.frame)
        assert self._prepared is not None
        _, ours = self._prepared
        self._prepared = None
        memory = wire.pack_value(to_plain(spec))
        try:
            self._send(wire.START, fds=(memory, *(() if lock is None else (lock,))))
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(memory)
        return World(spec, ours)

    def _send(self, kind: bytes, *fields: bytes, fds: tuple[int, ...] = ()) -> None:
        """To the zygote. That it is gone must not look like a reader of ours who went away."""
        try:
            wire.send(self.socket, kind, *fields, fds=fds)
        except (BrokenPipeError, ConnectionResetError):
            raise _zygote_is_gone() from None

    def load_network(self, mode: str = "filtered") -> None:
        """Has what will serve the next world's network loaded meanwhile."""
        self._send(wire.LOAD, mode.encode())

    def serve_network(self, network: dict[str, int], rules: Any, end: _socket.socket) -> None:
        """Has a process made that serves a world's network (egress.engine, egress.veth): it gets these fds of
        the world's, `rules` (built-in types), and `end`, whose other end is the supervisor's."""
        memory = wire.pack_value(rules)
        try:
            self._send(
                wire.EGRESS, *(n.encode() for n in network),
                fds=(memory, end.fileno(), *network.values()),
            )  # fmt: skip
        finally:
            os.close(memory)

    def wait_gone(self, number: int, timeout_ms: int | None = None) -> bool:
        """Waits until every process of world `number` is dead and its cgroups are removed: False where
        that takes longer."""
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLIN)
        while True:
            if timeout_ms is not None and not poll.poll(timeout_ms):
                return False
            message = wire.receive(self.socket)
            if message is None:
                raise _zygote_is_gone()
            if message.kind == wire.GONE and message.number(0) == number:
                return True

    def dismiss(self) -> None:
        """Ends the zygote and every world of it, without waiting for that."""
        self.socket.close()

    def close(self) -> None:
        """Ends the zygote and every world of it, and waits for that. May be called twice."""
        self.socket.close()
        pid, self.pid = self.pid, 0
        if pid:
            os.waitpid(pid, 0)


def _zygote_is_gone() -> HostUnsupported:
    return HostUnsupported(
        "the process that starts worlds was killed",
        hint="the world ended with it; run the command again",
    )
