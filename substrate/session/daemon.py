"""A session that lives: its supervisor serves one command after the other, and several at once.

It holds the session (live_session.py) and at most one living world (live_world.py). A command that comes when none
lives begins a new one, on a layer of its own; one that comes while others are there, or what they left, joins them and
shares theirs (sharing.py). A world ends when it is quiet, and a next one is begun with ahead of time. Everything is done in
one loop (loop.py). Invariants: idle, it sleeps; whatever a client does ends nothing but its own command; when it
ends, by whatever, so does every process of its world, and the trace is whole. Spec: shell.md §2; docs/adr/0020.
"""

from __future__ import annotations

import _signal
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from substrate.errors import StateError, SubstrateError
from substrate.policy.rules import DENY
from substrate.policy.standing import Standing
from substrate.session import (
    capturing,
    client_call,
    doors,
    gated_command,
    other_settings,
    starting,
    store,
    world_setup,
)
from substrate.session.captures import Captures
from substrate.session.client_call import Call
from substrate.session.client_fds import ClientFds
from substrate.session.clients_asked import ClientsAsked
from substrate.session.command_run import Ended
from substrate.session.doors import Client, Door, Peer
from substrate.session.executing import (
    ClientTerminal,
    Executing,
    Guarded,
    status_of,
)
from substrate.session.finishing import Finished, finish
from substrate.session.inside import Decided, DecideExec, Inside, PassedFds, PassedStreams
from substrate.session.live_session import LiveSession
from substrate.session.live_world import LiveWorld
from substrate.session.loop import Loop, Waiting
from substrate.session.one_command import OneCommand
from substrate.session.outside import Outside
from substrate.session.pending_diff import PendingDiff
from substrate.session.recording import Recording
from substrate.session.reports import Reports
from substrate.session.request import RUN, TEXT, RunRequest
from substrate.session.scopes import key_of, what_differs
from substrate.session.sharing import Sharing, now_ns
from substrate.session.shell_words import text_of
from substrate.session.signals import RecordInterrupted
from substrate.session.summary import outcome_object
from substrate.session.supervisor import Outcome
from substrate.telemetry.capture.written import WrittenPaths
from substrate.telemetry.trace.events.policy import PolicyDecision
from substrate.values import replace
from substrate.world import wire
from substrate.world.handle import StartFailed
from substrate.world.hidden_again import HiddenAgain
from substrate.world.layers import is_frozen

if TYPE_CHECKING:
    import _socket

    from substrate.session.egressing import Egressing
    from substrate.session.scope_requests import ScopeRequests
    from substrate.session.settings import Settings
    from substrate.session.signals import SignalPipe
    from substrate.session.streams import Streams
    from substrate.telemetry.trace.events.session import Isolation
    from substrate.world.handle import Zygote
    from substrate.world.layers import Layer, LayerStack

LOG = b"log"
_MOST_LOG = 1 << 20
#: refusals at the doors that the trace tells of
_MOST_REFUSED = 1000
#: a command that began goes first for so long; then a seat is made for the next one, which starts at once
_SEAT_S = 0.01
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
        self._request, self.settings, self._zygote = request, settings, zygote
        self._arriving, self.is_beside = arriving, beside
        self.session = session
        session.standing = session.standing or Standing(os.environb)
        session.hidden_again = session.hidden_again or HiddenAgain()
        self._world: LiveWorld | None = None
        self._sharing: Sharing
        self._captures: Captures
        self._isolation: Isolation
        self._network_began = False
        self._inside: Inside | None = None
        #: whether a program that a shim asks for may run
        self.decide_exec: DecideExec = self._decide_inside
        self._beside: OneCommand | None = None  # the first command, which somebody else runs
        #: what else can be asked at `control`: each answers its client, now or later
        self.verbs: dict[str, Callable[[Client, dict[str, Any]], None]] = {}
        #: what processes of its worlds have asked for beyond them
        self.requests: ScopeRequests | None = None
        self._next: LiveWorld | None = None  # begun with, or started, for the next command
        self._may_stand = True
        self._seat_at: float | None = None  # when a seat is asked for in the world that lives
        #: what the end of the last world has left to do
        self._rest: tuple[LiveWorld, Callable[[], None]] | None = None
        self._has_terminals = False  # the last one that began a world had one: so may the next
        self._worlds = 0
        self._refused = 0
        self._running: list[Executing] = []
        self._left: list[Executing] = []  # answered; what they left goes on
        self._clients: list[Client] = []
        self._doors: list[Door] = []
        self._ending = False
        self._end_by = 0.0
        self._enders: list[Client] = []
        self.reports: Reports
        self._attending: list[Client] = []
        self._ends_alone = False  # when nobody attends any more
        self._log_fd = -1
        self._loop = Loop(self)
        self.asked = ClientsAsked(self)
        session.remote_of = self.asked.remote_of
        self.recording = Recording(self)
        self.outside = Outside(self)
        #: what earlier layers changed, for who asks in a world
        self.pending = PendingDiff(self._frozen)

    # --- its life

    def open(self) -> None:
        """Takes the session and opens its doors. Raises SubstrateError, OSError."""
        session = self.session
        session.open(self._request)
        session.load_stack()
        session.open_trace()
        self.reports = Reports(session.writer)
        self._open_doors()
        store.set_current(session.home, session.workspace, session.files.session_id)
        self._prepare_next()

    def _open_doors(self) -> None:
        session = self.session
        self._log_fd = os.open(
            LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600,
            dir_fd=session.files.fd,
        )  # fmt: skip
        self._doors.append(Door(session.files.fd, doors.CONTROL, self._welcome_control))

    def open_beside(self, world: LiveWorld, one: OneCommand, isolation: Isolation) -> None:
        """Opens the doors of a session whose world lives, with its first command. Raises OSError."""
        self._world, self._isolation, self._network_began = world, isolation, True
        self._sharing = Sharing(self.session, world)
        self._sharing.warn = self.log
        self._sharing.begin(one)
        self._beside = one
        self._captures = one.captures or Captures(self.session.number)
        self.reports = Reports(self.session.writer)
        self._open_inside(world)
        self._open_doors()

    def end_beside(self) -> None:
        """The first command has come to its end, and its world with it: so do all others."""
        self.end()
        while self._running and time.monotonic() < self._end_by + 1:
            self._loop.turn()
            self.look()
        self._sharing.settle_left(over=True)
        self.reports.tell()

    def close_beside(self) -> None:
        """Shuts the doors; the session is somebody else's."""
        self._close_clients()

    def serve(self) -> None:
        """Until it is to end. Raises OSError, StateError where the trace takes nothing any more."""
        while not self._is_over():
            self._loop.turn()
            self.look()
            if self.session.writer.failed:
                raise StateError("the trace cannot be written any more", hint="look at the disk")

    def end(self) -> None:
        """It is to end, with all that runs."""
        if not self._ending:
            self._ending = True
            self._end_by = time.monotonic() + _END_S
            for each in self._running:
                each.run.end("supervisor", time.monotonic())

    def _is_over(self) -> bool:
        return self._ending and not self._running and self._world is None

    def close(self) -> None:
        """Ends whatever is there; called on every way out."""
        self._close_clients()
        session = self.session
        try:
            self._end_rest(serving=False)
            self._drop_next()
            if self._world is not None:
                self._world.release()
            if session.opened is not None and not session.writer.failed:
                self.reports.tell()
            session.close()
            if (
                session.claimed is not None
                and session.claimed.world is None
                and not session.recorded
            ):
                store.clear_current(session.home, session.workspace.key, session.files.session_id)
            session.abandon(self._wait_gone)
        finally:
            for client in self._enders:
                ended = {"ended": session.files.session_id, "world": session.world.name}
                client.answer(doors.plain(ended))

    def _close_clients(self) -> None:
        if self.requests is not None:
            self.requests.close()
        for door in self._doors:
            door.close()
        self._close_inside()
        for each in (*self._running, *self._left):
            each.close()
        self.recording.close()
        self.pending.stop()
        self.outside.close()
        for client in self._clients:
            client.on_gone = _nothing
            client.close()
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1

    def _wait_gone(self) -> None:
        if self._world is not None:
            self._world.wait_ended()

    def log(self, text: str) -> None:
        """A line for whoever looks for what went wrong; a long log is begun anew."""
        if self._log_fd < 0:
            return
        try:
            if os.fstat(self._log_fd).st_size > _MOST_LOG:
                os.ftruncate(self._log_fd, 0)
            line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n"
            os.write(self._log_fd, line.encode("utf-8", "backslashreplace"))
        except OSError:
            return  # a full disk: the record says so, this need not

    # --- the loop

    def wait_for(self, waiting: Waiting) -> None:
        if not self.is_beside:
            waiting.read(self._arriving.fileno(), self._take_signals)
            if not self._ending:
                waiting.on(self._zygote.socket.fileno(), 0, self._lose_zygote)
        for door in self._doors:
            door.wait_for(waiting)
        for client in tuple(self._clients):
            client.wait_for(waiting)
        if self._world is not None and (not self.is_beside or self._ending):
            self._wait_for_world(self._world, waiting)
        if self._next is not None:
            self._next.wait_for(Guarded(waiting, self._lose_next))
        if self._inside is not None:
            self._inside.wait_for(waiting)
        if self.requests is not None:
            self.requests.wait_for(waiting)
        for each in tuple(self._running):
            each.wait_for(waiting)
        for each in tuple(self._left):
            try:
                each.wait_for_left(waiting)
            except Exception as error:  # noqa: BLE001 - an edge: it ends no other command
                self._sharing.lose(each.one, error)
        self.pending.wait_for(waiting)
        self.outside.wait_for(waiting)
        if self.recording.held:
            waiting.until(waiting.now)
        waiting.until(self._seat_at)
        if self._ending:
            waiting.until(max(self._end_by, waiting.now + _LATE_S))

    def _wait_for_world(self, world: LiveWorld, waiting: Waiting) -> None:
        if self.is_beside:  # whose loop this is has said what it waits for
            world.wait_for(waiting)
            return

        def trouble(error: Exception) -> None:
            self.log(f"a world: {error!r}")
            world.give_up()

        try:
            world.wait_for(Guarded(waiting, trouble))
        except Exception as error:  # noqa: BLE001 - an edge: a world's end is not the session's
            trouble(error)
            waiting.changed = True

    @property
    def is_late(self) -> bool:
        """It is to end, and its time is over."""
        return self._ending and time.monotonic() >= self._end_by

    @property
    def clients(self) -> tuple[Client, ...]:
        return tuple(self._clients)

    def wait_for_doors(self, waiting: Waiting) -> None:
        """What is served while it is recorded what a layer holds: those outside of worlds."""
        if not self.is_beside:
            waiting.read(self._arriving.fileno(), self._take_signals)
        for door in self._doors:
            door.wait_for(waiting)
        for client in tuple(self._clients):
            if not client.inside:
                client.wait_for(waiting)

    @property
    def running(self) -> tuple[Executing, ...]:
        """Commands that have no answer yet."""
        return tuple(self._running)

    def _take_signals(self) -> None:
        ends = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGQUIT)
        if any(number in ends for number in self._arriving.read()):
            self.end()

    def _lose_zygote(self) -> None:
        """Without it no command could begin: who comes next gets a supervisor of its own."""
        self.log("the process that starts worlds was killed: the session ends")
        self.end()

    def _lose_next(self, error: Exception) -> None:
        """What fails of a world that waits, as for want of descriptors, ends nothing else."""
        self.log(f"a world that waits for a command: {error!r}")
        if self._next is not None:
            self._next.dead = True

    def look(self) -> None:
        """What is over by now."""
        self._clients = [client for client in self._clients if not client.is_gone]
        self._running = [each for each in self._running if not each.answered]
        self.recording.begin_held(ending=self._ending)
        world = self._world
        if world is None:
            if self._running:
                return  # who waited for the last one has its answer first, which waits for its relays
            self._end_rest()
            if self._next is not None and self._next.dead:
                self.log("a world that waited for a command has ended")
                self._may_stand = False  # until one of a command's own has worked
                self._drop_next()
            if self._next is None and not self._ending:
                self._prepare_next()
            return
        over = world.quiet or world.dead
        if self._seat_at is not None and time.monotonic() >= self._seat_at:
            self._seat_at = None
            if not (over or self._ending):
                world.world.ask_for_seat()
        self._sharing.settle_left()
        for each in tuple(self._left):
            if each.one not in self._sharing.left:
                self._left.remove(each)
                each.close()
        if self._sharing.live:
            if self.is_late:
                for each in self._running:
                    each.run.abandon()
                if time.monotonic() >= self._end_by + _END_S and not self.is_beside:
                    world.give_up()
            return
        if over or self._ending:
            self._end_world()

    def _end_world(self) -> None:
        self._kill_what_is_left()
        try:
            with self.recording.of(None):
                self._sharing.end_world(lambda: self._arriving.ends_within(0))
        except Exception as error:  # noqa: BLE001 - a world's end is not the session's
            self.log(f"the end of a world: {error!r}")
            assert self._world is not None
            self._leave_layer(self._world)
        self._world_is_gone()

    def _kill_what_is_left(self) -> None:
        """Else the end of what capture knows of it would be waited for."""
        world = self._world
        assert world is not None
        if not (world.quiet or world.dead):
            try:
                world.world.signal(_signal.SIGKILL, "all")
            except BrokenPipeError:
                return  # it has died in this moment

    def _leave_layer(self, world: LiveWorld) -> None:
        """What its layer holds could not be recorded now: the next command tells of it first, as of one
        that a killed supervisor left."""
        session = self.session
        world.close()
        if not world.all_dead:
            try:
                with self.recording.of(None):
                    world.wait_ended()
            except RecordInterrupted:
                self.end()  # whoever opens the session next waits for them (running.py)
            except SubstrateError as error:  # the zygote is gone, and the session ends
                self.log(f"the end of a world: {error!r}")
        if world.layer in session.stack.numbers and not is_frozen(session.stack, world.layer):
            session.left.append(world.layer)
            session.pending = session.stack

    def _world_is_gone(self) -> None:
        assert self._world is not None
        self._close_inside()
        self._world.release()
        self._world = self._seat_at = None
        for each in self._left:
            each.close()
        self._left = []
        self.session.writer.sync()

    # --- who comes

    def _welcome_control(self, socket: _socket.socket) -> None:
        peer = Peer(socket)
        try:
            why = doors.why_not_control(peer, self._zygote.pid)
        except OSError:
            peer.close()
            raise
        client = Client(socket, peer, inside=False, until=time.monotonic() + doors.FIRST_S)
        if why:
            self.tell_of_refusal("control", why)
            client.fail(f"this is not for you: {why}", "ask from outside of worlds", 126)
        elif self._served(inside=False) >= doors.MOST_CLIENTS:
            client.fail(
                f"{doors.MOST_CLIENTS} others are being served", "try again when some have ended"
            )
        elif self._ending:
            client.fail("the session is ending", "try again for a new one")
        else:
            client.on_packet, client.on_bug = self._hear, self.log
            self._clients.append(client)

    def tell_of_refusal(self, door: str, why: str, span: str | None = None) -> None:
        """On the record: an attempt at what is not a world's to have. What is tried without an end is told
        for a while only, and that it is."""
        self._refused += 1
        if self._refused > _MOST_REFUSED:
            return
        if not self.session.started:
            self.log(f"refused at {door}: {why}")
            return
        if self._refused == _MOST_REFUSED:
            why += f"; {_MOST_REFUSED} attempts are told of, and no more of them"
        told = PolicyDecision(
            kind="api",
            subject=door,
            decision="deny",
            action="refused",
            rule=None,
            policy_digest="",
            reason=why,
        )
        self.session.writer.append([told.event("shell", parent_span_id=span)])

    def _hear(self, client: Client, message: wire.Message) -> None:
        """The first packet of a client."""
        if message.kind == client_call.EXECUTE:
            self._execute(client, message)
        elif message.kind == client_call.VERB:
            self._answer(client, client_call.parse_verb(message))
        else:
            raise client_call.BadCall(f"nobody begins with {message.kind!r}")

    def _answer(self, client: Client, verb: client_call.Verb) -> None:
        if verb.name == "status":
            client.answer(doors.plain(self.status()))
        elif verb.name == "attend":
            self._attend(client, own=verb.arguments.get("own") is True)
        elif verb.name == "end" and self.is_beside:
            client.answer(doors.plain({"ended": "", "world": self.session.world.name}))
            os.kill(os.getpid(), _signal.SIGTERM)  # as if its user ended the agent
        elif verb.name == "end":
            client.busy = True
            self._clients.remove(client)
            self._enders.append(client)
            self.end()
        elif verb.name in self.verbs:
            self.verbs[verb.name](client, verb.arguments)
        else:
            client.fail(
                f"a session that runs cannot be asked to {verb.name}",
                f"end it first: `substrate session end {self.session.world.name}`",
            )

    # --- shells that stay (shell/joined.py)

    def _attend(self, client: Client, *, own: bool) -> None:
        """Somebody sits here, as long as the connection is there. `own`: he began the session, which
        ends with the last who does."""
        self._ends_alone = self._ends_alone or own
        client.busy, client.on_packet = True, self._hear_leaving
        client.on_gone = lambda: self._stops_attending(client)
        self._attending.append(client)
        client.send(client_call.JSON, "{}")

    def _hear_leaving(self, client: Client, message: wire.Message) -> None:
        if message.kind != client_call.VERB or client_call.parse_verb(message).name != "leave":
            raise client_call.BadCall("who attends can only leave")
        client.on_gone = _nothing
        if self._ends_alone and self._attending == [client]:
            self._clients.remove(client)
            self._enders.append(client)
            self._stops_attending(client)
        else:
            self._stops_attending(client)
            client.answer(doors.plain({"ended": "", "world": self.session.world.name}))

    def _stops_attending(self, client: Client) -> None:
        self._attending.remove(client)
        if self._ends_alone and not self._attending:
            self.end()

    def status(self) -> dict[str, Any]:
        """The answer to `status` (schema substrate.session.status/1)."""
        session, world = self.session, self._world
        return {
            "schema": "substrate.session.status/1",
            "session": session.files.session_id,
            "world": session.world.name,
            "workspace": os.fsdecode(session.world.workspace),
            "backend": session.world.backend,
            "pid": os.getpid(),
            "layers": len(self._layers()),
            "lives": world is not None,
            "shared": world is not None and self._sharing.is_shared,
            "left": len(self._left),
            "recording": self.recording.is_on,
            "commands": [
                {
                    "span": each.one.recorder.span,
                    "program": os.fsdecode(each.call.file),
                    "pid": each.run.pid,
                    "client": each.client.peer.pid,
                }
                for each in self._running
            ],
        }

    # --- commands

    def _execute(self, client: Client, message: wire.Message) -> None:
        call = client_call.parse_execute(message)
        if call.mode != client_call.COMMAND:
            self.outside.answer(client, call)
            return
        other_settings.refuse(call)
        if self.recording.is_on or (self._world is not None and self._world.dead):
            self.recording.held.hold(client, message)  # until that is over
            return
        given = message.fds[1:]
        if len(given) != call.flags.fds:
            raise client_call.BadCall("there is not one fd for each stream that is open")
        if call.flags.has_text:
            text = client_call.read_sealed(given[-1])
            call = replace(call, flags=replace(call.flags, cmd=text))
            os.close(given.pop())
            del message.fds[-1:]
        del message.fds[1:]
        left = iter(given)
        streams = tuple(-1 if n in call.flags.closed else next(left) for n in range(3))
        each: Executing | None = None
        try:
            fds = ClientFds((streams[0], streams[1], streams[2]))
            each = Executing(self, client, call, fds, call.parent)
            each.take_extra(list(left))
            try:
                self._begin(each)
            finally:
                each.drop_extra()
        except Exception as error:  # noqa: BLE001 - an edge: half a command must not be left
            self._could_not_begin(client, each, error)

    def run_inside(self, client: Client, call: Call, fds: PassedFds, parent: str | None) -> None:
        """A process of the world wants a command beside it."""
        each = Executing(self, client, call, fds, parent)
        limit = self.settings.record_max_bytes
        streams = PassedStreams(fds.fds, limit, self.session.digester.stream)
        try:
            self._begin(each, streams)
        except Exception as error:  # noqa: BLE001 - as above
            streams.abandon()  # held by us they would never end for whoever reads them
            self._could_not_begin(client, each, error)

    def _could_not_begin(self, client: Client, each: Executing | None, error: Exception) -> None:
        text = (error.strerror if isinstance(error, OSError) else "") or str(error)
        hint = getattr(error, "hint", "") or "look at `substrate doctor`"
        if not isinstance(error, (SubstrateError, OSError)):
            text, hint = "it could not begin: a fault of substrate", "look at the session's log"
        self.log(f"a command could not begin: {error!r}")
        client.on_gone = _nothing
        client.fail(text, hint, 2 if getattr(error, "status", 0) == 2 else 125)
        if each is not None:
            if each in self._running:
                self._running.remove(each)
            if hasattr(each, "one"):
                self._drop(each, text)
            each.fds.close()
            each.drop_mine()
        if self._world is not None and not self._sharing.spans:
            self._drop_world()

    def _drop(self, each: Executing, text: str) -> None:
        """One that has a start on the record and never ran gets its end there."""
        one = each.one
        _close_streams(one)
        if one.capture is not None:
            one.capture.close()
        if one.gating is not None:
            one.gating.close()
        world = self._world
        if world is None or one not in self._sharing.live:
            return
        self._sharing.live.remove(one)
        if each.run in world.runs:
            world.runs.remove(each.run)
        failed = Ended(
            status=None,
            failed=("start", 0, text),
            ended_by="start_failed",
            duration_us=0,
            usage=(),
            background_ended=(),
            quiet=True,
        )
        self.session.writer.append([one.end_event(failed, None)])

    def _close_inside(self) -> None:
        inside, self._inside = self._inside, None
        if inside is not None:
            inside.close()
        for client in self._clients:
            if client.inside:  # its process is of a world that has gone
                client.on_gone = _nothing
                client.close()

    def _drop_world(self) -> None:
        """A world in which nothing ran."""
        world = self._world
        assert world is not None
        self._world = self._seat_at = None
        self._close_inside()
        world.release()
        world.wait_ended()
        if world.layer is not None:
            self.session.drop_layer(world.layer)

    def _begin(self, each: Executing, streams: PassedStreams | None = None) -> None:
        call = each.call
        kind = RUN if call.flags.cmd is None else TEXT
        text = call.flags.cmd
        if text is None:
            text = text_of(call.file, call.argv)
        request = RunRequest(
            kind=kind, file=call.file, argv=call.argv, cmd_text=text, extra=each.extra
        )
        settings = _narrowed(self._granted(self.settings), call)
        if self._world is not None:  # whose limits are those of its own policy, at its begin
            settings = _narrowed(
                replace(self._world.settings, timeout_s=self.settings.timeout_s), call
            )
        one = OneCommand(
            request,
            settings,
            call.cwd,
            each.terminal,
            call.flags.closed,
            environ=call.environ,
            umask=call.umask,
            ignored=call.flags.ignored,
            fds=each.fds.fds,
            sockets=each.fds.sockets,
            foreground=each.has_keys,
        )
        one.written = WrittenPaths()
        one.given_streams = streams
        # a process of a world takes no report of somebody's tool call
        one.takes_reports, one.waits_for_reports = not each.client.inside, False
        isolation = None
        if self._world is None:
            self._govern(one)
            self._begin_world(one)
            isolation = self._isolation
            world = self._world
            assert world is not None
            each.prepare_run(one, settings.background_s, one.settings.timeout_s)
            if self._ending or each.client.is_gone:  # others were served while the last world ended
                raise StateError("the session is ending", hint="try again for a new one")
            one.begun_ns = now_ns()
            with self.recording.of(each):  # of layers that were left
                starting.write_first(self.session, world, one, isolation, each.parent)
            self._sharing.begin(one)
            world.world.wait_ready()
            self._open_inside(world)
            if world.network is not None and world.is_routed:
                world.network.connect()
        else:
            world = self._world
            self._govern(one, in_observed=world.frame.observed)
            self._hold_to(one, world, each.client)
            world_setup.refuse_hidden_cwd(one.cwd, world.spec)
            if world.frame.backend == "guard":
                from substrate.session import guarding

                one.cwd = guarding.inside(self.session.files, self.session.stack, one.cwd)
            one.captures = self._captures
            one.begin(self.session, world)
            each.prepare_run(one, settings.background_s, one.settings.timeout_s)
            one.make_spec()
            starting.refuse_weak(world, one)
            one.begun_ns = now_ns()
            events = gated_command.policy_events(one.gate, self.session.files, continued=True)
            one.write_start(self._isolation, each.parent, events)
            self._sharing.begin(one)
            if world.network is not None:
                world.network.share()
        if one.top.denied:
            self._deny(each)
            return
        gated_command.may_ask(
            *(one.gate, self.session, one.recorder.span, self.paused), terminal=self.is_beside
        )
        sharing = self._sharing
        each.run.is_alone = lambda: not sharing.is_shared
        world.quiet = False
        world.runs.append(each.run)
        self._running.append(each)
        try:
            each.run.begin(one.spec)
        except StartFailed as failed:
            raise StateError(f"{failed.step}: {failed.text}", hint="run it again") from None
        if self._sharing.is_shared:
            self._seat_at = time.monotonic() + _SEAT_S

    def _govern(self, one: OneCommand, *, in_observed: bool = True) -> None:
        """How it is captured, and what the policy says of it."""
        one.choose(self.session, in_observed=in_observed)
        one.load_policy(self.session)
        one.govern(self.session)
        one.top = gated_command.leave_to_gate(one.gate, one.top, one.request)
        if one.top.isolated:
            verdict = one.top.verdict
            reason = f"{verdict.reason or 'isolate'}; this world is the session's: substrate --fresh -c …"
            one.top = replace(one.top, verdict=replace(verdict, action=DENY, reason=reason))

    def _hold_to(self, one: OneCommand, world: LiveWorld, client: Client) -> None:
        """What of the policy holds a command in a world that lives: its own time and its count of programs. What
        else was changed since the world began waits for the next one, and is told."""
        policy = one.gate.broker.policy
        if client.inside:
            span = self.command_of(client.peer.pid)
            for other in self._sharing.all:
                if other.recorder.span == span and other.gating is not None:
                    one.gate.count_with(other.gating)
        runtime_s = policy.limits.runtime_s
        if runtime_s is not None and (one.settings.timeout_s or runtime_s) >= runtime_s:
            one.settings = replace(one.settings, timeout_s=runtime_s)
        if world.scopes is None or world.scopes.digest == one.gate.broker.digest:
            return
        changed = what_differs(world.scopes.policy, policy)
        if changed:
            line = (
                f"substrate: the policy was changed: what it says in {', '.join(changed)} holds from the next world "
                "on, its rules for commands now"
            )
            client.send(client_call.TEXT, line)

    def _decide_inside(self, call: Call, pid: int, parent: str | None) -> Decided:
        """For a shim in the world. What the gate stops and asks for is left to it: it looks at what
        really runs."""
        span = self.command_of(pid)
        ones = (*([] if self._beside is None else [self._beside]), *self._sharing.all)
        one = next((each for each in ones if each.recorder.span == span), None)
        gating = gated_command.load(
            self.settings, call.cwd, self.session.workspace, self.session.standing
        )
        gating.force = "off" if one is None else one.gate.force
        told = gated_command.decide_shim(gating, call.argv, call.file, call.cwd, parent)
        if told is None:
            return Decided(allowed=True, digest=gating.broker.digest)
        event, line, rule = told
        self.session.writer.append([event])
        return Decided(allowed=False, line=line, rule=rule)

    def _deny(self, each: Executing) -> None:
        """It never starts; its client is told why."""
        one = each.one
        ended = gated_command.denied(one.gate, one.top, one.request)
        denials = one.gate.denials()
        self.session.writer.append([one.end_event(ended, None, denials)])
        self.session.writer.sync()
        self._sharing.live.remove(one)
        _close_streams(one)
        if one.capture is not None:
            one.capture.close()
        one.gate.close()
        client = each.client
        client.on_gone = _nothing
        line = denials[0].text if denials else "denied by the policy"
        client.send(
            client_call.DENIED, 126, f"substrate: {line}"[:4000], one.top.verdict.rule or ""
        )
        client.close()
        each.fds.close()
        each.drop_mine()
        if not (self._sharing.is_shared or self._sharing.live or self._sharing.left):
            self._drop_world()

    def paused(self) -> Streams | None:
        """What meets our terminal."""
        return None if self._beside is None else self._beside.streams

    def _begin_world(self, one: OneCommand) -> None:
        """A new world, on a new layer, for its first command."""
        self._end_rest()
        session = self.session
        self.pending.stop()
        session.host = world_setup.look_at_host()
        scopes = one.scopes(session)
        one.settings = scopes.settings
        terminal = one.terminal is not None
        is_for_it = self._has_terminals == terminal
        self._has_terminals = terminal
        world = self._next
        if world is not None and (
            not is_for_it
            or world.frame.observed != one.choice.observed
            or key_of(world.settings) != key_of(scopes.settings)
        ):
            world = None
        if world is not None:
            world.hold_to(scopes)
            if world.started is not None and not world.take(self._request_of(one), one.cwd):
                world = None
        if world is None:
            self._drop_next()
            world = self._make_world()
            world.hold_to(scopes)
            world.prepare(one.choice, terminal=terminal)
        self._next = None
        self._world, self._network_began = world, False
        self._sharing = Sharing(session, world)
        self._sharing.warn = self.log
        self._captures = one.captures = Captures(session.number)
        if world.started is None:
            world.layer = session.cut()
            one.cwd = world.start(self._request_of(one), one.cwd)
        one.begin(session, world)
        world.make_network(self._captures if one.choice.level != "off" else None)
        one.make_spec()
        world.wait_network()
        self._isolation = starting.isolation_in_force(world, one)
        world.watch_disk()

    def _open_inside(self, world: LiveWorld) -> None:
        fd = world.world.take_inside()
        if fd >= 0:
            self._inside = Inside(self, fd, world.world.holder_pid, self.decide_exec)

    def takes(self, client: Client) -> bool:
        """Takes a client of the world's door, if there is room."""
        if self._served(inside=True) >= doors.MOST_CLIENTS:
            client.fail(f"{doors.MOST_CLIENTS} others are being served", "try again")
            return False
        client.on_bug = self.log
        self._clients.append(client)
        return True

    def _served(self, *, inside: bool) -> int:
        """Clients of one door: a world cannot take the places of those outside."""
        return sum(each.inside is inside and not each.is_gone for each in self._clients)

    def live_world(self) -> LiveWorld | None:
        return self._world

    def network(self) -> Egressing | None:
        """Of the world that lives."""
        return None if self._world is None else self._world.network

    def request_scopes(self, client: Client, given: dict[str, Any], span: str | None) -> None:
        """A process of the world that lives wants more than it has."""
        assert self._world is not None
        if self.requests is None:
            from substrate.session.scope_requests import ScopeRequests

            self.requests = ScopeRequests(self, self.paused, terminal=self.is_beside)
        self.requests.take(client, given, span, self._world)

    def _granted(self, settings: Settings) -> Settings:
        """With what was asked for and granted in earlier worlds of the session."""
        if self.requests is None:
            return settings
        return replace(
            settings,
            net_allow=(*settings.net_allow, *self.requests.hosts),
            show=(*settings.show, *self.requests.paths),
        )

    def expect(self, host_pid: int, span: str) -> None:
        """The next program of a process is this span."""
        self._captures.expect(host_pid, span)

    def span_of(self, host_pid: int) -> str | None:
        """The span of a process of the world, as far as that was told."""
        self._captures.pump()
        owner = self._captures.owner_by_pid(host_pid, now_ns() // 1000)
        return None if owner is None else owner.span

    def command_of(self, host_pid: int) -> str | None:
        """The span of the command that a process of the world came of, as far as that was told."""
        owner = self._captures.owner_by_pid(host_pid, now_ns() // 1000)
        found = None if owner is None else self._captures.command_of(owner.proc)
        if found is None and self._world is not None:
            # nothing is captured, or not told yet: where there is one command it is that one's
            ones = self._sharing.all
            found = ones[0].recorder.span if len(ones) == 1 else None
        return found

    def own_status(self, host_pid: int) -> dict[str, Any]:
        """What a process of the world is told of itself (schema substrate.session.status/1): others' commands,
        and whose clients they have, are not its business."""
        found, own = self.status(), self.command_of(host_pid)
        ours = [each for each in found["commands"] if each["span"] == own]
        told = [{key: each[key] for key in ("span", "program")} for each in ours]
        return {**found, "pid": 0, "left": 0, "commands": told}

    def start_record(self) -> None:
        """The session's first line, where something is to be told before its first command: what its worlds
        are held by is found out by one in which nothing runs. Raises SubstrateError, OSError."""
        session = self.session
        if session.started:
            return
        one = OneCommand(
            *(self._request, self.settings, session.cwd, None, frozenset()), environ={}, umask=0
        )
        one.choose(session)
        one.gating = gated_command.load(
            self.settings, session.cwd, session.workspace, session.standing
        )
        if one.gating.needed:
            one.choice = capturing.with_gate(session.home, one.choice)
        one.fds, one.closed = (-1, -1, -1), frozenset((0, 1, 2))
        try:
            self._begin_world(one)
            assert self._world is not None
            self._world.world.wait_ready()
            digest = one.gating.broker.digest
            events = [one.recorder.session_start(self._isolation, one.choice, digest)]
            events += gated_command.policy_events(one.gating, session.files, continued=False)
            session.writer.append(events)
            session.recorded = session.started = True
        finally:
            _close_streams(one)
            if one.capture is not None:
                one.capture.close()
            one.gating.close()
            if self._world is not None:
                self._drop_world()

    def _frozen(self) -> LayerStack:
        """The stack without the layer that is still written to."""
        stack = self.session.stack
        own = None if self._world is None else self._world.layer
        return replace(
            stack, layers=tuple(layer for layer in self._layers() if layer.number != own)
        )

    def _request_of(self, one: OneCommand) -> RunRequest:
        """By what it is decided which places the world shows: that of the session, where it names an agent."""
        return self._request if self._request.kind == RUN else one.request

    def _make_world(self) -> LiveWorld:
        self._worlds += 1
        return LiveWorld(self.session, self._worlds, inside=True)

    def _prepare_next(self) -> None:
        """A rootless world is made of the mounts that the host has when it is begun with (docs/adr/0011),
        so it is not begun with for later."""
        if self.session.world.backend not in ("ns-root-idmap", "ns-root") or self._next is not None:
            return
        terminal = ClientTerminal(-1) if self._has_terminals else None
        one = OneCommand(
            *(self._request, self._granted(self.settings), self.session.cwd, terminal),
            frozenset(),
            environ={},
            umask=0,
        )
        session = self.session
        try:
            one.choose(session)
            one.load_policy(session)
            may_stand = self._may_stand and terminal is None
            scopes = one.scopes(session, walk=may_stand)
            world = self._next = self._make_world()
            world.hold_to(scopes)
            world.prepare(one.choice, terminal=terminal is not None)
            if session.left or not may_stand:
                return  # of what is left the next command tells first
            session.host = world_setup.look_at_host()
            world.layer = session.cut()
            world.stand(self._request_of(one))
        except (SubstrateError, OSError, wire.WireError) as error:
            self.log(f"no world was prepared: {error!r}")  # the next command says it to somebody
            self._drop_next()

    def _drop_next(self) -> None:
        """What was begun with for the next command is of no use to it."""
        world, self._next = self._next, None
        if world is None:
            return
        world.release()
        try:
            if world.started is not None:
                world.wait_ended()
            if world.layer is not None:
                self.session.drop_layer(world.layer)
        except (SubstrateError, OSError, wire.WireError) as error:
            self.log(f"the end of a world that was not used: {error!r}")
            self._leave_layer(world)

    def _end_rest(self, *, serving: bool = True) -> None:
        """What the end of the last world has left to do: a world that is next begins on the same lock. `serving`:
        others, meanwhile."""
        rest, self._rest = self._rest, None
        if rest is None:
            return
        world, act = rest
        try:
            with self.recording.of(None) if serving else nullcontext():
                act()
        except RecordInterrupted:
            self.end()  # whoever opens the session next waits for its processes (running.py)
        except Exception as error:  # noqa: BLE001 - an edge: whose layer it is has its answer
            self.log(f"the end of a layer: {error!r}")
            self._leave_layer(world)

    def _layers(self) -> tuple[Layer, ...]:
        """Those of the stack, without one that waits for a command."""
        waiting = None if self._next is None else self._next.layer
        return tuple(each for each in self.session.stack.layers if each.number != waiting)

    def begin_network(self, one: OneCommand) -> None:
        """Called when a command has its go."""
        if not self._network_began:
            self._network_began = True
            shared = self._sharing.is_shared
            one.world.begin_network(
                None if shared else one.recorder.span, self._captures.command_of
            )

    def finish(self, each: Executing, ended: Ended) -> None:
        """A command has come to its end: the trace is told, then its client."""
        world, one, sharing = self._world, each.one, self._sharing
        assert world is not None
        trouble = each.trouble
        found: Finished | None = None
        alone = False
        try:
            alone = not sharing.is_shared and not sharing.left
            self.reports.end_of(one.recorder.span)
            if alone and (world.quiet or world.dead):
                sharing.live.remove(one)
                one.is_gone = True
                world.runs.remove(each.run)
                with self.recording.of(each):
                    found = finish(self.session, world, one, ended, world.wait_ended, self.log)
                self._rest = world, found.rest
                self._may_stand = True
                self._world_is_gone()
            else:
                with self.recording.of(None):
                    found = sharing.finish(one, ended)
                if one in sharing.left:
                    self._left.append(each)
                else:
                    world.runs.remove(each.run)
                self.session.writer.sync()
        except Exception as error:  # noqa: BLE001 - an edge: one command's end is not the session's
            self.log(f"the end of {one.recorder.span}: {error!r}")
            trouble = trouble or str(error)
            each.run.signal(_signal.SIGKILL, "tree")
            if one.capture is not None:
                one.capture.close()
            if one in sharing.live:
                sharing.live.remove(one)
            if self._world is world and alone and not self.is_beside:
                self._leave_layer(world)
                self._world_is_gone()
        one.gate.close()
        each.part(*self._told(each, ended, found, trouble))
        if self._seat_at is not None:
            self._seat_at = 0.0  # once that was said

    def _told(
        self, each: Executing, ended: Ended, found: Finished | None, trouble: str
    ) -> tuple[bytes, bytes | int | str, bytes | int | str, bytes | int | str]:
        if trouble or found is None:
            return client_call.FAILED, 125, trouble, "`substrate doctor` tries what a session needs"
        session, world = self.session, each.one.world
        for denial in found.denials:
            each.client.send(client_call.TEXT, f"substrate: {denial.text}"[:4000])
        outcome = Outcome(
            exit_status=status_of(ended, trouble),
            ended=ended,
            session_id=session.files.session_id,
            span_id=each.one.recorder.span,
            world=None if session.world.backend == "none" else session.world.name,
            continued=True,
            changes=found.changes,
            layer=world.layer if found.changes and found.kept else None,
            notes=world.notes,
            denials=found.denials,
        )
        told = doors.plain(outcome_object(outcome))
        return client_call.ENDED, outcome.exit_status, told, ""


def _narrowed(settings: Settings, call: Call) -> Settings:
    """The session's settings, as far as a call makes them narrower."""
    asked = call.flags.timeout_s
    if asked is None or (settings.timeout_s is not None and settings.timeout_s <= asked):
        return settings
    return replace(settings, timeout_s=asked)


def _close_streams(one: OneCommand) -> None:
    """Of a command that never ran: nothing else lets go of what it would have had."""
    streams = getattr(one, "streams", None)  # there is none before `begin`
    if streams is not None:
        streams.end_input()
        streams.abandon()


def _nothing() -> None:
    return
