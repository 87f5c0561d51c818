"""What is pending in a world, brought to the host: what it would do, then the doing.

Not the mechanics (world/apply.py) nor the selection of commands (undo.py). Invariants: everything
is applied or nothing; what was done, or refused, is in the trace. Spec: world.md §5.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from substrate.session import fs_write, host_change
from substrate.session.fs_write import Forbidden, WriteDenied
from substrate.session.pending import Held
from substrate.session.recorded import check_layers, load_recorded, plain_states
from substrate.session.stack_file import next_apply
from substrate.session.world_file import APPLIED
from substrate.telemetry.trace.digests import Digester
from substrate.telemetry.trace.events import changes as events
from substrate.telemetry.trace.events.policy import PolicyDecision
from substrate.telemetry.trace.octets import text_or_b64
from substrate.telemetry.trace.rfc8785 import encode
from substrate.values import as_dict, replace
from substrate.world import preimages
from substrate.world.apply import Applied
from substrate.world.apply import apply as apply_plan
from substrate.world.bases import outcomes
from substrate.world.change import Change, Summary, summary
from substrate.world.conflict import Conflict
from substrate.world.diff import diff_layer, diff_pending
from substrate.world.layers import LayerStack
from substrate.world.plan import Danger, Plan
from substrate.world.refusal import ApplyConflict, DangerRefused
from substrate.world.resolve import OnConflict
from substrate.world.review import hard_linked, review_plan


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
    #: what the policy has stay in the world: nothing passes that
    forbidden: tuple[Forbidden, ...] = ()

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


def review(
    held: Held,
    select: Callable[[bytes], bool] | None = None,
    numbers: Sequence[int] | None = None,
    on_conflict: OnConflict = OnConflict.FAIL,
) -> tuple[Review, Plan]:
    """What an apply would do, its conflicts, how they are decided and its dangers; of the
    layers `numbers` alone where they are given. Raises StateError where a layer does not
    hold what was recorded."""
    held.record_left()
    stack = _part(held, numbers)
    files = held.opened.files
    recorded = load_recorded(held.home, files, held.stack_file, stack, held.opened.key)
    changes = diff_pending(stack, digest=recorded.bases.digest)
    found = review_plan(
        changes,
        stack,
        files.world_path,
        recorded.bases,
        select,
        on_conflict,
        kept_texts(held),
    )
    planned = fs_write.with_given(held, found.plan)
    check_layers(planned.changes, recorded.digests, stack)
    review = Review(
        changes=planned.changes,
        counts=summary(planned.changes),
        conflicts=found.conflicts,
        dangers=planned.dangers,
        on_conflict=on_conflict,
        left_out=found.left_out,
        hard_linked=hard_linked(planned),
        forbidden=fs_write.forbidden(held, planned.changes),
    )
    return review, planned


def kept_texts(held: Held) -> Callable[[str], bytes | None]:
    """The contents that a merge begins from, by their digest."""
    sessions = os.path.dirname(held.opened.files.path)
    worlds = [held.opened.files.world_path]
    worlds += [
        b"%s/%s/world" % (sessions, session.encode())
        for _, session in reversed(held.stack_file.elsewhere)
    ]
    directories = [world + b"/" + preimages.NAME for world in worlds]
    keyed = Digester(held.opened.key).digest_bytes
    return lambda digest: preimages.load(directories, digest, keyed)


def _part(held: Held, numbers: Sequence[int] | None) -> LayerStack:
    if numbers is None:
        return held.stack
    wanted = frozenset(numbers)
    return replace(held.stack, layers=tuple(x for x in held.stack.layers if x.number in wanted))


def apply(
    held: Held,
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

    Raises ApplyConflict, DangerRefused, WriteDenied, StateError; nothing is applied then, and the
    attempt is in the trace."""
    found, planned = reviewed or review(held, select, numbers)
    stack = _part(held, numbers)
    told = _Asked(tuple(paths), tuple(spans), stack.numbers)
    gone: frozenset[int] = frozenset()
    if select is None and numbers is not None:
        gone = frozenset(n for n in numbers if not _holds_scratch(held, n))
    rest = [n for n in held.stack.numbers if n not in gone]
    # of layers that stay; without select and numbers, the world is over
    stays = select is not None or (numbers is not None and gone != frozenset(numbers))
    event = _apply_event(
        held,
        told,
        found,
        "applied",
        found.conflicts,
        _outcomes(held, planned, stack) if stays else [],
    )
    _refuse_forbidden(held, told, found)
    ending = APPLIED if _takes_all(held, found, select, numbers, rest) else ""
    applied: Applied | None = None
    if planned.changes:
        try:
            applied = host_change.change_host(
                held,
                event,
                rest,
                lambda: apply_plan(
                    planned,
                    stack,
                    held.opened.files.world_path,
                    allow_special=allow_special,
                    # overlayfs lets nobody make a whiteout on it, which a reverse layer needs
                    keep_reverse=not held.world.layers_at,
                    keep_journal=True,
                ),
                applies=next_apply(held.stack_file),
                ending=ending,
                what="applied",
            )
        except ApplyConflict as refused:
            _refuse(held, told, found, "conflicts", refused.conflicts)
            raise
        except DangerRefused:
            _refuse(held, told, found, "refused", ())
            raise
    else:
        held.restack(rest, [event], ending=ending)
    over = bool(ending) or not held.changes()
    if over:
        held.end(APPLIED)
    return Done(
        counts=found.counts,
        over=over,
        kept_owner=applied.kept_owner if applied else (),
        left=applied.left if applied else (),
    )


def apply_part(
    held: Held,
    found: Review,
    planned: Plan,
    stack: LayerStack,
    *,
    layers: tuple[int, ...],
    spans: tuple[str, ...],
    extra: tuple[tuple[str, Any], ...],
    allow_special: bool,
    may_end: bool,
) -> Done:
    """Applies a plan that was made of another `stack` than the world's, of parts of `layers` which
    stay. `may_end`: the world is over where nothing is left. As `apply`."""
    told = _Asked((), spans, layers)
    _refuse_forbidden(held, told, found)
    states = _outcomes(held, planned, stack)
    event = _apply_event(held, told, found, "applied", found.conflicts, states)
    event = replace(event, extra=(*event.extra, *extra))
    applied: Applied | None = None
    if planned.changes:
        try:
            applied = host_change.change_host(
                held,
                event,
                held.stack.numbers,
                lambda: apply_plan(
                    planned,
                    stack,
                    held.opened.files.world_path,
                    allow_special=allow_special,
                    keep_reverse=not held.world.layers_at,
                    keep_journal=True,
                ),
                applies=next_apply(held.stack_file),
                ending="",
                what="applied",
            )
        except ApplyConflict as refused:
            _refuse(held, told, found, "conflicts", refused.conflicts)
            raise
        except DangerRefused:
            _refuse(held, told, found, "refused", ())
            raise
    else:
        held.restack(held.stack.numbers, [event])
    over = may_end and not held.changes()
    if over:
        held.end(APPLIED)
    return Done(
        counts=found.counts,
        over=over,
        kept_owner=applied.kept_owner if applied else (),
        left=applied.left if applied else (),
    )


def _refuse_forbidden(held: Held, told: _Asked, found: Review) -> None:
    """Raises WriteDenied where the policy has some of it stay in the world."""
    if not found.forbidden:
        return
    first = found.forbidden[0]
    listed = [text_or_b64(each.path) for each in found.forbidden[: events.MAX_ENTRIES]]
    decision = PolicyDecision(
        kind="fs",
        subject=first.path,
        decision="deny",
        action="denied",
        rule=first.rule,
        policy_digest=first.policy_digest,
        reason="it may not be applied",
        extra=(("count", len(found.forbidden)), ("paths", _listed(held, listed))),
    )
    _refuse(held, told, found, "denied", (), (decision,))
    raise WriteDenied(found.forbidden)


def _holds_scratch(held: Held, number: int) -> bool:
    whole = diff_layer(held.stack, number, include_scratch=True)
    return len(whole) > len(diff_layer(held.stack, number))


def _takes_all(
    held: Held,
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
        return not diff_pending(_part(held, left), skip_gone=True)
    if review.conflicts or review.left_out:
        return False  # what was decided may still differ from the host
    taken = {(change.mount, change.path) for change in review.changes}
    return taken >= {(change.mount, change.path) for change in held.changes()}


def _refuse(
    held: Held,
    told: _Asked,
    review: Review,
    outcome: str,
    conflicts: Sequence[Conflict],
    before: Sequence[PolicyDecision] = (),
) -> None:
    event = _apply_event(held, told, review, outcome, conflicts)
    decided = [each.event("broker") for each in before]
    held.opened.writer.append([*decided, event.event("world")])


def _apply_event(
    held: Held,
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
        extra.append(("left_out", _listed(held, [text_or_b64(p) for p in review.left_out])))
    if applied:
        extra.append(("applied", _listed(held, applied)))
    return events.FsApply(
        layers=told.layers,
        target=held.world.workspace,
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


def _outcomes(held: Held, planned: Plan, stack: LayerStack) -> list[dict[str, Any]]:
    if planned.bases is None:
        return []
    return plain_states(outcomes(planned.changes, stack, planned.bases, planned.contents))


def _listed(held: Held, plain: Sequence[object]) -> object:
    """A list for an event, or a blob's reference for more than a line should hold."""
    plain = list(plain)
    whole = encode(plain)
    if len(plain) <= events.MAX_ENTRIES and len(whole) < 128 * 1024:
        return plain
    return held.opened.writer.blobs.put(whole, "application/json").as_json()
