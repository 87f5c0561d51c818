"""How a command of a session that lives ends: the trace is told, then its client.

One that was alone in its world ends with it (finishing.py); one among others, or that leaves something that goes on, ends in it
(sharing.py). Not how it is waited for (executing.py). Invariants: what fails here is told to the client of that command, and
ends no other; its client has its answer when its end is on the record. Spec: shell.md §2; docs/adr/0020.
"""

from __future__ import annotations

import _signal
from typing import TYPE_CHECKING

from substrate.session import client_call, doors, finishing
from substrate.session.ending_lines import SAYS, ending_line
from substrate.session.one_command import exit_status
from substrate.session.summary import outcome_object
from substrate.session.supervisor import Outcome

if TYPE_CHECKING:
    from substrate.session.command_run import Ended
    from substrate.session.daemon import Daemon
    from substrate.session.executing import Executing
    from substrate.session.finishing import Finished
    from substrate.session.live_session import LiveSession


def finish(daemon: Daemon, each: Executing, ended: Ended) -> None:
    """A command has come to its end, and all that is waited for of it."""
    session, worlds, one = daemon.session, daemon.worlds, each.one
    living = worlds.living
    assert living is not None
    world, sharing = living.world, living.sharing
    trouble = each.trouble
    found: Finished | None = None
    alone = False
    try:
        alone = not sharing.is_shared and not sharing.left
        daemon.reports.end_of(one.recorder.span)
        if alone and living.is_over:
            sharing.live.remove(one)
            one.is_gone = True
            world.runs.remove(each.run)
            with daemon.recording.of(each):
                found = finishing.finish(session, world, one, ended, world.wait_ended, daemon.log)
            worlds.end_alone(found.rest)
        else:
            with daemon.recording.of(None):
                found = sharing.finish(one, ended)
            if one in sharing.left:
                living.left.append(each)
            else:
                world.runs.remove(each.run)
            session.writer.sync()
    except Exception as error:  # noqa: BLE001 - an edge: one command's end is not the session's
        daemon.log(f"the end of {one.recorder.span}: {error!r}")
        trouble = trouble or str(error) or type(error).__name__
        each.run.signal(_signal.SIGKILL, "tree")
        if one.capture is not None:
            one.capture.close()
        if one in sharing.live:
            sharing.live.remove(one)
        if each.run in world.runs:
            world.runs.remove(each.run)
        if worlds.living is living and alone and not daemon.is_beside:
            worlds.leave_layer(world)
            worlds.let_go()
    one.gate.close()
    if trouble or found is None:
        each.part(client_call.FAILED, 125, trouble, "`substrate doctor` tries what a session needs")
    else:
        _tell(session, each, ended, found)
    living.hurry_seat()


def _tell(session: LiveSession, each: Executing, ended: Ended, found: Finished) -> None:
    """What its client is told: how it ended, and what it was denied."""
    world = each.one.world
    for denial in found.denials:
        each.client.send(client_call.TEXT, f"substrate: {denial.text}"[:4000])
    outcome = Outcome(
        exit_status=exit_status(ended),
        ended=ended,
        session_id=session.files.session_id,
        span_id=each.one.recorder.span,
        world=None if session.world.backend == "none" else session.world.name,
        continued=True,
        changes=found.changes,
        layer=world.layer if found.changes and found.kept else None,
        notes=world.notes,
        denials=found.denials,
    )
    told = doors.plain(outcome_object(outcome))
    # a denial that says it was said
    is_said = any(denial.code in SAYS for denial in found.denials)
    line = "" if is_said else ending_line(ended, ())
    each.part(client_call.ENDED, outcome.exit_status, told, line[:4000])
