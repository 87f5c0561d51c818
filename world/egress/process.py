"""How a process that serves a network begins: bound to its parent, with nothing open but what it is given."""

from __future__ import annotations

import _signal
import os
import resource

from substrate.world import linux


def begin(parent: int, *fds: int) -> list[int]:
    """Ends the process with `parent`, which may be gone already; the descriptors are those of 3 and on then, in
    their order."""
    linux.prctl(linux.PR_SET_PDEATHSIG, _signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    _signal.set_wakeup_fd(-1)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)
    return _keep_only(*fds)


def raise_descriptors() -> None:
    """As many as it may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _keep_only(*fds: int) -> list[int]:
    """Moves these to 3 and on, and closes everything else: the zygote has locks of worlds."""
    import fcntl

    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3 + len(fds)) for fd in fds]
    for place, fd in enumerate(high, 3):
        os.dup2(fd, place, inheritable=False)
    linux.close_range(3 + len(fds))
    return list(range(3, 3 + len(fds)))
