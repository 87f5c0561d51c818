"""The reader's end of the kernel's BPF_MAP_TYPE_RINGBUF.

One reader, whole records, in order, without the kernel's heads. The engine does it where it was
built (c/bpf_ring.c); without it Python does the same. Invariant: the memory is the kernel's: what
it says of lengths is checked, and never believed.

Sources: Documentation/bpf/ringbuf.rst, kernel/bpf/ringbuf.c (the layout of the mapped pages, and the
bits of a record's head); tools/lib/bpf/ringbuf.c (how it is read).
"""

from __future__ import annotations

import errno
import mmap
import struct
from _thread import allocate_lock

from substrate.telemetry.capture.backend import CaptureError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Final

_engine: ModuleType | None
try:
    from substrate.telemetry.capture import _engine
except ImportError:
    _engine = None

_BUSY: Final = 1 << 31
_DISCARDED: Final = 1 << 30
_HEAD: Final = 8
_PAGE: Final = mmap.PAGESIZE
_WORD: Final = struct.Struct("=I")


class Ring:
    """The reader's end of a BPF_MAP_TYPE_RINGBUF: one reader, whole records, in order.

    The kernel's writer stores a record's head, without its busy bit, after its bytes, and the
    position of writing after a busy head (both with release). So of what is read here, the
    position must come first, then heads, then bytes. Python orders nothing, and aarch64 may
    turn two loads round: giving a lock back and taking it again is a full fence on both."""

    def __init__(self, fd: int, size: int, longest: int) -> None:
        """`longest`: bytes of a record, at most."""
        self.size = size
        self._longest = longest = min(longest, size - _HEAD)
        behind = min(size, (longest + _HEAD + _PAGE - 1) // _PAGE * _PAGE)
        self._lock = allocate_lock()
        self._lock.acquire()
        self._mine = mmap.mmap(fd, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # The data are there twice, one behind the other: no record is in two pieces. Of the
        # second no more is mapped than the longest needs; mapping costs 60 ns a page.
        try:
            self._theirs = mmap.mmap(
                fd, _PAGE + size + behind, mmap.MAP_SHARED, mmap.PROT_READ, offset=_PAGE
            )
        except BaseException:
            self._mine.close()
            raise
        self._read_to = memoryview(self._mine).cast("Q")
        self._view = memoryview(self._theirs)
        self._written_to = self._view[:8].cast("Q")
        self._data = self._view[_PAGE:]

    def _fence(self) -> None:
        self._lock.release()
        self._lock.acquire()

    def empty(self) -> bool:
        return self._written_to[0] == self._read_to[0]

    def take(self, most: int) -> bytes:
        """Records, about `most` bytes of them; their memory is the kernel's again.

        Raises CaptureError for lengths that cannot be: the ring is no good any more."""
        try:
            if _engine is None:
                return self._take(most)
            taken: bytes = _engine.take_bpf_ring(
                self._view, self._read_to, _PAGE, self.size, self._longest, most
            )
            return taken
        except ValueError as error:
            raise CaptureError("ring", errno.EIO, str(error)) from error

    def _take(self, most: int) -> bytes:
        """As c/bpf_ring.c, many times slower. Raises ValueError."""
        start = position = self._read_to[0]
        written = self._written_to[0]
        if written == position:
            return b""
        if not 0 < written - position <= self.size:
            raise ValueError(f"written to {written}, read to {position}")
        self._fence()
        data, mask, unpack = self._data, self.size - 1, _WORD.unpack_from
        places: list[tuple[int, int]] = []
        add = places.append
        end = min(written, start + most)
        while position < end:
            at = position & mask
            (length,) = unpack(data, at)
            if length >= _DISCARDED:
                if length & _BUSY:
                    break
                length ^= _DISCARDED
            elif length <= self._longest:
                add((at + _HEAD, at + _HEAD + length))
            else:
                raise ValueError(f"a record has {length} bytes")
            position += (length + _HEAD + 7) & ~7
        if position > written:
            raise ValueError("a record ends behind what was written")
        self._fence()
        taken = b"".join([data[first:last] for first, last in places])
        self._fence()
        self._read_to[0] = position
        return taken

    def close(self) -> None:
        for view in (self._read_to, self._written_to, self._data, self._view):
            view.release()
        self._mine.close()
        self._theirs.close()
