"""Which process of a world holds a socket, where nobody who watches the world tells.

The kernel knows the socket of a question or a connection (diag.py), and /proc who has it open, below the world's
first process. What it is not: capture. A program that has closed its socket or is gone is not found, nor one
whose descriptors may not be read; of several that hold a socket, the one nearest to the first process is told, though
another one may have made it. Invariants: looking costs a bounded number of system calls, however many processes
and descriptors the world has; what is told was so at the moment of the look; a failure is "not known". The
name is the program's own word: it is printable, and short.

Sources: proc(5) (/proc/PID/task/TID/children, /proc/PID/fd, /proc/PID/fdinfo, /proc/PID/comm), sock_diag(7);
proc_fdinfo_permission in fs/proc/fd.c.
"""

from __future__ import annotations

import os

from substrate.values import value
from substrate.world.egress import diag
from substrate.world.egress.addresses import BadAddress, parse_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from substrate.world.egress.diag import Found

#: processes, and descriptors of all of them, that one look goes through
_MOST_PROCESSES: Final = 4096
_MOST_DESCRIPTORS: Final = 16384
#: sockets whose holder is remembered; it is asked again each time
_MOST_KNOWN: Final = 1024
_NUMBERS: Final = {"tcp": diag.TCP, "udp": diag.UDP}


@value
class Holder:
    """`pid`: as the host counts, 0 where nobody is known; `program`: its name."""

    pid: int
    program: str


NOBODY = Holder(pid=0, program="")


class Holders:
    """See the module."""

    def __init__(
        self,
        diag_fd: int,
        first_pid: int,
        find: Callable[[int, int, bytes, int, bytes, int], Found | None] = diag.find,
    ) -> None:
        """`diag_fd`: of the world's network; `first_pid`: of the world's first process."""
        self._diag_fd, self._first, self._find = diag_fd, first_pid, find
        self._known: dict[int, tuple[int, int]] = {}  # inode → pid, fd
        self._mount = _told(os.getpid(), diag_fd)[1]  # the one that all sockets lie on

    def of(self, protocol: str, source: str, source_port: int, target: bytes, port: int) -> Holder:
        """Who has the socket that has sent from `source` to `target`; b"": where to is not known."""
        number = _NUMBERS.get(protocol)
        if number is None or not source_port:
            return NOBODY
        try:
            here = parse_address(source)
            found = self._find(self._diag_fd, number, here, source_port, target or here, port)
        except (OSError, BadAddress):
            return NOBODY
        return NOBODY if found is None else self.of_inode(found.inode)

    def of_inode(self, inode: int) -> Holder:
        """Who has a socket open."""
        known = self._known.get(inode)
        if known is not None:
            if self._is(*known, inode):
                return describe(known[0])
            del self._known[inode]
        left = _MOST_DESCRIPTORS
        for pid in self._processes():
            fd, left = self._search(pid, inode, left)
            if fd >= 0:
                self._known[inode] = pid, fd
                if len(self._known) > _MOST_KNOWN:
                    del self._known[next(iter(self._known))]
                return describe(pid)
            if left <= 0:
                break
        return NOBODY

    def _search(self, pid: int, inode: int, left: int) -> tuple[int, int]:
        """(descriptor, how many may still be looked at); -1 where it has none."""
        try:
            names = os.listdir(f"/proc/{pid}/fdinfo")
        except OSError:
            return -1, left - 1
        for name in names[: max(0, left)]:
            left -= 1
            if self._is(pid, int(name), inode):
                return int(name), left
        return -1, left - 1

    def _is(self, pid: int, fd: int, inode: int) -> bool:
        """Whether a descriptor is that socket. The link says so; it is for the process' own user, which a
        world's root is not on the host: then what is told beside it."""
        try:
            return _link(pid, fd) == f"socket:[{inode}]"
        except PermissionError:
            return bool(self._mount) and _told(pid, fd) == (inode, self._mount)

    def _processes(self) -> list[int]:
        """The world's, the first one and those near to it first. Its first process is the parent of all
        whose own parent has ended, so that nobody is outside of that tree."""
        found = [self._first]
        for pid in found:  # which grows
            if len(found) >= _MOST_PROCESSES:
                break
            found += _children(pid)
        return found[:_MOST_PROCESSES]


def _children(pid: int) -> list[int]:
    """Of all its threads."""
    found: list[int] = []
    try:
        for tid in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{tid}/children", "rb") as file:
                found += map(int, file.read(65536).split())
    except OSError:
        return found  # it has ended
    return found


def _link(pid: int, fd: int) -> str:
    """Raises PermissionError."""
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    except PermissionError:
        raise
    except OSError:
        return ""


def _told(pid: int, fd: int) -> tuple[int, int]:
    """(inode, mount) of a descriptor; zeros where that is not told, as before Linux 5.14."""
    found = {b"ino:": 0, b"mnt_id:": 0}
    try:
        with open(f"/proc/{pid}/fdinfo/{fd}", "rb") as file:
            for line in file.read(512).splitlines():
                words = line.split()
                if len(words) == 2 and words[0] in found and words[1].isdigit():
                    found[words[0]] = int(words[1])
    except OSError:
        return 0, 0
    return found[b"ino:"], found[b"mnt_id:"]


def describe(pid: int) -> Holder:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            name = file.read(64)
    except OSError:
        return NOBODY
    return Holder(pid=pid, program=printable(name.rstrip(b"\n")))


def printable(name: bytes) -> str:
    """A name that cannot act on a terminal, nor be taken for more than one."""
    return "".join(chr(byte) if 33 <= byte <= 126 else "?" for byte in name[:64])
