"""What a span changed in a layer that it shared, from its soft layer.

The diff of two layers (diff.py), less what is not the span's: directories on the way to something,
and paths that are not KEPT. Below a path that the span removed, replaced or made anew everything
that went is its work, whoever named it; below a directory that it moved there, what came as well.
Spec: world.md §4, §5.
"""

from __future__ import annotations

from collections.abc import Iterable

from substrate.world.change import DELETED, Change
from substrate.world.diff import diff_layer
from substrate.world.layers import LayerStack
from substrate.world.soft import Form, SoftLayer, State, parents, stack_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.world.diff import Digest
    from substrate.world.witness import Witness


def diff_soft(
    stack: LayerStack,
    soft: SoftLayer,
    *,
    digest: Digest | None = None,
    include_scratch: bool = False,
    witness: Witness | None = None,
) -> list[Change]:
    """What the span changed, as `diff_layer` gives it: `before` is in the layer `soft.found` or below
    it, `after` in `soft.left`, of `stack_of(stack, soft)`. Raises StateError, OSError."""
    found = diff_layer(
        stack_of(stack, soft),
        soft.left,
        digest=digest,
        include_scratch=include_scratch,
        witness=witness,
    )
    return only_own(found, soft)


def only_own(changes: Iterable[Change], soft: SoftLayer) -> list[Change]:
    """The changes that are the span's."""
    entries = {entry.path: entry for entry in soft.entries}

    def is_own(change: Change) -> bool:
        entry = entries.get(change.path)
        if entry is not None:
            return entry.state is State.KEPT
        for above in parents(change.path):
            entry = entries.get(above)
            if entry is not None and entry.form is not Form.DIRECTORY:
                kept = entry.state is State.KEPT
                return kept and (entry.form is Form.TREE or change.kind == DELETED)
        return False

    return [change for change in changes if is_own(change)]
