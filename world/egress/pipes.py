"""Pipes that relays borrow for splice(2) while bytes are on their way.

What it is: a bounded pool. A relay that moves nothing holds none, so a thousand idle streams
cost no pipe. What it is not: it moves nothing; who gets none copies through user space. It also has the one buffer for those copies.

Pipe buffers are counted per user (pipe-user-pages-soft, 64 MiB as a rule), over all of the
user's processes; so few are kept, and of a moderate size. Above that limit the kernel gives out
pipes of two pages and refuses to enlarge them (EPERM): such a pipe is slower than a copy, so it
is not used, and none is asked for again for a while.

Invariant: a pipe in the pool is empty.

Sources: pipe(7), fcntl(2) F_SETPIPE_SZ, splice(2); fs/pipe.c (too_many_pipe_buffers_soft).
"""

from __future__ import annotations

import _signal
import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.world.egress.loop import Loop

#: how long none is asked for after none could be had
_PAUSE_S: Final = 1.0
#: a smaller one is not worth its system calls
_LEAST_BYTES: Final = 65536


class Pipe:
    """Both ends, non-blocking, close-on-exec; `size` in bytes."""

    __slots__ = ("read_fd", "size", "write_fd")

    def __init__(self, read_fd: int, write_fd: int, size: int) -> None:
        self.read_fd, self.write_fd, self.size = read_fd, write_fd, size

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


class Pipes:
    """At most `most` pipes of `size` bytes exist at a time, at most `keep` of them unused.

    `refused` counts the times that none could be given."""

    def __init__(self, loop: Loop, *, most: int = 32, keep: int = 8, size: int = 262144) -> None:
        if _signal.getsignal(_signal.SIGPIPE) is not _signal.SIG_IGN:
            # splice(2) has no MSG_NOSIGNAL: a peer that resets would end the process
            raise RuntimeError("SIGPIPE must be ignored in a process that relays by splice(2)")
        self._loop = loop
        self._most, self._keep, self.size = most, keep, size
        #: what is copied goes through here; between two system calls nobody owns it
        self.buffer = memoryview(bytearray(65536))
        self._unused: list[Pipe] = []
        self._not_before = 0.0
        self.lent = 0
        self.refused = 0

    def take(self) -> Pipe | None:
        """An empty pipe, or None where none is to be had."""
        pipe = self._unused.pop() if self._unused else self._make()
        if pipe is None:
            self.refused += 1
        else:
            self.lent += 1
        return pipe

    def give(self, pipe: Pipe) -> None:
        """Takes back an empty pipe."""
        self.lent -= 1
        if len(self._unused) < self._keep:
            self._unused.append(pipe)
        else:
            pipe.close()

    def discard(self, pipe: Pipe) -> None:
        """Takes back a pipe that holds bytes nobody will get."""
        self.lent -= 1
        pipe.close()

    def close(self) -> None:
        """Closes those that nobody has."""
        while self._unused:
            self._unused.pop().close()

    def _make(self) -> Pipe | None:
        if self.lent >= self._most or self._loop.now < self._not_before:
            return None
        try:
            pipe = Pipe(*os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC), 0)
        except OSError:  # EMFILE, ENFILE: the caller has another way
            self._not_before = self._loop.now + _PAUSE_S
            return None
        try:
            pipe.size = fcntl.fcntl(pipe.write_fd, fcntl.F_SETPIPE_SZ, self.size)
        except OSError:  # EPERM: the user's pages are used up, or above pipe-max-size
            pipe.size = fcntl.fcntl(pipe.write_fd, fcntl.F_GETPIPE_SZ)
        if pipe.size < _LEAST_BYTES:
            pipe.close()
            self._not_before = self._loop.now + _PAUSE_S
            return None
        return pipe
