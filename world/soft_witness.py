"""What the changes of a soft layer were made from: the rules of witness.py, for a layer that is a copy.

The host's files were not seen by the world since the copy in the soft layer was made, but since the
layer that it is of was, and copied up when the entry of that one's upper was born. Invariant: as of
witness.py.
"""

from __future__ import annotations

from substrate.world import linux
from substrate.world.live_upper import LiveUpper
from substrate.world.soft import SoftLayer, stack_of
from substrate.world.witness import Witness

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.world.aspects import Keyed
    from substrate.world.layers import LayerStack
    from substrate.world.preimages import Preimages
    from substrate.world.view import DirectoryView, MountView


class SoftWitness(Witness):
    """Given to the diff of a soft layer of `stack`. `close` when done."""

    def __init__(
        self, stack: LayerStack, soft: SoftLayer, keyed: Keyed, preimages: Preimages | None = None
    ) -> None:
        super().__init__(stack_of(stack, soft), soft.left, keyed, preimages)
        self._hard, self._layer = stack, soft.layer
        self._live: LiveUpper | None = None

    def close(self) -> None:
        if self._live is not None:
            self._live.close()
        self._live = None

    def begin(self, view: MountView) -> None:
        super().begin(view)
        self.close()
        self._live = LiveUpper(self._hard, view.mount, self._layer)
        born = linux.birth_time_ns(self._live.root, b".")
        self._since = (self._hard.started_ns if born is None else born) - self._tick

    def _born(self, directory: DirectoryView, name: str, fd: int) -> int:
        assert self._live is not None
        _, live = self._live.directory(directory.relative)
        try:
            return 0 if live < 0 else linux.birth_time_ns(live, name) or 0
        except FileNotFoundError:
            return 0
