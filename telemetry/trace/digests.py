"""Keyed digests of contents (trace.md §6): a bare SHA-256 of a short secret is soon guessed.

What it is: the key of a home (`keys/digest.key`), HMAC-SHA256 (RFC 2104) of bytes and files
under it, and plain SHA-256 for what may be named openly (executables, installed packages).
What it is not: it is not the commitment of a blob, which has a salt of its own (`pack`).

Invariant: the key file has 32 bytes, belongs to this user, and nobody else can read it; it
is never made anew where there is one, because digests of old sessions would lose their
meaning. Digests are lower-case hex.
"""

from __future__ import annotations

import errno
import os
import stat

from substrate.errors import StateError
from substrate.sha256 import LARGE_BYTES, bulk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from hashlib import _Hash

KEY_BYTES = 32
_BLOCK_BYTES = 64
_READ_BYTES = 256 * 1024
_LEAST_READ_BYTES = 4096
_MOST_HELD = 64 * 1024
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))


class Digester:
    """HMAC-SHA256 under one key, whose halves are hashed once, at the first use.

    Once for each of the two SHA-256 that there are: what is small is not worth OpenSSL."""

    __slots__ = ("_given", "_key", "_states", "between")

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a digest key has {KEY_BYTES} bytes, not {len(key)}")
        self._key = key
        self._given = 0
        #: called between the pieces of a file of ours, where digesting must not hold up others
        self.between: Callable[[], None] | None = None
        self._states: dict[bool, tuple[_Hash, _Hash]] = {}

    def _halves(self, size: int) -> tuple[_Hash, _Hash]:
        """The states to begin with for a content of `size` bytes more; copy the first."""
        self._given += size
        large = self._given >= LARGE_BYTES
        if large not in self._states:
            padded = self._key.ljust(_BLOCK_BYTES, b"\0")
            inner, outer = bulk(self._given), bulk(self._given)
            inner.update(padded.translate(_INNER))
            outer.update(padded.translate(_OUTER))
            self._states[large] = inner, outer
        return self._states[large]

    def digest_bytes(self, content: bytes) -> str:
        inner, outer = self._halves(len(content))
        state = inner.copy()
        state.update(content)
        return _finish(state, outer)

    def digest_fd(self, fd: int) -> tuple[str, int]:
        """Digest and size of all that `fd` reads from offset 0; its position stays.

        `fd` must be seekable. The file may change meanwhile: compare the size, and (mtime,
        ctime) from before and after, where that matters.
        """
        expected = os.fstat(fd).st_size
        inner, outer = self._halves(expected)
        state = inner.copy()
        size = _feed(state, fd, expected)
        return _finish(state, outer), size

    def digest_own(self, fd: int) -> str:
        """Of a file that nobody else has open by this descriptor, whose position moves: as `digest_fd`,
        but what its filesystem says is a hole is not read (lseek(2)), and `between` is called."""
        status = os.fstat(fd)
        inner, outer = self._halves(status.st_size)
        state = inner.copy()
        if status.st_size > _READ_BYTES and status.st_blocks * 512 < status.st_size:
            _feed_sparse(state, fd, self.between)
        else:
            _feed(state, fd, status.st_size, self.between)
        return _finish(state, outer)

    def stream(self) -> StreamDigest:
        """A digest of content that comes piece by piece."""
        return StreamDigest(self._halves)


class StreamDigest:
    """The keyed digest of a stream; `Digester.digest_bytes` of all its pieces joined.

    Nobody knows how long it will be, so its beginning is held: most streams are short."""

    __slots__ = ("_halves", "_held", "_outer", "_state")

    def __init__(self, halves: Callable[[int], tuple[_Hash, _Hash]]) -> None:
        self._halves = halves
        self._held = bytearray()
        self._state: _Hash | None = None
        self._outer: _Hash

    def update(self, piece: bytes | bytearray | memoryview) -> None:
        """Takes the next piece."""
        if self._state is not None:
            self._state.update(piece)
            return
        self._held += piece
        if len(self._held) > _MOST_HELD:
            self._state, self._outer = self._begun(LARGE_BYTES)
            self._held.clear()

    def _begun(self, size: int) -> tuple[_Hash, _Hash]:
        inner, outer = self._halves(size)
        state = inner.copy()
        state.update(self._held)
        return state, outer

    def hexdigest(self) -> str:
        """Hex digest of what was given so far."""
        if self._state is not None:
            return _finish(self._state, self._outer)
        return _finish(*self._begun(len(self._held)))


def _finish(state: _Hash, outer: _Hash) -> str:
    total = outer.copy()
    total.update(state.digest())
    return total.hexdigest()


def sha256_fd(fd: int) -> tuple[str, int]:
    """Plain SHA-256 and size, for executables and files of installed packages."""
    expected = os.fstat(fd).st_size
    plain = bulk(expected)
    size = _feed(plain, fd, expected)
    return plain.hexdigest(), size


def _feed(state: _Hash, fd: int, expected: int, between: Callable[[], None] | None = None) -> int:
    """`expected`: bytes; it only decides how much is read at a time, since to clear a large
    buffer takes longer than to hash a small file."""
    buffer = bytearray(min(max(expected, _LEAST_READ_BYTES), _READ_BYTES))
    view = memoryview(buffer)
    size = 0
    while count := os.preadv(fd, [buffer], size):
        state.update(view[:count])
        size += count
        if between is not None:
            between()
    return size


def _feed_sparse(state: _Hash, fd: int, between: Callable[[], None] | None) -> None:
    """A file with holes: zeros, which are not read. What is there when it is read, counts."""
    buffer = bytearray(_READ_BYTES)
    view = memoryview(buffer)
    zeros = memoryview(bytes(_READ_BYTES))
    at = 0
    while True:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
            end = os.lseek(fd, data, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = end = os.fstat(fd).st_size  # only a hole is left
        while at < data:
            count = min(data - at, _READ_BYTES)
            state.update(zeros[:count])
            at += count
            if between is not None:
                between()
        while at < end:
            count = os.preadv(fd, [view[: min(end - at, _READ_BYTES)]], at)
            if not count:
                return  # it was cut meanwhile
            state.update(view[:count])
            at += count
            if between is not None:
                between()
        if at >= os.fstat(fd).st_size:
            return


def load_key(home: str, *, random: Callable[[int], bytes] = os.urandom) -> bytes:
    """The 32 bytes of `home`/keys/digest.key; made, mode 0600, if it is not there.

    Two processes that make it at once end up with the same key. Raises StateError if the
    file cannot be trusted or used; it is then left as it is.
    """
    folder = os.path.join(home, "keys")
    path = os.path.join(folder, "digest.key")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        try:
            return _read_key(path)
        except FileNotFoundError:
            _make_key(folder, path, random(KEY_BYTES))
        return _read_key(path)
    except OSError as problem:
        raise StateError(
            f"the digest key {path} cannot be used: {problem.strerror}",
            hint=_remedy(problem, path),
        ) from problem


def _read_key(path: str) -> bytes:
    # O_NOFOLLOW: a link could make us take somebody else's file for the key.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode):
            raise StateError(f"{path} is not a regular file", hint=f"remove {path}")
        if state.st_uid != os.geteuid():
            raise StateError(
                f"{path} belongs to uid {state.st_uid}, not to uid {os.geteuid()}",
                hint=f"chown {os.geteuid()} {path}, if you know who put it there",
            )
        if state.st_mode & 0o077:
            raise StateError(
                f"{path} has mode {state.st_mode & 0o7777:04o}: others can reach the key",
                hint=f"chmod 600 {path}; who has read it can test guesses against digests",
            )
        key = os.read(fd, KEY_BYTES + 1)
        if len(key) != KEY_BYTES:
            raise StateError(
                f"{path} has {state.st_size} bytes, expected {KEY_BYTES}",
                hint=f"put the right file back, or remove {path}: digests of older sessions "
                "will then not compare with new ones",
            )
        return key
    finally:
        os.close(fd)


def _make_key(folder: str, path: str, key: bytes) -> None:
    """Write aside and link: nobody ever sees half a key, and the first to link wins."""
    aside = os.path.join(folder, f".digest.key.{os.getpid()}.{os.urandom(4).hex()}")
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            if os.write(fd, key) != len(key):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            os.link(aside, path)
        except FileExistsError:
            return  # another process was first: its key is the key
    finally:
        os.unlink(aside)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _remedy(problem: OSError, path: str) -> str:
    if problem.errno == errno.ELOOP:
        return f"{path} is a symbolic link: remove it, and put the key itself there"
    if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "SUBSTRATE_HOME must be a directory that you can write to"
    return "see whether the disk is full and the directory is there"
