"""The stack of layers of one world: what it is made of and its directories on disk.

Not the mounting and not the reading of what a layer holds (upper.py). On disk
(docs/adr/0001, 0005): `<world>/layers/<n>/<m>/{upper,work}`, n from 1 (oldest) upward, m the
index of the overlay mount. What lies there need not be on the stack: a layer that was undone
stays on disk until it is collected, and a forked world stands on layers of another one.
Layers that were merged for the mount (squash.py) are a *segment*, `<world>/squash/<id>/<m>/upper`.

Invariants: a layer comes and goes in one rename, so that a killed process leaves whole ones
only; one without any `work` is frozen; only frozen layers are applied; a number is never
used twice; a segment holds neighbours of the stack. Spec: world.md §4.
"""

from __future__ import annotations

import os

from substrate.errors import StateError
from substrate.values import replace, value
from substrate.world import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TRUSTED = b"trusted."
USER = b"user."
SCRATCH = (b"/tmp", b"/var/tmp", b"/dev/shm")
#: a mount of more layers than this is made shallow first (squash.py; world.md §4)
MAX_LOWERS = 30

#: beside the directory of layers: one that is not whole yet, one that is not whole any more
_UNFINISHED, _REMOVED = b".new", b".old"
_THROW_AWAY = b"/throw-away"
#: what overlayfs leaves of a volatile mount to which nothing was written, and itself
_DIRTY = b"/work/incompat/volatile/dirty"
_IN_WORK = (b"/work/incompat/volatile", b"/work/incompat", b"/work", b"")
_IN_MOUNT = (*(b"/work" + name for name in _IN_WORK), b"/upper", b"")
_OVERFLOW = 65534
_PRIVATE_ATTRIBUTES = ("trusted.", "user.overlay.", "security.")


@value
class OverlayMount:
    """One overlay of the world: `index` is m, `target` the absolute host path (no trailing
    slash, no symlink in it) that is its lower, and where it is seen in the world. `inode`: of that
    directory when the world began; 0 where another one may be there. `stands_in`: what the world
    sees of the host are, in part, copies that were made when its layer was (standin.py)."""

    index: int
    target: bytes
    inode: int = 0
    stands_in: bool = False


def is_there(mount: OverlayMount) -> bool:
    """Whether the directory that was overlaid when the world began is still at its path."""
    try:
        status = os.stat(mount.target)
    except OSError:
        return False
    return status.st_mode & 0o170000 == 0o040000 and mount.inode in (0, status.st_ino)


def gone(mount: OverlayMount) -> StateError:
    shown = os.fsdecode(mount.target)
    return StateError(
        f"{shown} is gone or replaced, and the world holds changes of what was in it",
        hint="bring it back (mount it, move it back); or discard the world, or add --fresh for a new "
        "one",
        code="E-MOUNT-GONE",
    )


@value
class Layer:
    """One layer's number, from 1 (oldest)."""

    number: int


@value
class Segment:
    """Layers that were merged into one directory, for the mount and for reading what lies below
    others. `numbers`: oldest first. `level`: how many times over."""

    identifier: int
    numbers: tuple[int, ...]
    level: int = 1


@value
class LayerStack:
    """The layers of a world over the host.

    `directory`: path of `layers`. `layers`: oldest first. `known`: the highest number that was
    ever given before the stack was last written down; numbers above it are those on disk.
    `elsewhere`: (last number, directory): layers up to that number lie there, for a fork.
    `segments`: what is merged; a *source* is a layer's number, or minus a segment's identifier.
    `xattr_prefix`: the namespace in
    which these mounts keep their marks (b"trusted." or b"user."; the other one is data).
    `id_extents`: (world_first, host_first, count) of the id map that shifts the owners of
    files in uppers; () where an id is itself. `started_ns`: CLOCK_REALTIME at the start of
    the world. `clock_offset_ns`: CLOCK_REALTIME - CLOCK_BOOTTIME at that moment, which lets
    conflict.py see a clock that was set back; None when unknown. `scratch`: world.md §2.
    `squash_at`: where the segments lie, if not beside the layers."""

    directory: bytes
    mounts: tuple[OverlayMount, ...]
    layers: tuple[Layer, ...] = ()
    known: int = 0
    elsewhere: tuple[tuple[int, bytes], ...] = ()
    segments: tuple[Segment, ...] = ()
    xattr_prefix: bytes = TRUSTED
    id_extents: tuple[tuple[int, int, int], ...] = ()
    started_ns: int
    clock_offset_ns: int | None = None
    workspace: bytes
    scratch: tuple[bytes, ...] = SCRATCH
    squash_at: bytes = b""

    @property
    def numbers(self) -> tuple[int, ...]:
        """The layers' numbers, oldest first."""
        return tuple(layer.number for layer in self.layers)

    def upper(self, source: int, index: int) -> bytes:
        if source < 0:
            return b"%s/%d/%d/upper" % (self.squash_directory, -source, index)
        return b"%s/%d/%d/upper" % (self.directory_of(source), source, index)

    def work(self, number: int, index: int) -> bytes:
        return b"%s/%d/%d/work" % (self.directory, number, index)

    def directory_of(self, number: int) -> bytes:
        for last, directory in self.elsewhere:
            if number <= last:
                return directory
        return self.directory

    @property
    def squash_directory(self) -> bytes:
        return self.squash_at or os.path.dirname(self.directory) + b"/squash"

    def sources(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """What to stack for neighbours of the stack, newest first: a segment in place of its
        layers where all of them are wanted."""
        if not self.segments:
            return tuple(reversed(numbers))
        first = {segment.numbers[0]: segment for segment in self.segments}
        found = []
        at = 0
        while at < len(numbers):
            segment = first.get(numbers[at])
            if segment is not None and segment.numbers == tuple(
                numbers[at : at + len(segment.numbers)]
            ):
                found.append(-segment.identifier)
                at += len(segment.numbers)
            else:
                found.append(numbers[at])
                at += 1
        return tuple(reversed(found))

    def members(self, source: int) -> tuple[int, ...]:
        """The layers of a source, newest first."""
        if source >= 0:
            return (source,)
        segment = next(s for s in self.segments if s.identifier == -source)
        return tuple(reversed(segment.numbers))

    def is_empty(self, number: int, index: int) -> bool:
        """Whether the upper holds no entry (its own mode is not one)."""
        path = self.upper(number, index)
        try:
            with os.scandir(path) as entries:
                return next(entries, None) is None
        except PermissionError:  # its mode is that of the host's directory
            from substrate.world.upper import list_closed

            return not list_closed(path)

    def host_id(self, upper_id: int) -> int | None:
        """The host's id for an owner found in an upper; None for one outside the map."""
        if not self.id_extents:
            return upper_id
        for world_first, host_first, count in self.id_extents:
            if host_first <= upper_id < host_first + count:
                return world_first + upper_id - host_first
        return None

    def upper_id(self, host_id: int) -> int | None:
        """The owner that a file of the host's `host_id` has in an upper; None if unmapped."""
        if not self.id_extents:
            return host_id
        for world_first, host_first, count in self.id_extents:
            if world_first <= host_id < world_first + count:
                return host_first + host_id - world_first
        return None


def list_layers(directory: bytes) -> tuple[Layer, ...]:
    """The layers on disk, oldest first. Raises StateError for a name that is no layer's."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return ()
    numbers = []
    for name in names:
        if not name.isdigit() or name.startswith(b"0"):
            raise StateError(
                f"{os.fsdecode(directory)} holds {os.fsdecode(name)!r}, expected layer numbers",
                hint="the directory belongs to substrate alone; move the stranger away",
            )
        numbers.append(int(name))
    return tuple(Layer(number=n) for n in sorted(numbers))


def load_layers(stack: LayerStack, listed: Sequence[int] = ()) -> LayerStack:
    """The stack of the `listed` layers and those on disk that are newer than all known ones.

    Raises StateError where a listed one is gone."""
    on_disk = list_layers(stack.directory)
    newer = tuple(layer for layer in on_disk if layer.number > stack.known)
    if listed:
        there = {layer.number for layer in on_disk}
        for last, directory in stack.elsewhere:
            there |= {x.number for x in list_layers(directory) if x.number <= last}
        gone = [number for number in listed if number not in there]
        if gone:
            raise StateError(
                f"layer {gone[0]} of {os.fsdecode(stack.directory)} is gone",
                hint="end the world with `substrate discard`, or use --fresh for a new one; "
                "`substrate log` still shows what was run",
                code="E-LAYER-GONE",
            )
    return replace(stack, layers=(*(Layer(number=number) for number in listed), *newer))


def create_layer(
    stack: LayerStack,
    *,
    throw_away: bool = False,
    fill: Callable[[bytes], None] | None = None,
) -> tuple[LayerStack, Layer]:
    """A new, empty top layer: `upper` and `work` for every mount. `throw_away`: it is marked as
    one of which nothing is to stay, whoever finds it. `fill(directory)` puts into
    `<directory>/<m>/upper` what it is to hold when it gets its name.

    The root of a merged directory takes its mode, owner and attributes from the topmost
    `upper` (else /tmp loses its sticky bit, world.md §2), so each new `upper` is made like
    what is on top now. Raises OSError."""
    number = max(stack.known, stack.layers[-1].number if stack.layers else 0) + 1
    _clear_away(stack)
    unfinished = stack.directory + _UNFINISHED
    for mount in stack.mounts:
        upper = b"%s/%d/upper" % (unfinished, mount.index)
        os.makedirs(upper, mode=0o700)
        os.mkdir(b"%s/%d/work" % (unfinished, mount.index), 0o700)
        _make_like(stack, upper, mount, stack.layers[-1].number if stack.layers else None)
    os.makedirs(unfinished, mode=0o700, exist_ok=True)  # a stack without mounts
    if throw_away:
        os.close(os.open(unfinished + _THROW_AWAY, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    if fill is not None:
        fill(unfinished)
    os.makedirs(stack.directory, mode=0o700, exist_ok=True)
    os.rename(unfinished, b"%s/%d" % (stack.directory, number))
    layer = Layer(number=number)
    return replace(stack, layers=(*stack.layers, layer)), layer


def _clear_away(stack: LayerStack) -> None:
    """Removes what a killed process left of a layer that it was making or removing."""
    parent, name = os.path.split(stack.directory)
    for ending in (_UNFINISHED, _REMOVED):
        if os.path.lexists(stack.directory + ending):
            _remove(parent, name + ending)


@value
class _Root:
    """What the root of a new upper has, in the upper's own terms. An owner that the map lacks
    is None."""

    mode: int
    uid: int | None
    gid: int | None
    attributes: dict[str, bytes]
    times_ns: tuple[int, int] | None = None


def _root_of(stack: LayerStack, mount: OverlayMount, below: int | None) -> _Root:
    """The root of an upper over the layer `below`, or over the host's directory."""
    if below is not None:
        model = stack.upper(below, mount.index)
        like = os.stat(model, follow_symlinks=False)
        uid, gid = _owner_to_give(stack, like, shifted=True)
        return _Root(
            mode=like.st_mode & 0o7777,
            uid=uid,
            gid=gid,
            attributes=_attributes(model),
            times_ns=(like.st_atime_ns, like.st_mtime_ns),
        )
    if not is_there(mount):
        return _Root(mode=0o700, uid=None, gid=None, attributes={})
    like = os.stat(mount.target, follow_symlinks=False)
    mode = like.st_mode & 0o7777
    if is_foreign(stack, like):
        # it is the user's in the world; what the user may do in it on the host, they may there
        may = (4, os.R_OK), (2, os.W_OK), (1, os.X_OK)
        granted = sum(bit for bit, want in may if os.access(mount.target, want, effective_ids=True))
        mode = mode & 0o7077 | granted << 6
    attributes = _attributes(mount.target)
    if stack.id_extents:
        from substrate.world.upper import move_acl

        for name in attributes:
            if name.startswith("system."):
                attributes[name] = move_acl(attributes[name], stack.upper_id)
    uid, gid = _owner_to_give(stack, like, shifted=False)
    return _Root(
        mode=mode,
        uid=uid,
        gid=gid,
        attributes=attributes,
        times_ns=(like.st_atime_ns, like.st_mtime_ns),
    )


def is_foreign(stack: LayerStack, host: os.stat_result) -> bool:
    """Whether a directory of the host is of somebody whom a rootless world does not have: mode
    and owner of its copies say nothing then."""
    return stack.xattr_prefix == USER and host.st_uid != os.geteuid()


def _make_like(stack: LayerStack, upper: bytes, mount: OverlayMount, below: int | None) -> None:
    root = _root_of(stack, mount, below)
    if os.geteuid() == 0:
        uid, gid = root.uid, root.gid
        os.chown(upper, -1 if uid is None else uid, -1 if gid is None else gid)
    for name in _attributes(upper):  # an access list that came from the state directory
        if name not in root.attributes:
            os.removexattr(upper, name)
    for name, content in root.attributes.items():
        os.setxattr(upper, name, content)
    os.chmod(upper, root.mode)
    if root.times_ns is not None:
        os.utime(upper, ns=root.times_ns)


def _owner_to_give(
    stack: LayerStack, like: os.stat_result, *, shifted: bool
) -> tuple[int | None, int | None]:
    """The owner of an upper that is like `like`; None for an id that nobody can give: outside
    the world's map, or outside our own (in a rootless container, where such ids are shown as
    the overflow id, user_namespaces(7))."""
    uid = like.st_uid if shifted else stack.upper_id(like.st_uid)
    gid = like.st_gid if shifted else stack.upper_id(like.st_gid)
    if uid == _OVERFLOW and not _is_mapped("/proc/self/uid_map", uid):
        uid = None
    if gid == _OVERFLOW and not _is_mapped("/proc/self/gid_map", gid):
        gid = None
    return uid, gid


def _is_mapped(id_map: str, number: int) -> bool:
    with open(id_map, "rb") as file:
        extents = (map(int, line.split()) for line in file)
        return any(first <= number < first + count for first, _, count in extents)


def is_frozen(stack: LayerStack, number: int) -> bool:
    """Whether nothing can be written in layer `number`. A known one is; a fork's base is."""
    return number <= stack.known or not any(
        os.path.lexists(stack.work(number, m.index)) for m in stack.mounts
    )


def is_throw_away(stack: LayerStack, number: int) -> bool:
    return os.path.lexists(b"%s/%d%s" % (stack.directory, number, _THROW_AWAY))


def sync_layers(stack: LayerStack) -> None:
    """Waits until what the layers hold is on the disk: they are written `volatile`, so nothing
    else does. One syncfs(2), of the whole filesystem. Raises OSError."""
    fd = os.open(stack.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        linux.syncfs(fd)
    finally:
        os.close(fd)


def freeze_layer(stack: LayerStack, number: int) -> None:
    """Removes the `work` directories of layer `number`: nothing can be mounted on it again.

    Only when no process of the world lives (world.md §4). Raises OSError."""
    for mount in stack.mounts:
        _remove(os.path.dirname(stack.work(number, mount.index)), b"work")


def remove_layer(stack: LayerStack, number: int) -> LayerStack:
    """Removes the directories of layer `number`, which must not be mounted. Raises OSError."""
    _take_off(stack, number)
    return replace(stack, layers=tuple(x for x in stack.layers if x.number != number))


def discard(stack: LayerStack) -> LayerStack:
    """Removes every layer on disk, newest first, so that what remains after an error is
    still a stack. Raises OSError."""
    for layer in reversed(list_layers(stack.directory)):
        _take_off(stack, layer.number)
    return replace(stack, layers=())


def _take_off(stack: LayerStack, number: int) -> None:
    """A layer leaves the stack in one step, however long its removal takes."""
    _clear_away(stack)
    os.rename(b"%s/%d" % (stack.directory, number), stack.directory + _REMOVED)
    _clear_away(stack)


def layer_is_empty(stack: LayerStack, number: int) -> bool:
    """Whether nothing was written in the layer: no upper holds an entry, and each has the
    mode, owner and attributes that `create_layer` gave it."""
    below = max((x.number for x in stack.layers if x.number < number), default=None)
    return all(
        stack.is_empty(number, m.index) and _is_like(stack, number, m, below) for m in stack.mounts
    )


def _is_like(stack: LayerStack, number: int, mount: OverlayMount, below: int | None) -> bool:
    if below is None and not is_there(mount):
        return True  # it went away meanwhile, and what it was like with it
    upper = stack.upper(number, mount.index)
    root = _root_of(stack, mount, below)
    own = os.stat(upper, follow_symlinks=False)
    if own.st_mode & 0o7777 != root.mode:
        return False
    if os.geteuid() == 0 and (
        root.uid not in (None, own.st_uid) or root.gid not in (None, own.st_gid)
    ):
        return False
    return _attributes(upper) == root.attributes


def _attributes(path: bytes) -> dict[str, bytes]:
    """Those that a world sees; none where the mode keeps us from reading them (xattr(7)): the
    world is kept from them too."""
    try:
        return {
            name: os.getxattr(path, name)
            for name in os.listxattr(path)
            if not name.startswith(_PRIVATE_ATTRIBUTES)
        }
    except PermissionError:
        return {}


def _remove(parent: bytes, name: bytes) -> None:
    """Removes a layer's directory, or the `work` of one, whatever is in it."""
    path = parent + b"/" + name
    try:
        if name == b"work":
            _unmark(path)
            _remove_unused(path, _IN_WORK)
        else:
            for mount in os.listdir(path):
                _unmark(path + b"/" + mount + b"/work")
                _remove_unused(path + b"/" + mount, _IN_MOUNT)
            os.rmdir(path)
    except OSError:
        # something was written there; and it may be made so that it is not easily removed
        from substrate.world.removal import remove_tree

        fd = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove_tree(fd, name)
        finally:
            os.close(fd)


def _unmark(work: bytes) -> None:
    """Removes the mark of a volatile mount, in a directory that overlayfs closes to all but
    root."""
    try:
        os.unlink(work + _DIRTY)
    except FileNotFoundError:
        return
    except PermissionError:
        os.chmod(work + b"/work", 0o700)
        os.unlink(work + _DIRTY)


def _remove_unused(path: bytes, inside: tuple[bytes, ...]) -> None:
    """Removes a directory in which there is at most what overlayfs itself makes."""
    for name in inside:
        try:
            os.rmdir(path + name)
        except FileNotFoundError:
            continue
