"""What commands did to files: `fs_diff`, `fs_apply`, `fs_discard` (trace.md §4; world.md §5)."""

from __future__ import annotations

from substrate.telemetry.trace.pack import BlobRef

from .body import Body, body

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .body import Extra, Text

#: kinds of an entry
KINDS = ("added", "modified", "deleted", "renamed", "meta", "type_changed")
#: An fs_diff of more entries keeps counts and a tree hash in the line, the list in a blob.
MAX_ENTRIES = 1000


@body
class FsEntry(Body):
    """One changed path. `digest_before`, `digest_after`: keyed digests of regular files.

    `mode`: st_mode, `size`: bytes, both of the path afterwards; `from_path` of a rename.
    """

    path: Text
    kind: str
    mode: int | None = None
    size: int | None = None
    type_: str | None = None
    digest_before: str | None = None
    digest_after: str | None = None
    from_path: Text | None = None
    target: Text | None = None
    extra: Extra = ()


@body
class FsDiff(Body):
    """What a layer changed. Either `entries` holds all of it, or `tree_hash` and `list_` do.

    `counts` by kind are always there. `shared_with`: spans that wrote into the same layer.
    """

    event_type = "fs_diff"
    layer: int
    counts: dict[str, int]
    entries: tuple[FsEntry, ...] | None = None
    tree_hash: str | None = None
    list_: BlobRef | None = None
    shared_with: tuple[str, ...] | None = None
    extra: Extra = ()


@body
class Conflict(Body):
    """A path that could not be applied as it was, and what was done about it."""

    path: Text
    reason: str
    resolution: str | None = None
    extra: Extra = ()


@body
class FsApply(Body):
    """Layers applied to the host. `reverse_layer`: the kept pre-images, null if none is kept."""

    event_type = "fs_apply"
    layers: tuple[int, ...]
    target: Text
    counts: dict[str, int]
    conflicts: tuple[Conflict, ...]
    reverse_layer: int | None
    outcome: str
    spans: tuple[str, ...] | None = None
    paths: tuple[Text, ...] | None = None
    on_conflict: str | None = None
    extra: Extra = ()


@body
class FsDiscard(Body):
    """Layers thrown away; `counts` of what they held, by kind."""

    event_type = "fs_discard"
    layers: tuple[int, ...]
    counts: dict[str, int]
    spans: tuple[str, ...] | None = None
    paths: tuple[Text, ...] | None = None
    extra: Extra = ()
