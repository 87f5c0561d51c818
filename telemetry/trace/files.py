"""Opening, reading and writing the files of a session, and the `durable` record.

Every file is opened relative to the descriptor of its directory, never through a link
(O_NOFOLLOW), 0600, close-on-exec. No state is kept here; who may write when is the
writer's business. trace.md §1, §5; docs/adr/0001.
"""

from __future__ import annotations

import errno
import os
import stat

from substrate.errors import StateError
from substrate.telemetry.trace.envelope import GENESIS
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from substrate.telemetry.trace.system import System

TRACE = "trace.jsonl"
DURABLE = "durable"
LOCK = "lock"
BLOBS = "blobs"
BLOBS_INDEX = "blobs.idx"

_DURABLE_BYTES = 86
_CHUNK_BYTES = 1 << 18
_HEX = frozenset("0123456789abcdef")


@value
class Durable:
    """The synced prefix: `size` in bytes, `head` = hex SHA-256 of the last line in it."""

    size: int
    head: str


EMPTY_PREFIX = Durable(size=0, head=GENESIS)


def create_file(system: System, dir_fd: int, name: str, flags: int = 0) -> int:
    """Make a file that must not be there yet; read and write. The directory is not synced."""
    try:
        return system.open(
            name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | flags, 0o600, dir_fd
        )
    except FileExistsError as error:
        raise StateError(
            f"{name} is there already; a new session needs a new directory",
            hint="open the session instead of creating it",
        ) from error


def open_file(system: System, dir_fd: int, name: str, flags: int) -> int:
    """Open a regular file; a link, directory or device is refused as StateError."""
    try:
        fd = system.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StateError(f"{name} is a symbolic link, expected a regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        system.close(fd)
        raise StateError(f"{name} is not a regular file")
    return fd


def write_all(system: System, fd: int, content: bytes | memoryview) -> None:
    """write(2) until all is written. On an error part of it may be in the file."""
    done = system.write(fd, content)
    if done == len(content):
        return
    view = memoryview(content)
    while done < len(view):
        wrote = system.write(fd, view[done:])
        if wrote == 0:
            raise OSError(errno.EIO, "write(2) took no byte")
        done += wrote


def write_all_at(system: System, fd: int, content: bytes | memoryview, offset: int) -> None:
    """pwrite(2) until all is written; `fd` must not be O_APPEND."""
    done = system.write_at(fd, content, offset)
    if done == len(content):
        return
    view = memoryview(content)
    while done < len(view):
        wrote = system.write_at(fd, view[done:], offset + done)
        if wrote == 0:
            raise OSError(errno.EIO, "pwrite(2) took no byte")
        done += wrote


def read_exactly(system: System, fd: int, size: int, offset: int) -> bytes:
    """`size` bytes at `offset`, fewer only at the end of the file."""
    content = system.read_at(fd, size, offset)
    if len(content) == size or not content:
        return content
    parts, got = [content], len(content)
    while got < size:
        content = system.read_at(fd, size - got, offset + got)
        if not content:
            break
        parts.append(content)
        got += len(content)
    return b"".join(parts)


def read_chunks(system: System, fd: int, start: int, end: int) -> Iterator[bytes]:
    """The bytes from `start` to `end` (or the end of the file) in chunks of <= 256 KiB."""
    while start < end:
        content = system.read_at(fd, min(_CHUNK_BYTES, end - start), start)
        if not content:
            return
        yield content
        start += len(content)


def render_durable(durable: Durable) -> bytes:
    """The fixed-width record of docs/adr/0001: `"%020d <64 hex>\\n"`, 86 bytes."""
    return b"%020d %s\n" % (durable.size, durable.head.encode("ascii"))


def parse_durable(content: bytes) -> Durable | None:
    """The record, or None when it is not one: a reader then knows nothing, not zero."""
    if len(content) != _DURABLE_BYTES:
        return None
    text = content.decode("latin-1")
    digits, head = text[:20], text[21:85]
    if text[20] != " " or text[85] != "\n":
        return None
    if not (digits.isascii() and digits.isdigit()) or not _HEX.issuperset(head):
        return None
    return Durable(size=int(digits), head=head)


def load_durable(system: System, dir_fd: int) -> Durable | None:
    """What `durable` says, None when the file is missing or is not one whole record."""
    try:
        fd = open_file(system, dir_fd, DURABLE, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return parse_durable(read_exactly(system, fd, _DURABLE_BYTES + 1, 0))
    finally:
        system.close(fd)
