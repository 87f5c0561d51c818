"""What a call tells when it begins, and what its end adds.

Emits the parts of sys_enter and sys_exit (bpf_program.py); no I/O.
"""

from __future__ import annotations

from substrate.telemetry.capture import calls, records
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
    Register,
)
from substrate.telemetry.capture.bpf_items import LONG, SCRATCH, SLOT
from substrate.telemetry.capture.bpf_layout import (
    ARGS,
    AT,
    BASE,
    BASE2,
    BOOT_NS,
    IN_SLOT,
    LOOKUP,
    M_ADDRESS,
    M_DATA,
    M_HOW,
    M_MESSAGE,
    M_PATH,
    M_PATH2,
    MISSING,
    MOST_ADDRESS,
    MOVED,
    NR,
    NUMBERS,
    PENDING,
    PSTATE,
    PSTATE_32,
    READ_KERNEL,
    READ_USER,
    RECORD,
    RESTARTS,
    RESULT,
    SCRIPT,
    SHAPE,
    SLOT_SIZE,
    SMP_PROCESSOR_ID,
    TABLE,
    TASK,
    TID,
    TIME,
    TS_COMPAT,
    UNUSUAL,
    WANTED,
)
from substrate.telemetry.capture.bpf_sockets import Sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from substrate.telemetry.capture.bpf_functions import Signatures


class Calls(Sockets):
    """See the module."""

    def signatures(self) -> Signatures:
        return {**super().signatures(), "head": (SLOT_SIZE, 0, 0, 0)}

    def _emit(self, name: str) -> None:
        if name == "head":
            self._head()
        else:
            super()._emit(name)

    # --- the beginning

    def _head(self) -> None:
        """head(slot, registers, number, tid): the record without items; `PENDING` if it is wanted."""
        a, machine = self.a, self.machine
        start, size = machine.window
        regs = -size - 16  # on the stack, by an offset that is that of the window
        self._enter((R1, R6), none="head.none")
        a.mov(R8, R2)
        a.mov(R7, R3)
        a.store(4, FP, -4, R4)
        a.store(4, R6, PENDING, 0)
        a.store(4, R6, SHAPE + 8, 0)
        if machine.i386_args:
            # The table is computed and not chosen: the verifier goes each way to its end.
            a.mov(R9, R7)
            a.alu("rsh", R9, 30)
            a.jump_if(R9, ">", 1, "head.none")
            a.alu("and", R7, calls.X32_BIT - 1)
        else:
            a.mov(R9, calls.NATIVE)
        a.jump_if(R7, ">=", NUMBERS, "head.none")
        if machine.i386_args:
            a.call(TASK)
            a.mov(R3, R0)
            a.alu("add", R3, self.offsets.status)
            self._address(R1, FP, -8)
            a.mov(R2, 4)
            a.call(READ_KERNEL)
            # X32 where bit 30 is set, else I386 where the kernel says so
            assert (calls.NATIVE, calls.I386, calls.X32, TS_COMPAT) == (0, 1, 2, 2)
            a.load(4, R1, FP, -8)
            a.alu("rsh", R1, 1)
            a.mov(R2, R9)
            a.alu("xor", R2, 1)
            a.alu("and", R1, R2)
            a.alu("lsh", R9, 1)
            a.alu("or", R9, R1)
            a.jump_if(R9, ">", calls.X32, "head.none")
        self._address(R1, FP, regs)
        a.mov(R2, size)
        a.mov(R3, R8)
        a.alu("add", R3, start)
        a.call(READ_KERNEL)
        if not machine.i386_args:
            a.load(8, R1, FP, regs + PSTATE - start)
            a.alu("and", R1, PSTATE_32)
            a.jump_if(R1, "!=", 0, "head.none")
        a.mov(R1, R9)
        a.alu("lsh", R1, 10)
        a.alu("add", R1, R7)
        a.alu("lsh", R1, 4)
        a.load_map_value(R2, "tables")
        a.alu("add", R2, R1)
        a.load(8, R3, R2, 8)
        a.mov(R1, R3)
        a.alu("rsh", R1, 32)
        a.jump_if(R1, "==", 0, "head.none")
        a.load(8, R4, R2, 0)
        a.store(8, R6, SHAPE, R4)
        a.store(8, R6, SHAPE + 8, R3)
        a.store(4, R6, PENDING, IN_SLOT)
        a.store(4, R6, MISSING, 0)
        a.store(8, R6, MOVED, 0)  # and SCRIPT
        for place in (BASE, BASE + 8, BASE2, BASE2 + 8):
            a.store(8, R6, place, 0)
        record = RECORD
        a.mov(R1, R9)
        a.alu("lsh", R1, 16)
        a.alu("or", R1, records.CALL)
        a.store(4, R6, record + 4, R1)
        a.load(4, R1, FP, -4)
        a.store(4, R6, record + TID, R1)
        a.store(4, R6, record + NR, R7)
        a.store(8, R6, record + RESULT, 0)
        if machine.i386_args:
            a.jump_if(R9, "==", calls.I386, "head.i386")
        for n, place in enumerate(machine.args):
            a.load(8, R1, FP, regs + place - start)
            a.store(8, R6, record + ARGS + 8 * n, R1)
        if machine.i386_args:
            a.jump("head.args")
            a.label("head.i386")
            for n, place in enumerate(machine.i386_args):
                a.load(4, R1, FP, regs + place - start)
                a.store(8, R6, record + ARGS + 8 * n, R1)
        a.label("head.args")
        a.call(BOOT_NS)
        a.store(8, R6, record + TIME, R0)
        a.store(4, R6, AT, records.HEAD_SIZE)
        a.label("head.none")
        self._return()

    def _leave_unless_known(self, number: Register, out: str) -> None:
        """To `out` for a call that is in no table, before anything else is looked at: most are not."""
        a = self.a
        look = a.fresh("look")
        if self.machine.i386_args:
            # x32, and -1
            a.mov(R1, number)
            a.alu("rsh", R1, 30)
            a.jump_if(R1, "!=", 0, look)
        a.jump_if(number, ">=", NUMBERS, out)
        a.mov(R1, number)
        a.alu("lsh", R1, 4)
        a.load_map_value(R2, "tables")
        a.alu("add", R2, R1)
        a.load(4, R3, R2, WANTED)
        if self.machine.i386_args:
            a.load(4, R4, R2, TABLE + WANTED)
            a.alu("or", R3, R4)
        a.jump_if(R3, "==", 0, out)
        a.label(look)

    def _entry(self) -> None:
        """What the slot's call points to, when it begins."""
        a = self.a
        self._add_argument_text(SLOT, records.PATH, 0, M_PATH, "long")
        self._add_argument_text(SLOT, records.PATH2, 2, M_PATH2, "long")
        a.load(4, R1, R6, SHAPE + 8)
        a.alu("and", R1, UNUSUAL)
        a.jump_if(R1, "!=", 0, "unusual")
        a.load(1, R1, R6, SHAPE + 4)
        a.jump_if(R1, "==", calls.NONE, "out")
        a.label("unusual")
        self._add_unusual(SLOT)
        self._add_messages()
        a.jump("out")

        a.label("long")
        a.store(4, R6, AT, records.HEAD_SIZE)
        a.store(4, R6, MISSING, 0)
        self._to_long("no memory")
        a.mov(R6, R0)
        self._add_argument_text(LONG, records.PATH, 0, M_PATH, "out")
        self._add_argument_text(LONG, records.PATH2, 2, M_PATH2, "out")
        a.mov(R1, R6)
        a.call_function("long.how")
        a.jump("out")
        # there is none for the long form: it is read at the end
        a.label("no memory")
        a.store(4, R6, MISSING, M_PATH | M_PATH2 | M_HOW)

    # --- the end

    def _result(self, room: int) -> None:
        """The result of R8, and the size in R9."""
        self.a.store(8, R6, RECORD + RESULT, R8)
        self._load_size(room, "out")

    def _unless_plain(self) -> None:
        """Away to "slow" if there is more to be told than the record in slot R6, and the result of R8."""
        a = self.a
        a.mov(R1, R8)
        a.alu("add", R1, -RESTARTS[0])
        a.jump_if(R1, "<=", RESTARTS[1] - RESTARTS[0], "slow")
        a.load(4, R1, R6, MISSING)
        a.jump_if(R1, "!=", 0, "slow")
        for place in (BASE, BASE2):
            a.load(8, R1, R6, place)
            a.jump_if(R1, "!=", 0, "slow")
        a.load(4, R2, R6, SHAPE + 8)
        a.mov(R1, R2)
        a.alu("and", R1, calls.PAIR | calls.ADDRESS_OUT | calls.PROGRAM)
        a.jump_if(R1, "!=", 0, "slow")
        a.jump_if(R8, "s<", 0, "plain")
        a.alu("and", R2, calls.OPENS | calls.NEW_SOCKET | calls.MOVES | calls.ROOTS)
        a.jump_if(R2, "!=", 0, "slow")
        a.label("plain")

    def _slow_exit(self) -> None:
        """R6: a slot or its long form, R7: the context, R8: the result, R9: the size."""
        a = self.a
        a.label("slow")
        a.call(SMP_PROCESSOR_ID)
        a.store(4, FP, -24, R0)
        a.load_map(R1, "scratch")
        self._address(R2, FP, -24)
        a.call(LOOKUP)
        a.jump_if(R0, "==", 0, "out")
        a.store(8, FP, -32, R0)
        a.mov(R1, R0)
        a.mov(R2, R9)
        a.alu("add", R2, RECORD)
        a.mov(R3, R6)
        a.call(READ_KERNEL)
        a.load(8, R6, FP, -32)
        a.store(4, R6, AT, R9)
        a.alu("add", R8, -RESTARTS[0])
        a.jump_if(R8, ">", RESTARTS[1] - RESTARTS[0], "slow.walk")
        self._flag(records.RESTARTED)
        a.label("slow.walk")
        self._find_walk("out")
        self._unless(calls.PROGRAM, "slow.again")
        a.load(8, R1, R6, RECORD + RESULT)
        a.jump_if(R1, "==", 0, "slow.exec")

        a.label("slow.again")
        a.load(4, R1, R6, MISSING)
        a.jump_if(R1, "==", 0, "slow.bases")
        a.mov(R8, R1)
        a.alu("and", R1, M_MESSAGE)
        a.store(4, R6, MISSING, R1)
        again: tuple[tuple[int, Callable[[], None]], ...] = (
            (M_PATH, lambda: self._add_argument_text(SCRATCH, records.PATH, 0, M_PATH, "out")),
            (M_PATH2, lambda: self._add_argument_text(SCRATCH, records.PATH2, 2, M_PATH2, "out")),
            (M_ADDRESS, lambda: self._add_again("address")),
            (M_HOW, lambda: self._add_again("how")),
            (M_DATA, lambda: self._add_again("data")),
        )
        for bit, add in again:
            done = a.fresh("again")
            a.mov(R1, R8)
            a.alu("and", R1, bit)
            a.jump_if(R1, "==", 0, done)
            add()
            a.label(done)
        a.label("slow.bases")
        a.load(8, R1, R6, RECORD + RESULT)
        a.jump_if(R1, "s<", 0, "slow.failed")
        # The name of what was opened tells more than where its path began.
        self._unless(calls.OPENS | calls.NEW_SOCKET, "slow.begins")
        a.mov(R1, R6)
        a.load(8, R2, FP, -40)
        a.call_function("opened")
        a.jump_if(R0, "!=", 0, "slow.moves")
        a.label("slow.begins")
        self._tell_bases()
        a.label("slow.moves")
        self._unless(calls.MOVES, "slow.roots")
        self._tell_standing(records.CWD, self.offsets.pwd)
        a.label("slow.roots")
        self._unless(calls.ROOTS, "slow.pair")
        self._tell_standing(records.ROOT, self.offsets.root)
        a.label("slow.pair")

        self._unless(calls.PAIR, "slow.address")
        a.load(1, R1, R6, SHAPE + 5)
        self._load_argument(R2, R1)
        a.mov(R3, 8)
        self._add_bytes(SCRATCH, records.PAIR, 8, M_ADDRESS)
        a.label("slow.address")
        self._unless(calls.ADDRESS_OUT, "slow.finish")
        a.load(1, R7, R6, SHAPE + 4)
        self._load_argument(R8, R7)
        a.jump_if(R8, "==", 0, "slow.finish")
        a.alu("add", R7, 1)
        self._load_argument(R3, R7)
        self._address(R1, FP, -24)
        a.mov(R2, 4)
        a.call(READ_USER)
        a.jump_if(R0, "!=", 0, "slow.no length")
        a.mov(R2, R8)
        a.load(4, R3, FP, -24)
        self._add_bytes(SCRATCH, records.ADDRESS, MOST_ADDRESS, M_ADDRESS)
        a.jump("slow.finish")
        a.label("slow.no length")
        self._miss(M_ADDRESS)
        a.jump("slow.finish")
        a.label("slow.failed")
        self._tell_bases()
        a.label("slow.finish")
        self._unless(calls.REACHES, "slow.told")
        a.mov(R1, R6)
        a.call_function("local")
        a.label("slow.told")
        a.load(4, R1, R6, MISSING)
        a.jump_if(R1, "==", 0, "slow.out")
        self._flag(records.UNREADABLE)
        a.label("slow.out")
        self._load_size(self.room_of(SCRATCH), "out")
        self._output(self.room_of(SCRATCH))
        self._return()

        # an exec that succeeded: the memory is the new program's
        a.label("slow.exec")
        a.store(1, R6, RECORD + 4, records.EXEC)
        # of the path the kernel's own name tells more
        a.store(4, R6, MISSING, 0)
        a.load(4, R1, R6, MOVED)
        a.store(8, R6, RECORD + ARGS, R1)
        a.load(4, R1, R6, SCRIPT)
        a.store(8, R6, RECORD + ARGS + 8, R1)
        for name in ("program", "descriptors"):
            a.mov(R1, R6)
            a.load(8, R2, FP, -40)
            a.call_function(name)
        self._read_kernel(FP, -24, 8, R7, 0, self.machine.stack)
        a.mov(R1, R6)
        a.load(8, R2, FP, -24)
        a.call_function("words")
        a.jump("slow.finish")

    def _add_again(self, name: str) -> None:
        self.a.mov(R1, R6)
        self.a.call_function(f"{SCRATCH}.{name}")
