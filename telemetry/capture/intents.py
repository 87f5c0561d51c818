"""What a call does to what it names, as a word; flags and results as text. Logic only.

Sources: open(2), <asm-generic/fcntl.h>, errno(3).
"""

from __future__ import annotations

import errno
import os

from substrate.telemetry.capture import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: intents of rows, beside calls.INTENTS: what an open is for
READS: Final = frozenset(("read", "list", "look", "exec"))
CHANGES: Final = frozenset(
    ("write", "readwrite", "create", "delete", "rename", "link", "meta"),
)
UNOBSERVED: Final = "unobserved"

_O_PATH: Final = 0o10000000
_O_TMPFILE: Final = 0o20000000
_ACCESS: Final = ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")
_FLAGS: Final = tuple(
    (bit, name)
    for name in (
        *("O_CREAT", "O_EXCL", "O_NOCTTY", "O_TRUNC", "O_APPEND", "O_NONBLOCK", "O_DSYNC"),
        *("O_DIRECT", "O_LARGEFILE", "O_DIRECTORY", "O_NOFOLLOW", "O_NOATIME", "O_CLOEXEC"),
    )
    if (bit := getattr(os, name, 0))
) + ((_O_PATH, "O_PATH"),)


def open_intent(flags: int) -> str:
    """What an open with these flags is for: `look` where it can neither read nor write."""
    if flags & _O_PATH:
        return "look"
    if flags & _O_TMPFILE:
        return "create"
    if flags & (os.O_CREAT | os.O_EXCL) == os.O_CREAT | os.O_EXCL:
        return "create"
    access = flags & 3
    if access == os.O_WRONLY:
        return "write"
    if access == os.O_RDONLY and not flags & os.O_TRUNC:
        if flags & os.O_CREAT:
            return "readwrite"  # it may have made the file
        return "list" if flags & os.O_DIRECTORY else "read"
    return "write" if flags & os.O_TRUNC else "readwrite"


def open_flags(flags: int) -> str:
    """`O_WRONLY|O_CREAT`; bits without a name in hexadecimal."""
    names = [_ACCESS[flags & 3]]
    rest = flags & ~3 & 0xFFFFFFFF
    if rest & _O_TMPFILE:
        names.append("O_TMPFILE")
        rest &= ~(_O_TMPFILE | os.O_DIRECTORY)
    for bit, name in _FLAGS:
        if rest & bit:
            names.append(name)
            rest &= ~bit
    if rest:
        names.append(hex(rest))
    return "|".join(names)


def result_text(result: int) -> int | str:
    """A result as a row has it: the number, or the name of the error; hexadecimal where it is an
    address or too large for a line."""
    if -4096 < result < 0:
        return errno.errorcode.get(-result, f"E{-result}")
    return result if abs(result) < 1 << 53 else hex(result)


def word(intent: int) -> str:
    """The word of an intent of a shape."""
    return calls.INTENTS[intent]


#: renameat2(2)
_RENAME_FLAGS: Final = ((1, "RENAME_NOREPLACE"), (2, "RENAME_EXCHANGE"), (4, "RENAME_WHITEOUT"))


def rename_flags(flags: int) -> str | None:
    """Their names as renameat2(2) has them, None for none."""
    return "|".join(name for bit, name in _RENAME_FLAGS if flags & bit) or None
