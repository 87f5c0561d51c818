"""Cutting a soft layer: what a span wrote is kept while the layer goes on being written to.

Runs when the span's processes have ended, or at a moment of a span that goes on (then this is what it
wrote since the last one). Order: who else wrote these paths → copies of what is there now → copies
of what was there → whether anybody moved something meanwhile, or can still write → the diff →
the record → one rename. The upper is only read. What cannot be kept exactly is recorded as such,
path by path, and the others go through. Why this is sound, and where it is not: docs/adr/0013.

Invariant: an entry that is KEPT was the same before and after its copy was made, no other command
wrote it in the time in which this one did, and what was there before is known. Spec: world.md §4.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from substrate.world import linux, soft
from substrate.world.below import Below
from substrate.world.change import Change
from substrate.world.clock import tick_ns
from substrate.world.image import Budget, Images, Like, TooLarge, Unsettled, like_of, raw_attributes
from substrate.world.layers import LayerStack, OverlayMount
from substrate.world.live_upper import LiveUpper, Look, Says, seen_of, seen_of_state
from substrate.world.scope import is_within
from substrate.world.soft import (
    WHOLE_TREE,
    Earlier,
    Form,
    Intent,
    SoftEntry,
    SoftLayer,
    State,
    WrittenPath,
    in_tree_order,
    stack_of,
)
from substrate.world.soft_changes import diff_soft
from substrate.world.soft_claims import Claims, all_claims, of_written
from substrate.world.soft_witness import SoftWitness
from substrate.world.upper import CHARACTER, DIRECTORY, FORMAT, REGULAR, at
from substrate.world.view import HOST, MountView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.world.aspects import Keyed
    from substrate.world.diff import Digest
    from substrate.world.preimages import Preimages

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM)
_MOVED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one soft layer may hold. What is beyond is recorded as not kept."""

    size_bytes: int = 1 << 30
    entries: int = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A soft layer, its changes as diff.py gives them (without scratch directories), and what they
    were made from (witness.py)."""

    soft: SoftLayer
    changes: tuple[Change, ...]
    bases: Mapping[bytes, dict[str, Any]]

    @property
    def refused(self) -> tuple[SoftEntry, ...]:
        return tuple(e for e in self.soft.entries if e.state is not State.KEPT)


def cut_soft_layer(
    stack: LayerStack,
    layer: int,
    span: str,
    written: Sequence[WrittenPath],
    others: Callable[[], Mapping[str, Sequence[WrittenPath]]],
    *,
    begun_ns: int,
    digest: Digest,
    keyed: Keyed,
    preimages: Preimages | None = None,
    bounds: Bounds | None = None,
    held_by: Callable[[Sequence[bytes]], Mapping[bytes, str]] | None = None,
    undoes: int = 0,
    earlier: Sequence[SoftLayer] | None = None,
) -> Cut | None:
    """Keeps what `span` wrote in `layer`, which may be mounted; None where nothing of it lies there.

    `written`: as capture tells it, one item a path. `others`: what the spans wrote so far that go
    on, or that ended without a soft layer; asked again when all is copied. `begun_ns`: the span's
    start (CLOCK_BOOTTIME). `held_by`: which of these paths can be written still, and by whom, as the end
    of a sentence (open_files.py). `digest`, `keyed`: as for `diff_layer` and `Witness`. `earlier`: all soft
    layers of the layer so far, for a caller that has them; else they are read.

    Raises OSError, StateError; nothing is left then, and the caller counts the span among `others`
    from there on."""
    unfinished = soft.begin(stack, layer)
    try:
        return _Cutter(
            stack,
            layer,
            span,
            written,
            others,
            begun_ns,
            bounds or Bounds(),
            held_by,
            undoes,
            soft.load_all(stack, layer) if earlier is None else list(earlier),
        ).cut(unfinished, digest, keyed, preimages)
    finally:
        soft.sweep(stack, layer)


_STRANGE = "it was written before, and by whom was not recorded or not kept"
_UNSEEN = Look(Says.SILENT)


@dataclass(slots=True)
class _Item:
    """A path on its way to an entry."""

    written: WrittenPath
    mount: OverlayMount
    relative: bytes
    look: Look = _UNSEEN
    form: Form = Form.ABSENT
    state: State = State.KEPT
    why: str = ""
    #: paths of the upper that were copied for it, and what they were; its own is ""
    seen: dict[bytes, soft.Seen | None] = field(default_factory=dict)

    def refuse(self, state: State, why: str) -> None:
        if self.state is State.KEPT:
            self.state, self.why = state, why


class _Cutter:
    def __init__(
        self,
        stack: LayerStack,
        layer: int,
        span: str,
        written: Sequence[WrittenPath],
        others: Callable[[], Mapping[str, Sequence[WrittenPath]]],
        begun_ns: int,
        bounds: Bounds,
        held_by: Callable[[Sequence[bytes]], Mapping[bytes, str]] | None,
        undoes: int,
        earlier: list[SoftLayer],
    ) -> None:
        self.stack, self.layer, self.span = stack, layer, span
        self.written, self.others, self.begun_ns = written, others, begun_ns
        self.bounds, self.held_by, self.undoes = bounds, held_by, undoes
        self.earlier_softs = earlier
        self.earlier = Earlier(self.earlier_softs)
        #: inodes of the upper that earlier soft layers have
        self.known = {e.seen[1] for s in self.earlier_softs for e in s.entries if e.seen}
        self.full = ""

    def cut(
        self, unfinished: bytes, digest: Digest, keyed: Keyed, preimages: Preimages | None
    ) -> Cut | None:
        items = self._items()
        if not items:
            return None
        claims = self._claims()
        self._refuse_rivals(items, claims)
        number = max((s.number for s in self.earlier_softs), default=0) + 1
        made = SoftLayer(
            layer=self.layer,
            number=number,
            span=self.span,
            begun_ns=self.begun_ns,
            cut_ns=0,
            entries=(),
            directory=unfinished,
            undoes=self.undoes,
        )
        budget = Budget(self.bounds.size_bytes)
        for mount in self.stack.mounts:
            own = [item for item in items if item.mount is mount]
            images = _MountCut(self, mount, own, made, budget)
            try:
                images.run()
            finally:
                images.close()
        self._refuse_held(items)
        self._refuse_rivals(items, self._claims())
        _spread(items)
        cut_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        made = replace(
            made, cut_ns=cut_ns, entries=tuple(_entry(item) for item in items if not _idle(item))
        )
        if not made.entries:
            return None
        witness = SoftWitness(self.stack, made, keyed, preimages)
        try:
            changes = diff_soft(self.stack, made, digest=digest, witness=witness)
        finally:
            witness.close()
        whole = {c.path: c for c in diff_soft(self.stack, made, include_scratch=True)}
        made = replace(
            made,
            entries=tuple(
                _with_base(e, witness.bases.get(e.path), whole.get(e.path)) for e in made.entries
            ),
            directory=b"%s/%d" % (soft.directory_of(self.stack, self.layer), number),
        )
        soft.commit(unfinished, made)
        return Cut(soft=made, changes=tuple(changes), bases=witness.bases)

    def _items(self) -> list[_Item]:
        """In tree order; without what lies on no overlay."""
        mounts = sorted(self.stack.mounts, key=lambda m: len(m.target), reverse=True)
        found: dict[bytes, _Item] = {}
        for written in self.written:
            path = written.path
            mount = next((m for m in mounts if is_within(path, m.target)), None)
            if mount is None:
                continue
            if path in found:
                old = found[path].written
                found[path].written = WrittenPath(
                    path=path,
                    intents=old.intents | written.intents,
                    first_ns=min(old.first_ns, written.first_ns),
                    last_ns=max(old.last_ns, written.last_ns),
                    processes=tuple(dict.fromkeys((*old.processes, *written.processes))),
                    came_from=old.came_from + written.came_from,
                )
                continue
            item = _Item(written, mount, path[len(mount.target.rstrip(b"/")) + 1 :])
            if b"\0" in path or any(p in (b"", b".", b"..") for p in path[1:].split(b"/")[:-1]):
                item.refuse(State.NOT_KEPT, "it is no resolved path")
            found[path] = item
        items = [found[path] for path in sorted(found, key=in_tree_order)]
        for item in items[self.bounds.entries :]:
            item.refuse(State.NOT_KEPT, f"the command wrote more than {self.bounds.entries} paths")
        return items

    def _claims(self) -> Claims:
        found = dict(self.others())
        found.pop(self.span, None)
        return all_claims(self.earlier_softs, found)

    def _refuse_rivals(self, items: Sequence[_Item], claims: Claims) -> None:
        """Up to now: whatever comes later does not concern what was copied."""
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        away = [i.written for i in items if Intent.MOVE_AWAY in i.written.intents]
        for item in items:
            written = [item.written]
            if Intent.MOVE_HERE in item.written.intents:
                came_from = item.written.came_from
                written += [w for w in away if not came_from or w.path in came_from]
            for own in of_written(self.span, written, now):
                rival = claims.rival(own)
                if rival is not None:
                    what = "" if rival.path == item.written.path else f" {os.fsdecode(rival.path)}"
                    item.refuse(State.AMBIGUOUS, f"span {rival.span} wrote{what} at the same time")
                    break

    def _refuse_held(self, items: Iterable[_Item]) -> None:
        if self.held_by is None:
            return
        files = {
            os.path.join(item.written.path, inner) if inner else item.written.path: item
            for item in items
            for inner, seen in item.seen.items()
            if item.state is State.KEPT and seen is not None and seen[0] == "file"
        }
        for path, why in self.held_by(list(files)).items():
            files[path].refuse(State.AMBIGUOUS, why)


def _form(look: Look, intents: frozenset[Intent]) -> Form:
    assert look.status is not None
    if look.status.st_mode & FORMAT != DIRECTORY:
        return Form.ENTRY
    if look.pure and Intent.MOVE_HERE in intents:
        return Form.TREE
    return Form.MADE if look.pure and Intent.CREATE in intents else Form.DIRECTORY


def _idle(item: _Item) -> bool:
    """Whether nothing of the path is in the upper, and nothing was."""
    return item.look.says is Says.SILENT and item.state is State.KEPT


def _entry(item: _Item) -> SoftEntry:
    return SoftEntry(
        path=item.written.path,
        mount=item.mount.index,
        form=item.form,
        state=item.state,
        first_ns=item.written.first_ns,
        whole_tree=bool(item.written.intents & WHOLE_TREE),
        why=item.why,
        seen=item.seen.get(b""),
    )


def _with_base(
    entry: SoftEntry, base: Mapping[str, Any] | None, change: Change | None
) -> SoftEntry:
    before = None if change is None else change.before
    return replace(
        entry,
        doubt="" if base is None else base.get("unknown", ""),
        below=None if before is None or before.layer != HOST else seen_of_state(before),
    )


def _spread(items: Sequence[_Item]) -> None:
    """What lies below a path that hides and is not KEPT is of the same kind: how much of it is the
    span's cannot be told."""
    known = {item.written.path: item for item in items}
    for item in items:
        for above in soft.parents(item.written.path):
            found = known.get(above)
            if found is not None and found.state is not State.KEPT and found.form is Form.TREE:
                item.refuse(found.state, f"{os.fsdecode(above)}: {found.why}")


class _MountCut:
    """The two uppers of one mount."""

    def __init__(
        self,
        cutter: _Cutter,
        mount: OverlayMount,
        items: list[_Item],
        made: SoftLayer,
        budget: Budget,
    ) -> None:
        self.cutter, self.mount, self.items = cutter, mount, items
        self.stack = cutter.stack
        self.live = LiveUpper(self.stack, mount, cutter.layer)
        self.marks = self.live.marks
        self.view = MountView(self.stack, mount)
        sources = self.stack.sources([n for n in self.stack.numbers if n < cutter.layer])
        self.below = Below(self.view, (*sources, HOST))
        self.prefix = mount.target.rstrip(b"/") + b"/"
        where = b"%s/%d/%d/upper"
        self.found = Images(where % (made.directory, made.found, mount.index), self.marks, budget)
        self.left = Images(where % (made.directory, made.left, mount.index), self.marks, budget)
        #: of earlier soft layers, by their number
        self._views: dict[int, MountView] = {}

    def close(self) -> None:
        for view in self._views.values():
            view.close()
        self.live.close()
        self.view.close()
        self.found.close()
        self.left.close()

    def run(self) -> None:
        like = self._root_like()
        for images in (self.found, self.left):
            images.directory(b"", like, self._way, opaque=False)
        for item in self.items:
            if item.state is State.KEPT:
                self._look(item)
        for item in self.items:
            if item.state is State.KEPT:
                self._guarded(item, self._keep_left)
        self._refuse_linked()
        for item in self.items:
            if item.state is State.KEPT and not _idle(item):
                self._guarded(item, self._keep_found)
        self._look_again()
        self.found.finish()
        self.left.finish()

    def _root_like(self) -> Like:
        """What the mount's own directory was like before."""
        owner = self.cutter.earlier.of(self.mount.target)
        if owner is not None and owner[1].state is State.KEPT:
            root = self._root(owner[0])
            return like_of(os.fstat(root), raw_attributes(at(root, ""), self.marks))
        with self.below.at(b"") as place:
            assert place is not None
            return self.below.like(place)

    def _guarded(self, item: _Item, step: Callable[[_Item], None]) -> None:
        """One step of one item: what it cannot do concerns this path alone."""
        if self.cutter.full:
            item.refuse(State.NOT_KEPT, self.cutter.full)
            return
        try:
            step(item)
        except Unsettled:
            item.refuse(State.AMBIGUOUS, "it changed while it was kept")
        except TooLarge:
            limit = self.cutter.bounds.size_bytes
            item.refuse(State.NOT_KEPT, f"it does not fit into {limit} bytes for one command")
        except OSError as error:
            if error.errno in _FULL:
                self.cutter.full = f"there was no room for it ({error.strerror})"
                item.refuse(State.NOT_KEPT, self.cutter.full)
            elif error.errno in _CLOSED:
                item.refuse(State.NOT_KEPT, "its mode keeps us from reading it")
            elif error.errno in _MOVED:
                item.refuse(State.AMBIGUOUS, "it changed while it was kept")
            else:
                raise

    # --- what is there now

    def _look(self, item: _Item) -> None:
        item.look = look = self.live.look(item.relative)
        if look.says is Says.CLOSED:
            item.refuse(State.NOT_KEPT, "its mode keeps us from reading it")
        elif look.says is Says.ODD:
            item.refuse(State.AMBIGUOUS, "it changed while it was kept")
        if look.says is not Says.HERE:
            if look.says is Says.SILENT and self.cutter.earlier.of(item.written.path) is not None:
                # it came with a command before this one, and nothing was below
                item.look = Look(Says.ABSENT)
            return
        assert look.status is not None
        item.form = _form(look, item.written.intents)
        if item.form is Form.ENTRY:
            self._refuse_unknown(item, look.status)

    def _refuse_unknown(self, item: _Item, status: os.stat_result) -> None:
        """A file that was in the upper when the span began, and that no soft layer has, is that of
        somebody of whom nothing is known."""
        if self.cutter.earlier.of(item.written.path) is not None:
            return
        parent, _, name = item.relative.rpartition(b"/")
        try:
            if self._is_strange(self.live.directory(parent)[1], name, status):
                item.refuse(State.AMBIGUOUS, _STRANGE)
        except FileNotFoundError:
            item.refuse(State.AMBIGUOUS, "it changed while it was kept")

    def _is_strange(self, fd: int, name: bytes, status: os.stat_result) -> bool:
        if status.st_ino in self.cutter.known:
            return False
        born = linux.birth_time_ns(fd, name)
        offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return born is not None and born < self.cutter.begun_ns + offset - tick_ns()

    def _keep_left(self, item: _Item) -> None:
        if _idle(item) or self.left.is_hidden(item.relative):
            return
        if item.look.says is Says.ABSENT:
            self.left.whiteout(item.relative, self._way)
            item.seen[b""] = None
        elif item.form is Form.ENTRY:
            if self.left.has(item.relative):
                assert item.look.status is not None  # it came with a tree
                item.seen[b""] = seen_of(item.look.status)
                return
            _, fd = self._live_directory(item.relative.rpartition(b"/")[0])
            status = self.left.copy(item.relative, fd, item.relative.rpartition(b"/")[2], self._way)
            item.seen[b""] = seen_of(status)
        else:
            self._keep_directory(item)

    def _live_directory(self, relative: bytes) -> tuple[Look, int]:
        look, fd = self.live.directory(relative)
        if fd < 0:
            raise Unsettled
        return look, fd

    def _keep_directory(self, item: _Item) -> None:
        look, fd = self._live_directory(item.relative)
        status = os.fstat(fd)
        like = like_of(status, raw_attributes(fd, self.marks))
        opaque = item.form is not Form.DIRECTORY
        self.left.directory(item.relative, like, self._way, opaque=opaque)
        item.seen[b""] = seen_of(status)
        if item.form is not Form.TREE:
            return
        if not look.pure:
            raise Unsettled
        pending = [item.relative]
        while pending:
            above = pending.pop()
            for name in map(os.fsencode, os.listdir(self._live_directory(above)[1])):
                _, fd = self._live_directory(above)
                inner = above + b"/" + name
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                kind = status.st_mode & FORMAT
                if kind == CHARACTER and status.st_rdev == 0:
                    continue  # of something that was below it where it came from
                if kind == DIRECTORY:
                    pending.append(inner)
                    attributes = raw_attributes(at(fd, os.fsdecode(name)), self.marks)
                    self.left.directory(inner, like_of(status, attributes), self._way, opaque=False)
                elif self._is_strange(fd, name, status):
                    item.refuse(State.AMBIGUOUS, f"{os.fsdecode(inner)}: {_STRANGE}")
                elif not self.left.has(inner):
                    status = self.left.copy(inner, fd, name, self._way)
                item.seen[inner[len(item.relative) + 1 :]] = seen_of(status)

    def _refuse_linked(self) -> None:
        """A file with names that this span did not write shows there what it wrote here."""
        names: dict[int, int] = {}
        several: list[tuple[_Item, int, int]] = []
        for item in self.items:
            if item.state is not State.KEPT:
                continue
            for inner, seen in item.seen.items():
                if seen is None or seen[0] == "directory":
                    continue
                self.live.forget()
                status = self.live.look(item.relative + b"/" + inner if inner else item.relative)
                if status.status is None or status.status.st_nlink < 2:
                    continue
                names[seen[1]] = names.get(seen[1], 0) + 1
                several.append((item, seen[1], status.status.st_nlink))
        for item, inode, count in several:
            if names[inode] < count:
                item.refuse(
                    State.AMBIGUOUS,
                    "the same file has another name, which the command did not write",
                )

    def _look_again(self) -> None:
        """Whether what was copied is still there."""
        for item in self.items:
            if item.state is not State.KEPT:
                continue
            for inner, seen in item.seen.items():
                self.live.forget()
                path = item.relative + b"/" + inner if inner else item.relative
                look = self.live.look(path)
                here = None if look.status is None else seen_of(look.status)
                if here != seen:
                    item.refuse(State.AMBIGUOUS, "it changed while it was kept")
                    break

    # --- what was there

    def _keep_found(self, item: _Item) -> None:
        """Of the path, and of all below it that is hidden now: as earlier soft layers have it."""
        paths = [item.written.path]
        if item.form is not Form.DIRECTORY:
            paths += self.cutter.earlier.below(item.written.path)
        for path in sorted(paths, key=in_tree_order):
            self._find(item, path)

    def _find(self, item: _Item, path: bytes) -> None:
        relative = path[len(self.prefix) :]
        owner = self.cutter.earlier.of(path)
        if (
            not relative
            or owner is None
            or self.found.has(relative)
            or self.found.is_hidden(relative)
        ):
            return
        layer, entry = owner
        if entry.state is not State.KEPT:
            item.refuse(
                State.AMBIGUOUS, f"what it was before is not known: span {layer.span} wrote it too"
            )
            return
        self._find_in(layer, relative)

    def _find_in(self, layer: SoftLayer, relative: bytes) -> None:
        root = self._root(layer)
        parent, _, name = relative.rpartition(b"/")
        try:
            fd, unlocked = self.view_of(layer).open_parent(layer.left, parent)
        except (FileNotFoundError, NotADirectoryError):
            self.found.whiteout(relative, self._way)
            return
        try:
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                self.found.whiteout(relative, self._way)
                return
            kind = status.st_mode & FORMAT
            if kind == CHARACTER and status.st_rdev == 0:
                self.found.whiteout(relative, self._way)
            elif kind == DIRECTORY:
                self._find_directory(layer, relative, fd, name, status)
            elif kind != REGULAR or not self.found.link(relative, root, relative, self._way):
                self.found.copy(relative, fd, name, self._way)
        finally:
            os.close(fd)
            if unlocked is not None:
                unlocked.relock()

    def _find_directory(
        self, layer: SoftLayer, relative: bytes, fd: int, name: bytes, status: os.stat_result
    ) -> None:
        where = at(fd, os.fsdecode(name))
        opaque = self.marks.opaque in os.listxattr(where, follow_symlinks=False)
        like = like_of(status, raw_attributes(where, self.marks))
        self.found.directory(relative, like, self._way, opaque=opaque)
        entry = layer.kept.get(self.prefix + relative)
        if entry is not None and entry.form is not Form.TREE:
            return
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        try:
            names = os.listdir(inner)
        finally:
            os.close(inner)
        for child in names:
            path = relative + b"/" + os.fsencode(child)
            owner = self.cutter.earlier.of(self.prefix + path)
            if owner is not None and owner[0].number == layer.number:
                self._find_in(layer, path)

    def view_of(self, layer: SoftLayer) -> MountView:
        found = self._views.get(layer.number)
        if found is None:
            found = self._views[layer.number] = MountView(stack_of(self.stack, layer), self.mount)
        return found

    def _root(self, layer: SoftLayer) -> int:
        return self.view_of(layer).roots[layer.left]

    # --- the directories on the way

    def _way(self, relative: bytes) -> Like:
        """What a directory on the way to something is like: as it is below the layer; else as the upper
        has it, since it came with the layer. It counts for nothing in a diff (`only_own`), but an undo
        may have to make it again."""
        with self.below.at(relative) as place:
            if place is not None and place.found.status.st_mode & FORMAT == DIRECTORY:
                return self.below.like(place)
        self.live.forget()
        _, fd = self.live.directory(relative)
        if fd < 0:
            return _PLAIN
        return like_of(os.fstat(fd), raw_attributes(fd, self.marks))


_PLAIN = Like(mode=0o700, uid=os.geteuid(), gid=os.getegid(), times_ns=(0, 0), attributes={})
