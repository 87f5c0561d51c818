"""One command in a started world: its handshake, its bytes, its signals, its end.

Theory of operation. The holder forks the command; it says HELLO and waits. `begin` asks for it, and
`is_starting` says until when it is not there; `go` lets it exec. A run is a part of the supervisor's loop
(loop.py), beside the world that it runs in (live_world.py), which tells it what the holder says: that it
has ended, that the world is quiet (no process but the holder), that the world is dead. Between its end and the
quiet, background processes may still write: they are waited for `background_s`, then ended by SIGTERM and
at last with the world. A command that `leaves` what it began in a world that goes on has come to its end when
it, and all that capture knows of it, has ended and its output was read, or a moment after it ended itself.
Every wait has a bound, or a process that the user can see. Spec: shell.md §1, §2.
"""

from __future__ import annotations

import _signal
import errno
import os
import time

from substrate.errors import StateError
from substrate.session import signals
from substrate.values import value
from substrate.world import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from substrate.session.capturing import Capturing
    from substrate.session.loop import Waiting
    from substrate.session.streams import Streams
    from substrate.session.terminal import HostTerminal
    from substrate.world.handle import Go, World
    from substrate.world.spec import CommandSpec

    class Arriving(Protocol):
        """Signals for the command, as they come (signals.py)."""

        def fileno(self) -> int: ...
        def read(self) -> list[int]: ...
        def stop_group(self) -> None: ...


#: between SIGTERM and the end of the world
TERM_GRACE_S = 1.0
HELLO_TIMEOUT_S = 30.0
#: what a command leaves is waited for so long where others go on in its world
LINGER_S = 0.2
#: between two looks at output that is still written
_LOOK_S = 0.05
_FOREGROUND_CHECK_S = 1.0
#: what a command said before it ended is there when its end is
_SAID_MS = 200

_STARTING, _RUNNING, _TERMINATING, _OVER = range(4)


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


def failure_of(message: wire.Message) -> tuple[str, int, str]:
    """(step, errno, text) of a FAILED."""
    return message.text(0), message.number(1), message.text(2)


def _nothing() -> None:
    """It is looked at in the next turn."""
    return


def _has_said(fd: int) -> bool:
    import select

    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(_SAID_MS))


def _is_alone() -> bool:
    return True


class CommandRun:
    """Runs one command; see the module for the order of calls. `over`: it has come to its end. `to_group`:
    signals that its whole group gets."""

    to_group: tuple[int, ...] = signals.TO_GROUP

    def __init__(
        self,
        world: World,
        own_streams: Streams,
        arriving: Arriving | None,
        terminal: HostTerminal | None,
        capture: Capturing | None = None,
        *,
        timeout_s: float | None = None,
        background_s: float = 0.0,
        leaves: bool = False,
    ) -> None:
        self.capture = capture
        self.world = world
        self.streams = own_streams
        self.arriving = arriving
        self.terminal = terminal
        self.pid = 0
        self.over = False
        #: what it leaves in the background goes on without it
        self.leaves = leaves
        #: whether nobody else was ever in its world
        self.is_alone: Callable[[], bool] = _is_alone
        self._timeout_s, self._background_s = timeout_s, background_s
        self._stage = _STARTING
        self._deadline: float | None = None
        self._until: float | None = None
        self._master = -1
        self.go_socket: Go | None = None
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
        self._gone_early = False

    # --- up to the exec

    def prepare(self, spec: CommandSpec, turn: Callable[[], None]) -> bool:
        """Asks for the command and waits for its HELLO, by turns of the loop. False when it failed before
        its exec."""
        self.begin(spec)
        while self.is_starting:
            turn()
        return self.may_go

    def begin(self, spec: CommandSpec) -> None:
        """Asks for the command. Raises OSError, StartFailed."""
        self._started = time.monotonic()
        self._file = spec.file
        self.go_socket = self.world.run(spec, tuple(self.streams.passed))
        self.streams.close_passed()
        self._until = self._started + HELLO_TIMEOUT_S

    @property
    def is_starting(self) -> bool:
        """Whether it has not said HELLO yet, nor that it cannot."""
        return not self.pid and self._failed is None

    @property
    def may_go(self) -> bool:
        """Whether it waits for its go."""
        return self._failed is None

    def _hear_next(self) -> None:
        if self._stage == _STARTING and self.is_starting:
            assert self.go_socket is not None
            self._hear(self.go_socket.receive())

    def _hear(self, message: wire.Message | None) -> None:
        """What the command says before its exec."""
        if message is None:
            # it has ended early: killed, or with the world, which may say why
            self._gone_early = True
        elif message.kind == wire.MASTER:
            self._master = message.fds[0]
        elif message.kind == wire.HELLO:
            listener = message.fds[0] if message.fds else None
            if self.capture is not None and not self.capture.attach(message.pid, listener):
                return  # it was killed: its end comes next
            self.pid = message.pid
        elif message.kind == wire.FAILED:
            self._failed = failure_of(message)

    def go(self) -> None:
        """Lets the command exec. Its time begins."""
        if self.terminal is not None and self._master >= 0:
            self.terminal.copy_settings_to(self._master)
            self.streams.attach_terminal(self._master, self._keys)
            self.terminal.make_raw()
        assert self.go_socket is not None
        self._started = time.monotonic()
        self.wait_for_end()
        self.go_socket.give()

    def wait_for_end(self) -> None:
        """From now on its end is waited for: it has its go, or failed before."""
        self._stage = _RUNNING
        self._deadline = None if self._timeout_s is None else self._started + self._timeout_s

    # --- what the world tells

    @property
    def number(self) -> int:
        """Its pid in the world: 0 until that is known, -1 where there is none."""
        return 0 if self.go_socket is None else self.go_socket.number

    @property
    def has_ended(self) -> bool:
        """Whether the command itself, which need not be all of it, has ended or never was."""
        return self._status is not None or self._dead or bool(self._ended_at)

    def exited(self, message: wire.Message) -> None:
        """It has ended, maybe before anybody looked at what it had to say."""
        while self._stage == _STARTING and self.is_starting and not self._gone_early:
            assert self.go_socket is not None
            if not _has_said(self.go_socket.fileno()):  # somebody of the world holds its end
                self._gone_early = True
                break
            self._hear_next()
        self._ended_at = time.monotonic()
        self._status = message.number(1)
        self._usage = tuple(message.number(i) for i in range(2, len(message.fields)))
        if self.is_starting:
            self._failed = ("start", 0, "it was killed before its exec")
        self.streams.end_input()

    def never_started(self) -> None:
        """The world has no room for another process; why, comes on the go socket."""
        self._ended_at = time.monotonic()

    def fail(self, failed: tuple[str, int, str]) -> None:
        """The world says that it has failed."""
        self._failed = failed

    def became_quiet(self) -> None:
        """No process of the world is left."""
        self._quiet = True

    def world_died(self) -> None:
        self._dead = True
        if self.is_starting:
            raise StateError("the world ended before the command started")

    def take_names(self, message: wire.Message) -> None:
        if self._names is None:
            self._names = tuple(message.text(i) for i in range(len(message.fields)))

    # --- the loop

    def wait_for(self, waiting: Waiting) -> None:
        """A turn of the loop: what is due is done, and what is waited for is said."""
        if self.over:
            return
        if self._stage == _STARTING:
            self._wait_for_start(waiting)
            return
        now = waiting.now
        if self._advance(now):
            self.over = waiting.changed = True
            return
        waiting.until(self._until)
        if self._stop_wanted:
            self._stop()
        self._take_terminal()
        if self.arriving is not None:
            waiting.read(self.arriving.fileno(), self._forward)
        self.wait_for_bytes(waiting)

    def wait_for_bytes(self, waiting: Waiting) -> None:
        """For its streams and its capture, which may go on when it has come to its end."""
        now = waiting.now
        capture = self.capture
        if capture is not None:
            capture.tick(now)
            for fd in capture.fds(now):
                waiting.read(fd, capture.pump)
            for fd, events in capture.asks():
                waiting.on(fd, events, _nothing)  # the next turn's tick serves them
            waiting.until(capture.next_look(now))
        for pump in self.streams.pumps:
            wanted = pump.wants()
            if wanted is not None:
                waiting.on(*wanted, pump.step_if_open)
            elif not pump.done:  # a terminal whose foreground is somebody else's
                waiting.until(now + _FOREGROUND_CHECK_S)
            watched = pump.watches()
            if watched >= 0:
                waiting.on(watched, 0, pump.broken)  # the end of its reader is told all the same

    def _wait_for_start(self, waiting: Waiting) -> None:
        assert self.go_socket is not None
        if not self.is_starting:
            waiting.changed = True
            return
        if self._until is not None and waiting.now >= self._until:
            raise StateError(f"the command did not start within {HELLO_TIMEOUT_S:.0f} s")
        waiting.until(self._until)
        if not self._gone_early:
            waiting.read(self.go_socket.fileno(), self._hear_next)

    def _advance(self, now: float) -> bool:
        """Does what is due; whether it has come to its end."""
        while True:
            over = self._dead or self._quiet
            if over and (self._abandoned or self.streams.outputs_done()):
                return True
            if self._may_leave and not over:
                if self._is_left(now):
                    return True
                if self._stage == _RUNNING:
                    self._until = max(self._ended_at + LINGER_S, now + _LOOK_S)
                    return False
            if self._stage == _RUNNING and self._has_lost():
                self._escalate(now, "halt")
                continue
            # what a command has written waits for its reader as long as a full pipe would
            limit = None if over else self._limit()
            if limit is not None and now >= limit:
                if self._stage == _OVER:
                    return True
                self._escalate(now, "timeout")
                continue
            self._until = limit
            return False

    @property
    def _may_leave(self) -> bool:
        return self.leaves and bool(self._ended_at)

    def _is_left(self, now: float) -> bool:
        """Whether nothing of it is left, or what is may go on without it: all that it wrote until
        now was read, or somebody writes all the time."""
        if self._abandoned:
            return True
        all_gone = self.capture is not None and self.capture.finished()
        if all_gone and self.streams.outputs_done() and not self.is_alone():
            return True  # of one that is alone the quiet moment is told next
        if self._stage != _RUNNING or now < self._ended_at + LINGER_S:
            return False
        return self.streams.drained() or now >= self._background_until(self._ended_at)

    def _has_lost(self) -> bool:
        """Whether a record was lost, where that ends the command (overflow = halt)."""
        return self.capture is not None and self.capture.halted()

    def _limit(self) -> float | None:
        if self._stage == _RUNNING and self._ended_at:
            return self._background_until(self._ended_at)
        return self._deadline

    def _background_until(self, ended_at: float) -> float:
        """How long what it left may go on: its own time is also theirs, or `&` would be a way past it."""
        until = ended_at + self._background_s
        return until if self._deadline is None else max(ended_at, min(until, self._deadline))

    def end(self, why: str, now: float) -> None:
        """It has to end, but for the first reason only."""
        if self._stage == _RUNNING and not (self._dead or self._quiet):
            self._escalate(now, why)

    def _escalate(self, now: float, why: str) -> None:
        """It has to end: first SIGTERM to everything, then SIGKILL, then the world's end."""
        if self._stage == _RUNNING:
            if self._ended_at:
                self._send(lambda: wire.send(self.world.socket, wire.WHO))
            else:
                self._ended_by = why
            self._signal(_signal.SIGTERM, "all")
            self._stage = _TERMINATING
        else:
            self._signal(_signal.SIGKILL, "all")
            self._stage = _OVER
        self._deadline = now + TERM_GRACE_S

    def abandon(self) -> None:
        """Nobody waits for what it has written any more."""
        self._abandoned = True

    def _signal(self, number: int, scope: str) -> None:
        """`scope`: main, group, or all: what came of it; of one that leaves nothing, all of the
        world."""
        if scope == "all":
            if not self.leaves:
                self._send(lambda: self.world.signal(number, "all"))
                return
            scope = "tree"
        self.signal(number, scope)

    def signal(self, number: int, scope: str) -> None:
        """Sends a signal to it: `main`, `group`, `tree`."""
        go = self.go_socket
        if go is not None and not self.world.ended:
            self._send(lambda: self.world.signal_one(go, number, scope))

    def _send(self, send: Callable[[], None]) -> None:
        """A world that died in this moment has nobody left to tell; poll says so next."""
        try:
            send()
        except BrokenPipeError:
            return

    # --- how it ended

    def ended(self) -> Ended:
        """How; called once, when it is over."""
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

    def _look_at_exec(self) -> None:
        """Whether it ran at all: a file that cannot be exec'd is found out after the go."""
        assert self.go_socket is not None
        message = self.go_socket.failed(self.pid) if self._failed is None else None
        self.go_socket.close()
        if message is not None:
            step, number, text = failure_of(message)
            if number == errno.ENOTDIR and b"/" not in self._file:
                number, text = errno.ENOENT, os.strerror(errno.ENOENT)  # an odd entry of PATH
            self._failed = (step, number, text)

    def _verdict(self) -> str:
        if self._ended_by:
            return self._ended_by
        if self._failed is not None:
            return "start_failed"
        if self._status is None:
            return "supervisor"
        return "signal" if os.WIFSIGNALED(self._status) else "exit"

    # --- signals

    def _forward(self) -> None:
        assert self.arriving is not None
        for number in self.arriving.read():
            self.take_signal(number)

    def take_signal(self, number: int) -> None:
        """What its caller was sent."""
        if number == _signal.SIGWINCH:
            if self.terminal is not None and self._master >= 0:
                self.terminal.copy_size_to(self._master)
                if self.streams.resized is not None:
                    self.streams.resized(self.terminal.size())
        elif number == _signal.SIGTSTP:
            self._stop()
        elif self._quiet or self._dead:
            self._abandoned = number in signals.FORWARDED
        elif number in signals.ENDING and self.capture is not None and self.capture.waits:
            self.capture.give_up()
        elif number in signals.FORWARDED:
            self._signal(number, "group" if number in self.to_group else "main")

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
        self.signal(_signal.SIGSTOP, "group")
        if self.terminal is not None:
            self.terminal.restore()
        assert self.arriving is not None
        self.arriving.stop_group()
        self.signal(_signal.SIGCONT, "group")

    def _take_terminal(self) -> None:
        """Back from a stop: the terminal is ours again once we are in its foreground."""
        host = self.terminal
        if host is None or self._master < 0 or host.is_raw or not host.in_foreground:
            return
        host.make_raw()
        host.copy_size_to(self._master)
