"""The description of a program's functions (BTF), which the verifier wants where a helper calls one.

All functions get one and the same: static, of no arguments that anybody asks about. Bytes only, no
I/O.

Sources: Documentation/bpf/btf.rst; <linux/btf.h>, <linux/bpf.h> (struct bpf_func_info).
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_MAGIC: Final = 0xEB9F
_INT, _FUNC, _FUNC_PROTO = 1, 12, 13
_STATIC = 0
_SIGNED: Final = 1 << 24
#: the type's number in `DESCRIPTION`
_FUNCTION: Final = 3
INFO_SIZE: Final = 8


def _make() -> bytes:
    texts = b"\0int\0step\0"
    types = b"".join(
        (
            struct.pack("<IIII", 1, _INT << 24, 4, _SIGNED | 32),
            struct.pack("<III", 0, _FUNC_PROTO << 24, 1),
            struct.pack("<III", 5, _FUNC << 24 | _STATIC, 2),
        )
    )
    head = struct.pack("<HBBIIIII", _MAGIC, 1, 0, 24, 0, len(types), len(types), len(texts))
    return head + types + texts


DESCRIPTION: Final = _make()


def info(places: list[int]) -> bytes:
    """struct bpf_func_info[]: the same function at each of these instructions."""
    return b"".join([struct.pack("<II", place, _FUNCTION) for place in places])
