"""What small text files were before a world changed them: the base that a merge needs.

Not a backup and not a reverse layer: nothing is promised to be here. `<world>/bases/<digest>`
holds a content under its keyed digest, so equal ones are kept once, and what a power cut left
of one is not taken for it. Bounded for each file and each layer. Invariant: what `load` gives
has the digest that it was asked for. Spec: world.md §5.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NAME = b"bases"
LARGEST_BYTES = 256 * 1024
_LAYER_BYTES = 16 * 1024 * 1024
_LAYER_FILES = 1000
_BINARY_WITHIN = 8192  # bytes in which a NUL says that it is no text


def is_text(content: bytes) -> bool:
    """Whether it can be merged by lines, whatever its encoding."""
    return b"\0" not in content[:_BINARY_WITHIN]


class Preimages:
    """The writer, for one layer. `digest_bytes` is the digest that files are asked for by."""

    def __init__(self, directory: bytes, digest_bytes: Callable[[bytes], str]) -> None:
        self._directory = directory
        self._digest = digest_bytes
        self._files = _LAYER_FILES
        self._bytes = _LAYER_BYTES

    def keep(self, fd: int, size: int, digest: str) -> None:
        """Keeps the content of a regular file, unless it is large, no text, or not what the
        digest is of any more. A disk without room keeps nothing more and fails nobody: the
        merge that misses it says so."""
        if size > min(LARGEST_BYTES, self._bytes) or not self._files:
            return
        content = os.pread(fd, size + 1, 0)
        if not is_text(content) or self._digest(content) != digest:
            return
        path = self._directory + b"/" + digest.encode()
        try:
            if _is_there(path, size):
                return
            self._write(path, content)
        except OSError:
            self._files = 0
            return
        self._files -= 1
        self._bytes -= size

    def _write(self, path: bytes, content: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        unfinished = self._directory + b"/new"  # under the lock of the session: one writer
        try:
            fd = os.open(unfinished, flags, 0o600)
        except FileNotFoundError:
            os.mkdir(self._directory, 0o700)
            fd = os.open(unfinished, flags, 0o600)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(fd, rest) :]
        finally:
            os.close(fd)
        os.rename(unfinished, path)


def _is_there(path: bytes, size: int) -> bool:
    try:
        return os.stat(path, follow_symlinks=False).st_size == size
    except FileNotFoundError:
        return False


def remove_with_layers(layers_directory: bytes) -> None:
    """Removes what is kept of a world when it has no layer on the disk any more. Raises
    OSError."""
    if os.path.isdir(layers_directory) and os.listdir(layers_directory):
        return
    directory = os.path.dirname(layers_directory) + b"/" + NAME
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in names:
        os.unlink(directory + b"/" + name)
    os.rmdir(directory)


def load(
    directories: Sequence[bytes], digest: str, digest_bytes: Callable[[bytes], str]
) -> bytes | None:
    """A content that one of the directories keeps; None where none does, or not any more as
    it was. Raises OSError."""
    if not digest.isalnum():
        return None  # no digest, and no name of ours
    for directory in directories:
        try:
            fd = os.open(
                directory + b"/" + digest.encode(),
                os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
            )
        except FileNotFoundError:
            continue
        try:
            content = os.pread(fd, LARGEST_BYTES + 1, 0)
        finally:
            os.close(fd)
        if digest_bytes(content) == digest:
            return content
    return None
