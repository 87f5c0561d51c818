"""A small assembler for eBPF: instructions by method, jumps by label, maps by name.

It knows the instruction set and nothing of what a program is for; the kernel's verifier, not this
module, decides whether a program is sound. Invariant: a program is assembled whole or not at all
(an unknown or doubled label, a jump that is too far and a number that does not fit raise), and
the same calls give the same bytes. Numbers are little endian: x86-64 and aarch64.

Sources: Documentation/bpf/standardization/instruction-set.rst (RFC 9669), <linux/bpf.h>.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

INSTRUCTION: Final = struct.Struct("<BBhi")
_pack = INSTRUCTION.pack

#: how a map is meant in a 64-bit load, by its place among those that are given with the program
#: (BPF_PSEUDO_MAP_IDX…, Linux 5.14): so the bytes are the same for each command
MAP, MAP_VALUE = 5, 6
_CALL_LOCAL, _FUNCTION = 1, 4

_ALU: Final = {
    "add": 0x00,
    "sub": 0x10,
    "mul": 0x20,
    "div": 0x30,
    "or": 0x40,
    "and": 0x50,
    "lsh": 0x60,
    "rsh": 0x70,
    "xor": 0xA0,
    "mov": 0xB0,
}
_JUMP: Final = {
    "==": 0x10,
    ">": 0x20,
    ">=": 0x30,
    "&": 0x40,
    "!=": 0x50,
    "<": 0xA0,
    "<=": 0xB0,
    "s>": 0x60,
    "s>=": 0x70,
    "s<": 0xC0,
    "s<=": 0xD0,
}
_SIZE: Final = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}


class Register:
    """One of the eleven; a class of its own, so that a number is never taken for a register."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, FP = (Register(n) for n in range(11))


class Assembler:
    """Collects instructions; `assemble` gives the bytes."""

    def __init__(self) -> None:
        self._code: list[bytes] = []
        self._labels: dict[str, int] = {}
        #: (where, label, opcode, registers, number)
        self._jumps: list[tuple[int, str, int, int, int]] = []
        self._calls: list[tuple[int, str]] = []
        #: (where, label, register)
        self._functions: list[tuple[int, str, int]] = []
        #: (where, map, register, MAP or MAP_VALUE, offset)
        self._maps: list[tuple[int, str, int, int, int]] = []
        self._fresh = 0

    # --- numbers -------------------------------------------------------------------------------

    def alu(self, name: str, to: Register, by: Register | int) -> None:
        """64 bits: to = to `name` by."""
        self._alu(0x07, name, to, by)

    def alu32(self, name: str, to: Register, by: Register | int) -> None:
        """32 bits; the upper half becomes 0."""
        self._alu(0x04, name, to, by)

    def _alu(self, kind: int, name: str, to: Register, by: Register | int) -> None:
        if isinstance(by, Register):
            self._code.append(_pack(kind | 0x08 | _ALU[name], to.number | by.number << 4, 0, 0))
        else:
            self._code.append(_pack(kind | _ALU[name], to.number, 0, by))

    def mov(self, to: Register, by: Register | int) -> None:
        self._alu(0x07, "mov", to, by)

    # --- memory --------------------------------------------------------------------------------

    def load(self, size: int, to: Register, base: Register, offset: int) -> None:
        self._code.append(_pack(0x61 | _SIZE[size], to.number | base.number << 4, offset, 0))

    def store(self, size: int, base: Register, offset: int, what: Register | int) -> None:
        if isinstance(what, Register):
            self._code.append(_pack(0x63 | _SIZE[size], base.number | what.number << 4, offset, 0))
        else:
            self._code.append(_pack(0x62 | _SIZE[size], base.number, offset, what))

    def atomic_add(self, base: Register, offset: int, what: Register) -> None:
        """64 bits, without its result: also where kernels know no other atomics (< 5.12)."""
        self._code.append(_pack(0xDB, base.number | what.number << 4, offset, 0))

    def exchange(self, base: Register, offset: int, what: Register) -> None:
        """64 bits: `what` is what was there, and was put there, in one step (Linux 5.12)."""
        self._code.append(_pack(0xDB, base.number | what.number << 4, offset, 0xE1))

    def load_map(self, to: Register, name: str) -> None:
        self._map(to, name, MAP, 0)

    def load_map_value(self, to: Register, name: str, offset: int = 0) -> None:
        """The address of the only element of an array."""
        self._map(to, name, MAP_VALUE, offset)

    def _map(self, to: Register, name: str, kind: int, offset: int) -> None:
        self._maps.append((len(self._code), name, to.number, kind, offset))
        self._code += (b"", b"")

    # --- going elsewhere -----------------------------------------------------------------------

    def label(self, name: str) -> None:
        if name in self._labels:
            raise ValueError(f"two places are called {name!r}")
        self._labels[name] = len(self._code)

    def fresh(self, name: str) -> str:
        """A label that nobody else has."""
        self._fresh += 1
        return f"{name}.{self._fresh}"

    def jump(self, to: str) -> None:
        self._jump(0x05, 0, 0, to)

    def jump_if(self, left: Register, test: str, right: Register | int, to: str) -> None:
        """All 64 bits of both; a number is sign-extended from 32."""
        self._jump_if(0x05, left, test, right, to)

    def jump32_if(self, left: Register, test: str, right: Register | int, to: str) -> None:
        self._jump_if(0x06, left, test, right, to)

    def _jump_if(
        self, kind: int, left: Register, test: str, right: Register | int, to: str
    ) -> None:
        if isinstance(right, Register):
            self._jump(kind | 0x08 | _JUMP[test], left.number | right.number << 4, 0, to)
        else:
            self._jump(kind | _JUMP[test], left.number, right, to)

    def _jump(self, code: int, registers: int, number: int, to: str) -> None:
        self._jumps.append((len(self._code), to, code, registers, number))
        self._code.append(b"")

    def call(self, helper: int) -> None:
        """R0 = helper(R1 … R5); what was in R1-R5 is gone."""
        self._code.append(_pack(0x85, 0, 0, helper))

    def call_function(self, label: str) -> None:
        """One of this program's own; it has a stack of its own."""
        self._calls.append((len(self._code), label))
        self._code.append(b"")

    def load_function(self, to: Register, label: str) -> None:
        """One of this program's own, for a helper that calls it (BPF_PSEUDO_FUNC)."""
        self._functions.append((len(self._code), label, to.number))
        self._code += (b"", b"")

    def functions(self) -> list[tuple[int, str]]:
        """(instruction, label) of each function, the program itself first, as ""."""
        return [(0, ""), *sorted((self._place(label), label) for label in self._used())]

    def missing(self) -> list[str]:
        """Functions that are called and not there yet."""
        return sorted(self._used() - self._labels.keys())

    def _used(self) -> set[str]:
        return {label for _, label in self._calls} | {label for _, label, _ in self._functions}

    def exit(self) -> None:
        self._code.append(_pack(0x95, 0, 0, 0))

    # --- the end -------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._code)

    def assemble(self, place_of: Callable[[str], int]) -> bytes:
        """The instructions; `place_of` gives the place of a map in the array of them.

        Raises ValueError for a label that is missing, struct.error for what does not fit."""
        code = self._code.copy()
        for at, label, opcode, registers, number in self._jumps:
            code[at] = _pack(opcode, registers, self._place(label) - at - 1, number)
        for at, label in self._calls:
            code[at] = _pack(0x85, _CALL_LOCAL << 4, 0, self._place(label) - at - 1)
        for at, label, to in self._functions:
            code[at] = _pack(0x18, to | _FUNCTION << 4, 0, self._place(label) - at - 1)
            code[at + 1] = _pack(0, 0, 0, 0)
        for at, name, to, kind, offset in self._maps:
            code[at] = _pack(0x18, to | kind << 4, 0, place_of(name))
            code[at + 1] = _pack(0, 0, 0, offset)
        return b"".join(code)

    def _place(self, label: str) -> int:
        if label not in self._labels:
            raise ValueError(f"no place is called {label!r}")
        return self._labels[label]
