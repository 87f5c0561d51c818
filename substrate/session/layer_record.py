"""What a layer changed, as the events that the trace keeps of it: `fs_diff` and `layer_cut`.

Reads the layer (diff, tree digest) and what it was made from (witness.py); writes only what a
merge may need of that later, beside the layers. Every file is digested once, though all of them
ask for it. Spec: trace.md §4, world.md §4, §5.
"""

from __future__ import annotations

import os

from substrate.world import preimages
from substrate.world.diff import diff_layer
from substrate.world.treedigest import layer_digest
from substrate.world.witness import Witness

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from substrate.session.record import Recorder
    from substrate.telemetry.trace.digests import Digester
    from substrate.telemetry.trace.envelope import Event
    from substrate.telemetry.trace.events.command import DiffCounts
    from substrate.world.change import Change
    from substrate.world.layers import LayerStack


def layer_events(
    recorder: Recorder,
    digester: Digester,
    stack: LayerStack,
    number: int,
    *,
    span: bool,
    shared_with: Sequence[str] = (),
) -> tuple[list[Event], list[Change], DiffCounts]:
    """The events of layer `number`, its changes, and their counts for `command_end`.

    `span`: they belong to the recorder's command; `shared_with`: to these, which shared it. What the digester
    has `between` is called between the steps. Raises OSError, StateError, and what that raises."""
    digest = FileDigests(digester)
    kept = preimages.Preimages(
        os.path.dirname(stack.directory) + b"/" + preimages.NAME, digester.digest_bytes
    )
    witness = Witness(stack, number, digester.digest_bytes, kept)
    step = digester.between
    changes = diff_layer(stack, number, digest=digest, witness=witness, step=step)
    tree = layer_digest(stack, number, digest, step)
    event, counts = recorder.fs_diff(
        number, changes, witness.bases, span=span, shared_with=shared_with
    )
    cut = recorder.layer_cut(number, tree, len(changes), span=span, shared_with=shared_with)
    return [event, cut], changes, counts


class FileDigests:
    """Keyed digests of regular files by fd, each content read once."""

    def __init__(self, digester: Digester) -> None:
        self._digester = digester
        self._known: dict[tuple[int, int, int, int], str] = {}

    def __call__(self, fd: int) -> str:
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._digester.digest_own(fd)
        return found
