"""The Merkle tree over the lines of a trace, as RFC 6962 §2.1 has it (trace.md §8).

Leaves are SHA-256(0x00 || line without its newline), inner nodes SHA-256(0x01 || left || right).
It keeps one node for each bit of the count, so memory is constant. No proofs, no signatures.
"""

from __future__ import annotations

import hashlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_sha256 = hashlib.sha256
EMPTY_ROOT = _sha256(b"").hexdigest()


class MerkleTree:
    """`add` lines in order; `root` at any time."""

    def __init__(self) -> None:
        #: whole subtrees from the left, each half as large as the one before or less
        self._subtrees: list[tuple[int, bytes]] = []

    def add(self, lines: Iterable[bytes]) -> None:
        subtrees = self._subtrees
        for line in lines:
            size, node = 1, _sha256(b"\0" + line).digest()
            while subtrees and subtrees[-1][0] == size:
                node = _sha256(b"\1" + subtrees.pop()[1] + node).digest()
                size *= 2
            subtrees.append((size, node))

    def root(self) -> str:
        """Hex; SHA-256 of nothing for an empty tree."""
        if not self._subtrees:
            return EMPTY_ROOT
        node = self._subtrees[-1][1]
        for _, left in reversed(self._subtrees[:-1]):
            node = _sha256(b"\1" + left + node).digest()
        return node.hex()
