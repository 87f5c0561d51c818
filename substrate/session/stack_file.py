"""`world/stack.json` of a session: which layers are on the world's stack, and names for states.

Without it the stack is what lies on disk, which is all that a world needs that was only ever
added to. It is written by whatever else is done to a stack: undo, rollback, squash, fork, the
apply of single commands. Replaced by rename, synced first, so a killed process leaves the old
stack or the new one. Invariants: every layer up to `known` is frozen; whatever is done to a
stack comes to the trace: the events stand in `unrecorded` from the rename until they are
synced there, and the next opening appends those that are not (restack.py). Spec: world.md §4;
docs/adr/0005.
"""

from __future__ import annotations

import os

from substrate.errors import StateError, TraceVersionError
from substrate.telemetry.trace.ids import is_session_id
from substrate.telemetry.trace.parsing import parse
from substrate.telemetry.trace.rfc8785 import CanonicalError, encode
from substrate.values import replace, value
from substrate.world.layers import LayerStack, Segment, load_layers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from substrate.session.store import SessionFiles

FORMAT = 1
NAME = b"stack.json"
_LARGEST = 16 << 20  # bytes that are read of it


@value
class SnapshotMark:
    """A named state: the layers that were on the stack. `applies`: how many applies the world
    had seen; a state before one cannot be had back while that stands."""

    name: str
    layers: tuple[int, ...]
    at_us: int
    applies: int


@value
class StackFile:
    """`layers`: on the stack, oldest first, as far as they are `known`. `elsewhere`: (last
    number, session) of a fork's base. `segments` count only in the boot `boot_id`, since
    nothing syncs them. `applies`: how many applies stand. `unrecorded`: (event type, body) of
    what the trace may lack; each body has an `op` of its own."""

    known: int = 0
    layers: tuple[int, ...] = ()
    elsewhere: tuple[tuple[int, str], ...] = ()
    segments: tuple[Segment, ...] = ()
    boot_id: str = ""
    snapshots: tuple[SnapshotMark, ...] = ()
    applies: int = 0
    unrecorded: tuple[tuple[str, dict[str, Any]], ...] = ()


EMPTY = StackFile()


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        return file.read().strip()


def load_stack_file(files: SessionFiles) -> StackFile:
    """What is written of the stack. Raises StateError, TraceVersionError for a newer format."""
    path = files.world_path + b"/" + NAME
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST)
    except FileNotFoundError:
        return EMPTY
    shown = os.fsdecode(path)
    try:
        plain = parse(data)
        if type(plain["format"]) is int and plain["format"] > FORMAT:
            raise TraceVersionError(
                f"{shown} has format {plain['format']}, this version reads up to {FORMAT}: it was "
                "made by a newer version",
                hint="update substrate, or use --fresh for a new world",
            )
        return _from_plain(plain)
    except (CanonicalError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise StateError(
            f"{shown} is damaged: {error!r}",
            hint="use --fresh for a new world; `substrate session show` still reads the trace",
        ) from error


def _from_plain(plain: dict[str, Any]) -> StackFile:
    layers = _numbers(plain["layers"])
    segments = tuple(
        Segment(identifier=_count(s["id"]), numbers=_numbers(s["layers"]), level=_count(s["level"]))
        for s in plain["segments"]
    )
    elsewhere = tuple((_count(last), session) for last, session in plain["elsewhere"])
    if not all(is_session_id(session) for _, session in elsewhere):
        raise ValueError("the base of a fork is no session")
    found = StackFile(
        known=_count(plain["known"]),
        layers=layers,
        elsewhere=elsewhere,
        segments=segments,
        boot_id=plain["boot_id"],
        snapshots=tuple(
            SnapshotMark(
                name=str(s["name"]),
                layers=_numbers(s["layers"]),
                at_us=_count(s["at_us"]),
                applies=_count(s["applies"]),
            )
            for s in plain["snapshots"]
        ),
        applies=_count(plain["applies"]),
        unrecorded=tuple((str(kind), dict(body)) for kind, body in plain["unrecorded"]),
    )
    if layers and layers[-1] > found.known:
        raise ValueError(f"layer {layers[-1]} is newer than all known ones")
    return found


def _count(found: Any) -> int:
    if type(found) is not int or found < 0:
        raise ValueError(f"{found!r} is no number of it")
    return found


def _numbers(found: Any) -> tuple[int, ...]:
    numbers = tuple(_count(number) for number in found)
    if any(a >= b for a, b in zip((0, *numbers), numbers, strict=False)):
        raise ValueError(f"{found!r} are no layers in their order")
    return numbers


def save_stack_file(files: SessionFiles, stack_file: StackFile) -> None:
    """Writes it in place of the older one. Raises OSError; the older one is there then."""
    plain = {
        "format": FORMAT,
        "known": stack_file.known,
        "layers": list(stack_file.layers),
        "elsewhere": [[last, session] for last, session in stack_file.elsewhere],
        "segments": [
            {"id": s.identifier, "layers": list(s.numbers), "level": s.level}
            for s in stack_file.segments
        ],
        "boot_id": stack_file.boot_id,
        "snapshots": [
            {"name": s.name, "layers": list(s.layers), "at_us": s.at_us, "applies": s.applies}
            for s in stack_file.snapshots
        ],
        "applies": stack_file.applies,
        "unrecorded": [[kind, body] for kind, body in stack_file.unrecorded],
    }
    path = files.world_path + b"/" + NAME
    fd = os.open(path + b".new", os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        data = memoryview(encode(plain) + b"\n")
        while data:
            data = data[os.write(fd, data) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(path + b".new", path)
    directory = os.open(files.world_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def with_stack_file(stack: LayerStack, files: SessionFiles, found: StackFile) -> LayerStack:
    """The stack as the file says and as the disk is now; segments of an earlier boot are left
    out. Raises StateError where a layer is gone.

    The layers of all sessions lie in like places: other ones are found by the session's id."""
    own = files.session_id.encode()
    segments = found.segments if found.segments and found.boot_id == boot_id() else ()
    stack = replace(
        stack,
        known=found.known,
        elsewhere=tuple(
            (last, stack.directory.replace(own, session.encode()))
            for last, session in found.elsewhere
        ),
        segments=segments,
    )
    return load_layers(stack, found.layers)
