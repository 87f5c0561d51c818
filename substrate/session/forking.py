"""Forks: a second world on the same frozen layers.

A fork is a session of its own: its own record, its own new layers, and a base that lies in the
session that it was made from. No file is copied. Invariants: a layer that a fork stands on is
not removed while the fork's stack, or a snapshot of it, needs it; a fork has the id map, the
mounts and the start time of its origin, since the layers were made with these; it is there when
its `meta.json` is, which comes last, and whatever lacks that is a session of which nothing stays
(swept.py). Spec: world.md §4.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from substrate.errors import StateError
from substrate.session import capture_choice, given_policies, layer_place, opening, store
from substrate.session.pending import Held, user_settings
from substrate.session.record import Recorder, isolation_of
from substrate.session.restack import RecordLater
from substrate.session.stack_file import StackFile, save_stack_file
from substrate.session.store import SessionFiles
from substrate.session.workspace import Workspace
from substrate.session.world_file import OPEN, save_world
from substrate.telemetry.trace.events.layers import Fork
from substrate.telemetry.trace.writer import TraceWriter
from substrate.values import replace
from substrate.world.restored import add_restored, load_restored


def fork(held: Held, numbers: Sequence[int]) -> tuple[str, str]:
    """A new world on these layers of the held one; gives its name and session.

    Raises StateError for a world without isolation, which has no layers, OSError."""
    if held.world.backend == "none":
        raise StateError(
            f"world {held.world.name} has no layers: its commands ran on the host itself",
            hint="fork a world that was run without --no-world",
        )
    held.record_left()
    home, origin = held.home, held.opened.files
    claimed = opening.claim_new(home)
    files = claimed.files
    writer = None
    try:
        name = store.name_world(home, files.session_id)
        event = Fork(
            world=held.world.name,
            new_world=name,
            layer=numbers[-1] if numbers else 0,
            extra=(("from_session", origin.session_id), ("session", files.session_id)),
        )
        _save_stack(held, files, numbers)
        for given in given_policies.given_in(origin):  # what may be applied is what it was
            given_policies.remember(files, given)
        writer = opening.open_trace(home, claimed, durability="command").writer
        _begin_trace(writer, held, event)
        held.announce(event)
        place = layer_place.beside(held.world.layers_at, files.session_id)
        new = replace(held.world, name=name, state=OPEN, layers_at=place)
        # a world from here on, and only so far has the origin something to tell
        save_world(files, new, sync=True)
        held.tell_announced()
        opening.close_trace(writer)
    except RecordLater:
        raise
    except BaseException:
        opening.abandon(home, files.session_id)
        raise
    finally:
        if writer is not None:
            writer.close(clean=False)  # nothing is done where it is closed
        claimed.lock.drop()
        os.close(files.fd)
    return name, files.session_id


def _save_stack(held: Held, files: SessionFiles, numbers: Sequence[int]) -> None:
    known = max(held.stack.known, *held.stack.numbers, 0)
    elsewhere = held.stack_file.elsewhere
    if known > max((last for last, _ in elsewhere), default=0):  # layers of its own
        elsewhere = (*elsewhere, (known, held.opened.files.session_id))
    save_stack_file(files, StackFile(known=known, layers=tuple(numbers), elsewhere=elsewhere))
    # the origin's own hand on the host is no change beside the fork either
    ours = load_restored(held.opened.files.world_path)
    if ours:
        times = ((inode, now, before) for (inode, now), before in ours.items())
        add_restored(files.world_path, times)


def _begin_trace(writer: TraceWriter, held: Held, event: Fork) -> None:
    settings = user_settings()
    isolation = isolation_of(held.world.backend, settings)
    # a command of the fork says in its `coverage` what captures it
    start = Recorder(writer, settings).session_start(isolation, capture_choice.OFF)
    writer.append([start, event.event("world")])
    writer.sync()


def switch_to(held: Held, session_id: str) -> None:
    """Makes a fork the current world of the directory."""
    key = held.world.workspace_key
    device, _, inode = key.partition(b"-")
    here = Workspace(path=held.world.workspace, device=int(device, 16), inode=int(inode))
    store.set_current(held.home, here, session_id)
