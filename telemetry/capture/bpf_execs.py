"""What a new program is: its file, words, numbers, directory and descriptors.

Emits functions that the end of an exec calls; no I/O. The memory is the new program's, which has not
run yet: nobody can have changed what is read.

Sources: kernel: fs/exec.c, fs/binfmt_elf.c (create_elf_tables), include/linux/fdtable.h;
bpf-helpers(7), bpf_loop.
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
    Register,
)
from substrate.telemetry.capture.bpf_items import SCRATCH
from substrate.telemetry.capture.bpf_layout import (
    IDENTITY,
    LOOP,
    MOST_FD,
    READ_KERNEL,
    READ_USER,
    READ_USER_STR,
    TASK,
    WALK_SIZE,
)
from substrate.telemetry.capture.bpf_places import (
    BITS,
    BITS_AT,
    FD_FLAGS,
    FILE,
    IS_FD,
    MOST_BITS,
    NUMBER,
    TAG,
    Places,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.telemetry.capture.bpf_functions import Signatures


class Execs(Places):
    """See the module."""

    def signatures(self) -> Signatures:
        scratch = self.limits.scratch
        return {
            **super().signatures(),
            "program": (scratch, WALK_SIZE),
            "descriptors": (scratch, WALK_SIZE),
            "words": (scratch, 0),
        }

    def _emit(self, name: str) -> None:
        made = {
            "program": self._program,
            "descriptors": self._descriptors,
            "words": self._words,
            "descriptors.step": self._step_of_descriptors,
        }
        if name in made:
            made[name]()
        else:
            super()._emit(name)

    def _program(self) -> None:
        """program(record, walk): AUXV, EXE, FILE, PIDS, CWD."""
        a, off = self.a, self.offsets
        self._enter((R1, R6), (R2, R8), none="program.out")
        a.store(8, FP, -40, R8)
        a.call(TASK)
        self._follow(R0, off.mm, "program.memory")
        a.load(8, R7, FP, -48)
        a.store(8, FP, -56, R7)
        self._copy(records.AUXV, records.AUXV_SIZE, R7, off.auxv)
        a.load(8, R7, FP, -56)
        self._follow(R7, off.exe_file, "program.memory")
        a.load(8, R7, FP, -48)
        a.load(8, R1, FP, -40)
        a.store(8, R1, FILE, R7)
        a.mov(R2, 16)
        a.mov(R3, R7)
        a.alu("add", R3, off.f_path)
        a.call(READ_KERNEL)
        a.jump_if(R0, "!=", 0, "program.memory")
        self._tell(records.EXE)
        a.load(8, R1, FP, -40)
        a.load(8, R1, R1, FILE)
        self._address(R2, FP, -32)
        a.call_function("identity")
        a.jump_if(R0, "!=", 0, "program.memory")
        self._copy(records.FILE, IDENTITY, FP, -32)
        a.label("program.memory")
        a.call(TASK)
        a.mov(R1, R0)
        a.call_function("pid")
        a.jump_if(R0, "==", 0, "program.pid")
        a.store(8, FP, -32, R0)
        self._copy(records.PIDS, 4, FP, -32)
        a.label("program.pid")
        self._tell_standing(records.CWD, off.pwd)
        a.label("program.out")
        self._return()

    def _copy(self, tag: int, size: int, base: Register, offset: int) -> None:
        """An item of `size` bytes of the kernel's, or of the stack, which are all there or none."""
        a = self.a
        done = a.fresh("copy")
        self._load_size(self._facts_room() - 16 - size, done)
        self._item_body(R1)
        a.mov(R2, size)
        self._address(R3, base, offset)
        a.call(READ_KERNEL)
        a.jump_if(R0, "!=", 0, done)
        a.mov(R8, size)
        a.mov(R7, 0)
        self._item(SCRATCH, tag, R8, R7)
        a.label(done)

    def _descriptors(self) -> None:
        """descriptors(record, walk): an FD for each one that the program has."""
        a, off = self.a, self.offsets
        self._enter((R1, R6), (R2, R8), none="descriptors.out")
        a.call(TASK)
        self._follow(R0, off.files, "descriptors.out")
        a.load(8, R7, FP, -48)
        self._follow(R7, off.fdt, "descriptors.out")
        a.load(8, R3, FP, -48)
        # struct fdtable
        self._address(R1, FP, -40)
        a.mov(R2, 32)
        a.call(READ_KERNEL)
        a.jump_if(R0, "!=", 0, "descriptors.out")
        a.load(8, R1, FP, -40 + off.open_fds)
        a.store(8, R8, BITS_AT, R1)
        a.load(4, R1, FP, -40)
        a.jump_if(R1, "<=", MOST_FD, "descriptors.fit")
        self._flag(records.CUT)
        a.mov(R1, MOST_FD)
        a.label("descriptors.fit")
        a.store(4, R8, MOST_BITS, R1)
        # two pointers for the step: the record, and the walk
        a.store(8, FP, -48, R6)
        a.store(8, FP, -40, R8)
        a.load_function(R2, "descriptors.step")
        self._address(R3, FP, -48)
        a.mov(R4, 0)
        a.call(LOOP)
        a.label("descriptors.out")
        self._return()

    def _step_of_descriptors(self) -> None:
        """One number of the table: step(number, &(record, walk)); R0: 1 for the end."""
        a = self.a
        a.load(8, R6, R2, 0)
        a.load(8, R8, R2, 8)
        a.mov(R7, R1)
        a.load(4, R1, R8, MOST_BITS)
        a.jump_if(R7, ">=", R1, "descriptors.end")
        a.mov(R1, R7)
        a.alu("and", R1, 63)
        a.jump_if(R1, "!=", 0, "descriptors.known")
        self._address(R1, R8, BITS)
        a.mov(R2, 8)
        a.mov(R3, R7)
        a.alu("rsh", R3, 3)
        a.load(8, R0, R8, BITS_AT)
        a.alu("add", R3, R0)
        a.call(READ_KERNEL)
        a.jump_if(R0, "!=", 0, "descriptors.end")
        a.label("descriptors.known")
        a.mov(R2, R7)
        a.alu("and", R2, 63)
        a.load(8, R1, R8, BITS)
        a.alu("rsh", R1, R2)
        a.alu("and", R1, 1)
        a.jump_if(R1, "==", 0, "descriptors.next")
        a.mov(R1, R8)
        a.mov(R2, R7)
        a.call_function("fd")
        a.jump_if(R0, "==", 0, "descriptors.next")
        a.mov(R3, R0)
        a.alu("add", R3, self.offsets.f_flags)
        self._address(R1, R8, FD_FLAGS)
        a.mov(R2, 4)
        a.call(READ_KERNEL)
        a.store(4, R8, NUMBER, R7)
        a.store(4, R8, IS_FD, 1)
        a.store(4, R8, TAG, records.FD)
        a.mov(R1, R6)
        a.mov(R2, R8)
        a.call_function("item")
        a.label("descriptors.next")
        self._return()
        a.label("descriptors.end")
        a.mov(R0, 1)
        a.exit()

    def _words(self) -> None:
        """words(record, stack): ARGV, of the stack that the kernel has made: argc, argv[argc], 0."""
        a, most = self.a, self.limits.argv
        room = self.room_of(SCRATCH)
        self._enter((R1, R6), (R2, R8), none="words.out")
        # words of 4 bytes if the first 8 are no small number
        self._address(R1, FP, -24)
        a.mov(R2, 16)
        a.mov(R3, R8)
        a.call(READ_USER)
        a.jump_if(R0, "!=", 0, "words.unreadable")
        a.load(8, R1, FP, -24)
        a.load(8, R7, FP, -16)
        a.mov(R2, R1)
        a.alu("rsh", R2, 32)
        a.jump_if(R2, "!=", 0, "words.short")
        a.jump_if(R1, "==", 0, "words.out")
        a.alu("lsh", R1, 3)
        a.mov(R2, 8)
        a.jump("words.last")
        a.label("words.short")
        a.mov(R7, R2)
        a.alu32("mov", R1, R1)
        a.jump_if(R1, "==", 0, "words.out")
        a.alu("lsh", R1, 2)
        a.mov(R2, 4)
        # the last word ends what is wanted; words follow one another
        a.label("words.last")
        a.mov(R3, R8)
        a.alu("add", R3, R1)
        a.store(8, FP, -32, 0)
        self._address(R1, FP, -32)
        a.call(READ_USER)
        a.jump_if(R0, "!=", 0, "words.unreadable")
        a.load(8, R8, FP, -32)
        a.store(8, FP, -24, R8)
        a.jump_if(R8, "<", R7, "words.unreadable")
        a.alu("sub", R8, R7)
        # R7: the first word, R8: bytes before the last
        self._load_size(room - 16 - 2 * most, "words.cut")
        a.jump_if(R8, ">=", most, "words.long")
        self._item_body(R1)
        a.mov(R2, R8)
        a.mov(R3, R7)
        a.call(READ_USER)
        a.jump_if(R0, "!=", 0, "words.unreadable")
        self._item_body(R1)
        a.alu("add", R1, R8)
        a.mov(R2, most)
        a.alu("sub", R2, R8)
        a.load(8, R3, FP, -24)
        a.store(8, FP, -32, R2)
        a.call(READ_USER_STR)
        a.jump_if(R0, "s<=", 0, "words.unreadable")
        a.load(8, R2, FP, -32)
        a.jump_if(R0, "s>=", R2, "words.full")
        a.jump_if(R0, ">", most, "words.unreadable")
        a.alu("add", R8, R0)
        a.jump_if(R8, ">", most, "words.unreadable")
        a.mov(R7, 0)
        a.jump("words.item")
        a.label("words.long")
        self._item_body(R1)
        a.mov(R2, most)
        a.mov(R3, R7)
        a.call(READ_USER)
        a.jump_if(R0, "!=", 0, "words.unreadable")
        a.label("words.full")
        self._flag(records.CUT)
        a.mov(R8, most)
        a.mov(R7, 1)
        a.label("words.item")
        self._item(SCRATCH, records.ARGV, R8, R7)
        self._return()
        a.label("words.cut")
        self._flag(records.CUT)
        self._return()
        a.label("words.unreadable")
        self._flag(records.UNREADABLE)
        a.label("words.out")
        self._return()
