"""Undoing what one command wrote in a layer that it shared.

Two ways. Where the layer is frozen, a new layer goes on top that holds what the command had found
(`undo_in_layer`): nothing on the disk is changed, and it can itself be undone. Where the world lives,
its upper must not be touched from outside (overlayfs.rst: undefined), so the merged view is changed,
through an fd of its mount, by the machinery of an apply (`undo_in_world`): staged beside the target,
exchanged, compared afterwards, all or nothing. To an apply, the merged view is the host.

What is refused, path by path: what is not KEPT or was written by another command at the same time;
what a later command, or one that goes on, touched too, its parents or children; what was made from
a file of the host that is another one now; and what is not as the command left it, for whatever
reason. Of a directory that would go, everything in it must be the command's. Spec: world.md §4.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from substrate.errors import StateError
from substrate.values import replace as replace_value
from substrate.world import apply, layers, linux, soft
from substrate.world.below import Below, NoOwner
from substrate.world.beneath import LOOKUP
from substrate.world.change import Change, FileState
from substrate.world.dependence import touched
from substrate.world.diff import diff_pending
from substrate.world.displacing import Removing
from substrate.world.image import Budget, Images, Like
from substrate.world.layers import Layer, LayerStack, OverlayMount
from substrate.world.live_upper import LiveUpper, Says, seen_of, seen_of_state
from substrate.world.plan import plan
from substrate.world.refusal import ApplyConflict
from substrate.world.soft import (
    Form,
    Intent,
    SoftLayer,
    State,
    WrittenPath,
    in_tree_order,
    parents,
    stack_of,
)
from substrate.world.soft_changes import diff_soft
from substrate.world.soft_claims import contested
from substrate.world.source import LayerSource
from substrate.world.upper import DIRECTORY, FORMAT, open_layer_file
from substrate.world.view import HOST, MountView

_UNDO = b"undo"
_NO_LIMIT = 1 << 62
_OVERLAYFS_MAGIC = 0x794C7630
_CHANGED = "it is not as the command left it"


class NothingLeft(StateError):
    """Nothing was undone: every path is refused, or there is none."""

    def __init__(self, refused: Mapping[bytes, str]) -> None:
        first = next(iter(refused), None)
        why = "it changed nothing" if first is None else f"{os.fsdecode(first)}: {refused[first]}"
        super().__init__(
            f"nothing was undone: {why}",
            hint="--dry-run lists every path with its reason",
            code="E-SOFT-REFUSED",
        )
        self.refused = dict(refused)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What can be undone of a span: `changes`, as it made them, in tree order. `refused`: path →
    why not, as the end of a sentence."""

    soft: SoftLayer
    changes: tuple[Change, ...]
    refused: Mapping[bytes, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """`changes`: of the command, that were taken back. `written`: what the undo itself wrote, for a
    soft layer of it. `left`: names in the world of what could not be taken away."""

    changes: tuple[Change, ...]
    refused: Mapping[bytes, str]
    written: tuple[WrittenPath, ...]
    begun_ns: int
    left: tuple[bytes, ...] = ()


def choose(
    stack: LayerStack,
    target: SoftLayer,
    others: Mapping[str, Sequence[WrittenPath]],
    *,
    select: Callable[[bytes], bool] | None = None,
) -> Choice:
    """What of a soft layer can be undone as far as the records tell; whether it still is what the
    command left is asked when it is done. `others`: as for the cut. Raises OSError, StateError."""
    found = {c.path: c for c in diff_soft(stack, target, include_scratch=True)}
    refused = {e.path: e.why for e in target.entries if e.state is not State.KEPT}
    softs = soft.load_all(stack, target.layer)
    for path, span in contested(target, softs, others).items():
        refused.setdefault(path, f"span {span} wrote at the same time")
    later = _Later(stack, target, softs, others, list(found.values()))
    entries = {e.path: e for e in target.entries}
    for path, change in found.items():
        why = later.why(change) or _doubt(change, entries.get(path))
        if why:
            refused.setdefault(path, why)
        elif select is not None and not select(path):
            refused.setdefault(path, "it was not asked for")
    return _choice(target, found.values(), refused)


def _choice(target: SoftLayer, changes: Iterable[Change], refused: Mapping[bytes, str]) -> Choice:
    """With what a refused path keeps from being undone: a directory that would go and holds it."""
    refused = dict(refused)
    for path in list(refused):
        for above in parents(path):
            refused.setdefault(above, f"{os.fsdecode(path)} in it stays: {refused[path]}")
    left = tuple(
        c
        for c in sorted(changes, key=lambda c: in_tree_order(c.path))
        if c.path not in refused or (not _removes(c) and _is_way(c.path, refused))
    )
    kept = {c.path for c in left}
    changed = {c.path for c in changes} | {e.path for e in target.entries}
    return Choice(
        soft=target,
        changes=left,
        refused={p: why for p, why in sorted(refused.items()) if p in changed - kept},
    )


def _is_way(path: bytes, refused: Mapping[bytes, str]) -> bool:
    return " in it stays: " in refused[path]


def _removes(change: Change) -> bool:
    """Whether an undo takes a directory away with all that is in it."""
    after, before = change.after, change.before
    return (
        after is not None
        and after.type == "directory"
        and (before is None or before.type != "directory")
    )


def _replaces_tree(change: Change) -> bool:
    """Whether an undo puts another thing in the place of all that may be below the path."""
    kinds = {state.type for state in (change.before, change.after) if state is not None}
    return change.before is None or change.after is None or kinds != {"directory"}


def _doubt(change: Change, entry: soft.SoftEntry | None) -> str:
    before = change.before
    if before is None or before.layer != HOST:
        return ""
    if entry is None:
        return "what it was is not recorded"
    if entry.doubt:
        return f"what it was is not certain: {entry.doubt}"
    if entry.below != seen_of_state(before):
        return "the host changed it since"
    return ""


class _Later:
    """Who touched a path after the span."""

    def __init__(
        self,
        stack: LayerStack,
        target: SoftLayer,
        softs: Iterable[SoftLayer],
        others: Mapping[str, Sequence[WrittenPath]],
        changes: list[Change],
    ) -> None:
        #: path → (span, whether it concerns what is below as well)
        self._named: dict[bytes, tuple[str, bool]] = {}
        for each in softs:
            if each.number > target.number:
                for entry in each.entries:
                    hides = entry.whole_tree or entry.form is not Form.DIRECTORY
                    self._named[entry.path] = each.span, hides
        for span, written in others.items():
            for path in written:
                if span != target.span:
                    self._named[path.path] = span, bool(path.intents & soft.WHOLE_TREE)
        self._layers = {
            path: number
            for number in stack.numbers
            if number > target.layer
            for path in touched(stack, number, changes)
        }
        self._holders = {above for path in self._named for above in parents(path)}

    def why(self, change: Change) -> str:
        path = change.path
        if path in self._layers:
            return f"layer {self._layers[path]} touched it later"
        if path in self._named:
            return f"span {self._named[path][0]} wrote it later"
        for above in parents(path):
            span, hides = self._named.get(above, ("", False))
            if hides:
                return f"span {span} wrote {os.fsdecode(above)} later"
        if _replaces_tree(change) and path in self._holders:
            return "another command wrote something in it later"
        return ""


# --- the layer that holds what the command found


def _make_uppers(
    stack: LayerStack,
    choice: Choice,
    directory: bytes,
    now: Callable[[OverlayMount, bytes], Like | None],
) -> dict[bytes, str]:
    """Puts into `<directory>/<m>/upper` what the span found at the chosen paths. `now`: what a
    directory on the way is like; None where there is none any more. Gives paths of which that cannot
    be had."""
    failed: dict[bytes, str] = {}
    whole = stack_of(stack, choice.soft)
    sources = whole.sources([n for n in whole.numbers if n != choice.soft.left])
    for mount in stack.mounts:
        own = [c for c in choice.changes if c.mount == mount.index]
        if not own:
            continue
        start = len(mount.target.rstrip(b"/")) + 1
        with MountView(whole, mount) as view:
            before = Below(view, (*sources, HOST))

            def way(relative: bytes, mount: OverlayMount = mount, before: Below = before) -> Like:
                found = now(mount, relative)
                if found is not None:
                    return found
                with before.at(relative) as place:
                    if place is not None and place.found.status.st_mode & FORMAT == DIRECTORY:
                        return before.like(place)
                return Like(0o700, os.geteuid(), os.getegid(), (0, 0), {})

            path = b"%s/%d/upper" % (directory, mount.index)
            images = Images(path, view.marks, Budget(_NO_LIMIT), open_layer_file)
            try:
                for change in own:
                    try:
                        _put(images, change, change.path[start:], before, way)
                    except NoOwner as error:
                        failed[change.path] = str(error.strerror)
                images.finish()
            finally:
                images.close()
    return failed


def _put(
    images: Images,
    change: Change,
    relative: bytes,
    before: Below,
    way: Callable[[bytes], Like],
) -> None:
    if images.is_hidden(relative):
        return
    if change.before is None:
        images.whiteout(relative, way)
        return
    with before.at(relative) as place:
        if place is None or place.found.source != change.before.layer:
            raise _moved(change)
        status = place.found.status
        if (status.st_ino, status.st_dev) != (change.before.inode, change.before.dev):
            raise _moved(change)
        if change.before.type == "directory":
            images.directory(relative, before.like(place), way, opaque=False)
            return
        shifted = before.shifted if place.found.source == HOST else lambda like: like
        images.copy(relative, place.fd, place.name, way, like=shifted, links=False)


def _moved(change: Change) -> StateError:
    return StateError(
        f"{os.fsdecode(change.path)} was replaced on the host while it was read",
        hint="undo again when nothing writes there",
    )


# --- on top of a frozen layer


def undo_in_layer(stack: LayerStack, choice: Choice) -> tuple[LayerStack, Layer, Undone]:
    """Makes a new top layer that takes the chosen changes back; it is not frozen yet, so that
    whoever finds it records it. For a stack of which every layer is frozen. Raises NothingLeft,
    StateError, OSError."""
    begun_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    choice = _choice(choice.soft, choice.changes, {**choice.refused, **_not_as_left(stack, choice)})
    if not choice.changes:
        raise NothingLeft(choice.refused)
    sources = (*stack.sources(stack.numbers), HOST)

    def now(mount: OverlayMount, relative: bytes) -> Like | None:
        with MountView(stack, mount) as view:
            here = Below(view, sources)
            with here.at(relative) as place:
                if place is None or place.found.status.st_mode & FORMAT != DIRECTORY:
                    return None
                return here.like(place)

    def fill(directory: bytes) -> None:
        failed = _make_uppers(stack, choice, directory, now)
        if failed:
            path, why = next(iter(failed.items()))
            raise StateError(f"{os.fsdecode(path)} cannot be put back: {why}", code="E-SOFT-OWNER")

    stack, layer = layers.create_layer(stack, fill=fill)
    return stack, layer, _undone(choice, begun_ns)


def _undone(choice: Choice, begun_ns: int) -> Undone:
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return Undone(
        changes=choice.changes,
        refused=choice.refused,
        written=tuple(
            WrittenPath(
                path=c.path,
                intents=frozenset((_intent(c),)),
                first_ns=begun_ns,
                last_ns=now_ns,
            )
            for c in choice.changes
        ),
        begun_ns=begun_ns,
    )


def _intent(change: Change) -> Intent:
    """What the undo of a change does."""
    if change.before is None:
        return Intent.DELETE
    if change.after is None or change.before.type != change.after.type:
        return Intent.CREATE
    return Intent.META if change.before.type == "directory" else Intent.WRITE


def _not_as_left(stack: LayerStack, choice: Choice) -> dict[bytes, str]:
    """The paths that the layer's upper does not hold any more as the command left them, and those
    with something in them that it did not write."""
    found: dict[bytes, str] = {}
    known = {c.path for c in choice.changes}
    entries = choice.soft.kept
    for mount in stack.mounts:
        own = [c for c in choice.changes if c.mount == mount.index]
        if not own:
            continue
        start = len(mount.target.rstrip(b"/")) + 1
        live = LiveUpper(stack, mount, choice.soft.layer)
        try:
            for change in own:
                look = live.look(change.path[start:])
                live.forget()
                here = None if look.status is None else seen_of(look.status)
                entry = entries.get(change.path)
                if look.says in (Says.CLOSED, Says.ODD) or not _is_as_left(
                    here, entry, change.after, stack
                ):
                    found[change.path] = _CHANGED
                elif _removes(change):
                    _, fd = live.directory(change.path[start:])
                    for name in map(os.fsencode, os.listdir(fd)):
                        inner = change.path + b"/" + name
                        if inner not in known and live.look(inner[start:]).says is Says.HERE:
                            found[inner] = "another wrote it"
        finally:
            live.close()
    return found


def _is_as_left(
    here: soft.Seen | None,
    entry: soft.SoftEntry | None,
    after: FileState | None,
    stack: LayerStack,
) -> bool:
    """`entry`: says more than `after`, of what was not part of a tree."""
    if here is None or after is None:
        return here is None and after is None
    if entry is not None and entry.seen is not None and entry.form is Form.ENTRY:
        return here == entry.seen
    kind, _, size, mtime_ns, _, mode, uid, gid = here
    same = kind == after.type and mode == after.mode
    if kind != "directory":
        same = same and (size, mtime_ns) == (after.size, after.mtime_ns)
    return same and all(
        theirs is None or mine == stack.upper_id(theirs)
        for mine, theirs in ((uid, after.uid), (gid, after.gid))
    )


# --- in a living world


def open_merged(root_fd: int, mount: OverlayMount) -> int:
    """An O_PATH fd of an overlay of a living world, below an fd of its root. Raises OSError,
    StateError where no overlay is there."""
    resolve = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS
    fd = linux.openat2(root_fd, mount.target.lstrip(b"/") or b".", LOOKUP, resolve)
    if linux.filesystem_magic(fd) != _OVERLAYFS_MAGIC:
        os.close(fd)
        raise StateError(
            f"{os.fsdecode(mount.target)} is no overlay in the world",
            hint="nothing was undone",
            code="E-SOFT-MERGED",
        )
    return fd


def undo_in_world(
    stack: LayerStack,
    choice: Choice,
    merged: Mapping[int, int],
    *,
    held_by: Callable[[Sequence[bytes]], Mapping[bytes, str]] | None = None,
) -> Undone:
    """Takes the chosen changes back in the merged view of a living world: all that is not refused, or
    nothing. `merged`: an fd of each overlay that has changes (`open_merged`). `held_by`: as for the
    cut. The caller cuts a soft layer of what it `written`, so that later spans know.

    Raises NothingLeft, StateError (a process of the world wrote there meanwhile), OSError; the world
    is as it was then."""
    begun_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    directory = soft.begin(stack, choice.soft.layer, _UNDO)
    try:
        failed = _make_uppers(stack, choice, directory + b"/1", lambda _mount, _path: None)
        choice = _choice(choice.soft, choice.changes, {**choice.refused, **failed})
        live = _Merged(stack, choice, merged, directory)
        choice = live.narrowed(held_by)
        if not choice.changes:
            raise NothingLeft(choice.refused)
        left = live.carry_out(choice)
        return replace(_undone(choice, begun_ns), left=left)
    finally:
        with suppress(OSError):  # the next undo sweeps what stays
            soft.sweep(stack, choice.soft.layer, _UNDO)


class _Merged:
    """The merged view as the host of an apply."""

    def __init__(
        self, stack: LayerStack, choice: Choice, merged: Mapping[int, int], directory: bytes
    ) -> None:
        self.stack, self.choice, self.directory = stack, choice, directory
        self.targets = {m.index: m.target.rstrip(b"/") for m in stack.mounts}
        wanted = {c.mount for c in choice.changes}
        self.mounts = {i: b"/proc/self/fd/%d/." % merged[i] for i in sorted(wanted)}
        self.view = replace_value(
            stack,
            directory=directory,
            mounts=tuple(OverlayMount(index=i, target=t) for i, t in self.mounts.items()),
            layers=(Layer(number=1),),
            known=1,
            elsewhere=(),
            segments=(),
            id_extents=(),
            workspace=b"/",
            scratch=(),
        )
        for index in self.mounts:
            os.makedirs(self.view.upper(1, index), mode=0o700, exist_ok=True)
        #: what would be done, by the path in the world
        self.changes = {self._path(c): c for c in diff_pending(self.view, include_scratch=True)}

    def _path(self, change: Change) -> bytes:
        inner = change.path[len(self.mounts[change.mount]) :]
        return self.targets[change.mount] + inner or b"/"

    def narrowed(self, held_by: Callable[[Sequence[bytes]], Mapping[bytes, str]] | None) -> Choice:
        """The choice, less what is not as the command left it."""
        refused = dict(self.choice.refused)
        own = {c.path: c for c in self.choice.changes}
        entries = self.choice.soft.kept
        going = [path for path, change in own.items() if _removes(change)]
        for path, change in self.changes.items():
            before = change.before
            if path not in own:
                if before is not None and any(above in going for above in parents(path)):
                    refused[path] = "another wrote it"
                continue
            here = None if before is None else seen_of_state(before)
            if here is not None and here[0] != "directory":
                entry = entries.get(path)
                if entry is not None and entry.seen is not None:  # the view has its own inodes
                    here = (here[0], entry.seen[1], *here[2:])
            if not _is_as_left(here, entries.get(path), own[path].after, self.stack):
                refused[path] = _CHANGED
        for path in own:
            if path not in self.changes and not _is_undone(own[path]):
                refused.setdefault(path, _CHANGED)
        files = [p for p, c in self.changes.items() if p in own and c.before is not None]
        if held_by is not None:
            for path, why in held_by([p for p in files if own[p].after is not None]).items():
                refused.setdefault(path, why)
        return _choice(self.choice.soft, self.choice.changes, refused)

    def carry_out(self, choice: Choice) -> tuple[bytes, ...]:
        """Gives the names of what it could not take away afterwards."""
        wanted = {c.path for c in choice.changes}
        paths = {c.path for path, c in self.changes.items() if path in wanted}
        planned = plan(list(self.changes.values()), self.view, select=paths.__contains__)
        if not planned.operations:
            return ()
        try:
            done = apply.run(planned, self.view, self.directory, LayerSource(), Removing())
        except ApplyConflict as conflict:
            raise _in_the_way(conflict.conflicts[0].path, self.mounts.values()) from conflict
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.ESTALE):
                raise _in_the_way(error.filename or b"", self.mounts.values()) from error
            raise
        return tuple(name for name in done.left if not name.startswith(self.directory))


def _is_undone(change: Change) -> bool:
    """Whether an undo of it alone would do nothing that shows: it says nothing of its own."""
    return change.before is not None and change.before.type == "directory"


def _in_the_way(path: bytes | str, prefixes: Iterable[bytes]) -> StateError:
    shown = os.fsencode(path)
    for prefix in prefixes:
        shown = shown.removeprefix(prefix)
    return StateError(
        f"nothing was undone: a process of the world wrote to {os.fsdecode(shown)} meanwhile",
        hint="undo again when it is quiet",
        code="E-SOFT-BUSY",
    )
