"""What standard input was redirected from: an input of the command that no call of it shows.

The command gets a pipe, whose bytes the supervisor moves (streams.py), and of a caller's descriptors
nothing but that; so the file behind `substrate -c cat < file` is found here, at the supervisor's own
descriptor. It is named as the host names it, which need not be a name in the world. Its digest is that
of the bytes that were moved where these are all of it, so that it is what the command was given, whatever
became of the file; else the file is digested, if it is what it was. What is no file is told by its kind.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from substrate.session.streams import Recording
    from substrate.telemetry.trace.digests import Digester

_O_PATH: Final = 0o10000000  # <asm-generic/fcntl.h>
_KINDS: Final = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a block device",
}


@value
class Source:
    """`kind`: `file`, `nothing` (closed, or /dev/null), or what else it is, for people. Of a file:
    its path as /proc shows it, what it was before the command began, and where reading began."""

    kind: str
    path: bytes = b""
    before: tuple[int, ...] = ()
    offset: int = 0
    fd: int = 0  # ours


NOTHING: Final = Source(kind="nothing")


def look(fd: int = 0) -> Source:
    """What a descriptor of ours is, before anything is read from it. Raises OSError."""
    status = os.fstat(fd)
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFCHR and status.st_rdev == os.makedev(1, 3):
        return NOTHING
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & _O_PATH or flags & os.O_ACCMODE == os.O_WRONLY:
        return Source(kind="what cannot be read")
    if kind != stat.S_IFREG:
        told = "a terminal" if os.isatty(fd) else _KINDS.get(kind, "no file")
        return Source(kind=told)
    path = os.readlink(b"/proc/self/fd/%d" % fd)
    offset = os.lseek(fd, 0, os.SEEK_CUR)
    return Source(kind="file", path=path, before=_state(status), offset=offset, fd=fd)


def digest(
    source: Source, moved: Recording, digester: Digester, until: float
) -> tuple[int | None, str | None, str]:
    """Size, keyed digest and, where there is none, why, of a file. `moved`: the bytes that the
    command was given; `until`: when there is no more time (monotonic). Raises FAILURES (inputs.py)."""
    size = source.before[0]
    if source.offset == 0 and 0 < moved.size == size and not moved.withheld:
        return size, moved.digest(), ""
    fd = source.fd
    if _state(os.fstat(fd)) != source.before:
        return None, None, "changed"
    if time.monotonic() > until:
        return size, None, "late"
    found, read = digester.digest_fd(fd)
    if read != size or _state(os.fstat(fd)) != source.before:
        return None, None, "changed"
    return size, found, ""


def entry(source: Source, size: int | None, found: str | None, why: str) -> dict[str, Any]:
    """An object FileRead (events/inputs.py)."""
    from substrate.telemetry.trace.octets import text_or_b64

    body: dict[str, Any] = {
        "path": text_or_b64(source.path),
        "size": size,
        "digest": found,
        "fd": 0,
    }
    if source.offset:
        body["offset"] = source.offset
    if found is None:
        body.update(unknown=True, why=why)
    return body


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
