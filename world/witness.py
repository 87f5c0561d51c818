"""What each changed entry of a layer was made from, while that can still be told.

Not a comparison of the host then and now (conflict.py): this runs when a command has ended, and
notes for every change what the file below was. overlayfs keeps no copy of it, the host's file is
simply looked at; so it counts only where it is certain that the world saw this very file:

- a frozen layer below does not change: certain;
- the host's file did not change (ctime) since the layer was made, before which nothing of this
  layer was mounted: certain. A ctime that still lies ahead is from before the clock was set back;
- it changed later, but before the layer's copy of it was born, and is the file that was
  copied: its handle is the copy's `origin`, or no name came or went in its directory. overlayfs
  goes on with the file that it looked up first, so the same path is not the same file [seen].
  Not where stand-ins of the host's files are copied: they are as old as the layer;
- in each case no directory above it was exchanged: it did not change, or its handle is the `origin`
  of the layer's. Where no handle tells, moving one sets its own ctime and its parent's (rename(2));
  but one in which a name came or went last (ctime = mtime) is taken for the same, since that
  happens all the time;
- after the clock was set back since the world started: never.

Everything else is a doubt, and the record says which. Not seen by any of this, as it leaves no
time behind: a write through a mapping whose page was dirty before the copy was made. Invariant:
what is certain here is what the world saw. Spec: world.md §5.
"""

from __future__ import annotations

import os
import time

from substrate.world import linux
from substrate.world.aspects import (
    CHANGED,
    CLOCK,
    GONE,
    REPLACED,
    SAME_TICK,
    owns_nothing,
    plain_base,
)
from substrate.world.change import MODIFIED
from substrate.world.clock import clock_was_set_back, latest_ns, tick_ns
from substrate.world.upper import FORMAT, REGULAR, SYMLINK, at, read_attribute, read_attributes
from substrate.world.view import HOST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from substrate.world.aspects import Keyed
    from substrate.world.change import FileState
    from substrate.world.layers import LayerStack
    from substrate.world.preimages import Preimages
    from substrate.world.view import DirectoryView, Found, MountView


class Witness:
    """Notes the bases of layer `number`; given to `diff_layer`, which calls it.

    `keyed`: the digest of bytes that the diff's `digest` is of files. `preimages`: where small
    texts are kept for a merge; None to keep none. `bases`: path → what `plain_base` gives, or
    `{"unknown": doubt}`."""

    def __init__(
        self, stack: LayerStack, number: int, keyed: Keyed, preimages: Preimages | None = None
    ) -> None:
        self.bases: dict[bytes, dict[str, Any]] = {}
        self._stack = stack
        self._number = number
        self._keyed = keyed
        self._preimages = preimages
        self._stepped = clock_was_set_back(stack, number)
        self._tick = tick_ns()
        self._since = 0
        #: directory → (neither it nor one above was exchanged, a name may have come or gone in it)
        self._known: dict[bytes, tuple[bool, bool]] = {}

    def begin(self, view: MountView) -> None:
        """The changes that follow are of this mount."""
        upper = self._stack.upper(self._number, view.mount.index)
        born = linux.birth_time_ns(linux.AT_FDCWD, upper)
        self._since = (self._stack.started_ns if born is None else born) - self._tick
        self._known.clear()

    def enter(self, directory: DirectoryView) -> None:
        """The changes that follow are of this directory; those above it were entered before.

        Whether the mount's own directory is the one that the world began with is no question
        for here: whoever opens it knows its inode."""
        fd = directory.fds.get(HOST)
        if fd is None:
            return
        relative = directory.relative
        status = os.fstat(fd)
        changed = self._is_later(latest_ns(status.st_ctime_ns))
        steady = True
        if relative:
            steady, moved = self._known.get(relative.rpartition(b"/")[0], (False, True))
            if changed:
                same = self._is_the_copied(directory, fd)
                if same is not None:
                    steady = same
                elif moved and status.st_ctime_ns != status.st_mtime_ns:
                    steady = False
        self._known[relative] = steady, changed

    def _is_the_copied(self, directory: DirectoryView, host_fd: int) -> bool | None:
        """Whether a layer's copy of a directory is one of the host's that is there now; None
        where no handle tells: overlayfs names the uppermost directory of those below, so where
        other layers have it, only the oldest names the host's."""
        from substrate.world.origin import name_to_handle

        host = name_to_handle(host_fd, b"")
        fd = directory.fds.get(self._number)
        handle = None if fd is None else self._origin(directory, fd)
        if handle is None or host is None:
            return None
        if handle == host:
            return True
        older = [n for s in directory.sources[1:] if s != HOST for n in self._stack.members(s)]
        for number in reversed(older):
            try:
                fd, unlocked = directory.view.open_parent(number, directory.relative)
            except (FileNotFoundError, NotADirectoryError):
                continue  # one of a segment that lacks it
            try:
                if self._origin(directory, fd) == host:
                    return True
            finally:
                os.close(fd)
                if unlocked is not None:
                    unlocked.relock()
        return None if older else False

    def _origin(self, directory: DirectoryView, fd: int) -> bytes | None:
        from substrate.world.origin import parse_origin

        mark = directory.view.marks.origin
        return parse_origin(read_attribute(fd, mark)) if mark in os.listxattr(fd) else None

    def _is_later(self, changed_ns: int) -> bool:
        """Whether this may be a change since the layer was made. What lies ahead is from before
        the clock was set back, which it was not since."""
        return changed_ns >= self._since and changed_ns <= time.time_ns() + self._tick

    def take(
        self,
        path: bytes,
        name: str,
        directory: DirectoryView,
        before: Found,
        after: Found | None,
        state: FileState,
        kind: str,
        fd: int,
    ) -> None:
        """One change. `state`: of `before`, digest included. `fd`: that file, where it is a
        regular one that could be opened."""
        doubt = self._doubt(directory, name, before, after)
        if doubt is not None:
            self.bases[path] = {"unknown": doubt}
            return
        attributes = self._attributes(directory, name, before, fd)
        if fd >= 0 and before.source == HOST:
            read = os.fstat(fd)
            if read.st_ctime_ns != before.status.st_ctime_ns:
                self.bases[path] = {"unknown": CHANGED}  # while it was read
                return
        owned = before.source == HOST or not owns_nothing(self._stack.xattr_prefix)
        self.bases[path] = plain_base(state, attributes, self._keyed, owned=owned)
        if kind == MODIFIED and fd >= 0 and self._preimages is not None and state.digest:
            self._preimages.keep(fd, state.size, state.digest)

    def take_new(self, path: bytes, name: str, directory: DirectoryView, after: Found) -> None:
        """One path that nothing is below. A copy of the host's file there is one that the world
        renamed, or the host has deleted its own since."""
        if HOST in directory.fds and (
            self._stepped or self._known.get(directory.relative, (False, True)) != (True, False)
        ):
            where = at(directory.fds[after.source], name)
            if directory.view.marks.origin in os.listxattr(where, follow_symlinks=False):
                self.bases[path] = {"unknown": GONE}

    def _attributes(
        self, directory: DirectoryView, name: str, before: Found, fd: int
    ) -> dict[str, bytes] | None:
        """None where they are closed to us."""
        kind = before.status.st_mode & FORMAT
        if kind == SYMLINK:
            return {}
        if kind == REGULAR and fd < 0:
            return None
        view, layer = directory.view, before.source != HOST
        where = fd if fd >= 0 else at(directory.fds[before.source], name)
        ids = view.ids if layer and self._stack.id_extents else None
        try:
            return read_attributes(where, view.marks, ids, layer=layer)
        except PermissionError:
            return None

    def _doubt(
        self, directory: DirectoryView, name: str, before: Found, after: Found | None
    ) -> str | None:
        """Why `before` may not be what the world saw; None where it is."""
        if before.source != HOST:
            return None
        if self._stepped:
            return CLOCK
        # of the mount's own directory ("."), nothing was entered yet
        known = (True, False) if name == "." else (False, True)
        steady, moved = self._known.get(directory.relative, known)
        if not steady:
            return REPLACED
        changed = latest_ns(before.status.st_ctime_ns)
        if not self._is_later(changed):
            return None
        copied = self._copied(directory, name, after, moved)
        if isinstance(copied, str):
            return copied
        born = copied or self._since + self._tick
        if copied and changed < born - self._tick:
            return None
        return SAME_TICK if changed <= born + self._tick else CHANGED

    def _copied(
        self, directory: DirectoryView, name: str, after: Found | None, moved: bool
    ) -> str | int:
        """When the layer's copy of the host's file was born; 0 where it has none, REPLACED where
        it may be the copy of another file."""
        from substrate.world.origin import name_to_handle, parse_origin

        if after is None or directory.view.mount.stands_in:
            return 0
        fd = directory.fds[after.source]
        where = at(fd, name)
        marks = directory.view.marks
        if marks.origin not in os.listxattr(where, follow_symlinks=False):
            return 0
        handle = parse_origin(read_attribute(where, marks.origin))
        if handle is None:
            if moved:
                return REPLACED
        elif handle != name_to_handle(directory.fds[HOST], os.fsencode(name)):
            return REPLACED
        return self._born(directory, name, fd)

    def _born(self, directory: DirectoryView, name: str, fd: int) -> int:
        """When the entry `name` of the layer's directory `fd` was made; 0 where that is unknown."""
        return linux.birth_time_ns(fd, name) or 0
