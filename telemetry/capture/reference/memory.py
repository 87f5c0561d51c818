"""Memory of a stopped task, by process_vm_readv(2).

Everything read here is hostile: other threads of the process may write it at this moment, so what
is read twice may differ. Invariant: reading never goes over the end of a page before all that lies
in front of it was read, so a text at the very end of a mapping is read whole.
"""

from __future__ import annotations

import ctypes
import struct

from substrate.telemetry.capture.records import MOST_PATH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_PAGE: Final = 4096  # the smallest of any machine; steps of it are right with greater ones
_TOP: Final = 1 << 64


class Unreadable(Exception):
    """The memory cannot be read: not mapped, or of a program that hides it (mode 0711, setuid).
    `text`: what was read before."""

    def __init__(self, text: bytes = b"") -> None:
        super().__init__()
        self.text = text


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_readv = ctypes.CDLL(None, use_errno=True).process_vm_readv
_readv.argtypes = (
    *(ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong),
    *(ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong),
)
_readv.restype = ctypes.c_ssize_t
_buffer = ctypes.create_string_buffer(_PAGE)
_view = memoryview(_buffer)
_ours = _Vector(ctypes.addressof(_buffer), 0)
_theirs = _Vector(0, 0)
_ours_at, _theirs_at = ctypes.addressof(_ours), ctypes.addressof(_theirs)


def _read_within_page(tid: int, address: int, size: int) -> bytes:
    if not 0 < address < _TOP - size:
        raise Unreadable
    _ours.length = _theirs.length = size
    _theirs.base = address
    got = _readv(tid, _ours_at, 1, _theirs_at, 1, 0)
    if got != size:
        raise Unreadable
    return bytes(_view[:size])


def read(tid: int, address: int, size: int) -> bytes:
    """Exactly `size` bytes. Raises Unreadable."""
    parts: list[bytes] = []
    while size > 0:
        try:
            part = _read_within_page(tid, address, min(size, _PAGE - address % _PAGE))
        except Unreadable:
            raise Unreadable(b"".join(parts)) from None
        parts.append(part)
        address += len(part)
        size -= len(part)
    return b"".join(parts)


def read_text(tid: int, address: int, most: int = MOST_PATH) -> tuple[bytes, bool]:
    """(the bytes before the NUL, whether there was none within `most`). Raises Unreadable."""
    return Texts(tid).text(address, most)


class Texts:
    """Texts that lie near each other: each page is read once."""

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self._pages: dict[int, bytes] = {}

    def text(self, address: int, most: int) -> tuple[bytes, bool]:
        """As read_text."""
        found = bytearray()
        while len(found) < most:
            page, offset = address - address % _PAGE, address % _PAGE
            content = self._pages.get(page)
            if content is None:
                try:
                    content = self._pages[page] = _read_within_page(self.tid, page, _PAGE)
                except Unreadable:
                    raise Unreadable(bytes(found)) from None
            end = content.find(b"\0", offset)
            if end >= 0:
                found += content[offset:end]
                return (bytes(found), False) if len(found) < most else (bytes(found[:most]), True)
            found += content[offset:]
            address += _PAGE - offset
        return bytes(found[:most]), True


def read_words(tid: int, address: int, width: int, most_bytes: int) -> tuple[bytes, bool]:
    """An argv: (its words, each with a NUL behind it; whether it was longer than `most_bytes`).

    `width`: of a pointer, 4 or 8 bytes. A null pointer is an argv without words, as the kernel
    takes it. Raises Unreadable."""
    if not address:
        return b"", False
    texts = Texts(tid)
    found = bytearray()
    pointer = struct.Struct("=I" if width == 4 else "=Q")
    while True:
        for (at,) in pointer.iter_unpack(_pointers(tid, address, width)):
            if not at:
                return bytes(found), False
            room = most_bytes - len(found)
            if room <= 0:
                return bytes(found), True
            text, cut = texts.text(at, room)
            found += text
            found.append(0)
            if cut:
                return bytes(found), True
            address += width


def _pointers(tid: int, address: int, width: int) -> bytes:
    """Some pointers from `address` on, one at least."""
    size = (_PAGE - address % _PAGE) // width * width
    if not size:
        return read(tid, address, width)
    try:
        return _read_within_page(tid, address, min(size, 64 * width))
    except Unreadable:
        return read(tid, address, width)
