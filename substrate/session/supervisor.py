"""The one-shot supervisor: one command in the current world of the directory.

It puts the pieces of a session together for the time of one command (shell.md §2): the session
(live_session.py), its world (live_world.py), the command (one_command.py, command_run.py) and one loop. Order:
fork the zygote, find or make the session (its lock is held from here on), cut a new layer,
start the world, write `command_start`, let the command go, move its bytes, freeze and diff
the layer, write `command_end`, sync, and only then hand its status back. Invariant: whatever
fails on the way, the world is ended, the terminal restored and the trace left whole.
"""

from __future__ import annotations

import os

from substrate.errors import HostUnsupported, UsageError
from substrate.session import gated_command, store
from substrate.session.live_session import LiveSession
from substrate.session.live_world import LiveWorld
from substrate.session.loop import Loop
from substrate.session.one_command import OneCommand, exit_status
from substrate.session.request import RUN
from substrate.session.signals import SignalPipe
from substrate.session.workspace import current_directory
from substrate.values import value
from substrate.world.handle import StartFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from substrate.session.command_run import Ended
    from substrate.session.daemon import Daemon
    from substrate.session.denials import Denial
    from substrate.session.request import RunRequest
    from substrate.session.settings import Settings
    from substrate.session.terminal import HostTerminal
    from substrate.telemetry.trace.events.session import Isolation
    from substrate.world.change import Change
    from substrate.world.handle import Zygote


@value
class Outcome:
    """What a one-shot run came to, for the status, the summary and `--json-status`."""

    exit_status: int
    ended: Ended
    session_id: str
    span_id: str
    world: str | None  # its name; None without a world
    continued: bool
    changes: tuple[Change, ...]  # of this command
    layer: int | None  # None where nothing was changed
    notes: tuple[str, ...]
    denials: tuple[Denial, ...]  # what the world denied it, as far as that shows


def run_one_shot(
    request: RunRequest,
    settings: Settings,
    zygote: Zygote,
    closed_fds: frozenset[int],
    say: Callable[[str], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Outcome:
    """Runs one command. `zygote` was forked before anything else; `closed_fds`: which of 0-2
    were closed when we started; `say` tells a person on a terminal what happens before it, `warn`
    anybody that the record has no room. Raises SubstrateError when substrate itself failed."""
    run = _OneShot(request, settings, zygote, closed_fds, say, warn)
    try:
        run.open()
        run.start()
        ended = run.command()
        return run.finish(ended)
    finally:
        run.release()


class _OneShot:
    """The steps of one run, called in their order; `release` always."""

    def __init__(
        self,
        request: RunRequest,
        settings: Settings,
        zygote: Zygote,
        closed_fds: frozenset[int],
        say: Callable[[str], None] | None,
        warn: Callable[[str], None] | None,
    ) -> None:
        self.say = say
        self.warn = warn
        self.request = request
        self.settings = settings
        self.zygote = zygote
        cwd = current_directory()
        self.arriving = SignalPipe()
        self.terminal = host_terminal(settings, closed_fds)
        umask = os.umask(0o077)
        os.umask(umask)
        self.session = LiveSession(settings, zygote, self.arriving, cwd)
        #: others can come into its world, and be served beside it: an agent's own commands
        self.serves = request.kind == RUN and not request.throw_away
        self.daemon: Daemon | None = None
        self.world = LiveWorld(self.session, inside=self.serves)
        self.one = OneCommand(
            request,
            settings,
            cwd,
            self.terminal,
            closed_fds,
            environ=os.environb,
            umask=umask,
            ignored=self.arriving.ignored,
        )
        self.gone = False  # every process of the world is dead, and the zygote has no more to do

    # --- the session, its world and a layer

    def open(self) -> None:
        """Finds or makes the session and takes its lock; cuts a new layer."""
        session, request = self.session, self.request
        session.open(request)
        self._prepare()
        request = self.one.request
        session.load_stack()
        if self.say is not None and session.stack.layers:
            count = len(session.stack.layers)
            commands = "1 command" if count == 1 else f"{count} commands"
            self.say(f"substrate: continuing world {session.world.name}: {commands} pending")
        if request.throw_away and (session.continued or request.at):
            session.go_back(request.at)  # a new one has no trace yet
        self.world.layer = session.cut(throw_away=request.throw_away)

    def _prepare(self) -> None:
        """Has the zygote begin with the world, while we find out what its files are."""
        one, session = self.one, self.session
        one.choose(session)
        one.load_policy(session)
        scopes = one.scopes(session)
        self.settings = one.settings = session.settings = scopes.settings
        if self.warn is not None:
            for text in scopes.left_out:
                self.warn(f"substrate: {text}")
        self.world.hold_to(scopes)
        self.world.prepare(one.choice, terminal=self.terminal is not None)
        one.govern(session)
        if self.serves and self.one.request.throw_away:  # the policy may want that
            self.serves = self.world.has_door = False

    def start(self) -> None:
        """Asks the zygote for the world; it starts while we open the trace."""
        self.one.cwd = self.world.start(self.one.request, self.one.cwd)

    # --- the command

    def command(self) -> Ended:
        """Writes its start, runs it, moves its bytes until it is over."""
        # while the zygote starts the world
        from substrate.session import starting
        from substrate.session.command_run import CommandRun

        session, world, one, settings = self.session, self.world, self.one, self.settings
        session.open_trace()
        if self.serves:
            self._make_room()
        one.begin(session, world)
        world.make_network(one.captures or one.capture)
        run = one.run = CommandRun(
            *(world.world, one.streams, self.arriving, self.terminal, one.capture),
            timeout_s=settings.timeout_s,
            background_s=settings.background_s,
        )
        world.runs.append(run)
        loop = Loop(world, run)
        spec = one.make_spec()
        world.wait_network()
        isolation = starting.isolation_in_force(world, one)
        self._ask_first()
        try:
            starting.write_first(session, world, one, isolation)
            world.world.wait_ready()
            if not self.serves:
                world.close_door()  # nobody would answer there
            if world.network is not None and world.is_routed:
                world.network.connect()
            if not session.continued:
                store.set_current(session.home, session.workspace, session.files.session_id)
            if one.top.denied:
                return gated_command.denied(one.gate, one.top, one.request)
            if run.prepare(spec, loop.turn):
                run.go()
                one.begin_capture(self.warn)
                command_of = None if one.captures is None else one.captures.command_of
                world.begin_network(one.recorder.span, command_of)
                if self.serves:
                    self._serve(loop, isolation)
            else:
                run.wait_for_end()
            world.watch_disk()
            while not run.over:
                loop.turn()
                if self.daemon is not None:
                    self.daemon.look()
            if self.daemon is not None:
                self.daemon.end_beside()
            return run.ended()
        except StartFailed as failed:
            raise self._start_failed(failed) from None
        finally:
            if self.terminal is not None:
                self.terminal.restore()

    def _ask_first(self) -> None:
        """Where the command itself is to be asked for, before its start is written."""
        session, one = self.session, self.one
        gated_command.may_ask(
            *(one.gate, session, one.recorder.span, lambda: one.streams),
            terminal=not one.request.ci,
        )
        one.top = gated_command.ask(
            one.gate,
            one.top,
            one.request,
            one.recorder.span,
            one.cwd,
            one.environ,
            watch=self.arriving.fileno(),
            gone=lambda: self.arriving.ends_within(0),
        )

    def _make_room(self) -> None:
        """For commands that come into its world."""
        from substrate.session.captures import Captures
        from substrate.session.sharing import now_ns
        from substrate.telemetry.capture.written import WrittenPaths

        if self.one.choice.level != "off":
            self.one.captures = Captures(self.session.number)
        self.one.written = WrittenPaths()
        self.one.begun_ns = now_ns()

    def _serve(self, loop: Loop, isolation: Isolation) -> None:
        """Opens the doors of the session, while the command starts."""
        from substrate.session.daemon import Daemon

        self.daemon = Daemon(
            *(self.request, self.settings, self.zygote, self.arriving, self.session), beside=True
        )
        self.daemon.open_beside(self.world, self.one, isolation)
        loop.add(self.daemon)

    def _start_failed(self, failed: StartFailed) -> HostUnsupported:
        """Closes the command's span, and forgets that the backend is known to work."""
        from substrate.session import probe
        from substrate.session.command_run import Ended
        from substrate.session.diagnosis import explain

        probe.forget_backend(self.session.home)
        ended = Ended(
            status=None,
            failed=(failed.step, failed.errno, failed.text),
            ended_by="start_failed",
            duration_us=0,
            usage=(),
            background_ended=(),
            quiet=True,
        )
        self.session.writer.append([self.one.end_event(ended, None)])
        return explain(failed)

    # --- afterwards

    def finish(self, ended: Ended) -> Outcome:
        """Ends the world, freezes and diffs the layer, writes the end and syncs it."""
        from substrate.session.finishing import finish

        session, world, one = self.session, self.world, self.one
        found = finish(session, world, one, ended, self._wait_gone, self.warn)
        found.rest()
        session.writer.close()
        if one.capture is not None and one.capture.dropped and self.warn is not None:
            count = one.capture.dropped
            self.warn(f"substrate: {count} events of the record were lost: the disk was full")
        return Outcome(
            exit_status=exit_status(ended),
            ended=ended,
            session_id=session.files.session_id,
            span_id=one.recorder.span,
            world=None if session.world.backend == "none" else session.world.name,
            continued=session.continued,
            changes=found.changes,
            layer=world.layer if found.changes and found.kept else None,
            notes=(*session.notes, *world.notes),
            denials=found.denials,
        )

    def _wait_gone(self) -> None:
        """Waits until nothing of the world is left; the zygote has no more to do then."""
        if not self.gone:
            self.world.wait_ended()
            self.gone = True
            self.zygote.dismiss()

    def release(self) -> None:
        """Ends whatever is still there; called on every way out."""
        if self.daemon is not None:
            self.daemon.close_beside()
        if self.one.capture is not None:
            self.one.capture.close()
        if self.one.gating is not None:
            self.one.gating.close()
        self.world.release()
        self.session.close()
        self.session.abandon(self._wait_abandoned)
        self.arriving.close()

    def _wait_abandoned(self) -> None:
        if self.world.started is not None:
            self._wait_gone()


def host_terminal(settings: Settings, closed_fds: frozenset[int]) -> HostTerminal | None:
    """Our terminal, where a command is to have one of its own. Raises UsageError."""
    if settings.pty == "never":
        return None
    on_terminal = all(fd not in closed_fds and os.isatty(fd) for fd in (0, 1))
    if on_terminal:
        from substrate.session.terminal import HostTerminal, is_foreground

        if is_foreground(0):
            return HostTerminal(0)
    if settings.pty == "always":
        raise UsageError(
            "--pty needs a terminal on standard input and output",
            hint="leave --pty out, or run it from a terminal",
        )
    return None
