"""A session that is held: its files and lock, its trace's writer, its world's description and layers.

What one supervisor owns as long as it lives, whether it runs one command (supervisor.py) or many
(daemon.py); not a world with processes in it (live_world.py), nor a command. Steps, in their order:
`open` claims the session of a directory, or a new one, and knows its world; `load_stack`; `cut` makes
the layer that is to be written next; `open_trace`. Invariants: the lock is held from `open` to `close`; a
layer that a killed supervisor left is recorded before anything runs; whatever fails on the way, `close` leaves the
trace whole. Spec: shell.md §2, trace.md §5, world.md §4.
"""

from __future__ import annotations

import os
import time

from substrate.errors import SessionBusy, UsageError
from substrate.session import home as homes
from substrate.session import layer_place, opening, store, world_setup
from substrate.session.stack_file import load_stack_file, with_stack_file
from substrate.session.workspace import find_workspace
from substrate.session.world_file import save_world
from substrate.values import replace
from substrate.world import layers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from substrate.policy.standing import Standing
    from substrate.session.approvals_values import Asked
    from substrate.session.approving_shared import SharedApproving
    from substrate.session.asked_client import Remote
    from substrate.session.opening import Claimed, Opened
    from substrate.session.record import Recorder
    from substrate.session.request import RunRequest
    from substrate.session.settings import Settings
    from substrate.session.signals import SignalPipe
    from substrate.session.world_file import WorldFile
    from substrate.telemetry.trace.digests import Digester
    from substrate.telemetry.trace.envelope import Event
    from substrate.telemetry.trace.events.command import DiffCounts
    from substrate.telemetry.trace.writer import TraceWriter
    from substrate.world.change import Change
    from substrate.world.handle import Zygote
    from substrate.world.hidden_again import HiddenAgain
    from substrate.world.layers import LayerStack


def _no_remote(_asked: Asked) -> Remote | None:
    return None


#: between two looks at a world that is in use
_PAUSE_S = 0.05


class LiveSession:
    """See the module. `arriving`: the signals of this process, by which waits are ended."""

    def __init__(
        self, settings: Settings, zygote: Zygote, arriving: SignalPipe, cwd: bytes
    ) -> None:
        self.settings, self.zygote, self.arriving, self.cwd = settings, zygote, arriving, cwd
        self.notes: tuple[str, ...] = ()
        self.claimed: Claimed | None = None
        self.opened: Opened | None = None
        self.world: WorldFile
        self.stack: LayerStack
        self.digester: Digester
        #: numbers of layers that a killed supervisor left, which are not on the record yet
        self.left: list[int] = []
        self.continued = False
        self.recorded = False  # something of ours stands in the trace
        self.started = False  # `session_start` does
        #: who asks for all its commands, once there was a question
        self.approving: SharedApproving | None = None
        #: what is known of the policy from one command to the next, where there are several
        self.standing: Standing | None = None
        self.hidden_again: HiddenAgain | None = None
        #: the terminal of who called what asks (asked_client.py)
        self.remote_of: Callable[[Asked], Remote | None] = _no_remote
        self._first_number = 0
        self._taken = 0

    # --- whose it is

    def open(self, request: RunRequest) -> None:
        """Finds or makes the session and takes its lock; describes its world, if it has none."""
        self.home = homes.open_home(homes.default_path(os.environb))
        self.workspace = find_workspace(self.cwd)
        self.host = world_setup.look_at_host()
        if os.path.lexists(self.home.path + b"/changing"):
            self._finish_changes()
        self._claim(request)
        assert self.claimed is not None
        if self.claimed.world is not None and self._is_unfinished():
            self._finish_first(self.claimed, request)
        if self.claimed.world is not None:
            self._adopt(self.claimed.world)
        else:
            self._describe(self._backend())
        self.started = self.continued

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

    def _claim(self, request: RunRequest) -> None:
        until = time.monotonic() + self.settings.wait_s
        while True:
            try:
                self.claimed = opening.claim_for_run(
                    self.home,
                    self.workspace,
                    request.world,
                    fresh=request.fresh,
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

    def _finish_first(self, claimed: Claimed, request: RunRequest) -> None:
        """Where the world is over by that, the command gets a new one."""
        from substrate.session.pending import finish

        self.claimed = None
        claimed.lock.drop()
        os.close(claimed.files.fd)
        finish(self.home, claimed.files.session_id)
        self._claim(request)

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

    # --- its layers

    def load_stack(self) -> None:
        """The layers that are there, without those that a killed supervisor left empty."""
        self.unsettled = bool(self.stack_file.unrecorded)
        stack = with_stack_file(self.world.bare_stack(self.files), self.files, self.stack_file)
        self.stack, self.left = opening.left_layers(stack)
        #: what the layers that were left are compared with, also when this run sees less
        self.pending = self.stack

    def go_back(self, at: str | None) -> None:
        """For a look at an earlier state: the stack ends there, for this command."""
        from substrate.session.history import load_history
        from substrate.session.undo import layers_at

        numbers = layers_at(self.stack.numbers, self.stack_file, load_history(self.files), at)
        self.stack = replace(
            self.stack,
            known=max(self.stack.known, *self.stack.numbers, 0),
            layers=tuple(layers.Layer(number=n) for n in numbers),
        )

    def cut(self, *, throw_away: bool = False) -> int | None:
        """The number of a new layer on top; None where the world has none."""
        if not self.stack.mounts:
            return None
        if len(self.stack.layers) >= layers.MAX_LOWERS and not self.left and not throw_away:
            self._make_shallow()
        self.stack, layer = layers.create_layer(self.stack, throw_away=throw_away)
        return layer.number

    def _make_shallow(self) -> None:
        if len(self.stack.sources(self.stack.numbers)) <= layers.MAX_LOWERS:
            return
        from substrate.session.squashing import make_shallow

        self.stack, self.stack_file, note = make_shallow(self.files, self.stack, self.stack_file)
        if note:
            self.notes = (*self.notes, note)

    def drop_layer(self, number: int) -> None:
        self.stack = layers.remove_layer(self.stack, number)

    # --- its trace

    def open_trace(self) -> None:
        from substrate.telemetry.trace.digests import Digester

        assert self.claimed is not None
        self.opened = opening.open_trace(
            self.home, self.claimed, durability=self.settings.durability
        )
        self._first_number = self.opened.writer.position.seq
        self.digester = Digester(self.opened.key)

    @property
    def writer(self) -> TraceWriter:
        assert self.opened is not None
        return self.opened.writer

    @property
    def between(self) -> Callable[[], None] | None:
        """What is to be called between the steps of what takes long."""
        return None if self.opened is None else self.digester.between

    def number(self) -> int:
        """Of a process: unique in the session without a count of it, as each has a line of its own, so
        that there are fewer than lines."""
        self._taken += 1
        return self._first_number + self._taken

    def left_events(self, recorder: Recorder) -> list[Event]:
        """What is to be told before anything runs: of changes of the stack, and layers that were left."""
        events: list[Event] = []
        for number in self.left:
            events += self.diff_events(recorder, self.pending, number, span=False)[0]
        return events

    def tell_of_stack(self) -> None:
        """What was done to the stack, and is not on the record yet."""
        if self.stack_file.unrecorded:
            from substrate.session import restack

            tell = restack.settle if self.unsettled else restack.tell
            self.stack_file = tell(self.files, self.writer)

    def freeze_left(self) -> None:
        """Called when the layers that were left are on the record."""
        for number in self.left:
            layers.freeze_layer(self.stack, number)
        self.left = []

    def diff_events(
        self, recorder: Recorder, stack: LayerStack, number: int, *, span: bool
    ) -> tuple[list[Event], list[Change], DiffCounts]:
        """What a layer changed that no process writes to any more, as events."""
        from substrate.session.layer_record import layer_events

        # where others are served between the steps, they tell when it is to end (meanwhile.py)
        self.arriving.recording(self.digester.between is None)
        try:
            return layer_events(recorder, self.digester, stack, number, span=span)
        finally:
            self.arriving.recording(False)

    # --- its end

    def close(self) -> None:
        """Lets go of it; called on every way out."""
        if self.approving is not None:
            self.approving.close()
        if self.opened is not None:
            self.opened.writer.close()
        elif self.claimed is not None:
            self.claimed.lock.drop()

    def abandon(self, wait_gone: Callable[[], None]) -> None:
        """Takes a new one away in whose trace nothing was written. `wait_gone`: until no world of it
        lives."""
        if self.claimed is not None and self.claimed.world is None and not self.recorded:
            wait_gone()
            opening.abandon(self.home, self.claimed.files.session_id)
