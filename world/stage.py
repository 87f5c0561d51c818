"""Making the new entry beside its target, complete, before any name changes.

Not the exchange of names (apply.py). A staged entry has the content, mode, owner, times and
attributes that the target shall have; only its name is a temporary one. Sources are read
from frozen layers only and must be the files that the plan saw; a merged content comes with the
plan. Owners: a file belongs to
the id that it had in the world, un-shifted; where the caller may not give files away, it
stays the caller's and the path is noted. What was made in the end is noted as well, so that an
undo can tell whether the host touched it since (reverse_record.py). Spec: world.md §5.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Mapping

from substrate.errors import StateError
from substrate.world import linux
from substrate.world.beneath import open_beneath
from substrate.world.change import FileState
from substrate.world.entry import Entry, attributes_digest, entry_of, special_content
from substrate.world.identity import _BLOCK, Inode, add_block, content_digest, inode_of
from substrate.world.layers import USER
from substrate.world.upper import FORMAT, at, open_layer_file, read_attributes
from substrate.world.view import TYPES, MountView

_FICLONE = 0x40049409  # ioctl_ficlone(2)
_CLONE_FROM = 1 << 20  # bytes; below this a copy is cheaper than the attempt
_CANNOT_CLONE = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM)
_CANNOT_LINK = (errno.EXDEV, errno.EMLINK, errno.EPERM)
#: attributes that a new file can inherit from its directory
_INHERITED = ("system.posix_acl_access", "system.posix_acl_default")


class Stager:
    """Stages entries of one mount. `kept_owner` collects paths whose owner could not be given.

    `links`: the first staged name of each hard-linked file of a layer, so that names which
    were one file in the world are one file on the host. `contents`: by path, what a regular
    file gets in place of the layer's content; the time of such a file is now. `root`: the
    directory that the paths of parents are below, if not the host's."""

    def __init__(
        self,
        view: MountView,
        contents: Mapping[bytes, bytes] | None = None,
        *,
        root: int | None = None,
    ) -> None:
        self.view = view
        self.contents = contents or {}
        self._root = root
        self.links: dict[tuple[int, int, int], tuple[bytes, bytes, bytes]] = {}
        self.kept_owner: list[bytes] = []
        #: the inode of each entry that we made, by the path of what it stands for: who may
        #: write beside it could put another one in its place
        self.made: dict[bytes, Inode] = {}
        #: the same, as it was when it was finished
        self.entries: dict[bytes, Entry] = {}
        #: what an entry replaces, by its path: in a rootless world, where every file is the
        #: user's, that tells its group
        self.before: dict[bytes, FileState] = {}
        self.has_owners = view.stack.xattr_prefix != USER
        self._euid, self._egid = os.geteuid(), os.getegid()

    def stage(
        self,
        relative: bytes,
        state: FileState,
        parent: bytes,
        parent_fd: int,
        name: bytes,
        *,
        open_directory: bool = False,
    ) -> str | None:
        """Makes `state` (the entry `relative` of a layer) as `name` in `parent_fd`, which is
        the host's directory `parent`. Gives a regular file's content digest. A directory is
        left open (0700) when `open_directory`; `finish_directory` completes it.

        Raises OSError, StateError when the layer's file is not the one that was planned."""
        source_parent, _, source_name = relative.rpartition(b"/")
        if source_parent in self.made:
            self._must_be_made(source_parent, parent_fd)
        source_fd, unlocked = self.view.open_parent(state.layer, source_parent)
        try:
            self._must_be(source_fd, source_name, state, relative)
            if state.type == "directory":
                os.mkdir(name, 0o700, dir_fd=parent_fd)
                self._note_made(relative, parent_fd, name)
                if not open_directory:
                    self.finish_directory(relative, state, parent_fd, name)
            elif state.type == "file":
                return self._stage_file(relative, state, parent, parent_fd, name, source_fd)
            else:
                self._stage_special(relative, state, parent_fd, name, source_fd)
        finally:
            os.close(source_fd)
            if unlocked is not None:
                unlocked.relock()
        return None

    def _must_be(self, fd: int, name: bytes, state: FileState, relative: bytes) -> None:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if seen != (state.dev, state.inode, state.size, state.mtime_ns):
            raise StateError(
                f"{os.fsdecode(self.view.path(relative))} changed in its layer after the diff",
                hint="look at the diff again; only layers that no process writes are applied",
            )

    def _stage_file(
        self,
        relative: bytes,
        state: FileState,
        parent: bytes,
        parent_fd: int,
        name: bytes,
        source_fd: int,
    ) -> str:
        key = (state.layer, state.dev, state.inode)
        content = self.contents.get(self.view.path(relative)) if self.contents else None
        linked = state.nlink > 1 and content is None
        first = self.links.get(key) if linked else None
        if first is not None and self._link(relative, *first, parent_fd, name):
            return ""
        source = self._open(relative, source_fd, state)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            target = os.open(name, flags, 0o600, dir_fd=parent_fd)
            try:
                self.made[relative] = inode_of(os.fstat(target))
                if content is None:
                    digest = copy_content(source, target)
                else:
                    _write_all(target, content, 0)
                    digest = content_digest(target)
                attributes = self._attributes(relative, source, state)
                now = None if content is None else time.time_ns()
                self._finish(relative, state, target, attributes, digest, mtime_ns=now)
            finally:
                os.close(target)
        finally:
            os.close(source)
        if linked:
            self.links[key] = (parent, name, relative)
        return digest

    def _open(self, relative: bytes, dir_fd: int, state: FileState) -> int:
        return open_layer_file(dir_fd, relative.rpartition(b"/")[2])

    def _attributes(self, relative: bytes, where: int | str, state: FileState) -> dict[str, bytes]:
        """What a copy of the source's file at `where` (an fd or a path by `at`) is given."""
        return read_attributes_of(self.view, where)

    def _link(
        self,
        relative: bytes,
        old_parent: bytes,
        old: bytes,
        first: bytes,
        parent_fd: int,
        name: bytes,
    ) -> bool:
        """Another name for what was staged as `old`, by its fd; False where the filesystem
        has none."""
        path = old_parent + b"/" + old if old_parent else old
        root = self.view.roots[0] if self._root is None else self._root
        fd = open_beneath(root, path, os.O_PATH | os.O_NOFOLLOW)
        try:
            if inode_of(os.fstat(fd)) != self.made[first]:
                raise self.replaced(relative)
            os.link(at(fd, ""), name, dst_dir_fd=parent_fd, follow_symlinks=True)
            self.made[relative] = self.made[first]
            self.entries[relative] = self.entries[first]
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            return False
        finally:
            os.close(fd)
        return True

    def _stage_special(
        self, relative: bytes, state: FileState, parent_fd: int, name: bytes, source_fd: int
    ) -> None:
        if state.type == "symlink":
            assert state.link is not None
            os.symlink(state.link, name, dir_fd=parent_fd)
        else:
            kind = {
                "fifo": stat.S_IFIFO,
                "socket": stat.S_IFSOCK,
                "char": stat.S_IFCHR,
                "block": stat.S_IFBLK,
            }[state.type]
            os.mknod(name, kind | 0o600, state.rdev, dir_fd=parent_fd)
        source = at(source_fd, os.fsdecode(relative.rpartition(b"/")[2]))
        attributes = {} if state.type == "symlink" else self._attributes(relative, source, state)
        self._finish_special(relative, state, name, parent_fd, attributes)

    def _finish_special(
        self,
        relative: bytes,
        state: FileState,
        name: bytes,
        parent_fd: int,
        attributes: dict[str, bytes],
    ) -> None:
        """Through an fd of the very entry: where others may write to the directory, the name
        can be another file's by now, or a symlink to one."""
        fd = open_beneath(parent_fd, name, os.O_PATH | os.O_NOFOLLOW)
        try:
            status = os.fstat(fd)
            if not self._is_fresh(fd, status, state):
                raise self.replaced(relative)
            self.made[relative] = inode_of(status)
            self._give(relative, state, fd)
            path, given = at(fd, ""), ""
            if state.type != "symlink":
                self._set_attributes(path, attributes)
                os.chmod(path, state.mode)
                given = attributes_digest(path)
            os.utime(path, ns=(state.mtime_ns, state.mtime_ns))
            self.entries[relative] = entry_of(os.fstat(fd), special_content(state), given)
        finally:
            os.close(fd)

    def _is_fresh(self, fd: int, status: os.stat_result, state: FileState) -> bool:
        """Whether this can be what mknod(2) or symlink(2), which give no fd, just made."""
        if TYPES[status.st_mode & FORMAT] != state.type or status.st_nlink != 1:
            return False
        if state.type == "symlink":
            return os.readlink(b"", dir_fd=fd) == state.link
        return status.st_uid == self._euid and status.st_rdev == state.rdev

    def finish_directory(
        self, relative: bytes, state: FileState, parent_fd: int, name: bytes
    ) -> None:
        """Gives a staged directory, when all is in it, what its state says."""
        source, unlocked = self.view.open_parent(state.layer, relative)
        try:
            attributes = self._attributes(relative, source, state)
        finally:
            os.close(source)
            if unlocked is not None:
                unlocked.relock()
        fd = open_beneath(parent_fd, name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._must_be_made(relative, fd)
            self._finish(relative, state, fd, attributes, "")
        finally:
            os.close(fd)

    def _note_made(self, relative: bytes, parent_fd: int, name: bytes) -> None:
        fd = open_beneath(parent_fd, name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            status = os.fstat(fd)
            if os.listdir(fd):
                raise self.replaced(relative)
        finally:
            os.close(fd)
        self.made[relative] = inode_of(status)

    def _must_be_made(self, relative: bytes, fd: int) -> None:
        if self.made[relative] != inode_of(os.fstat(fd)):
            raise self.replaced(relative)

    def replaced(self, relative: bytes) -> StateError:
        return replaced(self.view.path(relative))

    def _finish(
        self,
        relative: bytes,
        state: FileState,
        fd: int,
        attributes: dict[str, bytes],
        content: str,
        mtime_ns: int | None = None,
    ) -> None:
        """Owner first (it clears setuid), then attributes (they need write permission by the
        mode), then the mode, then the times."""
        self._give(relative, state, fd)
        some = self._set_attributes(fd, attributes)
        os.fchmod(fd, state.mode)
        given = attributes_digest(fd) if some else ""
        when = state.mtime_ns if mtime_ns is None else mtime_ns
        os.utime(fd, ns=(when, when))
        self.entries[relative] = entry_of(os.fstat(fd), content, given)

    def _set_attributes(self, where: int | str, attributes: dict[str, bytes]) -> bool:
        """Whether it has any afterwards."""
        inherited = os.listxattr(where)
        for name in inherited:
            if name in _INHERITED and name not in attributes:
                os.removexattr(where, name)
        for name, content in attributes.items():
            os.setxattr(where, name, content)
        return bool(inherited or attributes)

    def _give(self, relative: bytes, state: FileState, fd: int) -> None:
        status = os.fstat(fd)
        if not self.has_owners:
            self._give_group(relative, state, status, fd)
            return
        uid = self._euid if state.uid is None else state.uid
        gid = self._egid if state.gid is None else state.gid
        if (status.st_uid, status.st_gid) == (uid, gid):
            return
        try:
            linux.chown_fd(fd, uid, gid)
        except PermissionError:
            self.kept_owner.append(self.view.path(relative))

    def _give_group(
        self, relative: bytes, state: FileState, status: os.stat_result, fd: int
    ) -> None:
        """From a world that has one user and one group. A new entry has the owner that the kernel
        gave it, who is the user, and the group of a directory that hands on its own; one that
        replaces another keeps that one's group."""
        before = self.before.get(relative)
        if before is None and state.uid not in (None, status.st_uid):  # what an undo brings back
            self.kept_owner.append(self.view.path(relative))
        if before is None or before.gid is None:
            return
        kept = before.uid != status.st_uid
        if before.gid != status.st_gid:
            try:
                linux.chown_fd(fd, -1, before.gid)
            except PermissionError:
                kept = True
        if kept:
            self.kept_owner.append(self.view.path(relative))


def read_attributes_of(view: MountView, where: int | str) -> dict[str, bytes]:
    """The attributes to give to a copy of a layer's file, ids un-shifted."""
    shifted = bool(view.stack.id_extents)
    found = read_attributes(where, view.marks, view.ids if shifted else None)
    capabilities = found.get("security.capability")
    if shifted and capabilities is not None and len(capabilities) == 24:
        # vfs_ns_cap_data, revision 3: the last word is the uid of the namespace's root.
        # On the host the file has them without a namespace: revision 2 (capabilities(7)).
        flags = int.from_bytes(capabilities[:4], "little") & 1
        found["security.capability"] = (0x02000000 | flags).to_bytes(4, "little") + capabilities[
            4:20
        ]
    return found


def copy_content(source: int, target: int) -> str:
    """Copies a regular file, holes kept, sharing extents where the filesystem can; gives the
    `content_digest`. Raises OSError."""
    status = os.fstat(source)
    size = status.st_size
    if size >= _CLONE_FROM:
        try:
            fcntl.ioctl(target, _FICLONE, source)
        except OSError as error:
            if error.errno not in _CANNOT_CLONE:
                raise
        else:
            return content_digest(target)
    sparse = status.st_blocks * 512 < size
    total = hashlib.sha256()
    offset = 0
    while offset < size:
        if sparse:
            try:
                data = os.lseek(source, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break
            offset = data - data % _BLOCK
        block = os.pread(source, min(_BLOCK, size - offset), offset)
        if not block:
            raise StateError("a file of a frozen layer became shorter while it was copied")
        add_block(total, offset, block)
        if not sparse or block.count(0) != len(block):
            _write_all(target, block, offset)
        offset += len(block)
    if sparse:
        os.ftruncate(target, size)
    return f"{total.hexdigest()}:{size}"


def _write_all(fd: int, block: bytes, offset: int) -> None:
    written = os.pwrite(fd, block, offset)
    while written < len(block):
        written += os.pwrite(fd, block[written:], offset + written)


def replaced(path: bytes) -> StateError:
    return StateError(
        f"what was staged for {os.fsdecode(path)} was replaced meanwhile",
        hint="somebody else writes to that directory: apply when nobody does",
    )
