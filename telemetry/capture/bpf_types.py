"""Where members of kernel structures lie, as the running kernel itself says (BTF).

Not a BTF library: it finds the first structure of a name, and members that are no bit fields (also
those of unnamed structures and unions in it), and reads only as much of /sys/kernel/btf/vmlinux as that needs (all of it is 5 MB, and this is on the
way of a command). Invariant: an offset comes from the kernel's own description, or TypesUnknown
says what is missing; nothing is guessed.

The type section is searched for the name's number instead of walked (100000 types); what is
found must look like a structure whose members have names and lie inside it.

Sources: Documentation/bpf/btf.rst; <linux/btf.h>.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

VMLINUX: Final = "/sys/kernel/btf/vmlinux"
_MAGIC: Final = 0xEB9F
_HEADER: Final = struct.Struct("<HBBIIIII")
_TYPE: Final = struct.Struct("<III")
_STRUCT, _UNION = 4, 5
#: by kind: bytes behind the head of a type, and for each of its parts
_SIZES: Final = {
    1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12),
    17: (4, 0), 19: (0, 12),
}  # fmt: skip
_KINDS: Final = 19
#: structures in structures
_MOST_DEPTH: Final = 4
#: what is read of each section at first: core types lie there; then four times as much
_FIRST_BYTES: Final = 256 * 1024


class TypesUnknown(Exception):
    """The kernel does not describe what is needed."""


class Types:
    """The description of one kernel. Raises TypesUnknown, also for bytes that are none."""

    def __init__(self, path: str = VMLINUX) -> None:
        self._path = path
        self._known: dict[tuple[bytes, bool], dict[bytes, int]] = {}
        self._places: list[int] = []
        self._read(_FIRST_BYTES)

    def _read(self, most: int) -> None:
        path = self._path
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise TypesUnknown(f"{path}: {error.strerror}") from error
        try:
            head = os.pread(fd, _HEADER.size, 0)
            if len(head) < _HEADER.size:
                raise TypesUnknown(f"{path} has {len(head)} bytes")
            magic, version, _, size, types_at, types, texts_at, texts = _HEADER.unpack(head)
            if magic != _MAGIC or version != 1:
                raise TypesUnknown(f"{path} is no BTF of version 1 for this machine")
            self._types = _read_at(fd, size + types_at, min(most, types))
            self._texts = _read_at(fd, size + texts_at, min(most, texts))
        finally:
            os.close(fd)
        self._places.clear()
        self._most, self._whole = most, most >= max(types, texts)

    def members(self, name: bytes, *, unnamed: bool = False) -> dict[bytes, int]:
        """Member -> offset in bytes; without bit fields and members that begin inside a byte.

        `unnamed`: those of unnamed parts as well, for which types have to be counted: it is slow."""
        found = self._known.get((name, unnamed))
        while found is None:
            found = self._find(name, unnamed)
            if found is None:
                if self._whole:
                    raise TypesUnknown(f"{self._path} knows no struct {name.decode()}")
                self._read(self._most * 4)
        self._known[name, unnamed] = found
        return found

    def offset(self, name: bytes, member: bytes, *others: bytes) -> int:
        """Of a member, or of the first of these names that there is: kernels rename."""
        for unnamed in (False, True):
            found = self.members(name, unnamed=unnamed)
            for one in (member, *others):
                if one in found:
                    return found[one]
        if not self._whole:  # an unnamed part of it lies behind what was read
            self._read(self._most * 4)
            self._known.clear()
            return self.offset(name, member, *others)
        raise TypesUnknown(f"struct {name.decode()} has no member {member.decode()}")

    def _find(self, name: bytes, unnamed: bool) -> dict[bytes, int] | None:
        number = self._texts.find(b"\0" + name + b"\0") + 1
        if number == 0:
            return None
        pattern = struct.pack("<I", number)
        at = self._types.find(pattern)
        while at >= 0:
            if at % 4 == 0 and at + _TYPE.size <= len(self._types):
                members = self._structure(at, depth=0 if unnamed else _MOST_DEPTH)
                if members:
                    return members
            at = self._types.find(pattern, at + 1)
        return None

    def _place_of(self, number: int) -> int | None:
        """Where the type of a number lies; None where that was not read."""
        places, types = self._places, self._types
        if not places:
            places.append(0)  # number 1
        while len(places) < number:
            at = places[-1]
            if at + _TYPE.size > len(types):
                return None
            (info,) = struct.unpack_from("<I", types, at + 4)
            kind = info >> 24 & 0x1F
            if not 0 < kind <= _KINDS:
                raise TypesUnknown(f"{self._path} has a type of kind {kind}")
            fixed, each = _SIZES.get(kind, (0, 0))
            places.append(at + _TYPE.size + fixed + each * (info & 0xFFFF))
        at = places[number - 1]
        return at if number and at + _TYPE.size <= len(types) else None

    def _structure(
        self, at: int, kinds: tuple[int, ...] = (_STRUCT,), depth: int = 0
    ) -> dict[bytes, int] | None:
        _, info, size = _TYPE.unpack_from(self._types, at)
        count, kind, has_fields = info & 0xFFFF, info >> 24 & 0x1F, info >> 31
        if kind not in kinds or info & 0x60FF0000 or at + 12 + 12 * count > len(self._types):
            return None
        found: dict[bytes, int] = {}
        for text, number, place in _TYPE.iter_unpack(self._types[at + 12 : at + 12 + 12 * count]):
            if has_fields:
                place, width = place & 0xFFFFFF, place >> 24
            else:
                width = 0
            if place > size * 8 or text >= len(self._texts):
                return None
            if not width and place % 8 == 0 and not text and depth < _MOST_DEPTH:
                inner_at = self._place_of(number)
                if inner_at is None:
                    continue  # what needs it says that it is missing
                inner = self._structure(inner_at, (_STRUCT, _UNION), depth + 1) or {}
                found.update((name, place // 8 + offset) for name, offset in inner.items())
            if not width and place % 8 == 0 and text:
                end = self._texts.find(0, text)
                if end < 0:
                    return None
                found[self._texts[text:end]] = place // 8
        return found


def _read_at(fd: int, at: int, size: int) -> bytes:
    parts = []
    while size > 0:
        part = os.pread(fd, size, at)
        if not part:
            break
        parts.append(part)
        at, size = at + len(part), size - len(part)
    return b"".join(parts)
