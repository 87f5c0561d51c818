"""DNS messages in the bytes of a TCP connection: each behind its length in two bytes (RFC 7766 §8).

Says nothing about what is in them. Invariant: at most one unfinished message is held, of at most
LONGEST_QUERY bytes.
"""

from __future__ import annotations

import struct

from substrate.world.egress.dns_codes import LONGEST_QUERY, BadQuery

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_SIZE: Final = struct.Struct(">H")


class Frames:
    """The messages in the bytes of a TCP connection. Holds at most one unfinished message."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are whole now; BadQuery where none can follow any more: the connection
        is to be closed."""
        data = self._held + data
        found = []
        at = 0
        while at + 2 <= len(data):
            (size,) = _SIZE.unpack_from(data, at)
            if not 0 < size <= LONGEST_QUERY:
                raise BadQuery(f"a DNS message of {size} bytes: at most {LONGEST_QUERY}")
            if at + 2 + size > len(data):
                break
            found.append(data[at + 2 : at + 2 + size])
            at += 2 + size
        self._held = data[at:]
        return found


def frame(message: bytes) -> bytes:
    """A message for a TCP connection."""
    return _SIZE.pack(len(message)) + message
