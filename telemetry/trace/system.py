"""The system calls and clocks of the record, as one small object that tests can replace.

It is the only way by which writer, recovery and blobs reach the kernel, so a test can fail
each single call (`faulty.FaultySystem`: ENOSPC, EIO, short write, death) as trace.md §11
asks. It is not a file layer: no state, no retry, no policy. The calls follow PEP 475, so
EINTR is retried by Python below us and never seen here. Only Linux.
"""

from __future__ import annotations

import fcntl
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: fallocate(2): `FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE`
_PUNCH_HOLE_KEEP_SIZE = 0x01 | 0x02


class System:
    """The calls by their names in section 2 of the manual; all raise `OSError`."""

    def open(self, path: str, flags: int, mode: int, dir_fd: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode, dir_fd=dir_fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def read_at(self, fd: int, size: int, offset: int) -> bytes:
        """pread(2): at most `size` bytes, b"" at the end."""
        return os.pread(fd, size, offset)

    def write(self, fd: int, content: bytes | memoryview) -> int:
        return os.write(fd, content)

    def write_at(self, fd: int, content: bytes | memoryview, offset: int) -> int:
        """pwrite(2). On an O_APPEND descriptor Linux appends instead: never use it there."""
        return os.pwrite(fd, content, offset)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def rename(self, old: str, new: str, dir_fd: int) -> None:
        os.rename(old, new, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    def unlink(self, path: str, dir_fd: int) -> None:
        os.unlink(path, dir_fd=dir_fd)

    def names(self, dir_fd: int) -> Iterable[str]:
        return os.listdir(dir_fd)

    def try_lock(self, fd: int) -> bool:
        """flock(LOCK_EX | LOCK_NB): False if another open file description holds it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def punch_hole(self, fd: int, offset: int, size: int) -> None:
        """fallocate(2) FALLOC_FL_PUNCH_HOLE: give the blocks back, keep the length."""
        import ctypes  # only redaction needs it

        libc = ctypes.CDLL(None, use_errno=True)
        call = libc.fallocate
        call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        if call(fd, _PUNCH_HOLE_KEEP_SIZE, offset, size) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def random(self, size: int) -> bytes:
        return os.urandom(size)

    def wall_us(self) -> int:
        """CLOCK_REALTIME in microseconds since the epoch."""
        return time.time_ns() // 1000

    def mono_us(self) -> int:
        """CLOCK_BOOTTIME in microseconds: it goes on while the machine sleeps."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000

    def boot_id(self) -> str:
        """random(4): a UUID that is new at each boot of the kernel."""
        return _first_line("/proc/sys/kernel/random/boot_id")

    def pid(self) -> int:
        return os.getpid()

    def start_ticks(self) -> int:
        """Start of this process in clock ticks after boot (proc_pid_stat(5), field 22)."""
        return int(_first_line("/proc/self/stat").rpartition(")")[2].split()[19])


def _first_line(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).decode("utf-8", "surrogateescape").partition("\n")[0]
    finally:
        os.close(fd)


REAL = System()
