"""What is done to a world's stack comes to the stack's file and to the trace, both or neither.

Not what is done (undo.py, squashing.py). Order: the new stack is written together with its events
(one rename), the events are appended and synced, the file is written without them. Whoever
is killed in between leaves events in the file; `settle` appends those that the trace lacks.
Where the trace does not take the events (a full disk), the old stack is put back. Invariant: at
every moment the stack is the old or the new one, and after `settle` the trace tells of it once.
Spec: world.md §4; docs/adr/0005.
"""

from __future__ import annotations

import os

from substrate.errors import StateError
from substrate.session.stack_file import StackFile, load_stack_file, save_stack_file
from substrate.telemetry.trace.envelope import Event
from substrate.telemetry.trace.events.layers import Fork
from substrate.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Sequence
    from typing import Any

    from substrate.session.store import SessionFiles
    from substrate.telemetry.trace.events.body import Body
    from substrate.telemetry.trace.writer import TraceWriter


class RecordLater(StateError):
    """It was done, and cannot be taken back; only its record is not complete yet."""

    def __init__(self, what: str, why: Exception) -> None:
        text = (why.strerror if isinstance(why, OSError) else None) or str(why)
        super().__init__(
            f"{what}, but its record could not be written: {text}",
            hint="make room, or look at the disk; the next opening of the world completes it, for "
            "example `substrate -c true`",
            code="E-RECORD-LATER",
        )


def name_events(bodies: Sequence[Body]) -> tuple[tuple[str, dict[str, Any]], ...]:
    """The events, each with an `op` of its own."""
    return tuple((b.event_type, {**b.to_body(), "op": os.urandom(8).hex()}) for b in bodies)


def prepare(stack_file: StackFile, bodies: Sequence[Body]) -> StackFile:
    """The stack's file with the events that tell of its change."""
    return replace(stack_file, unrecorded=(*stack_file.unrecorded, *name_events(bodies)))


def commit(
    files: SessionFiles, writer: TraceWriter, stack_file: StackFile, bodies: Sequence[Body]
) -> StackFile:
    """Makes `stack_file` the world's, and tells of it. Raises OSError, and the old stack is there
    then; RecordLater where the new one had to stay."""
    before, at = load_stack_file(files), writer.position.seq
    try:
        save_stack_file(files, prepare(stack_file, bodies))
        return tell(files, writer)
    except (OSError, StateError) as error:
        if writer.failed or writer.position.seq != at or not _put_back(files, before):
            raise RecordLater("it was done", error) from error
        raise


def _put_back(files: SessionFiles, before: StackFile) -> bool:
    """Whether the file is the older one again."""
    try:
        if load_stack_file(files) != before:
            save_stack_file(files, before)
    except OSError:
        return load_stack_file(files) == before  # only the sync of its name failed
    return True


def tell(files: SessionFiles, writer: TraceWriter) -> StackFile:
    """Appends the events of a stack that this process wrote. Raises OSError, StateError."""
    return _append(files, writer, load_stack_file(files), frozenset())


def settle(files: SessionFiles, writer: TraceWriter) -> StackFile:
    """Appends what a killed process had no time to; gives the stack's file as it is
    then."""
    stack_file = load_stack_file(files)
    if not stack_file.unrecorded:
        return stack_file
    from substrate.session.history import load_history

    there = {line["body"].get("op") for line in load_history(files).others}
    there |= {
        body["op"] for kind, body in stack_file.unrecorded if not _came_about(files, kind, body)
    }
    return _append(files, writer, stack_file, there)


def _came_about(files: SessionFiles, kind: str, body: dict[str, Any]) -> bool:
    """A fork has happened when its world is there (forking.py)."""
    if kind != Fork.event_type:
        return True
    place = (os.path.dirname(files.path), body["session"].encode())
    return os.path.exists(b"%s/%s/world/meta.json" % place)


def _append(
    files: SessionFiles, writer: TraceWriter, stack_file: StackFile, there: Container[str]
) -> StackFile:
    writer.append(
        [
            Event(event_type=kind, component="world", body=body)
            for kind, body in stack_file.unrecorded
            if body["op"] not in there
        ]
    )
    writer.sync()
    stack_file = replace(stack_file, unrecorded=())
    try:
        save_stack_file(files, stack_file)
    except OSError:
        # they stay in the file, and the next opening finds them in the trace
        return stack_file
    return stack_file
