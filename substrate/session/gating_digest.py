"""The digest of a program without a name: a memfd, an O_TMPFILE, a file that was removed while open.

Whoever execs it has it open, and is held: it is read by its descriptor. Several of the same text are told
apart by nobody, so they have a digest only where it is the same one. Loaded where a rule names a digest.
"""

from __future__ import annotations

import os
import stat

from substrate.telemetry.trace.digests import sha256_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_MOST_FDS: Final = 4096
#: of one text
_MOST_FILES: Final = 4
_MOST_BYTES: Final = 512 << 20


def digest_of_nameless(tid: int, path: bytes) -> str | None:
    """`path`: as /proc shows it. None where there is none, where it cannot be read, or there are others."""
    folder = b"/proc/%d/fd" % tid
    found: set[str] = set()
    seen: set[tuple[int, int]] = set()
    try:
        names = os.listdir(folder)
        if len(names) > _MOST_FDS:
            return None
        for name in names:
            link = folder + b"/" + name
            try:
                if os.readlink(link) != path:
                    continue
                status = os.stat(link)
                if (status.st_dev, status.st_ino) in seen:
                    continue  # whoever is held may have thousands of descriptors of it
                seen.add((status.st_dev, status.st_ino))
                if len(seen) > _MOST_FILES:
                    return None
                found.add(_digest(link))
                if len(found) > 1:
                    return None
            except FileNotFoundError:
                continue  # another thread has closed it
    except OSError:
        return None  # the rule decides what that means; one that holds back does
    return found.pop() if len(found) == 1 else None


def _digest(link: bytes) -> str:
    fd = os.open(link, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
            raise OSError("no file that is digested")
        return sha256_fd(fd)[0]
    finally:
        os.close(fd)
