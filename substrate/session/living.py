"""The world of a session that lives, with who is in it: its commands, what they left, whose a process of it is.

The world itself is live_world.py's, what is kept of commands that share it sharing.py's; which world lives, and how it begins and
ends, session_worlds.py's. A part of the supervisor's loop. Invariant: what is known of one world ends with it; who came by
its door asks of this world and no other. Spec: shell.md §2, docs/adr/0020.
"""

from __future__ import annotations

import _signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from substrate.session.gating import Patience
from substrate.session.inside import Inside
from substrate.session.sharing import Sharing, now_ns

if TYPE_CHECKING:
    from substrate.session.captures import Captures
    from substrate.session.daemon import Daemon
    from substrate.session.executing import Executing
    from substrate.session.live_session import LiveSession
    from substrate.session.live_world import LiveWorld
    from substrate.session.loop import Waiting
    from substrate.session.one_command import OneCommand
    from substrate.telemetry.trace.events.session import Isolation

#: a command that began goes first for so long; then a seat is made for the next one, which starts at once
_SEAT_S = 0.01


class Living:
    """See the module. `isolation`: in force in it; `warn`: told what fails of what commands left."""

    isolation: Isolation

    def __init__(
        self,
        session: LiveSession,
        world: LiveWorld,
        captures: Captures,
        warn: Callable[[str], None],
        *,
        network_began: bool = False,
    ) -> None:
        self.world, self.captures = world, captures
        self.sharing = Sharing(session, world)
        self.sharing.warn = warn
        #: commands that have their answer; what they left goes on
        self.left: list[Executing] = []
        #: for shims of processes whose command is not known
        self.patience = Patience()
        self._network_began = network_began
        self._inside: Inside | None = None
        self._seat_at: float | None = None  # when a seat is asked for

    @property
    def is_over(self) -> bool:
        """No process of it is left, as far as that is known."""
        return self.world.quiet or self.world.dead

    # --- whose a process is

    def expect(self, host_pid: int, span: str) -> None:
        """The next program of a process is this span."""
        self.captures.expect(host_pid, span)

    def span_of(self, host_pid: int) -> str | None:
        """The span of a process of the world, as far as that was told."""
        self.captures.pump()
        owner = self.captures.owner_by_pid(host_pid, now_ns() // 1000)
        return None if owner is None else owner.span

    def command_of(self, host_pid: int) -> str | None:
        """The span of the command that a process of the world came of, as far as that was told."""
        owner = self.captures.owner_by_pid(host_pid, now_ns() // 1000)
        found = None if owner is None else self.captures.command_of(owner.proc)
        if found is None:
            # nothing is captured, or not told yet: where there is one command it is that one's
            ones = self.sharing.all
            found = ones[0].recorder.span if len(ones) == 1 else None
        return found

    # --- what its commands want of it

    def open_door(self, daemon: Daemon) -> None:
        """From now on its processes are served, if it has a door."""
        fd = self.world.world.take_inside()
        if fd >= 0:
            self._inside = Inside(daemon, self, fd)

    def begin_network(self, one: OneCommand) -> None:
        """Called when a command has its go."""
        if not self._network_began:
            self._network_began = True
            shared = self.sharing.is_shared
            one.world.begin_network(None if shared else one.recorder.span, self.captures.command_of)

    def want_seat(self) -> None:
        """One more command has begun beside others: there may be more."""
        self._seat_at = time.monotonic() + _SEAT_S

    def hurry_seat(self) -> None:
        """A command has ended: what is wanted is asked for once that was said."""
        if self._seat_at is not None:
            self._seat_at = 0.0

    # --- the loop

    def wait_for_door(self, waiting: Waiting) -> None:
        if self._inside is not None:
            self._inside.wait_for(waiting)

    def wait_for_left(self, waiting: Waiting) -> None:
        """What commands left, and the seat for the next one."""
        for each in tuple(self.left):
            try:
                each.wait_for_left(waiting)
            except Exception as error:  # noqa: BLE001 - an edge: it ends no other command
                self.sharing.lose(each.one, error)
        waiting.until(self._seat_at)

    def look(self, *, ends: bool) -> None:
        """What is over by now. `ends`: so is the world itself, so nobody needs a seat."""
        if self._seat_at is not None and time.monotonic() >= self._seat_at:
            self._seat_at = None
            if not ends:
                self.world.world.ask_for_seat()
        self.sharing.settle_left()
        for each in tuple(self.left):
            if each.one not in self.sharing.left:
                self.left.remove(each)
                each.close()

    # --- its end

    def kill(self) -> None:
        """Else the end of what capture knows of it would be waited for."""
        if not self.is_over:
            try:
                self.world.world.signal(_signal.SIGKILL, "all")
            except BrokenPipeError:
                return  # it has died in this moment

    def close_door(self) -> None:
        inside, self._inside = self._inside, None
        if inside is not None:
            inside.close()

    def close_left(self) -> None:
        """Nothing of what commands left goes on any more."""
        for each in self.left:
            each.close()
        self.left = []
