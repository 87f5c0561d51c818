"""The two filters of a command that has no namespaces (`guard`): what is refused, what is answered.

`build_hardening` is the filter of every world (seccomp.py) and refuses besides what namespaces would
keep apart and Landlock does not handle: UDP, ping and UNIX sockets, System V and POSIX queues, the
priorities and limits of other processes, and requests of ioctl(2) that change a file by a descriptor
that only reads (flags, btrfs' subvolumes). `build_answered` leaves calls to the world's first
process, which makes them in the command's place (answering.py), as a filter sees no path and no
address. Both are in force before any code of the command's runs. Invariants: no call in `ANSWERED` is
ever continued; a socket of the internet is made, bound, listened with and connected by the answerer
alone, or not there at all. Sources: <linux/fs.h>, <linux/btrfs.h>, seccomp(2), ip(7), ipv6(7).
"""

from __future__ import annotations

import errno

from substrate.world import seccomp
from substrate.world.linux import MACHINE
from substrate.world.seccomp import allow, argument, error, when

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.world.seccomp import Chunk

RET_USER_NOTIF: Final = 0x7FC00000

#: what changes a file without opening it
FILES: Final = (
    *("chmod", "fchmod", "fchmodat", "fchmodat2"),
    *("chown", "lchown", "fchown", "fchownat"),
    *("utime", "utimes", "futimesat", "utimensat"),
    *("setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr"),
)
SOCKETS: Final = ("socket", "connect", "bind", "listen")

_IPC: Final = (
    *("shmget", "shmat", "shmctl", "semget", "semop", "semctl", "semtimedop"),
    *("msgget", "msgsnd", "msgrcv", "msgctl", "mq_open", "mq_unlink"),
)
#: younger siblings of FILES, without which libc does
_YOUNGER: Final = ("setxattrat", "removexattrat", "file_setattr")

_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_STREAM, _DATAGRAM, _RAW, _SEQUENCED, _TYPE_MASK = 1, 2, 3, 5, 0xF

#: requests of ioctl(2) by their type (the second byte): those that pass; all others of these types
#: are unknown here. 'f' ext4 and all, 'X' XFS and all, 'v' versions, 'r' FAT, 0x94 btrfs, 0xf5 F2FS
_REQUESTS: Final[dict[int, tuple[int, ...]]] = {
    0x66: (0x80086601, 0x80046601, 0xC020660B),  # FS_IOC_GETFLAGS, FS_IOC32_GETFLAGS, FIEMAP
    0x58: (0x801C581F,),  # FS_IOC_FSGETXATTR
    0x76: (0x80087601,),  # FS_IOC_GETVERSION
    0x72: (),
    0x94: (0x40049409, 0x4020940D, 0xC0189436),  # FICLONE, FICLONERANGE, FIDEDUPERANGE
    0xF5: (),
}
_PRIO_USER, _IOPRIO_WHO_USER = 2, 3  # <linux/resource.h>, <linux/ioprio.h>
_TERMINALS: Final = (seccomp.TIOCSTI, seccomp.TIOCLINUX, seccomp.TIOCCONS, seccomp.TIOCSETD)
#: options by which a socket chooses its way (IP_OPTIONS; IPV6_2292PKTOPTIONS, _2292RTHDR, _RTHDR), or
#: takes a part in what comes to a port of somebody else's (SO_REUSEPORT)
_OPTIONS: Final = {0: (4,), 41: (5, 6, 57), 1: (15,)}


def build_hardening(
    *, with_network: bool, allow_ptrace: bool = False, machine: str = MACHINE
) -> bytes:
    """Without capture's filter for evidence: a second listener there cannot be."""
    more: dict[str, Chunk] = {name: error(errno.ENOSYS) for name in (*_IPC, *_YOUNGER)}
    more["socket"] = _socket(with_network=with_network)
    more["socketpair"] = argument(
        0,
        when(
            (_AF_UNIX,),
            argument(
                1,
                when((_STREAM, _SEQUENCED), allow(), error(errno.EPERM)),
                mask=_TYPE_MASK,
            ),
            error(errno.EAFNOSUPPORT),
        ),
    )
    more["ioctl"] = _ioctl()
    more["setpriority"] = _own_only(_PRIO_USER)
    more["ioprio_set"] = _own_only(_IOPRIO_WHO_USER)
    core = argument(1, when((seccomp.RLIMIT_CORE,), seccomp.core_limit(), allow()))
    more["prlimit64"] = argument(0, when((0,), core, error(errno.EPERM)))
    more["setsockopt"] = _setsockopt()
    return seccomp.build_filter(
        machine=machine, allow_ptrace=allow_ptrace, tcp_only=True, more=more
    )


def build_answered(*, with_network: bool, machine: str = MACHINE) -> bytes:
    """The filter with the listener."""
    told: Chunk = ((seccomp.RETURN, 0, 0, RET_USER_NOTIF),)
    chunks = dict.fromkeys(FILES, told)
    if with_network:
        chunks.update(dict.fromkeys(("connect", "bind", "listen"), told))
        chunks["socket"] = argument(0, when((_AF_INET, _AF_INET6), told, allow()))
    else:
        # no socket is there that could be bound or connected, but pairs, which are connected
        chunks.update(dict.fromkeys(("connect", "bind", "listen"), error(errno.EACCES)))
    return seccomp.assemble(chunks, machine)


def _socket(*, with_network: bool) -> Chunk:
    """EACCES: "permission to create a socket of the specified type is denied" (socket(2))."""
    refused = error(errno.EACCES)
    internet = refused
    if with_network:
        stream = argument(2, when((0, 6), allow(), error(errno.EPROTONOSUPPORT)))
        internet = argument(
            1,
            when(
                (_STREAM,),
                stream,
                when((_DATAGRAM, _RAW), error(errno.EPERM), error(errno.ESOCKTNOSUPPORT)),
            ),
            mask=_TYPE_MASK,
        )
    netlink = argument(2, when((0,), allow(), error(errno.EPROTONOSUPPORT)))
    return argument(
        0,
        when(
            (_AF_INET, _AF_INET6),
            internet,
            when(
                (_AF_NETLINK,),
                netlink,
                when((_AF_UNIX,), refused, error(errno.EAFNOSUPPORT)),
            ),
        ),
    )


def _ioctl() -> Chunk:
    otherwise = allow()
    for kind, passing in _REQUESTS.items():
        unknown = error(errno.ENOTTY)
        some = argument(1, when(passing, allow(), unknown)) if passing else unknown
        otherwise = argument(1, when((kind << 8,), some, otherwise), mask=0xFF00)
    return argument(1, when(_TERMINALS, error(errno.EPERM), otherwise))


def _own_only(user: int) -> Chunk:
    """Of the caller itself or its group (0), and of nobody by number. `user`: the word for all processes of
    a user, where 0 is the caller's own, on all of the host."""
    refused = error(errno.EPERM)
    return argument(0, when((user,), refused, argument(1, when((0,), allow(), refused))))


def _setsockopt() -> Chunk:
    otherwise = allow()
    for level, names in _OPTIONS.items():
        refused = argument(2, when(names, error(errno.EPERM), allow()))
        otherwise = argument(1, when((level,), refused, otherwise))
    return otherwise
