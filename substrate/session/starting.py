"""The first events of a world and of its first command, once all that they tell of is known.

What is in force is found out, what is required and missing is refused, and then it is written, before
anything runs. Spec: trace.md §4, world.md §1.
"""

from __future__ import annotations

from substrate.session import gated_command, given_policies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.session.live_session import LiveSession
    from substrate.session.live_world import LiveWorld
    from substrate.session.one_command import OneCommand
    from substrate.telemetry.trace.events.session import Isolation


def isolation_in_force(world: LiveWorld, command: OneCommand) -> Isolation:
    """What holds a world in, and the execs of its first command. Raises HostUnsupported where what is
    required is missing."""
    from substrate.session import gating_force
    from substrate.session.record import isolation_of

    gating = command.gate
    if world.scopes is not None:
        in_world = world.frame.backend != "none"
        world.held = (*world.held, *world.scopes.holds(command.choice.gate, in_world=in_world))
    found = isolation_of(
        *(world.frame.backend, world.settings, world.held, world.covers),
        listened=world.listened,
        gate=gating_force.layer_of(command.choice, needed=gating.needed),
    )
    refuse_weak(world, command)
    world.refuse_missing(found, gating.broker.policy.require)
    return found


def refuse_weak(world: LiveWorld, command: OneCommand) -> None:
    """Each command has its own gate. Raises HostUnsupported where it has to be stronger than it can be."""
    from substrate.session import gating_force

    required = (*world.settings.require, *command.gate.broker.policy.require)
    if "gate" in required:
        gating_force.refuse_weak(command.choice, needed=command.gate.needed)
    if "limits" in required and command.gate.most_execs is not None:
        gating_force.refuse_uncounted(command.choice)


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
        digest = command.gate.broker.digest
        events.append(recorder.session_start(isolation, command.choice, digest))
    below = max(0, len(session.stack.layers) - 1)
    session.tell_of_stack()
    policy = gated_command.policy_events(command.gate, session.files, continued=session.started)
    events += policy
    notes = (*session.notes, *world.notes)
    given_policies.remember(session.files, world.settings.policy)
    told = () if world.scopes is None else world.scopes.told
    events.append(
        recorder.world_start(session.world, below, notes, continued=session.continued, scopes=told)
    )
    events += session.left_events(recorder)
    command.write_start(isolation, parent, events)
    if policy:
        gated_command.note_recorded(command.gate, session.files)
    session.recorded = session.started = True
    session.freeze_left()
