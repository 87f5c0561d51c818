"""The description of a program's functions (BTF), which the verifier wants.

A function that is described as global is verified once, by itself, from what is said here of its
arguments; any other is verified again at each place that calls it, which every command would wait
for. Bytes only, no I/O.

Sources: Documentation/bpf/btf.rst; <linux/btf.h>, <linux/bpf.h> (struct bpf_func_info);
kernel/bpf/btf.c (btf_prepare_func_args).
"""

from __future__ import annotations

import struct

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Final

    #: by function: of each argument 0 for a number, else to how many bytes it points
    Signatures = Mapping[str, tuple[int, ...]]

_MAGIC: Final = 0xEB9F
_INT, _POINTER, _STRUCT, _FUNCTION, _PROTOTYPE = 1, 2, 4, 12, 13
_STATIC, _GLOBAL = 0, 1


@value
class Described:
    """`text`: what the kernel is given; `numbers`: of each function's type in it."""

    text: bytes
    numbers: dict[str, int]

    def info(self, functions: Iterable[tuple[int, str]]) -> bytes:
        """struct bpf_func_info[] of (instruction, function); a function that was not described is
        the program itself, or one that only helpers call."""
        plain = self.numbers[""]
        return b"".join(
            [struct.pack("<II", at, self.numbers.get(name, plain)) for at, name in functions]
        )


def describe(signatures: Signatures) -> Described:
    """All of these as global, and "", which is static and of no arguments that anybody asks about."""
    texts = bytearray(b"\0")
    types: list[bytes] = []

    def text(name: str) -> int:
        at = len(texts)
        texts.extend(name.encode("ascii") + b"\0")
        return at

    def add(name: int, kind: int, low: int, size_or_type: int, rest: bytes = b"") -> int:
        types.append(struct.pack("<III", name, kind << 24 | low, size_or_type) + rest)
        return len(types)

    number = add(text("word"), _INT, 0, 8, struct.pack("<I", 64))
    argument = text("argument")
    pointers: dict[int, int] = {}

    def type_of(size: int) -> int:
        if not size:
            return number
        if size not in pointers:
            pointers[size] = add(0, _POINTER, 0, add(text(f"bytes_{size}"), _STRUCT, 0, size))
        return pointers[size]

    def function(name: str, sizes: tuple[int, ...], linkage: int) -> int:
        arguments = b"".join([struct.pack("<II", argument, type_of(size)) for size in sizes])
        prototype = add(0, _PROTOTYPE, len(sizes), number, arguments)
        return add(text(name), _FUNCTION, linkage, prototype)

    numbers = {"": function("step", (), _STATIC)}
    for name, sizes in signatures.items():
        numbers[name] = function(name.replace(".", "_"), sizes, _GLOBAL)
    body = b"".join(types)
    head = struct.pack("<HBBIIIII", _MAGIC, 1, 0, 24, 0, len(body), len(body), len(texts))
    return Described(text=head + body + bytes(texts), numbers=numbers)
