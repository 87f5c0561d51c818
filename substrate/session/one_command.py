"""One command of a session: what it is, how it is captured, where its bytes go, what the trace is told.

Not its world (live_world.py), nor its handshake and its signals (command_run.py), which it is given. Its settings may be narrower than its
world's. Steps, in their order: `choose` (how it is captured, before its world is begun with), `begin` (streams,
capture, what it is run with), `write_start`, `run`, `begin_capture`; when it is over `denials` and `end_event`.
Invariant: what is told of a command stands between its `command_start` and its `command_end`, but for what it leaves in
the background. Spec: shell.md §1, trace.md §4.
"""

from __future__ import annotations

import errno
import os
import time

from substrate.policy.rules import LimitRules
from substrate.session import capture_choice, capturing, gated_command, world_setup
from substrate.session.scaffolding import command_in
from substrate.session.scopes import scopes_of
from substrate.values import replace
from substrate.world import limits
from substrate.world.spec import CommandSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from substrate.session.captures import Captures
    from substrate.session.capturing import Capturing
    from substrate.session.casting import Cast
    from substrate.session.command_run import CommandRun, Ended
    from substrate.session.denials import Denial
    from substrate.session.gating import Gating
    from substrate.session.gating_top import Top
    from substrate.session.live_session import LiveSession
    from substrate.session.live_world import LiveWorld
    from substrate.session.record import Recorder
    from substrate.session.request import RunRequest
    from substrate.session.scopes import Scopes
    from substrate.session.settings import Settings
    from substrate.session.streams import Streams
    from substrate.session.terminal import HostTerminal
    from substrate.telemetry.capture.written import WrittenPaths
    from substrate.telemetry.trace.envelope import Event
    from substrate.telemetry.trace.events.command import DiffCounts, Scope
    from substrate.telemetry.trace.events.session import Isolation


class OneCommand:
    """See the module. `closed`: which of its streams are closed; `environ`, `umask`, `ignored`: of whoever
    asked for it; `fds`: its caller's streams, as we have them; `sockets`, `foreground`: see Streams."""

    def __init__(
        self,
        request: RunRequest,
        settings: Settings,
        cwd: bytes,
        terminal: HostTerminal | None,
        closed: frozenset[int],
        *,
        environ: Mapping[bytes, bytes],
        umask: int,
        ignored: tuple[int, ...] = (),
        fds: tuple[int, int, int] = (0, 1, 2),
        sockets: frozenset[int] = frozenset(),
        foreground: Callable[[], bool] | None = None,
    ) -> None:
        self.request, self.settings, self.cwd = request, settings, cwd
        self.terminal, self.closed, self.fds = terminal, closed, fds
        self._sockets, self._foreground = sockets, foreground
        self.environ, self.umask, self.ignored = environ, umask, ignored
        self.capture: Capturing | None = None
        #: where others may be in its world: their captures, and what it wrote (sharing.py)
        self.given_streams: Streams | None = None  # in place of those that are moved
        self.captures: Captures | None = None
        self.written: WrittenPaths | None = None
        self.begun_ns = 0  # CLOCK_BOOTTIME
        self.has_begun = False  # it had its go
        self.is_gone = False  # all that capture will tell of it is told
        #: what hooks reported is taken with it, also if that is waited for (reported.py)
        self.takes_reports = self.waits_for_reports = True
        self.is_uncut = False  # no soft layer of it could be cut
        self.summary: dict[str, Any] = {}
        self.cast: Cast | None = None  # what is shown on its terminal, where that is recorded
        self.run: CommandRun
        self.recorder: Recorder
        self.gating: Gating | None = None  # None: it is not known what the policy is
        self.top: Top

    def choose(self, session: LiveSession, *, in_observed: bool = True) -> None:
        """How it is captured. `in_observed`: its world leaves to capture what is evidence, or may yet."""
        backend = session.world.backend
        self.choice = capture_choice.choose(
            session.home,
            self.settings,
            in_world=backend != "none",
            terminal=self.terminal is not None or not in_observed,
            answered=backend == "guard",
        )

    def load_policy(self, session: LiveSession) -> None:
        """Which policy holds. Raises ConfigError: what cannot be read runs nothing."""
        self.gating = gated_command.load(
            self.settings, self.cwd, session.workspace, session.standing
        )

    def scopes(self, session: LiveSession, *, walk: bool = True) -> Scopes:
        """What of a world's settings the policy leaves. Raises ConfigError, PolicyDenied."""
        in_world = session.world.backend != "none"
        return scopes_of(
            self.gate.broker, self.settings, session.workspace, in_world=in_world, walk=walk
        )

    def govern(self, session: LiveSession) -> None:
        """What the policy says of it."""
        assert self.gating is not None
        if self.gating.needed:
            self.choice = capture_choice.with_gate(session.home, self.choice)
        self.top = gated_command.decide(
            *(self.gate, self.request, self.cwd, self.choice),
            in_world=session.world.backend != "none",
        )
        if self.top.isolated:
            self.request = replace(self.request, throw_away=True)

    @property
    def gate(self) -> Gating:
        assert self.gating is not None
        return self.gating

    def begin(self, session: LiveSession, world: LiveWorld) -> None:
        """What it needs, before its world is ready."""
        from substrate.session.record import Recorder
        from substrate.session.streams import Streams

        self.session, self.world = session, world
        settings = self.settings
        self.recorder = Recorder(session.writer, settings)
        self.streams = self.given_streams or Streams(
            settings.record_max_bytes,
            session.digester.stream,
            world_setup.stdio_owner(session.world),
            terminal=self.terminal is not None,
            closed=self.closed,
            fds=self.fds,
            sockets=self._sockets,
            foreground=self._foreground,
        )
        if self.terminal is not None and settings.record_terminal_bytes:
            self._record_terminal(self.terminal, settings.record_terminal_bytes)
        self.extra = tuple(
            (number, self.streams.pass_on(os.dup(fd))) for number, fd in self.request.extra
        )
        if self.gating is not None and self.gating.most_execs is not None:
            self.gating.on_spent = self._end_spent
        if self.choice.level != "off":
            self.capture = capturing.Capturing(
                *(self.choice, settings, session.home, world.frame, self.gating)
            )

    def _record_terminal(self, terminal: HostTerminal, limit: int) -> None:
        from substrate.session.casting import Cast
        from substrate.telemetry.trace.redact import redact_text

        text = self.request.cmd_text or b" ".join(self.request.argv)
        title = redact_text(text.decode("utf-8", "replace"))[:200]
        self.cast = Cast(limit, terminal.size(), title)
        self.streams.stdout.shown = self.cast.show
        self.streams.resized = self.cast.resize

    def _tell_of_terminal(self) -> None:
        """What was shown is on the record, before its end."""
        cast, self.cast = self.cast, None
        if cast is None or not cast.size:
            return
        from substrate.session.casting import FORMAT, MEDIA_TYPE
        from substrate.telemetry.trace.events.command import TerminalRecording

        blob = self.session.writer.blobs.put(cast.render(), MEDIA_TYPE)
        told = TerminalRecording(
            format=FORMAT,
            columns=cast.columns,
            rows=cast.rows,
            size=cast.size,
            recorded=cast.complete,
            covered=cast.covered,
            blob=blob,
        )
        self.session.writer.append([told.event("shell", span_id=self.recorder.span)])

    def _end_spent(self) -> None:
        """It has run as many programs as the policy lets it."""
        from substrate.session.gating_budget import spent

        self.session.writer.append([spent(self.gate.broker.policy, self.recorder.span)])
        self.run.end("limit", time.monotonic())

    def make_spec(self) -> CommandSpec:
        """What it is run with, in its world."""
        from substrate.world import environment

        settings = self.settings
        selected = environment.select(
            self.environ,
            also=settings.env_pass,
            drop=settings.env_drop,
            set_to=self._own_variables(),
            host_network=settings.net == "host",
        )
        if self.world.frame.backend == "none":
            passed = tuple(sorted({**self.environ, **self._own_variables()}.items()))
            self.withheld: tuple[bytes, ...] = ()
        else:
            passed, self.withheld = selected.passed, selected.withheld
        self.gate.environ = passed
        self.spec = CommandSpec(
            file=self.request.file,
            argv=self.request.argv,
            environ=passed,
            cwd=self.cwd,
            umask=self.umask,
            rlimits=limits.rlimits(self.world.settings.limits, self.world.held),
            terminal=None if self.terminal is None else self.terminal.size(),
            stdio=self.streams.stdio,
            extra=self.extra,
            ignored_signals=self.ignored,
            notify=b"" if self.capture is None else self.capture.programs.notify,
            trace=b"" if self.capture is None else self.capture.programs.trace,
            open_to_tracer=self.capture is not None and self.capture.needs_open,
        )
        return self.spec

    def _own_variables(self) -> dict[bytes, bytes]:
        own: dict[bytes, bytes] = {}
        files, world = self.session.files, self.world
        if world.frame.backend == "guard":
            from substrate.session import guarding

            own = guarding.variables(files, self.cwd, network=world.frame.net == "filtered")
        path = self.environ.get(b"PATH")
        if path is not None and not world.has_door:
            from substrate.shim.original import without_shims

            shorter = without_shims(path)  # a shim would refuse for want of somebody to ask
            if shorter != path:
                own[b"PATH"] = shorter
        return {
            **own,
            **dict(self.settings.env_set),
            b"SUBSTRATE_SESSION": files.session_id.encode(),
            b"SUBSTRATE_PARENT_SPAN": self.recorder.span.encode(),
        }

    def write_start(
        self, isolation: Isolation, parent: str | None = None, before: Sequence[Event] = ()
    ) -> None:
        """Writes `before`, what hooks reported for its directory, and `command_start`. `parent`: the span
        that asked for it."""
        taken, told = None, self.environ.get(b"SUBSTRATE_TOOL_USE_ID", b"")
        joined, events = None, list(before)
        if told or os.path.lexists(self.session.home.path + b"/reported"):
            from substrate.session import reported

            if self.takes_reports:
                taken = reported.take(
                    self.session.home, self.session.workspace, waits=self.waits_for_reports
                )
            text = b"" if self.request.cmd_text is None else command_in(self.request.cmd_text)
            joined = reported.joined_by_id(told) if taken is None else taken.join(text, told)
        try:
            if taken is not None:
                events += taken.events(self.session.writer.blobs, self.recorder.span)
            events.append(
                self.recorder.command_start(
                    self.spec,
                    self.request.cmd_text,
                    self.world.layer,
                    self.withheld,
                    isolation,
                    self.top.decision(),
                    parent=parent,
                    joined=joined,
                )
            )
            self.session.writer.append(events)
            if taken is not None:
                taken.forget()
        finally:
            if taken is not None:
                taken.close()

    def begin_capture(self, warn: Callable[[str], None] | None = None) -> None:
        """Where what is captured goes. Called when it has its go."""
        self.has_begun = True
        if self.capture is None:
            self.is_gone = True
            return
        session, captures = self.session, self.captures
        span = self.recorder.span
        if captures is not None:
            captures.add(self.capture)
        self.capture.begin(
            session.writer,
            span,
            self.cwd,
            session.number if captures is None else captures.numbering(span),
            session.digester,
            session.files.fd,
            warn,
            has_input=0 not in self.closed,
            input_fd=self.fds[0],
            ports=None if captures is None else captures.ports,
            written=self.written,
            expected=None if captures is None else captures.take_expected,
        )

    # --- it is over

    def denials(self, ended: Ended, *, alone: bool = True) -> tuple[Denial, ...]:
        """What the world denied it, if it failed or had something to complain about. `alone`: what the
        world's control groups count is its own."""
        status = exit_status(ended)
        if status == 0 and not self.streams.stderr.size:
            return ()
        from substrate.session.denied import look

        return look(
            ended,
            status,
            self.streams,
            self.world.spec,
            self.settings,
            self.session.host,
            self.cwd,
            self.session.home.path,
            self.withheld,
            self.world.groups if alone else None,
            () if self.world.scopes is None else self.world.scopes.hidden,
        )

    def told(self, ended: Ended, denials: tuple[Denial, ...]) -> tuple[Denial, ...]:
        """What it was denied, for its user: what the gate says first, and limits by the policy's name."""
        found = (*self.gate.denials(), *denials)
        policy = self.gate.broker.policy
        locked = "" if self.world.scopes is None else self.world.scopes.locked
        if policy.limits == LimitRules() and not locked:
            return found
        from substrate.session.limit_lines import by_policy, without_flags

        found = without_flags(found, locked) if locked else found

        settings = replace(self.world.settings, timeout_s=self.settings.timeout_s)
        return by_policy(found, ended, policy, settings)

    def end_event(
        self,
        ended: Ended,
        diff: DiffCounts | None,
        denied: tuple[Denial, ...] = (),
        summary: dict[str, Any] | None = None,
        scopes: tuple[Scope, ...] = (),
    ) -> Event:
        self._tell_of_terminal()
        return self.recorder.command_end(ended, self.streams, diff, denied, summary, scopes)


def exit_status(ended: Ended) -> int:
    """The status to hand back (shell.md §1)."""
    if ended.ended_by in ("timeout", "limit"):
        return 124
    if ended.ended_by == "denied":
        return 126
    if ended.failed is not None:
        step, number, _ = ended.failed
        if step.startswith("exec "):
            return 127 if number == errno.ENOENT else 126
        return 125
    if ended.status is None:
        return 125
    if os.WIFSIGNALED(ended.status):
        return 128 + os.WTERMSIG(ended.status)
    return os.WEXITSTATUS(ended.status)
