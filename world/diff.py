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


def diff_layer(
    stack: LayerStack,
    number: int,
    *,
    digest: Digest | None = None,
    include_scratch: bool = False,
    witness: Witness | None = None,
) -> list[Change]:
    """What layer `number` changed, relative to the layers below it over the host.

    `digest(fd)` names the content of a regular file; without it no digest is filled.
    `witness`: is shown what each change was made from, digests there. Raises StateError (the
    host cannot be read, a damaged layer) and OSError."""
    below = stack.sources([x for x in stack.numbers if x < number])
    return _diff(stack, (number,), below, digest, include_scratch, witness)


def diff_pending(
    stack: LayerStack,
    *,
    digest: Digest | None = None,
    include_scratch: bool = False,
    skip_gone: bool = False,
) -> list[Change]:
    """What all layers together would change on the host as it is now. `skip_gone`: without what
    they change in a mount that has gone, which is an error else."""
    if skip_gone:
        stack = replace(stack, mounts=tuple(filter(is_there, stack.mounts)))
    return _diff(stack, stack.sources(stack.numbers), (), digest, include_scratch, None)


def _diff(
    stack: LayerStack,
    changed: tuple[int, ...],
    below: tuple[int, ...],
    digest: Digest | None,
    include_scratch: bool,
    witness: Witness | None,
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
                walk = _Walk(stack, mount, scope, digest, changes, witness)
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
        before = Found(below, os.stat(".", dir_fd=roots[below]), ())
        if below == HOST and is_foreign(self.view.stack, before.status):
            return  # its owner alone could apply a change of it
        after = Found(top, os.stat(".", dir_fd=roots[top]), ())
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
            for name in directory.names(top):
                if name in seen:
                    continue
                seen.add(name)
                path = start + os.fsencode(name)
                if limited and not self.scope.may_hold(path):
                    continue
                after, hides = directory.look_up(name, tops)
                before = directory.look_up(name, base)[0] if base else None
                self._entry(path, name, directory, before, after, merged and not hides)
        if merged or not base:
            return
        for source in base:
            for name in directory.names(source):
                if name in seen:
                    continue
                seen.add(name)
                path = start + os.fsencode(name)
                if limited and not self.scope.may_hold(path):
                    continue
                before = directory.look_up(name, base)[0]
                if before is not None:
                    self._entry(path, name, directory, before, None, False)

    def _entry(
        self,
        path: bytes,
        name: str,
        directory: DirectoryView,
        before: Found | None,
        after: Found | None,
        merged: bool,
    ) -> None:
        """One name: what it was and is; `merged`: the base still shows through below it."""
        was_directory = before is not None and before.status.st_mode & FORMAT == DIRECTORY
        is_directory = after is not None and after.status.st_mode & FORMAT == DIRECTORY
        if not self.limited_here or self.scope.holds(path):
            if after is None:
                if before is not None:
                    self._emit(DELETED, path, name, directory, before, None)
            elif before is None:
                self._check_added(path, name, directory, after)
                self._emit(ADDED, path, name, directory, None, after)
                if self.witness is not None:
                    self.witness.take_new(path, name, directory, after)
            else:
                self._compare(path, name, directory, before, after)
        if was_directory or is_directory:
            below = path[len(self.prefix) :]
            tops = after.sources if after is not None and is_directory else ()
            base = before.sources if before is not None and was_directory else ()
            self.pending.append((below, tops, base, merged and is_directory and was_directory))

    def _check_added(self, path: bytes, name: str, directory: DirectoryView, after: Found) -> None:
        """A file that is new here can still be one whose data is elsewhere."""
        if after.status.st_mode & FORMAT == REGULAR and after.status.st_size:
            fd = open_layer_file(directory.fds[after.source], name)
            try:
                names = os.listxattr(fd)
            finally:
                os.close(fd)
            if names:
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
    ) -> None:
        states: list[FileState | None] = []
        for found in (before, after):
            if found is None:
                states.append(None)
                continue
            fd = directory.fds[found.source]
            state = self.view.state(found, name, fd)
            if self.digest is not None:
                if self.witness is not None and found is before:
                    self._show(self.witness, path, name, directory, before, after, state, kind)
                elif found.status.st_mode & FORMAT == REGULAR:
                    state.digest = self._digest_of(path, name, fd, found)
            states.append(state)
        self.changes.append(Change(path, kind, states[0], states[1], self.view.mount.index, what))

    def _digest_of(self, path: bytes, name: str, dir_fd: int, found: Found) -> str | None:
        """None for a file of the host that we may not read."""
        assert self.digest is not None
        fd = self._open(path, name, dir_fd, found)
        if fd < 0:
            return None
        try:
            return self.digest(fd)
        finally:
            os.close(fd)

    def _open(self, path: bytes, name: str, dir_fd: int, found: Found) -> int:
        """A regular file; -1 for one of the host that we may not read."""
        try:
            fd = _open_file(dir_fd, name, found.source)
        except PermissionError:
            if found.source:
                raise
            return -1
        try:
            _must_be(fd, found.status, path)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _show(
        self,
        witness: Witness,
        path: bytes,
        name: str,
        directory: DirectoryView,
        before: Found,
        after: Found | None,
        state: FileState,
        kind: str,
    ) -> None:
        """Digests what was below a change while the witness looks at it."""
        assert self.digest is not None
        fd = -1
        if before.status.st_mode & FORMAT == REGULAR:
            fd = self._open(path, name, directory.fds[before.source], before)
        try:
            if fd >= 0:
                state.digest = self.digest(fd)
            witness.take(path, name, directory, before, after, state, kind, fd)
        finally:
            if fd >= 0:
                os.close(fd)

    def _compare(
        self, path: bytes, name: str, directory: DirectoryView, before: Found, after: Found
    ) -> None:
        old, new = before.status, after.status
        kind = new.st_mode & FORMAT
        if old.st_mode & FORMAT != kind:
            if kind == REGULAR:
                self._check_added(path, name, directory, after)
            self._emit(TYPE_CHANGED, path, name, directory, before, after)
            return
        if before.source == after.source:
            return
        what: list[str] = []
        old_fd, new_fd = directory.fds[before.source], directory.fds[after.source]
        if kind == REGULAR:
            what = self._compare_files(path, name, directory, before, after)
        elif kind == SYMLINK:
            if os.readlink(name, dir_fd=old_fd) != os.readlink(name, dir_fd=new_fd):
                what.append("target")
        else:
            if kind != DIRECTORY and old.st_rdev != new.st_rdev:
                what.append("device")
            what += self._attributes_that_differ(at(old_fd, name), at(new_fd, name), before.source)
        changed = bool(what) and what[0] in ("content", "target", "device")
        if kind != SYMLINK and (old.st_mode ^ new.st_mode) & 0o7777:
            what.append("mode")
        if self.has_owners:
            owner = self._owner(after)
            if self._owner(before) != owner and -1 not in owner:
                what.append("owner")
        if what:
            if len(what) > 1 and what != _USUAL:
                what.sort(key=_aspect_order)
            kind_of_change = MODIFIED if changed else META
            self._emit(kind_of_change, path, name, directory, before, after, tuple(what))

    def _compare_files(
        self, path: bytes, name: str, directory: DirectoryView, before: Found, after: Found
    ) -> list[str]:
        """What differs between two regular files, owner and mode apart. Both are opened at
        once: the attribute calls by fd cost an eighth of those by path.

        A file of the host that we may not read counts as the same when its size and time are
        (copy-up keeps the time): the world could not read it either."""
        what: list[str] = []
        old, new = before.status, after.status
        new_fd = open_layer_file(directory.fds[after.source], name)
        old_fd = -1
        try:
            _must_be(new_fd, new, path)
            names = os.listxattr(new_fd)
            if names:
                self.marks.refuse_unknown(names, path)
            try:
                old_fd = _open_file(directory.fds[before.source], name, before.source)
                _must_be(old_fd, old, path)
            except PermissionError:
                if before.source:
                    raise
            if old.st_size != new.st_size:
                what.append("content")
            elif new.st_size:
                if old_fd < 0:
                    same = old.st_mtime_ns == new.st_mtime_ns
                else:
                    same = same_bytes(old_fd, new_fd, new.st_size)
                if not same:
                    what.append("content")
            if old_fd >= 0:
                what += self._attributes_that_differ(old_fd, new_fd, before.source, names)
            if old.st_mtime_ns != new.st_mtime_ns:
                what.append("mtime")
        finally:
            os.close(new_fd)
            if old_fd >= 0:
                os.close(old_fd)
        return what

    def _owner(self, found: Found) -> tuple[int, int]:
        uid, gid = found.status.st_uid, found.status.st_gid
        if found.source == HOST or self.unshift is None:
            return uid, gid
        return self.unshift[uid], self.unshift[gid]

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


def same_bytes(fd_a: int, fd_b: int, size: int) -> bool:
    """Whether the rest of two files of about `size` bytes is the same.

    One read a file when it is small, with a buffer no larger than needed: Python clears a
    page for each page it asks for."""
    length = min(size + 1, _CHUNK)
    while True:
        a, b = os.read(fd_a, length), os.read(fd_b, length)
        if a != b:
            return False
        if len(a) < length:
            return True


def _open_file(dir_fd: int, name: str, source: int) -> int:
    return open_layer_file(dir_fd, name) if source else os.open(name, READ, dir_fd=dir_fd)


def _must_be(fd: int, status: os.stat_result, path: bytes) -> None:
    opened = os.fstat(fd)
    if (opened.st_ino, opened.st_dev) != (status.st_ino, status.st_dev):
        raise StateError(
            f"{os.fsdecode(path)} was replaced while it was compared",
            hint="a process still writes there; run the command again when it is quiet",
        )
