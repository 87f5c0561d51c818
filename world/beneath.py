"""Opening a path below a directory that somebody else may write to.

Not a walk and not a policy: one function. Its invariant: what it opens was reached from
`root_fd` through real directories only: no symlink, no magic link, no "..", no other mount
(world.md §5, §7; openat2(2)). Paths longer than PATH_MAX, which a world can make by
mkdir and chdir in a loop, are opened in pieces.
"""

from __future__ import annotations

import os

from substrate.world import linux

RESOLVE_STRICTLY = (
    linux.RESOLVE_BENEATH
    | linux.RESOLVE_NO_SYMLINKS
    | linux.RESOLVE_NO_MAGICLINKS
    | linux.RESOLVE_NO_XDEV
)
#: a directory that is only a starting point for lookups; needs no read permission on it
LOOKUP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: a directory that is listed
LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: a regular file that is read; O_NONBLOCK so that a FIFO put in its place cannot hang us
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_LONGEST_PIECE = 3800  # bytes; below PATH_MAX (4096), with room for the kernel's own use


def open_beneath(root_fd: int, relative: bytes, flags: int) -> int:
    """An fd for `relative` (b"" is the root itself) below `root_fd`.

    Raises OSError: ELOOP for a symlink on the way, EXDEV where another mount begins or the
    path leaves the root, ENOENT, ENOTDIR, EACCES as usual."""
    if len(relative) <= _LONGEST_PIECE:
        return linux.openat2(root_fd, relative or b".", flags, RESOLVE_STRICTLY)
    cut = relative.rindex(b"/", 0, _LONGEST_PIECE)
    fd = linux.openat2(root_fd, relative[:cut], LOOKUP, RESOLVE_STRICTLY)
    try:
        return open_beneath(fd, relative[cut + 1 :], flags)
    finally:
        os.close(fd)


def open_root(path: bytes) -> int:
    """An O_PATH fd for a directory named by our own configuration (the last component is
    not followed). Raises OSError."""
    return os.open(path, LOOKUP)


def split(relative: bytes) -> tuple[bytes, bytes]:
    """(parent, name) of a path below a root; the parent of a top-level name is b""."""
    parent, _, name = relative.rpartition(b"/")
    return parent, name
