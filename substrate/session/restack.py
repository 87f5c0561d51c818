"""What is done to a world's stack comes to the stack's file and to the trace, both or neither.

Not what is done (undo.py, squashing.py). Order: the new stack is written together with its events
(one rename), the events are appended and synced, the file is written without them. Whoever
is killed in between leaves events in the file; `settle` appends those that the trace lacks.
Invariant: at every moment the stack is the old or the new one, and after `settle` the trace
tells of it once. Spec: world.md §4; docs/adr/0005.
"""

from __future__ import annotations

import os

from substrate.session.stack_file import StackFile, load_stack_file, save_stack_file
from substrate.telemetry.trace.envelope import Event
from substrate.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from substrate.session.store import SessionFiles
    from substrate.telemetry.trace.events.body import Body
    from substrate.telemetry.trace.writer import TraceWriter


def prepare(stack_file: StackFile, bodies: Sequence[Body]) -> StackFile:
    """The stack's file with the events that tell of its change, each with an `op` of its own."""
    events = tuple((b.event_type, {**b.to_body(), "op": os.urandom(8).hex()}) for b in bodies)
    return replace(stack_file, unrecorded=(*stack_file.unrecorded, *events))


def commit(
    files: SessionFiles, writer: TraceWriter, stack_file: StackFile, bodies: Sequence[Body]
) -> StackFile:
    """Makes `stack_file` the world's, and tells of it. Raises OSError."""
    save_stack_file(files, prepare(stack_file, bodies))
    return tell(files, writer)


def tell(files: SessionFiles, writer: TraceWriter) -> StackFile:
    """Appends the events of a stack that this process wrote."""
    return _append(files, writer, load_stack_file(files), frozenset())


def settle(files: SessionFiles, writer: TraceWriter) -> StackFile:
    """Appends what a killed process had no time to; gives the stack's file as it is
    then."""
    stack_file = load_stack_file(files)
    if not stack_file.unrecorded:
        return stack_file
    from substrate.session.history import load_history

    there = {line["body"].get("op") for line in load_history(files).others}
    return _append(files, writer, stack_file, there)


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
    save_stack_file(files, stack_file)
    return stack_file
