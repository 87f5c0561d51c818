"""Which directory a world belongs to: the git root, or else the current directory.

Only the existence and the owner of `.git` are looked at; nothing in a tree is read or trusted
(shell.md §2). Where others can write (/tmp) they could put a `.git` above the directories of
everybody; it counts where it is ours, or of whoever owns the directory where the search
began (root in a user's repository). The identity is (device, inode) of the directory, the path
is for people.
"""

from __future__ import annotations

import os

from substrate.errors import StateError
from substrate.values import value


@value
class Workspace:
    """A directory on the host: absolute resolved path, device, inode."""

    path: bytes
    device: int
    inode: int

    @property
    def key(self) -> bytes:
        """The name of its entry in $SUBSTRATE_HOME/current."""
        return b"%x-%d" % (self.device, self.inode)


def current_directory() -> bytes:
    """The current directory; raises StateError where it was deleted, or taken away with its mount."""
    try:
        return os.getcwdb()
    except FileNotFoundError:
        raise StateError(
            "the current directory was deleted", hint="change to a directory that exists"
        ) from None


def find_workspace(cwd: bytes) -> Workspace:
    """The nearest directory at or above `cwd` that holds `.git`, else `cwd` itself.

    `/` and anything that is not `cwd` or below a git root never become one by the search."""
    try:
        start = os.stat(cwd)
    except OSError as error:
        raise StateError(
            f"the current directory cannot be used: {error.strerror}",
            hint="change to a directory that exists",
        ) from error
    at = cwd
    while at != b"/":
        if _owner(at + b"/.git") in (os.geteuid(), start.st_uid):
            found = os.stat(at)
            return Workspace(path=at, device=found.st_dev, inode=found.st_ino)
        at = os.path.dirname(at)
    return Workspace(path=cwd, device=start.st_dev, inode=start.st_ino)


def _owner(path: bytes) -> int | None:
    try:
        return os.lstat(path).st_uid
    except OSError:
        return None  # none, or in a directory that we cannot search
