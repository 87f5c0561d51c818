"""Paths and patterns that a person gives to a verb, and which changes they mean.

A path means itself and all below it; relative ones are below the current directory. A pattern
means what it matches and all below that: without a slash any single name (`*.pyc`), with one the
path from the current directory, or from the root where it begins with it; `*`, `?` and `[…]` stay
within a name, `**` does not (gitignore(5) "PATTERN FORMAT"). Pure but for the current directory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

from substrate.errors import UsageError
from substrate.session.workspace import current_directory
from substrate.world.scope import is_within

Selector = Callable[[bytes], bool]


def absolute(paths: Sequence[str]) -> tuple[bytes, ...]:
    """The paths as the world sees them. The directory is resolved, as in a world's own paths;
    the last part is not, since it may be a symlink that is to be applied."""
    cwd = current_directory()
    found = []
    for path in paths:
        whole = os.path.normpath(os.path.join(cwd, os.fsencode(path)))
        directory, name = os.path.split(whole)
        found.append(os.path.join(os.path.realpath(directory), name) if name else whole)
    return tuple(found)


def selector(
    paths: Sequence[bytes], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Selector | None:
    """Whether a changed path is meant: in one of `paths` or matched by one of `include`, where
    there are any, and matched by none of `exclude`. None where all are meant. Raises UsageError
    for a pattern that is none."""
    if not (paths or include or exclude):
        return None
    wanted = [pattern(text) for text in include]
    unwanted = [pattern(text) for text in exclude]

    def is_meant(path: bytes) -> bool:
        if any(match(path) for match in unwanted):
            return False
        if not (paths or wanted):
            return True
        return any(is_within(path, each) for each in paths) or any(m(path) for m in wanted)

    return is_meant


def pattern(text: str) -> Selector:
    """What a pattern matches: absolute paths, and all below what it matches. A mere name matches at
    every depth, but not directories in which the current one lies: all there would match."""
    here: list[bytes] = []
    raw = os.fsencode(text)
    if not raw.strip(b"/"):
        raise UsageError(f"{text!r} is no pattern", hint="for example: --include '*.py'")
    if b"/" not in raw.rstrip(b"/") and raw.rstrip(b"/") not in (b".", b".."):
        start, raw = b"(?:.*/)?", raw.rstrip(b"/")
        here = current_directory().split(b"/")
    else:
        base = [] if raw.startswith(b"/") else current_directory().split(b"/")
        parts: list[bytes] = []
        for part in raw.split(b"/"):
            if part == b"..":
                del (parts or base)[-1:]
            elif part not in (b"", b"."):
                parts.append(part)
        above = b"".join(b"/" + name for name in base if name)
        start, raw = re.escape(above), b"/" + b"/".join(parts) if parts else b""
    try:
        whole = re.compile(start + _translate(raw) + b"(?:/.*)?", re.DOTALL)
    except re.error as error:
        raise UsageError(f"{text!r} is no pattern: {error}", hint="quote it") from error
    return lambda path: whole.fullmatch(_beyond(path, here)) is not None


def _beyond(path: bytes, here: list[bytes]) -> bytes:
    """What of an absolute path is not the way to `here` too."""
    parts = path.split(b"/")
    shared = 0
    while shared < min(len(parts), len(here)) and parts[shared] == here[shared]:
        shared += 1
    return b"/" + b"/".join(parts[shared:]) if shared else path


def _translate(raw: bytes) -> bytes:
    """A pattern as a regular expression."""
    found, at = b"", 0
    while at < len(raw):
        letter = raw[at : at + 1]
        at += 1
        if raw.startswith(b"**/", at - 1):
            found += b"(?:.*/)?"
            at += 2
        elif raw.startswith(b"**", at - 1):
            found += b".*"
            at += 1
        elif letter == b"*":
            found += b"[^/]*"
        elif letter == b"?":
            found += b"[^/]"
        elif letter == b"[" and (end := raw.find(b"]", at + 1)) > 0:
            inside = raw[at:end].replace(b"\\", b"\\\\")
            if inside.startswith(b"!"):
                inside = b"^" + inside[1:]
            found += b"(?!/)[" + inside.replace(b"[", b"\\[") + b"]"
            at = end + 1
        elif letter == b"\\" and at < len(raw):
            found += re.escape(raw[at : at + 1])
            at += 1
        else:
            found += re.escape(letter)
    return found
