"""The private copy of a workspace that a world without mounts works in (`guard`).

What an overlay shows, as files of its own: the host's directory under the frozen layers of the stack.
Made anew for each command, so that what the host changes between two of them is seen as ever; extents
are shared where the filesystem can (ioctl_ficlone(2)). Not the way back into a layer (harvest.py).
Invariants: nothing is copied that the world is not to see; no symlink is followed; each entry's stamp
is taken when all is copied, and the command does not begin before the kernel's clock has gone on, so
that whatever is touched later has another ctime, which nobody in the world can set. Spec: world.md §1.
"""

from __future__ import annotations

import errno
import marshal
import os
import select
import time
from typing import NamedTuple

from substrate.errors import HostUnsupported, StateError
from substrate.world.beneath import READ
from substrate.world.clock import latest_ns
from substrate.world.image import Budget, TooLarge, copy_content
from substrate.world.long_paths import LongPaths
from substrate.world.upper import (
    DIRECTORY,
    FIFO,
    FORMAT,
    REGULAR,
    SYMLINK,
    at,
    open_layer_file,
    read_attributes,
)
from substrate.world.view import HOST, DirectoryView, Found, MountView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Final

    from substrate.world.layers import LayerStack, OverlayMount

#: what is copied at most: for more, a world has to be an overlay
MOST_ENTRIES: Final = 300_000
MOST_BYTES: Final = 8 << 30
_TRIES: Final = 3
_CLOCK_REALTIME_COARSE: Final = 5  # <linux/time.h>; Python does not name it
_PATIENCE_S: Final = 2.5
_CANNOT_LINK: Final = (errno.EXDEV, errno.EMLINK, errno.EPERM)
_NO_ATTRIBUTE: Final = (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.ENODATA)
_HELD_BACK: Final = ("security.", "trusted.")


class Stamp(NamedTuple):
    """What an entry of the copy was, when all was copied. Times in nanoseconds."""

    inode: int
    mode: int  # with its type
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int


class Manifest(NamedTuple):
    """`stamps`: by the path in the copy, b"" is its root. `left_out`: what is there and was not
    copied: hidden, unreadable, a device, a socket, another mount. `hidden`: those of them
    that the world is not to see. `attributed`: directories that had attributes."""

    stamps: dict[bytes, Stamp]
    left_out: frozenset[bytes]
    hidden: frozenset[bytes]
    attributed: frozenset[bytes]


def stamp_of(status: os.stat_result) -> Stamp:
    return Stamp(
        *(status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_size),
        *(status.st_mtime_ns, status.st_ctime_ns),
    )


def make_copy(
    stack: LayerStack,
    mount: OverlayMount,
    numbers: tuple[int, ...],
    directory: bytes,
    skip: Collection[bytes],
) -> Manifest:
    """Copies the mount's tree, as the layers `numbers` (oldest first) over the host show it, to
    `directory`, which must not be there. `skip`: absolute paths that are left out with all that is
    in them. Raises OSError; HostUnsupported for more than can be copied."""
    view = MountView(stack, mount)
    with LongPaths(directory) as place:
        try:
            copier = _Copier(view, place, frozenset(skip))
            copier.run((*stack.sources(numbers), HOST))
        except TooLarge:
            raise _too_large(mount.target, f"{MOST_BYTES >> 30} GiB") from None
        finally:
            view.close()
        stamps = _stamps(place)
    _wait_for_clock(max(stamp.ctime_ns for stamp in stamps.values()))
    return Manifest(
        stamps,
        left_out=frozenset(copier.left_out),
        hidden=frozenset(copier.hidden),
        attributed=frozenset(copier.attributed),
    )


def save_manifest(path: bytes, manifest: Manifest) -> None:
    """Beside the copy, for whoever finds it when we were killed. Raises OSError."""
    stamps = {k: tuple(v) for k, v in manifest.stamps.items()}
    plain = (
        stamps,
        tuple(manifest.left_out),
        tuple(manifest.hidden),
        tuple(manifest.attributed),
    )
    with open(path + b".new", "wb") as file:
        marshal.dump(plain, file)
    os.rename(path + b".new", path)


def load_manifest(path: bytes) -> Manifest:
    """Raises OSError; ValueError, EOFError, TypeError for a file that is none."""
    with open(path, "rb") as file:
        stamps, left_out, hidden, attributed = marshal.load(file)
    stamps = {k: Stamp(*v) for k, v in stamps.items()}
    return Manifest(stamps, frozenset(left_out), frozenset(hidden), frozenset(attributed))


def _too_large(target: bytes, more: str) -> HostUnsupported:
    return HostUnsupported(
        f"{os.fsdecode(target)} holds more than {more}, which `guard` would have to copy for each "
        "command",
        hint="change to a smaller directory or repository, or run where a world can be an overlay "
        "(`substrate doctor`)",
    )


class _Copier:
    def __init__(self, view: MountView, to: LongPaths, skip: frozenset[bytes]) -> None:
        self._view, self._to, self._skip = view, to, skip
        self._budget = Budget(MOST_BYTES)
        self._count = 0
        self._links: dict[tuple[int, int, int], bytes] = {}
        self._finish: list[tuple[bytes, os.stat_result, dict[str, bytes]]] = []
        self._as_root = os.geteuid() == 0
        self.left_out: set[bytes] = set()
        self.hidden: set[bytes] = set()
        self.attributed: set[bytes] = set()

    def run(self, sources: tuple[int, ...]) -> None:
        os.mkdir(self._to(b""), 0o700)
        there = tuple(s for s in sources if s == HOST or self._has_root(s))
        waiting: list[tuple[bytes, tuple[int, ...]]] = [(b"", there)]
        while waiting:
            relative, merged = waiting.pop()
            try:
                directory = DirectoryView(self._view, relative, merged)
            except StateError:
                self.left_out.add(relative)  # of somebody else, or another mount
                continue
            try:
                waiting += self._directory(directory, merged)
            finally:
                directory.close()
        for path, status, attributes in reversed(self._finish):  # deepest first
            self._give(self._to(path), status, attributes)
            if attributes:
                self.attributed.add(path)

    def _has_root(self, source: int) -> bool:
        try:
            self._view.roots[source]
        except FileNotFoundError:
            return False  # a layer that has nothing of this mount
        return True

    def _directory(
        self, directory: DirectoryView, sources: tuple[int, ...]
    ) -> list[tuple[bytes, tuple[int, ...]]]:
        names: set[str] = set()
        for source in sources:
            try:
                names.update(directory.names(source))
            except StateError:
                self.left_out.add(directory.relative)
        if not directory.relative:
            fd = directory.fds[sources[0]]
            self._finish.append((b"", os.fstat(fd), self._attributes(fd, ".", sources[0])))
        inner = []
        for name in sorted(names):
            found, _ = directory.look_up(name, sources)
            if found is None:
                continue
            raw = os.fsencode(name)
            relative = directory.relative + b"/" + raw if directory.relative else raw
            self._count += 1
            if self._count > MOST_ENTRIES:
                raise _too_large(self._view.mount.target, f"{MOST_ENTRIES} files")
            if self._view.path(relative) in self._skip:
                self.left_out.add(relative)
                self.hidden.add(relative)
            elif self._entry(directory, name, relative, found):
                inner.append((relative, found.sources))
        return inner

    def _entry(self, directory: DirectoryView, name: str, relative: bytes, found: Found) -> bool:
        """Copies one entry; whether it is a directory, whose entries come later."""
        path = self._to(relative)
        kind = found.status.st_mode & FORMAT
        fd = directory.fds[found.source]
        try:
            if kind == DIRECTORY:
                os.mkdir(path, 0o700)
                attributes = self._attributes(fd, name, found.source)
                self._finish.append((relative, found.status, attributes))
                return True
            if self._linked(path, found):
                return False
            if kind == REGULAR:
                status = self._file(fd, name, path, found)
                self._give(path, status, self._attributes(fd, name, found.source))
            elif kind == SYMLINK:
                os.symlink(os.readlink(os.fsencode(name), dir_fd=fd), path)
                self._give_link(path, found.status)
            elif kind == FIFO:
                os.mkfifo(path, 0o600)
                self._give(path, found.status, {})
            else:
                self.left_out.add(relative)
                return False
        except PermissionError:
            self.left_out.add(relative)  # who runs here may not read it
            if os.path.lexists(path) and kind != DIRECTORY:
                os.unlink(path)
            return False
        if found.status.st_nlink > 1:
            self._links[found.source, found.status.st_dev, found.status.st_ino] = relative
        return False

    def _linked(self, path: bytes, found: Found) -> bool:
        first = self._links.get((found.source, found.status.st_dev, found.status.st_ino))
        if first is None or found.status.st_nlink < 2:
            return False
        try:
            os.link(self._to(first), path, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            return False
        return True

    def _file(self, fd: int, name: str, path: bytes, found: Found) -> os.stat_result:
        """The content, of one moment where the host's file holds still for that long."""
        if found.source:
            source = open_layer_file(fd, name)
        else:
            source = os.open(name, READ, dir_fd=fd)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            target = os.open(path, flags, 0o600)
            try:
                for _ in range(_TRIES):
                    before = os.fstat(source)
                    copy_content(source, target, self._budget)
                    after = os.fstat(source)
                    if (before.st_ctime_ns, before.st_size) == (after.st_ctime_ns, after.st_size):
                        break
                return after
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _attributes(self, fd: int, name: str, source: int) -> dict[str, bytes]:
        where = at(fd, name)
        try:
            found = read_attributes(where, self._view.marks, layer=source != HOST)
        except OSError as error:
            if error.errno not in _NO_ATTRIBUTE:
                raise
            return {}
        return {k: v for k, v in found.items() if not k.startswith(_HELD_BACK)}

    def _give(self, path: bytes, status: os.stat_result, attributes: dict[str, bytes]) -> None:
        if self._as_root:
            os.chown(path, status.st_uid, status.st_gid, follow_symlinks=False)
        for name, content in attributes.items():
            try:
                os.setxattr(path, name, content, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _NO_ATTRIBUTE:
                    raise
        os.chmod(path, status.st_mode & 0o7777)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)

    def _give_link(self, path: bytes, status: os.stat_result) -> None:
        if self._as_root:
            os.chown(path, status.st_uid, status.st_gid, follow_symlinks=False)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def _stamps(place: LongPaths) -> dict[bytes, Stamp]:
    """Of every entry below, and of the directory itself as b"". What a mode closes to us is open while we
    look."""
    stamps = {b"": stamp_of(os.lstat(place(b"")))}
    waiting, opened = [b""], []
    while waiting:
        relative = waiting.pop()
        mode = stamps[relative].mode
        if mode & 0o700 != 0o700 and os.geteuid() != 0:
            os.chmod(place(relative), mode & 0o7777 | 0o700)
            opened.append(relative)
        for name, status in list_entries(place(relative)):
            inner = relative + b"/" + name if relative else name
            stamps[inner] = stamp_of(status)
            if status.st_mode & FORMAT == DIRECTORY:
                waiting.append(inner)
    for relative in reversed(opened):  # deepest first
        os.chmod(place(relative), stamps[relative].mode & 0o7777)
        stamps[relative] = stamp_of(os.lstat(place(relative)))  # it has another ctime now
    return stamps


def list_entries(path: bytes) -> list[tuple[bytes, os.stat_result]]:
    """(name, status) of what is in a directory that is open to us. Raises OSError."""
    with os.scandir(path) as entries:
        return [(os.fsencode(e.name), e.stat(follow_symlinks=False)) for e in entries]


def _wait_for_clock(newest_ns: int) -> None:
    """Until the kernel gives files another time than this one: a tick of 10 ms at most, and up to a
    second on filesystems that keep whole seconds."""
    pause = select.poll()
    until = time.monotonic() + _PATIENCE_S
    while time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) <= latest_ns(newest_ns):
        if time.monotonic() > until:
            raise StateError("the kernel's clock does not go on")
        pause.poll(1)
