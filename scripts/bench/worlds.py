"""Worlds for benches: started by the product's own modules, without a trace.

What it is: a workspace directory, a stack of layers over it, and how to run a command in a
new layer. What it is not: a supervisor; nothing is recorded, so that the costs of worlds and
of the record can be told apart. Import it before anything large: its zygote is forked by
whoever makes a `WorldBench`, and the cost of a fork grows with memory.
"""

from __future__ import annotations

import os
import select
import time

from substrate.session import home as homes
from substrate.session import probe, store, world_setup
from substrate.session.covers import covers_of
from substrate.session.request import TEXT, RunRequest
from substrate.session.settings import load_settings, places
from substrate.session.workspace import find_workspace
from substrate.telemetry.capture import backends, engine, gate, records
from substrate.telemetry.capture.engine import Programs
from substrate.values import replace
from substrate.world import cgroup, cgroup_plan, layers, linux, seccomp, squash, wire
from substrate.world.handle import World, Zygote
from substrate.world.layers import LayerStack
from substrate.world.limits import Limits
from substrate.world.spec import CommandSpec, Frame, WorldSpec

NUMBER = 1
_REQUEST = RunRequest(kind=TEXT, file=b"sh", argv=(b"sh",))
#: one more than a table of so many programs is the one that may run; all else is denied
_DENIED_PROGRAMS = 1000
_END_S = 10.0
_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class WorldBench:
    """A workspace `<scratch>/work` and a world over it whose layers are ours to cut."""

    def __init__(self, scratch: str, zygote: Zygote) -> None:
        self.zygote = zygote
        self.work = os.path.join(scratch, "work")
        os.makedirs(self.work, exist_ok=True)
        cwd = os.fsencode(os.path.realpath(self.work))
        self.home = homes.open_home(os.fsencode(os.path.join(scratch, "state")))
        workspace = find_workspace(cwd)
        where = places({b"HOME": os.fsencode(scratch)}, cwd, workspace.path)
        self.settings = load_settings((), {}, where, on_terminal=False).settings
        self.host = world_setup.look_at_host()
        backend = probe.choose_backend(self.home, zygote)
        self.files = store.create_session(self.home)
        name = store.name_world(self.home, self.files.session_id)
        self.world, _ = world_setup.describe_world(
            self.host,
            self.home,
            self.settings,
            backend,
            name,
            workspace,
            self.files.session_id,
        )
        self.stack: LayerStack = self.world.stack(self.files)

    @property
    def backend(self) -> str:
        return self.world.backend

    def cut(self) -> int:
        """A new layer on top; its number."""
        self.stack, layer = layers.create_layer(self.stack)
        return layer.number

    def make_shallow(self) -> None:
        """Merges layers as a run would before it stands on too many."""
        for merge in squash.choose(self.stack):
            self.stack, _, _ = squash.squash(self.stack, merge)
        squash.remove_unused(self.stack)

    def freeze(self, number: int) -> None:
        layers.freeze_layer(self.stack, number)

    def drop(self, number: int) -> None:
        self.stack = layers.remove_layer(self.stack, number)

    def set_aside(self, number: int) -> None:
        """Takes a layer off the stack without removing its files (see `trees.copy`)."""
        aside = self.files.world_path + b"/aside-%d" % time.monotonic_ns()
        os.rename(b"%s/%d" % (self.stack.directory, number), aside)
        self.stack = layers.load_layers(self.stack)

    def spec(
        self,
        groups: cgroup.CgroupSet | None = None,
        *,
        observed: bool = False,
        net: str = "",
    ) -> WorldSpec:
        """A world on the newest layer; with the cgroups of the default limits, or without.
        `observed`: what it denies is left to capture. `net`: "" is the default."""
        chosen = self.groups(limited=False) if groups is None else groups
        ready = world_setup.make_ready(self.world, self.files, self.home, self.stack, self.host)
        covers = covers_of(self.world, self.home, self.settings, self.host, _REQUEST, ready.bound)
        frame = world_setup.frame_of(
            self.world, self.settings, chosen, terminal=False, observed=observed
        )
        if net:
            frame = replace(frame, net=net)
        return world_setup.spec_of(
            self.world,
            self.files,
            self.stack,
            self.settings,
            self.host,
            covers,
            chosen,
            ready,
            frame,
        )

    def groups(self, *, limited: bool) -> cgroup.CgroupSet:
        """The cgroups of the default limits, or of none."""
        wanted = self.settings.limits if limited else Limits()
        with open("/proc/self/cgroup", "rb") as file:
            own = file.read()
        with open("/proc/self/mountinfo", "rb") as file:
            mounts = file.read()
        plan = cgroup_plan.choose(wanted, self_cgroup=own, mountinfo=mounts)
        return cgroup.create(plan, cgroup.group_name(NUMBER))

    def start(self, spec: WorldSpec) -> World:
        """A world that need not be ready yet."""
        return self.zygote.start(spec)

    def end(self, world: World) -> None:
        world.close()
        self.zygote.wait_gone(NUMBER)

    def in_layer(self, argv: tuple[str, ...]) -> int:
        """Runs a command in a new layer of its own and freezes it; the layer's number."""
        number = self.cut()
        world = self.start(self.spec())
        try:
            status = run(world, argv, os.fsencode(self.work))
        finally:
            self.end(world)
        if status:
            raise RuntimeError(f"{argv[0]} ended with {status} in the world")
        self.freeze(number)
        return number


class Watch:
    """Capture of one command in an observed world as the product has it (session/capturing.py):
    the filters of `hybrid` at level `files`, and the exec gate armed with a table. Nothing is
    decoded or written down."""

    def __init__(self, frame: Frame, allowed: bytes) -> None:
        denied = seccomp.evidence(
            machine=linux.MACHINE,
            allow_ptrace=frame.allow_ptrace,
            allow_userns=frame.allow_userns,
            allow_cgroupns=frame.allow_userns and frame.backend != "ns-root",
        )
        self.programs: Programs = engine.programs_of(
            "hybrid", "files", denied=tuple((nr, word, mask) for nr, _, word, mask in denied)
        )
        made = backends.make("hybrid", "files", denied={nr: number for nr, number, _, _ in denied})
        assert isinstance(made, engine.EngineBackend)
        self.backend = made
        table = {b"denied-%d" % i: gate.DENY for i in range(_DENIED_PROGRAMS)}
        self.backend.arm(gate.pack_table({**table, allowed: gate.ALLOW}), gate.DENY, gate.HOLD_MS)
        self.open_to_tracer = (
            frame.backend != "ns-user"
            and not linux.effective_capabilities() >> linux.CAP_SYS_PTRACE & 1
        )

    def end(self) -> None:
        """Drains what is left. Raises RuntimeError unless it tells that the program ran."""
        kinds: list[int] = []
        until = time.monotonic() + _END_S
        poll = select.poll()
        poll.register(self.backend.fileno(), select.POLLIN)
        try:
            while True:
                kinds += [head[1] for head, _, _ in records.read_records(self.backend.drain())]
                if self.backend.finished():
                    break
                if time.monotonic() > until:
                    raise RuntimeError("capture did not end")
                poll.poll(10)
            if records.EXEC not in kinds or self.backend.lost():
                raise RuntimeError(f"capture did not tell of the program: {kinds}")
        finally:
            self.backend.close()


def wait_for_seat(world: World) -> None:
    """Has a seat made for the next command, where there can be one."""
    if not world.ask_for_seat():
        return
    while True:
        message = world.receive()
        if message is None:
            raise RuntimeError("the world ended")
        if message.kind == wire.SEATED:
            return


def command(argv: tuple[str, ...], cwd: bytes) -> CommandSpec:
    """A command with all its standard streams on the one passed fd."""
    words = tuple(os.fsencode(word) for word in argv)
    return CommandSpec(
        file=words[0],
        argv=words,
        environ=((b"PATH", _PATH), (b"HOME", cwd)),
        cwd=cwd,
        umask=0o022,
        rlimits=(),
        terminal=None,
        stdio=(0, 0, 0),
        ignored_signals=(),
    )


def run(world: World, argv: tuple[str, ...], cwd: bytes, watch: Watch | None = None) -> int:
    """Runs a command in a started world to its end; its exit status."""
    spec = command(argv, cwd)
    if watch is not None:
        spec = replace(
            spec,
            notify=watch.programs.notify,
            trace=watch.programs.trace,
            open_to_tracer=watch.open_to_tracer,
        )
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    go = None
    try:
        go = world.run(spec, (null,))
        hello = None
        if watch is not None:
            hello = go.receive()
            if hello is None or hello.kind != wire.HELLO:
                raise RuntimeError("the command did not wait to be captured")
            watch.backend.attach(hello.pid, hello.fds[0] if hello.fds else None)
        go.give()
        while True:
            message = world.receive()
            if message is None:
                raise RuntimeError("the world ended before its command")
            if message.kind == wire.EXITED:
                hello = hello or go.receive()
                if hello is None or hello.kind != wire.HELLO or go.failed(hello.pid):
                    raise RuntimeError("the command did not start")
                return os.waitstatus_to_exitcode(message.number(1))
    finally:
        os.close(null)
        if go is not None:
            go.close()
