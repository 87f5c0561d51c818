"""The first events of a world and of its first command, once all that they tell of is known.

What is in force is found out, what is required and missing is refused, and then it is written, before
anything runs. Spec: trace.md §4, world.md §1.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.session.live_session import LiveSession
    from substrate.session.live_world import LiveWorld
    from substrate.session.one_command import OneCommand
    from substrate.telemetry.trace.events.session import Isolation


def isolation_in_force(world: LiveWorld) -> Isolation:
    """What holds a world in. Raises HostUnsupported where what is required is missing."""
    from substrate.session.record import isolation_of

    found = isolation_of(
        *(world.frame.backend, world.settings, world.held, world.covers), listened=world.listened
    )
    world.refuse_missing(found)
    return found


def write_first(
    session: LiveSession,
    world: LiveWorld,
    command: OneCommand,
    isolation: Isolation,
    parent: str | None = None,
) -> None:
    """`session_start` where the trace has none, `world_start`, layers that were left, `command_start`."""
    recorder = command.recorder
    events = []
    if not session.started:
        events.append(recorder.session_start(isolation, command.choice))
    below = max(0, len(session.stack.layers) - 1)
    session.tell_of_stack()
    notes = (*session.notes, *world.notes)
    events.append(recorder.world_start(session.world, below, notes, continued=session.continued))
    events += session.left_events(recorder)
    command.write_start(isolation, parent, events)
    session.recorded = session.started = True
    session.freeze_left()
