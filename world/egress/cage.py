"""What the egress process may still do on the host once it has begun: read files, talk, no more.

It reads bytes of hostile programs and servers, as the supervisor's user, outside of every world. So
it gives away what it does not need, for a bug in it to be worth little: capabilities but the one
that changes a world's rules; writing, making and removing files (Landlock); programs, processes,
signals to others, listening, and what worlds may not call either (seccomp). Not a world: it must
read the host's resolver configuration and connect from the host's network.

Invariant: threads that are begun later are in the same cage, for it is entered by the only one.
Sources: landlock(7), seccomp(2), capabilities(7), <linux/landlock.h>.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct

from substrate.world import linux
from substrate.world.capabilities import get_capabilities
from substrate.world.holder import hardening_filter
from substrate.world.seccomp import AUDIT_ARCH, RET_ALLOW, RET_ERRNO, RET_KILL_PROCESS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_CAP_NET_ADMIN: Final = 12
_CAP_SYS_PTRACE: Final = 19
#: of Landlock's rights of files each version knows so many; all but to read files and directories
_KNOWN: Final = {1: 13, 2: 14, 3: 15, 4: 15}
_KNOWN_LATER: Final = 16
_READ: Final = 1 << 2 | 1 << 3
_SCOPES: Final = 1 << 0 | 1 << 1  # abstract sockets, signals: from version 6 on
_CLONE_THREAD: Final = 0x00010000
#: (x86_64, aarch64) of what is refused beside what worlds are refused
REFUSED: Final[dict[str, tuple[int | None, int | None]]] = {
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "listen": (50, 201),
    "chroot": (161, 51),
}
_CLONE: Final = (56, 220)


def enter(*, looks_up: bool = False) -> None:
    """Shuts the calling process in; there is no way back. `looks_up`: it has to find the holders of
    sockets by /proc/PID/fd, which needs CAP_SYS_PTRACE over a root's world, and no Landlock: that
    keeps those who are in it from looking at others. Raises OSError."""
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    linux.prctl(linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_CLEAR_ALL)
    _, permitted, _ = get_capabilities()
    needed = 1 << _CAP_NET_ADMIN | (1 << _CAP_SYS_PTRACE if looks_up else 0)
    kept = permitted & needed
    linux.set_capabilities(kept, kept, 0)
    if not looks_up:
        _shut_files()
    linux.install_filter(hardening_filter())
    linux.install_filter(build())


def _shut_files() -> None:
    """Where the kernel has Landlock."""
    version = linux.landlock_abi()
    if not version:
        return
    rights = ((1 << _KNOWN.get(version, _KNOWN_LATER)) - 1) & ~_READ
    # struct landlock_ruleset_attr: handled_access_fs, handled_access_net, scoped
    words = (ctypes.c_uint64 * 3)(rights, 0, _SCOPES)
    size = 24 if version >= 6 else 8
    fd = linux.syscall("landlock_create_ruleset", ctypes.byref(words), size, 0)
    try:
        linux.syscall("landlock_restrict_self", fd, 0)
    finally:
        os.close(fd)


def build(machine: str = linux.MACHINE) -> bytes:
    """The filter: REFUSED, and clone(2) of anything but a thread, are EPERM."""
    column = 0 if machine == "x86_64" else 1
    numbers = sorted(pair[column] or 0 for pair in REFUSED.values() if pair[column] is not None)
    load, equal, any_bit, back = 0x20, 0x15, 0x45, 0x06
    refuse = (back, 0, 0, RET_ERRNO | errno.EPERM)
    allow = (back, 0, 0, RET_ALLOW)
    lines = [
        (load, 0, 0, 4),  # the architecture
        (equal, 1, 0, AUDIT_ARCH[machine]),
        (back, 0, 0, RET_KILL_PROCESS),
        (load, 0, 0, 0),  # the call
        (equal, 0, 3, _CLONE[column]),
        (load, 0, 0, 16),  # its flags
        (any_bit, 0, len(numbers) + 2, _CLONE_THREAD),
        allow,
        *((equal, len(numbers) - at, 0, number) for at, number in enumerate(numbers)),
        allow,
        refuse,
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
