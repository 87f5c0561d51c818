"""Reading the records and the index of a pack: where they are, and whether the index fits.

Reads only; nothing is repaired here. Invariant: what is given back as a record has a whole
header and all its stored bytes inside the file; what follows the last one is a tail that
no append finished, or TraceCorrupt is raised. docs/adr/0001; trace.md §6.
"""

from __future__ import annotations

import os

from substrate.errors import TraceCorrupt
from substrate.sha256 import bulk
from substrate.telemetry.trace.files import BLOBS_INDEX, open_file, read_chunks, read_exactly
from substrate.telemetry.trace.pack import (
    HEADER_BYTES,
    INDEX_ENTRY_BYTES,
    LIVE,
    MAGIC,
    NO_DIGEST,
    ZLIB,
    Header,
    IndexEntry,
    commitment_of,
    hmac_sha256,
    inflate_chunks,
    never_finished,
    parse_header,
    parse_index,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from substrate.telemetry.trace.system import System

_SEARCH_BYTES = 1 << 18


def read_header(system: System, fd: int, offset: int, end: int) -> Header | None:
    """The header at `offset` if it is whole and its content ends at or before `end`."""
    header = parse_header(read_exactly(system, fd, HEADER_BYTES, offset))
    if header is None or offset + header.record_bytes > end:
        return None
    return header


def walk(system: System, fd: int, start: int, end: int) -> Iterator[tuple[int, Header]]:
    """The records from `start` on, up to `end` or to a tail that was never finished.

    Raises TraceCorrupt at a record that was once whole, and, if nothing is known before
    (`start` 0), at a tail behind which another record follows: a zeroed page in the middle
    must not be taken for the end, it would cut away contents that lines name.
    """
    offset = start
    while offset < end:
        content = read_exactly(system, fd, HEADER_BYTES, offset)
        header = parse_header(content)
        if header is None:
            # Behind an index stands only what was never synced; without one, anything may.
            search = start == 0
            if not never_finished(content) or (
                search and _record_follows(system, fd, offset + 1, end)
            ):
                raise TraceCorrupt(
                    "a record of the blob pack is damaged",
                    offset=offset,
                    code="E_BLOB",
                    hint="take the pack from a copy; nothing was changed",
                )
            return
        if offset + header.record_bytes > end:
            return
        yield offset, header
        offset += header.record_bytes


def _record_follows(system: System, fd: int, start: int, end: int) -> bool:
    """Is there a whole record anywhere in `start`..`end`? A magic alone is not one."""
    while start < end:
        content = read_exactly(system, fd, min(_SEARCH_BYTES, end - start), start)
        found = content.find(MAGIC)
        while found >= 0:
            if read_header(system, fd, start + found, end) is not None:
                return True
            found = content.find(MAGIC, found + 1)
        if len(content) < _SEARCH_BYTES:
            return False
        start += len(content) - len(MAGIC) + 1
    return False


def load_index(system: System, dir_fd: int, fd: int, end: int) -> list[IndexEntry]:
    """The entries of `blobs.idx` that fit the pack `fd` of `end` bytes; [] if they do not.

    They fit if their offsets begin at 0 and rise and the last one names a record that is
    there. What stands between them is checked when it is used.
    """
    try:
        index_fd = open_file(system, dir_fd, BLOBS_INDEX, os.O_RDONLY)
    except FileNotFoundError:
        return []
    try:
        size = system.size(index_fd)
        # An index larger than one entry per smallest record is not of this pack.
        if size > (end // HEADER_BYTES + 1) * INDEX_ENTRY_BYTES:
            return []
        entries = parse_index(read_exactly(system, index_fd, size, 0))
    finally:
        system.close(index_fd)
    if not entries or entries[0].offset != 0:
        return []
    before = -1
    for entry in entries:
        if entry.offset <= before:
            return []
        before = entry.offset
    last = read_header(system, fd, entries[-1].offset, end)
    if last is None or last.commitment != entries[-1].commitment:
        return []
    return entries


def content_chunks(system: System, fd: int, offset: int, header: Header) -> Iterator[bytes]:
    """The content of a live record in chunks, not verified. ValueError if it cannot be."""
    start = offset + HEADER_BYTES
    stored = read_chunks(system, fd, start, start + header.stored_size)
    if header.encoding == ZLIB:
        return inflate_chunks(stored, header.size)
    return stored


def checked_digest(system: System, fd: int, offset: int, header: Header) -> bytes | None:
    """SHA-256 of the content of a live record if it matches its commitment, else None."""
    hasher = bulk(header.size)
    size = 0
    try:
        for chunk in content_chunks(system, fd, offset, header):
            hasher.update(chunk)
            size += len(chunk)
    except ValueError:
        return None
    digest = hasher.digest()
    if header.state != LIVE or size != header.size:
        return None
    return digest if commitment_of(header.salt, digest) == header.commitment else None


def walked_entry(
    system: System, fd: int, offset: int, header: Header, digest_key: bytes | None
) -> IndexEntry:
    """The index entry of a record without one: shared only if its content verifies."""
    digest = None
    if digest_key is not None and header.state == LIVE:
        digest = checked_digest(system, fd, offset, header)
    return IndexEntry(
        commitment=header.commitment,
        digest=hmac_sha256(digest_key, digest) if digest_key and digest else NO_DIGEST,
        offset=offset,
    )
