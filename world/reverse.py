"""Reverse layers of a world: what each apply displaced, as a layer that would undo it.

Not the making (reverse_make.py) nor the use (reverse_undo.py): the form on disk, and the list.
`<world>/reverse/<n>/1/<m>/upper` is a layer over the host as the apply left it, for overlay
mount m, with the host's own ids: a whiteout for what the apply made, the displaced entry for
what it replaced or deleted, a copy with the old metadata for what it changed in place.
`<world>/reverse/<n>/applied.jsonl` (reverse_record.py) says what the apply put there. n counts
from 1 and is never used twice; `last` holds the highest.

An entry that was moved here whole keeps its attributes as they are. Where the host itself had
whiteouts or overlay marks (the layers of a container engine), `diff` of a reverse layer reads
them as its own; an undo does not, it moves the entry back.

Invariants: a reverse layer comes and goes in one rename, so a killed process leaves whole ones
only; `new` belongs to the apply whose journal is there. Spec: world.md §4.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from substrate.errors import StateError
from substrate.world.beneath import LOOKUP, open_beneath, open_root
from substrate.world.journal import load_journal
from substrate.world.layers import Layer, LayerStack, OverlayMount
from substrate.world.removal import remove_tree
from substrate.world.reverse_record import NAME as RECORD
from substrate.world.reverse_record import load_header
from substrate.world.usage import Usage

DIRECTORY = b"/reverse"
NEW, OLD, _LAST = b"new", b"old", b"last"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReverseLayer:
    """One on disk. `applied_ns`: CLOCK_REALTIME of its apply; `size_bytes`: of the disk (a file
    that has another name on the host counts, too)."""

    number: int
    applied_ns: int
    size_bytes: int


def reverse_path(world_directory: bytes, name: bytes) -> bytes:
    return world_directory + DIRECTORY + b"/" + name


def upper_path(world_directory: bytes, name: bytes, mount: int) -> bytes:
    return b"%s/1/%d/upper" % (reverse_path(world_directory, name), mount)


def reverse_stack(
    world_directory: bytes, name: bytes, mounts: Sequence[OverlayMount], xattr_prefix: bytes
) -> LayerStack:
    """The reverse layer as the one layer of a stack over the host."""
    return LayerStack(
        directory=reverse_path(world_directory, name),
        mounts=tuple(mounts),
        layers=(Layer(number=1),),
        xattr_prefix=xattr_prefix,
        started_ns=0,
        workspace=b"/",
        scratch=(),
    )


def reverse_numbers(world_directory: bytes) -> list[int]:
    """Those on disk, oldest first."""
    try:
        names = os.listdir(world_directory + DIRECTORY)
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if name.isdigit())


def list_reverse(world_directory: bytes) -> tuple[ReverseLayer, ...]:
    """The reverse layers of a world, oldest first. Raises OSError, StateError."""
    found = []
    for number in reverse_numbers(world_directory):
        path = reverse_path(world_directory, b"%d" % number)
        usage = Usage((path,))
        while not usage.done:
            usage.go_on(1.0)
        try:
            header = load_header(path)
        except FileNotFoundError:
            if os.path.isdir(path):
                raise
            continue  # it is collected right now
        found.append(
            ReverseLayer(number=number, applied_ns=header.applied_ns, size_bytes=usage.total_bytes)
        )
    return tuple(found)


def remove_reverse(world_directory: bytes, number: int) -> None:
    """Removes a reverse layer: its apply cannot be undone any more. The caller holds the
    world's lock. Raises StateError (there is none, an apply is unfinished), OSError."""
    if load_journal(world_directory) is not None:
        raise StateError(
            f"an earlier apply of {os.fsdecode(world_directory)} is unfinished",
            hint="it is finished or undone by `recover`, which runs at the next start",
            code="E-APPLY-UNFINISHED",
        )
    if number not in reverse_numbers(world_directory):
        raise no_reverse(number)
    retire(world_directory, number)


def no_reverse(number: int) -> StateError:
    return StateError(
        f"there is no reverse layer {number}: nothing is kept of what that apply displaced",
        hint="it was undone already, collected, or its apply kept none",
        code="E-NO-REVERSE",
    )


def next_number(world_directory: bytes) -> int:
    """The number of the next reverse layer; it is used up by this. Raises OSError."""
    directory = world_directory + DIRECTORY
    os.makedirs(directory, mode=0o700, exist_ok=True)
    # one write of a fixed width: who is killed leaves the old number or the new one
    fd = os.open(directory + b"/" + _LAST, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            highest = int(os.pread(fd, 21, 0) or b"0")
        except ValueError as error:
            raise StateError(
                f"{os.fsdecode(directory + b'/' + _LAST)} is damaged: {error}",
                hint="write the highest number of an apply's reverse layer into it, or 0",
            ) from error
        number = max([highest, *reverse_numbers(world_directory)]) + 1
        os.pwrite(fd, b"%020d\n" % number, 0)
    finally:
        os.close(fd)
    return number


def settle(world_directory: bytes, number: int) -> None:
    """`new` becomes layer `number`, on disk when this returns; done already if it is not
    there. Raises OSError."""
    new = reverse_path(world_directory, NEW)
    if os.path.lexists(new):
        os.rename(new, reverse_path(world_directory, b"%d" % number))
    fd = os.open(world_directory + DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def close_directories(
    world_directory: bytes, name: bytes, closed: Sequence[tuple[int, bytes, int]], *, add: int = 0
) -> None:
    """Gives directories of a layer of ours the modes that their own are, with the bits `add`;
    `closed` has the lower ones first. Raises OSError."""
    for mount, path, mode in closed if not add else reversed(closed):
        root = open_root(upper_path(world_directory, name, mount))
        try:
            fd = open_beneath(root, path, LOOKUP)
        finally:
            os.close(root)
        try:
            os.chmod(f"/proc/self/fd/{fd}", mode | add)
        finally:
            os.close(fd)


def retire(world_directory: bytes, number: int) -> None:
    """Removes a reverse layer, which is gone in one step. Raises OSError."""
    clear_away(world_directory, OLD)
    try:
        os.rename(reverse_path(world_directory, b"%d" % number), reverse_path(world_directory, OLD))
    except FileNotFoundError:
        return
    clear_away(world_directory, OLD)


def clear_away(world_directory: bytes, name: bytes) -> None:
    """Removes a directory of ours that is no layer, if it is there. Raises OSError."""
    try:
        fd = os.open(world_directory + DIRECTORY, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        remove_tree(fd, name)
    finally:
        os.close(fd)


def has_record(world_directory: bytes, name: bytes) -> bool:
    return os.path.exists(reverse_path(world_directory, name) + b"/" + RECORD)
