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
    R5,
    R6,
    R7,
    R8,
    R9,
    Assembler,
    Register,
)
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from substrate.telemetry.capture.bpf_types import Types

# --- helpers of the kernel (enum bpf_func_id)
_LOOKUP, _UPDATE, _DELETE = 1, 2, 3
_SMP_PROCESSOR_ID, _PID_TGID, _TASK = 8, 14, 35
_READ_USER, _READ_KERNEL, _READ_USER_STR, _READ_KERNEL_STR = 112, 113, 114, 115
_JIFFIES, _BOOT_NS = 118, 125
_RING_OUTPUT, _RING_RESERVE, _RING_DISCARD, _RING_QUERY = 130, 131, 133, 134
_NO_WAKEUP, _FORCE_WAKEUP, _AVAILABLE = 1, 2, 0

#: state, the memory that we read while the programs run: u64 each
FULL, MEMORY, STARTED, ENDED, _WOKEN = 0, 8, 16, 24, 32
STATE_SIZE: Final = 64

#: jiffies between two calls of the reader (4 ms each on most kernels), if it is not urgent
_QUIET = 5

# --- a slot: what is known of a call, then the record that it becomes
_PENDING, _MISSING, _AT, _ENTERED, _SHAPE, _MOVED, _MESSAGES, _RECORD = 0, 4, 8, 12, 16, 32, 40, 48
_IN_SLOT, _IN_LONG = 1, 2
#: of a record's head
_FLAGS, _ABI, _TID, _NR, _TIME, _RESULT, _ARGS = 5, 6, 8, 12, 16, 24, 32

#: with what the kernel keeps beside it, a slot fills an allocation of 1024 bytes
SLOT_SIZE: Final = 960
_SLOT_ROOM = SLOT_SIZE - _RECORD
_SHORT = 392
#: one more than a path can have, so that one of 4095 bytes is known to be whole
_TEXT = records.MOST_PATH + 8
LONG_SIZE: Final = _RECORD + records.HEAD_SIZE + 2 * (8 + _TEXT) + 80
_LONG_ROOM = LONG_SIZE - _RECORD
_MOST_ADDRESS, _MOST_HOW, _MOST_DATA = 128, 64, 256
#: of sendmmsg's messages
_MOST_MESSAGES = 2

# what could not be read at entry
_M_PATH, _M_PATH2, _M_ADDRESS, _M_HOW, _M_MESSAGE, _M_DATA = (1 << n for n in range(6))
_M_ALL = (1 << 6) - 1

_NUMBERS = 1024
_TABLE = _NUMBERS * calls.SHAPE.size
_BLANK = 3 * _TABLE
TABLES_SIZE: Final = _BLANK + LONG_SIZE
#: of a row in `tables`: the shape's reserved word
_WANTED = 12

#: of a call of which only number and result are told
_SHAPELESS: Final = struct.pack("=8BII", *[calls.NONE] * 6, calls.FILES, calls.I_NONE, 0, 1)

_CLONE_THREAD = 0x10000
_TS_COMPAT = 2
#: from -ERESTART_RESTARTBLOCK to -ERESTARTSYS (linux/errno.h); -515 between them is no result
_RESTARTS = (-516, -512)

PROGRAMS: Final = (
    "sys_enter",
    "sys_exit",
    "task_newtask",
    "sched_process_exec",
    "sched_process_exit",
)


@value
class Offsets:
    """Where the kernel keeps what no tracepoint hands out, in bytes."""

    pid: int
    exit_code: int
    utime: int
    stime: int
    signal: int
    signal_utime: int
    signal_stime: int
    maxrss: int
    #: of task_struct; x86-64 only
    status: int
    filename: int


def find_offsets(types: Types) -> Offsets:
    """Raises TypesUnknown."""
    task = types.offset
    status = task(b"task_struct", b"thread_info")
    if calls.MACHINE == "x86_64":
        status += task(b"thread_info", b"status")
    return Offsets(
        pid=task(b"task_struct", b"pid"),
        exit_code=task(b"task_struct", b"exit_code"),
        utime=task(b"task_struct", b"utime"),
        stime=task(b"task_struct", b"stime"),
        signal=task(b"task_struct", b"signal"),
        signal_utime=task(b"signal_struct", b"utime"),
        signal_stime=task(b"signal_struct", b"stime"),
        maxrss=task(b"signal_struct", b"maxrss"),
        status=status,
        filename=task(b"linux_binprm", b"filename"),
    )


@value
class Machine:
    """Where struct pt_regs, as programs see it (<asm/ptrace.h>), has what we read."""

    #: what is read of it at entry: from, how many bytes (a multiple of 8)
    window: tuple[int, int]
    args: tuple[int, ...]
    #: () where calls of 32-bit programs are not read
    i386_args: tuple[int, ...] = ()
    nr: int
    stack: int


_MACHINES: Final = {
    "x86_64": Machine(
        window=(32, 88),
        args=(112, 104, 96, 56, 72, 64),
        i386_args=(40, 88, 96, 104, 112, 32),
        nr=120,
        stack=152,
    ),
    # x8 has the number; the pstate of a 32-bit program has bit 4
    "aarch64": Machine(window=(0, 272), args=(0, 8, 16, 24, 32, 40), nr=64, stack=248),
}
_PSTATE, _PSTATE_32 = 264, 0x10


@value
class Limits:
    """Sizes in bytes and numbers; `tasks`: living at one time."""

    ring: int = 8 << 20
    tasks: int = 16384
    argv: int = 32768

    @property
    def scratch(self) -> int:
        """Bytes of one CPU's scratch: a slot's long form, a name, the words, and what is read again."""
        # The words have twice their room: the verifier adds up the most of two lengths.
        return LONG_SIZE + 2 * (8 + _TEXT) + 8 + 2 * self.argv + 1024


def make_tables(levels: tuple[int, ...], *, everything: bool = False) -> bytes:
    """`tables`: the shapes of all calls of these levels, by table and number; then zeros.

    `everything`: every number below 1024 is told of; those that have no shape without items."""
    out = bytearray(TABLES_SIZE)
    abis = (calls.NATIVE, calls.I386, calls.X32) if calls.MACHINE == "x86_64" else (calls.NATIVE,)
    for abi in abis:
        if everything:
            at = abi * _TABLE
            out[at : at + _TABLE] = _SHAPELESS * _NUMBERS
        for nr, (_, shape) in calls.by_number(abi=abi).items():
            if shape[6] in levels or everything:
                at = abi * _TABLE + nr * calls.SHAPE.size
                out[at : at + calls.SHAPE.size] = shape[:_WANTED] + struct.pack("=I", 1)
    return bytes(out)


def make_programs(
    offsets: Offsets, limits: Limits, machine: str = calls.MACHINE
) -> dict[str, Assembler]:
    """Tracepoint -> its program. Their maps: ring, tree, long, scratch, tables, state."""
    maker = _Maker(offsets, limits, _MACHINES[machine])
    return {
        "sys_enter": maker.sys_enter(),
        "sys_exit": maker.sys_exit(),
        "task_newtask": maker.newtask(),
        "sched_process_exec": maker.process_exec(),
        "sched_process_exit": maker.process_exit(),
    }


class _Maker:
    """One way of making; registers of a function: R6 what it works on, R9 the record's size."""

    def __init__(self, offsets: Offsets, limits: Limits, machine: Machine) -> None:
        self.offsets, self.limits, self.machine = offsets, limits, machine
        self.a = Assembler()

    # --- the programs --------------------------------------------------------------------------

    def sys_enter(self) -> Assembler:
        a = self.a = Assembler()
        a.mov(R7, R1)
        self._find_slot("out")
        a.store(4, R6, _ENTERED, 1)
        a.mov(R1, R7)
        a.mov(R2, R6)
        a.load(8, R3, R7, 8)
        a.load(4, R4, FP, -4)
        a.call_function("head")
        a.load(4, R1, R6, _PENDING)
        a.jump_if(R1, "==", 0, "out")
        self._entry()
        a.label("out")
        self._return()
        self._head()
        return a

    def sys_exit(self) -> Assembler:
        a = self.a = Assembler()
        a.mov(R7, R1)
        self._find_slot("out")
        a.load(8, R8, R7, 8)
        a.load(4, R1, R6, _ENTERED)
        a.jump_if(R1, "==", 0, "never entered")
        a.store(4, R6, _ENTERED, 0)
        a.label("entered")
        a.load(4, R1, R6, _PENDING)
        a.jump_if(R1, "==", 0, "out")
        a.store(4, R6, _PENDING, 0)
        a.jump_if(R1, "==", _IN_LONG, "long")

        self._result(_SLOT_ROOM)
        self._output(_SLOT_ROOM)
        self._return()

        a.label("long")
        self._lookup("long")
        a.jump_if(R0, "==", 0, "out")
        a.mov(R6, R0)
        self._result(_LONG_ROOM)
        self._output(_LONG_ROOM)
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
        a.store(4, R6, _MISSING, _M_ALL)
        a.jump_if(R8, "!=", 0, "entered")
        a.load(4, R1, R6, _SHAPE + 8)
        a.alu("and", R1, calls.CLONES | calls.CLONES_3)
        a.jump_if(R1, "==", 0, "entered")
        a.store(4, R6, _PENDING, 0)
        a.jump("out")

        self._slow_exit()
        self._head()
        return a

    def newtask(self) -> Assembler:
        a = self.a = Assembler()
        a.mov(R7, R1)
        self._find_slot("out")
        self._read_kernel(FP, -8, 4, R7, 0, self.offsets.pid)
        a.load(8, R8, R7, 8)
        a.load_map(R1, "tree")
        self._address(R2, FP, -8)
        a.load_map_value(R3, "tables", _BLANK)
        a.mov(R4, 0)
        a.call(_UPDATE)
        a.jump_if(R0, "!=", 0, "no memory")
        self._count(STARTED)
        a.jump("write")
        a.label("no memory")
        self._count(MEMORY)
        a.label("write")
        self._head_on_stack(records.FORK)
        a.load(4, R1, FP, -8)
        a.store(8, FP, -96 + _RESULT, R1)
        a.store(8, FP, -96 + _ARGS, R8)
        a.alu("rsh", R8, 16)
        a.alu("and", R8, _CLONE_THREAD >> 16)
        a.store(8, FP, -96 + _ARGS + 8, R8)
        self._output_stack()
        a.label("out")
        self._return()
        return a

    def process_exec(self) -> Assembler:
        a = self.a = Assembler()
        a.mov(R7, R1)
        a.load(8, R8, R7, 8)
        a.store(4, FP, -12, R8)
        a.call(_PID_TGID)
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
        a.call(_LOOKUP)
        a.jump_if(R0, "==", 0, "out")
        a.mov(R6, R0)
        a.jump_if(R8, "==", R9, "leader")
        a.store(4, R6, _MOVED, R8)
        a.label("leader")
        self._read_kernel(FP, -24, 8, R7, 16, self.offsets.filename)
        a.load(8, R8, FP, -24)
        a.load(4, R1, R6, _PENDING)
        a.jump_if(R1, "==", 0, "out")
        a.jump_if(R1, "==", _IN_LONG, "in long")
        self._load_size(_SLOT_ROOM, "out")
        self._text(records.EXEC_NAME, _SLOT_ROOM, _SHORT, "too long", kernel=True)
        a.store(4, R6, _AT, R9)
        a.jump("out")
        a.label("too long")
        self._to_long("out")
        a.label("in long")
        self._lookup("long")
        a.jump_if(R0, "==", 0, "out")
        a.mov(R6, R0)
        self._load_size(_LONG_ROOM, "out")
        self._text(records.EXEC_NAME, _LONG_ROOM, _TEXT, None, kernel=True)
        a.store(4, R6, _AT, R9)
        a.label("out")
        self._return()
        return a

    def process_exit(self) -> Assembler:
        a = self.a = Assembler()
        off = self.offsets
        a.mov(R7, R1)
        self._find_slot("out")
        a.call(_PID_TGID)
        a.mov(R9, R0)
        self._head_on_stack(records.EXIT)
        self._read_kernel(FP, -8, 4, R7, 0, off.exit_code)
        a.load(4, R1, FP, -8)
        a.alu("and", R1, 0xFFFF)
        a.store(8, FP, -96 + _RESULT, R1)
        self._read_kernel(FP, -96 + _ARGS, 8, R7, 0, off.utime)
        self._read_kernel(FP, -96 + _ARGS + 8, 8, R7, 0, off.stime)
        # of a process the threads that are gone count too, and the most memory
        a.mov(R1, R9)
        a.alu("rsh", R1, 32)
        a.alu32("mov", R2, R9)
        a.jump_if(R1, "==", R2, "leader")
        a.store(8, FP, -96 + _ARGS + 24, 1)
        a.jump("times")
        a.label("leader")
        self._read_kernel(FP, -16, 8, R7, 0, off.signal)
        a.load(8, R8, FP, -16)
        for place, offset in ((0, off.signal_utime), (8, off.signal_stime), (16, off.maxrss)):
            self._address(R1, FP, -16)
            a.mov(R2, 8)
            a.mov(R3, R8)
            a.alu("add", R3, offset)
            a.call(_READ_KERNEL)
            a.load(8, R1, FP, -16)
            a.load(8, R2, FP, -96 + _ARGS + place)
            a.alu("add", R1, R2)
            if place == 16:  # pages
                a.alu("lsh", R1, (mmap.PAGESIZE // 1024).bit_length() - 1)
            a.store(8, FP, -96 + _ARGS + place, R1)
        a.label("times")
        for place in (0, 8):
            a.load(8, R1, FP, -96 + _ARGS + place)
            a.alu("div", R1, 1000)
            a.store(8, FP, -96 + _ARGS + place, R1)
        self._output_stack()
        for name in ("long", "tree"):
            a.load_map(R1, name)
            self._address(R2, FP, -4)
            a.call(_DELETE)
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
        a.call(_RING_RESERVE)
        a.jump_if(R0, "==", 0, "out")
        a.mov(R1, R0)
        a.mov(R2, _FORCE_WAKEUP)
        a.call(_RING_DISCARD)
        a.label("out")
        self._return()
        return a

    # --- what a call's entry tells -------------------------------------------------------------

    def _head(self) -> None:
        """head(context, slot, number, tid): the record without items; `_PENDING` if it is wanted."""
        a, machine = self.a, self.machine
        start, size = machine.window
        regs = -size - 16  # on the stack, by an offset that is that of the window
        a.label("head")
        a.mov(R6, R2)
        a.mov(R7, R3)
        a.store(4, FP, -4, R4)
        a.store(4, R6, _PENDING, 0)
        a.store(4, R6, _SHAPE + 8, 0)
        a.load(8, R8, R1, 0)
        a.mov(R9, calls.NATIVE)
        if machine.i386_args:
            a.mov(R1, R7)
            a.alu("rsh", R1, 30)
            a.jump_if(R1, "==", 1, "head.x32")
        a.jump_if(R7, ">=", _NUMBERS, "head.none")
        # Most calls are in no table: go before anything is read.
        a.mov(R1, R7)
        a.alu("lsh", R1, 4)
        a.load_map_value(R2, "tables")
        a.alu("add", R2, R1)
        a.load(4, R3, R2, _WANTED)
        if machine.i386_args:
            a.load(4, R4, R2, _TABLE + _WANTED)
            a.alu("or", R3, R4)
        a.jump_if(R3, "==", 0, "head.none")
        if machine.i386_args:
            a.call(_TASK)
            a.mov(R3, R0)
            a.alu("add", R3, self.offsets.status)
            self._address(R1, FP, -8)
            a.mov(R2, 4)
            a.call(_READ_KERNEL)
            a.load(4, R1, FP, -8)
            a.alu("and", R1, _TS_COMPAT)
            a.jump_if(R1, "==", 0, "head.abi")
            a.mov(R9, calls.I386)
            a.jump("head.abi")
            a.label("head.x32")
            a.mov(R9, calls.X32)
            a.alu("and", R7, calls.X32_BIT - 1)
            a.jump_if(R7, ">=", _NUMBERS, "head.none")
        a.label("head.abi")
        self._address(R1, FP, regs)
        a.mov(R2, size)
        a.mov(R3, R8)
        a.alu("add", R3, start)
        a.call(_READ_KERNEL)
        if not machine.i386_args:
            a.load(8, R1, FP, regs + _PSTATE - start)
            a.alu("and", R1, _PSTATE_32)
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
        a.store(8, R6, _SHAPE, R4)
        a.store(8, R6, _SHAPE + 8, R3)
        a.store(4, R6, _PENDING, _IN_SLOT)
        a.store(4, R6, _MISSING, 0)
        a.store(4, R6, _MOVED, 0)
        record = _RECORD
        a.mov(R1, R9)
        a.alu("lsh", R1, 16)
        a.alu("or", R1, records.CALL)
        a.store(4, R6, record + 4, R1)
        a.load(4, R1, FP, -4)
        a.store(4, R6, record + _TID, R1)
        a.store(4, R6, record + _NR, R7)
        a.store(8, R6, record + _RESULT, 0)
        if machine.i386_args:
            a.jump_if(R9, "==", calls.I386, "head.i386")
        for n, place in enumerate(machine.args):
            a.load(8, R1, FP, regs + place - start)
            a.store(8, R6, record + _ARGS + 8 * n, R1)
        if machine.i386_args:
            a.jump("head.args")
            a.label("head.i386")
            for n, place in enumerate(machine.i386_args):
                a.load(4, R1, FP, regs + place - start)
                a.store(8, R6, record + _ARGS + 8 * n, R1)
        a.label("head.args")
        a.call(_BOOT_NS)
        a.store(8, R6, record + _TIME, R0)
        a.store(4, R6, _AT, records.HEAD_SIZE)
        a.label("head.none")
        self._return()

    def _entry(self) -> None:
        """What the slot's call points to, when it begins."""
        a = self.a
        a.mov(R9, records.HEAD_SIZE)
        self._argument_text(records.PATH, 0, _SLOT_ROOM, _SHORT, "long", _M_PATH)
        self._argument_text(records.PATH2, 2, _SLOT_ROOM, _SHORT, "long", _M_PATH2)
        a.load(4, R1, R6, _SHAPE + 8)
        a.alu("and", R1, _UNUSUAL)
        a.jump_if(R1, "!=", 0, "unusual")
        a.load(1, R1, R6, _SHAPE + 4)
        a.jump_if(R1, "==", calls.NONE, "out")
        a.label("unusual")
        self._argument_address(_SLOT_ROOM)
        self._argument_how(_SLOT_ROOM)
        self._argument_data(_SLOT_ROOM)
        self._argument_messages()
        a.store(4, R6, _AT, R9)
        a.jump("out")

        a.label("long")
        a.mov(R9, records.HEAD_SIZE)
        a.store(4, R6, _AT, R9)
        a.store(4, R6, _MISSING, 0)
        self._to_long("no memory")
        a.mov(R6, R0)
        a.mov(R9, records.HEAD_SIZE)
        self._argument_text(records.PATH, 0, _LONG_ROOM, _TEXT, None, _M_PATH)
        self._argument_text(records.PATH2, 2, _LONG_ROOM, _TEXT, None, _M_PATH2)
        self._argument_how(_LONG_ROOM)
        a.jump("out")
        # there is none for the long form: it is read at the end
        a.label("no memory")
        a.store(4, R6, _MISSING, _M_PATH | _M_PATH2 | _M_HOW)

    def _argument_text(
        self, tag: int, field: int, room: int, most: int, too_long: str | None, bit: int
    ) -> None:
        """The text at the argument that byte `field` of the shape names."""
        a = self.a
        done = a.fresh("argument")
        a.load(1, R1, R6, _SHAPE + field)
        a.jump_if(R1, "==", calls.NONE, done)
        self._load_argument(R8, R1)
        a.jump_if(R8, "==", 0, done)
        self._text(tag, room, most, too_long, bit=bit)
        a.label(done)

    def _argument_address(self, room: int) -> None:
        a = self.a
        done = a.fresh("address")
        a.load(4, R1, R6, _SHAPE + 8)
        a.alu("and", R1, calls.ADDRESS_OUT)
        a.jump_if(R1, "!=", 0, done)
        a.load(1, R1, R6, _SHAPE + 4)
        a.jump_if(R1, "==", calls.NONE, done)
        a.mov(R7, R1)
        self._load_argument(R8, R1)
        a.alu("add", R7, 1)
        self._load_argument(R7, R7)
        self._bytes(records.ADDRESS, room, _MOST_ADDRESS, bit=_M_ADDRESS)
        a.label(done)

    def _argument_how(self, room: int) -> None:
        a = self.a
        done = a.fresh("how")
        self._unless(calls.HOW, done)
        a.load(1, R7, R6, _SHAPE + 5)
        self._load_argument(R8, R7)
        a.alu("add", R7, 1)
        self._load_argument(R7, R7)
        self._bytes(records.HOW, room, _MOST_HOW, bit=_M_HOW)
        a.label(done)

    def _argument_data(self, room: int) -> None:
        """Of sendto; of socketcall its arguments."""
        a = self.a
        done, read = a.fresh("data"), a.fresh("data.read")
        a.mov(R7, 24)
        a.load(4, R1, R6, _SHAPE + 8)
        a.alu("and", R1, calls.SOCKETCALL)
        a.jump_if(R1, "!=", 0, read)
        self._unless(calls.DATA, done)
        a.load(8, R7, R6, _RECORD + _ARGS + 16)
        a.label(read)
        a.load(8, R8, R6, _RECORD + _ARGS + 8)
        self._bytes(records.DATA, room, _MOST_DATA, bit=_M_DATA, cut=False)
        a.label(done)

    def _argument_messages(self) -> None:
        """Addresses and data of sendmsg, and of the first of sendmmsg's messages.

        Only at entry, and only of native calls: a second place, or a second layout, would double
        the time of verification, which every command waits for. What is not read is told."""
        a = self.a
        done, counted = a.fresh("messages"), a.fresh("messages.counted")
        missing = a.fresh("messages.missing")
        self._unless(calls.MESSAGE | calls.MESSAGES, done)
        a.load(2, R1, R6, _RECORD + _ABI)
        a.jump_if(R1, "!=", calls.NATIVE, missing)
        a.mov(R7, 1)
        self._unless(calls.MESSAGES, counted)
        a.load(1, R7, R6, _SHAPE + 5)
        a.alu("add", R7, 1)
        self._load_argument(R7, R7)
        a.alu32("mov", R7, R7)
        a.jump_if(R7, "<=", _MOST_MESSAGES, counted)
        self._flag(records.CUT)
        a.label(counted)
        # how many there are is forgotten with the rest (see _forget_size)
        a.store(8, R6, _MESSAGES, R7)
        for n in range(_MOST_MESSAGES):
            a.load(8, R1, R6, _MESSAGES)
            a.jump_if(R1, "<=", n, done)
            a.load(1, R1, R6, _SHAPE + 5)
            self._load_argument(R3, R1)
            # struct msghdr: name, its length, vector, its length
            a.alu("add", R3, 64 * n)
            self._read_user(-48, 32, R3, missing)
            a.load(8, R8, FP, -48)
            a.load(4, R7, FP, -40)
            self._bytes(records.ADDRESS, _SLOT_ROOM, _MOST_ADDRESS, bit=_M_MESSAGE)
            following = a.fresh("message")
            a.load(8, R1, FP, -24)
            a.jump_if(R1, "==", 0, following)
            a.load(8, R3, FP, -32)
            self._read_user(-48, 16, R3, missing)
            a.load(8, R8, FP, -48)
            a.load(8, R7, FP, -40)
            self._bytes(records.DATA, _SLOT_ROOM, _MOST_DATA, bit=_M_MESSAGE, cut=False)
            a.label(following)
        a.jump(done)
        a.label(missing)
        self._miss(_M_MESSAGE)
        a.label(done)

    def _read_user(self, place: int, size: int, base: Register, missing: str) -> None:
        """To the stack."""
        a = self.a
        if base is not R3:
            a.mov(R3, base)
        self._address(R1, FP, place)
        a.mov(R2, size)
        a.call(_READ_USER)
        a.jump_if(R0, "!=", 0, missing)

    # --- what a call's end adds ----------------------------------------------------------------

    def _result(self, room: int) -> None:
        """The result of R8, and the size in R9; away to "slow" with R4 = room if there is more."""
        a = self.a
        plain = a.fresh("plain")
        a.store(8, R6, _RECORD + _RESULT, R8)
        self._load_size(room, "out")
        a.mov(R1, R8)
        a.alu("add", R1, -_RESTARTS[0])
        a.jump_if(R1, ">", _RESTARTS[1] - _RESTARTS[0], plain)
        self._flag(records.RESTARTED)
        a.label(plain)
        a.load(4, R1, R6, _MISSING)
        a.jump_if(R1, "!=", 0, "slow")
        a.load(4, R1, R6, _SHAPE + 8)
        a.alu("and", R1, calls.PAIR | calls.ADDRESS_OUT | calls.PROGRAM)
        a.jump_if(R1, "!=", 0, "slow")

    def _slow_exit(self) -> None:
        """R6: a slot or its long form, R7: the context, R8: the result, R9: the size."""
        a = self.a
        room = self.limits.scratch - _RECORD
        a.label("slow")
        a.call(_SMP_PROCESSOR_ID)
        a.store(4, FP, -24, R0)
        a.load_map(R1, "scratch")
        self._address(R2, FP, -24)
        a.call(_LOOKUP)
        a.jump_if(R0, "==", 0, "out")
        a.store(8, FP, -32, R0)
        a.mov(R1, R0)
        a.mov(R2, R9)
        a.alu("add", R2, _RECORD)
        a.mov(R3, R6)
        a.call(_READ_KERNEL)
        a.load(8, R6, FP, -32)
        # From here on all is loaded from there, where the verifier forgets it (_forget_size).
        self._load_size(_LONG_ROOM, "out")
        self._unless(calls.PROGRAM, "slow.again")
        a.load(8, R1, R6, _RECORD + _RESULT)
        a.jump_if(R1, "==", 0, "slow.exec")

        a.label("slow.again")
        a.load(4, R1, R6, _MISSING)
        a.store(4, R6, _PENDING, R1)
        a.alu("and", R1, _M_MESSAGE)
        a.store(4, R6, _MISSING, R1)
        text = self._argument_text
        again: tuple[tuple[int, Callable[[], None]], ...] = (
            (_M_PATH, lambda: text(records.PATH, 0, room, _TEXT, None, _M_PATH)),
            (_M_PATH2, lambda: text(records.PATH2, 2, room, _TEXT, None, _M_PATH2)),
            (_M_ADDRESS, lambda: self._argument_address(room)),
            (_M_HOW, lambda: self._argument_how(room)),
            (_M_DATA, lambda: self._argument_data(room)),
        )
        for bit, add in again:
            done = a.fresh("again")
            a.load(4, R1, R6, _PENDING)
            a.alu("and", R1, bit)
            a.jump_if(R1, "==", 0, done)
            add()
            a.label(done)
        a.load(8, R1, R6, _RECORD + _RESULT)
        a.jump_if(R1, "s<", 0, "slow.finish")

        self._unless(calls.PAIR, "slow.address")
        a.load(1, R1, R6, _SHAPE + 5)
        self._load_argument(R8, R1)
        a.mov(R7, 8)
        self._bytes(records.PAIR, room, 8, bit=_M_ADDRESS)
        a.label("slow.address")
        self._unless(calls.ADDRESS_OUT, "slow.finish")
        a.load(1, R7, R6, _SHAPE + 4)
        self._load_argument(R8, R7)
        a.jump_if(R8, "==", 0, "slow.finish")
        a.alu("add", R7, 1)
        self._load_argument(R3, R7)
        self._address(R1, FP, -24)
        a.mov(R2, 4)
        a.call(_READ_USER)
        a.jump_if(R0, "!=", 0, "slow.no length")
        a.load(4, R7, FP, -24)
        self._bytes(records.ADDRESS, room, _MOST_ADDRESS, bit=_M_ADDRESS)
        a.jump("slow.finish")
        a.label("slow.no length")
        self._miss(_M_ADDRESS)
        a.label("slow.finish")
        a.load(4, R1, R6, _MISSING)
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
        a.store(1, R6, _RECORD + 4, records.EXEC)
        # of the path the kernel's own name tells more
        a.store(4, R6, _MISSING, 0)
        a.load(4, R1, R6, _MOVED)
        a.store(8, R6, _RECORD + _ARGS, R1)
        a.store(8, R6, _RECORD + _ARGS + 8, 0)
        # the stack: argc, argv[argc], 0; words of 4 bytes if the first 8 are no small number
        self._read_kernel(FP, -24, 8, R7, 0, self.machine.stack)
        a.load(8, R8, FP, -24)
        self._address(R1, FP, -88)
        a.mov(R2, 16)
        a.mov(R3, R8)
        a.call(_READ_USER)
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
        a.call(_READ_USER)
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
        a.call(_READ_USER)
        a.jump_if(R0, "!=", 0, "exec.unreadable")
        self._item_body(R1)
        a.alu("add", R1, R8)
        a.mov(R2, most)
        a.alu("sub", R2, R8)
        a.load(8, R3, FP, -88)
        a.store(8, FP, -96, R2)
        a.call(_READ_USER_STR)
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
        a.call(_READ_USER)
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

    # --- items ---------------------------------------------------------------------------------

    def _text(
        self,
        tag: int,
        room: int,
        most: int,
        too_long: str | None,
        *,
        bit: int = 0,
        kernel: bool = False,
    ) -> None:
        """An item of the text at R8. Longer than `most` - 2: to `too_long`, or it is cut."""
        a = self.a
        done, missing, add = a.fresh("text"), a.fresh("text.missing"), a.fresh("text.add")
        a.jump_if(R9, ">", room - 16 - most, done)
        self._item_body(R1)
        a.mov(R2, most)
        a.mov(R3, R8)
        a.call(_READ_KERNEL_STR if kernel else _READ_USER_STR)
        a.jump_if(R0, "s<=", 0, missing)
        a.mov(R7, 0)
        if too_long:
            a.jump_if(R0, ">=", most, too_long)
        else:
            a.jump_if(R0, "<", most, add)
            self._flag(records.CUT)
            a.mov(R7, 1)
            a.mov(R0, most)
        a.label(add)
        a.alu("sub", R0, 1)
        self._item(tag, R0, R7)
        a.jump(done)
        a.label(missing)
        if bit:
            self._miss(bit)
        a.label(done)
        self._forget_size(room)

    def _bytes(self, tag: int, room: int, most: int, *, bit: int, cut: bool = True) -> None:
        """An item of R7 bytes at R8, `most` if there are more; `cut`: which is told in flags."""
        a = self.a
        done, full, missing = a.fresh("bytes"), a.fresh("bytes.full"), a.fresh("bytes.missing")
        fits = a.fresh("bytes.fits")
        a.jump_if(R8, "==", 0, done)
        a.jump_if(R7, "==", 0, done)
        a.jump_if(R9, ">", room - 16 - most, full)
        a.jump_if(R7, "<=", most, fits)
        a.mov(R7, most)
        if cut:
            self._flag(records.CUT)
        a.label(fits)
        self._item_body(R1)
        a.mov(R2, R7)
        a.mov(R3, R8)
        a.call(_READ_USER)
        a.jump_if(R0, "!=", 0, missing)
        a.mov(R8, 0)
        self._item(tag, R7, R8)
        a.jump(done)
        a.label(full)
        self._flag(records.CUT)
        a.jump(done)
        a.label(missing)
        self._miss(bit)
        a.label(done)
        self._forget_size(room)

    def _item_body(self, to: Register) -> None:
        a = self.a
        a.mov(to, R6)
        a.alu("add", to, R9)
        a.alu("add", to, _RECORD + 8)

    def _item(self, tag: int, length: Register, more: Register) -> None:
        """Its head before the `length` bytes that were read, zeros behind; R9 is the end then.

        If there is nothing to pad, the shift is by 64, which is by 0."""
        a = self.a
        a.mov(R1, R6)
        a.alu("add", R1, R9)
        a.store(2, R1, _RECORD, tag)
        a.store(2, R1, _RECORD + 2, more)
        a.store(4, R1, _RECORD + 4, length)
        a.mov(R2, length)
        a.alu("and", R2, 7)
        a.mov(R3, length)
        a.alu("and", R3, 0x7FFFFFF8)
        a.alu("add", R1, R3)
        a.load(8, R4, R1, _RECORD + 8)
        a.alu("lsh", R2, 3)
        a.mov(R5, 64)
        a.alu("sub", R5, R2)
        a.alu("lsh", R4, R5)
        a.alu("rsh", R4, R5)
        a.store(8, R1, _RECORD + 8, R4)
        a.mov(R2, length)
        a.alu("add", R2, 8 + 7)
        a.alu("and", R2, 0x7FFFFFF8)
        a.alu("add", R9, R2)

    # --- parts ---------------------------------------------------------------------------------

    def _find_slot(self, none: str) -> None:
        """R6: the slot of the task that runs; its tid at FP-4."""
        a = self.a
        a.call(_PID_TGID)
        a.store(4, FP, -4, R0)
        self._lookup("tree")
        a.jump_if(R0, "==", 0, none)
        a.mov(R6, R0)

    def _lookup(self, name: str) -> None:
        self.a.load_map(R1, name)
        self._address(R2, FP, -4)
        self.a.call(_LOOKUP)

    def _to_long(self, failed: str) -> None:
        """Copies R6, a slot, to the task's element of `long`, which is R0 then."""
        a = self.a
        there = a.fresh("long")
        self._lookup("long")
        a.jump_if(R0, "!=", 0, there)
        a.load_map(R1, "long")
        self._address(R2, FP, -4)
        a.load_map_value(R3, "tables", _BLANK)
        a.mov(R4, 0)
        a.call(_UPDATE)
        self._lookup("long")
        a.jump_if(R0, "==", 0, failed)
        a.label(there)
        a.mov(R7, R0)
        a.mov(R1, R0)
        a.mov(R2, SLOT_SIZE)
        a.mov(R3, R6)
        a.call(_READ_KERNEL)
        a.store(4, R6, _PENDING, _IN_LONG)
        a.mov(R0, R7)

    def _move(self, name: str, size: int) -> None:
        """The element of the number at FP-12 becomes that of the one at FP-4."""
        a = self.a
        done = a.fresh("move")
        a.load_map(R1, name)
        self._address(R2, FP, -12)
        a.call(_LOOKUP)
        a.jump_if(R0, "==", 0, done)
        a.mov(R6, R0)
        a.load(4, R1, FP, -4)
        a.store(4, R6, _RECORD + _TID, R1)
        a.load_map(R1, name)
        self._address(R2, FP, -4)
        a.mov(R3, R6)
        a.mov(R4, 0)
        a.call(_UPDATE)
        if name == "tree":
            there = a.fresh("moved")
            a.jump_if(R0, "==", 0, there)
            self._count(MEMORY)
            self._count(ENDED)
            a.label(there)
        a.load_map(R1, name)
        self._address(R2, FP, -12)
        a.call(_DELETE)
        a.label(done)

    def _load_argument(self, to: Register, index: Register) -> None:
        """to = the record's argument of that index; `index` and R1 are lost, if they differ."""
        a = self.a
        if index is not R1:
            a.mov(R1, index)
        a.alu("and", R1, 7)
        a.alu("lsh", R1, 3)
        a.alu("add", R1, R6)
        a.load(8, to, R1, _RECORD + _ARGS)

    def _load_size(self, room: int, bad: str) -> None:
        a = self.a
        a.load(4, R9, R6, _AT)
        a.jump_if(R9, ">", room, bad)

    def _forget_size(self, room: int) -> None:
        """R9 as it is, but the verifier knows no more of it than its bounds.

        Else it would follow each way through the items by itself: 170000 steps instead of 9000."""
        a = self.a
        a.store(4, R6, _AT, R9)
        self._load_size(room, "out")

    def _unless(self, flags: int, otherwise: str) -> None:
        a = self.a
        a.load(4, R1, R6, _SHAPE + 8)
        a.alu("and", R1, flags)
        a.jump_if(R1, "==", 0, otherwise)

    def _flag(self, flag: int) -> None:
        a = self.a
        a.load(1, R1, R6, _RECORD + _FLAGS)
        a.alu("or", R1, flag)
        a.store(1, R6, _RECORD + _FLAGS, R1)

    def _miss(self, bit: int) -> None:
        a = self.a
        a.load(4, R1, R6, _MISSING)
        a.alu("or", R1, bit)
        a.store(4, R6, _MISSING, R1)

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
        a.call(_READ_KERNEL)

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
        a.store(4, FP, -96 + _TID, R1)
        a.store(4, FP, -96 + _NR, 0)
        a.call(_BOOT_NS)
        a.store(8, FP, -96 + _TIME, R0)
        for n in range(6):
            a.store(8, FP, -96 + _ARGS + 8 * n, 0)

    def _output_stack(self) -> None:
        a = self.a
        self._wake_flags()
        a.load_map(R1, "ring")
        self._address(R2, FP, -96)
        a.mov(R3, records.HEAD_SIZE)
        a.call(_RING_OUTPUT)
        self._count_failure()

    def _output(self, room: int) -> None:
        """Puts the record of R6 into the ring, R9 bytes."""
        a = self.a
        a.store(4, R6, _RECORD, R9)
        self._wake_flags()
        a.load_map(R1, "ring")
        self._address(R2, R6, _RECORD)
        a.mov(R3, R9)
        a.jump_if(R3, ">", room, "out")
        a.call(_RING_OUTPUT)
        self._count_failure()

    def _count_failure(self) -> None:
        a = self.a
        done = a.fresh("written")
        a.jump_if(R0, "==", 0, done)
        self._count(FULL)
        a.label(done)

    def _wake_flags(self) -> None:
        """R4: whether to call the reader: after a quiet time, or when a quarter is full.

        Calling costs more than all the rest; the last of a tree calls in any case."""
        a = self.a
        done, call = a.fresh("wake"), a.fresh("wake.call")
        a.call(_JIFFIES)
        a.mov(R8, R0)
        a.load_map_value(R7, "state")
        a.load(8, R1, R7, _WOKEN)
        a.mov(R4, _NO_WAKEUP)
        a.jump_if(R1, "==", R8, done)
        a.mov(R2, R8)
        a.alu("sub", R2, R1)
        a.jump_if(R2, ">", _QUIET, call)
        a.load_map(R1, "ring")
        a.mov(R2, _AVAILABLE)
        a.call(_RING_QUERY)
        a.mov(R4, _NO_WAKEUP)
        a.jump_if(R0, "<", self.limits.ring // 4, done)
        a.label(call)
        a.store(8, R7, _WOKEN, R8)
        a.mov(R4, _FORCE_WAKEUP)
        a.label(done)

    def _return(self) -> None:
        self.a.mov(R0, 0)
        self.a.exit()


#: what makes an entry more than its paths
_UNUSUAL = calls.HOW | calls.DATA | calls.MESSAGE | calls.MESSAGES | calls.SOCKETCALL
