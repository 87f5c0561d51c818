"""What is pending in a session's world, brought to the host or thrown away.

Opens the session with its lock, puts right what an interrupted apply left, and writes what
is done into the trace. Not the mechanics (world/apply.py) nor the looking (history.py).
Invariants: everything is applied or nothing; what was done is in the trace; a session whose
world is over has its `session_end`, and its directory no current world. The layers of a
world that was applied stay until `world gc`. Spec: world.md §4, §5.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from substrate.errors import SessionBusy, StateError, SubstrateError, TraceVersionError
from substrate.session import host_change, layer_place, opening, restack, stand_ins, store
from substrate.session.fork_bases import used_by_forks
from substrate.session.history import History, load_history
from substrate.session.home import Home
from substrate.session.layer_record import layer_events
from substrate.session.lost_layers import Lost, forget_place
from substrate.session.opening import Opened
from substrate.session.record import Recorder
from substrate.session.recorded import check_layers, load_recorded, plain_states
from substrate.session.settings import Settings, load_settings, places
from substrate.session.stack_file import (
    StackFile,
    load_stack_file,
    next_apply,
    save_stack_file,
    with_stack_file,
)
from substrate.session.summary import count_phrase
from substrate.session.workspace import Workspace, current_directory
from substrate.session.world_file import APPLIED, DISCARDED, OPEN, WorldFile, save_world
from substrate.telemetry.trace.digests import Digester
from substrate.telemetry.trace.events import changes as events
from substrate.telemetry.trace.events.body import Body
from substrate.telemetry.trace.events.session import SessionEnd
from substrate.telemetry.trace.events.world import LayerCut
from substrate.telemetry.trace.octets import text_or_b64
from substrate.telemetry.trace.rfc8785 import encode
from substrate.values import as_dict, replace
from substrate.world import journal, layers, preimages, squash
from substrate.world.apply import Applied
from substrate.world.apply import apply as apply_plan
from substrate.world.bases import outcomes
from substrate.world.change import Change, Summary, is_time_alone, summary
from substrate.world.conflict import Conflict
from substrate.world.diff import diff_layer, diff_pending
from substrate.world.layers import LayerStack
from substrate.world.plan import Danger, Plan
from substrate.world.recover import Outcome
from substrate.world.refusal import ApplyConflict, DangerRefused
from substrate.world.resolve import OnConflict
from substrate.world.review import hard_linked, review_plan

__all__ = ["ApplyConflict", "DangerRefused", "Done", "Held", "Review", "open_pending", "phrase"]

_DURABILITY = "command"


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """What an apply would do. Nothing has been touched."""

    changes: tuple[Change, ...]
    counts: Summary
    conflicts: tuple[Conflict, ...]
    dangers: tuple[Danger, ...]
    on_conflict: OnConflict = OnConflict.FAIL
    #: not applied, as they are of one tree with a conflict that the host won
    left_out: tuple[bytes, ...] = ()
    #: files of the host whose other names, by hard links, keep what they hold
    hard_linked: tuple[bytes, ...] = ()

    @property
    def standing(self) -> tuple[Conflict, ...]:
        """The conflicts that nothing was decided about: they keep the apply from happening."""
        return tuple(c for c in self.conflicts if c.resolution is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What was applied. `over`: nothing is left, the world has ended. `kept_owner`: paths that
    stayed ours because we may not give them away."""

    counts: Summary
    over: bool
    kept_owner: tuple[bytes, ...]
    left: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What an apply was asked for, as the trace tells it."""

    paths: tuple[bytes, ...]
    spans: tuple[str, ...]
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """Layers that were removed before that could be recorded, and what they changed."""

    layers: tuple[int, ...]
    counts: Summary


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


def make_room(home: Home, session_id: str) -> Removed:
    """Removes a world's layers where the disk is too full to record that first. The world is
    still open then, with nothing pending; `discard` ends it. Layers of a fork's base stay."""
    claimed = opening.claim(home, session_id)
    files = claimed.files
    try:
        assert claimed.world is not None
        used = used_by_forks(home).get(session_id, 0)
        stack_file = load_stack_file(files)
        bare = claimed.world.bare_stack(files)
        stack = with_stack_file(bare, files, stack_file)
        removed = Removed(layers=stack.numbers, counts=summary(diff_pending(stack, skip_gone=True)))
        known = max(stack.known, *stack.numbers, 0)
        for layer in reversed(layers.list_layers(bare.directory)):
            if layer.number > used:
                layers.remove_layer(stack, layer.number)
        squash.remove_unused(bare)
        preimages.remove_with_layers(bare.directory)
        emptied = replace(stack_file, known=known, layers=(), elsewhere=(), segments=())
        save_stack_file(files, emptied)
        return removed
    finally:
        claimed.lock.drop()
        os.close(files.fd)


def give_up_lost(home: Home, session_id: str, lost: Lost) -> Removed:
    """Has a world forget where its layers lay, which are lost. It is still open then, with
    nothing pending; `discard` ends it."""
    claimed = opening.claim(home, session_id)
    try:
        assert claimed.world is not None
        if not layer_place.is_there(claimed.world.layers_at):
            forget_place(claimed.files, claimed.world)
        return Removed(layers=lost.layers, counts=lost.counts)
    finally:
        claimed.lock.drop()


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

    # --- apply

    def review(
        self,
        select: Callable[[bytes], bool] | None = None,
        numbers: Sequence[int] | None = None,
        on_conflict: OnConflict = OnConflict.FAIL,
    ) -> tuple[Review, Plan]:
        """What an apply would do, its conflicts, how they are decided and its dangers; of the
        layers `numbers` alone where they are given. Raises StateError where a layer does not
        hold what was recorded."""
        self.record_left()
        stack = self._part(numbers)
        files = self.opened.files
        recorded = load_recorded(self.home, files, self.stack_file, stack, self.opened.key)
        changes = diff_pending(stack, digest=recorded.bases.digest)
        found = review_plan(
            changes,
            stack,
            files.world_path,
            recorded.bases,
            select,
            on_conflict,
            self._kept_texts(),
        )
        planned = found.plan
        check_layers(planned.changes, recorded.digests, stack)
        review = Review(
            changes=planned.changes,
            counts=summary(planned.changes),
            conflicts=found.conflicts,
            dangers=planned.dangers,
            on_conflict=on_conflict,
            left_out=found.left_out,
            hard_linked=hard_linked(planned),
        )
        return review, planned

    def _kept_texts(self) -> Callable[[str], bytes | None]:
        """The contents that a merge begins from, by their digest."""
        sessions = os.path.dirname(self.opened.files.path)
        worlds = [self.opened.files.world_path]
        worlds += [
            b"%s/%s/world" % (sessions, session.encode())
            for _, session in reversed(self.stack_file.elsewhere)
        ]
        directories = [world + b"/" + preimages.NAME for world in worlds]
        keyed = Digester(self.opened.key).digest_bytes
        return lambda digest: preimages.load(directories, digest, keyed)

    def _part(self, numbers: Sequence[int] | None) -> LayerStack:
        if numbers is None:
            return self.stack
        wanted = frozenset(numbers)
        return replace(self.stack, layers=tuple(x for x in self.stack.layers if x.number in wanted))

    def apply(
        self,
        *,
        select: Callable[[bytes], bool] | None = None,
        paths: Sequence[bytes] = (),
        numbers: Sequence[int] | None = None,
        spans: Sequence[str] = (),
        allow_special: bool = False,
        reviewed: tuple[Review, Plan] | None = None,
    ) -> Done:
        """Applies what is pending, or what `select` takes of it (`paths`: as it was asked for,
        for the trace), or the layers `numbers` of the commands `spans`, which nothing else on
        the stack depends on and which leave it then, but for those that hold changes in
        scratch directories too: these are not applied and stay for the commands to come.

        Raises ApplyConflict, DangerRefused, StateError; nothing is applied then, and the
        attempt is in the trace."""
        review, planned = reviewed or self.review(select, numbers)
        stack = self._part(numbers)
        told = _Asked(tuple(paths), tuple(spans), stack.numbers)
        gone: frozenset[int] = frozenset()
        if select is None and numbers is not None:
            gone = frozenset(n for n in numbers if not self._holds_scratch(n))
        rest = [n for n in self.stack.numbers if n not in gone]
        # of layers that stay; without select and numbers, the world is over
        stays = select is not None or (numbers is not None and gone != frozenset(numbers))
        event = self._apply_event(
            told,
            review,
            "applied",
            review.conflicts,
            self._outcomes(planned, stack) if stays else [],
        )
        ending = APPLIED if self._takes_all(review, select, numbers, rest) else ""
        applied: Applied | None = None
        if planned.changes:
            try:
                applied = host_change.change_host(
                    self,
                    event,
                    rest,
                    lambda: apply_plan(
                        planned,
                        stack,
                        self.opened.files.world_path,
                        allow_special=allow_special,
                        # overlayfs lets nobody make a whiteout on it, which a reverse layer needs
                        keep_reverse=not self.world.layers_at,
                        keep_journal=True,
                    ),
                    applies=next_apply(self.stack_file),
                    ending=ending,
                    what="applied",
                )
            except ApplyConflict as refused:
                self._refuse(told, review, "conflicts", refused.conflicts)
                raise
            except DangerRefused:
                self._refuse(told, review, "refused", ())
                raise
        else:
            self.restack(rest, [event], ending=ending)
        over = bool(ending) or not self.changes()
        if over:
            self.end(APPLIED)
        return Done(
            counts=review.counts,
            over=over,
            kept_owner=applied.kept_owner if applied else (),
            left=applied.left if applied else (),
        )

    def _holds_scratch(self, number: int) -> bool:
        whole = diff_layer(self.stack, number, include_scratch=True)
        return len(whole) > len(diff_layer(self.stack, number))

    def _takes_all(
        self,
        review: Review,
        select: Callable[[bytes], bool] | None,
        numbers: Sequence[int] | None,
        rest: Sequence[int],
    ) -> bool:
        """Whether nothing is pending when the plan is carried out."""
        if select is None and numbers is None:
            return True
        if select is None:
            left = [n for n in rest if n not in (numbers or ())]
            return not diff_pending(self._part(left), skip_gone=True)
        if review.conflicts or review.left_out:
            return False  # what was decided may still differ from the host
        taken = {(change.mount, change.path) for change in review.changes}
        return taken >= {(change.mount, change.path) for change in self.changes()}

    def _refuse(
        self, told: _Asked, review: Review, outcome: str, conflicts: Sequence[Conflict]
    ) -> None:
        event = self._apply_event(told, review, outcome, conflicts)
        self.opened.writer.append([event.event("world")])

    def _apply_event(
        self,
        told: _Asked,
        review: Review,
        outcome: str,
        conflicts: Sequence[Conflict],
        applied: Sequence[dict[str, Any]] = (),
    ) -> events.FsApply:
        """`applied`: what comes to the host of layers that stay, for the next apply to know. The
        layer by which it can be undone is known when it is done (host_change.py)."""
        listed = conflicts[: events.MAX_ENTRIES]
        extra: list[tuple[str, Any]] = []
        if conflicts:
            extra.append(("conflict_count", len(conflicts)))
        if outcome == "applied" and review.left_out:
            extra.append(("left_out", self._listed([text_or_b64(p) for p in review.left_out])))
        if applied:
            extra.append(("applied", self._listed(applied)))
        return events.FsApply(
            layers=told.layers,
            target=self.world.workspace,
            counts=as_dict(review.counts),
            conflicts=tuple(
                events.Conflict(
                    path=c.path,
                    reason=str(c.reason.value),
                    resolution=None if c.resolution is None else str(c.resolution.value),
                )
                for c in listed
            ),
            reverse_layer=None,
            outcome=outcome,
            spans=told.spans or None,
            paths=told.paths or None,
            on_conflict=str(review.on_conflict.value),
            extra=tuple(extra),
        )

    def _outcomes(self, planned: Plan, stack: LayerStack) -> list[dict[str, Any]]:
        if planned.bases is None:
            return []
        return plain_states(outcomes(planned.changes, stack, planned.bases, planned.contents))

    def _listed(self, plain: Sequence[object]) -> object:
        """A list for an event, or a blob's reference for more than a line should hold."""
        plain = list(plain)
        whole = encode(plain)
        if len(plain) <= events.MAX_ENTRIES and len(whole) < 128 * 1024:
            return plain
        return self.opened.writer.blobs.put(whole, "application/json").as_json()

    # --- discard

    def discard(self, removed: Removed | None = None) -> Summary:
        """Ends the world; its changes never reach the host. Returns what they were.

        It is on the record before the layers go, but for those that `make_room` removed. Where it
        cannot be known what forks stand on, all layers are left to `world gc`."""
        if removed is None:
            removed = Removed(layers=self.stack.numbers, counts=summary(self.changes()))
        on_disk = layers.list_layers(self.stack.directory)
        try:
            used = used_by_forks(self.home).get(self.opened.files.session_id, 0)
        except (StateError, TraceVersionError):
            used = max((layer.number for layer in on_disk), default=0)
        event = events.FsDiscard(layers=removed.layers, counts=as_dict(removed.counts))
        self._left.clear()  # nobody asks any more what they hold
        self.restack([], [event], elsewhere=(), snapshots=(), ending=DISCARDED)
        self.end(DISCARDED)
        try:
            squash.remove_unused(self.stack)
            for layer in reversed(on_disk):
                if layer.number > used:
                    layers.remove_layer(self.stack, layer.number)
            preimages.remove_with_layers(self.stack.directory)
            if not used:
                layer_place.remove(self.home, self.opened.files.session_id)
        except OSError:
            return removed.counts  # it is discarded; the rest is left to `world gc`, which says it
        return removed.counts

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
