"""A world thrown away: its changes never reach the host, its record stays.

Also where the disk is too full to record that first, and where its layers are lost. Not what is
kept for a while (collect.py). Spec: world.md §5.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from substrate.errors import StateError, TraceVersionError
from substrate.session import layer_place, opening
from substrate.session.fork_bases import used_by_forks
from substrate.session.home import Home
from substrate.session.lost_layers import Lost, forget_place
from substrate.session.pending import Held
from substrate.session.stack_file import load_stack_file, save_stack_file, with_stack_file
from substrate.session.world_file import DISCARDED
from substrate.telemetry.trace.events import changes as events
from substrate.values import as_dict, replace
from substrate.world import layers, preimages, soft, squash
from substrate.world.change import Summary, summary
from substrate.world.diff import diff_pending


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """Layers that were removed before that could be recorded, and what they changed."""

    layers: tuple[int, ...]
    counts: Summary


def make_room(home: Home, session_id: str) -> Removed:
    """Removes a world's layers where the disk is too full to record that first. The world is
    still open then, with nothing pending; `discard` ends it. Layers of a fork's base stay."""
    claimed = opening.claim(home, session_id)
    files = claimed.files
    try:
        assert claimed.world is not None
        used = used_by_forks(home).get(session_id, 0)
        stack_file = load_stack_file(files)
        bare = claimed.world.bare_stack(files)
        stack = with_stack_file(bare, files, stack_file)
        removed = Removed(layers=stack.numbers, counts=summary(diff_pending(stack, skip_gone=True)))
        known = max(stack.known, *stack.numbers, 0)
        for layer in reversed(layers.list_layers(bare.directory)):
            if layer.number > used:
                layers.remove_layer(stack, layer.number)
        squash.remove_unused(bare)
        preimages.remove_with_layers(bare.directory)
        soft.remove_without_layers(bare)
        emptied = replace(stack_file, known=known, layers=(), elsewhere=(), segments=())
        save_stack_file(files, emptied)
        return removed
    finally:
        claimed.lock.drop()
        os.close(files.fd)


def give_up_lost(home: Home, session_id: str, lost: Lost) -> Removed:
    """Has a world forget where its layers lay, which are lost. It is still open then, with
    nothing pending; `discard` ends it."""
    claimed = opening.claim(home, session_id)
    try:
        assert claimed.world is not None
        if not layer_place.is_there(claimed.world.layers_at):
            forget_place(claimed.files, claimed.world)
        return Removed(layers=lost.layers, counts=lost.counts)
    finally:
        claimed.lock.drop()


def discard(held: Held, removed: Removed | None = None) -> Summary:
    """Ends the world; its changes never reach the host. Returns what they were.

    It is on the record before the layers go, but for those that `make_room` removed. Where it
    cannot be known what forks stand on, all layers are left to `world gc`."""
    if removed is None:
        removed = Removed(layers=held.stack.numbers, counts=summary(held.changes()))
    on_disk = layers.list_layers(held.stack.directory)
    try:
        used = used_by_forks(held.home).get(held.opened.files.session_id, 0)
    except (StateError, TraceVersionError):
        used = max((layer.number for layer in on_disk), default=0)
    event = events.FsDiscard(layers=removed.layers, counts=as_dict(removed.counts))
    held.forget_left()
    held.restack([], [event], elsewhere=(), snapshots=(), ending=DISCARDED)
    held.end(DISCARDED)
    try:
        squash.remove_unused(held.stack)
        for layer in reversed(on_disk):
            if layer.number > used:
                layers.remove_layer(held.stack, layer.number)
        preimages.remove_with_layers(held.stack.directory)
        soft.remove_without_layers(held.stack)
        if not used:
            layer_place.remove(held.home, held.opened.files.session_id)
    except OSError:
        return removed.counts  # it is discarded; the rest is left to `world gc`, which says it
    return removed.counts
