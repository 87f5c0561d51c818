"""Where $SUBSTRATE_HOME is, for whatever has to know; opening and checking it is session/home.py's.

Hot path. Invariant: an absolute path without symlinks.
"""

from __future__ import annotations

import os
import pwd

from substrate.errors import StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

MOVE = "set SUBSTRATE_HOME to a directory that you own and can write"


def user_home(environ: Mapping[bytes, bytes]) -> bytes:
    """$HOME, else what the password file says; / where it knows nobody."""
    home = environ.get(b"HOME", b"")
    if home.startswith(b"/"):
        return home
    try:
        return os.fsencode(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        return b"/"


def config_home(environ: Mapping[bytes, bytes]) -> bytes:
    """$XDG_CONFIG_HOME, where it is absolute (XDG Base Directory Specification), else .config."""
    base = environ.get(b"XDG_CONFIG_HOME", b"")
    return base if base.startswith(b"/") else user_home(environ) + b"/.config"


def default_path(environ: Mapping[bytes, bytes]) -> bytes:
    """$SUBSTRATE_HOME, else .substrate in $HOME, else in the password file's home; without
    symlinks, as what is mounted below it for a world is reached through none."""
    given = environ.get(b"SUBSTRATE_HOME")
    if given:
        if not given.startswith(b"/"):
            raise StateError(
                f"SUBSTRATE_HOME is {os.fsdecode(given)!r}, expected an absolute path", hint=MOVE
            )
        return os.path.realpath(given)
    home = environ.get(b"HOME", b"")
    if not home.startswith(b"/"):
        home = os.fsencode(pwd.getpwuid(os.geteuid()).pw_dir)
    return os.path.realpath(os.path.join(home, b".substrate"))
