"""$SUBSTRATE_HOME: the directory that holds everything substrate keeps (trace.md §1).

Invariant: it belongs to the user who runs and nobody else can enter it; what is below it
was written by substrate, since worlds cannot see it. Anything else is refused, not mended.
"""

from __future__ import annotations

import errno
import os
import pwd

from substrate.errors import StateError
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_MOVE = "set SUBSTRATE_HOME to a directory that you own and can write"


@value
class Home:
    """An opened home: its absolute path and a directory fd."""

    path: bytes
    fd: int


def default_path(environ: Mapping[bytes, bytes]) -> bytes:
    """$SUBSTRATE_HOME, else .substrate in $HOME, else in the password file's home."""
    given = environ.get(b"SUBSTRATE_HOME")
    if given:
        if not given.startswith(b"/"):
            raise StateError(
                f"SUBSTRATE_HOME is {os.fsdecode(given)!r}, expected an absolute path", hint=_MOVE
            )
        return os.path.normpath(given)
    user_home = environ.get(b"HOME", b"")
    if not user_home.startswith(b"/"):
        user_home = os.fsencode(pwd.getpwuid(os.geteuid()).pw_dir)
    return os.path.join(os.path.normpath(user_home), b".substrate")


def open_home(path: bytes, *, create: bool = True) -> Home:
    """Opens the home, making it (mode 0700) where there is none and `create` is set.

    Raises StateError when it cannot be made or is not the user's own."""
    shown = os.fsdecode(path)
    try:
        if create:
            for part in (
                path,
                path + b"/sessions",
                path + b"/worlds",
                path + b"/current",
                path + b"/keys",
            ):
                try:
                    os.mkdir(part, 0o700)
                except FileExistsError:
                    if part is path and os.path.isdir(path + b"/keys"):
                        break
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENOENT and not create:
            raise StateError(f"there is no {shown} yet", hint="run a command first") from None
        raise StateError(f"{shown} cannot be used: {error.strerror}", hint=_MOVE) from error
    status = os.fstat(fd)
    if status.st_uid != os.geteuid():
        os.close(fd)
        raise StateError(
            f"{shown} belongs to uid {status.st_uid}, expected {os.geteuid()}",
            hint=f"under sudo, use `sudo -H`; or {_MOVE}",
        )
    if status.st_mode & 0o077:
        os.close(fd)
        raise StateError(
            f"{shown} has mode {status.st_mode & 0o7777:04o}, expected 0700: others could read "
            "recorded commands and secrets",
            hint=f"chmod 700 {shown}, after a look at who could have read it",
        )
    return Home(path=path, fd=fd)
