"""The end of a command that had its world and its layer for itself, and the end of that world.

Order: what is left of its capture, the end of every process, what its network came to, its layer's diff, then
`command_end` with all of that, and only then is the layer frozen: an unfrozen layer tells the next supervisor to record
it. Not the end of one command among others (sharing.py). Invariant: a layer is read when no process of the world lives.
Spec: world.md §4, trace.md §4, §5.
"""

from __future__ import annotations

import os

from substrate.session import gated_command
from substrate.session.scaffolding import note_of
from substrate.session.signals import RecordInterrupted
from substrate.values import replace, value
from substrate.world import layers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from substrate.session.command_run import Ended
    from substrate.session.denials import Denial
    from substrate.session.live_session import LiveSession
    from substrate.session.live_world import LiveWorld
    from substrate.session.one_command import OneCommand
    from substrate.session.pass_through import PassedThrough
    from substrate.telemetry.trace.envelope import Event
    from substrate.telemetry.trace.events.command import DiffCounts, Scope
    from substrate.world.change import Change


@value
class Finished:
    """What it came to. `kept`: its layer stays on the stack."""

    changes: tuple[Change, ...]
    kept: bool
    denials: tuple[Denial, ...]


def finish(
    session: LiveSession,
    world: LiveWorld,
    command: OneCommand,
    ended: Ended,
    wait_gone: Callable[[], None],
    warn: Callable[[str], None] | None = None,
) -> Finished:
    """Ends the world, freezes and diffs the layer, writes the end; syncs nothing. `wait_gone`: until
    every process of it is dead, and as long as the caller wants. Raises OSError, StateError,
    RecordInterrupted."""
    denied = command.denials(ended)  # before the control groups go
    writer, throw_away = session.writer, command.request.throw_away
    summary: dict[str, Any] = {}
    if command.capture is not None:
        if not ended.quiet and not command.capture.can_kill:
            world.close()
        captured, summary = command.capture.end(over=ended.quiet, moved=command.streams.stdin)
        if captured:
            writer.append(captured)
    world.close()
    scopes: tuple[Scope, ...] = ()
    if world.is_routed:  # then nothing of it sends any more
        world.wait_ended()
    if world.network is not None:  # before the zygote goes, and takes along who serves it
        scopes, refused = world.network.end(lambda: session.arriving.ends_within(0))
        summary = world.network.by_name(summary)
        denied = (*refused, *denied)
    if command.top.isolated:
        gated_command.tell_isolated(command.gate, command.top, command.request)
    denied = command.told(ended, denied)
    if not ended.quiet:
        wait_gone()  # until then its processes may write
    for dropped in world.harvest():
        if warn is not None:
            warn(f"substrate: {dropped}")
    events: list[Event] = []
    changes: list[Change] = []
    counts: DiffCounts | None = None
    layer, empty = world.layer, world.layer_is_empty()
    kept = not empty and not throw_away
    if layer is not None and kept:
        if world.settings.layer_sync:
            layers.sync_layers(session.stack)
        try:
            events, changes, counts = session.diff_events(
                command.recorder, session.stack, layer, span=True
            )
        except RecordInterrupted:
            # the layer is as a killed supervisor leaves it
            writer.append([command.end_event(ended, None, denied)])
            wait_gone()
            raise
    elif layer is not None and not empty:
        events, changes = _thrown_away(session, command, layer)
    if command.top.isolated:
        changes = []  # there is nothing to ask about afterwards
    if layer is not None and kept:
        events += _pass_through(session, command, layer)
    events.append(command.end_event(ended, counts, denied, summary, scopes))
    writer.append(events)
    wait_gone()
    if layer is not None:
        if not kept:
            session.drop_layer(layer)
        else:
            # not before its record: an unfrozen layer tells the next run to record it
            layers.freeze_layer(session.stack, layer)
    return Finished(changes=tuple(changes), kept=kept, denials=denied)


def _pass_through(session: LiveSession, command: OneCommand, number: int) -> list[Event]:
    patterns = (*command.settings.pass_through, *note_of(command.request.cmd_text))
    if not patterns:
        return []
    from substrate.session.pass_through import pass_through

    may = None
    if command.gate.broker.policy.fs.write is not None:
        from substrate.session.fs_write import may_write

        may = may_write(session.files, session.workspace.path, session.world.name)
    passed = pass_through(session.stack, number, command.settings.pass_through, may)
    noted = pass_through(session.stack, number, note_of(command.request.cmd_text))
    both = replace(
        passed,
        copied=(*passed.copied, *noted.copied),
        refused=(*passed.refused, *noted.refused),
    )
    return _passed(session, command, number, both)


def pass_note(session: LiveSession, world: LiveWorld, command: OneCommand) -> list[Event]:
    """What its agent reads afterwards (scaffolding.py), of a command among others."""
    paths = note_of(command.request.cmd_text)
    if not paths or world.layer is None:
        return []
    from substrate.session.pass_through import pass_from_world

    root = world.world.open_root()
    try:
        passed = pass_from_world(root, paths)
    finally:
        os.close(root)
    return _passed(session, command, world.layer, passed)


def _passed(
    session: LiveSession, command: OneCommand, number: int, passed: PassedThrough
) -> list[Event]:
    from substrate.telemetry.trace.events.changes import KINDS, FsApply

    for path, why in passed.refused:
        session.notes = (*session.notes, f"{os.fsdecode(path)} did not pass: {why}")
    if not passed.copied:
        return []
    event = FsApply(
        layers=(number,),
        target=os.path.dirname(passed.copied[0]),
        counts={kind: len(passed.copied) if kind == "added" else 0 for kind in KINDS},
        conflicts=(),
        reverse_layer=None,
        outcome="passed_through",
        paths=passed.copied,
    )
    return [event.event("world", span_id=command.recorder.span)]


def _thrown_away(
    session: LiveSession, command: OneCommand, number: int
) -> tuple[list[Event], list[Change]]:
    from substrate.telemetry.trace.events.changes import FsDiscard
    from substrate.values import as_dict
    from substrate.world.change import summary
    from substrate.world.diff import diff_layer

    changes = diff_layer(session.stack, number)
    event = FsDiscard(layers=(number,), counts=as_dict(summary(changes)))
    return [event.event("world", span_id=command.recorder.span)], changes
