"""The byte format of the blob pack and of its index, and when deflating is worth it.

Bytes to values and back, no files. Invariant: `parse_header` believes a length only if the
check field over it fits, so that walking by seeking never follows a damaged length.
docs/adr/0001 "blobs and blobs.idx"; trace.md §6.
"""

from __future__ import annotations

import struct
import zlib

from substrate.sha256 import sha256
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

MAGIC = b"SBB1"
LIVE, REDACTED = 1, 2
IDENTITY, ZLIB = 0, 1
ENCODINGS = ("identity", "zlib")
NO_SALT = NO_DIGEST = bytes(32)

HEADER_BYTES = 96
INDEX_ENTRY_BYTES = 72
#: where state, encoding, sizes and salt stand: what a redaction rewrites in one piece
STATE_OFFSET, SALT_END = 4, 56

_HEADER = struct.Struct("<4sBBHQQ32s32s8s")
_INDEX_ENTRY = struct.Struct("<32s32sQ")
_CHECK_AT = 88

_HMAC_BLOCK = 64
_INNER_PAD = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD = bytes(byte ^ 0x5C for byte in range(256))

#: below this, zlib's own 11 bytes and the time are not worth what it saves
_TINY_BYTES = 128
_SAMPLE_BYTES = 4096
#: level 6 costs 25 µs/KiB on text, level 1 about 8: big recordings take the fast one
_BIG_BYTES = 1 << 18
_INFLATE_BYTES = 1 << 18


@value
class BlobRef:
    """What an event says of a blob (trace.md §6). `commitment` is hex, `size` in bytes."""

    commitment: str
    size: int
    media_type: str
    encoding: str

    def as_json(self) -> dict[str, Any]:
        return {
            "commitment": self.commitment,
            "size": self.size,
            "media_type": self.media_type,
            "encoding": self.encoding,
        }


@value
class Header:
    """One record's header. `size` and `stored_size` in bytes."""

    state: int
    encoding: int
    size: int
    stored_size: int
    salt: bytes
    commitment: bytes

    @property
    def record_bytes(self) -> int:
        return HEADER_BYTES + self.stored_size

    def ref(self, media_type: str) -> BlobRef:
        return BlobRef(
            commitment=self.commitment.hex(),
            size=self.size,
            media_type=media_type,
            encoding=ENCODINGS[self.encoding],
        )


@value
class IndexEntry:
    """`digest` is the keyed digest of the content, zeros if it must not be shared."""

    commitment: bytes
    digest: bytes
    offset: int


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """RFC 2104 with SHA-256. Written out, because importing `hmac` is not for the hot path."""
    if len(key) > _HMAC_BLOCK:
        key = sha256(key).digest()
    padded = key.ljust(_HMAC_BLOCK, b"\0")
    inner = sha256(padded.translate(_INNER_PAD) + message).digest()
    return sha256(padded.translate(_OUTER_PAD) + inner).digest()


def commitment_of(salt: bytes, digest: bytes) -> bytes:
    """HMAC-SHA256(salt, SHA-256(content)): the name of a blob (trace.md §6)."""
    return hmac_sha256(salt, digest)


def render_header(header: Header) -> bytes:
    packed = _HEADER.pack(
        MAGIC,
        header.state,
        header.encoding,
        0,
        header.size,
        header.stored_size,
        header.salt,
        header.commitment,
        bytes(8),
    )
    return packed[:_CHECK_AT] + _check(packed)


def parse_header(content: bytes) -> Header | None:
    """The header, or None if these are not the bytes of one."""
    if len(content) != HEADER_BYTES or content[_CHECK_AT:] != _check(content):
        return None
    magic, state, encoding, zero, size, stored, salt, commitment, _ = _HEADER.unpack(content)
    if magic != MAGIC or state not in (LIVE, REDACTED) or encoding not in (IDENTITY, ZLIB):
        return None
    if zero != 0 or (encoding == IDENTITY and size != stored):
        return None
    return Header(
        state=state,
        encoding=encoding,
        size=size,
        stored_size=stored,
        salt=salt,
        commitment=commitment,
    )


def never_finished(content: bytes) -> bool:
    """True if an invalid header can be what a death or a power cut leaves of an append.

    The header is written last and in one piece, so it is short, or zero in its first or
    last page. Anything else is damage to a record that was once whole.
    """
    if len(content) < HEADER_BYTES:
        return True
    return content[:4] == bytes(4) or content[_CHECK_AT:] == bytes(8)


def _check(header: bytes) -> bytes:
    return sha256(header[5:24] + header[56:_CHECK_AT]).digest()[:8]


def render_index_entry(entry: IndexEntry) -> bytes:
    return _INDEX_ENTRY.pack(entry.commitment, entry.digest, entry.offset)


def parse_index(content: bytes) -> list[IndexEntry]:
    """The whole entries in `content`; a cut last one is left out."""
    whole = len(content) - len(content) % INDEX_ENTRY_BYTES
    return [
        IndexEntry(commitment=commitment, digest=digest, offset=offset)
        for commitment, digest, offset in _INDEX_ENTRY.iter_unpack(content[:whole])
    ]


def worth_deflating(content: bytes | memoryview) -> bool:
    """A cheap test on at most 8 KiB of it: does deflate gain more than a sixteenth?"""
    size = len(content)
    if size < _TINY_BYTES:
        return False
    sample = bytes(content[:_SAMPLE_BYTES])
    if size > 4 * _SAMPLE_BYTES:
        sample += bytes(content[size // 2 : size // 2 + _SAMPLE_BYTES])
    return len(zlib.compress(sample, 1)) < len(sample) - len(sample) // 16


def deflate(content: bytes | memoryview) -> bytes:
    return zlib.compress(content, 6 if len(content) < _BIG_BYTES else 1)


def deflate_chunks(chunks: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """The same as a stream, for contents that are not held in memory."""
    packer = zlib.compressobj(1)
    for chunk in chunks:
        packed = packer.compress(chunk)
        if packed:
            yield packed
    yield packer.flush()


def inflate_chunks(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The content of a zlib stream, never more than `size` bytes of it plus one.

    A stream that is damaged, ends early or goes on after its end gives ValueError.
    """
    unpacker = zlib.decompressobj()
    left = size + 1
    try:
        for chunk in chunks:
            full = True
            while full and left:  # output that filled its limit may have more behind it
                limit = min(left, _INFLATE_BYTES)
                content = unpacker.decompress(chunk, limit)
                chunk = unpacker.unconsumed_tail
                full = len(content) == limit
                left -= len(content)
                if content:
                    yield content
            if not left or unpacker.unused_data:
                raise ValueError("more content than the header says")
    except zlib.error as error:
        raise ValueError(f"damaged zlib stream: {error}") from error
    if not unpacker.eof:
        raise ValueError("the zlib stream ends early")
