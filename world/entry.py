"""What one entry of the host is, as far as an undo restores it: type, mode, owner, content,
attributes.

Not an identity (identity.py): the same content written again, or a new time, is the same
entry. Attributes are all that can be read but the labels that the host's security module
gives by place. Spec: world.md §4.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import NamedTuple

from substrate.world.change import FileState
from substrate.world.identity import content_digest, identity_of
from substrate.world.upper import FORMAT, LABELS, REGULAR, at, open_layer_file
from substrate.world.view import TYPES

UNKNOWN = "?"
_ARROW = "-> "


class Entry(NamedTuple):
    """`content`: the digest of a file, the target of a symlink, the number of a device.
    `attributes`: a digest of them, "" for none. Either is UNKNOWN where we may not read it."""

    type: str
    inode: int
    size: int
    mtime_ns: int
    mode: int
    uid: int
    gid: int
    content: str
    attributes: str

    def is_same(self, other: Entry) -> bool:
        """Whether nothing differs that an undo restores, times left out. A content that is
        unknown is the same while inode, size and time are."""
        if (self.type, self.mode, self.uid, self.gid) != (
            other.type, other.mode, other.uid, other.gid,
        ):  # fmt: skip
            return False
        if UNKNOWN in (self.content, other.content):
            same = self[1:4] == other[1:4]
        else:
            same = self.content == other.content
        known = UNKNOWN not in (self.attributes, other.attributes)
        return same and (not known or self.attributes == other.attributes)


def entry_of(status: os.stat_result, content: str, attributes: str) -> Entry:
    kind, _, inode, size, mtime_ns, mode, uid, gid = identity_of(status)
    return Entry(kind, inode, size, mtime_ns, mode, uid, gid, content, attributes)


def special_content(state: FileState) -> str:
    """The content of what is neither a file nor a directory."""
    if state.type == "symlink":
        return _ARROW + os.fsdecode(state.link or b"")
    return str(state.rdev) if state.type in ("char", "block") else ""


def attributes_digest(where: int | str, *, follow: bool = True) -> str:
    """`where`: an fd or a path by `at`. Raises OSError."""
    try:
        return digest_of_attributes(all_attributes(where, follow=follow))
    except PermissionError:  # `user.*` of a file that its mode closes (xattr(7))
        return UNKNOWN


def all_attributes(where: int | str, *, follow: bool = True) -> dict[str, bytes]:
    return {
        name: os.getxattr(where, name, follow_symlinks=follow)
        for name in os.listxattr(where, follow_symlinks=follow)
        if name not in LABELS
    }


def digest_of_attributes(attributes: dict[str, bytes]) -> str:
    if not attributes:
        return ""
    total = hashlib.sha256()
    for name, content in sorted(attributes.items()):
        total.update(b"%d:%s%d:%s" % (len(name), os.fsencode(name), len(content), content))
    return total.hexdigest()


def read_entry(
    dir_fd: int, name: bytes, open_file: Callable[[int, bytes], int] = open_layer_file
) -> tuple[os.stat_result, Entry]:
    """The entry `name` of a directory, read whole; `open_file` opens a regular file.

    Raises OSError (FileNotFoundError when there is none)."""
    text = os.fsdecode(name)
    status = os.stat(name or b".", dir_fd=dir_fd, follow_symlinks=False)
    kind = TYPES[status.st_mode & FORMAT]
    if kind == "symlink":
        return status, entry_of(status, _ARROW + os.readlink(text, dir_fd=dir_fd), "")
    if status.st_mode & FORMAT != REGULAR:
        content = str(status.st_rdev) if kind in ("char", "block") else ""
        attributes = attributes_digest(at(dir_fd, text or "."), follow=False)
        return status, entry_of(status, content, attributes)
    try:
        fd = open_file(dir_fd, name)
    except PermissionError:
        return status, entry_of(status, UNKNOWN, UNKNOWN)
    try:
        status = os.fstat(fd)
        return status, entry_of(status, content_digest(fd), attributes_digest(fd))
    finally:
        os.close(fd)
