"""Where policy files are looked for, and what they are right now: a stamp each.

Not what is in them (load_policy.py). Hot path. Invariants: of what a stamp holds, nothing can change in a
file without its ctime; what cannot be looked at, and a symlink that leads nowhere, is an error and never
"absent": the rules of dotfiles that were moved or are not mounted would be gone without a word. A project's files are
those in the directory and above it, at most ten, not above $HOME nor above the parent of the git root.
Spec: policy.md §1.
"""

from __future__ import annotations

import os
import pwd
import stat

from substrate.errors import ConfigError
from substrate.home_path import config_home, default_path, user_home
from substrate.policy.rules import GIVEN, PROJECT, SYSTEM, USER
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    #: device, inode, size, mtime, ctime (ns), owner, mode; None: there is nothing
    Stamp = tuple[int, int, int, int, int, int, int] | None

SYSTEM_FILE: Final = b"/etc/substrate/policy.toml"
PROJECT_FILE: Final = b".substrate/policy.toml"
_MOST_UP: Final = 10


@value
class Places:
    """The files of a call, outermost layer first. `home`: $SUBSTRATE_HOME. `candidates`: kind and
    absolute path. `owner`: of the directory in which the search began."""

    home: bytes
    user_home: bytes
    cwd: bytes
    workspace: bytes
    owner: int
    candidates: tuple[tuple[str, bytes], ...]


@value
class Found:
    """A file that is there."""

    kind: str
    path: bytes
    stamp: Stamp


def find_places(
    environ: Mapping[bytes, bytes],
    cwd: bytes,
    workspace: bytes,
    given: bytes | None = None,
    system_file: bytes = SYSTEM_FILE,
) -> Places:
    """Where to look. `given`: the file of `--policy`, relative to `cwd`. Raises StateError, ConfigError."""
    home = user_home(environ)
    state = default_path(environ)
    user_file = config_home(environ) + b"/substrate/policy.toml"
    candidates = [(SYSTEM, system_file), (USER, user_file)]
    own = {system_file, user_file}
    if given is not None:
        given = os.path.normpath(os.path.join(cwd, given))
        own.add(given)
    for directory in _upward(cwd, home, workspace):
        path = os.path.join(directory, PROJECT_FILE)
        # what substrate keeps is no project's, though it has the same name in $HOME
        if path not in own and os.path.dirname(path) != state:
            candidates.append((PROJECT, path))
    if given is not None:
        candidates.append((GIVEN, given))
    try:
        owner = os.stat(cwd).st_uid
    except OSError as error:
        raise ConfigError(
            f"{os.fsdecode(cwd)} cannot be used: {error.strerror}",
            hint="change to a directory that exists",
        ) from error
    return Places(
        home=state,
        user_home=home,
        cwd=cwd,
        workspace=workspace,
        owner=owner,
        candidates=tuple(candidates),
    )


def _upward(cwd: bytes, home: bytes, workspace: bytes) -> list[bytes]:
    """The directories of project files, the outermost first. The workspace's are always there: whoever
    goes down far enough would leave them behind."""
    last = {b"/", home.rstrip(b"/") or b"/"}
    if os.path.lexists(workspace + b"/.git"):
        last.add(os.path.dirname(workspace))
    found = _walk(cwd, last)
    if workspace not in found and cwd.startswith(workspace.rstrip(b"/") + b"/"):
        found += _walk(workspace, last)
    return found[::-1]


def _walk(at: bytes, last: set[bytes]) -> list[bytes]:
    found = [at]
    while at not in last and len(found) <= _MOST_UP:
        at = os.path.dirname(at)
        found.append(at)
    return found


def find_files(places: Places) -> list[Found]:
    """What is there of the candidates, in their order. Raises ConfigError where that cannot be told,
    and where a given file is missing."""
    found = []
    for kind, path in places.candidates:
        try:
            stamp = stamp_of_policy(path, kind)
        except ConfigError:
            if kind == PROJECT and _is_kept_by_owner(os.path.dirname(path), places):
                continue
            if kind != PROJECT or stranger_of(path, places) is None:
                raise
            stamp = stamp_from(
                os.lstat(os.path.dirname(path))
            )  # it is left out, and told (source.py)
        if stamp is not None:
            found.append(Found(kind=kind, path=path, stamp=stamp))
        elif kind == GIVEN:
            raise ConfigError(
                f"there is no policy file {os.fsdecode(path)}",
                hint="--policy and SUBSTRATE_POLICY name a file that exists",
            )
    return found


def _is_kept_by_owner(directory: bytes, places: Places) -> bool:
    """Whether that is where the owner of the current directory has what substrate keeps, which is no
    project's: in the home of another user, closed to all others, as it has to be."""
    if places.owner in (os.geteuid(), 0):
        return False
    try:
        status = os.lstat(directory)
        home = os.fsencode(pwd.getpwuid(places.owner).pw_dir)
    except (OSError, KeyError):
        return False  # then it is a project's, as far as can be told
    closed = stat.S_IFDIR | stat.S_IRWXU
    return (status.st_uid, status.st_mode) == (
        places.owner,
        closed,
    ) and directory == os.path.realpath(home) + b"/.substrate"


def stranger_of(path: bytes, places: Places) -> int | None:
    """The uid of whoever a project's file or its directory belongs to, if that is none of those whose word
    counts there: in a directory that all may write to, nobody stops the others by what he puts in it."""
    for name in (os.path.dirname(path), path):
        try:
            uid = os.lstat(name).st_uid
        except OSError:
            return None  # then what stands before it is nobody's else
        if uid not in (os.geteuid(), places.owner, 0):
            return uid
    return None


def stamp_of_policy(path: bytes, kind: str) -> Stamp:
    """As `stamp_of`, of a policy file: neither it nor a directory of the user's on the way to it may be a
    symlink that leads nowhere. Raises ConfigError."""
    directory = os.path.dirname(path)
    # the usual case is that there is no directory: then that is all that is asked
    if _look(path, directory) is None:
        while kind == USER and directory != b"/":
            directory = os.path.dirname(directory)
            if _look(path, directory) is not None:
                break
        return None
    status = _look(path, path)
    return None if status is None else stamp_from(status)


def _look(path: bytes, at: bytes) -> os.stat_result | None:
    """What is at `at`, or where a symlink there leads to; None where nothing is."""
    try:
        status = os.lstat(at)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _not_seen(path, error) from error
    if not stat.S_ISLNK(status.st_mode):
        return status
    try:
        return os.stat(at)
    except (FileNotFoundError, NotADirectoryError) as error:
        of = "" if at == path else f", and the policy file {os.fsdecode(path)} would be in it"
        raise ConfigError(
            f"{os.fsdecode(at)} is a link to {os.fsdecode(os.readlink(at))}, which is not there{of}",
            hint="put back (or mount) what it leads to, or remove the link: then no policy file is there",
        ) from error
    except OSError as error:
        raise _not_seen(path, error) from error


def stamp_of(path: bytes) -> Stamp:
    """What tells that a file is the same; of a symlink's target. Raises ConfigError."""
    try:
        return stamp_from(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _not_seen(path, error) from error


def _not_seen(path: bytes, error: OSError) -> ConfigError:
    hint = "make its directory readable, or move it away: without it nothing is decided"
    try:
        uid = os.lstat(os.path.dirname(path)).st_uid
    except OSError:
        uid = os.geteuid()  # it cannot be told whose it is
    if uid != os.geteuid():
        hint = (
            f"its directory belongs to uid {uid}, who can let you read what may run here; or work in"
            " a directory of your own"
        )
    return ConfigError(
        f"the policy file {os.fsdecode(path)} cannot be looked at: {error.strerror}", hint=hint
    )


def stamp_from(status: os.stat_result) -> Stamp:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_uid,
        stat.S_IMODE(status.st_mode) | stat.S_IFMT(status.st_mode),
    )
