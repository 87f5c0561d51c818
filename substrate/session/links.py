"""What a directory's name leads to, where `..` stands behind symbolic links (path_resolution(7)).

A call tells the path that it was given. `..` of a directory is its parent, but of a link it is the
parent of what that leads to, so it cannot be taken off by its text. Here the names are walked in the
root that the command sees: each is looked at by an O_PATH descriptor that follows nothing, and a link is
followed by its text, so nothing outside of that root is reached, nothing is opened, and no device or FIFO
is woken, whatever a command put there.

Invariant: an answer is of links that were there when the call was made. One that is younger, or was moved
since (its ctime is the kernel's, and a rename sets it), or is gone, gives none, nor does a name that
was taken from something else; and so does what is below /proc, where links are of whoever looks.
"""

from __future__ import annotations

import os
import time

from substrate.world import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

_LINK, _FORMAT = 0o120000, 0o170000
#: as the kernel follows in one path (path_resolution(7))
_MOST_LINKS: Final = 40
_MOST_KEPT: Final = 1024
#: a ctime is of the kernel's last tick
_TICK_NS: Final = 10_000_000
_PROC: Final = b"/proc"


class Follower:
    """`root`: an fd of the root that the command sees. `had_another`: whether a name stood for
    something else before (Summary)."""

    def __init__(self, root: int, had_another: Callable[[bytes], bool]) -> None:
        self._root, self._had_another = root, had_another
        #: path → what it leads to, and the ctime of the youngest link on the way
        self._kept: dict[bytes, tuple[bytes | None, int]] = {}

    def forget(self) -> None:
        """What was found is not kept for longer than what is decoded at once."""
        self._kept.clear()

    def follow(self, path: bytes, called_us: int) -> bytes | None:
        """Where an absolute path leads to, as it was at `called_us` (CLOCK_BOOTTIME); None where that
        cannot be told."""
        found = self._kept.get(path)
        if found is None:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            try:
                found = self._walk(path)
            except OSError:
                found = None, 0
            self._kept[path] = found
        to, youngest_ns = found
        since_boot_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return to if youngest_ns + _TICK_NS < called_us * 1000 + since_boot_ns else None

    def _walk(self, path: bytes) -> tuple[bytes | None, int]:
        done, left, links, youngest_ns = b"", path.split(b"/")[::-1], 0, 0
        while left:
            name = left.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                done = done.rpartition(b"/")[0]
                continue
            here = done + b"/" + name
            if here == _PROC or self._had_another(here):
                return None, 0
            fd = linux.openat2(
                self._root,
                here,
                os.O_PATH | os.O_NOFOLLOW,
                linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_SYMLINKS,
            )
            try:
                status = os.fstat(fd)
                if status.st_mode & _FORMAT != _LINK:
                    done = here
                    continue
                text = os.readlink(b"", dir_fd=fd)
            finally:
                os.close(fd)
            links += 1
            if links > _MOST_LINKS:
                return None, 0
            youngest_ns = max(youngest_ns, status.st_ctime_ns)
            if text[:1] == b"/":
                done = b""
            left += text.split(b"/")[::-1]
        return done or b"/", youngest_ns
