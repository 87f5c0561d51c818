"""Where each of a server's answers of HTTP/1 ends. Logic only.

For one thing: that what is said to a client in the server's stead comes between two answers, and not into
one. It judges nothing and refuses nothing: a server that frames its answers oddly spoils its own, and
where an end cannot be told, `lost` says so; then the connection's end is the answer's.

Invariants: the bytes and ends are the same however the stream is split; of a head nothing is kept but
what decides about its end, and a line that is not complete. Sources: RFC 9112 §6, §7.1;
RFC 9110 §15.2.
"""

from __future__ import annotations

from substrate.world.egress.speech import MOST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from typing import Final
else:
    from _collections import deque

# where in an answer the stream is
_HEAD: Final = 0
_BODY: Final = 1
_SIZE: Final = 2  # a chunk's line
_CHUNK: Final = 3  # with the two bytes behind it
_TRAILER: Final = 4

_DIGITS: Final = b"0123456789"
_HEX: Final = b"0123456789abcdefABCDEF"
_LONGEST_NUMBER: Final = 15
_MOST_EXPECTED: Final = 1024


class Replies:
    """`left`: how many bytes of a body come next, whatever they are, -1 where `lost`; `expected`: how many
    requests are not answered completely."""

    __slots__ = (
        *("_coding", "_first", "_held", "_is_head", "_length", "_lengths", "_state"),
        *("left", "lost"),
    )

    def __init__(self) -> None:
        self._is_head: deque[bool] = deque()  # of each request that waits: an answer without a body
        self._held = bytearray()
        self._first = b""  # of the head's first line, what tells the status
        self._lengths: tuple[bytes, ...] = ()  # different ones, two at most
        self._coding: bytes | None = None  # the last one
        self._length = 0  # of the head, trailer, or line of a chunk until now
        self._state = _HEAD
        self.left = 0
        self.lost = False

    @property
    def expected(self) -> int:
        return len(self._is_head)

    def expect(self, method: bytes) -> None:
        """A request goes out."""
        if len(self._is_head) < _MOST_EXPECTED:
            self._is_head.append(method == b"HEAD")
        else:
            self._lose()

    def skip(self, count: int) -> None:
        """`count` of the `left` bytes went by unseen."""
        if self.lost:
            return
        if not 0 <= count <= self.left or self._held:
            raise ValueError(f"{count} bytes cannot be skipped, {self.left} are left")
        self.left -= count
        if not self.left:
            self._body_ends()

    def feed(self, data: bytes) -> None:
        """What the server says next."""
        if self.lost:
            return
        held = self._held
        held += data
        while held and not self.lost:
            if self._state in (_BODY, _CHUNK):
                count = min(self.left, len(held))
                del held[:count]
                self.left -= count
                if not self.left:
                    self._body_ends()
                continue
            end = held.find(b"\n")
            if self._length + (len(held) if end < 0 else end) > MOST:
                self._lose()
            elif end < 0:
                return
            else:
                line = bytes(held[:end]).removesuffix(b"\r")
                del held[: end + 1]
                self._length += end + 1
                self._line(line)

    def _lose(self) -> None:
        self.lost, self.left = True, -1
        self._held.clear()

    def _line(self, line: bytes) -> None:
        if self._state == _SIZE:
            self._chunk(line)
        elif line and self._state == _HEAD:
            if self._first:
                self._field(line)
            else:
                self._first = line[:13]
        elif line:
            pass  # a trailer's
        elif self._state == _TRAILER:
            self._answer_ends()
        else:
            self._head_ends()

    def _field(self, line: bytes) -> None:
        name, _, text = line.partition(b":")
        kind = name.strip(b" \t").lower()
        if kind == b"content-length":
            for part in text.split(b","):
                length = part.strip(b" \t")
                if length not in self._lengths:
                    self._lengths = (*self._lengths, length)[:2]
        elif kind == b"transfer-encoding":
            self._coding = text.rpartition(b",")[2].strip(b" \t").lower()

    def _chunk(self, line: bytes) -> None:
        size = line.partition(b";")[0].strip(b" \t")
        if not size or size.translate(None, _HEX) or len(size) > _LONGEST_NUMBER:
            self._lose()
            return
        self._length = 0
        self.left = int(size, 16)
        self._state = _CHUNK if self.left else _TRAILER
        if self.left:
            self.left += 2  # the line's end behind it

    def _head_ends(self) -> None:
        first, lengths, coding = self._first, self._lengths, self._coding
        self._begin_head()
        status = first[9:12]
        if first[:7] != b"HTTP/1." or len(status) != 3 or status.translate(None, _DIGITS):
            self._lose()
        elif status == b"101" or not self._is_head:
            self._lose()  # another protocol; an answer that nobody has asked for
        elif status[:1] != b"1":
            self._begin_body(status, lengths, coding)

    def _begin_head(self) -> None:
        self._first, self._lengths, self._coding = b"", (), None
        self._length = 0

    def _begin_body(self, status: bytes, lengths: tuple[bytes, ...], coding: bytes | None) -> None:
        if self._is_head[0] or status in (b"204", b"304"):
            self._answer_ends()
        elif coding is not None:
            self._state = _SIZE
            if coding != b"chunked":
                self._lose()
        elif len(lengths) != 1:
            self._lose()  # none: until the connection ends
        elif (
            not lengths[0]
            or lengths[0].translate(None, _DIGITS)
            or len(lengths[0]) > _LONGEST_NUMBER
        ):
            self._lose()
        else:
            self._state, self.left = _BODY, int(lengths[0])
            if not self.left:
                self._answer_ends()

    def _body_ends(self) -> None:
        if self._state == _CHUNK:
            self._state = _SIZE
        else:
            self._answer_ends()

    def _answer_ends(self) -> None:
        self._is_head.popleft()
        self._state = _HEAD
        self._begin_head()
