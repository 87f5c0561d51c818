"""An open world whose layers are gone with the tmpfs that held them (layer_place.py).

Reads the trace for what was in them. Invariant: where a command had changed something, or
was cut short, the world is refused with that; it goes on with no layers only where there
were none. Spec: world.md §1, E-UPPER-OVERLAY.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from substrate.errors import StateError
from substrate.session import layer_place
from substrate.session.history import History, load_history
from substrate.session.home import Home
from substrate.session.stack_file import EMPTY, StackFile, load_stack_file, save_stack_file
from substrate.session.store import SessionFiles
from substrate.session.summary import count_phrase
from substrate.session.world_file import WorldFile, save_world
from substrate.values import as_dict, replace
from substrate.world.change import Summary
from substrate.world.mountinfo import Mount


class LayersLost(StateError):
    """The layers of an open world are gone. `lost`: what the record says of them."""

    def __init__(self, message: str, *, hint: str, lost: Lost) -> None:
        super().__init__(message, hint=hint, code="E-LAYER-GONE")
        self.lost = lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """`layers`: their numbers, oldest first; `counts`: what they changed, layer by layer;
    `cut_short`: commands of which it is not known what they changed."""

    layers: tuple[int, ...]
    counts: Summary
    cut_short: int

    @property
    def nothing(self) -> bool:
        return not self.layers and not self.cut_short


def place_again(
    home: Home, files: SessionFiles, mounts: tuple[Mount, ...], world: WorldFile
) -> WorldFile:
    """The world with a new place for its layers, if it had none to lose. Raises LayersLost,
    HostUnsupported. The caller holds the session's lock."""
    refuse_if_lost(files, world.name, world.layers_at)
    place = layer_place.make(
        home, mounts, files.session_id.encode(), userxattr=world.backend == "ns-user"
    )
    return _placed(files, world, place.directory)


def forget_place(files: SessionFiles, world: WorldFile) -> None:
    """The world has no layers any more. The caller holds the session's lock."""
    _placed(files, world, b"")


def _placed(files: SessionFiles, world: WorldFile, directory: bytes) -> WorldFile:
    """With the stack first: a stack of layers that are nowhere is refused, none is not."""
    stack_file = load_stack_file(files)
    if stack_file != EMPTY:
        save_stack_file(files, replace(stack_file, layers=(), segments=()))
    placed = replace(world, layers_at=directory)
    save_world(files, placed)
    return placed


def refuse_if_lost(files: SessionFiles, name: str, directory: bytes) -> None:
    """For an open world whose `directory` is not there any more. Raises LayersLost where it
    held a layer."""
    lost = what_was_lost(load_history(files), load_stack_file(files))
    if lost.nothing:
        return
    parts = []
    if lost.layers:
        plural = "s" if len(lost.layers) > 1 else ""
        parts.append(f"{len(lost.layers)} layer{plural} ({count_phrase(lost.counts)})")
    if lost.cut_short:
        plural = "s" if lost.cut_short > 1 else ""
        parts.append(f"what {lost.cut_short} command{plural} did that had not ended")
    raise LayersLost(
        f"the layers of world {name} are lost: they lay in {os.fsdecode(directory)}, on a tmpfs "
        f"that was emptied since (by a restart): {' and '.join(parts)}",
        hint=f"`substrate log --world {name}` tells what ran; `substrate discard --world {name}` "
        "ends it; --fresh begins a new world. With SUBSTRATE_HOME on a disk or volume layers are "
        "kept over a restart",
        lost=lost,
    )


def what_was_lost(history: History, stack_file: StackFile) -> Lost:
    """The layers on the stack, by what the trace tells of each."""
    layers: set[int] = set(stack_file.layers)
    totals: dict[str, int] = as_dict(Summary())
    for body in _diffs(history):
        number = body["layer"]
        if number in stack_file.layers or number > stack_file.known:
            layers.add(number)
            for kind in totals:
                totals[kind] += body["counts"].get(kind, 0)
    cut_short = sum(span.end is None for span in history.spans)
    return Lost(
        layers=tuple(sorted(layers)),
        counts=Summary(**totals),
        cut_short=cut_short or int(history.problem is not None),
    )


def _diffs(history: History) -> Iterator[dict[str, Any]]:
    for span in history.spans:
        for line in span.diffs:
            yield line["body"]
    for line in history.others:
        if line["event_type"] == "fs_diff":
            yield line["body"]
