"""What substrate says on standard error: one line each, coloured only for people.

Hot path: no rich, no click. Invariant: saying something never fails a run; where nobody reads
standard error, nothing is said. Sources: https no-color convention (NO_COLOR), console_codes(4).
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.errors import SubstrateError

_RED, _YELLOW, _DIM, _PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"


def has_colour(fd: int) -> bool:
    """Whether to colour what goes to `fd`: FORCE_COLOR, else a terminal without NO_COLOR."""
    environ = os.environb
    if environ.get(b"NO_COLOR"):
        return False
    if environ.get(b"FORCE_COLOR", b"0") not in (b"0", b""):
        return True
    return environ.get(b"TERM") != b"dumb" and _is_terminal(fd)


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def say(text: str, colour: str = "") -> None:
    """A line on standard error. Control characters of others' text are shown, not obeyed."""
    start, end = (colour, _PLAIN) if colour and has_colour(2) else ("", "")
    line = f"{start}{visible(text)}{end}\n"
    try:
        os.write(2, line.encode("utf-8", "surrogateescape"))
    except OSError:
        return  # nobody reads it


def visible(text: str) -> str:
    """The text with control characters as escapes: a file's name cannot act on a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def say_error(error: SubstrateError) -> None:
    """`substrate: message`, and what to do next."""
    say(f"substrate: {error}", _RED)
    if error.hint:
        say(f"hint: {error.hint}", _DIM)


def warn(text: str) -> None:
    say(f"substrate: warning: {text}", _YELLOW)
