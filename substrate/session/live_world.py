"""A world that lives: its frame and control groups, its processes, its network, its newest layer.

It begins with a new layer and ends quiet; one session has one after the other. The commands that run in it
are registered here, and told what its holder says (`_receive`): each of its own end, all of them of the
quiet moment. A part of the supervisor's loop (loop.py). Steps, in their order: `prepare` (the zygote
begins, files are not known yet), `start`, `begin_network`, then commands; `close` ends it, `wait_ended` waits until nothing
of it is left. Invariants: a layer is looked at only when every process is dead; nothing runs in less
isolation than is required. Spec: shell.md §2, world.md §1, §2, §4.
"""

from __future__ import annotations

import errno
import os
import time

from substrate.errors import HostUnsupported, UsageError
from substrate.session import running, standing_world, world_setup
from substrate.session.command_run import failure_of
from substrate.session.covers import covers_of
from substrate.session.settings_table import DEFAULT_REQUIRE
from substrate.values import replace
from substrate.world import cgroup, cgroup_plan, layers, limits, wire
from substrate.world.spec import NAMESPACED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from substrate.session.capture_choice import Choice
    from substrate.session.command_run import CommandRun
    from substrate.session.disk_watch import DiskWatch
    from substrate.session.egressing import Egressing, Owners
    from substrate.session.live_session import LiveSession
    from substrate.session.loop import Waiting
    from substrate.session.request import RunRequest
    from substrate.session.scopes import Scopes
    from substrate.session.standing_world import Seen
    from substrate.telemetry.trace.events.session import Isolation
    from substrate.world.egress.ports import Ports
    from substrate.world.handle import World
    from substrate.world.spec import WorldSpec


#: between two looks, where there is no descriptor left
_PAUSE_S = 0.1
_STEP_MS = 20


class LiveWorld:
    """See the module. `number`: of the worlds of this supervisor, from 1."""

    def __init__(self, session: LiveSession, number: int = 1, *, inside: bool = False) -> None:
        """`inside`: its processes can come to us by a door in it."""
        self.session, self.number, self._inside = session, number, inside
        self.settings = session.settings
        self.scopes: Scopes | None = None
        self.layer: int | None = None
        self.spec: WorldSpec
        self.groups: cgroup.CgroupSet | None = None
        self.started: World | None = None
        self.network: Egressing | None = None
        #: what leads out of a filtered network that has no packet filter
        self.listened: Ports | None = None
        self.notes: tuple[str, ...] = ()
        #: commands that are in it, or have left something in it
        self.runs: list[CommandRun] = []
        self.ended = False  # every process of it is dead, or that is waited for
        self.all_dead = False
        self.quiet = False  # no process but its holder is left
        self.dead = False
        #: its processes can ask the supervisor, at /run/substrate/inside
        self.has_door = False
        self._not_before = (
            0.0  # it says something, and there is no descriptor left for what it sends
        )
        self._disk: DiskWatch | None = None
        #: what it was started from, before its command has come
        self.seen: Seen | None = None

    # --- it begins

    def hold_to(self, scopes: Scopes) -> None:
        """What the policy leaves of its settings. Before anything is begun with."""
        self.scopes, self.settings = scopes, scopes.settings
        self.notes = scopes.notes

    def prepare(self, choice: Choice, *, terminal: bool) -> None:
        """Has the zygote begin with it, while we find out what its files are. `terminal`: its first
        command gets one."""
        session, settings = self.session, self.settings
        self.limit_plan = limit_plan = _limit_plan(settings.limits)
        cgroup.sweep(limit_plan)
        group_name = cgroup.group_name(self.number)
        session.zygote.announce_groups(cgroup.directories(limit_plan, group_name))
        self.groups = cgroup.create(limit_plan, group_name, nested=settings.userns)
        self.frame = world_setup.frame_of(
            session.world, settings, self.groups, terminal=terminal, observed=choice.observed
        )
        if self._inside and self.frame.backend in NAMESPACED:
            self.frame = replace(self.frame, inside=True)
            self.has_door = True
        session.zygote.prepare(self.frame)
        if self.is_filtered and ((settings.net_allow and self._is_eager) or settings.host_ports):
            session.zygote.load_network()
        elif self.is_routed:
            session.zygote.load_network("veth")

    @property
    def _is_eager(self) -> bool:
        """Whether somebody serves its network before a first packet comes."""
        return self.scopes is None or self.scopes.eager

    @property
    def is_filtered(self) -> bool:
        return self.frame.net == "filtered" and self.frame.backend != "none"

    @property
    def is_routed(self) -> bool:
        return self.frame.net == "veth" and self.frame.backend != "none"

    def start(self, request: RunRequest, cwd: bytes) -> bytes:
        """Asks the zygote for it; it starts while we open the trace. Returns where its first command begins:
        `cwd` as it is there."""
        session = self.session
        self.spec = self._plan(request)
        world_setup.refuse_hidden_cwd(cwd, self.spec)
        if session.world.backend == "guard":
            cwd = self._copy_workspace(cwd)
        self._launch()
        self._note_shown()
        return cwd

    def stand(self, request: RunRequest) -> None:
        """Asks the zygote for it before its first command has come: `take` then."""
        self.spec = self._plan(request)
        self.seen = standing_world.see(self.spec, self.session.host.mounts)
        self._launch()

    def take(self, request: RunRequest, cwd: bytes) -> bool:
        """Its first command has come: whether this is the world that would be started for it now. Raises
        what `start` does; then it waits on."""
        seen, before = self.seen, self.notes
        if seen is None:
            return False
        try:
            spec = self._plan(request)
        finally:
            self.notes = before
        if self.dead or not standing_world.fits(seen, spec, self.session.host.mounts):
            return False
        world_setup.refuse_hidden_cwd(cwd, spec)
        self.seen = None
        self._note_limits()
        self._note_shown()
        return True

    def _note_shown(self) -> None:
        if self._is_shell_only:
            self.notes = (*self.notes, _shell_only(self.session.world.workspace))
        shown = (f"{os.fsdecode(path)} was shown on request" for path in self.settings.show)
        self.notes = (*self.notes, *shown)

    @property
    def _is_shell_only(self) -> bool:
        return self.settings.shell_only and self.session.world.backend != "none"

    def _plan(self, request: RunRequest) -> WorldSpec:
        """What it is to be now. Raises SubstrateError, OSError."""
        assert self.groups is not None
        session, settings = self.session, self.settings
        if self._is_shell_only and session.world.workspace == b"/":
            raise UsageError(
                "--shell-only: the workspace is /, so nothing would be copy-on-write",
                hint="change to the directory that you work in",
            )
        ready = world_setup.make_ready(
            session.world, session.files, session.home, session.stack, session.host
        )
        self.notes = (*self.notes, *ready.notes)
        self.covers = covers_of(
            *(session.world, session.home, settings, session.host, request, ready.bound),
            session.hidden_again,
        )
        spec = world_setup.spec_of(
            session.world,
            session.files,
            session.stack,
            settings,
            session.host,
            self.covers,
            self.groups,
            ready,
            self.frame,
        )
        return spec if spec.number == self.number else replace(spec, number=self.number)

    def _launch(self) -> None:
        session = self.session
        self._note_limits()
        still_running = running.hold(session.files)
        try:
            self.started = session.zygote.start(self.spec, still_running)
        finally:
            os.close(still_running)

    def _note_limits(self) -> None:
        """How each limit is enforced."""
        self.held = limits.enforcement(
            self.settings.limits, self.limit_plan.versions(), dict(self.limit_plan.missing)
        )

    def _copy_workspace(self, cwd: bytes) -> bytes:
        from substrate.session import guarding

        session = self.session
        below = tuple(n for n in session.stack.numbers if n != self.layer)
        self.notes = (
            *self.notes,
            *guarding.prepare(session.files, session.stack, below, self.covers),
        )
        return guarding.inside(session.files, session.stack, cwd)

    @property
    def world(self) -> World:
        assert self.started is not None
        return self.started

    def close_door(self) -> None:
        """Its processes are told at once that nobody can be asked."""
        fd = self.world.take_inside()
        if fd >= 0:
            os.close(fd)

    # --- its network

    def make_network(self, owners: Owners | None) -> None:
        """What watches its network, if it has one of its own. `owners`: who knows whose a port is."""
        if self.frame.net not in ("filtered", "veth") or self.frame.backend == "none":
            return
        from substrate.session import egressing
        from substrate.session.net_rules import engine_rules

        self.network = egressing.Egressing(
            self.session.zygote,
            self.world,
            engine_rules(self.settings),
            owners,
            told_pids=self.frame.backend == "guard",
            eager=self._is_eager,
            locked="" if self.scopes is None else self.scopes.locked,
        )

    def wait_network(self) -> None:
        """Waits until a filtered network is there: it is made first of all; how, is on the record.

        A network without packet filter leads out less than the rules say: a note, where the session
        is new, or where rules are not served."""
        if not self.is_filtered:
            return
        from substrate.session import net_rules

        self.world.wait_network()
        if not net_rules.is_by_listeners(self.world.network):
            return
        ports = net_rules.listened(net_rules.engine_rules(self.settings))
        self.listened = ports
        if not self.session.continued or ports.cut:
            self.notes = (*self.notes, net_rules.note_of(ports))

    def begin_network(
        self, span: str | None, command_of: Callable[[int], str | None] | None = None
    ) -> None:
        """Where its events go. `span`: whose what is nobody's is, None: the world's; `command_of`: the
        command of a process, where there may be several."""
        if self.network is None:
            return
        session = self.session
        seq = session.writer.position.seq
        self.network.begin(
            *(session.writer, span, seq, session.files.fd, session.digester.digest_bytes),
            command_of,
        )

    def refuse_missing(self, isolation: Isolation, also: tuple[str, ...] = ()) -> None:
        """Nothing runs in less isolation than is required (world.md §1).

        What the user himself takes away (--net host, --no-world) goes against a requirement
        only where one was made: the default list is for what the host fails to give. `also`: what the
        policy requires; the gate is each command's (starting.py)."""
        settings, backend = self.settings, self.frame.backend
        wanted = settings.require
        if backend == "none" and wanted == DEFAULT_REQUIRE:
            wanted = ()
        for name in dict.fromkeys((*wanted, *also)):
            if name == "gate":
                continue
            if name == "nf_tables":
                guarded = backend == "guard" and settings.net == "filtered"
                if self.listened is not None or guarded:
                    from substrate.session.diagnosis import without_filter

                    raise without_filter()
                continue
            asked = settings.require != DEFAULT_REQUIRE or name in also
            if (name, backend) == ("pid", "guard") and not asked:
                continue  # a note says so (guarding.py); who must have it names it
            if name == "net" and settings.net == "host" and not asked:
                continue
            if name == "limits":
                missing = next((f"{h.limit}: {h.why or h.by}" for h in self.held if h.soft), None)
            else:
                layer = isolation.layers[name]
                missing = None if layer.on else layer.why or "it is not there"
            if missing is not None:
                raise HostUnsupported(
                    f"{name} is required and would be missing: {missing}",
                    hint="take it out of `require`, or run where it can be had "
                    "(`substrate doctor`)",
                )

    def watch_disk(self) -> None:
        """Holds its layer to its limit from now on."""
        limit = self.settings.limits.disk_bytes
        if limit is None or self.layer is None:
            return
        from substrate.session.disk_watch import DiskWatch

        stack, number = self.session.stack, self.layer
        if self.frame.backend == "guard":
            from substrate.session import guarding

            places = [guarding.root(self.session.files)]
        else:
            places = [stack.upper(number, m.index) for m in stack.mounts]
        self._disk = DiskWatch(places, limit)

    # --- the loop

    def wait_for(self, waiting: Waiting) -> None:
        """A turn of the loop."""
        if self.started is None or self.ended:
            return
        if not self.dead and waiting.now >= self._not_before:
            waiting.read(self.started.fileno(), self._receive)
        elif not self.dead:
            waiting.until(self._not_before)
        if self.network is not None:
            for fd in self.network.fds():
                waiting.read(fd, self.network.pump)
            self.network.tick(waiting.now)
            waiting.until(self.network.next_look())
        if self._disk is not None and not (self.quiet or self.dead) and self.runs:
            if waiting.now >= self._disk.next_look and self._disk.exceeded():
                for run in self.runs:
                    run.end("limit", waiting.now)
            waiting.until(self._disk.next_look)

    def _receive(self) -> None:
        if self.world.ended:
            return  # another part has let go of it in the same round
        if not wire.has_room():
            self._not_before = time.monotonic() + _PAUSE_S
            return
        try:
            message = self.world.receive()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            if self.network is not None:  # only sockets come by so many
                self.network.give_sockets([])
            return
        if message is None:
            self.dead = True
            for run in self.runs:
                run.world_died()
        elif message.kind == wire.EXITED:
            self.quiet = False
            for run in self.runs:
                if run.number == message.number(0):
                    run.exited(message)
        elif message.kind == wire.STARTED:
            for run in self.runs:
                if run.number < 0 and not run.has_ended:
                    run.never_started()
        elif message.kind == wire.QUIET:
            # one that comes before a command's end is of what was there before it
            if all(run.has_ended for run in self.runs):
                self.quiet = True
                for run in self.runs:
                    run.became_quiet()
        elif message.kind == wire.FAILED:
            self.dead = self.dead or self.seen is not None  # nobody waits for it yet
            for run in self.runs:
                run.fail(failure_of(message))
        elif message.kind == wire.SOCKETS and self.network is not None:
            self.network.give_sockets(message.fds)
        elif message.kind == wire.NAMES:
            for run in self.runs:
                run.take_names(message)

    # --- its end

    def give_up(self) -> None:
        """Ends it, and with it the commands in it, since nobody can listen to it any more."""
        self.close()
        self.dead = True
        for run in self.runs:
            run.world_died()

    def close(self) -> None:
        """Ends it; nothing is waited for."""
        if self.started is not None:
            self.started.close()

    def wait_ended(self) -> None:
        """Waits until every process of it is dead."""
        if self.all_dead:
            return
        self.ended = True
        if self.started is not None:
            step = self.session.between  # where others are served meanwhile (meanwhile.py)
            while not self.session.zygote.wait_gone(
                self.number, None if step is None else _STEP_MS
            ):
                if step is not None:
                    step()
        self.all_dead = True

    def harvest(self) -> tuple[str, ...]:
        """Of a world without namespaces: puts what was done in its copy into its layer. What a person
        should know of that."""
        if self.frame.backend != "guard" or self.layer is None:
            return ()
        from substrate.session import guarding

        self.wait_ended()
        return guarding.harvest(self.session.files, self.session.stack, self.layer)

    def layer_is_empty(self) -> bool:
        """Whether nothing was changed in it."""
        return self.layer is None or layers.layer_is_empty(self.session.stack, self.layer)

    def release(self) -> None:
        """Ends whatever is still there; called on every way out."""
        if self.network is not None:
            self.network.close()
        if self.started is not None:
            self.started.close()
        elif self.groups is not None:
            self.groups.remove()


def _shell_only(workspace: bytes) -> str:
    return (
        f"shell-only mode: what is changed in {os.fsdecode(workspace)} is changed on the host at once: it is "
        "recorded, and cannot be undone"
    )


def _limit_plan(wanted: limits.Limits) -> cgroup_plan.Plan:
    with open("/proc/self/cgroup", "rb") as file:
        own = file.read()
    with open("/proc/self/mountinfo", "rb") as file:
        mounts = file.read()
    return cgroup_plan.choose(wanted, self_cgroup=own, mountinfo=mounts)
