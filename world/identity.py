"""What tells one state of a file from another: for the journal of an apply and its checks.

Not a content address that leaves this machine. Invariant: two equal identities mean the same
inode with the same size, modification time, mode and owner. The change time is not part of
it, because renaming a file changes that (rename(2)); `before_matches` compares it too, where
no rename lies between. Spec: world.md §5.
"""

from __future__ import annotations

import hashlib
import os

from substrate.world.beneath import LIST, LOOKUP, open_beneath
from substrate.world.change import FileState
from substrate.world.upper import DIRECTORY, FORMAT
from substrate.world.view import TYPES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

Identity = tuple[str, int, int, int, int, int, int, int]
#: the head of an identity: (type, dev, inode), which stays when the file is changed
Inode = tuple[str, int, int]

_BLOCK = 1 << 16
_ZEROS = bytes(_BLOCK)


def identity_of(status: os.stat_result) -> Identity:
    """(type, dev, inode, size, mtime_ns, mode, uid, gid). A directory's size and time do not
    count (0): what happens inside it changes them."""
    kind = status.st_mode & FORMAT
    is_directory = kind == DIRECTORY
    return (
        TYPES[kind],
        status.st_dev,
        status.st_ino,
        0 if is_directory else status.st_size,
        0 if is_directory else status.st_mtime_ns,
        status.st_mode & 0o7777,
        status.st_uid,
        status.st_gid,
    )


def inode_of(status: os.stat_result) -> Inode:
    return identity_of(status)[:3]


def inode_at(parent_fd: int, name: bytes) -> Inode | None:
    """What lies at `name`, not followed; None when nothing does. Raises OSError."""
    try:
        return inode_of(os.stat(name, dir_fd=parent_fd, follow_symlinks=False))
    except FileNotFoundError:
        return None


def identity_of_state(state: FileState) -> Identity:
    """The same for a state of the host (whose owner is the one on disk)."""
    is_directory = state.type == "directory"
    assert state.uid is not None and state.gid is not None
    return (
        state.type,
        state.dev,
        state.inode,
        0 if is_directory else state.size,
        0 if is_directory else state.mtime_ns,
        state.mode,
        state.uid,
        state.gid,
    )


def before_matches(status: os.stat_result, state: FileState) -> bool:
    """Whether the file is as the plan saw it, its change time included."""
    if identity_of(status) != identity_of_state(state):
        return False
    return state.type == "directory" or status.st_ctime_ns == state.ctime_ns


def list_tree(parent_fd: int, name: bytes) -> list[tuple[bytes, Identity]]:
    """(relative path, identity) of everything below the directory `name`, itself left out,
    sorted by path. A directory that is closed to us counts as an empty one. Raises OSError,
    EXDEV where another mount begins."""
    top = open_beneath(parent_fd, name, LOOKUP)
    found: list[tuple[bytes, Identity]] = []
    pending = [b""]
    try:
        while pending:
            relative = pending.pop()
            try:
                fd = open_beneath(top, relative, LIST)
            except PermissionError:
                continue
            try:
                for child in os.listdir(fd):
                    try:
                        status = os.stat(child, dir_fd=fd, follow_symlinks=False)
                    except PermissionError:
                        break  # listed but not searched: as closed as one that is not listed
                    raw = os.fsencode(child)
                    path = relative + b"/" + raw if relative else raw
                    found.append((path, identity_of(status)))
                    if status.st_mode & FORMAT == DIRECTORY:
                        pending.append(path)
            finally:
                os.close(fd)
    finally:
        os.close(top)
    found.sort()
    return found


def names_in(fd: int) -> str | None:
    """One hash for the names in a directory and their inodes, but for what an apply puts aside;
    None for one that is closed to us. Raises OSError."""
    total = hashlib.sha256()
    try:
        listed = open_beneath(fd, b"", LIST)
        try:
            for name in sorted(map(os.fsencode, os.listdir(listed))):
                if not name.startswith(b".substrate-"):
                    inode = os.stat(name, dir_fd=listed, follow_symlinks=False).st_ino
                    total.update(b"%d:%s%d\n" % (len(name), name, inode))
        finally:
            os.close(listed)
    except PermissionError:
        return None
    return total.hexdigest()


def fingerprint(tree: Iterable[tuple[bytes, Identity]]) -> str:
    """One hash for a sorted list of paths and identities. Device numbers, which may change at
    a reboot, are left out."""
    total = hashlib.sha256()
    for path, identity in tree:
        total.update(b"%d:%s%s\n" % (len(path), path, repr(identity[2:] + identity[:1]).encode()))
    return total.hexdigest()


def content_digest(fd: int) -> str:
    """A hash of a regular file's bytes that does not depend on where its holes are: blocks
    of zeros do not count, and holes are not read (lseek(2) SEEK_DATA)."""
    total = hashlib.sha256()
    size = os.fstat(fd).st_size
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != 6:  # ENXIO: only a hole is left
                raise
            break
        offset -= offset % _BLOCK
        try:
            end = min(os.lseek(fd, offset, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno != 6:
                raise
            break
        if end <= offset:  # the block begins with a hole
            end = offset + 1
        while offset < end:
            block = os.pread(fd, min(_BLOCK, size - offset), offset)
            if not block:
                return f"{total.hexdigest()}:{size}"
            add_block(total, offset, block)
            offset += len(block)
    return f"{total.hexdigest()}:{size}"


def add_block(total: hashlib._Hash, offset: int, block: bytes) -> None:
    """Adds one aligned block of a content to its digest, unless it is all zeros."""
    if block != _ZEROS[: len(block)]:
        total.update(offset.to_bytes(8, "little"))
        total.update(block)
