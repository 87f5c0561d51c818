"""Undoing an apply: the host becomes what it was before, and the changes are pending again.

The doing is world/reverse_undo.py; here the apply is found, the world taken up again, and the
trace told. Not the undo of commands, which moves layers alone (undo.py). Invariants: the host is
changed first, all of it or nothing; a world that was over is open again only when it was, and
is the directory's current one where there is no other. Spec: world.md §4.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from substrate.errors import StateError
from substrate.session.host_change import change_host
from substrate.session.pending import Held
from substrate.session.restack import RecordLater
from substrate.session.stack_file import apply_below
from substrate.session.undo import NothingToUndo
from substrate.session.world_file import OPEN
from substrate.telemetry.trace.events.layers import Undo
from substrate.values import as_dict
from substrate.world.change import Change, Summary, summary
from substrate.world.layers import LayerStack
from substrate.world.reverse import reverse_numbers
from substrate.world.reverse_check import UndoConflict, UndoReview, review_undo
from substrate.world.reverse_undo import undo_apply


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewed:
    """What undoing an apply would do. `changes`: to the host. `layers`: that come back on the
    stack, since they had left it with the apply. `off`: layers of the apply that stay off it,
    since an undo or a rollback has taken them off after the apply."""

    number: int
    line: dict[str, Any]  # the apply's, in the trace
    changes: tuple[Change, ...]
    counts: Summary
    conflicts: tuple[UndoConflict, ...]
    layers: tuple[int, ...]
    off: tuple[int, ...]
    inner: UndoReview


def review(held: Held) -> Reviewed:
    """The world's last apply. Raises NothingToUndo, StateError."""
    world_path = held.opened.files.world_path
    numbers = reverse_numbers(world_path)
    if not numbers:
        raise NothingToUndo(
            f"no apply of world {held.world.name} can be undone",
            hint="nothing was applied, what it displaced was collected (`world gc`), or the "
            "world's layers lie on a tmpfs, where an apply keeps nothing",
        )
    number = numbers[-1]
    others = held.history().others
    _refuse_to_skip(held.world.name, others, number)
    lines = [
        line
        for line in others
        if line["event_type"] == "fs_apply" and line["body"].get("reverse_layer") == number
    ]
    if not lines:
        raise StateError(
            f"the record does not know the apply that reverse layer {number} is of: its "
            "supervisor was killed before it could be told",
            hint="`substrate diff` shows what is still pending; the files it displaced lie in "
            f"{os.fsdecode(world_path)}/reverse/{number}",
        )
    layers, off = _to_come_back(held, lines[-1], others)
    inner = review_undo(world_path, number)
    return Reviewed(
        number=number,
        line=lines[-1],
        changes=inner.plan.changes,
        counts=summary(inner.plan.changes),
        conflicts=inner.conflicts,
        layers=layers,
        off=off,
        inner=inner,
    )


def _refuse_to_skip(name: str, others: Sequence[dict[str, Any]], number: int) -> None:
    """A quota can take what a later apply displaced and leave what an earlier one did. Reverse
    layers are numbered in the order of their applies."""
    undone = {o["body"].get("apply_seq") for o in others if o["event_type"] == "undo"}
    later = [
        line
        for line in others
        if line["event_type"] == "fs_apply"
        and line["seq"] not in undone
        and (line["body"].get("reverse_layer") or 0) > number
    ]
    if later:
        raise NothingToUndo(
            f"the last apply of world {name} cannot be undone: what it displaced was collected",
            hint="an earlier one is not undone below it",
        )


def _to_come_back(
    held: Held, line: dict[str, Any], others: Sequence[dict[str, Any]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The layers of an apply that left the stack with it, and those that were taken off since.
    Raises NothingToUndo where one of the first is gone: what it holds is on the host alone."""
    stack = held.stack
    on_stack = set(held.stack.numbers)
    wanted = [n for n in line["body"]["layers"] if n not in on_stack]
    taken = _taken_off([other for other in others if other["seq"] > line["seq"]])
    # in a fork, those of its base as well: nothing keeps them where no stack holds them
    if any(n not in taken and not os.path.isdir(_path(stack, n)) for n in wanted):
        raise NothingToUndo(
            f"the last apply of world {held.world.name} cannot be undone: its layers were collected, "
            "so what it put on the host is there alone",
            hint="take back by hand what is not wanted; what the apply displaced lies in "
            f"{os.fsdecode(held.opened.files.world_path)}/reverse/{line['body']['reverse_layer']}",
        )
    return tuple(n for n in wanted if n not in taken), tuple(n for n in wanted if n in taken)


def _path(stack: LayerStack, number: int) -> bytes:
    return b"%s/%d" % (stack.directory_of(number), number)


def _taken_off(later: Sequence[dict[str, Any]]) -> set[int]:
    """The layers that undoing commands and rollbacks have taken off the stack."""
    taken: set[int] = set()
    for line in later:
        kind, body = line["event_type"], line["body"]
        if kind == "undo" and "apply_seq" not in body:
            taken |= set(body["layers"])
        elif kind == "rollback":
            taken |= set(body["dropped"])
            taken -= set(body.get("restored", ()))
    return taken


def carry_out(held: Held, reviewed: Reviewed) -> None:
    """Undoes it. Raises UndoRefused where the host was touched since, StateError, OSError; the
    host is as it was then. Raises RecordLater where it was undone, and the rest has to follow."""
    event = Undo(
        spans=tuple(reviewed.line["body"].get("spans", ())),
        layers=tuple(reviewed.line["body"]["layers"]),
        with_deps=False,
        extra=(
            ("apply_seq", reviewed.line["seq"]),
            ("reverse_layer", reviewed.number),
            ("counts", as_dict(reviewed.counts)),
        ),
    )
    over = held.world.state != OPEN
    change_host(
        held,
        event,
        sorted({*held.stack.numbers, *reviewed.layers}),
        lambda: undo_apply(
            held.opened.files.world_path,
            reviewed.number,
            reviewed=reviewed.inner,
            keep_journal=True,
        ),
        applies=apply_below(held.stack_file),
        ending=OPEN if over else "",
        what="undone",
    )
    if over:
        try:
            held.take_up()
        except (OSError, StateError) as error:
            raise RecordLater("it was undone", error) from error
