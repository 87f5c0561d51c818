"""One rule's `match`, compiled for one program, and whether an argv meets it.

Where the program has a table flags are a set and operands a row; else the words are a row. A rule that
holds back (isolate, ask, deny) is taken wide: further flags do not lead around it, its last `*` stands
for one word or more, and of two ways to read an argv one is enough. A rule that lets through (allow,
audit) is taken at its word: without a `**` no further flag is met, and both ways have to meet it.
Spec: policy.md §2.
"""

from __future__ import annotations

from substrate.policy import steps
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
#: bytes of the operands of one argv, made plain
_MOST_PLAIN: Final = 8 << 20


class Pattern:
    """`row`: of the words behind the program's name (no table), or of operands. `head`: where
    these are literals, but perhaps a rest (`is_open`)."""

    __slots__ = (
        *(
            "a_flag",
            "flags",
            "has_paths",
            "has_rest",
            "head",
            "is_open",
            "row",
            "spelled",
            "values",
            "wide",
        ),
    )

    def __init__(self, words: Sequence[bytes], table: Table | None, wide: bool) -> None:
        self.wide = wide
        self.flags: frozenset[bytes] = frozenset()
        self.a_flag: bytes | None = None
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
        #: the literals that a row begins with, where there is nothing behind them but any rest
        self.head: list[bytes] | None = None
        self.is_open = bool(row) and row[-1] is REST
        literals = [word for word in row if isinstance(word, bytes)]
        if len(literals) == len(row) - self.is_open:
            self.head = literals
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
        flags = dict(reading.flags)
        if table.commands is not None and reading.operands[:1] in ([b"**"], [b"*"]):
            # of which subcommand is not known: a flag that is none of the program is what it looks like
            for flag in [flag for flag in flags if flag not in table.spellings]:
                del flags[flag]
                spelled.append(compile_word(flag.lstrip(b"^")))
        self.flags = frozenset(flags)
        self.values = tuple(
            (flag, compile_word(value)) for flag, values in flags.items() for value in values
        )
        self.spelled = tuple(spelled)
        #: one of those that have to be there, to be looked at first
        self.a_flag = min(self.flags) if self.flags else None
        return reading.operands

    def meets_words(self, words: Sequence[bytes], known: int) -> bool:
        """`words`: all of argv behind the program's name."""
        if not self.wide:
            return self._is_row(list(words), False) and (known == WHOLE or self.is_open)
        return self._is_row(list(words), known != WHOLE)

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
            return self._is_row(plain_operands(reading, cwd), known != WHOLE)
        return False

    def _meets(self, reading: Reading, known: int) -> bool:
        return self._has_flags(reading, known) and self._is_row(reading.operands, known != WHOLE)

    def _is_row(self, words: list[bytes], more: bool) -> bool:
        head = self.head
        if head is None:
            return meets_row(self.row, words, more)
        count = len(head)
        if len(words) <= count:
            return words == head or (more and words == head[: len(words)])
        return self.is_open and words[:count] == head

    def _has_flags(self, reading: Reading, known: int) -> bool:
        flags = reading.flags
        if known == CUT:
            return True
        if not self.flags <= flags.keys():
            return False
        for flag, pattern in self.values:
            steps.take(len(flags[flag]))
            if not any(meets(pattern, value) for value in flags[flag]):
                return False
        if self.spelled and not (flags and self._are_spelled(reading)):
            return False
        if self.wide or self.has_rest or len(self.flags) == len(flags):
            return True
        steps.take(len(self.spelled) * len(flags))
        return all(flag in self.flags or self._is_spelled(reading, flag) for flag in flags)

    def _are_spelled(self, reading: Reading) -> bool:
        steps.take(len(self.spelled) * len(reading.flags))
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


def plain_operands(reading: Reading, cwd: bytes) -> list[bytes]:
    """Raises steps.Spent where they would take too much memory: a long directory for each of many words."""
    if reading.plain is None:
        base = _plain_path(b"/" + cwd, b"/")
        # the same word has one result: an argv of a thousand dots costs no thousand directories
        made: dict[bytes, bytes] = {}
        room = _MOST_PLAIN
        for word in reading.operands:
            if word not in made:
                found = made[word] = _plain_path(word, base)
                room -= len(found)
                if room < 0:
                    raise steps.Spent
        reading.plain = [made[word] for word in reading.operands]
    return reading.plain


def plain_path(word: bytes, cwd: bytes) -> bytes:
    """An absolute path without `.`, `..` and double slashes, by its text alone; a word that is no
    path as it is."""
    return _plain_path(word, b"/" if word[:1] == b"/" else _plain_path(b"/" + cwd, b"/"))


def _plain_path(word: bytes, base: bytes) -> bytes:
    """The same, below a directory that is plain already: steps in proportion to the word."""
    if b"/" not in word and word not in (b".", b".."):
        return word
    parts: list[bytes] = []
    up = 0
    for part in word.split(b"/"):
        if part == b"..":
            if parts:
                parts.pop()
            else:
                up += 1
        elif part not in (b"", b"."):
            parts.append(part)
    if word[:1] == b"/":
        base = b"/"
    while up and base != b"/":
        base = base.rpartition(b"/")[0] or b"/"
        up -= 1
    rest = b"/".join(parts)
    if not rest:
        return base
    return b"/" + rest if base == b"/" else base + b"/" + rest
