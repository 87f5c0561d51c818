"""What the owner of a directory of shims wrote there (`.substrate-shims`), for the stub.

Lines: `substrate-shims 1`, then `fail closed` or `fail open` (what is done where no supervisor can be
asked), `substrate PATH` (the command that runs a shell where no session is). Invariant: a file that
others could have written says nothing, and then a shim fails closed. Spec: shell.md §3.
"""

from __future__ import annotations

import os
import stat

from substrate.shim.original import MARKER

_HEAD = b"substrate-shims 1\n"
#: the directory may be put in place of another one in just this moment, whose files go (place.py)
_LOOKS = 5


class Written:
    """`substrate`: absolute path, empty where unknown."""

    __slots__ = ("fail_open", "substrate")

    def __init__(self, *, fail_open: bool, substrate: bytes) -> None:
        self.fail_open, self.substrate = fail_open, substrate


def load_written(directory: bytes) -> Written:
    """Never raises: what cannot be read is what fails closed."""
    content = None
    for _ in range(_LOOKS):
        content = read_marker(directory)
        if content is not None:
            break
    written = Written(fail_open=False, substrate=b"")
    if content is None:
        return written
    for line in content[len(_HEAD) :].split(b"\n"):
        if line == b"fail open":
            written.fail_open = True
        elif line.startswith(b"substrate /"):
            written.substrate = line.removeprefix(b"substrate ")
    return written


def read_marker(directory: bytes) -> bytes | None:
    """The file's content; None where there is none of ours (root's counts as ours)."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(os.path.join(directory, MARKER), flags)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        if (
            not stat.S_ISREG(found.st_mode)
            or found.st_uid not in (0, os.geteuid())
            or found.st_mode & 0o022
        ):
            return None
        content = os.read(fd, 8192)
    finally:
        os.close(fd)
    return content if content.startswith(_HEAD) else None


def render_written(written: Written) -> bytes:
    """The file's content."""
    fail = b"open" if written.fail_open else b"closed"
    return b"%sfail %s\nsubstrate %s\n" % (_HEAD, fail, written.substrate)
