"""Where the repository of a workspace lies, when that is not in the workspace itself.

A linked worktree (gitrepository-layout(5), "worktrees") and a submodule have a file `.git` that names it;
in a rootless world nobody could commit there unless that place is overlaid, too. Whoever gave us the
workspace wrote that file. So it is believed only where the other side says the same: the repository of a
worktree names the worktree's `.git` back, and that of a submodule lies in the repository of a directory
above. Invariant: nothing but these small files of the user's own is read, and nothing is run; a place
that is believed is one that the user may write to anyway.
"""

from __future__ import annotations

import os
import stat

from substrate.world.mountinfo import is_below

_LONGEST = 4200  # bytes: `gitdir: ` and a path


def repository_elsewhere(workspace: bytes) -> bytes | None:
    """The directory that git writes to for a workspace, absolute and without symlinks; None where it is
    `.git` itself, or nothing that can be believed."""
    named = _named_in(workspace + b"/.git")
    if named is None:
        return None
    git_dir = os.path.realpath(os.path.join(workspace, named))
    common = _line(git_dir + b"/commondir")
    if common is None:
        return git_dir if _is_of_superproject(workspace, git_dir) and _is_ours(git_dir) else None
    back = _line(git_dir + b"/gitdir")
    if back is None or os.path.realpath(os.path.join(git_dir, back)) != workspace + b"/.git":
        return None
    repository = os.path.realpath(os.path.join(git_dir, common))
    return repository if _is_ours(repository) and is_below(git_dir, repository) else None


def _is_of_superproject(workspace: bytes, git_dir: bytes) -> bool:
    above = os.path.dirname(workspace)
    while above != b"/":
        if is_below(git_dir, above + b"/.git/modules"):
            return True
        above = os.path.dirname(above)
    return False


def _is_ours(git_dir: bytes) -> bool:
    """Whether it is a repository, and the user's."""
    try:
        return os.stat(git_dir).st_uid == os.geteuid() and all(
            os.path.exists(git_dir + part) for part in (b"/HEAD", b"/objects", b"/refs")
        )
    except OSError:
        return False


def _named_in(path: bytes) -> bytes | None:
    line = _line(path)
    if line is None or not line.startswith(b"gitdir: "):
        return None
    return line[len(b"gitdir: ") :]


def _line(path: bytes) -> bytes | None:
    """The one line of a small regular file of the user's; None for anything else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return None
        text = os.read(fd, _LONGEST)
    finally:
        os.close(fd)
    line = text.removesuffix(b"\n")
    return line if line and b"\n" not in line and b"\0" not in line else None
