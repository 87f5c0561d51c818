"""The supervisor's side of worlds: start one, run commands in it, end it.

Owns fds only; the event loop that waits on them belongs to the caller. Invariant: closing
a `World` ends every process in it, since its holder then reads end of file.
"""

from __future__ import annotations

import _socket
import os
import select

from substrate.errors import HostUnsupported
from substrate.world import linux, wire  # noqa: F401 - linux: we and the zygote both need it
from substrate.world.spec import to_plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.world.spec import CommandSpec, WorldSpec

#: a world that is not ready by then never will be
START_TIMEOUT_MS = 30_000


class StartFailed(HostUnsupported):
    """A world did not start: `step`, `errno` and `text` as the kernel gave them."""

    def __init__(self, backend: str, step: str, number: int, text: str) -> None:
        super().__init__(f"a world with backend {backend} did not start: {step}: {text}")
        self.backend, self.step, self.errno, self.text = backend, step, number, text


class Go:
    """A command that waits for its go: `give` lets it exec, `close` before that ends it."""

    def __init__(self, socket: _socket.socket) -> None:
        self._socket = socket

    def give(self) -> None:
        """Lets the command exec."""
        self._socket.send(b"g")

    def refused(self, pid: int) -> int | None:
        """Why the exec of command `pid` failed, once that has ended: the errno; None when it did
        not fail. Nobody else can say so for it: the kernel names the sender."""
        self._socket.setblocking(False)
        try:
            message = wire.receive(self._socket)
        except BlockingIOError:
            return None
        return message.kind[0] if message is not None and message.pid == pid else None

    def close(self) -> None:
        self._socket.close()


class World:
    """A started world, or one that is starting."""

    def __init__(self, spec: WorldSpec, socket: _socket.socket) -> None:
        self.spec = spec
        self.socket = socket
        self.holder_pid = 0
        self.ended = False
        self._seat: _socket.socket | None = None  # of the first command (command.py)

    def fileno(self) -> int:
        """The fd to poll for messages."""
        return self.socket.fileno()

    def wait_ready(self) -> None:
        """Waits until the holder serves; raises StartFailed."""
        message = self._first(START_TIMEOUT_MS)
        if message is None:
            raise StartFailed(self.spec.backend, "start", 0, "its first process ended early")
        if message.kind == wire.FAILED:
            raise StartFailed(
                self.spec.backend, message.text(0), message.number(1), message.text(2)
            )
        if message.kind != wire.READY:
            raise wire.WireError(f"a new world said {message.kind!r}")
        self.holder_pid = message.pid
        self._seat = _socket.socket(fileno=message.fds[0])

    def _first(self, timeout_ms: int) -> wire.Message | None:
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLIN)
        if not poll.poll(timeout_ms):
            raise StartFailed(
                self.spec.backend, "start", 0, f"not ready after {timeout_ms // 1000} s"
            )
        return wire.receive(self.socket)

    def receive(self) -> wire.Message | None:
        """The next message; None when the world is dead."""
        return wire.receive(self.socket)

    def run(self, command: CommandSpec, stdio: tuple[int, ...]) -> Go:
        """Asks the holder to fork a command with these fds (indexed by `command.stdio`)."""
        ours, theirs = wire.pair()
        memory = wire.pack_value(to_plain(command))
        seat, self._seat = self._seat, None
        try:
            wire.send(seat or self.socket, wire.RUN, fds=(memory, theirs.fileno(), *stdio))
        except (BrokenPipeError, ConnectionResetError):
            return Go(ours)  # it has ended, and the world's socket tells why
        finally:
            if seat is not None:
                seat.close()
            os.close(memory)
            theirs.close()
        return Go(ours)

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


class Zygote:
    """The process that starts worlds; fork it early (zygote.py).

    What only the zygote needs is imported in it, while we go on on another CPU; what both need,
    before it."""

    def __init__(self) -> None:
        self.socket, theirs = wire.pair()
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

    def start(self, spec: WorldSpec, lock: int | None = None) -> World:
        """Asks for a world and returns at once; `World.wait_ready` waits for it. `lock`: an open
        file that stays open until every process of the world is dead, whoever else is killed;
        it says which process is the first. The caller closes its own copy."""
        ours, theirs = wire.pair()
        memory = wire.pack_value(to_plain(spec))
        try:
            self._send(
                wire.START, fds=(memory, theirs.fileno(), *(() if lock is None else (lock,)))
            )
        finally:
            os.close(memory)
            theirs.close()
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
