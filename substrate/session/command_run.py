"""One command in a started world: its handshake, its bytes, its signals, its end.

Theory of operation. The holder forks the command; it says HELLO and waits. `prepare` returns
then, so that the caller can write `command_start`; `go` lets it exec. `wait` is one poll loop
over the world's socket, the signal pipe and the streams. The command ends with EXITED; the
world is quiet (no process but the holder) with QUIET. Between the two, background processes
may still write: they are waited for `background_s`, then ended by SIGTERM and at last with
the world. Every wait has a bound, or a process that the user can see. Spec: shell.md §1, §2.
"""

from __future__ import annotations

import _signal
import errno
import os
import select
import time

from substrate.errors import StateError
from substrate.session import signals
from substrate.values import value
from substrate.world import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from substrate.session.capturing import Capturing
    from substrate.session.disk_watch import DiskWatch
    from substrate.session.egressing import Egressing
    from substrate.session.streams import Streams
    from substrate.session.terminal import HostTerminal
    from substrate.world.handle import Go, World
    from substrate.world.spec import CommandSpec

#: between SIGTERM and the end of the world
TERM_GRACE_S = 1.0
HELLO_TIMEOUT_S = 30.0
_FOREGROUND_CHECK_S = 1.0


@value
class Ended:
    """How a command ended. `status` is a wait(2) status, None if it never ran; `failed` is
    (step, errno, text) then. Usage as wait4(2) gives it."""

    status: int | None
    failed: tuple[str, int, str] | None
    ended_by: str
    duration_us: int
    usage: tuple[
        int, ...
    ]  # utime µs, stime µs, maxrss KiB, minflt, majflt, inblock, oublock, nvcsw, nivcsw
    background_ended: tuple[str, ...]
    quiet: bool  # no process of it was left when the loop ended


def _failure(message: wire.Message) -> tuple[str, int, str]:
    return message.text(0), message.number(1), message.text(2)


class CommandRun:
    """Runs one command; see the module for the order of calls."""

    def __init__(
        self,
        world: World,
        own_streams: Streams,
        arriving: signals.SignalPipe,
        terminal: HostTerminal | None,
        capture: Capturing | None = None,
        network: Egressing | None = None,
    ) -> None:
        self.capture = capture
        self.network = network
        self.world = world
        self.streams = own_streams
        self.arriving = arriving
        self.terminal = terminal
        self.pid = 0
        self._master = -1
        self._go: Go | None = None
        self._file = b""
        self._started = 0.0
        self._failed: tuple[str, int, str] | None = None
        self._status: int | None = None
        self._usage: tuple[int, ...] = ()
        self._ended_at = 0.0
        self._quiet = False
        self._dead = False
        self._names: tuple[str, ...] | None = None
        self._ended_by = ""
        self._abandoned = False
        self._stop_wanted = False

    # --- up to the exec

    def prepare(self, spec: CommandSpec) -> bool:
        """Forks the command and waits for its HELLO. False when it failed before its exec."""
        self._started = time.monotonic()
        self._file = spec.file
        self._go = self.world.run(spec, tuple(self.streams.passed))
        self.streams.close_passed()
        poll = select.poll()
        poll.register(self._go.fileno(), select.POLLIN)
        deadline = time.monotonic() + HELLO_TIMEOUT_S
        while not self.pid and self._failed is None:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise StateError(f"the command did not start within {HELLO_TIMEOUT_S:.0f} s")
            self._hear(self._go.receive())
        return self._failed is None

    def _hear(self, message: wire.Message | None) -> None:
        """What the command says before its exec."""
        if message is None:
            self._hear_of_end()
        elif message.kind == wire.MASTER:
            self._master = message.fds[0]
        elif message.kind == wire.HELLO:
            listener = message.fds[0] if message.fds else None
            if self.capture is not None and not self.capture.attach(message.pid, listener):
                return  # it was killed: its end comes next
            self.pid = message.pid
        elif message.kind == wire.FAILED:
            self._failed = _failure(message)

    def _hear_of_end(self) -> None:
        """The command has ended early: killed, or with the world, which may say why."""
        while self._failed is None and self._status is None:
            self._receive()
            if self._dead:
                raise StateError("the world ended before the command started")
        if self._failed is None:
            self._failed = ("start", 0, "it was killed before its exec")

    def go(self) -> None:
        """Lets the command exec."""
        if self.terminal is not None and self._master >= 0:
            self.terminal.copy_settings_to(self._master)
            self.streams.attach_terminal(self._master, self._keys)
            self.terminal.make_raw()
        self._started = time.monotonic()
        assert self._go is not None
        self._go.give()

    # --- the loop

    def wait(
        self, *, timeout_s: float | None, background_s: float, disk: DiskWatch | None = None
    ) -> Ended:
        """Moves bytes until the command and what it left behind are gone."""
        deadline = None if timeout_s is None else self._started + timeout_s
        stage = "running"  # → terminating → over
        while True:
            now = time.monotonic()
            over = self._dead or self._quiet
            if over and (self._abandoned or self.streams.outputs_done()):
                break
            if self._has_lost() and stage == "running":
                stage, deadline = self._escalate(stage, now, "halt")
                continue
            # what a command has written waits for its reader as long as a full pipe would
            limit = None if over else self._limit(stage, deadline, background_s)
            if limit is not None and now >= limit:
                if stage == "over":
                    break
                stage, deadline = self._escalate(stage, now, "timeout")
                continue
            if disk is not None and stage == "running" and not over:
                if now >= disk.next_look and disk.exceeded():
                    stage, deadline = self._escalate(stage, now, "limit")
                    continue
                limit = disk.next_look if limit is None else min(limit, disk.next_look)
            self._poll_once(limit, now)
        self.streams.end_input()
        self._look_at_exec()
        return Ended(
            status=self._status,
            failed=self._failed,
            ended_by=self._verdict(),
            duration_us=int(((self._ended_at or time.monotonic()) - self._started) * 1_000_000),
            usage=self._usage,
            background_ended=self._names or (),
            quiet=self._quiet,
        )

    def _has_lost(self) -> bool:
        """Whether a record was lost, where that ends the command (overflow = halt)."""
        return self.capture is not None and self.capture.halted()

    def _look_at_exec(self) -> None:
        """Whether it ran at all: a file that cannot be exec'd is found out after the go."""
        assert self._go is not None
        message = self._go.failed(self.pid) if self._failed is None else None
        self._go.close()
        if message is not None:
            step, number, text = _failure(message)
            if number == errno.ENOTDIR and b"/" not in self._file:
                number, text = errno.ENOENT, os.strerror(errno.ENOENT)  # an odd entry of PATH
            self._failed = (step, number, text)

    def _limit(self, stage: str, deadline: float | None, background_s: float) -> float | None:
        if stage != "running":
            return deadline
        if self._ended_at:
            return self._ended_at + background_s
        return deadline

    def _escalate(self, stage: str, now: float, why: str) -> tuple[str, float]:
        """It has to end: first SIGTERM to everything, then SIGKILL, then the world's end."""
        if stage == "running":
            if self._ended_at:
                self._send(lambda: wire.send(self.world.socket, wire.WHO))
            else:
                self._ended_by = why
            self._signal(_signal.SIGTERM, "all")
            return "terminating", now + TERM_GRACE_S
        self._signal(_signal.SIGKILL, "all")
        return "over", now + TERM_GRACE_S

    def _signal(self, number: int, scope: str) -> None:
        self._send(lambda: self.world.signal(number, scope))

    def _send(self, send: Callable[[], None]) -> None:
        """A world that died in this moment has nobody left to tell; poll says so next."""
        try:
            send()
        except BrokenPipeError:
            return

    def _verdict(self) -> str:
        if self._ended_by:
            return self._ended_by
        if self._failed is not None:
            return "start_failed"
        if self._status is None:
            return "supervisor"
        return "signal" if os.WIFSIGNALED(self._status) else "exit"

    def _poll_once(self, limit: float | None, now: float) -> None:
        if self._stop_wanted:
            self._stop()
        self._take_terminal()
        if self.capture is not None:
            self.capture.tick(now)
        poll = select.poll()
        if not self._dead:
            poll.register(self.world.fileno(), select.POLLIN)
        poll.register(self.arriving.fileno(), select.POLLIN)
        captured = () if self.capture is None else self.capture.fds(now)
        for fd in captured:
            poll.register(fd, select.POLLIN)
        asks = () if self.capture is None else self.capture.asks()
        for fd, wanted_events in asks:
            poll.register(fd, wanted_events)  # the next round's tick serves them
        network = () if self.network is None else self.network.fds()
        for fd in network:
            poll.register(fd, select.POLLIN)
        waiting: dict[int, list[tuple[int, int]]] = {}
        if self.network is not None:
            self.network.tick(now)
            if (due := self.network.next_look()) is not None:
                limit = due if limit is None else min(limit, due)
        if self.capture is not None and (look := self.capture.next_look(now)) is not None:
            limit = look if limit is None else min(limit, look)
        timeout = None if limit is None else max(0.0, limit - now)
        for index, pump in enumerate(self.streams.pumps):
            wanted = pump.wants()
            if wanted is not None:
                waiting.setdefault(wanted[0], []).append((index, wanted[1]))
            elif not pump.done:  # a terminal whose foreground is somebody else's
                timeout = min(timeout or _FOREGROUND_CHECK_S, _FOREGROUND_CHECK_S)
        for fd, wants in waiting.items():
            poll.register(fd, wants[0][1])
        watched = {pump.watches(): pump for pump in self.streams.pumps}
        watched.pop(-1, None)
        for fd in watched:
            poll.register(fd, 0)  # the end of its reader is told all the same
        for fd, _ in poll.poll(None if timeout is None else timeout * 1000 + 1):
            if fd == self.arriving.fileno():
                self._forward()
            elif fd in captured:
                assert self.capture is not None
                self.capture.pump()
            elif fd in network:
                assert self.network is not None
                self.network.pump()
            elif fd in watched:
                watched[fd].broken()
            elif fd in dict(asks):
                continue
            elif fd in waiting:
                for index, _ in waiting[fd]:
                    if not self.streams.pumps[index].done:  # an end that came in this round
                        self.streams.pumps[index].step()
            else:
                self._receive()

    def _receive(self) -> None:
        message = self.world.receive()
        if message is None:
            self._dead = True
        elif message.kind == wire.FAILED:
            self._failed = _failure(message)
        elif message.kind == wire.EXITED:
            self._ended_at = time.monotonic()
            self._status = message.number(1)
            self._usage = tuple(message.number(i) for i in range(2, len(message.fields)))
            self.streams.end_input()
        elif message.kind == wire.QUIET:
            # one that comes before the command's end is of what was there before it
            self._quiet = self._status is not None
        elif message.kind == wire.SOCKETS and self.network is not None:
            self.network.give_sockets(message.fds)
        elif message.kind == wire.NAMES:
            self._names = tuple(message.text(i) for i in range(len(message.fields)))

    def _forward(self) -> None:
        for number in self.arriving.read():
            if number == _signal.SIGWINCH:
                if self.terminal is not None and self._master >= 0:
                    self.terminal.copy_size_to(self._master)
            elif number == _signal.SIGTSTP:
                self._stop()
            elif self._quiet or self._dead:
                self._abandoned = number in signals.FORWARDED
            elif number in signals.ENDING and self.capture is not None and self.capture.waits:
                self.capture.give_up()
            elif number in signals.FORWARDED:
                scope = "group" if number in signals.TO_GROUP else "main"
                self._signal(number, scope)

    # --- Ctrl-Z

    def _keys(self, typed: bytes) -> bytes:
        """Takes out the key that stops the command. The terminal of the world could not do it:
        the command leads its session, so its group is orphaned and a TSTP is lost there. A
        shell inside that runs jobs in groups of their own gets the key."""
        from substrate.session.terminal import key_of_stop

        at = key_of_stop(self._master, typed, self.pid)
        if at < 0:
            return typed
        self._stop_wanted = True
        return typed[:at] + typed[at + 1 :]

    def _stop(self) -> None:
        """The command's group stops, then ours does; both go on together."""
        self._stop_wanted = False
        self._signal(_signal.SIGSTOP, "group")
        if self.terminal is not None:
            self.terminal.restore()
        self.arriving.stop_group()
        self._signal(_signal.SIGCONT, "group")

    def _take_terminal(self) -> None:
        """Back from a stop: the terminal is ours again once we are in its foreground."""
        host = self.terminal
        if host is None or self._master < 0 or host.is_raw or not host.in_foreground:
            return
        host.make_raw()
        host.copy_size_to(self._master)
