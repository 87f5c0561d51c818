"""What /proc/<pid>/mountinfo says, as values (proc_pid_mountinfo(5)).

Pure: text in, values out. Paths are bytes with the kernel's octal escapes undone. Invariant:
one value a line, in the file's order; which mount is seen at a path is told by what hangs on
what, as a lookup finds it. A line that the kernel could not have written raises ValueError.
"""

from __future__ import annotations

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: Filesystems that can be the lower of an overlay but never its upper: no O_TMPFILE or
#: whiteouts, no xattrs, or read-only by nature (Documentation/filesystems/overlayfs.rst).
_NO_UPPER: Final = frozenset(
    b"overlay squashfs erofs iso9660 udf cramfs romfs vfat msdos exfat ntfs nfs nfs4 cifs smb3"
    b" ceph 9p virtiofs fuse fuseblk ecryptfs".split()
)
#: Not files of anybody: the kernel's own trees, or made anew by every world.
_KERNEL_TREES: Final = frozenset(
    b"autofs bdev binfmt_misc bpf cgroup cgroup2 configfs debugfs devpts devtmpfs efivarfs"
    b" fusectl hugetlbfs mqueue nfsd nsfs proc pstore ramfs resctrl rpc_pipefs securityfs"
    b" selinuxfs sysfs tracefs".split()
)
#: Lowers that overlayfs refuses: names fold by case there, or lookups change under it.
_NO_LOWER: Final = frozenset(b"vfat msdos exfat autofs".split())


@value
class Mount:
    """One mount of a mount namespace."""

    mount_id: int
    parent_id: int
    device: tuple[int, int]  # major, minor
    root: bytes  # of the filesystem, the directory that is mounted
    mount_point: bytes
    options: tuple[bytes, ...]  # of the mount
    optional: tuple[bytes, ...]  # shared:N, master:N, propagate_from:N, unbindable
    filesystem: bytes
    source: bytes
    super_options: tuple[bytes, ...]  # of the filesystem

    @property
    def read_only(self) -> bool:
        return b"ro" in self.options or b"ro" in self.super_options


def unescape(field: bytes) -> bytes:
    """Undoes the escapes of the kernel's seq_escape: \\ and three octal digits."""
    if b"\\" not in field:
        return field
    first, *rest = field.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


#: the last file that was parsed: a process that stays reads the same one again and again
_last: list[tuple[bytes, tuple[Mount, ...]]] = []


def parse_mountinfo(text: bytes) -> tuple[Mount, ...]:
    """The mounts of a mountinfo file. Raises ValueError for a malformed line."""
    if _last and _last[0][0] == text:
        return _last[0][1]
    found = tuple(_parse_line(line) for line in text.split(b"\n") if line)
    if len(found) > 1:  # a single line is somebody's question about one mount
        _last[:] = [(text, found)]
    return found


def _parse_line(line: bytes) -> Mount:
    # An unescaped " - " cannot be part of a path, only the separator behind optional fields.
    before, separator, after = line.partition(b" - ")
    fields, about = before.split(b" "), after.split(b" ")
    if not separator or len(fields) < 6 or len(about) < 3:
        raise ValueError(f"not a line of mountinfo: {line!r}")
    major, _, minor = fields[2].partition(b":")
    return Mount(
        mount_id=int(fields[0]),
        parent_id=int(fields[1]),
        device=(int(major), int(minor)),
        root=unescape(fields[3]),
        mount_point=unescape(fields[4]),
        options=tuple(fields[5].split(b",")),
        optional=tuple(fields[6:]),
        filesystem=about[0],
        source=unescape(about[1]),
        super_options=tuple(about[2].split(b",")),
    )


def is_below(path: bytes, directory: bytes) -> bool:
    """Whether `path` is `directory` or inside it. Both absolute and without `..`."""
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


def mount_of(mounts: tuple[Mount, ...], path: bytes) -> Mount:
    """The mount that an absolute path without symlinks lies on, as a lookup finds it.

    Raises LookupError when there is none."""
    found = _Tree(mounts).on_path(path)
    if found is None:
        raise LookupError(f"no mount holds {path!r}")
    return found


def submounts(mounts: tuple[Mount, ...], path: bytes) -> tuple[Mount, ...]:
    """The mounts strictly below `path` that can be seen, by mount point.

    Left out: what another mount covers, be it on the same point or on one above."""
    tree = _Tree(mounts)
    found: list[Mount] = []
    waiting = [tree.on_path(path)]
    while waiting:
        for mount in tree.seen_on(waiting.pop()):
            if mount.mount_point != path and is_below(mount.mount_point, path):
                found.append(mount)
                waiting.append(mount)
    return tuple(sorted(found, key=lambda mount: mount.mount_point))


def mounted_on(mounts: tuple[Mount, ...], path: bytes) -> tuple[bytes, ...]:
    """The mount points strictly below `path` on the mount that `path` lies on itself, by
    name: what keeps it from being cloned without them where they are locked."""
    tree = _Tree(mounts)
    points = (m.mount_point for m in tree.seen_on(tree.on_path(path)))
    return tuple(sorted(p for p in points if p != path and is_below(p, path)))


class _Tree:
    """Which mounts hang on which. The order of the lines tells nothing: a mount can be put
    below another one (move_mount(2) MOVE_MOUNT_BENEATH), and a copied tree is listed anew."""

    def __init__(self, mounts: tuple[Mount, ...]) -> None:
        listed = {mount.mount_id for mount in mounts}
        self._children: dict[int | None, list[Mount]] = {}
        for mount in mounts:
            top = mount.parent_id not in listed or mount.parent_id == mount.mount_id
            self._children.setdefault(None if top else mount.parent_id, []).append(mount)

    def on_path(self, path: bytes) -> Mount | None:
        """As `mount_of`; None where there is none."""
        found: Mount | None = None
        while True:
            level = self.seen_on(found)
            below = next((m for m in level if is_below(path, m.mount_point)), None)
            if below is None:
                return found
            found = below

    def seen_on(self, mount: Mount | None) -> list[Mount]:
        """What is mounted on directories of `mount` and can be seen: of those on one point the
        topmost, and none below another one's point. None: the namespace itself."""
        children = self._children.get(None if mount is None else mount.mount_id, [])
        own = None if mount is None else mount.mount_point
        outer: list[Mount] = []
        for child in sorted(children, key=lambda m: m.mount_point.split(b"/")):
            if child.mount_point == own:
                continue  # it covers the whole mount, and `_topmost` has taken it instead
            if outer and child.mount_point == outer[-1].mount_point:
                outer[-1] = child
            elif not (outer and is_below(child.mount_point, outer[-1].mount_point)):
                outer.append(child)
        return [self._topmost(child) for child in outer]

    def _topmost(self, mount: Mount) -> Mount:
        while True:
            over = [
                child
                for child in self._children.get(mount.mount_id, ())
                if child.mount_point == mount.mount_point
            ]
            if not over:
                return mount
            mount = over[-1]


def _type(mount: Mount) -> bytes:
    return b"fuse" if mount.filesystem.startswith(b"fuse.") else mount.filesystem


def is_kernel_tree(mount: Mount) -> bool:
    """Whether a world gets its own of this (proc, dev, cgroup …) instead of an overlay."""
    return _type(mount) in _KERNEL_TREES


def can_be_lower(mount: Mount) -> bool:
    """Whether overlayfs takes a directory of this filesystem as a lower."""
    return _type(mount) not in _NO_LOWER and not is_kernel_tree(mount)


def is_orphan(mount: Mount) -> bool:
    """Whether the directory that is mounted was removed (seq_dentry appends "//deleted"): nothing
    can be made in it, nor can it be mounted a second time."""
    return mount.root.endswith(b"//deleted")


def owner_of_fuse(mount: Mount) -> int | None:
    """The uid whose program serves a FUSE filesystem (fuse(8)); None for any other, and for one
    on a block device, which root mounted."""
    if _type(mount) != b"fuse":
        return None
    option = next((o for o in mount.super_options if o.startswith(b"user_id=")), b"user_id=0")
    return int(option[len(b"user_id=") :])


def can_be_upper(mount: Mount) -> bool:
    """Whether layers can be written here: a local, writable filesystem with xattrs and
    whiteouts. By type: the probe has the last word (an overlay as upper is E-UPPER-OVERLAY)."""
    return not mount.read_only and _type(mount) not in _NO_UPPER and not is_kernel_tree(mount)
