"""The five programs that watch a tree of processes, and the memory that they share.

They write records of records.py, byte for byte; nothing is translated afterwards. This module
makes instructions and the bytes of a table, and does no I/O (bpf.py loads and reads).

Theory of operation
    Raw tracepoints, which run in the task that they tell of, with its registers and its memory:
    sys_enter           looks the call up in `tables` (most calls of a host end here) and the task
                        in `tree`. Its facts go into the task's slot, as the record that it will be.
                        A long path moves the record to the task's element of `long`.
    sys_exit            reads again what could not be read at entry (its page was not there; the
                        call itself has brought it in), adds what the call has written, and puts
                        the record into `ring`. Records that grow here do so in `scratch`, which
                        each CPU has for itself: these programs run with preemption off.
    task_newtask        puts the new task into the tree and writes FORK. It runs in the parent
                        before the child is woken, so FORK lies before all that the child does.
    sched_process_exec  notes the kernel's name of the program; the slot of a thread that is no
                        leader moves to the leader's number, which the thread has from here on.
    sched_process_exit  writes EXIT of a thread, and of a process when the last of its tasks ends; takes
                        the task out, but for a leader that goes before its threads.
Invariants
    - A slot is written by its own task only (and made by its parent before it runs): no locks. But
      for TOLD, which two last tasks may both try to set.
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
    the new task, and the EXITs of threads and that of their process. Other calls of two CPUs are in
    the order in which they ended; their times say when they began.

Which table a number belongs to: on x86-64 by thread_info.status & TS_COMPAT, which the kernel
sets on each way in for i386 calls (`int $0x80` in 64-bit code has the code segment of a native
call), and by the number's bit 30 for x32. On aarch64 calls of 32-bit programs are not seen.

Not seen at all: io_uring's operations; a call whose number a ptracer has changed to -1.

Sources: bpf(2), bpf-helpers(7); <linux/bpf.h>; kernel: include/linux/entry-common.h,
arch/x86/entry/common.c, kernel/fork.c, fs/exec.c, kernel/exit.c; <asm/ptrace.h>.
"""

from __future__ import annotations

import mmap

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
from substrate.telemetry.capture.bpf_calls import Calls
from substrate.telemetry.capture.bpf_functions import describe
from substrate.telemetry.capture.bpf_items import LONG, SLOT
from substrate.telemetry.capture.bpf_layout import (
    ALWAYS,
    ARGS,
    BLANK,
    CLONE_THREAD,
    DELETE,
    ENDED,
    ENTERED,
    FORCE_WAKEUP,
    FULL,
    IN_LONG,
    LONG_ROOM,
    LONG_SIZE,
    LOOKUP,
    M_ALL,
    MACHINES,
    MAPS,
    MEMORY,
    MISSING,
    MOVED,
    OURS,
    PENDING,
    PID_TGID,
    READ_KERNEL,
    RESULT,
    RING_DISCARD,
    RING_RESERVE,
    ROOT,
    SCRIPT,
    SHAPE,
    SIGNAL_GROUP_EXIT,
    SLOT_ROOM,
    SLOT_SIZE,
    STARTED,
    TASK,
    TOLD,
    UPDATE,
    WANTED,
    Limits,
    Offsets,
)
from substrate.values import value


@value
class Programs:
    """By tracepoint, and `ours`: (instructions, what its functions are among `types`); as the kernel is
    given them, with the maps of bpf_layout.MAPS. They are the same for each command."""

    code: dict[str, tuple[bytes, bytes]]
    types: bytes


def make_programs(offsets: Offsets, limits: Limits, machine: str = calls.MACHINE) -> Programs:
    maker = _Maker(offsets, limits, MACHINES[machine])
    code = {
        "sys_enter": maker.sys_enter(),
        "sys_exit": maker.sys_exit(),
        "task_newtask": maker.newtask(),
        "sched_process_exec": maker.process_exec(),
        "sched_process_exit": maker.process_exit(),
        "ours": maker.ours(),
    }
    described = describe(maker.signatures())
    return Programs(
        code={
            name: (program.assemble(MAPS.index), described.info(program.functions()))
            for name, program in code.items()
        },
        types=described.text,
    )


class _Maker(Calls):
    # --- the programs --------------------------------------------------------------------------

    def sys_enter(self) -> Assembler:
        a = self.a = Assembler()
        a.mov(R7, R1)
        a.load(8, R8, R7, 8)
        self._leave_unless_known(R8, "out")
        self._find_slot("out")
        a.store(4, R6, ENTERED, 1)
        # a call is there yet whose end was never told
        a.load(4, R1, R6, PENDING)
        a.jump_if(R1, "==", 0, "first")
        self._count(FULL)
        a.label("first")
        a.mov(R1, R6)
        a.load(8, R2, R7, 0)
        a.mov(R3, R8)
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
        return self._finish()

    def sys_exit(self) -> Assembler:
        a = self.a = Assembler()
        a.mov(R7, R1)
        self._read_kernel(FP, -16, 8, R7, 0, self.machine.nr)
        a.load(8, R8, FP, -16)
        if self.machine.i386_args:
            # 32 bits of a number are all that the kernel looks at; -1 is no call
            a.alu32("mov", R8, R8)
            a.store(8, FP, -16, R8)
        self._leave_unless_known(R8, "out")
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
        self._unless_plain()
        self._output(SLOT_ROOM)
        self._return()

        a.label("long")
        self._lookup("long")
        a.jump_if(R0, "==", 0, "out")
        a.mov(R6, R0)
        self._result(LONG_ROOM)
        a.jump("slow")  # a long path is rare
        a.label("out")
        self._return()

        # A filter has answered before sys_enter was told; or this is the first that a new task
        # does, whose call is its parent's.
        a.label("never entered")
        a.mov(R1, R6)
        a.load(8, R2, R7, 0)
        a.load(8, R3, FP, -16)
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
        return self._finish()

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
        return self._finish()

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
        # The leader is gone; its number is this thread's now.
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
        a.mov(R2, R8)
        self._add_text(SLOT, records.EXEC_NAME, kernel=True)
        a.jump_if(R0, "==", 0, "out")
        a.label("too long")
        self._to_long("out")
        a.label("in long")
        self._lookup("long")
        a.jump_if(R0, "==", 0, "out")
        a.mov(R6, R0)
        a.mov(R2, R8)
        self._add_text(LONG, records.EXEC_NAME, kernel=True)
        a.label("out")
        self._return()
        return self._finish()

    def process_exit(self) -> Assembler:
        """A thread is told when it ends, a process when its last task does: its first one may go before
        the others. That one's slot stays till then, and whoever marks it first tells."""
        a = self.a = Assembler()
        off = self.offsets
        a.mov(R7, R1)
        a.store(8, FP, -128, R1)
        self._find_slot("out")
        a.call(PID_TGID)
        a.mov(R9, R0)
        self._read_kernel(FP, -104, 8, R7, 0, off.signal)
        a.load(8, R8, FP, -104)
        a.store(8, FP, -112, 0)
        self._read_behind(-112, 4, R8, off.live)
        a.load(8, R1, R7, 0)
        a.store(8, FP, -120, R1)
        self._head_on_stack(records.EXIT)
        a.mov(R1, R9)
        a.alu("rsh", R1, 32)
        a.alu32("mov", R2, R9)
        a.jump_if(R1, "==", R2, "leader")

        self._read_kernel(FP, -8, 4, R7, 0, off.exit_code)
        a.load(4, R1, FP, -8)
        a.alu("and", R1, 0xFFFF)
        a.store(8, FP, -96 + RESULT, R1)
        self._add_times()
        a.store(8, FP, -96 + ARGS + 24, 1)
        self._tell_end()
        self._forget_task()
        a.alu("rsh", R9, 32)
        a.store(4, FP, -4, R9)
        a.load(8, R1, FP, -112)
        a.jump_if(R1, "!=", 0, "ended")
        self._lookup("tree")
        a.jump_if(R0, "==", 0, "ended")
        a.mov(R6, R0)
        a.load(8, R7, FP, -128)
        a.load(8, R8, FP, -104)
        self._head_on_stack(records.EXIT)
        self._add_times()
        self._read_kernel(FP, -120, 8, R7, 0, off.group_leader)
        a.jump("group")

        a.label("leader")
        a.load(8, R1, FP, -112)
        a.jump_if(R1, "!=", 0, "ended")
        a.label("group")
        a.mov(R1, 1)
        a.exchange(R6, TOLD, R1)
        a.jump_if(R1, "!=", 0, "ended")
        # its status as wait(2) has it (kernel/exit.c, wait_task_zombie)
        a.store(8, FP, -112, 0)
        self._read_behind(-112, 4, R8, off.signal_flags)
        a.load(8, R1, FP, -112)
        a.alu("and", R1, SIGNAL_GROUP_EXIT)
        a.jump_if(R1, "==", 0, "of the first")
        self._read_behind(-112, 4, R8, off.group_exit_code)
        a.jump("status")
        a.label("of the first")
        a.load(8, R3, FP, -120)
        self._read_behind(-112, 4, R3, off.exit_code)
        a.label("status")
        a.load(4, R1, FP, -112)
        a.alu("and", R1, 0xFFFF)
        a.store(8, FP, -96 + RESULT, R1)
        # the threads that are gone count too, and the most memory
        self._add_times()
        for place, offset in ((0, off.signal_utime), (8, off.signal_stime), (16, off.maxrss)):
            self._add(place, R8, offset)
        a.load(8, R1, FP, -96 + ARGS + 16)  # pages
        a.alu("lsh", R1, (mmap.PAGESIZE // 1024).bit_length() - 1)
        a.store(8, FP, -96 + ARGS + 16, R1)
        self._tell_end()
        self._forget_task()
        a.label("ended")
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
        return self._finish()

    def _add_times(self) -> None:
        """What the task at FP-120 took, to the record at FP-96."""
        for place, offset in ((0, self.offsets.utime), (8, self.offsets.stime)):
            self.a.load(8, R3, FP, -120)
            self._add(place, R3, offset)

    def _add(self, place: int, base: Register, offset: int) -> None:
        """To an argument of the record at FP-96: 8 bytes of the kernel's."""
        a = self.a
        self._read_behind(-16, 8, base, offset)
        a.load(8, R1, FP, -16)
        a.load(8, R2, FP, -96 + ARGS + place)
        a.alu("add", R1, R2)
        a.store(8, FP, -96 + ARGS + place, R1)

    def _read_behind(self, place: int, size: int, base: Register, offset: int) -> None:
        """`size` bytes at `offset` behind a pointer of the kernel's, to the stack."""
        a = self.a
        if base is not R3:
            a.mov(R3, base)
        a.alu("add", R3, offset)
        self._address(R1, FP, place)
        a.mov(R2, size)
        a.call(READ_KERNEL)

    def _tell_end(self) -> None:
        """The record at FP-96, whose times are in nanoseconds yet."""
        a = self.a
        for place in (0, 8):
            a.load(8, R1, FP, -96 + ARGS + place)
            a.alu("div", R1, 1000)
            a.store(8, FP, -96 + ARGS + place, R1)
        self._output_stack()

    def _forget_task(self) -> None:
        """Of the number at FP-4."""
        for name in ("long", "tree"):
            self.a.load_map(R1, name)
            self._address(R2, FP, -4)
            self.a.call(DELETE)

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
        return self._finish()
