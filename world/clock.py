"""What the times of files can tell: the coarse clock's tick, and whether the clock was set back.

Not a comparison of files. The kernel stamps files with CLOCK_REALTIME as it was at the last
tick (ktime_get_coarse_real_ts64, include/linux/timekeeping.h), so an order of two events can
be read from their stamps only when they are further apart than that, and only while nobody
set the clock back between them. Spec: world.md §5.
"""

from __future__ import annotations

import time

from substrate.world import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.world.layers import LayerStack

_CLOCK_REALTIME_COARSE = 5  # <linux/time.h>; Python does not name it


def tick_ns() -> int:
    """How far a file's timestamp may lie before the event: the coarse clock's tick
    (clock_getres(2)), plus one for the reader's own rounding."""
    return 2 * int(time.clock_getres(_CLOCK_REALTIME_COARSE) * 1e9)


def latest_ns(stamp_ns: int) -> int:
    """When at the latest a file was stamped so. Some filesystems keep whole seconds (ext4 with
    inodes of 128 bytes), so a stamp without a fraction may be one of those."""
    return stamp_ns if stamp_ns % 1_000_000_000 else stamp_ns + 999_999_999


def clock_was_set_back(stack: LayerStack, number: int | None = None) -> bool:
    """Whether CLOCK_REALTIME was set back since the world started, as far as it shows: now or
    a layer is older than what came before it, or the offset to CLOCK_BOOTTIME shrank by more
    than slewing explains (adjtimex(2): at most 500 ppm). A step before a reboot that the
    layers do not span stays unseen. `number`: of the layers look at this one only."""
    now = time.time_ns()
    last = stack.started_ns - tick_ns()
    for layer in stack.numbers if number is None else (number,):
        for mount in stack.mounts:
            upper = stack.upper(layer, mount.index)
            born = linux.birth_time_ns(linux.AT_FDCWD, upper)
            if born is not None and born < last - tick_ns():
                return True
        last = born if born is not None else last
    if now < last:
        return True
    if stack.clock_offset_ns is None:
        return False
    offset = now - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    slewed = max(0, now - stack.started_ns) // 1000 + 50_000_000
    return offset < stack.clock_offset_ns - slewed
