"""The one-shot supervisor: one command in the current world of the directory.

It owns the world, the trace and the streams for the time of one command (shell.md §2). Order:
fork the zygote, find or make the session (its lock is held from here on), cut a new layer,
start the world, write `command_start`, let the command go, move its bytes, freeze and diff
the layer, write `command_end`, sync, and only then hand its status back. Invariant: whatever
fails on the way, the world is ended, the terminal restored and the trace left whole.
"""

from __future__ import annotations

import errno
import os
import time

from substrate.errors import HostUnsupported, SessionBusy, UsageError
from substrate.session import capturing, layer_place, opening, running, store, world_setup
from substrate.session import home as homes
from substrate.session.covers import covers_of
from substrate.session.scaffolding import command_in, note_of
from substrate.session.settings_table import DEFAULT_REQUIRE
from substrate.session.signals import RecordInterrupted, SignalPipe
from substrate.session.stack_file import load_stack_file, with_stack_file
from substrate.session.workspace import current_directory, find_workspace
from substrate.session.world_file import save_world
from substrate.values import replace, value
from substrate.world import cgroup, cgroup_plan, layers, limits
from substrate.world.handle import StartFailed, Zygote
from substrate.world.spec import CommandSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from substrate.session.capturing import Capturing
    from substrate.session.command_run import Ended
    from substrate.session.denials import Denial
    from substrate.session.disk_watch import DiskWatch
    from substrate.session.egressing import Egressing
    from substrate.session.opening import Claimed, Opened
    from substrate.session.record import Recorder
    from substrate.session.reported import Joined, Taken
    from substrate.session.request import RunRequest
    from substrate.session.settings import Settings
    from substrate.session.terminal import HostTerminal
    from substrate.session.world_file import WorldFile
    from substrate.telemetry.trace.envelope import Event
    from substrate.telemetry.trace.events.command import DiffCounts, Scope
    from substrate.telemetry.trace.events.session import Isolation
    from substrate.world.change import Change
    from substrate.world.egress.ports import Ports
    from substrate.world.handle import World
    from substrate.world.layers import LayerStack

_WORLD_NUMBER = 1
#: between two looks at a world that is in use
_PAUSE_S = 0.05


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
        self.closed_fds = closed_fds
        self.cwd = current_directory()
        self.arriving = SignalPipe()
        self.terminal = self._host_terminal()
        self.notes: tuple[str, ...] = ()
        self.claimed: Claimed | None = None
        self.opened: Opened | None = None
        self.groups: cgroup.CgroupSet | None = None
        self.started: World | None = None
        self.capture: Capturing | None = None
        self.network: Egressing | None = None
        self.layer: int | None = None
        #: what leads out of a filtered network that has no packet filter
        self.listened: Ports | None = None
        self.continued = False
        #: what hooks reported, until it is on the record
        self.reports: Taken | None = None
        self.recorded = False  # something of this command stands in the trace
        self.ended = False  # every process of the world is dead
        self.gone = False  # and the zygote, too, has no more to do

    # --- the session, its world and a layer

    def open(self) -> None:
        """Finds or makes the session and takes its lock; cuts a new layer."""
        self.home = homes.open_home(homes.default_path(os.environb))
        self.workspace = find_workspace(self.cwd)
        self.host = world_setup.look_at_host()
        if os.path.lexists(self.home.path + b"/changing"):
            self._finish_changes()
        self._claim()
        assert self.claimed is not None
        if self.claimed.world is not None and self._is_unfinished():
            self._finish_first(self.claimed)
        if self.claimed.world is not None:
            self._adopt(self.claimed.world)
        else:
            self._describe(self._backend())
        self._prepare()
        self.unsettled = bool(self.stack_file.unrecorded)
        stack = with_stack_file(self.world.bare_stack(self.files), self.files, self.stack_file)
        self.stack, self.left = opening.left_layers(stack)
        #: what the layers that were left are compared with, also when this run sees less
        self.pending = self.stack
        if self.say is not None and self.stack.layers:
            count = len(self.stack.layers)
            commands = "1 command" if count == 1 else f"{count} commands"
            self.say(f"substrate: continuing world {self.world.name}: {commands} pending")
        if self.request.throw_away:
            self._go_back()
        if self.stack.mounts:
            self._cut()

    def _adopt(self, world: WorldFile) -> None:
        wanted = "none" if self.settings.world == "disabled" else self.settings.backend
        if wanted not in ("auto", world.backend):
            raise UsageError(
                f"world {world.name} has backend {world.backend}, not {wanted}",
                hint="add --fresh for a new world",
            )
        if world.layers_at and not layer_place.is_there(world.layers_at):
            from substrate.session.lost_layers import place_again

            world = place_again(self.home, self.files, self.host.mounts, world)
        self.world = world

    def _claim(self) -> None:
        until = time.monotonic() + self.settings.wait_s
        while True:
            try:
                self.claimed = opening.claim_for_run(
                    self.home,
                    self.workspace,
                    self.request.world,
                    fresh=self.request.fresh,
                    pause=self.arriving.ends_within,
                )
                break
            except SessionBusy:
                if time.monotonic() >= until or self.arriving.ends_within(_PAUSE_S):
                    raise
        self.continued = self.claimed.world is not None
        self.files = self.claimed.files
        self.stack_file = load_stack_file(self.files)

    def _finish_changes(self) -> None:
        """A command sees the host as it was before an apply that was killed, or after it, of
        whatever world that was."""
        from substrate.session.pending import finish_all

        self.notes = finish_all(self.home)

    def _is_unfinished(self) -> bool:
        """Whether an apply was cut short, or the end of the world."""
        found = self.stack_file
        return (
            found.intended is not None
            or found.ending != ""
            or os.path.lexists(self.files.world_path + b"/apply.journal")
        )

    def _finish_first(self, claimed: Claimed) -> None:
        """Where the world is over by that, the command gets a new one."""
        from substrate.session.pending import finish

        self.claimed = None
        claimed.lock.drop()
        os.close(claimed.files.fd)
        finish(self.home, claimed.files.session_id)
        self._claim()

    def _backend(self) -> str:
        if self.settings.world == "disabled":
            return "none"
        if self.settings.backend != "auto":
            return self.settings.backend
        from substrate.session import probe

        return probe.choose_backend(self.home, self.zygote)

    def _describe(self, backend: str) -> None:
        name = store.name_world(self.home, self.files.session_id)
        self.world, notes = world_setup.describe_world(
            self.host,
            self.home,
            self.settings,
            backend,
            name,
            self.workspace,
            self.files.session_id,
        )
        self.notes = (*self.notes, *notes)
        save_world(self.files, self.world)

    def _prepare(self) -> None:
        """Has the zygote begin with the world, while we find out what its files are."""
        self.limit_plan = limit_plan = self._limit_plan()
        cgroup.sweep(limit_plan)
        group_name = cgroup.group_name(_WORLD_NUMBER)
        self.zygote.announce_groups(cgroup.directories(limit_plan, group_name))
        self.groups = cgroup.create(limit_plan, group_name, nested=self.settings.userns)
        self.choice = capturing.choose(
            self.home,
            self.settings,
            in_world=self.world.backend != "none",
            terminal=self.terminal is not None,
            answered=self.world.backend == "guard",
        )
        self.frame = world_setup.frame_of(
            self.world,
            self.settings,
            self.groups,
            terminal=self.terminal is not None,
            observed=self.choice.observed,
        )
        self.zygote.prepare(self.frame)
        filtered = self.frame.net == "filtered" and self.frame.backend != "none"
        if filtered and (self.settings.net_allow or self.settings.host_ports):
            self.zygote.load_network()
        elif self._is_routed():
            self.zygote.load_network("veth")

    def _is_routed(self) -> bool:
        return self.frame.net == "veth" and self.frame.backend != "none"

    def _cut(self) -> None:
        if len(self.stack.layers) >= layers.MAX_LOWERS and not self.left:
            self._make_shallow()
        self.stack, layer = layers.create_layer(self.stack, throw_away=self.request.throw_away)
        self.layer = layer.number

    def _go_back(self) -> None:
        """For a look at an earlier state: the stack ends there, for this command."""
        from substrate.session.history import load_history
        from substrate.session.undo import layers_at

        numbers = layers_at(
            self.stack.numbers, self.stack_file, load_history(self.files), self.request.at
        )
        self.stack = replace(
            self.stack,
            known=max(self.stack.known, *self.stack.numbers, 0),
            layers=tuple(layers.Layer(number=n) for n in numbers),
        )

    def _make_shallow(self) -> None:
        if (
            self.request.throw_away
            or len(self.stack.sources(self.stack.numbers)) <= layers.MAX_LOWERS
        ):
            return
        from substrate.session.squashing import make_shallow

        self.stack, self.stack_file, note = make_shallow(self.files, self.stack, self.stack_file)
        if note:
            self.notes = (*self.notes, note)

    # --- the world

    def start(self) -> None:
        """Asks the zygote for the world; it starts while we open the trace."""
        assert self.groups is not None
        ready = world_setup.make_ready(self.world, self.files, self.home, self.stack, self.host)
        self.notes = (*self.notes, *ready.notes)
        self.covers = covers_of(
            self.world, self.home, self.settings, self.host, self.request, ready.bound
        )
        spec = world_setup.spec_of(
            self.world,
            self.files,
            self.stack,
            self.settings,
            self.host,
            self.covers,
            self.groups,
            ready,
            self.frame,
        )
        world_setup.refuse_hidden_cwd(self.cwd, spec)
        if self.world.backend == "guard":
            self._copy_workspace()
        shown = (f"{os.fsdecode(path)} was shown on request" for path in self.settings.show)
        self.notes = (*self.notes, *shown)
        self.held = limits.enforcement(
            self.settings.limits, self.limit_plan.versions(), dict(self.limit_plan.missing)
        )
        still_running = running.hold(self.files)
        try:
            self.started = self.zygote.start(spec, still_running)
        finally:
            os.close(still_running)

    def _copy_workspace(self) -> None:
        from substrate.session import guarding

        below = tuple(n for n in self.stack.numbers if n != self.layer)
        self.notes = (
            *self.notes,
            *guarding.prepare(self.files, self.stack, below, self.covers),
        )
        self.cwd = guarding.inside(self.files, self.stack, self.cwd)

    def _limit_plan(self) -> cgroup_plan.Plan:
        with open("/proc/self/cgroup", "rb") as file:
            own = file.read()
        with open("/proc/self/mountinfo", "rb") as file:
            mounts = file.read()
        return cgroup_plan.choose(self.settings.limits, self_cgroup=own, mountinfo=mounts)

    # --- the command

    def command(self) -> Ended:
        """Writes its start, runs it, moves its bytes until it is over."""
        # while the zygote starts the world
        from substrate.session.command_run import CommandRun
        from substrate.session.record import Recorder, isolation_of
        from substrate.session.streams import Streams
        from substrate.telemetry.trace.digests import Digester

        assert self.claimed is not None
        assert self.started is not None
        settings = self.settings
        self.opened = opening.open_trace(self.home, self.claimed, durability=settings.durability)
        self.recorder: Recorder = Recorder(self.opened.writer, settings)
        self.digester = Digester(self.opened.key)
        self.streams = Streams(
            settings.record_max_bytes,
            self.digester.stream,
            world_setup.stdio_owner(self.world),
            terminal=self.terminal is not None,
            closed=self.closed_fds,
        )
        if self.choice.level != "off":
            self.capture = capturing.Capturing(self.choice, settings, self.home, self.frame)
        if self.frame.net in ("filtered", "veth") and self.frame.backend != "none":
            self.network = self._network()
        run = CommandRun(
            *(self.started, self.streams, self.arriving, self.terminal, self.capture, self.network)
        )
        spec, withheld = self._command_spec()
        if self.frame.net == "filtered" and self.frame.backend != "none":
            self.started.wait_network()  # it was made first of all; how, is on the record
            self._look_at_network()
        self.isolation: Isolation = isolation_of(
            *(self.world.backend, settings, self.held, self.covers), listened=self.listened
        )
        self._refuse_missing(self.isolation)
        try:
            self.opened.writer.append(self._first_events(spec, withheld))
            self.recorded = True
            for number in self.left:
                layers.freeze_layer(self.stack, number)
            self.started.wait_ready()
            if self.network is not None and self._is_routed():
                self.network.connect()
            if not self.continued:
                store.set_current(self.home, self.workspace, self.files.session_id)
            if self.reports is not None:
                self.reports.forget()
            if run.prepare(spec):
                run.go()
                self._begin_capture()
                if self.network is not None:
                    seq = self.opened.writer.position.seq
                    self.network.begin(
                        self.opened.writer,
                        self.recorder.span,
                        seq,
                        self.files.fd,
                        self.digester.digest_bytes,
                    )
            return run.wait(
                timeout_s=settings.timeout_s,
                background_s=settings.background_s,
                disk=self._disk_watch(),
            )
        except StartFailed as failed:
            raise self._start_failed(failed) from None
        finally:
            if self.terminal is not None:
                self.terminal.restore()

    def _begin_capture(self) -> None:
        if self.capture is None:
            return
        assert self.opened is not None
        writer, taken = self.opened.writer, 0

        def number() -> int:
            """Unique in the session without a count of it: each process has a line of its own, so
            there are fewer than lines."""
            nonlocal taken
            taken += 1
            return first + taken

        first = writer.position.seq
        span = self.recorder.span
        self.capture.begin(
            *(writer, span, self.cwd, number, self.digester, self.files.fd, self.warn),
            has_input=0 not in self.closed_fds,
        )

    def _look_at_network(self) -> None:
        """A network without packet filter leads out less than the rules say: a note, where the world
        is new, or where rules are not served."""
        from substrate.session import net_rules

        assert self.started is not None
        if not net_rules.is_by_listeners(self.started.network):
            return
        ports = net_rules.listened(net_rules.engine_rules(self.settings))
        self.listened = ports
        if not self.continued or ports.cut:
            self.notes = (*self.notes, net_rules.note_of(ports))

    def _network(self) -> Egressing:
        from substrate.session import egressing
        from substrate.session.net_rules import engine_rules

        assert self.started is not None
        rules = engine_rules(self.settings)
        guard = self.world.backend == "guard"
        return egressing.Egressing(self.zygote, self.started, rules, self.capture, told_pids=guard)

    def _start_failed(self, failed: StartFailed) -> HostUnsupported:
        """Closes the command's span, and forgets that the backend is known to work."""
        from substrate.session import probe
        from substrate.session.command_run import Ended
        from substrate.session.diagnosis import explain

        assert self.opened is not None
        probe.forget_backend(self.home)
        ended = Ended(
            status=None,
            failed=(failed.step, failed.errno, failed.text),
            ended_by="start_failed",
            duration_us=0,
            usage=(),
            background_ended=(),
            quiet=True,
        )
        self.opened.writer.append([self.recorder.command_end(ended, self.streams, None)])
        return explain(failed)

    def _disk_watch(self) -> DiskWatch | None:
        limit = self.settings.limits.disk_bytes
        if limit is None or self.layer is None:
            return None
        from substrate.session.disk_watch import DiskWatch

        number = self.layer
        if self.world.backend == "guard":
            from substrate.session import guarding

            return DiskWatch([guarding.root(self.files)], limit)
        return DiskWatch([self.stack.upper(number, m.index) for m in self.stack.mounts], limit)

    def _refuse_missing(self, isolation: Isolation) -> None:
        """Nothing runs in less isolation than is required (world.md §1).

        What the user himself takes away (--net host, --no-world) goes against a requirement
        only where one was made: the default list is for what the host fails to give."""
        settings = self.settings
        if self.world.backend == "none" and settings.require == DEFAULT_REQUIRE:
            return
        for name in settings.require:
            if name == "nf_tables":
                guarded = self.world.backend == "guard" and settings.net == "filtered"
                if self.listened is not None or guarded:
                    from substrate.session.diagnosis import without_filter

                    raise without_filter()
                continue
            if (name, self.world.backend, settings.require) == ("pid", "guard", DEFAULT_REQUIRE):
                continue  # a note says so (guarding.py); who must have it names it
            if name == "net" and settings.net == "host" and settings.require == DEFAULT_REQUIRE:
                continue
            if name == "limits":
                missing = next((h.why or h.by for h in self.held if h.soft), None)
            else:
                layer = isolation.layers[name]
                missing = None if layer.on else layer.why or "it is not there"
            if missing is not None:
                raise HostUnsupported(
                    f"{name} is required and would be missing: {missing}",
                    hint="take it out of `require`, or run where it can be had "
                    "(`substrate doctor`)",
                )

    def _first_events(self, spec: CommandSpec, withheld: tuple[bytes, ...]) -> list[Event]:
        recorder = self.recorder
        events = []
        if not self.continued:
            events.append(recorder.session_start(self.isolation, self.choice))
        below = max(0, len(self.stack.layers) - 1)
        if self.stack_file.unrecorded:
            from substrate.session import restack

            assert self.opened is not None
            tell = restack.settle if self.unsettled else restack.tell
            self.stack_file = tell(self.files, self.opened.writer)
        events.append(recorder.world_start(self.world, below, self.notes, continued=self.continued))
        for number in self.left:
            events += self._diff_events(self.pending, number, span=False)[0]
        joined = self._take_reports(events)
        events.append(
            recorder.command_start(
                spec, self.request.cmd_text, self.layer, withheld, self.isolation, joined
            )
        )
        return events

    def _take_reports(self, events: list[Event]) -> Joined | None:
        """Takes in what hooks reported for this directory; returns the call that the command is of."""
        told = os.environb.get(b"SUBSTRATE_TOOL_USE_ID", b"")
        path = self.home.path + b"/reported"
        if not told and not os.path.lexists(path):
            return None
        from substrate.session import reported

        self.reports = reported.take(self.home, self.workspace)
        if self.reports is None:
            return reported.joined_by_id(told)
        assert self.opened is not None
        joined = self.reports.join(self._plain_text(), told)
        blobs, now_us = self.opened.writer.blobs, time.time_ns() // 1000
        events += self.reports.events(blobs, self.recorder.span, now_us)
        return joined

    def _plain_text(self) -> bytes:
        """The text of `-c`, without what an agent puts around it."""
        return b"" if self.request.cmd_text is None else command_in(self.request.cmd_text)

    def _command_spec(self) -> tuple[CommandSpec, tuple[bytes, ...]]:
        from substrate.world import environment

        settings = self.settings
        selected = environment.select(
            os.environb,
            also=settings.env_pass,
            drop=settings.env_drop,
            set_to=self._own_variables(),
            host_network=settings.net == "host",
        )
        if self.world.backend == "none":
            passed = tuple(sorted({**os.environb, **self._own_variables()}.items()))
            withheld: tuple[bytes, ...] = ()
        else:
            passed, withheld = selected.passed, selected.withheld
        self.withheld = withheld
        umask = os.umask(0o077)
        os.umask(umask)
        return CommandSpec(
            file=self.request.file,
            argv=self.request.argv,
            environ=passed,
            cwd=self.cwd,
            umask=umask,
            rlimits=limits.rlimits(settings.limits, self.held),
            terminal=None if self.terminal is None else self.terminal.size(),
            stdio=self.streams.stdio,
            ignored_signals=self.arriving.ignored,
            notify=b"" if self.capture is None else self.capture.programs.notify,
            trace=b"" if self.capture is None else self.capture.programs.trace,
            open_to_tracer=self.capture is not None and self.capture.needs_open,
        ), withheld

    def _own_variables(self) -> dict[bytes, bytes]:
        own: dict[bytes, bytes] = {}
        if self.world.backend == "guard":
            from substrate.session import guarding

            own = guarding.variables(self.files, self.cwd, network=self.frame.net == "filtered")
        return {
            **own,
            **dict(self.settings.env_set),
            b"SUBSTRATE_SESSION": self.files.session_id.encode(),
            b"SUBSTRATE_PARENT_SPAN": self.recorder.span.encode(),
        }

    # --- afterwards

    def finish(self, ended: Ended) -> Outcome:
        """Ends the world, freezes and diffs the layer, writes the end and syncs it."""
        assert self.opened is not None
        assert self.started is not None
        denied = self._denials(ended)  # before the control groups go
        writer = self.opened.writer
        summary: dict[str, Any] = {}
        if self.capture is not None:
            if not ended.quiet and not self.capture.can_kill:
                self.started.close()
            captured, summary = self.capture.end(over=ended.quiet, moved=self.streams.stdin)
            if captured:
                writer.append(captured)
        self.started.close()
        scopes: tuple[Scope, ...] = ()
        if self._is_routed():  # then nothing of it sends any more
            self._wait_ended()
        if self.network is not None:  # before the zygote goes, and takes along who serves it
            scopes, refused = self.network.end(lambda: self.arriving.ends_within(0))
            summary = self.network.by_name(summary)
            denied = (*refused, *denied)
        if not ended.quiet:
            self._wait_gone()  # until then its processes may write
        if self.world.backend == "guard" and self.layer is not None:
            from substrate.session import guarding

            self._wait_gone()
            for dropped in guarding.harvest(self.files, self.stack, self.layer):
                if self.warn is not None:
                    self.warn(f"substrate: {dropped}")
        events: list[Event] = []
        changes: list[Change] = []
        counts: DiffCounts | None = None
        empty = self.layer is None or self._is_empty(self.layer)
        kept = not empty and not self.request.throw_away
        if self.layer is not None and kept:
            if self.settings.layer_sync:
                layers.sync_layers(self.stack)
            try:
                events, changes, counts = self._diff_events(self.stack, self.layer, span=True)
            except RecordInterrupted:
                # the layer is as a killed supervisor leaves it
                writer.append([self.recorder.command_end(ended, self.streams, None, denied)])
                self._wait_gone()
                raise
        elif self.layer is not None and not empty:
            events, changes = self._thrown_away(self.layer)
        if self.layer is not None and kept:
            events += self._pass_through(self.layer)
        events.append(
            self.recorder.command_end(ended, self.streams, counts, denied, summary, scopes)
        )
        writer.append(events)
        self._wait_gone()
        if self.layer is not None:
            if not kept:
                self.stack = layers.remove_layer(self.stack, self.layer)
            else:
                # not before its record: an unfrozen layer tells the next run to record it
                layers.freeze_layer(self.stack, self.layer)
        writer.close()
        if self.capture is not None and self.capture.dropped and self.warn is not None:
            count = self.capture.dropped
            self.warn(f"substrate: {count} events of the record were lost: the disk was full")
        return Outcome(
            exit_status=exit_status(ended),
            ended=ended,
            session_id=self.files.session_id,
            span_id=self.recorder.span,
            world=None if self.world.backend == "none" else self.world.name,
            continued=self.continued,
            changes=tuple(changes),
            layer=self.layer if changes and kept else None,
            notes=self.notes,
            denials=denied,
        )

    def _denials(self, ended: Ended) -> tuple[Denial, ...]:
        """What the world denied a command that failed or had something to complain about."""
        if exit_status(ended) == 0 and not self.streams.stderr.size:
            return ()
        from substrate.session.denied import look

        assert self.started is not None
        return look(
            ended,
            exit_status(ended),
            self.streams,
            self.started.spec,
            self.settings,
            self.host,
            self.cwd,
            self.home.path,
            self.withheld,
            self.groups,
        )

    def _wait_gone(self) -> None:
        """Waits until nothing of the world is left; the zygote has no more to do then."""
        if not self.gone:
            self._wait_ended()
            self.gone = True
            self.zygote.dismiss()

    def _wait_ended(self) -> None:
        """Waits until every process of the world is dead."""
        if not self.ended:
            self.zygote.wait_gone(_WORLD_NUMBER)
            self.ended = True

    def _is_empty(self, number: int) -> bool:
        """Whether nothing was changed in the layer."""
        return layers.layer_is_empty(self.stack, number)

    def _diff_events(
        self, stack: LayerStack, number: int, *, span: bool
    ) -> tuple[list[Event], list[Change], DiffCounts]:
        """What a layer changed that no process writes to any more, as events."""
        from substrate.session.layer_record import layer_events

        self.arriving.recording(True)
        try:
            return layer_events(self.recorder, self.digester, stack, number, span=span)
        finally:
            self.arriving.recording(False)

    def _pass_through(self, number: int) -> list[Event]:
        patterns = (*self.settings.pass_through, *note_of(self.request.cmd_text))
        if not patterns:
            return []
        from substrate.session.pass_through import pass_through
        from substrate.telemetry.trace.events.changes import KINDS, FsApply

        passed = pass_through(self.stack, number, patterns)
        for path, why in passed.refused:
            self.notes = (*self.notes, f"{os.fsdecode(path)} did not pass: {why}")
        if not passed.copied:
            return []
        event = FsApply(
            layers=(number,),
            target=os.path.dirname(passed.copied[0]),
            counts={kind: len(passed.copied) if kind == "added" else 0 for kind in KINDS},
            conflicts=(),
            reverse_layer=None,
            outcome="passed_through",
            paths=passed.copied,
        )
        return [event.event("world", span_id=self.recorder.span)]

    def _thrown_away(self, number: int) -> tuple[list[Event], list[Change]]:
        from substrate.telemetry.trace.events.changes import FsDiscard
        from substrate.values import as_dict
        from substrate.world.change import summary
        from substrate.world.diff import diff_layer

        changes = diff_layer(self.stack, number)
        event = FsDiscard(layers=(number,), counts=as_dict(summary(changes)))
        return [event.event("world", span_id=self.recorder.span)], changes

    def release(self) -> None:
        """Ends whatever is still there; called on every way out."""
        if self.reports is not None:
            self.reports.close()
        if self.capture is not None:
            self.capture.close()
        if self.network is not None:
            self.network.close()
        if self.started is not None:
            self.started.close()
        elif self.groups is not None:
            self.groups.remove()
        if self.opened is not None:
            self.opened.writer.close()
        elif self.claimed is not None:
            self.claimed.lock.drop()
        if self.claimed is not None and self.claimed.world is None and not self.recorded:
            self._abandon(self.claimed)
        self.arriving.close()

    def _abandon(self, claimed: Claimed) -> None:
        if self.started is not None:
            self._wait_gone()
        opening.abandon(self.home, claimed.files.session_id)

    def _host_terminal(self) -> HostTerminal | None:
        if self.settings.pty == "never":
            return None
        on_terminal = all(fd not in self.closed_fds and os.isatty(fd) for fd in (0, 1))
        if on_terminal:
            from substrate.session.terminal import HostTerminal, is_foreground

            if is_foreground(0):
                return HostTerminal(0)
        if self.settings.pty == "always":
            raise UsageError(
                "--pty needs a terminal on standard input and output",
                hint="leave --pty out, or run it from a terminal",
            )
        return None


def exit_status(ended: Ended) -> int:
    """The status to hand back (shell.md §1)."""
    if ended.ended_by in ("timeout", "limit"):
        return 124
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
