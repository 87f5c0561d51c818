"""A session that lives: its supervisor serves one command after the other, and several at once.

Here is its life and its loop (loop.py); its parts are made here, and reach each other by their public names. Who comes is
reception.py's, which world lives session_worlds.py's, how a command begins and ends command_begin.py's and command_end.py's.
Invariants: idle, it sleeps; whatever a client does ends nothing but its own command; when it ends, by whatever, so does
every process of its world, and the trace is whole. Spec: shell.md §2; docs/adr/0020.
"""

from __future__ import annotations

import _signal
import os
import time
from typing import TYPE_CHECKING, Any

from substrate.errors import StateError
from substrate.policy.standing import Standing
from substrate.session import command_end, store
from substrate.session.clients_asked import ClientsAsked
from substrate.session.command_begin import Beginning
from substrate.session.loop import Loop
from substrate.session.outside import Outside
from substrate.session.pending_diff import PendingDiff
from substrate.session.reception import Reception
from substrate.session.recording import Recording
from substrate.session.reports import Reports
from substrate.session.session_log import SessionLog
from substrate.session.session_worlds import Worlds
from substrate.values import replace
from substrate.world.hidden_again import HiddenAgain

if TYPE_CHECKING:
    from substrate.session.command_run import Ended
    from substrate.session.doors import Client
    from substrate.session.executing import Executing
    from substrate.session.live_session import LiveSession
    from substrate.session.live_world import LiveWorld
    from substrate.session.loop import Waiting
    from substrate.session.one_command import OneCommand
    from substrate.session.request import RunRequest
    from substrate.session.scope_requests import ScopeRequests
    from substrate.session.settings import Settings
    from substrate.session.signals import SignalPipe
    from substrate.session.streams import Streams
    from substrate.telemetry.trace.events.session import Isolation
    from substrate.world.handle import Zygote

#: commands that are asked to end get this long in all
_END_S = 5.0
#: between two looks at what has not ended by then
_LATE_S = 0.05


class Daemon:
    """See the module. `request`: which session, and how it is begun; its program is of no interest.
    `beside`: the session, its world and its first command are somebody else's, who turns the loop: `run`."""

    def __init__(
        self,
        request: RunRequest,
        settings: Settings,
        zygote: Zygote,
        arriving: SignalPipe,
        session: LiveSession,
        *,
        beside: bool = False,
    ) -> None:
        self.request, self.settings = request, settings
        self._zygote, self._arriving, self.is_beside = zygote, arriving, beside
        self.session = session
        session.standing = session.standing or Standing(os.environb)
        session.hidden_again = session.hidden_again or HiddenAgain()
        self._beside: OneCommand | None = None  # the first command, which somebody else runs
        self._running: list[Executing] = []
        self._is_ending = False
        self._end_by = 0.0
        self._log = SessionLog()
        self._loop = Loop(self)
        self.reports: Reports
        self.asked = ClientsAsked(self)
        session.remote_of = self.asked.remote_of
        self.recording = Recording(self)
        self.outside = Outside(self)
        self.worlds = Worlds(self)
        #: what earlier layers changed, for who asks in a world
        self.pending = PendingDiff(self.worlds.frozen)
        self.reception = Reception(self)
        self.beginning = Beginning(self)
        #: what processes of its worlds have asked for beyond them
        self._requests: ScopeRequests | None = None

    # --- its life

    def open(self) -> None:
        """Takes the session and opens its doors. Raises SubstrateError, OSError."""
        session = self.session
        session.open(self.request)
        session.load_stack()
        session.open_trace()
        self.reports = Reports(session.writer)
        self._open_doors()
        store.set_current(session.home, session.workspace, session.files.session_id)
        self.worlds.prepare_next()

    def _open_doors(self) -> None:
        self._log.open(self.session.files.fd)
        self.reception.open()

    def open_beside(self, world: LiveWorld, one: OneCommand, isolation: Isolation) -> None:
        """Opens the doors of a session whose world lives, with its first command. Raises OSError."""
        self._beside = one
        self.reports = Reports(self.session.writer)
        self.worlds.adopt(world, one, isolation)
        self._open_doors()

    def end_beside(self) -> None:
        """The first command has come to its end, and its world with it: so do all others."""
        self.end()
        while self._running and time.monotonic() < self._end_by + 1:
            self._loop.turn()
            self.look()
        assert self.worlds.living is not None
        self.worlds.living.sharing.settle_left(over=True)
        self.reports.tell()

    def close_beside(self) -> None:
        """Shuts the doors; the session is somebody else's."""
        self._close_clients()
        self._log.close()

    def serve(self) -> None:
        """Until it is to end. Raises OSError, StateError where the trace takes nothing any more."""
        while not self._is_over():
            self._loop.turn()
            self.look()
            if self.session.writer.failed:
                raise StateError("the trace cannot be written any more", hint="look at the disk")

    def end(self) -> None:
        """It is to end, with all that runs."""
        if not self._is_ending:
            self._is_ending = True
            self._end_by = time.monotonic() + _END_S
            for each in self._running:
                each.run.end("supervisor", time.monotonic())

    @property
    def is_ending(self) -> bool:
        return self._is_ending

    @property
    def is_late(self) -> bool:
        """It is to end, and its time is over."""
        return self._is_ending and time.monotonic() >= self._end_by

    def _is_over(self) -> bool:
        return self._is_ending and not self._running and self.worlds.living is None

    def close(self) -> None:
        """Ends whatever is there; called on every way out."""
        self._close_clients()
        session = self.session
        try:
            self.worlds.close()
            if session.opened is not None and not session.writer.failed:
                self.reports.tell()
            session.close()
            if (
                session.claimed is not None
                and session.claimed.world is None
                and not session.recorded
            ):
                store.clear_current(session.home, session.workspace.key, session.files.session_id)
            session.abandon(self.worlds.wait_ended)
        finally:
            self.reception.answer_enders()
            self._log.close()

    def _close_clients(self) -> None:
        if self._requests is not None:
            self._requests.close()
        self.reception.close_door()
        self.worlds.close_door()
        for each in (*self._running, *self.worlds.left):
            each.close()
        self.recording.close()
        self.pending.stop()
        self.outside.close()
        self.reception.close_clients()

    def log(self, text: str) -> None:
        """A line for whoever looks for what went wrong."""
        self._log.tell(text)

    # --- the loop

    def wait_for(self, waiting: Waiting) -> None:
        if not self.is_beside:
            waiting.read(self._arriving.fileno(), self._take_signals)
            if not self._is_ending:
                waiting.on(self._zygote.socket.fileno(), 0, self._lose_zygote)
        self.asked.wait_for(waiting)
        self.reception.wait_for(waiting)
        self.worlds.wait_for(waiting)
        if self._requests is not None:
            self._requests.wait_for(waiting)
        for each in tuple(self._running):
            each.wait_for(waiting)
        self.worlds.wait_for_left(waiting)
        self.pending.wait_for(waiting)
        self.outside.wait_for(waiting)
        if self.recording.held:
            waiting.until(waiting.now)
        if self._is_ending:
            waiting.until(max(self._end_by, waiting.now + _LATE_S))

    def wait_for_doors(self, waiting: Waiting) -> None:
        """What is served while it is recorded what a layer holds: those outside of worlds."""
        if not self.is_beside:
            waiting.read(self._arriving.fileno(), self._take_signals)
        self.asked.wait_for(waiting)
        self.reception.wait_for_outside(waiting)

    def _take_signals(self) -> None:
        ends = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGQUIT)
        if any(number in ends for number in self._arriving.read()):
            self.end()

    def _lose_zygote(self) -> None:
        """Without it no command could begin: who comes next gets a supervisor of its own."""
        self.log("the process that starts worlds was killed: the session ends")
        self.end()

    def look(self) -> None:
        """What is over by now."""
        self.reception.look()
        self._running = [each for each in self._running if not each.answered]
        self.recording.begin_held(ending=self._is_ending)
        living = self.worlds.living
        if living is None:
            # who waited for the last one has its answer first, which waits for its relays
            if not self._running:
                self.worlds.look_ahead()
            return
        ends = living.is_over or self._is_ending
        living.look(ends=ends)
        if not living.sharing.live:
            if ends:
                self.worlds.end()
        elif self.is_late:
            for each in self._running:
                each.run.abandon()
            if time.monotonic() >= self._end_by + _END_S and not self.is_beside:
                living.world.give_up()

    # --- its commands

    @property
    def running(self) -> tuple[Executing, ...]:
        """Commands that have no answer yet."""
        return tuple(self._running)

    def add(self, each: Executing) -> None:
        """A command is about to begin."""
        self._running.append(each)

    def remove(self, each: Executing) -> None:
        """It did not; one that is not there any more is fine."""
        if each in self._running:
            self._running.remove(each)

    def finish(self, each: Executing, ended: Ended) -> None:
        """It has come to its end."""
        command_end.finish(self, each, ended)

    def start_record(self) -> None:
        """The session's first line, where something is to be told before its first command. Raises
        SubstrateError, OSError."""
        if not self.session.started:
            from substrate.session.first_line import write_session_start

            write_session_start(self)

    def paused(self) -> Streams | None:
        """What meets our terminal."""
        return None if self._beside is None else self._beside.streams

    # --- what is granted beyond its settings

    def request_scopes(
        self, client: Client, given: dict[str, Any], span: str | None, world: LiveWorld
    ) -> None:
        """A process of the world that lives wants more than it has."""
        if self._requests is None:
            from substrate.session.scope_requests import ScopeRequests

            self._requests = ScopeRequests(self, self.paused, terminal=self.is_beside)
        self._requests.take(client, given, span, world)

    def granted(self, settings: Settings) -> Settings:
        """With what was asked for and granted in earlier worlds of the session."""
        if self._requests is None:
            return settings
        return replace(
            settings,
            net_allow=(*settings.net_allow, *self._requests.hosts),
            show=(*settings.show, *self._requests.paths),
        )
