"""Whether processes of a session's world may still live, though nobody holds the session.

A killed supervisor lets go of its session at once. Its zygote then ends the world, which takes a
moment: until that is over the world's processes can write to their layer, and one that was being
started mounts it. So the zygote keeps a second lock, `world/running`, from before it starts the
world until every process of it is dead (zygote.py), and whoever claims the session waits for
it. What holds it is an open file, so that no kill leaves it held; and should the zygote be killed
as well, the file says which process' end to wait for.

Invariant: whoever holds the session's lock and has waited here is alone with the layers.
"""

from __future__ import annotations

import fcntl
import os
import time

from substrate.errors import SessionBusy
from substrate.world import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from substrate.session.store import SessionFiles

_NAME = b"/running"
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
#: killing a world takes milliseconds; one that is stuck in the kernel (a dead NFS server) can
#: stay for good
PATIENCE_S = 10.0
_PAUSE_S = 0.002


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def hold(files: SessionFiles) -> int:
    """The lock, for `Zygote.start`, whose caller closes its copy then. Only by the holder of the
    session's lock, who has waited. Raises OSError, SessionBusy."""
    fd = os.open(files.world_path + _NAME, _FLAGS | os.O_CREAT, 0o600)
    try:
        if not _is_free(fd):
            raise _stuck()
        os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def wait_until_gone(files: SessionFiles, pause: Callable[[float], bool] = _sleep) -> None:
    """Waits until nothing of the session's last world lives; raises SessionBusy, OSError. `pause`:
    waits for some seconds, and says whether to give up."""
    try:
        fd = os.open(files.world_path + _NAME, _FLAGS)
    except FileNotFoundError:
        return
    until = time.monotonic() + PATIENCE_S
    try:
        while not _is_free(fd):
            if time.monotonic() >= until or pause(_PAUSE_S):
                raise _stuck()
    finally:
        os.close(fd)


def _is_free(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return not _lives(os.pread(fd, 128, 0))


def _lives(text: bytes) -> bool:
    """Whether the process that the file names, "<pid> <start ticks> <boot id>", lives: with the
    first process of a pid namespace, none of the others does (pid_namespaces(7))."""
    words = text.split()
    if len(words) != 3 or not (words[0].isdigit() and words[1].isdigit()):
        return False  # it was cut short: the zygote died between the fork and the line
    pid, started = int(words[0]), int(words[1])
    return (
        started != 0 and linux.start_ticks(pid) == started and words[2] == linux.boot_id().encode()
    )


def _stuck() -> SessionBusy:
    return SessionBusy(
        "processes of the world's last command have not ended yet, though they were killed",
        hint="try again; one that waits for a disk or a server that does not answer (state D in "
        "`ps`) ends when that does. A new world beside it: --fresh",
    )
