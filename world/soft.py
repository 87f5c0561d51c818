"""Soft layers: what one command wrote in a layer that other commands write in too.

Values, and where they lie on the disk; not how one is cut (soft_cut.py), nor what is done with
it (soft_changes.py, soft_undo.py). A layer that is shared (world.md §4) cannot be taken apart: it
has one upper. So when a command's span ends in it, what the span found and what it left is kept for
each path that it wrote, as a pair of small layers that whatever reads layers can read:

    <world>/soft/<layer>/<number>/<layer + 2 number>/<mount>/upper      what it found
    <world>/soft/<layer>/<number>/<layer + 2 number + 1>/<mount>/upper  what it left
    <world>/soft/<layer>/<number>/soft.json                             SoftLayer

The first holds a path only where an earlier soft layer of the same layer says what was there;
elsewhere what lies below the layer shows through, which no process of the world can change. Numbers
of soft layers go up from 1 within a layer.

Invariants: a soft layer comes by one rename, so it is whole or it is swept (`sweep`); it never
changes afterwards; a path is shown, undone and applied only where its entry is KEPT. The layer that
it is of stays the truth: soft layers are views of it and go with it. docs/adr/0013.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from substrate.errors import StateError
from substrate.values import replace as replace_value
from substrate.world.journal import octets, text
from substrate.world.layers import Layer, LayerStack
from substrate.world.removal import remove_tree

NAME = b"soft"
RECORD = b"soft.json"
FORMAT = 1
_UNFINISHED = b"new"
_LARGEST = 256 << 20  # bytes that are read of a record


class Intent(StrEnum):
    """What a command did to a path, as capture tells it."""

    WRITE = "write"  # opened for writing, truncated
    CREATE = "create"
    DELETE = "delete"
    MOVE_AWAY = "move_away"  # the old name of a rename
    MOVE_HERE = "move_here"  # the new one
    LINK = "link"  # a new name of a file that has others
    META = "meta"


#: what concerns everything below a directory as well
WHOLE_TREE = frozenset((Intent.DELETE, Intent.MOVE_AWAY, Intent.MOVE_HERE))


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenPath:
    """A path that a span wrote, in the world's names: absolute, no symlink among its parents.
    `first_ns`, `last_ns`: CLOCK_BOOTTIME of the first and the last call that did. `processes`: who,
    for a person. `came_from`: the old names of what was moved here; where they are not told, it may be
    any that the span moved away."""

    path: bytes
    intents: frozenset[Intent]
    first_ns: int
    last_ns: int
    processes: tuple[int, ...] = ()
    came_from: tuple[bytes, ...] = ()


class Form(StrEnum):
    """What a path is. All but DIRECTORY hide what is below them in earlier states."""

    ABSENT = "absent"
    ENTRY = "entry"  # a file, a symlink, a special file
    DIRECTORY = "directory"  # the same one as before, or merged with what is below the layer
    MADE = "made"  # a new directory, which began empty
    TREE = "tree"  # a directory that came by a rename, with all that is in it


class State(StrEnum):
    KEPT = "kept"
    AMBIGUOUS = "ambiguous"  # others wrote it too, or may have
    NOT_KEPT = "not_kept"  # it could not be read, or did not fit


#: (type, inode, size, mtime_ns, ctime_ns, mode, uid, gid) of an entry of the upper
Seen = tuple[str, int, int, int, int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftEntry:
    """One path of a soft layer. `mount`: index of its overlay. `why`: it is not KEPT, as the end of
    a sentence. `seen`: the upper's entry when it was kept, None where there was none. `doubt`: why
    what lay below the layer may not be what the span found (aspects.DOUBTS). `below`: the host's entry
    that it was made from, where that is where it came from, as it was when it was kept."""

    path: bytes
    mount: int
    form: Form
    state: State
    first_ns: int
    whole_tree: bool
    why: str = ""
    seen: Seen | None = None
    doubt: str = ""
    below: Seen | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftLayer:
    """What the span `span` wrote in layer `layer`. `begun_ns`, `cut_ns`: CLOCK_BOOTTIME of its
    start, and of the moment after which nothing of this was read any more. `directory`: where it
    lies. `undoes`: the number of the soft layer that this one took back; 0 for a command's."""

    layer: int
    number: int
    span: str
    begun_ns: int
    cut_ns: int
    entries: tuple[SoftEntry, ...]
    directory: bytes
    undoes: int = 0

    @property
    def found(self) -> int:
        """The number of the layer that holds what the span found."""
        return self.layer + 2 * self.number

    @property
    def left(self) -> int:
        return self.found + 1

    @property
    def kept(self) -> dict[bytes, SoftEntry]:
        return {e.path: e for e in self.entries if e.state is State.KEPT}


def directory_of(stack: LayerStack, layer: int) -> bytes:
    """Where the soft layers of a layer lie."""
    return b"%s/%s/%d" % (os.path.dirname(stack.directory_of(layer)), NAME, layer)


def parents(path: bytes) -> Iterator[bytes]:
    """The directories above a path, the nearest first, without the root."""
    while (path := path.rpartition(b"/")[0]) != b"":
        yield path


def in_tree_order(path: bytes) -> bytes:
    """A key: a directory before, and directly before, everything in it."""
    return path.replace(b"/", b"\0")


# --- reading them as layers


def stack_of(stack: LayerStack, soft: SoftLayer) -> LayerStack:
    """What lay below the layer, what the span found, and on top (`soft.left`) what it left."""
    below = tuple(x for x in stack.layers if x.number < soft.layer)
    return _stacked(stack, below, [soft], (Layer(number=soft.found), Layer(number=soft.left)))


def stack_of_all(stack: LayerStack, softs: Iterable[SoftLayer]) -> LayerStack:
    """All that several soft layers of one layer hold, for whoever reads what their diffs name."""
    ordered = sorted(softs, key=lambda s: s.number)
    below = tuple(x for x in stack.layers if x.number < ordered[0].layer)
    own = tuple(Layer(number=n) for s in ordered for n in (s.found, s.left))
    return _stacked(stack, below, ordered, own)


def stack_of_left(stack: LayerStack, softs: Iterable[SoftLayer]) -> LayerStack:
    """What these spans of one layer left, over the host alone: as for an apply of single layers."""
    ordered = sorted(softs, key=lambda s: s.number)
    return _stacked(stack, (), ordered, tuple(Layer(number=s.left) for s in ordered))


def _stacked(
    stack: LayerStack, below: tuple[Layer, ...], softs: list[SoftLayer], own: tuple[Layer, ...]
) -> LayerStack:
    layer = softs[0].layer
    places = [(last, path) for last, path in stack.elsewhere if last < layer]
    places += [(layer - 1, stack.directory)]
    places += [(soft.left, soft.directory) for soft in softs[:-1]]
    return replace_value(
        stack,
        directory=softs[-1].directory,
        squash_at=stack.squash_directory,
        elsewhere=tuple(places),
        layers=(*below, *own),
        known=softs[-1].left,
        segments=tuple(s for s in stack.segments if below and s.numbers[-1] < layer),
    )


# --- which of them says what of a path


class Earlier:
    """What the soft layers of one layer say of paths, the newest first."""

    def __init__(self, softs: Iterable[SoftLayer]) -> None:
        self._by_path: dict[bytes, tuple[SoftLayer, SoftEntry]] = {}
        for soft in sorted(softs, key=lambda s: s.number):
            for entry in soft.entries:
                self._by_path[entry.path] = soft, entry
        self._sorted = sorted(self._by_path)

    def of(self, path: bytes) -> tuple[SoftLayer, SoftEntry] | None:
        """The newest that has the path, or hides it by what it has above it; None for none."""
        best = self._by_path.get(path)
        for above in parents(path):
            found = self._by_path.get(above)
            if found is None or found[1].form is Form.DIRECTORY:
                continue
            if best is None or found[0].number > best[0].number:
                best = found
        return best

    def below(self, path: bytes) -> list[bytes]:
        """The paths below a directory that any of them has, in order."""
        start = bisect_left(self._sorted, path + b"/")
        return self._sorted[start : bisect_left(self._sorted, path + b"0")]  # "0" follows "/"


# --- on the disk


def render(soft: SoftLayer) -> bytes:
    plain: dict[str, Any] = {
        "format": FORMAT,
        "layer": soft.layer,
        "number": soft.number,
        "span": soft.span,
        "begun_ns": soft.begun_ns,
        "cut_ns": soft.cut_ns,
        "undoes": soft.undoes,
        "entries": [
            [text(e.path), e.mount, e.form.value, e.state.value, e.first_ns, e.whole_tree]
            + [e.why, e.seen and list(e.seen), e.doubt, e.below and list(e.below)]
            for e in soft.entries
        ],
    }
    return json.dumps(plain, separators=(",", ":")).encode("ascii")


def load(directory: bytes) -> SoftLayer:
    """The soft layer that lies there. Raises StateError where it is damaged or of a newer version,
    OSError."""
    with open(directory + b"/" + RECORD, "rb") as stream:
        data = stream.read(_LARGEST)
    try:
        plain = json.loads(data)
        if plain["format"] != FORMAT:
            raise StateError(
                f"the soft layer {os.fsdecode(directory)} has format {plain['format']!r}, "
                f"expected {FORMAT}",
                hint="use the version of substrate that made it",
            )
        return SoftLayer(
            layer=_count(plain["layer"]),
            number=_count(plain["number"]),
            span=str(plain["span"]),
            begun_ns=_count(plain["begun_ns"]),
            cut_ns=_count(plain["cut_ns"]),
            undoes=_count(plain["undoes"]),
            entries=tuple(_entry(e) for e in plain["entries"]),
            directory=directory,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(
            f"{os.fsdecode(directory + b'/' + RECORD)} is damaged: {error!r}",
            hint="the layer that it is of is whole: show, undo or apply that one",
            code="E-SOFT-DAMAGED",
        ) from None


def _count(found: Any) -> int:
    if type(found) is not int or found < 0:
        raise ValueError(f"{found!r} is no number of it")
    return found


def _entry(plain: Any) -> SoftEntry:
    path, mount, form, state, first_ns, whole_tree, why, seen, doubt, below = plain
    return SoftEntry(
        path=octets(path),
        mount=_count(mount),
        form=Form(form),
        state=State(state),
        first_ns=_count(first_ns),
        whole_tree=bool(whole_tree),
        why=str(why),
        seen=None if seen is None else _seen(*seen),
        doubt=str(doubt),
        below=None if below is None else _seen(*below),
    )


def _seen(kind: str, *numbers: int) -> Seen:
    inode, size, mtime_ns, ctime_ns, mode, uid, gid = numbers
    return kind, inode, size, mtime_ns, ctime_ns, mode, uid, gid


def numbers(stack: LayerStack, layer: int) -> list[int]:
    """The soft layers of a layer on the disk, in their order."""
    try:
        names = os.listdir(directory_of(stack, layer))
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if name.isdigit())


def load_all(stack: LayerStack, layer: int) -> list[SoftLayer]:
    """All soft layers of a layer, in their order. Raises StateError, OSError."""
    directory = directory_of(stack, layer)
    return [load(b"%s/%d" % (directory, number)) for number in numbers(stack, layer)]


def begin(stack: LayerStack, layer: int, name: bytes = _UNFINISHED) -> bytes:
    """An empty directory for a soft layer that is being made. One that a killed process left is
    swept. Raises OSError."""
    sweep(stack, layer, name)
    path = directory_of(stack, layer) + b"/" + name
    os.makedirs(path, mode=0o700)
    return path


def commit(unfinished: bytes, soft: SoftLayer) -> None:
    """Writes the record, and gives the soft layer its name. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(unfinished + b"/" + RECORD, flags, 0o600)
    try:
        rest = memoryview(render(soft))
        while rest:
            rest = rest[os.write(fd, rest) :]
    finally:
        os.close(fd)
    os.rename(unfinished, soft.directory)


def sweep(stack: LayerStack, layer: int, name: bytes = _UNFINISHED) -> None:
    """Removes what a killed process left of a soft layer. Raises OSError."""
    directory = directory_of(stack, layer)
    if os.path.lexists(directory + b"/" + name):
        _remove(directory, name)


def remove_without_layers(stack: LayerStack) -> None:
    """Removes the soft layers of layers that are not on the disk any more. Raises OSError."""
    top = os.path.dirname(stack.directory) + b"/" + NAME
    try:
        names = os.listdir(top)
    except FileNotFoundError:
        return
    left = False
    for name in names:
        if os.path.isdir(stack.directory + b"/" + name):
            left = True
        else:
            _remove(top, name)
    if not left:
        os.rmdir(top)


def _remove(parent: bytes, name: bytes) -> None:
    fd = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_tree(fd, name)
    finally:
        os.close(fd)
