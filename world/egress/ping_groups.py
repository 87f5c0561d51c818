"""Lets the groups of a world send echoes (ping(8)) without a capability.

net.ipv4.ping_group_range is a network namespace's own. Its numbers are those of the user namespace of
whoever writes it, and no larger than 31 bits: the ids of a world are larger on the host, so that they
are written from within the world's user namespace, by a child that does nothing else.

Sources: icmp(7); ipv4_ping_group_range in net/ipv4/sysctl_net_ipv4.c; ioctl_nsfs(2).
"""

from __future__ import annotations

import errno
import fcntl
import os

from substrate.world import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_FILE: Final = "/proc/sys/net/ipv4/ping_group_range"
_OWNER: Final = 0xB701  # NS_GET_USERNS
_MOST: Final = 0x7FFFFFFF
_CLONE_NEWUSER: Final = 0x10000000


def let_ping(network: int, first: int, last: int) -> None:
    """For the groups from `first` to `last`, as the world counts them. `network`: an fd of its network
    namespace, in which we are. Raises OSError."""
    text = b"%d %d" % (first, min(last, _MOST))
    owner = fcntl.ioctl(network, _OWNER)
    file = os.open(_FILE, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.fstat(owner).st_ino == os.stat("/proc/self/ns/user").st_ino:
            os.write(file, b"0 %d" % _MOST)  # the host's ids
            return
        pid = os.fork()
        if pid == 0:
            _write_as(owner, file, text)
        _, status = os.waitpid(pid, 0)
        number = os.waitstatus_to_exitcode(status)
        if number:
            number = number if number > 0 else errno.EINTR
            raise OSError(number, f"ping_group_range: {os.strerror(number)}")
    finally:
        os.close(file)
        os.close(owner)


def _write_as(owner: int, file: int, text: bytes) -> None:
    """The child: ends with errno, 0 for none."""
    number = errno.EIO
    try:
        linux.setns(owner, _CLONE_NEWUSER)
        os.write(file, text)
        number = 0
    except OSError as error:
        number = error.errno or errno.EIO
    finally:
        os._exit(number)
