"""`world/stack.json` of a session: which layers are on the world's stack, and names for states.

Without it the stack is what lies on disk, which is all that a world needs that was only ever
added to. It is written by whatever else is done to a stack: undo, rollback, squash, fork, the
apply of single commands. Replaced by rename, synced first, so a killed process leaves the old
stack or the new one. Invariants: every layer up to `known` is frozen; whatever is done to a
stack comes to the trace: the events stand in `unrecorded` from the rename until they are
synced there, and the next opening appends those that are not (restack.py). What an apply will
make of the stack is `intended` from before it touches the host until it is the stack; a world
that is to be over has its `ending` here before its end is recorded. Spec: world.md §4;
docs/adr/0005.
"""

from __future__ import annotations

import os
from itertools import pairwise

from substrate.errors import StateError, TraceVersionError
from substrate.session.store import write_whole
from substrate.telemetry.trace.ids import is_session_id
from substrate.telemetry.trace.parsing import parse
from substrate.telemetry.trace.rfc8785 import CanonicalError, encode
from substrate.values import replace, value
from substrate.world.layers import LayerStack, Segment, load_layers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from substrate.session.store import SessionFiles

FORMAT = 1
NAME = b"stack.json"
#: none, or a state of world_file.py
_ENDINGS = ("", "open", "applied", "discarded")
_LARGEST = 16 << 20  # bytes that are read of it


@value
class SnapshotMark:
    """A named state: the layers that were on the stack. `applies`: the newest apply that stood
    (0: none); the state cannot be had back while another one does."""

    name: str
    layers: tuple[int, ...]
    at_us: int
    applies: int


@value
class Intended:
    """What becomes of the stack when the apply whose journal is there has come to its end.
    `event`: (type, body with its `op`)."""

    layers: tuple[int, ...]
    applies: int
    ending: str
    event: tuple[str, dict[str, Any]]


@value
class StackFile:
    """`layers`: on the stack, oldest first, as far as they are `known`. `elsewhere`: (last
    number, session) of a fork's base. `segments` count only in the boot `boot_id`, since
    nothing syncs them. `applies`: the number of the newest apply that stands, 0 where none does;
    one that was undone gives its number away again only where no snapshot knows it. `applies_below`:
    those that stand below it, oldest first. `unrecorded`: (event type, body) of
    what the trace may lack; each body has an `op` of its own. `ending`: the state of world_file.py
    that the world is to have, whoever opens it next; "" while it goes on."""

    known: int = 0
    layers: tuple[int, ...] = ()
    elsewhere: tuple[tuple[int, str], ...] = ()
    segments: tuple[Segment, ...] = ()
    boot_id: str = ""
    snapshots: tuple[SnapshotMark, ...] = ()
    applies: int = 0
    applies_below: tuple[int, ...] = ()
    unrecorded: tuple[tuple[str, dict[str, Any]], ...] = ()
    intended: Intended | None = None
    ending: str = ""


EMPTY = StackFile()


def next_apply(stack_file: StackFile) -> int:
    """The number of an apply that is to come."""
    return max((stack_file.applies, *(mark.applies for mark in stack_file.snapshots))) + 1


def apply_below(stack_file: StackFile) -> int:
    """The newest apply that stands when the last one is undone; 0 for none."""
    return max(stack_file.applies_below, default=0)


def with_applies(stack_file: StackFile, newest: int) -> StackFile:
    """With `newest` as the last apply that stands: one that came, or is left after an undo."""
    standing = (*stack_file.applies_below, stack_file.applies)
    below = tuple(n for n in standing if 0 < n < newest)
    return replace(stack_file, applies=newest, applies_below=below)


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
        version = plain["format"]
        if type(version) is int and version > FORMAT:
            raise TraceVersionError(
                f"{shown} has format {version}, this version reads up to {FORMAT}: it was "
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
    if _count(plain["format"]) != FORMAT:
        raise ValueError(f"{plain['format']!r} is no format")
    known = _count(plain["known"])
    elsewhere = tuple((_count(last), _session(base)) for last, base in _list(plain["elsewhere"]))
    _in_order([last for last, _ in elsewhere], known)
    segments = tuple(
        Segment(
            identifier=_count(s["id"], least=1),  # 0 is the host
            numbers=_numbers(s["layers"], known),
            level=_count(s["level"]),
        )
        for s in _list(plain["segments"])
    )
    snapshots = tuple(
        SnapshotMark(
            name=_text(s["name"]),
            layers=_numbers(s["layers"], known),
            at_us=_count(s["at_us"]),
            applies=_count(s["applies"]),
        )
        for s in _list(plain["snapshots"])
    )
    for names in ([s.identifier for s in segments], [s.name for s in snapshots]):
        if len(set(names)) != len(names):
            raise ValueError(f"{names!r} are not distinct")
    unrecorded = tuple((_text(kind), dict(body)) for kind, body in _list(plain["unrecorded"]))
    for _, body in unrecorded:
        _text(body["op"])
    return StackFile(
        known=known,
        layers=_numbers(plain["layers"], known),
        elsewhere=elsewhere,
        segments=segments,
        boot_id=_text(plain["boot_id"]),
        snapshots=snapshots,
        applies=_count(plain["applies"]),
        applies_below=_below(plain),
        unrecorded=tuple(_event(found) for found in _list(plain["unrecorded"])),
        intended=_intended(plain["intended"], known),
        ending=_ending(plain["ending"]),
    )


def _list(found: Any) -> list[Any]:
    if type(found) is not list:
        raise ValueError(f"{found!r} is no list")
    return found


def _event(found: Any) -> tuple[str, dict[str, Any]]:
    kind, body = _list(found)
    _text(body["op"])
    return _text(kind), dict(body)


def _below(plain: dict[str, Any]) -> tuple[int, ...]:
    """An older version counted the applies that stand, without a number for each."""
    newest = _count(plain["applies"])
    if "applies_below" not in plain:
        return tuple(range(1, newest))
    return _numbers(plain["applies_below"], max(0, newest - 1))


def _intended(found: Any, known: int) -> Intended | None:
    if found is None:
        return None
    return Intended(
        layers=_numbers(found["layers"], known),
        applies=_count(found["applies"]),
        ending=_ending(found["ending"]),
        event=_event(found["event"]),
    )


def _ending(found: Any) -> str:
    if found not in _ENDINGS:
        raise ValueError(f"{found!r} is no state of a world")
    return str(found)


def _count(found: Any, *, least: int = 0) -> int:
    if type(found) is not int or found < least:
        raise ValueError(f"{found!r} is no number of it")
    return found


def _text(found: Any) -> str:
    if type(found) is not str:
        raise ValueError(f"{found!r} is no text")
    return found


def _session(found: Any) -> str:
    if not is_session_id(_text(found)):
        raise ValueError(f"{found!r} is no session, so it is no base of a fork")
    return str(found)


def _numbers(found: Any, known: int) -> tuple[int, ...]:
    """Layers, oldest first, as far as they are known."""
    numbers = tuple(_count(number, least=1) for number in _list(found))
    _in_order(numbers, known)
    return numbers


def _in_order(numbers: Sequence[int], known: int) -> None:
    if any(a >= b for a, b in pairwise(numbers)):
        raise ValueError(f"{list(numbers)!r} are no layers in their order")
    if numbers and numbers[-1] > known:
        raise ValueError(f"layer {numbers[-1]} is newer than all known ones")


def save_stack_file(files: SessionFiles, stack_file: StackFile) -> None:
    """Writes it in place of the older one. Raises OSError (`write_whole`)."""
    intended = stack_file.intended
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
        "applies_below": list(stack_file.applies_below),
        "unrecorded": [[kind, body] for kind, body in stack_file.unrecorded],
        "ending": stack_file.ending,
        "intended": None
        if intended is None
        else {
            "layers": list(intended.layers),
            "applies": intended.applies,
            "ending": intended.ending,
            "event": list(intended.event),
        },
    }
    write_whole(files.world_path + b"/" + NAME, encode(plain) + b"\n", sync=True)


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
