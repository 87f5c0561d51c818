"""What some layers of a world changed, found by walking only the layers.

Not conflicts (conflict.py): the host is taken as it is now. Two views of each mount are
compared: `after` = the changed layers over the base, `before` = the base alone. Rules
(world.md §3, §5):

- types are compared first, then sizes, then contents; equal contents with another mode,
  owner, attribute or time are `meta`, and nothing at all when everything is equal;
- a time alone counts for regular files, also for one that was made anew with equal content:
  make(1) and rsync(1) act on it; times of directories, links and others never count;
- an opaque directory, a whiteout or a file in a directory's place lists every name that it
  hides as deleted, to any depth;
- a directory that was copied up because of a child is not listed.

Invariant: linear in the entries of the changed layers plus the entries that they hide; no
recursion; one directory's fds open at a time. The result is sorted by the bytes of the path.
"""

from __future__ import annotations

import gc
import os
import sys

from substrate.errors import StateError
from substrate.values import replace
from substrate.world.beneath import READ
from substrate.world.change import (
    ADDED,
    DELETED,
    META,
    MODIFIED,
    TYPE_CHANGED,
    Change,
    FileState,
    by_path,
)
from substrate.world.layers import USER, is_foreign, is_there
from substrate.world.scope import Scope
from substrate.world.upper import (
    DIRECTORY,
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
    from collections.abc import Callable

    from substrate.world.layers import LayerStack, OverlayMount
    from substrate.world.witness import Witness

    Digest = Callable[[int], str]

_CHUNK = 1 << 18
#: of names; os.fsencode looks for them again each time
_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()


def diff_layer(
    stack: LayerStack,
    number: int,
    *,
    digest: Digest | None = None,
    include_scratch: bool = False,
    witness: Witness | None = None,
    step: Callable[[], None] | None = None,
) -> list[Change]:
    """What layer `number` changed, relative to the layers below it over the host.

    `digest(fd)` names the content of a regular file; without it no digest is filled.
    `witness`: is shown what each change was made from, digests there. `step`: called between entries
    and pieces of files. Raises StateError (the host cannot be read, a damaged layer), OSError, and
    what `step` raises."""
    below = stack.sources([x for x in stack.numbers if x < number])
    return _diff(stack, (number,), below, digest, include_scratch, witness, step)


def diff_pending(
    stack: LayerStack,
    *,
    digest: Digest | None = None,
    include_scratch: bool = False,
    skip_gone: bool = False,
    step: Callable[[], None] | None = None,
) -> list[Change]:
    """What all layers together would change on the host as it is now. `skip_gone`: without what
    they change in a mount that has gone, which is an error else. `step`: as for `diff_layer`."""
    if skip_gone:
        stack = replace(stack, mounts=tuple(filter(is_there, stack.mounts)))
    return _diff(stack, stack.sources(stack.numbers), (), digest, include_scratch, None, step)


def _diff(
    stack: LayerStack,
    changed: tuple[int, ...],
    below: tuple[int, ...],
    digest: Digest | None,
    include_scratch: bool,
    witness: Witness | None,
    step: Callable[[], None] | None,
) -> list[Change]:
    # of a target that is not there, what the world put in its place belongs to the mount above
    there = tuple(m for m in stack.mounts if os.path.isdir(m.target))
    scope = Scope(replace(stack, mounts=there), include_scratch=include_scratch)
    changes: list[Change] = []
    # Hundreds of thousands of values without a cycle: looking for cycles among them again
    # and again is a tenth of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        for mount in stack.mounts:
            if scope.reaches(mount) and not _is_gone(stack, mount, changed):
                walk = _Walk(stack, mount, scope, digest, changes, witness, step)
                try:
                    walk.run(changed, (*below, HOST))
                finally:
                    walk.view.close()
    finally:
        if collecting:
            gc.enable()
    changes.sort(key=by_path)
    return changes


def _is_gone(stack: LayerStack, mount: OverlayMount, changed: tuple[int, ...]) -> bool:
    """Whether there is nothing to compare: neither the host's directory nor a change of it."""
    return not is_there(mount) and all(stack.is_empty(n, mount.index) for n in changed)


class _Walk:
    """The comparison of one mount; `run` appends to `changes`."""

    def __init__(
        self,
        stack: LayerStack,
        mount: OverlayMount,
        scope: Scope,
        digest: Digest | None,
        changes: list[Change],
        witness: Witness | None,
        step: Callable[[], None] | None,
    ) -> None:
        self.view = MountView(stack, mount)
        self.marks = self.view.marks
        self.unshift = self.view.ids if stack.id_extents else None
        # A rootless world has one user and one group: in an upper, everything is theirs
        self.has_owners = stack.xattr_prefix != USER
        self.scope = scope
        self.limited = scope.limits(mount)
        self.limited_here = self.limited  # in the directory that is being looked at
        self.prefix = mount.target.rstrip(b"/") + b"/"
        self.digest = digest
        self.changes = changes
        self.witness = witness
        self.step = step
        #: directories to visit: path, changed sources, sources of the base, whether the base
        #: shows through
        self.pending: list[tuple[bytes, tuple[int, ...], tuple[int, ...], bool]] = []

    def run(self, tops: tuple[int, ...], base: tuple[int, ...]) -> None:
        if self.witness is not None:
            self.witness.begin(self.view)
        self._compare_roots(tops, base)
        index = self.view.mount.index
        if all(self.view.stack.is_empty(top, index) for top in tops):
            return
        self.pending.append((b"", tops, base, True))
        while self.pending:
            relative, tops, base, merged = self.pending.pop()
            directory = DirectoryView(self.view, relative, (*tops, *base))
            try:
                self._visit(directory, tops, base, merged)
            finally:
                directory.close()

    def _compare_roots(self, tops: tuple[int, ...], base: tuple[int, ...]) -> None:
        """The mount's own directory: its mode, owner and attributes are those of the top."""
        roots = self.view.roots
        top, below = tops[0] if tops else base[0], base[0]
        before = Found(below, os.fstat(roots[below]), ())
        if below == HOST and is_foreign(self.view.stack, before.status):
            return  # its owner alone could apply a change of it
        after = Found(top, os.fstat(roots[top]), ())
        directory = DirectoryView(self.view, b"", tuple(dict.fromkeys((top, below))))
        try:
            path = self.view.path(b"")
            if not self.limited or self.scope.holds(path):
                self._compare(path, ".", directory, before, after)
        finally:
            directory.close()

    def _visit(
        self,
        directory: DirectoryView,
        tops: tuple[int, ...],
        base: tuple[int, ...],
        merged: bool,
    ) -> None:
        relative = directory.relative
        if self.witness is not None:
            self.witness.enter(directory)
        start = self.prefix + relative + b"/" if relative else self.prefix
        limited = self.limited and not self.scope.holds_all_below(start.rstrip(b"/") or b"/")
        self.limited_here = limited
        seen: set[str] = set()
        for top in tops:
            for name, is_file in directory.entries(top):
                if self.step is not None:
                    self.step()
                if name in seen:
                    continue
                seen.add(name)
                path = start + name.encode(_ENCODING, _ERRORS)
                if limited and not self.scope.may_hold(path):
                    continue
                before = directory.look_up(name, base)[0] if base else None
                if is_file:
                    self._layer_file(path, name, directory, before, top)
                    continue
                after, hides = directory.look_up(name, tops)
                if after is not None and after.status.st_mode & FORMAT == REGULAR:
                    self._layer_file(path, name, directory, before, after.source)
                else:
                    self._entry(path, name, directory, before, after, merged and not hides)
        if merged or not base:
            return
        for source in base:
            for name in directory.names(source):
                if self.step is not None:
                    self.step()
                if name in seen:
                    continue
                seen.add(name)
                path = start + name.encode(_ENCODING, _ERRORS)
                if limited and not self.scope.may_hold(path):
                    continue
                before = directory.look_up(name, base)[0]
                if before is not None:
                    self._entry(path, name, directory, before, None, False)

    def _layer_file(
        self, path: bytes, name: str, directory: DirectoryView, before: Found | None, source: int
    ) -> None:
        """A name that is a regular file of a layer: opened once for all that is asked of it, since
        finding a name costs more than what is done by an fd."""
        fd = open_layer_file(directory.fds[source], name)
        try:
            status = os.fstat(fd)
            if status.st_mode & FORMAT != REGULAR:
                raise _replaced(path)
            after = Found(source, status, ())
            if before is None or before.status.st_mode & FORMAT != REGULAR:
                self._entry(path, name, directory, before, after, False, fd)
            elif not self.limited_here or self.scope.holds(path):
                self._compare_files(path, name, directory, before, after, fd)
        finally:
            os.close(fd)

    def _entry(
        self,
        path: bytes,
        name: str,
        directory: DirectoryView,
        before: Found | None,
        after: Found | None,
        merged: bool,
        fd: int = -1,
    ) -> None:
        """One name: what it was and is; `merged`: the base still shows through below it; `fd`: of
        `after`, if that is a regular file."""
        was_directory = before is not None and before.status.st_mode & FORMAT == DIRECTORY
        is_directory = after is not None and after.status.st_mode & FORMAT == DIRECTORY
        if not self.limited_here or self.scope.holds(path):
            if after is None:
                if before is not None:
                    self._emit(DELETED, path, name, directory, before, None)
            elif before is None:
                self._check_added(path, fd)
                self._emit(ADDED, path, name, directory, None, after, new_fd=fd)
                if self.witness is not None:
                    self.witness.take_new(path, name, directory, after)
            else:
                self._compare(path, name, directory, before, after, fd)
        if was_directory or is_directory:
            below = path[len(self.prefix) :]
            tops = after.sources if after is not None and is_directory else ()
            base = before.sources if before is not None and was_directory else ()
            self.pending.append((below, tops, base, merged and is_directory and was_directory))

    def _check_added(self, path: bytes, fd: int) -> None:
        """A file that is new here can still be one whose data is elsewhere."""
        if fd >= 0 and (names := os.listxattr(fd)):
            self.marks.refuse_unknown(names, path)

    def _emit(
        self,
        kind: str,
        path: bytes,
        name: str,
        directory: DirectoryView,
        before: Found | None,
        after: Found | None,
        what: tuple[str, ...] = (),
        old_fd: int = -1,
        new_fd: int = -1,
    ) -> None:
        """`old_fd`, `new_fd`: the two where they are regular files and open; the old one is opened
        where its content is asked for."""
        old = new = None
        if before is not None:
            old = self.view.state(before, name, directory.fds[before.source])
            if self.digest is not None:
                self._read_before(old, path, name, directory, before, after, kind, old_fd)
        if after is not None:
            new = self.view.state(after, name, directory.fds[after.source])
            if self.digest is not None and new_fd >= 0:
                new.digest = self.digest(new_fd)
        self.changes.append(Change(path, kind, old, new, self.view.mount.index, what))

    def _read_before(
        self,
        state: FileState,
        path: bytes,
        name: str,
        directory: DirectoryView,
        before: Found,
        after: Found | None,
        kind: str,
        open_fd: int,
    ) -> None:
        """Digests what was below a change, and shows it to the witness; no digest of a file of the
        host that we may not read."""
        assert self.digest is not None
        fd = open_fd
        if fd < 0 and before.status.st_mode & FORMAT == REGULAR:
            fd = self._open(name, directory.fds[before.source], before)
        try:
            if fd >= 0:
                _must_be(fd, before.status, path)
                state.digest = self.digest(fd)
            if self.witness is not None:
                self.witness.take(path, name, directory, before, after, state, kind, fd)
        finally:
            if fd != open_fd:
                os.close(fd)

    def _open(self, name: str, dir_fd: int, found: Found) -> int:
        """A regular file, which `_must_be` asks about before anything in it counts; -1 for one of
        the host that we may not read."""
        if found.source:
            return open_layer_file(dir_fd, name)
        try:
            return os.open(name, READ, dir_fd=dir_fd)
        except PermissionError:
            return -1

    def _compare(
        self,
        path: bytes,
        name: str,
        directory: DirectoryView,
        before: Found,
        after: Found,
        new_fd: int = -1,
    ) -> None:
        """Two that are not regular files both. `new_fd`: of `after`, if that is one."""
        old, new = before.status, after.status
        kind = new.st_mode & FORMAT
        if old.st_mode & FORMAT != kind:
            self._check_added(path, new_fd)
            self._emit(TYPE_CHANGED, path, name, directory, before, after, new_fd=new_fd)
            return
        if before.source == after.source:
            return
        old_dir, new_dir = directory.fds[before.source], directory.fds[after.source]
        what = []
        if kind == SYMLINK:
            if os.readlink(name, dir_fd=old_dir) != os.readlink(name, dir_fd=new_dir):
                what.append("target")
        else:
            if kind != DIRECTORY and old.st_rdev != new.st_rdev:
                what.append("device")
            what += self._attributes_that_differ(
                at(old_dir, name), at(new_dir, name), before.source
            )
        self._emit_what(path, name, directory, before, after, what)

    def _emit_what(
        self,
        path: bytes,
        name: str,
        directory: DirectoryView,
        before: Found,
        after: Found,
        what: list[str],
        old_fd: int = -1,
        new_fd: int = -1,
    ) -> None:
        """Lists a change of one file, unless neither `what` nor mode nor owner differ."""
        changed = bool(what) and what[0] in ("content", "target", "device")
        mode = after.status.st_mode
        if mode & FORMAT != SYMLINK and (before.status.st_mode ^ mode) & 0o7777:
            what.append("mode")
        if self.has_owners and self._owner_differs(before, after):
            what.append("owner")
        if what:
            if len(what) > 1 and what != _USUAL:
                what.sort(key=_aspect_order)
            kind = MODIFIED if changed else META
            self._emit(kind, path, name, directory, before, after, tuple(what), old_fd, new_fd)

    def _compare_files(
        self,
        path: bytes,
        name: str,
        directory: DirectoryView,
        before: Found,
        after: Found,
        new_fd: int,
    ) -> None:
        """Two regular files. One of the host that we may not read counts as the same when its size
        and time are (copy-up keeps the time): the world could not read it either."""
        what: list[str] = []
        old, new = before.status, after.status
        names = os.listxattr(new_fd)
        plain = not names or names == self.marks.usual
        if not plain:
            self.marks.refuse_unknown(names, path)
        later = old.st_mtime_ns != new.st_mtime_ns
        is_read = self.digest is not None or (old.st_size == new.st_size != 0)
        old_fd = -1
        if is_read or not plain or before.source != HOST or _may_have_attributes(path):
            old_fd = self._open(name, directory.fds[before.source], before)
        try:
            if old.st_size != new.st_size:
                what.append("content")
            elif new.st_size:
                if old_fd < 0:
                    same = not later
                else:
                    _must_be(old_fd, old, path)
                    same = same_bytes(old_fd, new_fd, new.st_size, self.step)
                if not same:
                    what.append("content")
            if old_fd >= 0 and (os.listxattr(old_fd) or not plain):
                _must_be(old_fd, old, path)
                what += self._attributes_that_differ(old_fd, new_fd, before.source, names)
            if later:
                what.append("mtime")
            self._emit_what(path, name, directory, before, after, what, old_fd, new_fd)
        finally:
            if old_fd >= 0:
                os.close(old_fd)

    def _owner_differs(self, before: Found, after: Found) -> bool:
        """Whether `after`, which is in a layer, has another owner; one outside the map is none."""
        old, new = before.status, after.status
        uid, gid = new.st_uid, new.st_gid
        old_uid, old_gid = old.st_uid, old.st_gid
        if self.unshift is not None:
            uid, gid = self.unshift[uid], self.unshift[gid]
            if before.source != HOST:
                old_uid, old_gid = self.unshift[old_uid], self.unshift[old_gid]
        return (uid != old_uid or gid != old_gid) and uid != -1 and gid != -1

    def _attributes_that_differ(
        self,
        old_where: str | int,
        new_where: str | int,
        old_source: int,
        new_names: list[str] | None = None,
    ) -> list[str]:
        """`new_names`: what listxattr says of `new_where`, where that is known."""
        new = read_attributes(new_where, self.marks, self.unshift, names=new_names)
        try:
            if old_source:
                old = read_attributes(old_where, self.marks, self.unshift)
            else:
                old = read_attributes(old_where, self.marks, layer=False)
        except PermissionError:
            if old_source:
                raise
            return []  # of the host, and closed to us: closed to the world too
        if old == new:
            return []
        return sorted(f"xattr:{n}" for n in old.keys() | new.keys() if old.get(n) != new.get(n))


#: of a file that was written to
_USUAL = ["content", "mtime"]
_ASPECTS = ("content", "target", "device", "mode", "owner", "mtime")


def _aspect_order(aspect: str) -> tuple[int, str]:
    return (_ASPECTS.index(aspect) if aspect in _ASPECTS else len(_ASPECTS), aspect)


def same_bytes(fd_a: int, fd_b: int, size: int, step: Callable[[], None] | None = None) -> bool:
    """Whether two files of about `size` bytes are the same; their positions stay.

    One read a file when it is small, with a buffer no larger than needed: Python clears a
    page for each page it asks for."""
    length = min(size + 1, _CHUNK)
    start = 0
    while True:
        a, b = os.pread(fd_a, length, start), os.pread(fd_b, length, start)
        if a != b:
            return False
        if len(a) < length:
            return True
        start += length
        if step is not None:
            step()


def _may_have_attributes(path: bytes) -> bool:
    """Whether a file of the host has any: one look by its path, which costs half of opening it."""
    try:
        return bool(os.listxattr(path, follow_symlinks=False))
    except OSError:  # a path that is too long, say: whoever opens the file sees
        return True


def _must_be(fd: int, status: os.stat_result, path: bytes) -> None:
    opened = os.fstat(fd)
    if opened.st_ino != status.st_ino or opened.st_dev != status.st_dev:
        raise _replaced(path)


def _replaced(path: bytes) -> StateError:
    return StateError(
        f"{os.fsdecode(path)} was replaced while it was compared",
        hint="a process still writes there; run the command again when it is quiet",
    )
