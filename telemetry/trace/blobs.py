"""The blob pack of a session: contents that events name by commitment, and can lose again.

It holds raw commands, environments, recordings: what may be erased later (trace.md §6).
It does not know events; who names a blob in a line syncs the pack first (`writer.py`).
One process writes it, the holder of the session's lock; others use `BlobReader`.

Theory of operation. A record's header is written after its content, so a death in `put`
leaves a tail without a header, which the next `put` or opening cuts off. The index is
appended after the pack was synced, so its entries are durable contents; records beyond
its last entry are walked, checked, and written once more in place, because after a
failed sync the page cache can hold what the disk does not. Equal contents are shared by
a keyed digest, and an entry from an earlier opening is read and checked before anything
is made to share it: the index is a cache and proves nothing.
docs/adr/0001 "blobs and blobs.idx".
"""

from __future__ import annotations

import os
from _thread import allocate_lock

from substrate.errors import StateError
from substrate.sha256 import bulk
from substrate.telemetry.trace.blob_erase import erase_record
from substrate.telemetry.trace.blob_reader import BlobReader, missing_blob, parse_commitment
from substrate.telemetry.trace.files import (
    BLOBS,
    BLOBS_INDEX,
    open_file,
    read_chunks,
    write_all_at,
)
from substrate.telemetry.trace.pack import (
    HEADER_BYTES,
    IDENTITY,
    INDEX_ENTRY_BYTES,
    LIVE,
    NO_DIGEST,
    REDACTED,
    ZLIB,
    BlobRef,
    Header,
    IndexEntry,
    commitment_of,
    deflate,
    deflate_chunks,
    hmac_sha256,
    inflate_chunks,
    render_header,
    render_index_entry,
    worth_deflating,
)
from substrate.telemetry.trace.pack_walk import checked_digest, read_header
from substrate.telemetry.trace.system import REAL
from substrate.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from substrate.telemetry.trace.system import System

_SALT_BYTES = 32
_MIN_KEY_BYTES = 16
#: up to here, header and content go out in one write
_ONE_WRITE_BYTES = 1 << 18


class BlobPack(BlobReader):
    """The writer's pack. Opening reads nothing; the files are made by the first `put`.

    Thread-safe. `put` of chunks holds up other puts until its source ends, but no `sync`.
    A failed write leaves the pack as it was and may be tried again. A failed sync ends
    it (StateError from then on): the kernel has dropped what it could not write.
    """

    _open_flags = os.O_RDWR
    _key: bytes

    def __init__(self, dir_fd: int, digest_key: bytes, *, system: System = REAL) -> None:
        if len(digest_key) < _MIN_KEY_BYTES:
            raise ValueError(f"the digest key has fewer than {_MIN_KEY_BYTES} bytes")
        super().__init__(dir_fd, system=system)
        self._key = digest_key
        self._index_fd = -1
        self._index_end = 0
        #: commitments whose content was written, or read and checked, by this object
        self._checked: set[bytes] = set()
        self._directory_to_sync = False
        self._tail_to_cut = False
        self._failed = ""
        #: order: content before sync
        self._content_lock = allocate_lock()
        self._sync_lock = allocate_lock()
        #: there are contents that a power cut would take
        self.dirty = False

    @classmethod
    def create(cls, dir_fd: int, digest_key: bytes, *, system: System = REAL) -> BlobPack:
        """A new, empty pack; `digest_key` is `keys/digest.key`. The caller syncs the directory."""
        pack = cls(dir_fd, digest_key, system=system)
        pack._make_ready()
        pack._directory_to_sync = False
        return pack

    @classmethod
    def open(cls, dir_fd: int, digest_key: bytes, *, system: System = REAL) -> BlobPack:
        """For the holder of the session's lock. A pack that is not there is made when needed."""
        return cls(dir_fd, digest_key, system=system)

    def recover(self) -> None:
        """After an unclean end: cut an unfinished tail, finish redactions that were begun."""
        self._load()
        if self._fd >= 0:
            self._make_ready()
            self._finish_redactions()

    # --- writing ----------------------------------------------------------------------------

    def put(self, content: bytes | Iterable[bytes], media_type: str) -> BlobRef:
        """Store a content, or find the equal one; durable after the next `sync`.

        Chunks (an iterable of bytes) are written as they come and held nowhere else. Raises
        OSError (ENOSPC …) with nothing stored, StateError after a failed sync.
        """
        with self._content_lock:
            self._make_ready()
            try:
                if isinstance(content, bytes):
                    return self._put_bytes(content, media_type)
                return self._put_chunks(content, media_type)
            except BaseException:
                self._tail_to_cut = True
                raise

    def _put_bytes(self, content: bytes, media_type: str) -> BlobRef:
        hasher = bulk(len(content))
        hasher.update(content)
        digest = hasher.digest()
        known = self._find_equal(digest, len(content))
        if known is not None:
            return known.ref(media_type)
        stored, encoding = content, IDENTITY
        if worth_deflating(content):
            packed = deflate(content)
            if len(packed) < len(content):
                stored, encoding = packed, ZLIB
        header = self._header_for(digest, len(content), len(stored), encoding)
        if len(stored) <= _ONE_WRITE_BYTES:
            write_all_at(self._system, self._fd, render_header(header) + stored, self._end)
        else:
            write_all_at(self._system, self._fd, stored, self._end + HEADER_BYTES)
            write_all_at(self._system, self._fd, render_header(header), self._end)
        self._keep(header, digest)
        return header.ref(media_type)

    def _put_chunks(self, chunks: Iterable[bytes], media_type: str) -> BlobRef:
        hasher = bulk()
        size = 0

        def watched() -> Iterator[bytes]:
            nonlocal size
            for chunk in filter(None, chunks):
                hasher.update(chunk)
                size += len(chunk)
                yield chunk

        source = watched()
        first = next(source, b"")
        source = _chain(first, source)
        start = self._end + HEADER_BYTES
        encoding = ZLIB if worth_deflating(first) else IDENTITY
        stored = self._write_chunks(deflate_chunks(source) if encoding == ZLIB else source, start)
        digest = hasher.digest()
        known = self._find_equal(digest, size)
        if known is not None:
            self._tail_to_cut = True
            return known.ref(media_type)
        if encoding == ZLIB and stored >= size:  # the beginning promised too much
            self._inflate_in_place(start, stored, size)
            encoding, stored = IDENTITY, size
        header = self._header_for(digest, size, stored, encoding)
        write_all_at(self._system, self._fd, render_header(header), self._end)
        self._keep(header, digest)
        return header.ref(media_type)

    def _write_chunks(self, chunks: Iterable[bytes], offset: int) -> int:
        written = 0
        for chunk in chunks:
            write_all_at(self._system, self._fd, chunk, offset + written)
            written += len(chunk)
        return written

    def _inflate_in_place(self, start: int, stored: int, size: int) -> None:
        """Write the content behind its deflated form, then move it down over that form."""
        behind = start + stored
        packed = self._read_chunks(start, behind)
        self._write_chunks(inflate_chunks(packed, size), behind)
        self._write_chunks(self._read_chunks(behind, behind + size), start)
        self._system.truncate(self._fd, start + size)

    def _read_chunks(self, start: int, end: int) -> Iterator[bytes]:
        return read_chunks(self._system, self._fd, start, end)

    def _header_for(self, digest: bytes, size: int, stored: int, encoding: int) -> Header:
        salt = self._system.random(_SALT_BYTES)
        return Header(
            state=LIVE,
            encoding=encoding,
            size=size,
            stored_size=stored,
            salt=salt,
            commitment=commitment_of(salt, digest),
        )

    def _keep(self, header: Header, digest: bytes) -> None:
        keyed = hmac_sha256(self._key, digest)
        entry = IndexEntry(commitment=header.commitment, digest=keyed, offset=self._end)
        self._unindexed.append(entry)
        self._learn(entry)
        self._checked.add(header.commitment)
        self._end += header.record_bytes
        self.dirty = True

    def _find_equal(self, digest: bytes, size: int) -> Header | None:
        """The record of an equal content. One of an earlier opening is read and checked first."""
        commitment = self._shared.get(hmac_sha256(self._key, digest))
        if commitment is None:
            return None
        offset = self._offsets[commitment]
        header = read_header(self._system, self._fd, offset, self._end)
        if header is None or header.commitment != commitment or header.state != LIVE:
            return None
        if commitment not in self._checked:
            if checked_digest(self._system, self._fd, offset, header) != digest:
                return None
            self._checked.add(commitment)
        return header if header.size == size else None

    def sync(self) -> None:
        """Make every blob that was put durable, then note them in the index.

        Raises OSError if the disk does not take it; the pack is of no use after that. An
        index that cannot be written waits for the next sync: it is a cache.
        """
        with self._sync_lock:
            if not self.dirty:
                return
            self._need_usable()
            synced = self._unindexed[:]
            self.dirty = False  # from here on, a put makes it dirty again
            try:
                self._sync_file(self._fd)
                if self._directory_to_sync:
                    self._sync_file(self._dir_fd)
                    self._directory_to_sync = False
            except BaseException:
                self.dirty = True
                raise
            try:
                self._write_index(synced)
            except OSError:
                return  # _unindexed keeps them

    def _sync_file(self, fd: int) -> None:
        try:
            if fd == self._dir_fd:
                self._system.fsync(fd)
            else:
                self._system.fdatasync(fd)
        except OSError as error:
            self._failed = f"the blob pack could not be synced: {error.strerror}"
            raise

    def _write_index(self, synced: list[IndexEntry]) -> None:
        added = b"".join(map(render_index_entry, synced))
        write_all_at(self._system, self._index_fd, added, self._index_end)
        for entry in synced:
            self._index_places[entry.commitment] = self._index_end
            self._index_end += INDEX_ENTRY_BYTES
        del self._unindexed[: len(synced)]

    def redact(self, commitment: str) -> None:
        """Destroy content and salt of a blob for good; doing it again is harmless.

        A death in between is finished by the next opening. Append the `redaction` event,
        synced, before: a reader takes a missing content without one for an integrity
        failure. Raises StateError (BLOB_MISSING) if there is no such blob.
        """
        key = parse_commitment(commitment)
        with self._content_lock, self._sync_lock:
            self._load()
            if key not in self._offsets:
                raise missing_blob(commitment)
            self._make_ready()
            self._erase(key, self._header_at(key))

    def _erase(self, key: bytes, header: Header) -> None:
        try:
            erase_record(self._system, self._fd, self._offsets[key], header)
        except OSError as error:
            self._failed = f"a redaction was cut short: {error.strerror}"
            raise
        self._shared = {d: c for d, c in self._shared.items() if c != key}
        self._unindexed = [
            replace(e, digest=NO_DIGEST) if e.commitment == key else e for e in self._unindexed
        ]
        place = self._index_places.get(key)
        if place is not None:
            write_all_at(self._system, self._index_fd, NO_DIGEST, place + len(key))
            self._sync_file(self._index_fd)

    def close(self) -> None:
        """Close the files. What was not synced is found again by the next opening."""
        super().close()
        if self._index_fd >= 0:
            self._system.close(self._index_fd)
        self._index_fd = -1
        self._failed = self._failed or "the blob pack is closed"

    # --- getting ready ----------------------------------------------------------------------

    def _need_usable(self) -> None:
        if self._failed:
            raise StateError(
                self._failed, hint="open the session again: recovery looks at what is there"
            )

    def _load(self) -> None:
        self._need_usable()
        super()._load()

    def _make_ready(self) -> None:
        """Before a write: files there, nothing behind the last whole record."""
        self._load()
        if self._index_fd < 0:
            self._open_for_writing()
        if self._tail_to_cut:
            self._system.truncate(self._fd, self._end)
            self._tail_to_cut = False

    def _open_for_writing(self) -> None:
        flags = os.O_RDWR | os.O_CREAT
        if self._fd < 0:
            self._fd = open_file(self._system, self._dir_fd, BLOBS, flags)
            self._directory_to_sync = True
        index_fd = open_file(self._system, self._dir_fd, BLOBS_INDEX, flags)
        try:
            self._index_end = len(self._index_places) * INDEX_ENTRY_BYTES
            self._system.truncate(index_fd, self._index_end)
            self._tail_to_cut = self._system.size(self._fd) > self._end
            self._index_fd = index_fd
            self._write_tail_again()
        except BaseException:
            self._system.close(index_fd)
            self._index_fd = -1
            raise

    def _write_tail_again(self) -> None:
        """Make the records that no index vouches for go to the disk at the next sync."""
        for entry in self._unindexed:
            end = entry.offset + self._header_at(entry.commitment).record_bytes
            self._write_chunks(self._read_chunks(entry.offset, end), entry.offset)
        self.dirty = bool(self._unindexed)

    def _finish_redactions(self) -> None:
        suspects = set(self._shared.values())
        suspects.update(entry.commitment for entry in self._unindexed)
        for key in suspects:
            header = self._header_at(key)
            if header.state == REDACTED:
                self._erase(key, header)


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest
