"""Reads an argv by its program's table: which flags are set, which words are operands.

Not a parser of any one program: where a table does not know an option it says so, and gives the
other way to read it too (`other`), with the word behind each unknown long option as its value. Invariants:
reading never raises, is linear in the words, and two argv that differ only in the order or the
spelling of flags that a table knows read the same. Spec: policy.md §2.
"""

from __future__ import annotations

from substrate.policy.programs import Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_DASH, _PLUS = b"-+"


class Reading:
    """`flags`: by their first spelling, with the values that they were given (those behind a
    subcommand have a `^` in front). `operands`: in their order, a subcommand
    first. `first_operand`: where in argv that one stands, len(argv) where there is none."""

    __slots__ = ("first_operand", "flags", "operands", "other", "plain", "table", "unknown")

    def __init__(self, table: Table) -> None:
        #: of the last subcommand
        self.table = table
        self.flags: dict[bytes, list[bytes]] = {}
        self.operands: list[bytes] = []
        self.first_operand = -1
        self.unknown: list[bytes] = []
        self.other: Reading | None = None
        #: `operands`, with paths made plain; None before somebody asks
        self.plain: list[bytes] | None = None

    def spellings(self, flag: bytes) -> tuple[bytes, ...]:
        return self.table.spellings.get(flag, (flag,))


def read(argv: Sequence[bytes], table: Table) -> Reading:
    """argv[0] is not looked at."""
    reading = _read(argv, table, False)
    if reading.unknown and any(word.startswith(b"--") for word in reading.unknown):
        reading.other = _read(argv, table, True)
    return reading


def read_pattern(words: Sequence[bytes], table: Table) -> Reading:
    """Of a rule's words: `**` is an operand that ends nothing, and no option's value."""
    return _read(words, table, False, b"**")


def _read(argv: Sequence[bytes], table: Table, unknown_takes: bool, rest: bytes = b"") -> Reading:
    reading = Reading(table)
    operands, flags = reading.operands, reading.flags
    at, count = 1, len(argv)
    options = True
    since = 0
    if table.first_bundle and count > 1 and argv[1] and argv[1][:1] not in (b"-", b"*"):
        at = _read_bundle(argv, 1, b"-" + argv[1], reading, rest, detached=True)
    while at < count:
        word = argv[at]
        if (
            not options
            or len(word) < 2
            or (word[0] != _DASH and not (table.plus and word[0] == _PLUS))
        ):
            at += 1
            if table.toolchain and not operands and word[:1] == b"+":
                continue
            if reading.first_operand < 0:
                reading.first_operand = at - 1
            operands.append(word)
            if not options or word == rest:
                continue
            if table.commands is not None and len(operands) == since + 1:
                if table.renamed.get(word) == b"":  # `container` of `docker container run`
                    operands.pop()
                    continue
                table = reading.table = _enter(table, word, operands)
                since += 1
            elif table.stops and len(operands) >= since + table.stops:
                options = False
        elif word == b"--":
            options = False
            at += 1
        elif word[0] == _DASH and (word[1] == _DASH or table.single):
            at = _read_long(argv, at, reading, unknown_takes, rest)
            if table.ending and not table.ending.isdisjoint(flags):
                options = False
        else:
            at = _read_bundle(argv, at, word, reading, rest, detached=table.detached)
            if table.ending and not table.ending.isdisjoint(flags):
                options = False
    if reading.first_operand < 0:
        reading.first_operand = count
    return reading


def _read_long(
    argv: Sequence[bytes], at: int, reading: Reading, unknown_takes: bool, rest: bytes
) -> int:
    """`--name`, `--name=value`, `--name value`; gives where to go on."""
    table, word = reading.table, argv[at]
    name, equals, value = word.partition(b"=")
    flag = table.flags.get(name)
    if flag is None and table.abbreviates:
        flag = table.complete(name)
    at += 1
    following = argv[at] if at < len(argv) and argv[at] != rest else None
    if flag is None:
        reading.unknown.append(word)
        flag = name
        takes = unknown_takes and following is not None and following[:1] != b"-"
    else:
        takes = flag in table.valued or (
            flag in table.numeric and following is not None and following.isdigit()
        )
    values = reading.flags.setdefault(flag, [])
    if equals:
        values.append(value)
    elif takes and following is not None:
        values.append(following)
        at += 1
    return at


def _enter(table: Table, word: bytes, operands: list[bytes]) -> Table:
    """The table of a subcommand."""
    operands[-1] = word = table.renamed.get(word, word)
    return (table.commands or {}).get(word) or table.others


def _read_bundle(
    argv: Sequence[bytes],
    at: int,
    word: bytes,
    reading: Reading,
    rest: bytes,
    detached: bool = False,
) -> int:
    """`-rf`, `-n5`, `-n 5`; gives where to go on. `detached`: as tar's `xzf`, where values are words
    of their own."""
    table, flags = reading.table, reading.flags
    at += 1
    place, end = 1, len(word)
    while place < end:
        letter = word[place : place + 1]
        place += 1
        flag = table.flags.get(b"-" + letter)
        if flag is None:
            reading.unknown.append(word[:1] + letter)
            flags.setdefault(word[:1] + letter, [])
            continue
        # `+e` takes back what `-e` sets
        values = flags.setdefault(b"+" + letter if word[0] == _PLUS else flag, [])
        if flag in table.valued or (
            flag in table.numeric and place == end and _is_number(argv, at)
        ):
            if place < end and not detached:
                values.append(word[place:])
                return at
            if at < len(argv) and argv[at] != rest:
                values.append(argv[at])
                at += 1
        elif flag in table.optional and place < end and not detached:
            values.append(word[place:])
            return at
    return at


def _is_number(argv: Sequence[bytes], at: int) -> bool:
    return at < len(argv) and argv[at].isdigit()
