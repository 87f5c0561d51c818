"""The worlds of a session that lives: the one that lives, the one that waits for the next command, and their layers.

One world lives at a time. It begins for a command, on a layer of its own, and ends when it is quiet; then a next one is begun
with ahead of time, so that no command waits for namespaces (standing_world.py). Not what a world is (live_world.py),
nor who is in it (living.py). A part of the supervisor's loop. Invariants: a layer that could not be recorded is left to the next
command, as one that a killed supervisor left; whoever asks for the stack sees no layer of a world that waits.
Spec: shell.md §2; docs/adr/0020, docs/adr/0030.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

from substrate.errors import SubstrateError
from substrate.session import starting, world_setup
from substrate.session.captures import Captures
from substrate.session.executing import ClientTerminal, Guarded
from substrate.session.live_world import LiveWorld
from substrate.session.living import Living
from substrate.session.one_command import OneCommand
from substrate.session.request import RUN
from substrate.session.scopes import key_of
from substrate.session.signals import RecordInterrupted
from substrate.values import replace
from substrate.world import wire
from substrate.world.layers import is_frozen

if TYPE_CHECKING:
    from substrate.session.daemon import Daemon
    from substrate.session.executing import Executing
    from substrate.session.loop import Waiting
    from substrate.session.request import RunRequest
    from substrate.telemetry.trace.events.session import Isolation
    from substrate.world.layers import Layer, LayerStack


class Worlds:
    """See the module. `living`: the one that lives, with who is in it."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon, self._session = daemon, daemon.session
        self.living: Living | None = None
        self._next: LiveWorld | None = None  # begun with, or started, for the next command
        self._may_stand = True
        #: what the end of the last world has left to do
        self._rest: tuple[LiveWorld, Callable[[], None]] | None = None
        self._has_terminals = False  # the last one that began a world had one: so may the next
        self._made = 0

    @property
    def left(self) -> tuple[Executing, ...]:
        """Commands that have their answer, and left something that goes on."""
        return () if self.living is None else tuple(self.living.left)

    # --- their layers

    def layers(self) -> tuple[Layer, ...]:
        """Those of the stack, without one that waits for a command."""
        waiting = None if self._next is None else self._next.layer
        return tuple(each for each in self._session.stack.layers if each.number != waiting)

    def frozen(self) -> LayerStack:
        """The stack without the layer that is still written to."""
        own = None if self.living is None else self.living.world.layer
        return replace(
            self._session.stack,
            layers=tuple(layer for layer in self.layers() if layer.number != own),
        )

    def leave_layer(self, world: LiveWorld) -> None:
        """What its layer holds could not be recorded now: the next command tells of it first, as of one
        that a killed supervisor left."""
        session = self._session
        world.close()
        if not world.all_dead:
            try:
                with self._daemon.recording.of(None):
                    world.wait_ended()
            except RecordInterrupted:
                self._daemon.end()  # whoever opens the session next waits for them (running.py)
            except SubstrateError as error:  # the zygote is gone, and the session ends
                self._daemon.log(f"the end of a world: {error!r}")
        if world.layer in session.stack.numbers and not is_frozen(session.stack, world.layer):
            session.left.append(world.layer)
            session.pending = session.stack

    # --- one begins

    def begin(self, one: OneCommand) -> Living:
        """A new world, on a new layer, for its first command. Where that fails in the middle of it, it lives: `drop`."""
        self.end_rest()
        session = self._session
        self._daemon.pending.stop()
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
            world = self._next = self._make()
            try:
                world.hold_to(scopes)
                world.prepare(one.choice, terminal=terminal)
            except BaseException:
                self._drop_next()
                raise
        self._next = None
        captures = one.captures = Captures(session.number)
        living = self.living = Living(session, world, captures, self._daemon.log)
        if world.started is None:
            world.layer = session.cut()
            one.cwd = world.start(self._request_of(one), one.cwd)
        one.begin(session, world)
        world.make_network(captures if one.choice.level != "off" else None)
        one.make_spec()
        world.wait_network()
        living.isolation = starting.isolation_in_force(world, one)
        world.watch_disk()
        return living

    def adopt(self, world: LiveWorld, one: OneCommand, isolation: Isolation) -> None:
        """One that lives, with its first command, whose they are not ours to end."""
        captures = one.captures or Captures(self._session.number)
        living = Living(self._session, world, captures, self._daemon.log, network_began=True)
        living.isolation = isolation
        living.sharing.begin(one)
        self.living = living
        living.open_door(self._daemon)

    def _request_of(self, one: OneCommand) -> RunRequest:
        """By what it is decided which places the world shows: that of the session, where it names an agent."""
        request = self._daemon.request
        return request if request.kind == RUN else one.request

    def _make(self) -> LiveWorld:
        self._made += 1
        return LiveWorld(self._session, self._made, inside=True)

    def begin_network(self, one: OneCommand) -> None:
        """Called when a command of the one that lives has its go."""
        assert self.living is not None
        self.living.begin_network(one)

    # --- one waits for the next command

    def look_ahead(self) -> None:
        """None lives: what the last one left is done, and the next one begun with."""
        self.end_rest()
        if self._next is not None and self._next.dead:
            self._daemon.log("a world that waited for a command has ended")
            self._may_stand = False  # until one of a command's own has worked
            self._drop_next()
        if self._next is None and not self._daemon.is_ending:
            self.prepare_next()

    def prepare_next(self) -> None:
        """A rootless world is made of the mounts that the host has when it is begun with (docs/adr/0011),
        so it is not begun with for later."""
        session = self._session
        if session.world.backend not in ("ns-root-idmap", "ns-root") or self._next is not None:
            return
        terminal = ClientTerminal(-1) if self._has_terminals else None
        settings = self._daemon.granted(self._daemon.settings)
        one = OneCommand(
            *(self._daemon.request, settings, session.cwd, terminal),
            frozenset(),
            environ={},
            umask=0,
        )
        try:
            one.choose(session)
            one.load_policy(session)
            may_stand = self._may_stand and terminal is None
            scopes = one.scopes(session, walk=may_stand)
            world = self._next = self._make()
            world.hold_to(scopes)
            world.prepare(one.choice, terminal=terminal is not None)
            if session.left or not may_stand:
                return  # of what is left the next command tells first
            session.host = world_setup.look_at_host()
            world.layer = session.cut()
            world.stand(self._request_of(one))
        except (SubstrateError, OSError, wire.WireError) as error:
            # the next command says it to somebody
            self._daemon.log(f"no world was prepared: {error!r}")
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
                self._session.drop_layer(world.layer)
        except (SubstrateError, OSError, wire.WireError) as error:
            self._daemon.log(f"the end of a world that was not used: {error!r}")
            self.leave_layer(world)

    # --- the loop

    def wait_for(self, waiting: Waiting) -> None:
        daemon, living = self._daemon, self.living
        if living is not None and (not daemon.is_beside or daemon.is_ending):
            self._wait_for_world(living.world, waiting)
        if self._next is not None:
            self._next.wait_for(Guarded(waiting, self._lose_next))
        if living is not None:
            living.wait_for_door(waiting)

    def _wait_for_world(self, world: LiveWorld, waiting: Waiting) -> None:
        if self._daemon.is_beside:  # whose loop this is has said what it waits for
            world.wait_for(waiting)
            return

        def trouble(error: Exception) -> None:
            self._daemon.log(f"a world: {error!r}")
            world.give_up()

        try:
            world.wait_for(Guarded(waiting, trouble))
        except Exception as error:  # noqa: BLE001 - an edge: a world's end is not the session's
            trouble(error)
            waiting.changed = True

    def wait_for_left(self, waiting: Waiting) -> None:
        if self.living is not None:
            self.living.wait_for_left(waiting)

    def _lose_next(self, error: Exception) -> None:
        """What fails of a world that waits, as for want of descriptors, ends nothing else."""
        self._daemon.log(f"a world that waits for a command: {error!r}")
        if self._next is not None:
            self._next.dead = True

    # --- one ends

    def end(self) -> None:
        """The one that lives is quiet, or is to end: its layer is recorded as it is."""
        living = self.living
        assert living is not None
        living.kill()
        try:
            with self._daemon.recording.of(None):
                living.sharing.end_world(lambda: self._session.arriving.ends_within(0))
        except Exception as error:  # noqa: BLE001 - a world's end is not the session's
            self._daemon.log(f"the end of a world: {error!r}")
            self.leave_layer(living.world)
        self.let_go()

    def end_alone(self, rest: Callable[[], None]) -> None:
        """The one that lives has ended with its only command (finishing.py); `rest`: what is to be done yet."""
        assert self.living is not None
        self._rest = self.living.world, rest
        self._may_stand = True
        self.let_go()

    def let_go(self) -> None:
        """The one that lives has ended, and all that is to be told of it is told. Raises OSError."""
        living = self.living
        assert living is not None
        self._close_door(living)
        living.world.release()
        self.living = None
        living.close_left()
        self._session.writer.sync()

    def drop(self) -> None:
        """Nothing ran in the one that lives."""
        living, self.living = self.living, None
        assert living is not None
        self._close_door(living)
        world = living.world
        world.release()
        world.wait_ended()
        if world.layer is not None:
            self._session.drop_layer(world.layer)

    def close_door(self) -> None:
        """Nobody in the one that lives is served any more."""
        if self.living is not None:
            self._close_door(self.living)

    def _close_door(self, living: Living) -> None:
        living.close_door()
        self._daemon.reception.close_inside()

    def end_rest(self, *, serving: bool = True) -> None:
        """What the end of the last world has left to do: a world that is next begins on the same lock. `serving`:
        others, meanwhile."""
        rest, self._rest = self._rest, None
        if rest is None:
            return
        world, act = rest
        try:
            with self._daemon.recording.of(None) if serving else nullcontext():
                act()
        except RecordInterrupted:
            self._daemon.end()  # whoever opens the session next waits for its processes (running.py)
        except Exception as error:  # noqa: BLE001 - an edge: whose layer it is has its answer
            self._daemon.log(f"the end of a layer: {error!r}")
            self.leave_layer(world)

    def close(self) -> None:
        """Ends whatever is there; called on every way out."""
        self.end_rest(serving=False)
        self._drop_next()
        if self.living is not None:
            self.living.world.release()

    def wait_ended(self) -> None:
        """Until no process of the one that lives is left."""
        if self.living is not None:
            self.living.world.wait_ended()
