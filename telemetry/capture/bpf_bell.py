"""When to look into the ring of the `bpf` backend: two descriptors that become readable.

A ring buffer of the kernel is readable as long as anything lies in it, and whoever polls that
spins beside a busy command. So `urgent` is an epoll instance in which the ring is edge-triggered:
readable once after the programs have called (bpf_program.py: after a quiet time, at a quarter full,
at the end of the tree). What comes soon after a call is not announced; `later`, a timer, is
readable LOOK_AFTER_S after a look that has found something, and not at all after one that found
nothing: what comes then is announced.

Sources: epoll(7), timerfd_create(2); kernel/bpf/ringbuf.c (ringbuf_map_poll_kern).
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct

from substrate.telemetry.capture.backend import CaptureError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: longer than the programs' quiet time (5 ticks of a slow clock, 100 Hz: 50 ms)
LOOK_AFTER_S: Final = 0.1
_MONOTONIC: Final = 1
_NONBLOCK, _CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
#: struct itimerspec: no interval, then the time
_TIMER: Final = struct.Struct("=qqqq")

_libc = ctypes.CDLL(None, use_errno=True)


class Bell:
    """See the module. Raises CaptureError."""

    def __init__(self, ring: int) -> None:
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        try:
            self._epoll.register(ring, select.EPOLLIN | select.EPOLLET)
            self._timer = int(_libc.timerfd_create(_MONOTONIC, _NONBLOCK | _CLOEXEC))
            if self._timer < 0:
                raise _failed("timerfd_create")
        except BaseException:
            self._epoll.close()
            raise
        self._armed = False

    def urgent(self) -> int:
        return self._epoll.fileno()

    def later(self) -> int:
        return self._timer

    def hush(self) -> None:
        """Takes the call, before the ring is looked at: what comes behind it calls again."""
        self._epoll.poll(0)

    def set(self, after_s: float) -> None:
        """When `later` is readable next; 0 for never."""
        if not after_s and not self._armed:
            return
        ns = int(after_s * 1_000_000_000)
        value = ctypes.create_string_buffer(_TIMER.pack(0, 0, *divmod(ns, 1_000_000_000)))
        if _libc.timerfd_settime(self._timer, 0, value, None) < 0:
            raise _failed("timerfd_settime")
        self._armed = bool(after_s)

    def close(self) -> None:
        self._epoll.close()
        os.close(self._timer)


def _failed(step: str) -> CaptureError:
    number = ctypes.get_errno()
    return CaptureError(step, number or errno.EIO, os.strerror(number))
