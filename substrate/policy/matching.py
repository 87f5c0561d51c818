"""One rule's `match`, compiled for one program, and whether an argv meets it.

Where the program has a table flags are a set and operands a row; else the words are a row. A rule that
holds back (isolate, ask, deny) is taken wide: further flags do not lead around it, its last `*` stands
for one word or more, and of two ways to read an argv one is enough. A rule that lets through (allow,
audit) is taken at its word: without a `**` no further flag is met, and both ways have to meet it.
Spec: policy.md §2.
"""

from __future__ import annotations

from substrate.policy.argv import Reading, read_pattern
from substrate.policy.globs import REST, Glob, compile_word, has_glob, meets, meets_row

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from substrate.policy.globs import Word
    from substrate.policy.programs import Table

#: how much of an argv is known: all; not the operands that follow (xargs); not even all flags
WHOLE, MORE_OPERANDS, CUT = range(3)
_ANY: Final = Glob(b"*")


class Pattern:
    """`row`: of the words behind the program's name (no table), or of operands. `first`: the literal
    that the first operand has to be; None where that may be another."""

    __slots__ = ("first", "flags", "has_paths", "has_rest", "row", "spelled", "values", "wide")

    def __init__(self, words: Sequence[bytes], table: Table | None, wide: bool) -> None:
        self.wide = wide
        self.flags: frozenset[bytes] = frozenset()
        #: flags that are required by how they are spelled: those with a glob
        self.spelled: tuple[bytes | Glob, ...] = ()
        self.values: tuple[tuple[bytes, bytes | Glob], ...] = ()
        self.has_rest = b"**" in words[1:]
        plain = list(words[1:])
        if table is not None:
            plain = self._take_flags(words, table)
        row: list[Word] = [REST if word == b"**" else compile_word(word) for word in plain]
        if wide and plain and plain[-1] == b"*":
            row[-1:] = [_ANY, REST]
        self.row = tuple(row)
        first = row[0] if row else None
        self.first = first if isinstance(first, bytes) else None
        self.has_paths = wide and any(isinstance(w, (bytes, Glob)) and _is_path(w) for w in row)

    def _take_flags(self, words: Sequence[bytes], table: Table) -> list[bytes]:
        spelled: list[bytes | Glob] = []
        others = [words[0]]
        at = 1
        while at < len(words) and words[at] != b"--":
            if (
                words[at][:1] == b"-"
                and len(words[at]) > 1
                and has_glob(words[at].partition(b"=")[0])
            ):
                spelled.append(compile_word(words[at]))
            else:
                others.append(words[at])
            at += 1
        others += words[at:]
        reading = read_pattern(others, table)
        if (
            table.commands is not None
            and reading.table is table.others
            and reading.operands[:1] in ([b"**"], [b"*"])
        ):
            # of which subcommand it is not known: a flag is what it is spelled like
            spelled += [compile_word(flag.lstrip(b"^")) for flag in reading.flags]
        else:
            self.flags = frozenset(reading.flags)
            self.values = tuple(
                (flag, compile_word(value))
                for flag, values in reading.flags.items()
                for value in values
            )
        self.spelled = tuple(spelled)
        return reading.operands

    def meets_words(self, words: Sequence[bytes], known: int) -> bool:
        """`words`: all of argv behind the program's name."""
        if not self.wide:
            return meets_row(self.row, words) and (known == WHOLE or self.row[-1:] == (REST,))
        return meets_row(self.row, words, known != WHOLE)

    def meets_reading(self, reading: Reading, known: int, cwd: bytes) -> bool:
        if not self.wide:
            if known != WHOLE and not self.has_rest:
                return False
            other = reading.other
            return self._meets(reading, WHOLE) and (other is None or self._meets(other, WHOLE))
        if self._meets(reading, known):
            return True
        if reading.other is not None and self._meets(reading.other, known):
            return True
        if self.has_paths and self._has_flags(reading, known):
            plain = [plain_path(word, cwd) for word in reading.operands]
            return meets_row(self.row, plain, known != WHOLE)
        return False

    def _meets(self, reading: Reading, known: int) -> bool:
        return self._has_flags(reading, known) and meets_row(
            self.row, reading.operands, known != WHOLE
        )

    def _has_flags(self, reading: Reading, known: int) -> bool:
        flags = reading.flags
        if known == CUT:
            return True
        if not self.flags <= flags.keys():
            return False
        for flag, pattern in self.values:
            if not any(meets(pattern, value) for value in flags[flag]):
                return False
        if self.spelled and not self._are_spelled(reading):
            return False
        if self.wide or self.has_rest or len(self.flags) == len(flags):
            return True
        return all(flag in self.flags or self._is_spelled(reading, flag) for flag in flags)

    def _are_spelled(self, reading: Reading) -> bool:
        return all(
            any(
                meets(pattern, spelling)
                for flag in reading.flags
                for spelling in reading.spellings(flag)
            )
            for pattern in self.spelled
        )

    def _is_spelled(self, reading: Reading, flag: bytes) -> bool:
        spellings = reading.spellings(flag)
        return any(meets(pattern, spelling) for pattern in self.spelled for spelling in spellings)


def _is_path(word: bytes | Glob) -> bool:
    return (word if isinstance(word, bytes) else word.source)[:1] == b"/"


def plain_path(word: bytes, cwd: bytes) -> bytes:
    """An absolute path without `.`, `..` and double slashes, by its text alone; a word that is no
    path as it is."""
    if b"/" not in word and word not in (b".", b".."):
        return word
    parts: list[bytes] = []
    for part in (word if word[:1] == b"/" else cwd + b"/" + word).split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/" + b"/".join(parts)
