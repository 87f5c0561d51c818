"""The supervisor's side of worlds: start one, run commands in it, end it.

Owns fds only; the event loop that waits on them belongs to the caller. Invariant: closing
a `World` ends every process in it, since its holder then reads end of file.
"""

from __future__ import annotations

import _socket
import os
import select
import struct

from substrate.errors import HostUnsupported
from substrate.values import replace
from substrate.world import limits, script, wire
from substrate.world.spec import to_plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.world.script import Script
    from substrate.world.spec import CommandSpec, Frame, WorldSpec

#: a world that is not ready by then never will be
START_TIMEOUT_MS = 30_000
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

    def __init__(self, socket: _socket.socket, compiled: Script | None) -> None:
        self._socket = socket
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
        """Lets the command exec."""
        self._socket.send(b"g")

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
        self._seat: _socket.socket | None = None  # for the next command (command.py)
        self._asked = 0  # seats that were asked for, and are not here yet
        self._given_up = 0  # how many of these are of no use, as a command was run meanwhile

    def fileno(self) -> int:
        """The fd to poll for messages."""
        return self.socket.fileno()

    def wait_ready(self) -> None:
        """Waits until the holder serves; raises StartFailed."""
        message = self._first(START_TIMEOUT_MS)
        if message is None:
            raise StartFailed(self.spec.frame.backend, "start", 0, "its first process ended early")
        if message.kind == wire.FAILED:
            raise StartFailed(
                self.spec.frame.backend, message.text(0), message.number(1), message.text(2)
            )
        if message.kind != wire.READY:
            raise wire.WireError(f"a new world said {message.kind!r}")
        self.holder_pid = message.pid
        self._sit(message)

    def _sit(self, message: wire.Message) -> None:
        if message.fds:
            self._seat = _socket.socket(fileno=message.fds[0])

    def _first(self, timeout_ms: int) -> wire.Message | None:
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLIN)
        if not poll.poll(timeout_ms):
            raise StartFailed(
                self.spec.frame.backend, "start", 0, f"not ready after {timeout_ms // 1000} s"
            )
        return wire.receive(self.socket)

    def receive(self) -> wire.Message | None:
        """The next message; None when the world is dead."""
        message = wire.receive(self.socket)
        if message is not None and message.kind == wire.SEATED:
            self._asked -= 1
            if self._given_up:
                self._given_up -= 1
                os.close(message.fds[0])
            else:
                self._sit(message)
        return message

    def ask_for_seat(self) -> None:
        """Has a seat made for the next command, which then starts at once; SEATED says that it is
        there. A world's first command has one."""
        wire.send(self.socket, wire.SEAT)
        self._asked += 1

    def run(self, command: CommandSpec, stdio: tuple[int, ...]) -> Go:
        """Asks for a command with these fds (indexed by `command.stdio`). Raises OSError."""
        ours, theirs = wire.pair()
        seat, self._seat = self._seat, None
        try:
            if seat is None or command.terminal is not None or _is_closed(seat):
                self._ask_holder(command, theirs, stdio)
                self._given_up = self._asked
                return Go(ours, None)
            own = replace(command, rlimits=limits.within_own(command.rlimits))
            compiled = script.compile_script(own, len(stdio))
            wire.send(self.socket, wire.TAKEN)
            script.hand_over(compiled, seat, theirs, stdio)
            return Go(ours, compiled)
        except (BrokenPipeError, ConnectionResetError):
            return Go(ours, None)  # it has ended, and the world's socket tells why
        finally:
            if seat is not None:
                seat.close()
            theirs.close()

    def _ask_holder(self, command: CommandSpec, go: _socket.socket, stdio: tuple[int, ...]) -> None:
        memory = wire.pack_value(to_plain(command))
        try:
            wire.send(self.socket, wire.RUN, fds=(memory, go.fileno(), *stdio))
        finally:
            os.close(memory)

    def signal(self, number: int, scope: str) -> None:
        """Sends a signal to the commands: their `main` process, process `group`, or `all`
        processes of the world."""
        wire.send(self.socket, wire.SIGNAL, number, scope)

    def close(self) -> None:
        """Ends the world; `Zygote.wait_gone` tells when nothing of it is left."""
        if not self.ended:
            self.ended = True
            self.socket.close()
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

    def wait_gone(self, number: int) -> None:
        """Waits until every process of world `number` is dead and its cgroups are removed."""
        while True:
            message = wire.receive(self.socket)
            if message is None:
                raise _zygote_is_gone()
            if message.kind == wire.GONE and message.number(0) == number:
                return

    def dismiss(self) -> None:
        """Ends the zygote and every world of it, without waiting for that."""
        self.socket.close()

    def close(self) -> None:
        """Ends the zygote and every world of it, and waits for that."""
        self.socket.close()
        os.waitpid(self.pid, 0)


def _zygote_is_gone() -> HostUnsupported:
    return HostUnsupported(
        "the process that starts worlds was killed",
        hint="the world ended with it; run the command again",
    )
