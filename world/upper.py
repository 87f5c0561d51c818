"""Reading the upper directories of an overlay: what an entry there means.

Not the comparison with what lies below (diff.py). Sources: Documentation/filesystems/
overlayfs.rst; world.md §3. A whiteout is a character device 0:0 (many share one inode), or,
in a directory whose `opaque` mark is "x", an empty file with a `whiteout` mark. A directory
marked opaque "y" hides everything below it. Only the namespace of marks that this mount used
is read; an escaped mark (`overlay.overlay.NAME`) is an ordinary attribute `overlay.NAME` of
the world. `metacopy` and `redirect`, which our mounts never make, are refused.

Invariant: nothing here follows a symlink or opens anything but directories and regular
files. A file or directory of ours that its mode keeps us from reading (rootless: mode 0000)
is unlocked by adding the owner's bits through an O_PATH fd, and set back at once.
"""

from __future__ import annotations

import os

from substrate.errors import StateError
from substrate.world.beneath import LIST, LOOKUP, READ, open_beneath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FORMAT = 0o170000
DIRECTORY, REGULAR, SYMLINK = 0o040000, 0o100000, 0o120000
CHARACTER, BLOCK, FIFO, SOCKET = 0o020000, 0o060000, 0o010000, 0o140000

_OVERLAY = "overlay."
_ESCAPED = "overlay.overlay."
#: labels that the host's security module gives by place, not content
LABELS = frozenset(("security.selinux", "security.SMACK64", "security.ima", "security.evm"))
ACL = frozenset(("system.posix_acl_access", "system.posix_acl_default"))


class Marks:
    """The names of one mount's overlay marks. `prefix` is b"trusted." or b"user."."""

    __slots__ = ("_metacopy", "_redirect", "opaque", "origin", "own", "prefix", "usual", "whiteout")

    def __init__(self, prefix: bytes) -> None:
        self.prefix = os.fsdecode(prefix)
        self.own = self.prefix + _OVERLAY
        self.opaque = self.own + "opaque"
        self.origin = self.own + "origin"
        self.whiteout = self.own + "whiteout"
        #: all names of a file that was copied up and had no attributes
        self.usual = [self.origin]
        self._metacopy = self.own + "metacopy"
        self._redirect = self.own + "redirect"

    def refuse_unknown(self, names: list[str], path: bytes) -> None:
        """Raises StateError for a mark whose meaning (data or name elsewhere) is not handled."""
        if self._metacopy in names or self._redirect in names:
            raise StateError(
                f"layer entry {os.fsdecode(path)!r} carries an overlay metacopy or redirect mark",
                hint="the overlay was mounted with metacopy=on or redirect_dir=on; substrate "
                "mounts with both off, so this layer is not its work or was tampered with",
                code="E-LAYER-FORMAT",
            )

    def escape(self, name: str) -> str:
        """How an attribute `NAME` of a file, itself an overlay's mark, is named in a layer."""
        return self.prefix + _ESCAPED + name[len(self.own) :]

    def seen_names(self, names: list[str]) -> list[tuple[str, str]]:
        """(name as the world sees it, name on disk) of the attributes that count."""
        seen = []
        for name in names:
            if name in LABELS:
                continue
            if name.startswith(self.own):
                if not name.startswith(self.prefix + _ESCAPED):
                    continue
                seen.append((self.prefix + name[len(self.prefix) + len(_OVERLAY) :], name))
            else:
                seen.append((name, name))
        return seen


def at(fd: int, name: str) -> str:
    """A path for the calls without a *at form (xattrs): the kernel takes the directory from
    the fd itself; only the last component is looked up, and never followed by us."""
    return f"/proc/self/fd/{fd}/{name}" if name else f"/proc/self/fd/{fd}"


def opaque_mark(fd: int, marks: Marks, path: bytes) -> bytes:
    """b"y", b"x" or b"" for the layer directory `fd` (open for listing)."""
    names = os.listxattr(fd)
    if not names:
        return b""
    marks.refuse_unknown(names, path)
    return os.getxattr(fd, marks.opaque) if marks.opaque in names else b""


def read_attribute(where: str | int, name: str) -> bytes:
    """One attribute of a layer's file. `user.*` ones need read permission (xattr(7)), so a file
    of ours that its mode closes is unlocked for it."""
    follow = isinstance(where, int)
    try:
        return os.getxattr(where, name, follow_symlinks=follow)
    except PermissionError:
        path = at(where, "") if isinstance(where, int) else where
        unlocked = Unlocked()
        unlocked.widen(os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)))
        try:
            return os.getxattr(where, name, follow_symlinks=follow)
        finally:
            unlocked.relock()


def read_attributes(
    where: str | int,
    marks: Marks,
    unshift: Mapping[int, int] | None = None,
    *,
    layer: bool = True,
    names: list[str] | None = None,
) -> dict[str, bytes]:
    """The extended attributes that count, by the world's name for them.

    `where` is a path by `at` or an fd, of a layer's file or not. Access lists have their ids put
    through `unshift`. `names`: as listxattr(2) gave them already. Raises OSError."""
    follow = isinstance(where, int)
    if names is None:
        names = os.listxattr(where, follow_symlinks=follow)
    if not names:
        return {}
    found = {}
    for seen, name in marks.seen_names(names):
        if layer:
            content = read_attribute(where, name)
        else:
            content = os.getxattr(where, name, follow_symlinks=follow)
        if unshift is not None and name in ACL:
            content = move_acl(content, lambda i: unshift.get(i, i))
        found[seen] = content
    return found


def move_acl(acl: bytes, moved_id: Callable[[int], int | None]) -> bytes:
    """An access list with its ids put through a function; those that it has none for stay.

    posix_acl_xattr.h: a 4-byte version, then entries of tag u16, permission u16, id u32;
    ids count for the tags ACL_USER (2) and ACL_GROUP (8)."""
    moved = bytearray(acl)
    for start in range(4, len(acl) - 7, 8):
        if acl[start] in (2, 8) and acl[start + 1] == 0:
            found = moved_id(int.from_bytes(acl[start + 4 : start + 8], "little"))
            if found is not None:
                moved[start + 4 : start + 8] = found.to_bytes(4, "little")
    return bytes(moved)


def list_closed(path: bytes) -> list[str]:
    """The names in a directory of a layer that its mode keeps us from listing."""
    root = os.open(path, LOOKUP)
    try:
        fd, unlocked = open_layer_directory(root, b"")
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)
            if unlocked is not None:
                unlocked.relock()
    finally:
        os.close(root)


class Unlocked:
    """Directories whose mode we widened to pass; `relock` sets them back, deepest first."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: list[tuple[int, int]] = []

    def widen(self, fd: int) -> None:
        """Adds the owner's bits on the O_PATH fd, which this object then owns.

        Raises PermissionError when the file is not ours or the mode was not the obstacle."""
        status = os.fstat(fd)
        wanted = 0o700 if status.st_mode & FORMAT == DIRECTORY else 0o400
        if status.st_uid != os.geteuid() or status.st_mode & wanted == wanted:
            os.close(fd)
            raise PermissionError(13, "a file of a layer cannot be read")
        os.chmod(f"/proc/self/fd/{fd}", status.st_mode & 0o7777 | wanted)
        self._held.append((fd, status.st_mode & 0o7777))

    def mode_of(self, status: os.stat_result) -> int | None:
        """The mode that a file had before we widened it; None for one that we did not."""
        for fd, mode in self._held:
            held = os.fstat(fd)
            if (held.st_dev, held.st_ino) == (status.st_dev, status.st_ino):
                return mode
        return None

    def relock(self) -> None:
        while self._held:
            fd, mode = self._held.pop()
            os.chmod(f"/proc/self/fd/{fd}", mode)
            os.close(fd)


def open_layer_directory(root_fd: int, relative: bytes) -> tuple[int, Unlocked | None]:
    """A directory of a layer, open for listing and lookups, and what must be relocked once
    it is no longer used. Raises OSError."""
    try:
        fd = open_beneath(root_fd, relative, LIST)
    except PermissionError:
        return _unlock_directory(root_fd, relative)
    try:
        os.stat(".", dir_fd=fd)  # fails on one that can be listed but not searched
    except PermissionError:
        os.close(fd)
        return _unlock_directory(root_fd, relative)
    return fd, None


def _unlock_directory(root_fd: int, relative: bytes) -> tuple[int, Unlocked]:
    unlocked = Unlocked()
    try:
        fd = os.dup(root_fd)
        if os.fstat(fd).st_mode & 0o500 != 0o500:
            unlocked.widen(os.dup(fd))
        for part in relative.split(b"/") if relative else ():
            try:
                below = open_beneath(fd, part, LOOKUP)
            finally:
                os.close(fd)
            fd = below
            if os.fstat(fd).st_mode & 0o500 != 0o500:
                unlocked.widen(os.dup(fd))
        try:
            return open_beneath(fd, b"", LIST), unlocked
        finally:
            os.close(fd)
    except BaseException:
        unlocked.relock()
        raise


def open_layer_file(dir_fd: int, name: str | bytes) -> int:
    """A regular file of a layer, for reading. Raises OSError."""
    try:
        return os.open(name, READ, dir_fd=dir_fd)
    except PermissionError:
        unlocked = Unlocked()
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        if os.fstat(fd).st_mode & FORMAT != REGULAR:
            os.close(fd)
            raise
        unlocked.widen(fd)
        try:
            return os.open(name, READ, dir_fd=dir_fd)
        finally:
            unlocked.relock()
