"""How an argv was read, for `policy check` and `policy explain`: what the rules were matched with.

Nothing is decided here. Spec: policy.md §2, §5.
"""

from __future__ import annotations

from substrate.policy.argv import read
from substrate.policy.matching import CUT, MORE_OPERANDS
from substrate.policy.names import names_of
from substrate.policy.programs import find_table
from substrate.policy.reading_as import parts_of
from substrate.policy.rules import Subject
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from substrate.policy.reading_as import Part


@value
class Explained:
    """One command line that was matched. `how`: `given`, `interpreter` (of a script), `exec` (a wrapper
    execs it, or an interpreter is given it as a file), `in process` (another name of what the same process does) or `builtin` (of a shell).
    `names`: that rules for it may have. `table`: whose options it was read by; None: word by word,
    then `flags` is empty and `operands` are all its words. `notes`: what could not be read."""

    argv: tuple[bytes, ...]
    how: str
    depth: int
    names: tuple[bytes, ...]
    table: bytes | None
    flags: tuple[tuple[bytes, tuple[bytes, ...]], ...]
    operands: tuple[bytes, ...]
    notes: tuple[str, ...]


def explain_reading(argv: Sequence[bytes], cwd: bytes = b"/") -> tuple[Explained, ...]:
    """The first one is the command as it was given, what is in it follows."""
    return explain_subject(Subject(argv=tuple(argv), cwd=cwd))


def explain_subject(subject: Subject) -> tuple[Explained, ...]:
    return tuple(_explain(part) for part in parts_of(subject))


def _explain(part: Part) -> Explained:
    table = find_table(part.main)
    flags: tuple[tuple[bytes, tuple[bytes, ...]], ...] = ()
    operands = part.argv[1:]
    notes = list(_notes(part))
    if table is not None:
        reading = read(part.argv, table)
        flags = tuple(
            (flag.lstrip(b"^"), tuple(values)) for flag, values in sorted(reading.flags.items())
        )
        operands = tuple(reading.operands)
        if reading.unknown:
            words = " ".join(word.decode("utf-8", "backslashreplace") for word in reading.unknown)
            notes.append(f"options that {table.name.decode()} is not known to have: {words}")
        if reading.other is not None:
            notes.append(
                "read with and without values for them, a rule that holds back is met by either"
            )
    return Explained(
        argv=part.argv,
        how=part.how,
        depth=part.depth,
        names=names_of(part.main),
        table=table.name if table is not None else None,
        flags=flags,
        operands=operands,
        notes=tuple(notes),
    )


def _notes(part: Part) -> list[str]:
    notes = []
    if part.known == MORE_OPERANDS:
        notes.append("further operands follow that are not known yet")
    if part.known == CUT:
        notes.append(
            "it goes on, and what follows is not known: a rule that holds back is met if it could be"
        )
    if part.too_deep:
        notes.append("commands in commands, too deep to be read")
    if part.is_cut:
        notes.append(
            "there is more in it than is read: where no gate sees what it runs it is asked about, and an agent's"
            " hook denies it, if anything is held back at all"
        )
    elif part.unclear:
        notes.append(
            "not all of it could be read for sure; what really runs is decided when it does"
        )
    return notes
