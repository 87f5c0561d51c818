"""A `System` that fails on purpose: the fake for tests of writer, recovery and blobs.

It counts the calls that reach the kernel and misbehaves at one of them. The calls before
and after it are real, on real files. `DEATH` models `kill -9`: from that call on nothing
reaches the kernel any more. It does not model a power cut, which loses unsynced pages.
"""

from __future__ import annotations

import errno

from substrate.telemetry.trace.system import System

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: what a disk writes whole or not at all; the kernel copies even a page in one piece
_SECTOR = 512

#: Kinds of fault. SHORT writes half; SHORT_DEATH writes half and dies (a torn line).
ENOSPC, EIO, SHORT, DEATH, SHORT_DEATH = "ENOSPC", "EIO", "short", "death", "short-death"
FAULTS = (ENOSPC, EIO, SHORT, DEATH, SHORT_DEATH)


class Death(BaseException):
    """The process would be gone here. Not an `Exception`: no handler may go on."""


class FaultySystem(System):
    """Misbehaves at the `at`-th counted call (from 1), and only there unless `lasting`."""

    def __init__(self, at: int, fault: str, *, lasting: bool = False) -> None:
        self.at = at
        self.fault = fault
        self.lasting = lasting
        self.calls = 0
        self.hit = ""
        self.dead = False

    def _due(self, name: str) -> bool:
        if self.dead:
            raise Death(name)
        self.calls += 1
        due = self.calls == self.at or (self.lasting and self.calls > self.at)
        if due:
            self.hit = self.hit or name
        return due

    def _fail(self, name: str) -> None:
        if not self._due(name):
            return
        if self.fault in (DEATH, SHORT_DEATH):
            self.dead = True
            raise Death(name)
        if self.fault != SHORT:
            number = getattr(errno, self.fault)
            raise OSError(number, f"injected {self.fault} in {name}")

    def _cut(self, name: str, content: bytes | memoryview) -> bytes | memoryview:
        """What of `content` gets through at a write."""
        if not self._due(name):
            return content
        if self.fault == SHORT or self.fault == SHORT_DEATH:
            return content[: max(1, len(content) // 2)]
        if self.fault == DEATH:
            self.dead = True
            raise Death(name)
        raise OSError(getattr(errno, self.fault), f"injected {self.fault} in {name}")

    def _after_cut(self, name: str) -> None:
        if self.fault == SHORT_DEATH and self.calls == self.at:
            self.dead = True
            raise Death(name)

    def open(self, path: str, flags: int, mode: int, dir_fd: int) -> int:
        self._fail("open")
        return super().open(path, flags, mode, dir_fd)

    def read_at(self, fd: int, size: int, offset: int) -> bytes:
        if self._due("read_at"):
            if self.fault == SHORT:
                size = max(1, size // 2)
            else:
                self.calls -= 1
                self._fail("read_at")
        return super().read_at(fd, size, offset)

    def write(self, fd: int, content: bytes | memoryview) -> int:
        written = super().write(fd, self._cut("write", content))
        self._after_cut("write")
        return written

    def write_at(self, fd: int, content: bytes | memoryview, offset: int) -> int:
        cut = self._cut("write_at", content)
        if (
            self.fault == SHORT_DEATH
            and offset // _SECTOR == (offset + len(content) - 1) // _SECTOR
        ):
            cut = content
        written = super().write_at(fd, cut, offset)
        self._after_cut("write_at")
        return written

    def size(self, fd: int) -> int:
        self._fail("size")
        return super().size(fd)

    def fdatasync(self, fd: int) -> None:
        self._fail("fdatasync")
        super().fdatasync(fd)

    def fsync(self, fd: int) -> None:
        self._fail("fsync")
        super().fsync(fd)

    def truncate(self, fd: int, size: int) -> None:
        self._fail("truncate")
        super().truncate(fd, size)

    def rename(self, old: str, new: str, dir_fd: int) -> None:
        self._fail("rename")
        super().rename(old, new, dir_fd)

    def unlink(self, path: str, dir_fd: int) -> None:
        self._fail("unlink")
        super().unlink(path, dir_fd)

    def names(self, dir_fd: int) -> Iterable[str]:
        self._fail("names")
        return super().names(dir_fd)

    def try_lock(self, fd: int) -> bool:
        self._fail("try_lock")
        return super().try_lock(fd)

    def punch_hole(self, fd: int, offset: int, size: int) -> None:
        self._fail("punch_hole")
        super().punch_hole(fd, offset, size)
