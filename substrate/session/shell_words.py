"""The text of `-c` in the words of a shell, as a shim was called with them.

Not what the command line of substrate itself takes (cli/arguments.py), which knows options of ours, too. It
is for what people see and for joins, and decides nothing. Source: bash(1) "OPTIONS", shell.c
(parse_long_options, parse_shell_options). Pure.
"""

from __future__ import annotations

import os

_SHELLS = frozenset((b"bash", b"sh", b"dash", b"zsh", b"rbash"))
#: long options that take a word
_TAKING = frozenset((b"init-file", b"rcfile"))


def text_of(file: bytes, argv: tuple[bytes, ...]) -> bytes | None:
    """None where it is no shell, or has no `-c`."""
    if os.path.basename(file) not in _SHELLS:
        return None
    at, has_text = 1, False
    while at < len(argv):
        word = argv[at]
        if word[:1] not in (b"-", b"+") or (len(word) == 1 and word == b"+"):
            break
        at += 1
        if word in (b"-", b"--"):
            break
        if word.startswith(b"--"):
            at += word[2:] in _TAKING
            continue
        letters = word[1:]
        has_text = has_text or (word[:1] == b"-" and b"c" in letters)
        at += letters.count(b"o") + letters.count(b"O")
    return argv[at] if has_text and at < len(argv) else None
