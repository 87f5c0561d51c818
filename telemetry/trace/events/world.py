"""`world_start` and `layer_cut`: the world's file layers as commands use them (trace.md §4).

What people do to the stack by hand stands in `layers`.
"""

from __future__ import annotations

from .body import Body, body

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .body import Extra, Text


@body
class WorldStart(Body):
    """A world was made, or continued (`continued`) with `layers` frozen layers below it."""

    event_type = "world_start"
    world: str
    backend: str
    workspace: Text
    layers: int
    continued: bool
    network: str | None = None
    notes: tuple[str, ...] | None = None
    extra: Extra = ()


@body
class LayerCut(Body):
    """A layer was frozen. `durable`: its files are synced; `shared_with`: other live spans."""

    event_type = "layer_cut"
    layer: int
    tree_digest: str
    entries: int
    durable: bool
    soft: bool | None = None
    shared_with: tuple[str, ...] | None = None
    extra: Extra = ()
