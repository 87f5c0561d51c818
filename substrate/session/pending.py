"""A session that a verb works with: its lock is held, and what a killed process began is ended.

Its stack, what is pending in it, and the end of its world. Not the apply (applying.py), nor the
discard (discarding.py), nor the looking (history.py). Invariants: what was done is in the trace; a
session whose world is over has its `session_end`, and its directory no current world. The layers
of a world that was applied stay until `world gc`. Spec: world.md §4, §5.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from substrate.errors import SessionBusy, StateError, SubstrateError
from substrate.session import host_change, opening, restack, stand_ins, store
from substrate.session.history import History, load_history
from substrate.session.home import Home
from substrate.session.layer_record import layer_events
from substrate.session.opening import Opened
from substrate.session.record import Recorder
from substrate.session.settings import Settings, load_settings, places
from substrate.session.stack_file import (
    StackFile,
    load_stack_file,
    save_stack_file,
    with_stack_file,
)
from substrate.session.summary import count_phrase
from substrate.session.workspace import Workspace, current_directory
from substrate.session.world_file import APPLIED, OPEN, WorldFile, save_world
from substrate.telemetry.trace.digests import Digester
from substrate.telemetry.trace.events.body import Body
from substrate.telemetry.trace.events.session import SessionEnd
from substrate.telemetry.trace.events.world import LayerCut
from substrate.values import replace
from substrate.world import journal, layers
from substrate.world.change import Change, Summary, is_time_alone
from substrate.world.diff import diff_pending
from substrate.world.layers import LayerStack
from substrate.world.recover import Outcome

_DURABILITY = "command"


def phrase(counts: Summary, changes: Iterable[Change] = ()) -> str:
    """The counts in words. `changes`: what they count, to tell those of a time alone."""
    return count_phrase(counts, sum(map(is_time_alone, changes))) or "nothing had changed"


class WorldOver(StateError):
    """Nothing is pending: the world was applied or discarded. `finished`: only just now, by
    bringing an apply to its end that had been cut short."""

    def __init__(self, world: WorldFile, recovered: Outcome | None) -> None:
        self.finished = world.state == APPLIED and recovered is Outcome.FINISHED
        short = "an apply of it had been cut short and was finished now; " if self.finished else ""
        super().__init__(
            f"world {world.name} is over: {short}it was {world.state}",
            hint="`substrate world ls` lists the worlds that have something pending",
        )


@contextmanager
def open_pending(
    home: Home,
    session_id: str,
    *,
    lenient: bool = False,
    also_applied: bool = False,
    others: bool = True,
) -> Iterator[Held]:
    """Takes the session's lock for the time of the block. `lenient`: what is gone of its layers
    is no error. `also_applied`: a world that was applied is not over either. `others`: what
    other worlds began with the host is finished first.

    Raises SessionBusy, WorldOver, StateError for an apply that was cut short and cannot be put
    right."""
    if others:
        finish_all(home, but=session_id)
    opened = opening.open_existing(home, session_id, durability=_DURABILITY)
    try:
        assert opened.world is not None
        held = Held(home, opened, opened.world, lenient=lenient or opened.world.state != OPEN)
        held.settle()
        if held.world.state != OPEN and not (also_applied and held.world.state == APPLIED):
            raise WorldOver(held.world, held.recovered)
        yield held
    except BaseException:
        with suppress(OSError, StateError):  # what happened is said by the error that is on its way
            opened.writer.close()
        raise
    else:
        opening.close_trace(opened.writer)
    finally:
        os.close(opened.files.fd)


def finish(home: Home, session_id: str) -> Outcome | None:
    """Brings to its end what a killed process began with a world: an apply, the undo of one, its
    own end. Gives what became of the apply."""
    try:
        with open_pending(home, session_id, others=False) as held:
            return held.recovered
    except WorldOver as over:
        return Outcome.FINISHED if over.finished else None


def finish_all(home: Home, *, but: str = "") -> tuple[str, ...]:
    """Brings to its end what killed processes began with the host, in all worlds (`but` one).
    Gives notes for a person: what was done, and what cannot be."""
    notes = []
    for session_id in host_change.marked(home):
        if session_id == but:
            continue
        if not os.path.lexists(store.session_path(home, session_id)):
            host_change.unmark(home, session_id)
            continue
        try:
            outcome = finish(home, session_id)
        except SessionBusy:
            continue  # it is being done
        except (SubstrateError, OSError) as error:
            notes.append(str(error))
            continue
        if outcome is not None:
            what = outcome.value.replace("_", " ")
            notes.append(f"an apply of another world had been cut short; it was {what}")
    host_change.tidy(home)
    return tuple(notes)


def user_settings() -> Settings:
    """The settings of a verb: those of the user, as nothing of a tree counts for it."""
    cwd = current_directory()
    return load_settings((), os.environb, places(os.environb, cwd, cwd), on_terminal=False).settings


class Held:
    """A session whose lock we hold."""

    def __init__(
        self, home: Home, opened: Opened, world: WorldFile, *, lenient: bool = False
    ) -> None:
        self.home = home
        self.opened = opened
        self.world = world
        self.recovered: Outcome | None = None
        #: the event of what was `recovered` as finished
        self.finished = ""
        #: layers of a killed supervisor that no `fs_diff` is of yet
        self._left: list[int] = []
        self._lenient = lenient
        self.stack_file = load_stack_file(opened.files)
        self.stack: LayerStack = self._read_stack()

    def _read_stack(self) -> LayerStack:
        bare = self.world.bare_stack(self.opened.files)
        try:
            return with_stack_file(bare, self.opened.files, self.stack_file)
        except StateError as error:
            if not self._lenient or error.code != "E-LAYER-GONE":
                raise
        own = {layer.number for layer in layers.list_layers(bare.directory)}
        there = tuple(n for n in self.stack_file.layers if n in own)
        self.stack_file = replace(self.stack_file, layers=there, elsewhere=(), segments=())
        return with_stack_file(bare, self.opened.files, self.stack_file)

    def settle(self) -> None:
        """Brings to its end what a killed process began: a change of the host, what was done to
        the stack and not told, the end of the world; and finds layers that were left in use."""
        self.recovered = host_change.settle(self)
        wanted = self.stack_file.ending
        if wanted == OPEN:
            self.take_up()
        elif wanted and wanted != self.world.state:
            self.end(wanted)
            return
        self.stack, self._left = opening.left_layers(self._read_stack())

    def read_stack_again(self) -> None:
        """After its file was changed."""
        self.stack = self._read_stack()

    def history(self) -> History:
        return load_history(self.opened.files)

    # --- the stack

    def restack(
        self,
        numbers: Sequence[int],
        bodies: Sequence[Body],
        **fields: Any,
    ) -> None:
        """Makes these layers the world's stack, and tells of it; `fields` of the stack's file
        change with it. Both happen or neither. Raises OSError, StateError for a layer that is
        gone."""
        self.record_left()
        self.date([n for n in self.stack.numbers if n not in numbers])
        changed = replace(self.changed(numbers), **fields)
        bare = self.world.bare_stack(self.opened.files)
        stack = with_stack_file(bare, self.opened.files, changed)  # before it is written
        self.stack_file = restack.commit(self.opened.files, self.opened.writer, changed, bodies)
        self.stack = stack

    def refuse_if_gone(self, numbers: Sequence[int]) -> None:
        """Raises StateError where one of these layers is not there to be the stack."""
        bare = self.world.bare_stack(self.opened.files)
        with_stack_file(bare, self.opened.files, self.changed(numbers))

    def announce(self, event: Body) -> None:
        """Writes down, for the trace, what is about to happen outside of the stack; it counts
        when it has happened (`restack.settle`). Raises OSError."""
        changed = restack.prepare(self.changed(self.stack.numbers), [event])
        save_stack_file(self.opened.files, changed)

    def tell_announced(self) -> None:
        """Tells of what was announced and has happened. Raises OSError, and it is not in the
        trace then; RecordLater."""
        writer = self.opened.writer
        at = writer.position.seq
        try:
            self.stack_file = restack.tell(self.opened.files, writer)
        except (OSError, StateError) as error:
            if writer.failed or writer.position.seq != at:
                raise restack.RecordLater("it was done", error) from error
            raise

    def changed(self, numbers: Iterable[int], base: StackFile | None = None) -> StackFile:
        """The stack's file (or `base`) with these layers on the stack; every layer is frozen."""
        wanted = frozenset(numbers)
        return replace(
            self.stack_file if base is None else base,
            known=max(self.stack.known, *self.stack.numbers, 0),
            layers=tuple(sorted(wanted)),
            segments=tuple(s for s in self.stack.segments if wanted >= set(s.numbers)),
        )

    def date(self, numbers: Sequence[int]) -> None:
        """Dates layers that leave the stack: `world gc` keeps them for a while from now on."""
        for number in numbers:
            if self.stack.directory_of(number) == self.stack.directory:
                os.utime(b"%s/%d" % (self.stack.directory, number))

    def record_left(self) -> None:
        """Records layers that were left in use, then freezes them: only so are they applied. A
        discard needs neither."""
        while self._left:
            self._record_layer(self._left[0])
            layers.freeze_layer(self.stack, self._left[0])
            del self._left[0]

    def forget_left(self) -> None:
        """Before a discard: nobody asks any more what they hold."""
        self._left.clear()

    def _record_layer(self, number: int) -> None:
        """The `fs_diff` of a layer that a killed supervisor left, which nobody wrote yet."""
        events, _, _ = layer_events(
            Recorder(self.opened.writer, user_settings()),
            Digester(self.opened.key),
            self.stack,
            number,
            span=False,
        )
        self.opened.writer.append(events)

    def changes(self, *, include_scratch: bool = False) -> list[Change]:
        """All that is pending, against the host as it is now."""
        return diff_pending(self.stack, include_scratch=include_scratch, skip_gone=True)

    # --- keep

    def keep(self) -> None:
        """Makes the newest layer last through a power cut, and says so in the trace."""
        self.record_left()
        newest = max(self.stack.numbers, default=0)
        if newest <= max((last for last, _ in self.stack_file.elsewhere), default=0):
            return  # none of our own
        layers.sync_layers(self.stack)
        history = self.history()
        cuts = [line for span in history.spans for line in span.cuts]
        cuts += [line for line in history.others if line["event_type"] == "layer_cut"]
        cut = [line for line in cuts if line["body"]["layer"] == newest][-1]
        again = LayerCut.from_body({**cut["body"], "durable": True})
        self.opened.writer.append([again.event("world", span_id=cut.get("span_id"))])
        self.opened.writer.sync()

    # --- the end of a world

    def take_up(self) -> None:
        """The world goes on, if it was over; it is its directory's current one where there is no
        other. Raises OSError; the next opening does it then."""
        if self.world.state != OPEN:
            self.world = replace(self.world, state=OPEN)
            save_world(self.opened.files, self.world, sync=True)
        device, _, inode = self.world.workspace_key.partition(b"-")
        place = Workspace(path=self.world.workspace, device=int(device, 16), inode=int(inode))
        current = store.current_session(self.home, place)
        if current is None or not os.path.isdir(store.session_path(self.home, current)):
            store.set_current(self.home, place, self.opened.files.session_id)
        self.stack_file = replace(self.stack_file, ending="")
        save_stack_file(self.opened.files, self.stack_file)
        if not journal.exists(self.opened.files.world_path):
            host_change.unmark(self.home, self.opened.files.session_id)

    def end(self, state: str) -> None:
        """`session_end`, the state, and no current world any more: in this order, so that the
        next opening can do it again (`StackFile.ending`). Raises RecordLater."""
        try:
            self._record_end(state)
        except (OSError, StateError) as error:
            raise restack.RecordLater(f"the world was {state}", error) from error

    def _record_end(self, state: str) -> None:
        writer = self.opened.writer
        history = load_history(self.opened.files)
        if history.end is None:
            end = SessionEnd(
                status="success",
                events=writer.position.seq + 1,
                commands=len(history.spans),
                drops=writer.drops,
            )
            writer.append([end.event("shell")])
            writer.sync()
        self.world = replace(self.world, state=state)
        save_world(self.opened.files, self.world, sync=True)
        store.clear_current(self.home, self.world.workspace_key, self.opened.files.session_id)
        stand_ins.remove(self.opened.files.world_path)
