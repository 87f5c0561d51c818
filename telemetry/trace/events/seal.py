"""Signing and sealing events (trace.md §4, §8). The authority and `trace seal` write them."""

from __future__ import annotations

from .body import Body, body

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .body import Extra


@body
class KeyEpoch(Body):
    """A key valid from this line's seq on. `signature`: by the previous epoch or a root key.

    `public_key` and `signature` are base64; `previous` is the key id of the epoch before.
    """

    event_type = "key_epoch"
    key_id: str
    public_key: str
    algorithm: str
    valid_from: int
    signature: str
    previous: str | None
    extra: Extra = ()


@body
class ChainSeal(Body):
    """The last line. `count`: lines before it; `head_hash`: of the line before it; `root`:
    Merkle root over those lines (hex); `drops`: events lost in all."""

    event_type = "chain_seal"
    count: int
    head_hash: str
    root: str
    drops: int
    key_id: str | None
    sealed_by: str
    extra: Extra = ()
