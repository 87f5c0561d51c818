"""The requests that a client says on one connection of HTTP/1, and where each of them ends.

Sans-io: bytes are fed, heads come out, each is judged by somebody else before a byte of it
counts as passed. Only CRLF ends a line: a bare LF or CR is read as an end by some parsers and not
by others. Invariant: heads and the bytes that pass are the same however the stream is split; what
is kept is at most one head, or what came after a request that has to be answered first.

Sources: RFC 9112 §2.2, §6, §7.1, §9.3.
"""

from __future__ import annotations

from substrate.world.egress.http import FRAMING, Head, check_text, split_field
from substrate.world.egress.speech import MOST, BadSpeech, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# where in a request the stream is
_HEAD: Final = 0
_JUDGED: Final = 1  # its head waits for `accept`
_BODY: Final = 2
_SIZE: Final = 3  # a chunk's line
_CHUNK: Final = 4
_CHUNK_END: Final = 5
_TRAILER: Final = 6

_HEX: Final = b"0123456789abcdefABCDEF"
_LONGEST_SIZE: Final = 8  # digits
_MOST_CHUNK: Final = 1 << 31


class Requests:
    """`passed`: how many of the fed bytes may go out; `left`: how many bytes of a body come
    after them, whatever they are; `paused`: the request is complete and its answer decides."""

    __slots__ = (
        "_head",
        "_held",
        "_pause",
        "_searched",
        "_section",
        "_state",
        "left",
        "passed",
        "paused",
    )

    def __init__(self) -> None:
        self._head = Head()
        self._held = bytearray()
        self._searched = 0  # how much of `_held` has no end of a line
        self._section = 0  # bytes of the head or trailer that were taken from `_held`
        self._state = _HEAD
        self._pause = False
        self.left = 0
        self.passed = 0
        self.paused = False

    @property
    def half_said(self) -> bool:
        """Whether a head has begun and has not ended."""
        return self._state == _HEAD and bool(self._section or self._held) and not self.paused

    @property
    def in_body(self) -> bool:
        """Whether a head has passed whose request is not complete."""
        return self._state not in (_HEAD, _JUDGED)

    @property
    def held(self) -> int:
        """How many bytes wait that were not looked at."""
        return len(self._held)

    def feed(self, data: bytes) -> Head | None:
        """A complete head, which must be accepted before more is fed; None where there is none
        yet. Raises BadSpeech."""
        if self._state == _JUDGED:
            raise ValueError("the head was not accepted")
        self._held += data
        while not self.paused:
            if self._state in (_BODY, _CHUNK):
                if not self._take_body():
                    return None
            elif self._state == _CHUNK_END:
                if not self._take_chunk_end():
                    return None
            else:
                line = self._take_line()
                if line is None:
                    return None
                if self._line(line):
                    return self._head
        return None

    def accept(self, pause: bool = False) -> None:
        """Lets the head pass. With `pause` nothing after this request is looked at until
        `resume`; call `feed(b"")` to go on."""
        head = self._head
        self._head = Head()
        self._pause = pause
        self._pass_section()
        if head.chunked:
            self._state = _SIZE
        else:
            self._state = _BODY
            self.left = max(0, head.length)

    def resume(self) -> None:
        """Goes on after a pause, or takes back that there shall be one."""
        self.paused = self._pause = False

    def skip(self, count: int) -> None:
        """`count` of the `left` bytes went by unseen."""
        if not 0 <= count <= self.left or self._held:
            raise ValueError(f"{count} bytes cannot be skipped, {self.left} are left")
        self.left -= count

    def _take_body(self) -> bool:
        count = min(self.left, len(self._held))
        del self._held[:count]
        self.left -= count
        self.passed += count
        if self.left:
            return False
        if self._state == _CHUNK:
            self._state = _CHUNK_END
        else:
            self._end_request()
        return True

    def _take_chunk_end(self) -> bool:
        if len(self._held) < 2:
            return False
        if not self._held.startswith(b"\r\n"):
            raise BadSpeech("a chunk of the request does not end where it says")
        del self._held[:2]
        self.passed += 2
        self._state = _SIZE
        return True

    def _take_line(self) -> bytes | None:
        """The next line without its end, None where it is not complete."""
        held = self._held
        end = held.find(b"\n", self._searched)
        length = len(held) if end < 0 else end + 1
        if self._section + length > MOST:
            part = "head" if self._state == _HEAD else "chunk's line or trailer"
            raise BadSpeech(f"the request's {part} is longer than {MOST} bytes")
        if end < 0:
            self._searched = length
            return None
        line = bytes(held[:end])
        del held[:length]
        self._searched = 0
        self._section += length
        if line[-1:] != b"\r":
            raise BadSpeech("a line of the request ends with a bare line feed")
        return line[:-1]

    def _line(self, line: bytes) -> bool:
        """Takes a line; whether it completes a head."""
        if self._state == _HEAD:
            if not self._head.add(line):
                return False
            self._state = _JUDGED
            return True
        if self._state == _SIZE:
            self._chunk_line(line)
        elif line:
            check_text(line)
            name, _ = split_field(line)
            if name in FRAMING:
                raise BadSpeech(f"the field {show(name)} stands in a trailer")
            # The section goes on counting for its bound.
            self.passed += len(line) + 2
        else:
            self.passed += 2
            self._section = 0
            self._end_request()
        return False

    def _chunk_line(self, line: bytes) -> None:
        """RFC 9112 §7.1; a space after the size is refused, an extension is not read."""
        check_text(line)
        size = line.partition(b";")[0]
        if not size or size.translate(None, _HEX) or len(size) > _LONGEST_SIZE:
            raise BadSpeech(f"the request has a malformed chunk size: {show(line)}")
        self.left = int(size, 16)
        if self.left >= _MOST_CHUNK:
            raise BadSpeech(f"the request has a chunk of {self.left} bytes")
        self._pass_section()
        self._state = _CHUNK if self.left else _TRAILER

    def _pass_section(self) -> None:
        self.passed += self._section
        self._section = 0

    def _end_request(self) -> None:
        self._state = _HEAD
        self.paused = self._pause
        self._pause = False
