"""Which policy files were given to commands of a session (`--policy`), for whoever applies what they did.

A file in the session's directory, which no world sees: paths, each ended by a NUL. Hot path of a run that was given
one. Invariant: a path that was written down stays. Spec: policy.md §1.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.session.store import SessionFiles

_NAME: Final = b"/policies"
_LONGEST: Final = 1 << 20


def remember(files: SessionFiles, given: bytes | None) -> None:
    """Before the command runs. Raises OSError."""
    if given is None or given in given_in(files):
        return
    fd = os.open(
        files.path + _NAME,
        os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW,
        0o600,
    )
    try:
        os.write(fd, given + b"\0")
    finally:
        os.close(fd)


def given_in(files: SessionFiles) -> tuple[bytes, ...]:
    """Absolute paths, in the order of their first use. Raises OSError."""
    try:
        fd = os.open(files.path + _NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return ()
    try:
        return tuple(filter(None, os.read(fd, _LONGEST).split(b"\0")))
    finally:
        os.close(fd)
