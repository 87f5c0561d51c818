"""The five programs that watch a tree of processes, and the memory that they share.

They write records of records.py, byte for byte; nothing is translated afterwards. This module
makes instructions and the bytes of a table, and does no I/O (bpf.py loads and reads).

Theory of operation
    Raw tracepoints, which run in the task that they tell of, with its registers and its memory:
    sys_enter           looks the task up in `tree` (most calls of a host end here) and the call in
                        `tables`. Its facts go into the task's slot, as the record that it will be.
                        A long path moves the record to the task's element of `long`.
    sys_exit            reads again what could not be read at entry (its page was not there; the
                        call itself has brought it in), adds what the call has written, and puts
                        the record into `ring`. Records that grow here do so in `scratch`, which
                        each CPU has for itself: these programs run with preemption off.
    task_newtask        puts the new task into the tree and writes FORK. It runs in the parent
                        before the child is woken, so FORK lies before all that the child does.
    sched_process_exec  notes the kernel's name of the program; the slot of a thread that is no
                        leader moves to the leader's number, which the thread has from here on.
    sched_process_exit  writes EXIT and takes the task out.
Invariants
    - A slot is written by its own task only (and made by its parent before it runs): no locks.
    - Each call that was entered by a task of the tree, and has a shape, gives one record when it
      returns, or adds one to `state.full`. So does a call that a seccomp filter answered, which
      returns without having entered; its time is then that of its end.
    - What a task writes reaches the ring as bytes of items only: every length is one that the
      verifier has bounded. Reads of its memory never fault pages in, so never wait.
    - The argv of an exec is read from the new program's stack before it runs: it is what the
      kernel has taken, whatever other threads did meanwhile. A script's words begin with its
      interpreter's. A path that was not readable is left out, and never re-read from the new
      program's memory: EXEC_NAME, the kernel's copy, is the same (execveat relative to a
      descriptor: with /dev/fd/N before it). An exec that failed has no ARGV.
Order
    The ring's order is that of reserving, which is exact within a task, and between a FORK and
    the new task, an EXEC's leader's EXIT and the EXEC. Other calls of two CPUs are in the order
    in which they ended; their times say when they began.

Which table a number belongs to: on x86-64 by thread_info.status & TS_COMPAT, which the kernel
sets on each way in for i386 calls (`int $0x80` in 64-bit code has the code segment of a native
call), and by the number's bit 30 for x32. On aarch64 calls of 32-bit programs are not seen.

Not seen at all: io_uring's operations; a call whose number a ptracer has changed to -1.

Sources: bpf(2), bpf-helpers(7); <linux/bpf.h>; kernel: include/linux/entry-common.h,
arch/x86/entry/common.c, kernel/fork.c, fs/exec.c, kernel/exit.c; <asm/ptrace.h>.
"""

from __future__ import annotations

import mmap
import struct

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
    Assembler,
    Register,
)
from substrate.telemetry.capture.bpf_layout import (
    ABI,
    ALWAYS,
    ARGS,
    AT,
    BASE,
    BASE2,
    BLANK,
    BOOT_NS,
    CLONE_THREAD,
    DELETE,
    ENDED,
    ENTERED,
    FORCE_WAKEUP,
    IN_LONG,
    IN_SLOT,
    LONG_ROOM,
    LONG_SIZE,
    LOOKUP,
    M_ADDRESS,
    M_ALL,
    M_DATA,
    M_HOW,
    M_MESSAGE,
    M_PATH,
    M_PATH2,
    MACHINES,
    MEMORY,
    MESSAGES,
    MISSING,
    MOST_ADDRESS,
    MOST_DATA,
    MOST_HOW,
    MOST_MESSAGES,
    MOVED,
    NR,
    NUMBERS,
    OURS,
    PENDING,
    PID_TGID,
    PSTATE,
    PSTATE_32,
    READ_KERNEL,
    READ_USER,
    READ_USER_STR,
    RECORD,
    RESTARTS,
    RESULT,
    RING_DISCARD,
    RING_RESERVE,
    ROOT,
    SCRIPT,
    SHAPE,
    SHAPELESS,
    SHORT,
    SLOT_ROOM,
    SLOT_SIZE,
    SMP_PROCESSOR_ID,
    STARTED,
    TABLE,
    TABLES_SIZE,
    TASK,
    TEXT,
    TID,
    TIME,
    TS_COMPAT,
    UPDATE,
    WANTED,
    WHEN_FILTERED,
    Limits,
    Offsets,
)
from substrate.telemetry.capture.bpf_places import Places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def make_tables(
    levels: tuple[int, ...], *, everything: bool = False, denied: Iterable[int] = ()
) -> bytes:
    """`tables`: the shapes of all calls of these levels, by table and number; then zeros.

    `everything`: every number below 1024 is told of; those that have no shape without items. `denied`:
    native numbers that are told of where a filter answers them."""
    out = bytearray(TABLES_SIZE)
    abis = (calls.NATIVE, calls.I386, calls.X32) if calls.MACHINE == "x86_64" else (calls.NATIVE,)
    for abi in abis:
        if everything:
            at = abi * TABLE
            out[at : at + TABLE] = SHAPELESS * NUMBERS
        for nr, (_, shape) in calls.by_number(abi=abi).items():
            if shape[6] in levels or everything:
                at = abi * TABLE + nr * calls.SHAPE.size
                out[at : at + calls.SHAPE.size] = shape[:WANTED] + struct.pack("=I", ALWAYS)
    for nr in denied:
        at = nr * calls.SHAPE.size + WANTED
        if nr < NUMBERS and out[at : at + 4] == bytes(4):
            out[at - WANTED : at + 4] = SHAPELESS[:WANTED] + struct.pack("=I", WHEN_FILTERED)
    return bytes(out)


def make_programs(
    offsets: Offsets, limits: Limits, machine: str = calls.MACHINE
) -> dict[str, Assembler]:
    """Tracepoint -> its program, and `ours`. Their maps: ring, tree, long, scratch, walk, tables,
    state."""
    maker = _Maker(offsets, limits, MACHINES[machine])
    return {
        "sys_enter": maker.sys_enter(),
        "sys_exit": maker.sys_exit(),
        "task_newtask": maker.newtask(),
        "sched_process_exec": maker.process_exec(),
        "sched_process_exit": maker.process_exit(),
        "ours": maker.ours(),
    }


class _Maker(Places):
    # --- the programs --------------------------------------------------------------------------

    def sys_enter(self) -> Assembler:
        a = self.a = Assembler()
        a.mov(R7, R1)
        self._find_slot("out")
        a.store(4, R6, ENTERED, 1)
        a.mov(R1, R7)
        a.mov(R2, R6)
        a.load(8, R3, R7, 8)
        a.load(4, R4, FP, -4)
        a.call_function("head")
        a.load(4, R1, R6, PENDING)
        a.jump_if(R1, "==", 0, "out")
        a.load(4, R1, R6, SHAPE + WANTED)
        a.jump_if(R1, "==", ALWAYS, "wanted")
        a.store(4, R6, PENDING, 0)
        a.jump("out")
        a.label("wanted")
        self._note_bases()
        self._entry()
        a.label("out")
        self._return()
        self._head()
        self._place_functions("fd")
        return a

    def sys_exit(self) -> Assembler:
        a = self.a = Assembler()
        a.mov(R7, R1)
        self._find_slot("out")
        a.load(8, R8, R7, 8)
        a.load(4, R1, R6, ENTERED)
        a.jump_if(R1, "==", 0, "never entered")
        a.store(4, R6, ENTERED, 0)
        a.label("entered")
        a.load(4, R1, R6, PENDING)
        a.jump_if(R1, "==", 0, "out")
        a.store(4, R6, PENDING, 0)
        a.jump_if(R1, "==", IN_LONG, "long")

        self._result(SLOT_ROOM)
        self._output(SLOT_ROOM)
        self._return()

        a.label("long")
        self._lookup("long")
        a.jump_if(R0, "==", 0, "out")
        a.mov(R6, R0)
        self._result(LONG_ROOM)
        self._output(LONG_ROOM)
        a.label("out")
        self._return()

        # A filter has answered before sys_enter was told; or this is the first that a new task
        # does, whose call is its parent's.
        a.label("never entered")
        self._read_kernel(FP, -16, 8, R7, 0, self.machine.nr)
        a.mov(R1, R7)
        a.mov(R2, R6)
        a.load(8, R3, FP, -16)
        if self.machine.i386_args:
            # 32 bits of a number are all that the kernel looks at; -1 is no call
            a.alu32("mov", R3, R3)
        a.load(4, R4, FP, -4)
        a.call_function("head")
        # all that it points to is read where what was missing is read again
        a.store(4, R6, MISSING, M_ALL)
        self._flag(records.FILTERED)
        a.jump_if(R8, "!=", 0, "entered")
        a.load(4, R1, R6, SHAPE + 8)
        a.alu("and", R1, calls.CLONES | calls.CLONES_3)
        a.jump_if(R1, "==", 0, "entered")
        a.store(4, R6, PENDING, 0)
        a.jump("out")

        self._slow_exit()
        self._head()
        self._place_functions(
            *("fd", "pid", "identity", "item", "path", "walk.step", "fds.step"),
        )
        return a

    def newtask(self) -> Assembler:
        a = self.a = Assembler()
        a.mov(R7, R1)
        self._find_slot("out")
        self._read_kernel(FP, -8, 4, R7, 0, self.offsets.pid)
        a.load(8, R8, R7, 8)
        a.load_map(R1, "tree")
        self._address(R2, FP, -8)
        a.load_map_value(R3, "tables", BLANK)
        a.mov(R4, 0)
        a.call(UPDATE)
        a.jump_if(R0, "!=", 0, "no memory")
        self._count(STARTED)
        a.jump("write")
        a.label("no memory")
        self._count(MEMORY)
        a.label("write")
        self._head_on_stack(records.FORK)
        a.load(4, R1, FP, -8)
        a.store(8, FP, -96 + RESULT, R1)
        a.store(8, FP, -96 + ARGS, R8)
        a.alu("rsh", R8, 16)
        a.alu("and", R8, CLONE_THREAD >> 16)
        a.store(8, FP, -96 + ARGS + 8, R8)
        a.load(8, R1, R7, 0)
        a.call_function("pid")
        a.store(4, FP, -96, records.HEAD_SIZE + 16)
        a.store(8, FP, -8, R0)
        a.store(4, FP, -16, records.PIDS)
        a.store(4, FP, -12, 4)
        self._output_stack(records.HEAD_SIZE + 16)
        a.label("out")
        self._return()
        self._place_functions("pid")
        return a

    def process_exec(self) -> Assembler:
        a = self.a = Assembler()
        a.mov(R7, R1)
        a.load(8, R8, R7, 8)
        a.store(4, FP, -12, R8)
        a.call(PID_TGID)
        a.store(4, FP, -4, R0)
        a.alu32("mov", R9, R0)
        a.alu32("mov", R8, R8)
        a.jump_if(R8, "==", R9, "same")
        # The leader is gone, and has been taken out; its number is this thread's now.
        self._move("tree", SLOT_SIZE)
        self._move("long", LONG_SIZE)
        a.label("same")
        a.load_map(R1, "tree")
        self._address(R2, FP, -4)
        a.call(LOOKUP)
        a.jump_if(R0, "==", 0, "out")
        a.mov(R6, R0)
        a.jump_if(R8, "==", R9, "leader")
        a.store(4, R6, MOVED, R8)
        a.label("leader")
        # the kernel's own names: of what was named, and of what runs
        self._read_kernel(FP, -32, 8, R7, 16, self.offsets.interp)
        self._read_kernel(FP, -24, 8, R7, 16, self.offsets.filename)
        a.load(8, R8, FP, -24)
        a.load(8, R1, FP, -32)
        a.jump_if(R1, "==", R8, "no script")
        a.store(4, R6, SCRIPT, 1)
        a.label("no script")
        a.load(4, R1, R6, PENDING)
        a.jump_if(R1, "==", 0, "out")
        a.jump_if(R1, "==", IN_LONG, "in long")
        self._load_size(SLOT_ROOM, "out")
        self._text(records.EXEC_NAME, SLOT_ROOM, SHORT, "too long", kernel=True)
        a.store(4, R6, AT, R9)
        a.jump("out")
        a.label("too long")
        self._to_long("out")
        a.label("in long")
        self._lookup("long")
        a.jump_if(R0, "==", 0, "out")
        a.mov(R6, R0)
        self._load_size(LONG_ROOM, "out")
        self._text(records.EXEC_NAME, LONG_ROOM, TEXT, None, kernel=True)
        a.store(4, R6, AT, R9)
        a.label("out")
        self._return()
        return a

    def process_exit(self) -> Assembler:
        a = self.a = Assembler()
        off = self.offsets
        a.mov(R7, R1)
        self._find_slot("out")
        a.call(PID_TGID)
        a.mov(R9, R0)
        self._head_on_stack(records.EXIT)
        self._read_kernel(FP, -8, 4, R7, 0, off.exit_code)
        a.load(4, R1, FP, -8)
        a.alu("and", R1, 0xFFFF)
        a.store(8, FP, -96 + RESULT, R1)
        self._read_kernel(FP, -96 + ARGS, 8, R7, 0, off.utime)
        self._read_kernel(FP, -96 + ARGS + 8, 8, R7, 0, off.stime)
        # of a process the threads that are gone count too, and the most memory
        a.mov(R1, R9)
        a.alu("rsh", R1, 32)
        a.alu32("mov", R2, R9)
        a.jump_if(R1, "==", R2, "leader")
        a.store(8, FP, -96 + ARGS + 24, 1)
        a.jump("times")
        a.label("leader")
        self._read_kernel(FP, -16, 8, R7, 0, off.signal)
        a.load(8, R8, FP, -16)
        for place, offset in ((0, off.signal_utime), (8, off.signal_stime), (16, off.maxrss)):
            self._address(R1, FP, -16)
            a.mov(R2, 8)
            a.mov(R3, R8)
            a.alu("add", R3, offset)
            a.call(READ_KERNEL)
            a.load(8, R1, FP, -16)
            a.load(8, R2, FP, -96 + ARGS + place)
            a.alu("add", R1, R2)
            if place == 16:  # pages
                a.alu("lsh", R1, (mmap.PAGESIZE // 1024).bit_length() - 1)
            a.store(8, FP, -96 + ARGS + place, R1)
        a.label("times")
        for place in (0, 8):
            a.load(8, R1, FP, -96 + ARGS + place)
            a.alu("div", R1, 1000)
            a.store(8, FP, -96 + ARGS + place, R1)
        self._output_stack()
        for name in ("long", "tree"):
            a.load_map(R1, name)
            self._address(R2, FP, -4)
            a.call(DELETE)
        self._count(ENDED)
        # The last one calls the reader, whatever came before. This is the only way to do so after
        # `ended` was counted: a record that is given back at once.
        a.load_map_value(R1, "state")
        a.load(8, R2, R1, STARTED)
        a.load(8, R3, R1, ENDED)
        a.jump_if(R2, "!=", R3, "out")
        a.load_map(R1, "ring")
        a.mov(R2, 8)
        a.mov(R3, 0)
        a.call(RING_RESERVE)
        a.jump_if(R0, "==", 0, "out")
        a.mov(R1, R0)
        a.mov(R2, FORCE_WAKEUP)
        a.call(RING_DISCARD)
        a.label("out")
        self._return()
        return a

    def ours(self) -> Assembler:
        """Run by ourselves: the identity of the descriptor that is its first argument, and our root, into
        `state`; R0: 0 if all was told."""
        a = self.a = Assembler()
        a.load(8, R2, R1, 0)
        a.store(8, FP, -64, R2)
        a.load_map_value(R6, "state")
        a.call(TASK)
        a.mov(R7, R0)
        self._follow(R7, self.offsets.fs, "bad")
        a.load(8, R3, FP, -48)
        a.alu("add", R3, self.offsets.root)
        self._address(R1, R6, ROOT)
        a.mov(R2, 16)
        a.call(READ_KERNEL)
        a.jump_if(R0, "!=", 0, "bad")
        a.load(8, R2, FP, -64)
        self._address(R1, FP, -32)
        a.call_function("fd")
        a.jump_if(R0, "==", 0, "bad")
        a.mov(R1, R0)
        self._address(R2, R6, OURS)
        a.call_function("identity")
        a.exit()
        a.label("bad")
        a.mov(R0, 1)
        a.exit()
        self._place_functions("fd", "identity")
        return a

    # --- what a call's entry tells -------------------------------------------------------------

    def _head(self) -> None:
        """head(context, slot, number, tid): the record without items; `PENDING` if it is wanted."""
        a, machine = self.a, self.machine
        start, size = machine.window
        regs = -size - 16  # on the stack, by an offset that is that of the window
        a.label("head")
        a.mov(R6, R2)
        a.mov(R7, R3)
        a.store(4, FP, -4, R4)
        a.store(4, R6, PENDING, 0)
        a.store(4, R6, SHAPE + 8, 0)
        a.load(8, R8, R1, 0)
        a.mov(R9, calls.NATIVE)
        if machine.i386_args:
            a.mov(R1, R7)
            a.alu("rsh", R1, 30)
            a.jump_if(R1, "==", 1, "head.x32")
        a.jump_if(R7, ">=", NUMBERS, "head.none")
        # Most calls are in no table: go before anything is read.
        a.mov(R1, R7)
        a.alu("lsh", R1, 4)
        a.load_map_value(R2, "tables")
        a.alu("add", R2, R1)
        a.load(4, R3, R2, WANTED)
        if machine.i386_args:
            a.load(4, R4, R2, TABLE + WANTED)
            a.alu("or", R3, R4)
        a.jump_if(R3, "==", 0, "head.none")
        if machine.i386_args:
            a.call(TASK)
            a.mov(R3, R0)
            a.alu("add", R3, self.offsets.status)
            self._address(R1, FP, -8)
            a.mov(R2, 4)
            a.call(READ_KERNEL)
            a.load(4, R1, FP, -8)
            a.alu("and", R1, TS_COMPAT)
            a.jump_if(R1, "==", 0, "head.abi")
            a.mov(R9, calls.I386)
            a.jump("head.abi")
            a.label("head.x32")
            a.mov(R9, calls.X32)
            a.alu("and", R7, calls.X32_BIT - 1)
            a.jump_if(R7, ">=", NUMBERS, "head.none")
        a.label("head.abi")
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

    def _entry(self) -> None:
        """What the slot's call points to, when it begins."""
        a = self.a
        a.mov(R9, records.HEAD_SIZE)
        self._argument_text(records.PATH, 0, SLOT_ROOM, SHORT, "long", M_PATH)
        self._argument_text(records.PATH2, 2, SLOT_ROOM, SHORT, "long", M_PATH2)
        a.load(4, R1, R6, SHAPE + 8)
        a.alu("and", R1, UNUSUAL)
        a.jump_if(R1, "!=", 0, "unusual")
        a.load(1, R1, R6, SHAPE + 4)
        a.jump_if(R1, "==", calls.NONE, "out")
        a.label("unusual")
        self._argument_address(SLOT_ROOM)
        self._argument_how(SLOT_ROOM)
        self._argument_data(SLOT_ROOM)
        self._argument_messages()
        a.store(4, R6, AT, R9)
        a.jump("out")

        a.label("long")
        a.mov(R9, records.HEAD_SIZE)
        a.store(4, R6, AT, R9)
        a.store(4, R6, MISSING, 0)
        self._to_long("no memory")
        a.mov(R6, R0)
        a.mov(R9, records.HEAD_SIZE)
        self._argument_text(records.PATH, 0, LONG_ROOM, TEXT, None, M_PATH)
        self._argument_text(records.PATH2, 2, LONG_ROOM, TEXT, None, M_PATH2)
        self._argument_how(LONG_ROOM)
        a.jump("out")
        # there is none for the long form: it is read at the end
        a.label("no memory")
        a.store(4, R6, MISSING, M_PATH | M_PATH2 | M_HOW)

    def _argument_text(
        self, tag: int, field: int, room: int, most: int, too_long: str | None, bit: int
    ) -> None:
        """The text at the argument that byte `field` of the shape names."""
        a = self.a
        done = a.fresh("argument")
        a.load(1, R1, R6, SHAPE + field)
        a.jump_if(R1, "==", calls.NONE, done)
        self._load_argument(R8, R1)
        a.jump_if(R8, "==", 0, done)
        self._text(tag, room, most, too_long, bit=bit)
        a.label(done)

    def _argument_address(self, room: int) -> None:
        a = self.a
        done = a.fresh("address")
        a.load(4, R1, R6, SHAPE + 8)
        a.alu("and", R1, calls.ADDRESS_OUT)
        a.jump_if(R1, "!=", 0, done)
        a.load(1, R1, R6, SHAPE + 4)
        a.jump_if(R1, "==", calls.NONE, done)
        a.mov(R7, R1)
        self._load_argument(R8, R1)
        a.alu("add", R7, 1)
        self._load_argument(R7, R7)
        self._bytes(records.ADDRESS, room, MOST_ADDRESS, bit=M_ADDRESS)
        a.label(done)

    def _argument_how(self, room: int) -> None:
        a = self.a
        done = a.fresh("how")
        self._unless(calls.HOW, done)
        a.load(1, R7, R6, SHAPE + 5)
        self._load_argument(R8, R7)
        a.alu("add", R7, 1)
        self._load_argument(R7, R7)
        self._bytes(records.HOW, room, MOST_HOW, bit=M_HOW)
        a.label(done)

    def _argument_data(self, room: int) -> None:
        """Of sendto; of socketcall its arguments."""
        a = self.a
        done, read = a.fresh("data"), a.fresh("data.read")
        a.mov(R7, 24)
        a.load(4, R1, R6, SHAPE + 8)
        a.alu("and", R1, calls.SOCKETCALL)
        a.jump_if(R1, "!=", 0, read)
        self._unless(calls.DATA, done)
        a.load(8, R7, R6, RECORD + ARGS + 16)
        a.label(read)
        a.load(8, R8, R6, RECORD + ARGS + 8)
        self._bytes(records.DATA, room, MOST_DATA, bit=M_DATA, cut=False)
        a.label(done)

    def _argument_messages(self) -> None:
        """Addresses and data of sendmsg, and of the first of sendmmsg's messages.

        Only at entry, and only of native calls: a second place, or a second layout, would double
        the time of verification, which every command waits for. What is not read is told."""
        a = self.a
        done, counted = a.fresh("messages"), a.fresh("messages.counted")
        missing = a.fresh("messages.missing")
        self._unless(calls.MESSAGE | calls.MESSAGES, done)
        a.load(2, R1, R6, RECORD + ABI)
        a.jump_if(R1, "!=", calls.NATIVE, missing)
        a.mov(R7, 1)
        self._unless(calls.MESSAGES, counted)
        a.load(1, R7, R6, SHAPE + 5)
        a.alu("add", R7, 1)
        self._load_argument(R7, R7)
        a.alu32("mov", R7, R7)
        a.jump_if(R7, "<=", MOST_MESSAGES, counted)
        self._flag(records.CUT)
        a.label(counted)
        # how many there are is forgotten with the rest (see _forget_size)
        a.store(8, R6, MESSAGES, R7)
        for n in range(MOST_MESSAGES):
            a.load(8, R1, R6, MESSAGES)
            a.jump_if(R1, "<=", n, done)
            a.load(1, R1, R6, SHAPE + 5)
            self._load_argument(R3, R1)
            # struct msghdr: name, its length, vector, its length
            a.alu("add", R3, 64 * n)
            self._read_user(-48, 32, R3, missing)
            a.load(8, R8, FP, -48)
            a.load(4, R7, FP, -40)
            self._bytes(records.ADDRESS, SLOT_ROOM, MOST_ADDRESS, bit=M_MESSAGE)
            following = a.fresh("message")
            a.load(8, R1, FP, -24)
            a.jump_if(R1, "==", 0, following)
            a.load(8, R3, FP, -32)
            self._read_user(-48, 16, R3, missing)
            a.load(8, R8, FP, -48)
            a.load(8, R7, FP, -40)
            self._bytes(records.DATA, SLOT_ROOM, MOST_DATA, bit=M_MESSAGE, cut=False)
            a.label(following)
        a.jump(done)
        a.label(missing)
        self._miss(M_MESSAGE)
        a.label(done)

    def _read_user(self, place: int, size: int, base: Register, missing: str) -> None:
        """To the stack."""
        a = self.a
        if base is not R3:
            a.mov(R3, base)
        self._address(R1, FP, place)
        a.mov(R2, size)
        a.call(READ_USER)
        a.jump_if(R0, "!=", 0, missing)

    # --- what a call's end adds ----------------------------------------------------------------

    def _result(self, room: int) -> None:
        """The result of R8, and the size in R9; away to "slow" with R4 = room if there is more."""
        a = self.a
        plain = a.fresh("plain")
        a.store(8, R6, RECORD + RESULT, R8)
        self._load_size(room, "out")
        a.mov(R1, R8)
        a.alu("add", R1, -RESTARTS[0])
        a.jump_if(R1, ">", RESTARTS[1] - RESTARTS[0], plain)
        self._flag(records.RESTARTED)
        a.label(plain)
        a.load(4, R1, R6, MISSING)
        a.jump_if(R1, "!=", 0, "slow")
        for place in (BASE, BASE2):
            a.load(8, R1, R6, place)
            a.jump_if(R1, "!=", 0, "slow")
        a.load(4, R1, R6, SHAPE + 8)
        a.alu("and", R1, calls.PAIR | calls.ADDRESS_OUT | calls.PROGRAM)
        a.jump_if(R1, "!=", 0, "slow")
        failed = a.fresh("failed")
        a.jump_if(R8, "s<", 0, failed)
        a.load(4, R1, R6, SHAPE + 8)
        a.alu("and", R1, calls.OPENS | calls.NEW_SOCKET | calls.MOVES | calls.ROOTS)
        a.jump_if(R1, "!=", 0, "slow")
        a.label(failed)

    def _slow_exit(self) -> None:
        """R6: a slot or its long form, R7: the context, R8: the result, R9: the size."""
        a = self.a
        room = self.limits.scratch - RECORD
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
        self._find_walk("out")
        # From here on all is loaded from there, where the verifier forgets it (_forget_size).
        self._load_size(LONG_ROOM, "out")
        self._unless(calls.PROGRAM, "slow.again")
        a.load(8, R1, R6, RECORD + RESULT)
        a.jump_if(R1, "==", 0, "slow.exec")

        a.label("slow.again")
        a.load(4, R1, R6, MISSING)
        a.store(4, R6, PENDING, R1)
        a.alu("and", R1, M_MESSAGE)
        a.store(4, R6, MISSING, R1)
        text = self._argument_text
        again: tuple[tuple[int, Callable[[], None]], ...] = (
            (M_PATH, lambda: text(records.PATH, 0, room, TEXT, None, M_PATH)),
            (M_PATH2, lambda: text(records.PATH2, 2, room, TEXT, None, M_PATH2)),
            (M_ADDRESS, lambda: self._argument_address(room)),
            (M_HOW, lambda: self._argument_how(room)),
            (M_DATA, lambda: self._argument_data(room)),
        )
        for bit, add in again:
            done = a.fresh("again")
            a.load(4, R1, R6, PENDING)
            a.alu("and", R1, bit)
            a.jump_if(R1, "==", 0, done)
            add()
            a.label(done)
        self._tell_bases()
        a.load(8, R1, R6, RECORD + RESULT)
        a.jump_if(R1, "s<", 0, "slow.finish")
        self._unless(calls.OPENS | calls.NEW_SOCKET, "slow.moves")
        self._tell_opened("slow.moves")
        a.label("slow.moves")
        self._unless(calls.MOVES, "slow.roots")
        self._tell_standing(records.CWD, self.offsets.pwd, "slow.roots")
        a.label("slow.roots")
        self._unless(calls.ROOTS, "slow.pair")
        self._tell_standing(records.ROOT, self.offsets.root, "slow.pair")
        a.label("slow.pair")

        self._unless(calls.PAIR, "slow.address")
        a.load(1, R1, R6, SHAPE + 5)
        self._load_argument(R8, R1)
        a.mov(R7, 8)
        self._bytes(records.PAIR, room, 8, bit=M_ADDRESS)
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
        a.load(4, R7, FP, -24)
        self._bytes(records.ADDRESS, room, MOST_ADDRESS, bit=M_ADDRESS)
        a.jump("slow.finish")
        a.label("slow.no length")
        self._miss(M_ADDRESS)
        a.label("slow.finish")
        a.load(4, R1, R6, MISSING)
        a.jump_if(R1, "==", 0, "slow.out")
        self._flag(records.UNREADABLE)
        a.label("slow.out")
        self._output(room)
        self._return()
        self._exec(room)

    def _exec(self, room: int) -> None:
        """An exec that succeeded: the memory is the new program's, which has not run yet."""
        a, most = self.a, self.limits.argv
        a.label("slow.exec")
        a.store(1, R6, RECORD + 4, records.EXEC)
        # of the path the kernel's own name tells more
        a.store(4, R6, MISSING, 0)
        a.load(4, R1, R6, MOVED)
        a.store(8, R6, RECORD + ARGS, R1)
        a.load(4, R1, R6, SCRIPT)
        a.store(8, R6, RECORD + ARGS + 8, R1)
        a.store(8, FP, -104, R7)
        self._tell_program()
        a.load(8, R7, FP, -104)
        # the stack: argc, argv[argc], 0; words of 4 bytes if the first 8 are no small number
        self._read_kernel(FP, -24, 8, R7, 0, self.machine.stack)
        a.load(8, R8, FP, -24)
        self._address(R1, FP, -88)
        a.mov(R2, 16)
        a.mov(R3, R8)
        a.call(READ_USER)
        a.jump_if(R0, "!=", 0, "exec.unreadable")
        a.load(8, R1, FP, -88)
        a.load(8, R7, FP, -80)
        a.mov(R2, R1)
        a.alu("rsh", R2, 32)
        a.jump_if(R2, "!=", 0, "exec.short")
        a.jump_if(R1, "==", 0, "slow.finish")
        a.alu("lsh", R1, 3)
        a.mov(R2, 8)
        a.jump("exec.last")
        a.label("exec.short")
        a.mov(R7, R2)
        a.alu32("mov", R1, R1)
        a.jump_if(R1, "==", 0, "slow.finish")
        a.alu("lsh", R1, 2)
        a.mov(R2, 4)
        # the last word ends what is wanted; words follow one another
        a.label("exec.last")
        a.mov(R3, R8)
        a.alu("add", R3, R1)
        a.store(8, FP, -96, 0)
        self._address(R1, FP, -96)
        a.call(READ_USER)
        a.jump_if(R0, "!=", 0, "exec.unreadable")
        a.load(8, R8, FP, -96)
        a.store(8, FP, -88, R8)
        a.jump_if(R8, "<", R7, "exec.unreadable")
        a.alu("sub", R8, R7)
        # R7: the first word, R8: bytes before the last
        a.jump_if(R9, ">", room - 16 - 2 * most, "exec.cut")
        a.jump_if(R8, ">=", most, "exec.long")
        self._item_body(R1)
        a.mov(R2, R8)
        a.mov(R3, R7)
        a.call(READ_USER)
        a.jump_if(R0, "!=", 0, "exec.unreadable")
        self._item_body(R1)
        a.alu("add", R1, R8)
        a.mov(R2, most)
        a.alu("sub", R2, R8)
        a.load(8, R3, FP, -88)
        a.store(8, FP, -96, R2)
        a.call(READ_USER_STR)
        a.jump_if(R0, "s<=", 0, "exec.unreadable")
        a.load(8, R2, FP, -96)
        a.jump_if(R0, "s>=", R2, "exec.full")
        a.jump_if(R0, ">", most, "exec.unreadable")
        a.alu("add", R8, R0)
        a.jump_if(R8, ">", most, "exec.unreadable")
        a.mov(R7, 0)
        a.jump("exec.item")
        a.label("exec.long")
        self._item_body(R1)
        a.mov(R2, most)
        a.mov(R3, R7)
        a.call(READ_USER)
        a.jump_if(R0, "!=", 0, "exec.unreadable")
        a.label("exec.full")
        self._flag(records.CUT)
        a.mov(R8, most)
        a.mov(R7, 1)
        a.label("exec.item")
        self._item(records.ARGV, R8, R7)
        a.jump("slow.finish")
        a.label("exec.cut")
        self._flag(records.CUT)
        a.jump("slow.finish")
        a.label("exec.unreadable")
        self._flag(records.UNREADABLE)
        a.jump("slow.finish")


#: what makes an entry more than its paths
UNUSUAL = calls.HOW | calls.DATA | calls.MESSAGE | calls.MESSAGES | calls.SOCKETCALL
