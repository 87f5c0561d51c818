"""Commands that shared their layer with others: what each changed, applied or undone by itself.

Recording (`cut`) is for the supervisor of the shared layer, while it is written to; the rest is for
the verbs, when the layer is frozen. What can be told apart goes through, path by path; what
cannot is refused with the reason. Invariants: the layer that is shared stays the truth, its own
`fs_diff` comes when it is frozen; what was done is in the trace. Spec: world.md §4; docs/adr/0013.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from substrate.errors import StateError, UsageError
from substrate.session import applying, fs_write
from substrate.session.history import History, Span
from substrate.session.layer_record import FileDigests, layer_events
from substrate.session.pending import Held, user_settings
from substrate.session.record import Recorder, SoftDiff
from substrate.session.recorded import applied_states, check_layers, load_recorded_softs
from substrate.session.undo import NothingToUndo
from substrate.telemetry.trace.digests import Digester
from substrate.telemetry.trace.envelope import Event
from substrate.telemetry.trace.events.command import DiffCounts
from substrate.telemetry.trace.events.layers import Undo
from substrate.telemetry.trace.octets import bytes_of
from substrate.values import replace
from substrate.world import layers, preimages, soft
from substrate.world.change import Change, summary
from substrate.world.dependence import touched
from substrate.world.descendants import descendants_of
from substrate.world.diff import diff_pending
from substrate.world.handle import World
from substrate.world.layers import LayerStack
from substrate.world.open_files import OpenFiles
from substrate.world.plan import Plan
from substrate.world.resolve import OnConflict
from substrate.world.review import hard_linked, review_plan
from substrate.world.scope import Scope
from substrate.world.soft import SoftLayer, State, WrittenPath, parents
from substrate.world.soft_changes import diff_soft
from substrate.world.soft_claims import contested
from substrate.world.soft_cut import Bounds, Cut, cut_soft_layer
from substrate.world.soft_undo import (
    Choice,
    Undone,
    choose,
    open_merged,
    undo_in_layer,
    undo_in_world,
)
from substrate.world.treedigest import layer_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class CutEvents:
    """What the trace is told of a soft layer."""

    events: tuple[Event, ...]
    cut: Cut
    counts: DiffCounts


def cut(
    recorder: Recorder,
    digester: Digester,
    stack: LayerStack,
    layer: int,
    span: str,
    written: Sequence[WrittenPath],
    others: Callable[[], Mapping[str, Sequence[WrittenPath]]],
    *,
    begun_ns: int,
    shared_with: Sequence[str],
    held_by: Callable[[Sequence[bytes]], Mapping[bytes, str]] | None = None,
    undoes: int = 0,
) -> CutEvents | None:
    """Cuts the soft layer of a span and says what the trace is told of it; None where it wrote
    nothing that is left. As `cut_soft_layer`; `shared_with`: the spans that were live with it."""
    digest = FileDigests(digester)
    kept = preimages.Preimages(
        os.path.dirname(stack.directory) + b"/" + preimages.NAME, digester.digest_bytes
    )
    found = cut_soft_layer(
        stack,
        layer,
        span,
        written,
        others,
        begun_ns=begun_ns,
        digest=digest,
        keyed=digester.digest_bytes,
        preimages=kept,
        bounds=Bounds(size_bytes=recorder.settings.soft_max_bytes),
        held_by=held_by,
        undoes=undoes,
    )
    if found is None:
        return None
    told = SoftDiff(
        span=None if undoes else span,
        number=found.soft.number,
        shared_with=tuple(shared_with),
        undoes=undoes,
        refused=tuple((entry.path, entry.why) for entry in found.refused),
    )
    changes = list(found.changes)
    event, counts = recorder.fs_diff(layer, changes, found.bases, span=True, soft=told)
    whole = soft.stack_of(stack, found.soft)
    tree = layer_digest(whole, found.soft.left, digest)
    layer_cut = recorder.layer_cut(layer, tree, len(changes), span=True, soft=told)
    return CutEvents(events=(event, layer_cut), cut=found, counts=counts)


# --- which spans have soft layers


def is_soft(span: Span) -> bool:
    return bool(span.softs) and not span.diffs


def refusals(span: Span) -> dict[bytes, str]:
    """The paths that a command wrote and that cannot be told apart, and why, as far as the record
    lists them."""
    return {
        bytes_of(entry["path"]): entry["why"]
        for line in span.softs
        for entry in line["body"].get("refused", ())
    }


def soft_layers(stack: LayerStack, span: Span) -> list[SoftLayer]:
    """The soft layers of a span whose layer is on the stack. Raises StateError where one is gone."""
    found = []
    for line in span.softs:
        layer, number = line["body"]["layer"], line["body"]["soft_layer"]
        if layer not in stack.numbers:
            continue
        path = b"%s/%d" % (soft.directory_of(stack, layer), number)
        if not os.path.isdir(path):
            raise StateError(
                f"the soft layer {number} of layer {layer} is gone",
                hint="the layer that it is of is whole: show, undo or apply that one",
                code="E-SOFT-GONE",
            )
        found.append(soft.load(path))
    return found


def named(held: Held, history: History, names: Sequence[str]) -> tuple[Span, ...]:
    """The soft ones of the spans that a person names; () where none of them is. Raises UsageError
    where only some are."""
    spans = tuple(history.span(name) for name in names)
    wanted = tuple(span for span in spans if is_soft(span))
    if wanted and (len(wanted) != len(spans) or len(spans) > 1):
        raise UsageError(
            f"command {wanted[0].ordinal} shared its layer with others: name it alone",
            hint="one after the other: what each wrote is told apart path by path",
        )
    return wanted


def _one(held: Held, span: Span, *, living: bool = False) -> SoftLayer:
    if not living:
        held.record_left()
    found = soft_layers(held.stack, span)
    if not found:
        raise NothingToUndo(
            f"the changes of command {span.ordinal} are not pending any more",
            hint="the layer that it shared was undone or applied; `substrate log` shows it",
        )
    if len(found) > 1:
        raise StateError(
            f"command {span.ordinal} was kept in {len(found)} parts",
            hint="show it with `substrate diff`; undo or apply the layer that it shared",
            code="E-SOFT-PARTS",
        )
    return found[0]


# --- undo


def choose_undo(held: Held, span: Span) -> Choice:
    """What of a command can be taken back, path by path."""
    return choose(held.stack, _one(held, span), {})


def undo(held: Held, span: Span, choice: Choice) -> tuple[Change, ...]:
    """Takes it back by a new layer on top of the stack; gives what of it was. Raises NothingLeft,
    StateError, OSError; the stack is as it was then."""
    held.stack, layer, done = undo_in_layer(held.stack, choice)
    settings, writer = user_settings(), held.opened.writer
    events, _, _ = layer_events(
        Recorder(writer, settings), Digester(held.opened.key), held.stack, layer.number, span=False
    )
    told = _undo_event(span, layer.number, done)
    writer.append([told.event("world"), *events])
    writer.sync()
    layers.freeze_layer(held.stack, layer.number)
    return done.changes


def undo_living(
    recorder: Recorder,
    digester: Digester,
    stack: LayerStack,
    world: World,
    span: Span,
    target: SoftLayer,
    others: Callable[[], Mapping[str, Sequence[WrittenPath]]],
) -> tuple[tuple[Event, ...], Undone]:
    """Takes a command back in a living world of the caller's own, path by path, and says what the trace
    is told of it. `others`: as for the cut. Raises NothingLeft, StateError, OSError; the world is as it
    was then."""
    choice = choose(stack, target, others())
    with ExitStack() as opened:
        root = world.open_root()
        opened.callback(os.close, root)
        merged: dict[int, int] = {}
        for mount in stack.mounts:
            if any(entry.mount == mount.index for entry in target.entries):
                merged[mount.index] = fd = open_merged(root, mount)
                opened.callback(os.close, fd)
        targets = {m.target: merged[m.index] for m in stack.mounts if m.index in merged}

        def held_by(paths: Sequence[bytes]) -> Mapping[bytes, str]:
            files = OpenFiles(descendants_of(world.holder_pid), world.idle)
            return files.held_by(targets, paths)

        done = undo_in_world(stack, choice, merged, held_by=held_by)
        told = _undo_event(span, target.layer, done)
        own = cut(
            recorder,
            digester,
            stack,
            target.layer,
            f"undo of {target.span}",
            done.written,
            others,
            begun_ns=done.begun_ns,
            shared_with=sorted(others()),
            held_by=held_by,
            undoes=target.number,
        )
    return (told.event("world"), *(own.events if own else ())), done


def _undo_event(span: Span, layer: int, done: Undone) -> Undo:
    """`layer`: the one in which it was taken back."""
    return Undo(
        spans=(span.span_id,),
        layers=(),
        with_deps=False,
        extra=(
            ("soft", True),
            ("layer", layer),
            ("paths", len(done.changes)),
            ("refused_count", len(done.refused)),
        ),
    )


# --- apply


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftReview:
    """What an apply of one command would do. `refused`: path → why it is left out."""

    review: applying.Review
    plan: Plan
    stack: LayerStack
    refused: Mapping[bytes, str]


def review_apply(
    held: Held,
    span: Span,
    history: History,
    select: Callable[[bytes], bool] | None = None,
    on_conflict: OnConflict = OnConflict.FAIL,
    *,
    living: bool = False,
) -> SoftReview:
    """What an apply of a command would do, as `applying.review` says it. `living`: the layer that it
    shared is still written to, by a world of the caller's own. Raises StateError where its soft layer
    does not hold what was recorded."""
    target = _one(held, span, living=living)
    files = held.opened.files
    recorded = load_recorded_softs(files, history, [target], held.opened.key)
    stack = soft.stack_of_left(held.stack, [target])
    own = diff_soft(held.stack, target)
    refused = _apart(held, target, own, _already(held, history))
    wanted = {c.path for c in own} - refused.keys()
    if select is not None:
        wanted = {path for path in wanted if select(path)}
    changes = [
        c
        for c in diff_pending(stack, digest=recorded.bases.digest, skip_gone=True)
        if c.path in wanted or (c.kind == "added" and _leads_to(c, wanted))
    ]
    found = review_plan(
        changes,
        stack,
        files.world_path,
        recorded.bases,
        wanted.__contains__,
        on_conflict,
        applying.kept_texts(held),
    )
    planned = fs_write.with_given(held, found.plan)
    check_layers(planned.changes, recorded.digests, stack)
    review = applying.Review(
        changes=planned.changes,
        counts=summary(planned.changes),
        conflicts=found.conflicts,
        dangers=planned.dangers,
        on_conflict=on_conflict,
        left_out=found.left_out,
        hard_linked=hard_linked(planned),
        forbidden=fs_write.forbidden(held, planned.changes),
    )
    return SoftReview(review=review, plan=planned, stack=stack, refused=refused)


def _leads_to(change: Change, wanted: Iterable[bytes]) -> bool:
    """Whether it is a new directory in which something wanted lies."""
    start = change.path + b"/"
    is_directory = change.after is not None and change.after.type == "directory"
    return is_directory and any(path.startswith(start) for path in wanted)


def _already(held: Held, history: History) -> set[tuple[str, bytes]]:
    """(span, path) of what applies of single commands brought to the host, and that stands."""
    undone = {
        line["body"]["apply_seq"]
        for line in history.others
        if line["event_type"] == "undo" and "apply_seq" in line["body"]
    }
    return {
        (span, path)
        for line in history.others
        if line["event_type"] == "fs_apply"
        and line["body"].get("soft")
        and line["body"]["outcome"] == "applied"
        and line["seq"] not in undone
        for path, _ in applied_states(held.opened.files, line)
        for span in line["body"]["spans"]
    }


def _apart(
    held: Held, target: SoftLayer, own: list[Change], already: set[tuple[str, bytes]]
) -> dict[bytes, str]:
    """The paths of a soft layer that cannot be applied without others, and why."""
    stack = held.stack
    scope = Scope(stack, include_scratch=False)
    found = {
        e.path: e.why
        for e in target.entries
        if e.state is not State.KEPT and scope.may_hold(e.path)
    }
    softs = soft.load_all(stack, target.layer)
    for path, span in contested(target, softs, {}).items():
        found.setdefault(path, f"span {span} wrote at the same time")
    whole_tree = {e.path: e.whole_tree for e in target.entries}
    for each in softs:
        if each.number == target.number:
            continue
        theirs = {e.path: e for e in each.entries if (each.span, e.path) not in already}
        holders = {above for path in theirs for above in parents(path)}
        for change in own:
            path = change.path
            tops = [above for above in parents(path) if above in theirs]
            if (
                path in theirs
                or any(theirs[above].form is not soft.Form.DIRECTORY for above in tops)
                or (whole_tree.get(path) and path in holders)
            ):
                found.setdefault(path, f"span {each.span} wrote it too")
    for number in stack.numbers:
        if number != target.layer:
            for path in touched(stack, number, own):
                found.setdefault(path, f"layer {number} touched it too")
    return found


def apply(
    held: Held,
    span: Span,
    found: SoftReview,
    *,
    allow_special: bool = False,
    living: bool = False,
) -> applying.Done:
    """Applies it. The layer stays on the stack, and knows by the record what of it is on the host. As
    `applying.apply`; `living` as above."""
    number = next(line["body"]["layer"] for line in span.softs)
    if living:  # it is not frozen, so it is not written down as one of the stack
        below = tuple(layer for layer in held.stack.layers if layer.number < number)
        held.stack = replace(held.stack, layers=below)
    return applying.apply_part(
        held,
        found.review,
        found.plan,
        found.stack,
        layers=(number,),
        spans=(span.span_id,),
        extra=(("soft", True),),
        allow_special=allow_special,
        may_end=not living,
    )
