"""What a backend asks about an exec that it holds: a HOLD record as a value.

For whoever answers: the supervisor's side of a gate. Nothing is decided here, and nothing is looked
up: bytes are as the process gave them, or as the kernel told them when it was looked at.
"""

from __future__ import annotations

from substrate.telemetry.capture import records
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
    #: the kernel's path of the file, then of the interpreters that first lines name
    programs: tuple[bytes, ...]
    #: of a script: the words that the kernel puts before its name
    before: tuple[bytes, ...] = ()


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
