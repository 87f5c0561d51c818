"""The parts that all programs of the `bpf` backend are made of: lookups, reads, items of a record.

Emits instructions, and does no I/O. Registers of a function: R6 what it works on (a slot, or the
scratch), R9 the record's size so far.
"""

from __future__ import annotations

from substrate.telemetry.capture import records
from substrate.telemetry.capture.bpf_assembler import (
    FP,
    R0,
    R1,
    R2,
    R3,
    R4,
    R6,
    R7,
    R8,
    R9,
    Assembler,
    Register,
)
from substrate.telemetry.capture.bpf_layout import (
    ARGS,
    AT,
    AVAILABLE,
    BLANK,
    BOOT_NS,
    DELETE,
    ENDED,
    FLAGS,
    FORCE_WAKEUP,
    FULL,
    IN_LONG,
    JIFFIES,
    LOOKUP,
    MEMORY,
    MISSING,
    NO_WAKEUP,
    NR,
    PENDING,
    PID_TGID,
    QUIET,
    READ_KERNEL,
    RECORD,
    RING_OUTPUT,
    RING_QUERY,
    SHAPE,
    SLOT_SIZE,
    TID,
    TIME,
    UPDATE,
    WOKEN,
    Limits,
    Machine,
    Offsets,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.telemetry.capture.bpf_functions import Signatures


class Parts:
    """One way of making; the program that is being made is `a`."""

    def __init__(self, offsets: Offsets, limits: Limits, machine: Machine) -> None:
        self.offsets, self.limits, self.machine = offsets, limits, machine
        self.a = Assembler()

    # --- functions of a program ----------------------------------------------------------------

    def signatures(self) -> Signatures:
        """Of those that are verified by themselves."""
        return {"wake": ()}

    def _emit(self, name: str) -> None:
        if name != "wake":
            raise KeyError(name)
        self._wake()

    def _finish(self) -> Assembler:
        """Behind the program: the functions that it calls, and those that they call."""
        a = self.a
        while missing := a.missing():
            for name in missing:
                a.label(name)
                self._emit(name)
        return a

    def _enter(self, *kept: tuple[Register, Register], none: str) -> None:
        """Keeps (argument, where); none of them may be 0, which the verifier wants to be asked."""
        a = self.a
        for argument, where in kept:
            a.jump_if(argument, "==", 0, none)
            a.mov(where, argument)

    # --- items ---------------------------------------------------------------------------------

    def _item_body(self, to: Register) -> None:
        a = self.a
        a.mov(to, R6)
        a.alu("add", to, R9)
        a.alu("add", to, RECORD + 8)

    # --- parts ---------------------------------------------------------------------------------

    def _find_slot(self, none: str) -> None:
        """R6: the slot of the task that runs; its tid at FP-4."""
        a = self.a
        a.call(PID_TGID)
        a.store(4, FP, -4, R0)
        self._lookup("tree")
        a.jump_if(R0, "==", 0, none)
        a.mov(R6, R0)

    def _lookup(self, name: str) -> None:
        self.a.load_map(R1, name)
        self._address(R2, FP, -4)
        self.a.call(LOOKUP)

    def _to_long(self, failed: str) -> None:
        """Copies R6, a slot, to the task's element of `long`, which is R0 then."""
        a = self.a
        there = a.fresh("long")
        self._lookup("long")
        a.jump_if(R0, "!=", 0, there)
        a.load_map(R1, "long")
        self._address(R2, FP, -4)
        a.load_map_value(R3, "tables", BLANK)
        a.mov(R4, 0)
        a.call(UPDATE)
        self._lookup("long")
        a.jump_if(R0, "==", 0, failed)
        a.label(there)
        a.mov(R7, R0)
        a.mov(R1, R0)
        a.mov(R2, SLOT_SIZE)
        a.mov(R3, R6)
        a.call(READ_KERNEL)
        a.store(4, R6, PENDING, IN_LONG)
        a.mov(R0, R7)

    def _move(self, name: str, size: int) -> None:
        """The element of the number at FP-12 becomes that of the one at FP-4."""
        a = self.a
        done = a.fresh("move")
        a.load_map(R1, name)
        self._address(R2, FP, -12)
        a.call(LOOKUP)
        a.jump_if(R0, "==", 0, done)
        a.mov(R6, R0)
        a.load(4, R1, FP, -4)
        a.store(4, R6, RECORD + TID, R1)
        a.load_map(R1, name)
        self._address(R2, FP, -4)
        a.mov(R3, R6)
        a.mov(R4, 0)
        a.call(UPDATE)
        if name == "tree":
            there = a.fresh("moved")
            a.jump_if(R0, "==", 0, there)
            self._count(MEMORY)
            self._count(ENDED)
            a.label(there)
        a.load_map(R1, name)
        self._address(R2, FP, -12)
        a.call(DELETE)
        a.label(done)

    def _load_argument(self, to: Register, index: Register) -> None:
        """to = the record's argument of that index; `index` and R1 are lost, if they differ."""
        a = self.a
        if index is not R1:
            a.mov(R1, index)
        a.alu("and", R1, 7)
        a.alu("lsh", R1, 3)
        a.alu("add", R1, R6)
        a.load(8, to, R1, RECORD + ARGS)

    def _load_size(self, room: int, bad: str) -> None:
        a = self.a
        a.load(4, R9, R6, AT)
        a.jump_if(R9, ">", room, bad)

    def _unless(self, flags: int, otherwise: str) -> None:
        a = self.a
        a.load(4, R1, R6, SHAPE + 8)
        a.alu("and", R1, flags)
        a.jump_if(R1, "==", 0, otherwise)

    def _flag(self, flag: int) -> None:
        a = self.a
        a.load(1, R1, R6, RECORD + FLAGS)
        a.alu("or", R1, flag)
        a.store(1, R6, RECORD + FLAGS, R1)

    def _miss(self, bit: int) -> None:
        a = self.a
        a.load(4, R1, R6, MISSING)
        a.alu("or", R1, bit)
        a.store(4, R6, MISSING, R1)

    def _address(self, to: Register, base: Register, offset: int) -> None:
        self.a.mov(to, base)
        self.a.alu("add", to, offset)

    def _read_kernel(
        self, to: Register, place: int, size: int, context: Register, field: int, offset: int
    ) -> None:
        """`size` bytes at `offset` behind the pointer that is field of the context."""
        a = self.a
        self._address(R1, to, place)
        a.mov(R2, size)
        a.load(8, R3, context, field)
        a.alu("add", R3, offset)
        a.call(READ_KERNEL)

    def _count(self, what: int) -> None:
        a = self.a
        a.load_map_value(R1, "state")
        a.mov(R2, 1)
        a.atomic_add(R1, what, R2)

    def _head_on_stack(self, kind: int) -> None:
        """A record without items at FP-96, but for its result and arguments."""
        a = self.a
        a.store(4, FP, -96, records.HEAD_SIZE)
        a.store(4, FP, -92, kind)
        a.load(4, R1, FP, -4)
        a.store(4, FP, -96 + TID, R1)
        a.store(4, FP, -96 + NR, 0)
        a.call(BOOT_NS)
        a.store(8, FP, -96 + TIME, R0)
        for n in range(6):
            a.store(8, FP, -96 + ARGS + 8 * n, 0)

    def _output_stack(self, size: int = records.HEAD_SIZE) -> None:
        a = self.a
        a.call_function("wake")
        a.mov(R4, R0)
        a.load_map(R1, "ring")
        self._address(R2, FP, -96)
        a.mov(R3, size)
        a.call(RING_OUTPUT)
        self._count_failure()

    def _output(self, room: int) -> None:
        """Puts the record of R6 into the ring, R9 bytes."""
        a = self.a
        a.store(4, R6, RECORD, R9)
        a.call_function("wake")
        a.mov(R4, R0)
        a.load_map(R1, "ring")
        self._address(R2, R6, RECORD)
        a.mov(R3, R9)
        a.jump_if(R3, ">", room, "out")
        a.call(RING_OUTPUT)
        self._count_failure()

    def _count_failure(self) -> None:
        a = self.a
        done = a.fresh("written")
        a.jump_if(R0, "==", 0, done)
        self._count(FULL)
        a.label(done)

    def _wake(self) -> None:
        """wake(): flags of what is written next, whether to call the reader: after a quiet time, or when
        a quarter is full.

        Calling costs more than all the rest; the last of a tree calls in any case."""
        a = self.a
        a.call(JIFFIES)
        a.mov(R8, R0)
        a.load_map_value(R7, "state")
        a.load(8, R1, R7, WOKEN)
        a.jump_if(R1, "==", R8, "wake.no")
        a.mov(R2, R8)
        a.alu("sub", R2, R1)
        a.jump_if(R2, ">", QUIET, "wake.yes")
        a.load_map(R1, "ring")
        a.mov(R2, AVAILABLE)
        a.call(RING_QUERY)
        a.jump_if(R0, "<", self.limits.ring // 4, "wake.no")
        a.label("wake.yes")
        a.store(8, R7, WOKEN, R8)
        a.mov(R0, FORCE_WAKEUP)
        a.exit()
        a.label("wake.no")
        a.mov(R0, NO_WAKEUP)
        a.exit()

    def _return(self) -> None:
        self.a.mov(R0, 0)
        self.a.exit()
