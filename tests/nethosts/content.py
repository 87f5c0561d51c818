"""Bytes of any length that both sides know: a period no buffer has, so that a piece which is lost,
doubled or moved changes the digest."""

import functools
import hashlib
from collections.abc import Iterator

_PERIOD = 65521  # a prime


@functools.cache
def _block() -> bytes:
    return hashlib.shake_256(b"the internet of the tests").digest(_PERIOD)


def pieces(length: int) -> Iterator[bytes]:
    """The first `length` bytes of the content, in pieces."""
    block = _block()
    for _ in range(length // _PERIOD):
        yield block
    if length % _PERIOD:
        yield block[: length % _PERIOD]


def content(length: int) -> bytes:
    return b"".join(pieces(length))


def digest(length: int) -> str:
    """SHA-256 of the content of this length, hexadecimal."""
    state = hashlib.sha256()
    for piece in pieces(length):
        state.update(piece)
    return state.hexdigest()
