"""Finding and reading the contents of a pack, without changing a byte of it.

What readers, replay and exports use; the writer's `blobs.BlobPack` builds on it. It needs
no key and no lock: it is a view of what was there at the first use. The index is believed
only as far as the record at its offset says the same (else TraceCorrupt, E_BLOB).
trace.md §6; docs/adr/0001.
"""

from __future__ import annotations

import os

from substrate.errors import StateError, TraceCorrupt
from substrate.sha256 import bulk
from substrate.telemetry.trace.files import BLOBS, open_file
from substrate.telemetry.trace.pack import (
    INDEX_ENTRY_BYTES,
    LIVE,
    NO_DIGEST,
    REDACTED,
    Header,
    IndexEntry,
    commitment_of,
)
from substrate.telemetry.trace.pack_walk import (
    content_chunks,
    load_index,
    read_header,
    walk,
    walked_entry,
)
from substrate.telemetry.trace.system import REAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.telemetry.trace.system import System


class BlobReader:
    """Contents by commitment (64 hex digits). Opening reads nothing yet."""

    _open_flags = os.O_RDONLY
    _key: bytes | None = None

    def __init__(self, dir_fd: int, *, system: System = REAL) -> None:
        self._dir_fd = dir_fd
        self._system = system
        self._fd = -1
        self._loaded = False
        self._forget()

    def _forget(self) -> None:
        #: end of the last whole record
        self._end = 0
        #: commitment -> offset of its record, in the order of the pack
        self._offsets: dict[bytes, int] = {}
        #: keyed digest -> commitment
        self._shared: dict[bytes, bytes] = {}
        self._index_places: dict[bytes, int] = {}
        #: records behind the last one that the index knows
        self._unindexed: list[IndexEntry] = []

    def state(self, commitment: str) -> str:
        """`live`, `redacted` or `missing`."""
        key = parse_commitment(commitment)
        header = self._find(key)
        if header is None:
            return "missing"
        return "live" if header.state == LIVE else "redacted"

    def read(self, commitment: str) -> bytes:
        """The content, verified against the commitment.

        Raises StateError with code BLOB_MISSING or BLOB_REDACTED, TraceCorrupt (E_BLOB) if
        content or salt do not match.
        """
        key = parse_commitment(commitment)
        header = self._find(key)
        if header is None:
            raise missing_blob(commitment)
        if header.state == REDACTED:
            raise StateError(f"blob {commitment} was redacted", code="BLOB_REDACTED")
        offset = self._offsets[key]
        try:
            content = b"".join(content_chunks(self._system, self._fd, offset, header))
        except ValueError as error:
            raise _wrong_blob(commitment, offset) from error
        hasher = bulk(len(content))
        hasher.update(content)
        digest = hasher.digest()
        if len(content) != header.size or commitment_of(header.salt, digest) != key:
            raise _wrong_blob(commitment, offset)
        return content

    def commitments(self) -> list[str]:
        """All records in the order of the pack, redacted ones too."""
        self._load()
        return [key.hex() for key in self._offsets]

    def close(self) -> None:
        if self._fd >= 0:
            self._system.close(self._fd)
        self._fd = -1

    def _find(self, key: bytes) -> Header | None:
        """The header of a commitment; None if there is no such record."""
        self._load()
        if key not in self._offsets:
            return None
        return self._header_at(key)

    def _header_at(self, key: bytes) -> Header:
        offset = self._offsets[key]
        header = read_header(self._system, self._fd, offset, self._end)
        if header is None or header.commitment != key:
            raise _wrong_blob(key.hex(), offset)
        return header

    def _load(self) -> None:
        if self._loaded:
            return
        try:
            fd = open_file(self._system, self._dir_fd, BLOBS, self._open_flags)
        except FileNotFoundError:
            self._loaded = True
            return
        try:
            self._read_records(fd, self._system.size(fd))
        except BaseException:
            self._system.close(fd)
            raise
        self._fd = fd
        self._loaded = True

    def _read_records(self, fd: int, size: int) -> None:
        """Index first, then what stands behind its last record."""
        self._forget()
        for place, entry in enumerate(load_index(self._system, self._dir_fd, fd, size)):
            self._learn(entry)
            self._index_places[entry.commitment] = place * INDEX_ENTRY_BYTES
            self._end = entry.offset
        if self._index_places:
            last = read_header(self._system, fd, self._end, size)
            assert last is not None  # load_index has seen it
            self._end += last.record_bytes
        for offset, header in walk(self._system, fd, self._end, size):
            entry = walked_entry(self._system, fd, offset, header, self._key)
            self._end = offset + header.record_bytes
            self._unindexed.append(entry)
            self._learn(entry)

    def _learn(self, entry: IndexEntry) -> None:
        self._offsets[entry.commitment] = entry.offset
        if entry.digest != NO_DIGEST:
            self._shared[entry.digest] = entry.commitment


def parse_commitment(text: str) -> bytes:
    """The 32 bytes of a commitment; ValueError for any other text."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32 or key.hex() != text:
        raise ValueError(f"a commitment is 64 lower-case hex digits, got {text!r}")
    return key


def missing_blob(commitment: str) -> StateError:
    return StateError(f"no blob {commitment} in this session", code="BLOB_MISSING")


def _wrong_blob(commitment: str, offset: int) -> TraceCorrupt:
    return TraceCorrupt(
        f"blob {commitment} does not match its commitment",
        offset=offset,
        code="E_BLOB",
        hint="the pack was damaged or changed; delete blobs.idx if only the index is wrong",
    )
