"""What a command did to its private copy, as the upper of a layer: the way back of private_copy.py.

After it, diff, apply, undo and all that reads layers see what an overlay would have left. An entry
whose stamp is the one that was taken is as it was copied; everything else is moved into the upper, and
whether it is a change at all is diff's question. A name that is gone becomes a whiteout (a character
device 0:0, which the kernel lets everybody make); a directory that was replaced gets whiteouts for
what is no longer in it, so that no mark is needed but those. Nobody writes to the copy any more.
A directory whose mode keeps us out is opened, and stays so: the copy goes afterwards; which mode it had is
written down first. Invariants: no symlink is followed; an attribute that reads as an overlay's mark is data
of the world's and is escaped; what was hidden from the command is neither replaced nor removed by it; a
harvest that was cut short can be done again.
"""

from __future__ import annotations

import errno
import os
import stat

from substrate.errors import StateError
from substrate.world.beneath import READ
from substrate.world.image import Budget, copy_content
from substrate.world.long_paths import LongPaths
from substrate.world.private_copy import Manifest, list_entries, stamp_of
from substrate.world.upper import DIRECTORY, FIFO, FORMAT, REGULAR, SYMLINK, Marks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_NO_LIMIT: Final = 1 << 62
_KNOWN: Final = (DIRECTORY, REGULAR, SYMLINK, FIFO)


def harvest(
    copy: bytes, manifest: Manifest, upper: bytes, marks: Marks, opened: bytes
) -> frozenset[bytes]:
    """Moves what was touched in `copy` into `upper`, a layer's for the same directory. `opened`: the path of
    a file that goes with the copy, which need not be there. Returns what was made where something unseen is, and is
    not taken. Raises OSError; StateError for an entry that no command can have made."""
    with LongPaths(copy) as in_copy, LongPaths(upper) as in_upper:
        found = _Harvest(in_copy, manifest, in_upper, marks, opened)
        found.run()
    return frozenset(found.not_taken)


class _Harvest:
    def __init__(
        self,
        copy: LongPaths,
        manifest: Manifest,
        upper: LongPaths,
        marks: Marks,
        opened: bytes,
    ) -> None:
        self._copy, self._upper, self._marks = copy, upper, marks
        self._as_root = os.geteuid() == 0
        self._opened = opened
        self._modes_before = _read_opened(opened)
        self._stamps, self._attributed = manifest.stamps, manifest.attributed
        self._names: dict[bytes, list[bytes]] = {}  # what was in each directory
        for path in manifest.stamps:
            if path:
                parent, _, name = path.rpartition(b"/")
                self._names.setdefault(parent, []).append(name)
        #: directories that are left out, or hold what was
        self._keep = _with_parents(manifest.left_out)
        self._keep -= manifest.left_out.difference(manifest.stamps)
        self._hidden = manifest.hidden
        #: directories with more in them than the command saw
        self._hold_more = _with_parents(manifest.hidden)
        self._hold_more |= manifest.left_out.intersection(manifest.stamps)
        self.not_taken: set[bytes] = set()
        #: of directories of the upper, at the end: path, mode, times
        self._modes: list[tuple[bytes, int, os.stat_result]] = []
        self._made: set[bytes] = {b""}
        self._linked: dict[tuple[int, int], bytes] = {}

    def run(self) -> None:
        waiting = [b""]
        self._root()
        while waiting:
            waiting += self._directory(waiting.pop())
        for path, mode, status in reversed(self._modes):  # deepest first
            os.chmod(self._upper(path), mode)
            os.utime(self._upper(path), ns=(status.st_atime_ns, status.st_mtime_ns))

    def _root(self) -> None:
        """The root of a layer has the mode and attributes of the merged directory (layers.py)."""
        status = os.lstat(self._copy(b""))
        mode = self._mode(b"", status)
        upper = os.lstat(self._upper(b""))
        self._open_source(b"", status)
        if mode != self._stamps[b""].mode or not self._is_open(mode):
            os.chmod(self._upper(b""), mode & 0o7777 | 0o700)
            self._modes.append((b"", mode & 0o7777, upper))

    # --- directories that their mode closes to us

    def _is_open(self, mode: int) -> bool:
        return self._as_root or mode & 0o700 == 0o700

    def _mode(self, relative: bytes, status: os.stat_result) -> int:
        """What the command left, with its type."""
        return self._modes_before.get(relative, status.st_mode)

    def _open_source(self, relative: bytes, status: os.stat_result) -> None:
        if self._is_open(status.st_mode):
            return
        if relative not in self._modes_before:
            self._modes_before[relative] = status.st_mode
            with open(self._opened, "ab") as file:
                file.write(b"%d %s\0" % (status.st_mode, relative))
        os.chmod(self._copy(relative), status.st_mode & 0o7777 | 0o700)

    def _have_open(self, target: bytes) -> None:
        """A directory in the upper, new or of a harvest that was cut short."""
        if not os.path.isdir(target):
            os.mkdir(target, 0o700)
        elif not self._as_root:
            os.chmod(target, 0o700)

    # --- what was touched

    def _directory(self, relative: bytes) -> list[bytes]:
        """One directory that was copied and is still there; those in it that are, too."""
        path = self._copy(relative)
        self._open_source(relative, os.lstat(path))
        now = dict(list_entries(path))
        for name in self._names.get(relative, ()):
            if name not in now:
                self._gone(_join(relative, name))
        inner = []
        for name, status in now.items():
            inside = _join(relative, name)
            before = self._stamps.get(inside)
            if status.st_mode & FORMAT not in _KNOWN:
                if stat.S_ISSOCK(status.st_mode):
                    continue  # of a server that has ended with the world
                raise StateError(f"{os.fsdecode(inside)} in a private copy is a device")
            same = before is not None and before.inode == status.st_ino
            if same and status.st_mode & FORMAT == DIRECTORY:
                if before != stamp_of(status):
                    self._note_directory(inside, status)
                inner.append(inside)
            elif before is None or before != stamp_of(status):
                self._take(inside, status)
        return inner

    def _note_directory(self, relative: bytes, status: os.stat_result) -> None:
        """A directory of which mode, owner or attributes may be others, or just its entries."""
        before = self._stamps[relative]
        self._open_source(relative, status)
        mode = self._mode(relative, status)
        same = (mode, status.st_uid, status.st_gid) == before[1:4]
        if not same or relative in self._attributed or os.listxattr(self._copy(relative)):
            self._have_directory(relative)

    def _take(self, relative: bytes, status: os.stat_result) -> None:
        """Moves a file, a link or a whole directory into the upper."""
        is_directory = status.st_mode & FORMAT == DIRECTORY
        if relative in self._hidden or (relative in self._hold_more and not is_directory):
            self.not_taken.add(relative)
            if relative in self._stamps:
                self._gone(relative)
            return
        self._have_directory(relative.rpartition(b"/")[0])
        source, target = self._copy(relative), self._upper(relative)
        self._remove_leftover(target)
        if is_directory:
            self._take_tree(relative, status)
            return
        self._escape_marks(source, status)
        try:
            os.rename(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._carry(source, target, status)

    def _take_tree(self, relative: bytes, status: os.stat_result) -> None:
        """A directory that is new here, entry by entry; what was here before under its names and is
        gone gets a whiteout."""
        waiting = [(relative, status)]
        while waiting:
            inside, at_status = waiting.pop()
            source, target = self._copy(inside), self._upper(inside)
            self._have_open(target)
            self._made.add(inside)
            self._open_source(inside, at_status)
            self._attributes(source, target, at_status)
            self._modes.append((inside, self._mode(inside, at_status) & 0o7777, at_status))
            entries = dict(list_entries(source))
            for name in self._names.get(inside, ()):
                if name not in entries:
                    self._gone(_join(inside, name))
            for name, inner in entries.items():
                path = _join(inside, name)
                if inner.st_mode & FORMAT == DIRECTORY and path not in self._hidden:
                    before = self._stamps.get(path)
                    if before is not None and before.mode & FORMAT != DIRECTORY:
                        self._remove_leftover(self._upper(path))
                    waiting.append((path, inner))
                elif inner.st_mode & FORMAT in _KNOWN:
                    self._take(path, inner)

    def _gone(self, relative: bytes) -> None:
        """What the command removed; of a directory of which it could not see all, what it saw."""
        waiting = [relative]
        while waiting:
            path = waiting.pop()
            if path not in self._keep:
                self._white_out(path)
                continue
            self._have_directory(path.rpartition(b"/")[0])
            self._have_open(self._upper(path))
            before, made = self._stamps[path], os.lstat(self._upper(path))
            if self._as_root:
                os.chown(self._upper(path), before.uid, before.gid)
            self._modes.append((path, before.mode & 0o7777, made))
            self._made.add(path)
            waiting += [_join(path, name) for name in self._names.get(path, ())]

    def _white_out(self, relative: bytes) -> None:
        self._have_directory(relative.rpartition(b"/")[0])
        target = self._upper(relative)
        try:
            os.mknod(target, stat.S_IFCHR | 0o000, os.makedev(0, 0))
        except FileExistsError:
            if os.path.isdir(target):
                raise
            # of a harvest that was cut short: made there, or the entry itself, which was moved

    def _have_directory(self, relative: bytes) -> None:
        """Has a directory in the upper like the copy's, for what is in it."""
        missing = []
        while relative not in self._made:
            missing.append(relative)
            relative = relative.rpartition(b"/")[0]
        for inside in reversed(missing):
            source, target = self._copy(inside), self._upper(inside)
            self._have_open(target)
            status = os.lstat(source)
            self._open_source(inside, status)
            self._attributes(source, target, status)
            self._modes.append((inside, self._mode(inside, status) & 0o7777, status))
            self._made.add(inside)

    def _attributes(self, source: bytes, target: bytes, status: os.stat_result) -> None:
        if self._as_root:
            os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
        for name in os.listxattr(source, follow_symlinks=False):
            kept = self._marks.escape(name) if name.startswith(self._marks.own) else name
            if kept.startswith(("user.", "system.posix_acl_")):
                content = os.getxattr(source, name, follow_symlinks=False)
                os.setxattr(target, kept, content, follow_symlinks=False)

    def _escape_marks(self, path: bytes, status: os.stat_result) -> None:
        if status.st_mode & FORMAT != REGULAR:
            return
        for name in os.listxattr(path, follow_symlinks=False):
            if name.startswith(self._marks.own):
                content = os.getxattr(path, name, follow_symlinks=False)
                os.setxattr(path, self._marks.escape(name), content, follow_symlinks=False)
                os.removexattr(path, name, follow_symlinks=False)

    def _carry(self, source: bytes, target: bytes, status: os.stat_result) -> None:
        """To another filesystem: a copy instead of a move."""
        kind, key = status.st_mode & FORMAT, (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and key in self._linked:
            os.link(self._linked[key], target, follow_symlinks=False)
            return
        if kind == SYMLINK:
            os.symlink(os.readlink(source), target)
        elif kind == FIFO:
            os.mkfifo(target, 0o600)
        else:
            if status.st_mode & 0o400 == 0 and not self._as_root:
                os.chmod(source, 0o600)
            source_fd = os.open(source, READ)
            target_fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                copy_content(source_fd, target_fd, Budget(_NO_LIMIT))
            finally:
                os.close(source_fd)
                os.close(target_fd)
        self._attributes(source, target, status)
        if kind != SYMLINK:
            os.chmod(target, status.st_mode & 0o7777)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
        self._linked[key] = target

    def _remove_leftover(self, target: bytes) -> None:
        """Of a harvest that was cut short."""
        if os.path.lexists(target) and not os.path.isdir(target):
            os.unlink(target)


def _read_opened(path: bytes) -> dict[bytes, int]:
    """Modes by path, of a harvest that was cut short; of a line that it did not end, nothing: that
    directory was not opened."""
    try:
        with open(path, "rb") as file:
            *lines, _ = file.read().split(b"\0")
    except FileNotFoundError:
        return {}
    return {path: int(mode) for mode, _, path in (line.partition(b" ") for line in lines)}


def _with_parents(paths: frozenset[bytes]) -> set[bytes]:
    found = set()
    for path in paths:
        while path and path not in found:
            found.add(path)
            path = path.rpartition(b"/")[0]
    return found


def _join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name
