"""One line that is edited on a terminal: pure, bytes in, text out.

Only its end: letters are added, taken away by backspace, Ctrl-W (a word) and Ctrl-U (all). Escape
sequences of keys that it does not know are dropped whole. A line that comes in one piece with its end
was pasted, not decided: it is taken as text, without the end.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

DONE: Final = "done"
GIVEN_UP: Final = "given up"
_LONGEST: Final = 4096


class Line:
    """Begins with `text`."""

    def __init__(self, text: str) -> None:
        self._bytes = bytearray(text.encode())

    @property
    def text(self) -> str:
        return self._bytes.decode("utf-8", "replace")

    def feed(self, data: bytes) -> str:
        """Bytes that were read at one time; DONE, GIVEN_UP or "" while it goes on."""
        if data in (b"\r", b"\n"):
            return DONE
        if data in (b"\x1b", b"\x03", b"\x04"):
            return GIVEN_UP
        if b"\x1b" in data:
            data = data[: data.index(b"\x1b")]  # a key that is none of ours, and what came with it
        for byte in data:
            self._take(byte)
        return ""

    def _take(self, byte: int) -> None:
        if byte in (0x7F, 0x08):
            self._bytes = bytearray(self.text[:-1].encode())
        elif byte == 0x15:
            self._bytes.clear()
        elif byte == 0x17:
            left = self.text.rstrip()
            self._bytes = bytearray(left[: left.rfind(" ") + 1].encode())
        elif byte >= 0x20 and len(self._bytes) < _LONGEST:
            self._bytes.append(byte)
