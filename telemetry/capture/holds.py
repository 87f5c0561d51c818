"""What a backend asks about an exec that it holds, and what came of it: HOLD and GATE records as values.

For whoever answers: the supervisor's side of a gate. Nothing is decided here, and nothing is looked
up: bytes are as the process gave them, or as the kernel told them when it was looked at.
"""

from __future__ import annotations

from substrate.telemetry.capture import gate, records
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    #: answers with gate.ALLOW or gate.DENY; gate.ASK: not yet, by `answer` of the backend
    Ask = Callable[["Hold"], int]


@value
class Hold:
    """An exec that waits for an answer."""

    number: int
    tid: int
    path: bytes
    #: of the directory that `path` is relative to; None for the working directory
    base: bytes | None
    argv: tuple[bytes, ...]
    #: argv is longer than `argv` (records.MOST_ARGV)
    cut: bool
    #: the kernel's path of the file, then of the interpreters that first lines name; it ends in
    #: " (deleted)" for what has no name any more, or never had one
    programs: tuple[bytes, ...]
    #: of a script: the words that the kernel puts before its name
    before: tuple[bytes, ...] = ()


@value
class Gated:
    """An exec that was decided. `number`: of its hold, 0 where there was none. `decision` and
    `reason`: words of gate.py."""

    number: int
    decision: str
    reason: str
    path: bytes
    argv: tuple[bytes, ...]


def parse_gated(head: tuple[int, ...], path: bytes, argv: bytes) -> Gated:
    """The value of a GATE record; what it says that has no word is a denial."""
    decision, reason = head[7], head[9]
    return Gated(
        number=head[8],
        decision=gate.DECISIONS[decision] if 0 < decision < len(gate.DECISIONS) else "deny",
        reason=gate.REASONS[reason] if 0 < reason < len(gate.REASONS) else "unknown",
        path=path,
        argv=tuple(argv.split(b"\0")[:-1]),
    )


def parse_hold(head: tuple[int, ...], data: bytes, at: int, end: int) -> Hold:
    """The value of a HOLD record, by what records.read_records gave. Raises records.Torn."""
    path = b""
    base = None
    argv: tuple[bytes, ...] = ()
    programs = []
    before: tuple[bytes, ...] = ()
    cut = bool(head[2] & records.CUT)
    for tag, more, text in records.read_items(data, at, end):
        if tag == records.PATH:
            path = text
        elif tag == records.BASE:
            base = text
        elif tag == records.ARGV:
            argv = tuple(text.split(b"\0")[:-1])
            cut = cut or bool(more)
        elif tag == records.DATA:
            before = tuple(text.split(b"\0")[:-1])
        elif tag in (records.EXE, records.OPENED):
            programs.append(text)
    return Hold(
        number=head[8],
        tid=head[4],
        path=path,
        base=base,
        argv=argv,
        cut=cut,
        programs=tuple(programs),
        before=before,
    )
