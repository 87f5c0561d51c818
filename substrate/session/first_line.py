"""The first line of a session whose record begins before its first command.

What its worlds are held by is a part of that line, and is found out by a world in which nothing runs. Where a command comes first it
is a part of its start (starting.py). Spec: trace.md §4, shell.md §3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from substrate.session import capture_choice, command_begin, gated_command
from substrate.session.one_command import OneCommand

if TYPE_CHECKING:
    from substrate.session.daemon import Daemon


def write_session_start(daemon: Daemon) -> None:
    """Of a session that has none. Raises SubstrateError, OSError."""
    session, worlds = daemon.session, daemon.worlds
    one = OneCommand(
        *(daemon.request, daemon.settings, session.cwd, None, frozenset()), environ={}, umask=0
    )
    one.choose(session)
    one.load_policy(session)
    if one.gate.needed:
        one.choice = capture_choice.with_gate(session.home, one.choice)
    one.fds, one.closed = (-1, -1, -1), frozenset((0, 1, 2))
    try:
        living = worlds.begin(one)
        living.world.world.wait_ready()
        digest = one.gate.broker.digest
        events = [one.recorder.session_start(living.isolation, one.choice, digest)]
        events += gated_command.policy_events(one.gate, session.files, continued=False)
        session.writer.append(events)
        gated_command.note_recorded(one.gate, session.files)
        session.recorded = session.started = True
    finally:
        command_begin.let_go(one)
        if worlds.living is not None:
            worlds.drop()
