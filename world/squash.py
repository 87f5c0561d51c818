"""Merging layers into one directory, so that a mount stays shallow however many commands ran.

Not a change of the stack: the single layers stay, and undo, diff and apply of one command use
them. A merged directory (a *segment*) is what overlayfs would show of these layers, in the form
of a layer: whiteouts and opaque marks are kept, for what lies below. Regular files are hard links
to those of the layers, which nobody writes any more, so a segment takes directories only.
Which layers are merged is decided as in a tree with a fan-out: what was merged once is merged
again only with its like, so that n commands cost n log n links. Spec: world.md §4.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat

from substrate.values import replace, value
from substrate.world.layers import MAX_LOWERS, LayerStack, OverlayMount, Segment
from substrate.world.removal import remove_tree
from substrate.world.treedigest import layer_digest
from substrate.world.upper import DIRECTORY, FORMAT, Unlocked, at, open_layer_directory
from substrate.world.view import DirectoryView, MountView

#: how many of a kind are merged into one of the next kind
FAN_OUT = 10

_UNFINISHED = b".new"


@value
class Merge:
    """Neighbours of a stack to be merged. `numbers`: oldest first."""

    numbers: tuple[int, ...]
    level: int


def choose(stack: LayerStack) -> tuple[Merge, ...]:
    """What to merge so that the mount is of at most MAX_LOWERS; () where it is already.

    Of the lowest level that has FAN_OUT neighbours, the oldest ones; where no level has, the
    older half of everything."""
    by_identifier = {s.identifier: s for s in stack.segments}
    units = []
    for source in reversed(stack.sources(stack.numbers)):
        if source < 0:
            segment = by_identifier[-source]
            units.append(Merge(numbers=segment.numbers, level=segment.level))
        else:
            units.append(Merge(numbers=(source,), level=0))
    merges: list[Merge] = []
    while len(units) > MAX_LOWERS:
        start, length = _run(units)
        together = units[start : start + length]
        merged = Merge(
            numbers=tuple(n for unit in together for n in unit.numbers),
            level=max(unit.level for unit in together) + 1,
        )
        units[start : start + length] = [merged]
        merges = [m for m in merges if not set(m.numbers) <= set(merged.numbers)]
        merges.append(merged)
    return tuple(merges)


def _run(units: list[Merge]) -> tuple[int, int]:
    """(start, length) of the units to merge next."""
    for level in sorted({unit.level for unit in units}):
        at_start = 0
        while at_start < len(units):
            end = at_start
            while end < len(units) and units[end].level == level:
                end += 1
            if end - at_start >= FAN_OUT:
                return at_start, FAN_OUT
            at_start = max(end, at_start + 1)
    return 0, max(2, len(units) // 2)


def squash(stack: LayerStack, merge: Merge) -> tuple[LayerStack, Segment, str]:
    """Merges; gives the stack with the segment, and the segment's digest of names, types,
    modes, owners, sizes and times (contents are the layers' own). Segments that it takes the
    place of leave the stack; their directories go by `remove_unused`.

    Raises OSError; nothing is left of it then."""
    identifier = _next_identifier(stack)
    parent = stack.squash_directory
    os.makedirs(parent, mode=0o700, exist_ok=True)
    fd = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    name = b"%d" % identifier
    try:
        remove_tree(fd, name + _UNFINISHED)
        try:
            for mount in stack.mounts:
                os.makedirs(b"%s/%s/%d" % (parent, name + _UNFINISHED, mount.index), mode=0o700)
                _merge(stack, mount, merge.numbers, b"%s/%s" % (parent, name + _UNFINISHED))
            os.rename(name + _UNFINISHED, name, src_dir_fd=fd, dst_dir_fd=fd)
        except BaseException:
            remove_tree(fd, name + _UNFINISHED)
            raise
    finally:
        os.close(fd)
    segment = Segment(identifier=identifier, numbers=merge.numbers, level=merge.level)
    inside = set(merge.numbers)
    kept = tuple(s for s in stack.segments if not inside & set(s.numbers))
    stack = replace(stack, segments=tuple(sorted((*kept, segment), key=lambda s: s.numbers[0])))
    return stack, segment, layer_digest(stack, -identifier, _size_and_time)


def _next_identifier(stack: LayerStack) -> int:
    """One that no directory has: a mount of an older segment may still be in use."""
    try:
        on_disk = [int(n) for n in os.listdir(stack.squash_directory) if n.isdigit()]
    except FileNotFoundError:
        on_disk = []
    return max((*on_disk, *(s.identifier for s in stack.segments)), default=0) + 1


def _size_and_time(fd: int) -> str:
    status = os.fstat(fd)
    return hashlib.sha256(b"%d %d" % (status.st_size, status.st_mtime_ns)).hexdigest()


def without(stack: LayerStack, numbers: set[int]) -> LayerStack:
    """The stack without these layers and the segments that hold any of them."""
    return replace(
        stack,
        layers=tuple(x for x in stack.layers if x.number not in numbers),
        segments=tuple(s for s in stack.segments if not numbers & set(s.numbers)),
    )


def remove_unused(stack: LayerStack) -> None:
    """Removes the directories of segments that are not the stack's. Only while nothing of the
    world is mounted. Raises OSError."""
    used = {b"%d" % s.identifier for s in stack.segments}
    try:
        fd = os.open(stack.squash_directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        for name in os.listdir(fd):
            if os.fsencode(name) not in used:
                remove_tree(fd, os.fsencode(name))
    finally:
        os.close(fd)


# --- the merging


def _merge(stack: LayerStack, mount: OverlayMount, numbers: tuple[int, ...], base: bytes) -> None:
    sources = stack.sources(numbers)
    top = b"%s/%d/upper" % (base, mount.index)
    os.mkdir(top, 0o700)
    with MountView(stack, mount) as view:
        root = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            made: list[tuple[bytes, int, bool]] = [(b"", sources[0], False)]
            pending: list[tuple[bytes, tuple[int, ...]]] = [(b"", sources)]
            while pending:
                relative, merged = pending.pop()
                directory = DirectoryView(view, relative, merged)
                try:
                    _fill(view, root, directory, merged, made, pending)
                finally:
                    directory.close()
            for relative, source, opaque in reversed(made):  # children before their directory
                _finish_directory(view, root, relative, source, opaque=opaque)
        finally:
            os.close(root)


def _fill(
    view: MountView,
    root: int,
    directory: DirectoryView,
    sources: tuple[int, ...],
    made: list[tuple[bytes, int, bool]],
    pending: list[tuple[bytes, tuple[int, ...]]],
) -> None:
    relative = directory.relative
    target, unlocked = open_layer_directory(root, relative)
    assert unlocked is None  # ours, and 0700 until all is done
    seen: set[str] = set()
    try:
        for source in sources:
            for name in directory.names(source):
                if name in seen:
                    continue
                seen.add(name)
                found, hides = directory.look_up(name, sources)
                if found is None:
                    if hides:
                        os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=target)
                elif found.status.st_mode & FORMAT == DIRECTORY:
                    raw = os.fsencode(name)
                    path = relative + b"/" + raw if relative else raw
                    os.mkdir(name, 0o700, dir_fd=target)
                    made.append((path, found.source, hides))
                    pending.append((path, found.sources))
                else:
                    os.link(
                        name,
                        name,
                        src_dir_fd=directory.fds[found.source],
                        dst_dir_fd=target,
                        follow_symlinks=False,
                    )
    finally:
        os.close(target)


def _finish_directory(
    view: MountView, root: int, relative: bytes, source: int, *, opaque: bool
) -> None:
    """Owner, attributes, mode and time of the topmost layer's directory. Attributes are copied
    as they are on the disk: both sides have the same ids and marks."""
    fd, unlocked = view.open_parent(source, relative)
    own, locked = open_layer_directory(root, relative)
    assert locked is None
    try:
        like = os.fstat(fd)
        mode = _mode_of(like, unlocked)
        if os.geteuid() == 0:
            os.chown(own, like.st_uid, like.st_gid)
        for name in os.listxattr(own):
            if name.startswith("system.posix_acl"):  # inherited from the state directory
                os.removexattr(own, name)
        for name in os.listxattr(fd):
            if name != view.marks.opaque:
                try:
                    os.setxattr(own, name, os.getxattr(fd, name))
                except OSError as error:
                    # labels are the host's security module's to give
                    if not name.startswith("security.") or error.errno not in (
                        errno.EPERM,
                        errno.EOPNOTSUPP,
                    ):
                        raise
        if opaque:
            os.setxattr(own, view.marks.opaque, b"y")
        os.fchmod(own, mode)
        os.utime(at(own, ""), ns=(like.st_atime_ns, like.st_mtime_ns))
    finally:
        os.close(own)
        os.close(fd)
        if unlocked is not None:
            unlocked.relock()


def _mode_of(status: os.stat_result, unlocked: Unlocked | None) -> int:
    """A directory's own mode, also while it is unlocked for us to read it."""
    widened = None if unlocked is None else unlocked.mode_of(status)
    return status.st_mode & 0o7777 if widened is None else widened
