"""Digests of files that were digested before: what a command reads is nearly always the same.

A file of fixed size in the home, mapped: no reading, no index, nothing to load for `-c`. An entry is
found by what a file is (its path, inode, size, times and mode; its ctime is the kernel's, and no
process can set it back) and by the kind of digest. Invariants: what does not check is not there, so
a torn entry, or a file that somebody damaged, costs a digest and tells no wrong one; who can write
to it can write to the traces as well (it lies in the home, 0600).

File: SLOTS entries of 64 bytes: 16 bytes of the key, 32 of the digest, 8 to check both, 8 unused. An
entry lies in one of the WAYS places from where its key points to.
"""

from __future__ import annotations

import mmap
import os
import struct

from substrate.sha256 import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

NAME: Final = b"/digests"
SLOTS: Final = 1 << 14
WAYS: Final = 4
_ENTRY: Final = struct.Struct("=16s32s8s8x")
#: on its disk, or there is none
_LEAST_FREE: Final = 32 << 20
#: a file that was changed a moment ago may be changed again within one tick of its clock
YOUNG_NS: Final = 2_000_000_000


class DigestCache:
    """Opened by `open_cache`."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    def find(self, key: bytes) -> str | None:
        """The digest, in hexadecimal, of what `key_of` made."""
        for at in self._places(key):
            found, digest, check = _ENTRY.unpack_from(self._memory, at)
            if found == key and check == _check(key, digest):
                return digest.hex()  # type: ignore[no-any-return]
        return None

    def keep(self, key: bytes, digest: str) -> None:
        """Remembers it, in place of another one if need be."""
        raw = bytes.fromhex(digest)
        places = self._places(key)
        free = next((at for at in places if self._memory[at : at + 16] == bytes(16)), None)
        at = places[key[4] % WAYS] if free is None else free
        _ENTRY.pack_into(self._memory, at, key, raw, _check(key, raw))

    def _places(self, key: bytes) -> tuple[int, ...]:
        first = int.from_bytes(key[:4], "little") % (SLOTS // WAYS) * WAYS
        return tuple((first + way) * _ENTRY.size for way in range(WAYS))

    def close(self) -> None:
        self._memory.close()


class NoCache:
    """What stands in where there is no room for one, or the caller's limit of file sizes (ulimit -f)
    does not allow it: everything is digested again."""

    def find(self, key: bytes) -> str | None:
        return None

    def keep(self, key: bytes, digest: str) -> None:
        return

    def close(self) -> None:
        return


def open_cache(home: bytes) -> DigestCache | NoCache:
    """The cache of a home; made, where there is none. Raises OSError for one that is not to be
    trusted."""
    size = SLOTS * _ENTRY.size
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(home + NAME, flags, 0o600)
    try:
        if os.fstat(fd).st_size != size:
            disk = os.fstatvfs(fd)
            if disk.f_bavail * disk.f_frsize < _LEAST_FREE:
                return NoCache()
            try:
                os.ftruncate(fd, size)
                os.posix_fallocate(fd, 0, size)  # a full disk would kill who writes to the mapping
            except OSError:
                os.ftruncate(fd, 0)
                return NoCache()
        return DigestCache(mmap.mmap(fd, size))
    finally:
        os.close(fd)


def key_of(kind: str, path: bytes, status: os.stat_result) -> bytes:
    """Of a file as it is. `kind`: of the digest, and whose key it is made with."""
    text = b"%s\0%d\0%d\0%d\0%d\0%d\0%s" % (
        kind.encode(),
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_mode,
        path,
    )
    return sha256(text).digest()[:16]


def is_settled(status: os.stat_result, now_ns: int) -> bool:
    """Whether a change after this look would show in its times."""
    return now_ns - max(status.st_mtime_ns, status.st_ctime_ns) > YOUNG_NS


def _check(key: bytes, digest: bytes) -> bytes:
    return sha256(key + digest).digest()[:8]
