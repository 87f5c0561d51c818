"""Reading a policy file: who may have written it, and its bytes.

Not what they mean (parse_policy.py). Invariants: a file of the system or the user that anybody else may
write is refused, and so is one in a directory where they could exchange it; a project's file is reached
through no symlink of the tree and is bounded; what is read is what was stamped. Everything that is wrong is
an error: a policy that cannot be read fails closed. Spec: policy.md §1.
"""

from __future__ import annotations

import os
import stat

from substrate.errors import ConfigError
from substrate.policy.places import Found, Places, stamp_from
from substrate.policy.rules import GIVEN, PROJECT, SYSTEM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

MAX_BYTES: Final = 4 << 20
#: a project's file comes with a cloned repository: it must not cost anything
MAX_PROJECT_BYTES: Final = 64 << 10
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


class NotOurs(Exception):
    """A project's file that is neither the user's nor of whoever owns the directory; args[0]: why."""


def read_source(found: Found, places: Places) -> bytes:
    """The bytes of a file that was found. Raises ConfigError, NotOurs."""
    shown = os.fsdecode(found.path)
    try:
        fd = _open_in_tree(found.path) if found.kind == PROJECT else os.open(found.path, _FLAGS)
    except OSError as error:
        raise ConfigError(
            f"the policy file {shown} cannot be read: {error.strerror}",
            hint="make it readable, or move it away: without it nothing is decided",
        ) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{shown} is not a regular file", hint="move it away")
        if found.kind == PROJECT:
            if status.st_uid not in (os.geteuid(), places.owner, 0):
                raise NotOurs(f"{shown} belongs to uid {status.st_uid}: it is left out")
        elif found.kind != GIVEN:  # that one was named by whoever runs this
            _check_writers(found.kind, status, shown)
            _check_writers(found.kind, _directory_of(found.path), os.path.dirname(shown) or "/")
        most = MAX_PROJECT_BYTES if found.kind == PROJECT else MAX_BYTES
        content = _all(fd, most + 1)
        if len(content) > most:
            raise ConfigError(f"{shown} is larger than {most} bytes", hint="shorten it")
        if stamp_from(status) != stamp_from(os.fstat(fd)) or stamp_from(status) != found.stamp:
            raise ConfigError(f"{shown} was changed while it was read", hint="try again")
        return content
    finally:
        os.close(fd)


def _open_in_tree(path: bytes) -> int:
    """`<directory>/.substrate/policy.toml`: neither of its last two parts may be a symlink."""
    parent, name = os.path.split(path)
    directory = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=directory)
    finally:
        os.close(directory)


def _directory_of(path: bytes) -> os.stat_result:
    """Of the place where the file itself lies: its name may be a symlink of the owner's."""
    return os.stat(os.path.dirname(os.path.realpath(path)))


def _check_writers(kind: str, status: os.stat_result, shown: str) -> None:
    """Nobody but root (and the user, of what is the user's) may write it. A sticky directory such as
    /tmp lets others only add."""
    owners = {0} if kind == SYSTEM else {0, os.geteuid()}
    if status.st_uid not in owners:
        raise ConfigError(
            f"{shown} belongs to uid {status.st_uid}, expected {' or '.join(map(str, sorted(owners)))}:"
            " whoever owns it decides what is allowed",
            hint=f"chown it, after a look at what it says: {shown}",
        )
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if status.st_mode & _OTHERS and not sticky and not _is_private_group(status):
        raise ConfigError(
            f"{shown} has mode {stat.S_IMODE(status.st_mode):04o}: others may write it",
            hint=f"chmod go-w {shown}, after a look at what it says",
        )


def _is_private_group(status: os.stat_result) -> bool:
    """Whether only the owner's own group may write: where each user has one (a umask of 0002 is usual
    there) it has the user's number, and nobody else is in it."""
    if status.st_mode & stat.S_IWOTH or status.st_gid != status.st_uid or status.st_uid == 0:
        return False
    import grp
    import pwd

    try:
        name = pwd.getpwuid(status.st_uid).pw_name
        return set(grp.getgrgid(status.st_gid).gr_mem) <= {name}
    except KeyError:
        return False


def _all(fd: int, most: int) -> bytes:
    parts = []
    while most > 0:
        part = os.read(fd, most)
        if not part:
            break
        parts.append(part)
        most -= len(part)
    return b"".join(parts)
