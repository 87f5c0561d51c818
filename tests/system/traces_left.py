"""What a run may not leave on the host: processes, mounts, control groups."""

import os
import time
from collections.abc import Callable

MARK = "LC_SUBSTRATE_MARK"  # LC_* is passed into worlds, so commands carry it too; no approval is for it
BOUND_S = 10.0


def processes(mark: str) -> list[tuple[int, bytes]]:
    """(pid, command line) of every process with `mark` in its arguments or environment, but
    ourselves. Zombies have neither: they hold nothing and end with their parent."""
    wanted = mark.encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                line = file.read()
            with open(f"/proc/{name}/environ", "rb") as file:
                environ = file.read()
        except PermissionError:
            environ = b""  # somebody else's, or undumpable: the arguments must do
        except (FileNotFoundError, ProcessLookupError):
            continue
        if wanted in line or wanted in environ:
            found.append((int(name), line))
    return found


def groups() -> list[str]:
    """Control groups that substrate made, of this or any other run."""
    found = []
    for path, names, _ in os.walk("/sys/fs/cgroup"):
        found += [os.path.join(path, name) for name in names if name.startswith("substrate-")]
    return found


def groups_of(pid: int) -> list[str]:
    """The control groups of the supervisor with this pid."""
    return [path for path in groups() if os.path.basename(path).startswith(f"substrate-{pid}-")]


def mounts(below: object) -> list[str]:
    """Lines of our own mount table that name a place."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return [line for line in file if os.fspath(below) in line]


def gone(look: Callable[[], object]) -> object:
    """What `look` still finds after at most BOUND_S; false when everything is gone."""
    deadline = time.monotonic() + BOUND_S
    while True:
        found = look()
        if not found or time.monotonic() >= deadline:
            return found
        time.sleep(0.002)
