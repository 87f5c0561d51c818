"""Destroying the content and the salt of one record of the pack (trace.md §6).

It is not the `redaction` event, and it does not touch the index. Invariant: the record is
marked durably before its content goes, so a death at any moment leaves a blob that says
"redacted" and can be erased again, never one that looks damaged.
"""

from __future__ import annotations

import errno

from substrate.telemetry.trace.files import write_all_at
from substrate.telemetry.trace.pack import (
    HEADER_BYTES,
    NO_SALT,
    REDACTED,
    SALT_END,
    STATE_OFFSET,
    Header,
    render_header,
)
from substrate.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.telemetry.trace.system import System

_ZEROS_BYTES = 1 << 18


def erase_record(system: System, fd: int, offset: int, header: Header) -> None:
    """Mark, overwrite with zeros, give the blocks back; each step durable. Repeatable.

    The overwriting reaches the blocks of file systems that write in place (ext4, xfs); a
    copy-on-write one, a snapshot or an SSD's spare cells can keep the old ones. Raises
    OSError; after one from fdatasync the caller must not trust the pack any more.
    """
    marked = render_header(replace(header, state=REDACTED, salt=NO_SALT))
    write_all_at(system, fd, marked[STATE_OFFSET:SALT_END], offset + STATE_OFFSET)
    system.fdatasync(fd)
    start = offset + HEADER_BYTES
    _overwrite(system, fd, start, start + header.stored_size)
    system.fdatasync(fd)
    if header.stored_size:
        try:
            system.punch_hole(fd, start, header.stored_size)
        except OSError as error:  # the zeros stand; only the space is not given back
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        system.fdatasync(fd)


def _overwrite(system: System, fd: int, start: int, end: int) -> None:
    zeros = memoryview(bytes(min(_ZEROS_BYTES, end - start)))
    while start < end:
        piece = zeros[: end - start]
        write_all_at(system, fd, piece, start)
        start += len(piece)
