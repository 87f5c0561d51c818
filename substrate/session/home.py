"""$SUBSTRATE_HOME: the directory that holds everything substrate keeps (trace.md §1).

Invariant: it belongs to the user who runs and nobody else can enter it; what is below it
was written by substrate, since worlds cannot see it. Anything else is refused, not mended.
"""

from __future__ import annotations

import errno
import os
import time

from substrate.errors import StateError
from substrate.home_path import MOVE, default_path
from substrate.session import reserve
from substrate.values import value

__all__ = ["Home", "default_path", "inside_hint", "open_home"]

_CLOCK_REALTIME_COARSE = 5  # <linux/time.h>; Python does not name it
_PARTS = (b"sessions", b"worlds", b"current", b"keys")
_INSIDE = (
    "this is a world already, as SUBSTRATE_PARENT_SPAN says, and a command in it gets no world of its own: run it "
    "without substrate. Where /run/substrate/inside is, `substrate -c` has it run beside, in this same world"
)


def inside_hint() -> str:
    """What to do where the state is out of reach since this is a command of a world; empty where it
    is none."""
    return _INSIDE if b"SUBSTRATE_PARENT_SPAN" in os.environb else ""


@value
class Home:
    """An opened home: its absolute path and a directory fd."""

    path: bytes
    fd: int


def open_home(path: bytes, *, create: bool = True) -> Home:
    """Opens the home, making it (mode 0700) where there is none and `create` is set.

    One that is there and empty, such as a new volume of a container, is closed to others: there
    was nothing to read in it. Raises StateError when it cannot be made or is not the user's own."""
    shown = os.fsdecode(path)
    made = False
    try:
        if create:
            try:
                os.mkdir(path, 0o700)
                made = True
            except FileExistsError:
                pass  # what it is, is looked at now
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENOENT and not create:
            raise StateError(f"there is no {shown} yet", hint="run a command first") from None
        raise StateError(
            f"{shown} cannot be used: {error.strerror}", hint=inside_hint() or MOVE
        ) from error
    try:
        _refuse_others(fd, shown, create=create)
        if create:
            _make_parts(fd, shown)
    except BaseException:
        os.close(fd)
        raise
    if made:
        _let_a_tick_pass()
    return Home(path=path, fd=fd)


def _let_a_tick_pass() -> None:
    """Until what comes is stamped later than what was. On an overlay (a container's root) the first
    entry copies up all directories above it, which stamps them; in the same tick as the first
    layer that would look as if they were exchanged while its command ran (witness.py)."""
    time.sleep(3 * time.clock_getres(_CLOCK_REALTIME_COARSE))


def _refuse_others(fd: int, shown: str, *, create: bool) -> None:
    status = os.fstat(fd)
    if status.st_uid != os.geteuid():
        raise StateError(
            f"{shown} belongs to uid {status.st_uid}, expected {os.geteuid()}",
            hint=f"under sudo, use `sudo -H`; or {MOVE}",
        )
    if status.st_mode & 0o077 and not (create and _close_empty(fd)):
        raise StateError(
            f"{shown} has mode {status.st_mode & 0o7777:04o}, expected 0700: others could read "
            "recorded commands and secrets",
            hint=f"chmod 700 {shown}, after a look at who could have read it",
        )


def _close_empty(fd: int) -> bool:
    """Closes an empty directory to others; False where it holds something, which they may have
    put there until it was closed."""
    if os.listdir(fd):
        return False
    os.fchmod(fd, 0o700)
    return not os.listdir(fd)


def _make_parts(fd: int, shown: str) -> None:
    """What a home holds, the last part last: where that is, all are."""
    try:
        os.stat(_PARTS[-1], dir_fd=fd)
    except FileNotFoundError:
        reserve.keep(fd)
        try:
            for part in _PARTS:
                try:
                    os.mkdir(part, 0o700, dir_fd=fd)
                except FileExistsError:
                    continue
        except OSError as error:
            raise StateError(
                f"{shown} cannot be used: {error.strerror}", hint=inside_hint() or MOVE
            ) from error
