"""What people and `gc` do to a world's stack of layers (trace.md §4; world.md §4)."""

from __future__ import annotations

from .body import Body, body

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .body import Extra, Text


@body
class Squash(Body):
    """Layers merged in the mount stack only; each stays on disk until `gc`."""

    event_type = "squash"
    layers: tuple[int, ...]
    into: int
    tree_digest: str
    extra: Extra = ()


@body
class Snapshot(Body):
    """A name for the top of the stack."""

    event_type = "snapshot"
    name: Text
    layer: int
    extra: Extra = ()


@body
class Rollback(Body):
    """Back to a snapshot; `dropped`: the layers taken off."""

    event_type = "rollback"
    name: Text
    layer: int
    dropped: tuple[int, ...]
    extra: Extra = ()


@body
class Undo(Body):
    """A span's layers taken off, with those that depended on it where that was asked for."""

    event_type = "undo"
    spans: tuple[str, ...]
    layers: tuple[int, ...]
    with_deps: bool
    extra: Extra = ()


@body
class Fork(Body):
    """A second world on the same frozen layers."""

    event_type = "fork"
    world: str
    new_world: str
    layer: int
    extra: Extra = ()


@body
class Gc(Body):
    """Layers removed from the disk: from here on they cannot be replayed."""

    event_type = "gc"
    layers: tuple[int, ...]
    size_bytes: int
    extra: Extra = ()
