"""What a difference between two views of the files is: values only.

Not how it is found (diff.py), shown (patch.py) or applied (apply.py). Spec: world.md §5,
trace.md §4 (`fs_diff`: the kinds and the fields by the same names).
"""

from __future__ import annotations

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

ADDED = "added"
MODIFIED = "modified"
DELETED = "deleted"
RENAMED = "renamed"
META = "meta"
TYPE_CHANGED = "type_changed"
KINDS = (ADDED, MODIFIED, DELETED, RENAMED, META, TYPE_CHANGED)


class FileState:
    """One file in one view. Never changed after it was made, except that `digest` is filled.

    A plain class with positional arguments and not a `@value`: two are made for each entry
    of a diff, which has 30 µs an entry (benchmarks.md).

    type: file directory symlink fifo socket char block. mode: permission bits (07777).
    size in bytes. uid, gid: as on the host (un-shifted); None for an id outside the map.
    link: a symlink's target. rdev: a device's number. layer: the source that this state
    comes from: 0 for the host, a layer's number, minus the identifier of a segment. dev, inode, nlink, ctime_ns, mtime_ns: of the file on disk there."""

    __slots__ = (
        "ctime_ns",
        "dev",
        "digest",
        "gid",
        "inode",
        "layer",
        "link",
        "mode",
        "mtime_ns",
        "nlink",
        "rdev",
        "size",
        "type",
        "uid",
    )

    def __init__(
        self,
        type: str,
        mode: int,
        size: int,
        uid: int | None,
        gid: int | None,
        mtime_ns: int,
        ctime_ns: int,
        dev: int,
        inode: int,
        nlink: int,
        rdev: int,
        layer: int,
        link: bytes | None = None,
        digest: str | None = None,
    ) -> None:
        self.type = type
        self.mode = mode
        self.size = size
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.ctime_ns = ctime_ns
        self.dev = dev
        self.inode = inode
        self.nlink = nlink
        self.rdev = rdev
        self.layer = layer
        self.link = link
        self.digest = digest

    def __repr__(self) -> str:
        return f"FileState({', '.join(f'{n}={getattr(self, n)!r}' for n in self.__slots__)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FileState):
            return NotImplemented
        return all(getattr(self, n) == getattr(other, n) for n in self.__slots__)

    __hash__ = None  # type: ignore[assignment]


class Change:
    """One path that differs. `path`: absolute, as on the host. `mount`: index of the overlay
    mount. `what`: which of content, target, device, mode, owner, mtime, xattr:NAME differ
    (modified and meta). `old_path`: where a renamed file was."""

    __slots__ = ("after", "before", "kind", "mount", "old_path", "path", "what")

    def __init__(
        self,
        path: bytes,
        kind: str,
        before: FileState | None,
        after: FileState | None,
        mount: int,
        what: tuple[str, ...] = (),
        old_path: bytes | None = None,
    ) -> None:
        self.path = path
        self.kind = kind
        self.before = before
        self.after = after
        self.mount = mount
        self.what = what
        self.old_path = old_path

    def __repr__(self) -> str:
        return f"Change({self.kind} {self.path!r} {self.what} {self.before} -> {self.after})"


@value
class Summary:
    """Counts by kind."""

    added: int = 0
    modified: int = 0
    deleted: int = 0
    renamed: int = 0
    meta: int = 0
    type_changed: int = 0

    def total(self) -> int:
        return (
            self.added + self.modified + self.deleted + self.renamed + self.meta + self.type_changed
        )


def summary(changes: Iterable[Change]) -> Summary:
    counts = dict.fromkeys(KINDS, 0)
    for change in changes:
        counts[change.kind] += 1
    return Summary(**counts)


def is_time_alone(change: Change) -> bool:
    """Whether the file is what it was but for its time: touched, or written again as it was."""
    return change.kind == META and change.what == ("mtime",)


def by_path(change: Change) -> bytes:
    """The order of every list of changes: the bytes of the path."""
    return change.path
