"""A command that a client has asked for, from its call to the answer.

Its streams are the client's fds, its signals come as packets, and it ends when its client goes. It begins
in the world that lives, or in a new one (command_begin.py); what is told at its end, command_end.py knows. Stages: starting (it
says HELLO), running, settling (what is told of it comes in), answered. Invariant: whatever fails of one command is told to its
client and ends nothing else. Spec: shell.md §2.
"""

from __future__ import annotations

import _signal
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from substrate.session import client_call
from substrate.session.caller_limits import CallerLimits, narrow, of_caller
from substrate.session.client_call import Call
from substrate.session.command_run import HELLO_TIMEOUT_S, CommandRun, Ended
from substrate.session.doors import Client
from substrate.session.loop import Waiting
from substrate.session.one_command import OneCommand
from substrate.session.sharing import now_ns
from substrate.session.signals import ENDING, FORWARDED, TO_GROUP
from substrate.session.terminal import HostTerminal
from substrate.world import wire

if TYPE_CHECKING:
    from substrate.session.client_fds import ClientFds
    from substrate.session.daemon import Daemon
    from substrate.session.inside import PassedFds

#: what came of a command is waited for so long after it, and digested in such slices
_SETTLE_S = 0.5
#: what goes wrong of a command all the time ends it by then, whatever that costs
_GIVE_UP_S = 5.0
_LOOK_S = 0.02
_SLICE_S = 0.01
_MOST_EARLY = 16


class ClientTerminal(HostTerminal):
    """The terminal of a client, which makes it raw itself."""

    def make_raw(self) -> None:
        return

    def restore(self) -> None:
        return


class JoinedRun(CommandRun):
    """The run of such a command. `on_stop`: told when it has stopped; `on_trouble`: told what failed in
    the middle of it, which ends it."""

    limits: CallerLimits = CallerLimits()
    # its caller stands in for all of it: who ends that means its pipelines too
    to_group = (*TO_GROUP, _signal.SIGTERM, _signal.SIGHUP)
    on_stop: Callable[[], None]
    on_trouble: Callable[[Exception], None]

    def _stop(self) -> None:
        """The command's group stops; its client stops itself and lets it go on."""
        self._stop_wanted = False
        self.signal(_signal.SIGSTOP, "group")
        self.on_stop()

    def _take_terminal(self) -> None:
        return

    def end(self, why: str, now: float) -> None:
        """Also before it has said anything: whoever is in its world may have stopped it."""
        if self.is_starting:
            self._ended_by = self._ended_by or why
            self._failed = ("start", 0, "it had to end before it started")
            self.signal(_signal.SIGKILL, "tree")
        super().end(why, now)

    def _wait_for_start(self, waiting: Waiting) -> None:
        """One that does not begin in time fails alone: whoever is in its world may have stopped it."""
        if self.is_starting and self._until is not None and waiting.now >= self._until:
            text = f"the command did not start within {HELLO_TIMEOUT_S:.0f} s"
            self._failed = ("start", 0, text)
            self.signal(_signal.SIGKILL, "tree")
            waiting.changed = True
            return
        super()._wait_for_start(waiting)

    def go(self) -> None:
        try:
            narrow(self.pid, self.limits)
        except ProcessLookupError:
            pass  # it was killed: its end tells
        super().go()

    def world_died(self) -> None:
        self._dead = True
        if self.is_starting:
            self._failed = ("start", 0, "the world ended before the command started")

    def wait_for(self, waiting: Waiting) -> None:
        super().wait_for(Guarded(waiting, self.on_trouble))

    def wait_for_bytes(self, waiting: Waiting) -> None:
        super().wait_for_bytes(
            waiting if isinstance(waiting, Guarded) else Guarded(waiting, self.on_trouble)
        )


class Guarded(Waiting):
    """A turn of the loop as one command, or one world, sees it: what fails there is its own."""

    def __init__(self, waiting: Waiting, trouble: Callable[[Exception], None]) -> None:
        self._waiting, self._trouble = waiting, trouble
        self.now = waiting.now

    @property
    def changed(self) -> bool:
        return self._waiting.changed

    @changed.setter
    def changed(self, yes: bool) -> None:
        self._waiting.changed = yes

    def until(self, moment: float | None) -> None:
        self._waiting.until(moment)

    def on(self, fd: int, events: int, act: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                act()
            except Exception as error:  # noqa: BLE001 - an edge: it ends nobody else
                self._trouble(error)

        self._waiting.on(fd, events, guarded)


class Executing:
    """See the module. A part of the loop until it is `answered`."""

    def __init__(
        self,
        daemon: Daemon,
        client: Client,
        call: Call,
        streams: ClientFds | PassedFds,
        parent: str | None,
    ) -> None:
        self._daemon, self.client, self.call, self._fds = daemon, client, call, streams
        self.parent = parent
        self.one: OneCommand
        self.run: JoinedRun
        self._ended: Ended | None = None
        self._settle_until = 0.0
        self._trouble = ""
        #: the signal by which its client is to end, told while its layer is recorded
        self.told_to_end = 0
        #: signals that came before it could be sent any
        self._early: list[int] = []
        self._give_up_at: float | None = None
        self.answered = False
        self._began = False
        self._parting: tuple[bytes, tuple[bytes | int | str, ...]] | None = None
        #: fds that it inherits besides its streams, as (its number there, ours)
        self.extra: tuple[tuple[int, int], ...] = ()
        self._mine = -1
        self._has_said_mine = (
            False  # its client reads what is typed, until it lets the command go on
        )
        self._waits_for_raw = False
        client.busy = True
        client.on_packet = self._hear
        client.on_gone = self._client_gone

    @property
    def can_be_asked(self) -> bool:
        """Whether its client shows questions now: a shell at its own prompt does not."""
        return self.call.flags.asks and not self._has_said_mine

    @property
    def terminal(self) -> HostTerminal | None:
        wanted = self.call.flags.terminal is not None and self._fds.terminal >= 0
        return ClientTerminal(self._fds.terminal) if wanted else None

    @property
    def fds(self) -> ClientFds | PassedFds:
        return self._fds

    def take_extra(self, fds: list[int]) -> None:
        """What its call says it inherits: whoever begins it closes these when it has begun."""
        self.extra = tuple(zip(self.call.flags.extra, fds, strict=True))
        for number, fd in self.extra:
            if number == self.call.flags.mine:
                self._mine = os.dup(fd)

    def has_keys(self) -> bool:
        """Whether what is typed at its terminal is for it: its client is in the foreground there, and does
        not say that it reads them itself."""
        if self._has_said_mine:
            return False
        if self._mine >= 0 and os.pread(self._mine, 1, 0) not in (b"", b"\0"):
            return False
        return is_in_foreground(self.client.peer.pid)

    def prepare_run(self, one: OneCommand, background_s: float, timeout_s: float | None) -> None:
        """Its command is known, and the world in which it runs."""
        self.one = one
        run = self.run = JoinedRun(
            *(one.world.world, one.streams, None, one.terminal, one.capture),
            timeout_s=timeout_s,
            background_s=background_s,
            leaves=True,
        )
        one.run = run
        run.limits = of_caller(self.client.peer.pid)
        run.on_stop = lambda: self.client.send(client_call.STOPPED, int(_signal.SIGSTOP))
        run.on_trouble = self._in_trouble

    # --- the client

    def _hear(self, client: Client, message: wire.Message) -> None:
        if self._parting is not None:
            return  # it has ended: its answer waits for the last of its bytes
        if message.kind == client_call.SIGNAL:
            number = message.number(0)
            if number == 0:
                self._has_said_mine = True
                if self._can_be_told:
                    self._daemon.asked.lost(self.client)  # nobody reads there what is asked
                    self.one.streams.resume()
                return
            if self._daemon.recording.is_on and number in ENDING:
                self.told_to_end = number
            if not self._can_be_told:
                self._early = [*self._early, number][-_MOST_EARLY:]
            elif number in FORWARDED or number in (_signal.SIGWINCH, _signal.SIGTSTP):
                self.run.take_signal(number)
        elif message.kind == client_call.REPLY:
            self._daemon.asked.hear(client, message)
        elif message.kind == client_call.CONTINUE:
            if not self._can_be_told:
                raise client_call.BadCall("it has not begun")
            self._has_said_mine = False
            if self._waits_for_raw:
                self._waits_for_raw = False
                if not self._daemon.asked.asks_at(self.client):  # else when that is over
                    self.one.streams.resume()
            self.run.signal(_signal.SIGCONT, "group")
        else:
            raise client_call.BadCall(f"{message.kind!r} is not said while a command runs")

    @property
    def _can_be_told(self) -> bool:
        """Others are served while it waits for its world (recording.py): it may have no process yet."""
        return hasattr(self, "run") and self.run.go_socket is not None

    def _client_gone(self) -> None:
        """Its command ends with it."""
        self._daemon.asked.lost(self.client)
        if self._ended is None and hasattr(self, "run"):  # else whoever begins it looks
            self.run.signal(_signal.SIGHUP, "tree")
            self.run.signal(_signal.SIGCONT, "tree")
            self.run.end("client", time.monotonic())
            self.run.abandon()

    def _in_trouble(self, error: Exception) -> None:
        """Something that belongs to this command alone has failed."""
        if not self._trouble:
            self._give_up_at = time.monotonic() + _GIVE_UP_S
            self._trouble = (error.strerror if isinstance(error, OSError) else "") or str(error)
            self._daemon.log(f"command {self.one.recorder.span}: {error!r}")
        for pump in self.one.streams.pumps:
            if not pump.done and pump.pending:
                pump.broken()
        self.run.end("supervisor", time.monotonic())

    # --- the loop

    def wait_for(self, waiting: Waiting) -> None:
        if self.answered:
            return
        try:
            self._wait_for(waiting)
        except Exception as error:  # noqa: BLE001 - an edge: what fails of one command ends no other
            self._in_trouble(error)
            assert self._give_up_at is not None
            if waiting.now >= self._give_up_at:
                self._give_up(error)
                waiting.changed = True
            else:
                waiting.until(waiting.now + _LOOK_S)

    def wait_for_left(self, waiting: Waiting) -> None:
        """It has its answer; what it left goes on. Raises whatever fails of that."""
        self.run.wait_for_bytes(waiting)

    def _give_up(self, error: Exception) -> None:
        """Not even its end can be waited for."""
        self._give_up_at = time.monotonic() + _GIVE_UP_S
        self.run.signal(_signal.SIGKILL, "tree")
        self.run.abandon()
        if self.one.capture is not None:
            self.one.capture.close()
        if self._parting is not None or self._ended is not None:
            if not self.answered:
                self._parting = self._parting or (
                    client_call.FAILED,
                    (125, self._trouble, "look at the session's log"),
                )
                self._say()
            return
        self._ended = Ended(
            status=None,
            failed=("supervisor", 0, self._trouble),
            ended_by="supervisor",
            duration_us=0,
            usage=(),
            background_ended=(),
            quiet=False,
        )
        self._daemon.finish(self, self._ended)

    def _wait_for(self, waiting: Waiting) -> None:
        if self._parting is not None:
            self._wait_for_relays(waiting)
            return
        run = self.run
        if not self._began:
            if run.is_starting:
                run.wait_for(waiting)
                return
            self._begin()
            waiting.changed = True
        elif self._ended is None:
            if self.client.is_gone:
                run.end("client", waiting.now)
            run.wait_for(waiting)
            if run.over:
                self._ended = run.ended()
                self._settle_until = waiting.now + _SETTLE_S
        else:
            self._settle(waiting)

    def _begin(self) -> None:
        """It waits for its go, or has failed."""
        self._began = True
        run, one = self.run, self.one
        if run.may_go:
            one.begun_ns = now_ns()
            run.go()
            if self._mine >= 0:
                one.streams.pause()  # until its client's terminal is raw, as it says
                self._waits_for_raw = True
            one.begin_capture(self._daemon.log)
            self._daemon.worlds.begin_network(one)
            told = '{"terminal":true}' if one.terminal is not None else "{}"
            self.client.send(client_call.ACCEPTED, one.recorder.span, self.parent or "", told)
            for number in self._early:
                if number in FORWARDED:
                    run.take_signal(number)
        else:
            run.wait_for_end()
        if self.client.is_gone:
            self._client_gone()

    def _settle(self, waiting: Waiting) -> None:
        """What its network and capture have to tell yet comes in, for a while, beside other work."""
        assert self._ended is not None
        one, now = self.one, waiting.now
        capture = one.capture
        if now < self._settle_until and capture is not None and capture.finished():
            if capture.digest(time.monotonic() + _SLICE_S):
                waiting.until(now)
                return
            network = one.world.network
            if network is not None and not network.is_settled(one.recorder.span):
                waiting.until(now + _LOOK_S)
                return
        waiting.changed = True
        self._daemon.finish(self, self._ended)

    def part(self, kind: bytes, *fields: bytes | int | str) -> None:
        """What its client is told at last, when all that it wrote is where it belongs."""
        self._parting = (kind, fields)
        self.one.streams.end_input()
        if not self.one.streams.is_left:
            self._fds.end_output()
        if not self._fds.relays:
            self._say()

    def _say(self) -> None:
        assert self._parting is not None
        kind, fields = self._parting
        self.client.send(kind, *fields)
        self.client.close()
        self.answered = True
        self.drop_mine()

    def _wait_for_relays(self, waiting: Waiting) -> None:
        assert self._parting is not None
        waits = [fd for fd in self._fds.relays if not _is_readable(fd)]
        if waits and not self.client.is_gone and not self.one.streams.is_left:
            for fd in waits:
                waiting.read(fd, _nothing)
            return
        self._say()
        waiting.changed = True

    def close(self) -> None:
        """Nothing of it goes on any more."""
        if self.one.capture is not None:
            self.one.capture.close()
        self.one.streams.abandon()
        self._fds.close()
        self.drop_mine()

    def drop_mine(self) -> None:
        """Nothing is typed for it any more."""
        if self._mine >= 0:
            os.close(self._mine)
            self._mine = -1

    @property
    def trouble(self) -> str:
        return self._trouble


def is_in_foreground(pid: int) -> bool:
    """Whether a process is in the foreground of its terminal, which need not be ours
    (proc_pid_stat(5): pgrp, tpgid)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
        return words[2] == words[5]
    except (OSError, IndexError):
        return False


def _is_readable(fd: int) -> bool:
    import select

    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _nothing() -> None:
    """It is looked at in the next turn."""
    return


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
