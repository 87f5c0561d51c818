"""Where a machine keeps the number, the arguments and the result of a system call.

Names are those of python-ptrace's structures; a function here changes such a structure and does
no I/O. Invariant: the tracer changes three things only, each at the entry of a call: one argument
(clone's flags), the number (-1: not called at all), and the result of a call that is not made.

Sources: syscall(2); arch/x86/entry/common.c and arch/arm64/kernel/syscall.c, which leave the
result as the tracer set it when the number is -1.
"""

from __future__ import annotations

from substrate.telemetry.capture import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

#: machine -> (register of the number, of the result)
_WORDS: Final = {"x86_64": ("orig_rax", "rax"), "aarch64": ("r8", "r0")}
_ARGUMENTS: Final = {
    ("x86_64", calls.NATIVE): ("rdi", "rsi", "rdx", "r10", "r8", "r9"),
    ("x86_64", calls.X32): ("rdi", "rsi", "rdx", "r10", "r8", "r9"),
    # the registers of 32-bit calls, in the structure of 64 bits
    ("x86_64", calls.I386): ("rbx", "rcx", "rdx", "rsi", "rdi", "rbp"),
    ("aarch64", calls.NATIVE): ("r0", "r1", "r2", "r3", "r4", "r5"),
}
_WORD: Final = (1 << 64) - 1
_HALF: Final = (1 << 32) - 1

#: The register set that holds the number where changing the register does nothing: on aarch64
#: the kernel has read x8 already (NT_ARM_SYSTEM_CALL, <linux/elf.h>).
NUMBER_SET: Final = {"aarch64": 0x404}

_NATIVE_ARCH: Final = calls.AUDIT_ARCH.get(calls.MACHINE, 0)


def abi_of(arch: int, number: int) -> tuple[int, int] | None:
    """(calls.NATIVE …, number in its table) of a call as the kernel reports it; None for a machine
    that we do not know."""
    if arch == _NATIVE_ARCH:
        if arch == calls.AUDIT_ARCH["x86_64"] and number & calls.X32_BIT:
            return calls.X32, number & _HALF & ~calls.X32_BIT
        return calls.NATIVE, number & _HALF
    if arch == calls.AUDIT_ARCH["i386"] and calls.MACHINE == "x86_64":
        return calls.I386, number & _HALF
    return None


def call_of(registers: Any, abi: int, machine: str = calls.MACHINE) -> tuple[int, int]:
    """(number, first argument) of the call that a task is in; the number is -1 outside of one.
    On aarch64 the first argument is told only until the call has its result."""
    number = getattr(registers, _WORDS[machine][0]) & _HALF
    first = getattr(registers, _ARGUMENTS[machine, abi][0])
    return number - (1 << 32) if number >> 31 else number, first & _mask(abi)


def set_argument(
    registers: Any, abi: int, index: int, value: int, machine: str = calls.MACHINE
) -> None:
    setattr(registers, _ARGUMENTS[machine, abi][index], value & _mask(abi))


def set_result(registers: Any, value: int, machine: str = calls.MACHINE) -> None:
    setattr(registers, _WORDS[machine][1], value & _WORD)


def skip(registers: Any, result: int, machine: str = calls.MACHINE) -> None:
    """The call is not made and has this result. Where NUMBER_SET has the machine, the number is
    set there too."""
    if machine not in NUMBER_SET:
        setattr(registers, _WORDS[machine][0], _WORD)
    set_result(registers, result, machine)


def _mask(abi: int) -> int:
    return _HALF if abi == calls.I386 else _WORD
