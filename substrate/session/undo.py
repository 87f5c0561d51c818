"""Taking commands back: undo of the last or of an earlier one, snapshots, rollback.

All of it moves layers off the world's stack or back onto it; nothing that a layer holds is
changed, and what was taken off stays on the disk until `world gc`. Not the undo of an apply,
which changes the host (undo_apply.py). Invariant: a layer leaves the stack only together with
every layer that builds on it, so what is left is a state that the remaining commands would
have made. Spec: world.md §4.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from substrate.errors import StateError, SubstrateError, UsageError
from substrate.session.history import History, Span
from substrate.session.pending import Held
from substrate.session.stack_file import SnapshotMark, StackFile
from substrate.telemetry.trace.events.layers import Rollback, Snapshot, Undo
from substrate.world.change import Change, Summary, summary
from substrate.world.dependence import Dependences
from substrate.world.diff import diff_layer
from substrate.world.layers import sync_layers

#: longest name of a snapshot, in characters
_NAME_LENGTH = 64


class NothingToUndo(SubstrateError):
    """The answer is no: there is no layer of what was asked for."""

    exit_status = 1


class BuiltOn(StateError):
    """Nothing was undone or applied: other layers share paths with the wanted ones."""

    def __init__(self, others: dict[int, list[bytes]], names: dict[int, str], verb: str) -> None:
        first, paths = next(iter(others.items()))
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        super().__init__(
            f"nothing was {verb}: {names[first]} touched {os.fsdecode(paths[0])} too{more}",
            hint="--with-deps takes them along; --dry-run lists them",
            code="E-LAYER-DEPENDS",
        )
        self.others = others


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Layers that were asked for. `layers`: oldest first, with what depends on them where that
    was wanted. `others`: layer → paths that it shares with them, of those left out. `names`:
    what a person calls each layer."""

    layers: tuple[int, ...]
    spans: tuple[str, ...]
    others: dict[int, list[bytes]]
    names: dict[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """What an undo or a rollback took off the stack. `changes`: what it had changed."""

    layers: tuple[int, ...]
    names: tuple[str, ...]
    changes: tuple[Change, ...]
    counts: Summary
    restored: tuple[int, ...] = ()


def layer_of(span: Span) -> int | None:
    """The layer of a command; None where it changed nothing."""
    if not span.diffs:
        return None
    number = span.diffs[-1]["body"]["layer"]
    assert isinstance(number, int)
    return number


def names_of(history: History, numbers: Sequence[int]) -> dict[int, str]:
    """What a person calls each layer."""
    spans = {layer_of(span): span for span in history.spans}
    return {n: f"command {spans[n].ordinal}" if n in spans else f"layer {n}" for n in numbers}


def choose(
    held: Held, wanted: Sequence[str], *, with_deps: bool, both_ways: bool = False
) -> Choice:
    """The layers of the commands that `wanted` names; none: the newest layer of the stack.

    `both_ways`: also older layers that share paths count (for an apply). Raises UsageError,
    NothingToUndo."""
    held.record_left()
    history = held.history()
    numbers = _numbers(held, history, wanted)
    depends = Dependences(held.stack)
    if with_deps:
        numbers = depends.closed(numbers) if both_ways else depends.closed_upward(numbers)
    others = depends.around(numbers) if both_ways else depends.on(numbers)
    spans = {layer_of(span): span.span_id for span in history.spans}
    return Choice(
        layers=tuple(numbers),
        spans=tuple(spans[n] for n in numbers if n in spans),
        others=others,
        names=names_of(history, held.stack.numbers),
    )


def _numbers(held: Held, history: History, wanted: Sequence[str]) -> list[int]:
    on_stack = held.stack.numbers
    if not wanted:
        if not on_stack:
            raise NothingToUndo(
                f"nothing is pending in world {held.world.name}",
                hint="`substrate undo --apply` takes the last apply back",
            )
        return [on_stack[-1]]
    numbers = set()
    for name in wanted:
        span = history.span(name)
        number = layer_of(span)
        if number is None:
            raise NothingToUndo(
                f"command {span.ordinal} changed nothing", hint="`substrate log` shows what did"
            )
        if number not in on_stack:
            raise NothingToUndo(
                f"the changes of command {span.ordinal} are not pending any more",
                hint="they were undone or applied; `substrate status` shows what is pending",
            )
        numbers.add(number)
    return sorted(numbers)


def undo(held: Held, choice: Choice, *, with_deps: bool) -> None:
    """Takes the layers off the stack. Raises BuiltOn where others depend on them."""
    if choice.others:
        raise BuiltOn(choice.others, choice.names, "undone")
    event = Undo(spans=choice.spans, layers=choice.layers, with_deps=with_deps)
    held.restack([n for n in held.stack.numbers if n not in choice.layers], [event])


def look(held: Held, choice: Choice) -> Undone:
    """What an undo takes off, in scratch directories too."""
    return _undone(held, choice.layers, choice.names)


def _undone(held: Held, numbers: Sequence[int], names: dict[int, str]) -> Undone:
    changes = [c for n in numbers for c in diff_layer(held.stack, n, include_scratch=True)]
    return Undone(
        layers=tuple(numbers),
        names=tuple(names[n] for n in numbers),
        changes=tuple(changes),
        counts=summary(changes),
    )


def layers_at(
    on_stack: tuple[int, ...], stack_file: StackFile, history: History, at: str | None
) -> tuple[int, ...]:
    """The layers of a state: the present one, a snapshot's, or that after a command. Raises
    UsageError, StateError for a snapshot that cannot be had back."""
    if at is None:
        return on_stack
    for mark in stack_file.snapshots:
        if mark.name == at:
            _refuse_if_undone(mark, stack_file)
            return mark.layers
    span = history.span(at)
    numbers = [n for s in history.spans[: span.ordinal] if (n := layer_of(s)) is not None]
    base = max((last for last, _ in stack_file.elsewhere), default=0)  # of a fork
    newest = max(base, *numbers, 0)
    return tuple(n for n in on_stack if n <= newest)


# --- snapshots


def snapshot(held: Held, name: str, *, replace_old: bool = False) -> SnapshotMark:
    """Names the present state. Raises UsageError for a name that is none or is taken."""
    if not name or len(name) > _NAME_LENGTH or not name.isprintable() or name.isspace():
        raise UsageError(
            f"{name!r} is no name for a snapshot, expected 1 to {_NAME_LENGTH} printable characters",
            hint="for example: substrate snapshot before-refactoring",
        )
    if name == "last" or name.isdigit():
        raise UsageError(
            f"{name!r} is no name for a snapshot, since it names a command",
            hint="for example: substrate snapshot before-refactoring",
        )
    known = held.stack_file.snapshots
    if any(mark.name == name for mark in known) and not replace_old:
        raise UsageError(
            f"world {held.world.name} has a snapshot {name!r} already",
            hint="choose another name, or --force to move it here",
        )
    held.record_left()
    mark = SnapshotMark(
        name=name,
        layers=held.stack.numbers,
        at_us=time.time_ns() // 1000,
        applies=held.stack_file.applies,
    )
    sync_layers(held.stack)
    event = Snapshot(
        name=name,
        layer=held.stack.numbers[-1] if held.stack.layers else 0,
        extra=(("durable", True),),
    )
    others = tuple(m for m in known if m.name != name)
    held.restack(held.stack.numbers, [event], snapshots=(*others, mark))
    return mark


def find_snapshot(held: Held, name: str) -> SnapshotMark:
    """The snapshot of that name. Raises UsageError."""
    known = {mark.name: mark for mark in held.stack_file.snapshots}
    if name not in known:
        from substrate.suggestion import did_you_mean

        raise UsageError(
            f"world {held.world.name} has no snapshot {name!r}",
            hint=did_you_mean(name, known, "`substrate snapshot` lists them"),
        )
    return known[name]


def forget_snapshot(held: Held, name: str) -> None:
    """Drops a name; no layer moves, but `world gc` may now take those that only it kept."""
    mark = find_snapshot(held, name)
    rest = tuple(m for m in held.stack_file.snapshots if m.name != name)
    event = Snapshot(
        name=name, layer=mark.layers[-1] if mark.layers else 0, extra=(("removed", True),)
    )
    held.restack(held.stack.numbers, [event], snapshots=rest)


def _refuse_if_undone(mark: SnapshotMark, stack_file: StackFile) -> None:
    """What the apply had brought to the host is in layers that the snapshot does not name."""
    if mark.applies not in (0, *stack_file.applies_below, stack_file.applies):
        raise StateError(
            f"snapshot {mark.name!r} was made after an apply that was undone since: its layers alone "
            "are not that state",
            hint="`substrate log` shows the commands, `substrate undo` takes single ones back",
            code="E-SNAPSHOT-UNDONE",
        )


def look_back(held: Held, name: str) -> Undone:
    """What a rollback to the snapshot takes off and brings back. Raises UsageError, StateError
    where an apply lies between."""
    held.record_left()
    mark = find_snapshot(held, name)
    _refuse_if_undone(mark, held.stack_file)
    if mark.applies != held.stack_file.applies:
        raise StateError(
            f"since snapshot {name!r} something was applied to the host, which a rollback does "
            "not take back",
            hint="`substrate undo --apply` takes the last apply back; then roll back",
            code="E-SNAPSHOT-APPLIED",
        )
    dropped = [n for n in held.stack.numbers if n not in mark.layers]
    restored = tuple(n for n in mark.layers if n not in held.stack.numbers)
    names = names_of(held.history(), held.stack.numbers)
    return replace(_undone(held, dropped, names), restored=restored)


def rollback(held: Held, name: str, found: Undone) -> None:
    """Makes the stack what it was at the snapshot; `found`: as `look_back` gave it. Raises
    StateError where a layer is gone."""
    mark = find_snapshot(held, name)
    event = Rollback(
        name=name,
        layer=mark.layers[-1] if mark.layers else 0,
        dropped=found.layers,
        extra=(("restored", list(found.restored)),) if found.restored else (),
    )
    held.restack(mark.layers, [event])
