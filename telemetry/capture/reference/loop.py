"""The loop of the tracer: waits for stops, decides what each means, lets the task go on.

Every stop of every task of the tree comes through `handle`; records go out in the order in which
they are made. Invariants:
- SEIZE only, so that a group stop is one (PTRACE_LISTEN) and nothing is ever sent to the tree.
- A signal is handed on as it came; its siginfo is not touched.
- A task that was killed while it was looked at (`Gone`) is left to its exit.
- FORK comes before anything of the new task. FORK and EXIT are in pairs, but for a thread that
  execs: it goes on as the leader, whose number it has from then on (EXEC tells its old one).
- Where the gate is armed nothing runs that was not approved: an exec is refused, or let in and
  compared before its first instruction.

Sources: ptrace(2), seccomp(2); kernel/ptrace.c, kernel/seccomp.c (__seccomp_filter).
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time

from substrate.telemetry.capture import calls, gate, records
from substrate.telemetry.capture.filters import OURS
from substrate.telemetry.capture.reference import approval, memory, messages, proc, registers
from substrate.telemetry.capture.reference import requests as ptrace
from substrate.telemetry.capture.reference.arguments import Call
from substrate.telemetry.capture.reference.requests import Gone
from substrate.telemetry.capture.reference.table import Table
from substrate.telemetry.capture.reference.tasks import Task, Tasks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from resource import struct_rusage
    from typing import Final

CLONE_UNTRACED: Final = 0x00800000
_CLONE_THREAD: Final = 0x00010000
_VFORK_FLAGS: Final = 0x4100  # CLONE_VM | CLONE_VFORK
_SYSCALL_STOP: Final = signal.SIGTRAP | 0x80
_GROUP_STOPS: Final = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
#: ERESTARTSYS, NOINTR, NOHAND, _RESTARTBLOCK: the kernel's own, which no process ever sees
_RESTARTS: Final = (-512, -513, -514, -516)
#: How often a held task is looked at for a signal that ends it: nothing else tells of one.
POLL_S: Final = 0.05
IDLE, BUSY, OVER = range(3)
#: so that a tree that never rests does not keep the supervisor from being heard
_STATUSES_A_TURN: Final = 128


class Untraceable(Exception):
    """The tree cannot be followed any more; it must end. `step`: a place in engine.STEPS."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"step {step}: {os.strerror(number)}")
        self.step, self.errno = step, number


class _Held:
    __slots__ = ("deadline_s", "found", "tid")

    def __init__(self, tid: int, found: approval.Approval, deadline_s: float) -> None:
        self.tid, self.found, self.deadline_s = tid, found, deadline_s


class Loop:
    """One command's tree. `write` takes whole records; the caller owns time and waiting."""

    def __init__(
        self, write: Callable[[bytes], None], *, every_call: bool, levels: frozenset[int] | None
    ) -> None:
        """`every_call`: stop at each call, where there is no filter. `levels`: of calls that get a
        record then (calls.EXEC …); None for all calls, known or not."""
        self._write = write
        self._every_call, self._levels = every_call, levels
        self._table: Table | None = None
        self._hold_s = 0.0
        self.tasks = Tasks()
        self._holds: dict[int, _Held] = {}
        self._last_hold = 0
        self._next_look_s = 0.0
        self._root = 0
        self._root_ran = False

    # --- what the caller does

    def arm(self, table: Table, hold_s: float) -> None:
        """Execs are decided from now on; where the table says so one waits, for `hold_s`."""
        self._table, self._hold_s = table, hold_s

    def kill(self) -> None:
        """SIGKILL to all that is traced."""
        for task in list(self.tasks.known.values()):
            self._kill(task)

    def seize(self, pid: int) -> None:
        """Takes a process of one thread that waits before its exec. Raises Untraceable."""
        try:
            ptrace.seize(pid)
            self.tasks.add(pid, pid)
            self._root = pid
            if self._every_call:
                # it runs free until it has been stopped once; the call in which it waits is begun
                # again by the kernel
                ptrace.interrupt(pid)
                _, status, _ = os.wait4(pid, ptrace.WALL)
                if not os.WIFSTOPPED(status):
                    raise Untraceable(messages.SEIZE_TASK, errno.ESRCH)
                self._stopped(self.tasks.known[pid], status)
        except Gone:
            raise Untraceable(messages.SEIZE_TASK, errno.ESRCH) from None
        except OSError as error:
            raise Untraceable(messages.SEIZE_TASK, error.errno or errno.EIO) from error

    def turn(self) -> int:
        """Handles what is there now, without waiting: IDLE when that was all, BUSY when there may
        be more, OVER when no task is left."""
        state = BUSY
        for _ in range(_STATUSES_A_TURN):
            try:
                tid, status, usage = os.wait4(-1, os.WNOHANG | ptrace.WALL)
            except ChildProcessError:
                for tid in list(self.tasks.early):
                    self._adopt(tid)
                return OVER
            if not tid:
                state = IDLE
                break
            self.handle(tid, status, usage)
        if self._holds or self.tasks.early:
            self._look_around(time.monotonic())
        return state

    def _look_around(self, now_s: float) -> None:
        for tid in self.tasks.overdue(now_s):
            self._adopt(tid)
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + POLL_S
            for number in list(self._holds):
                self._look_at_hold(number, now_s)

    def wait_s(self) -> float | None:
        """For how long nothing needs to be looked at unless something happens; None: for ever."""
        return POLL_S if self._holds or self.tasks.early else None

    def handle(self, tid: int, status: int, usage: struct_rusage) -> None:
        """One status of wait4(2)."""
        task = self.tasks.get(tid)
        if task is None:
            self.tasks.keep_early(tid, status, usage, time.monotonic())
        elif os.WIFSTOPPED(status):
            try:
                self._stopped(task, status)
            except Gone:
                return  # its exit comes
        else:
            self._ended(task, status, usage)

    def answer(self, number: int, decision: int, reason: int) -> None:
        """To a hold. One that is over by now is none."""
        held = self._holds.pop(number, None)
        task = None if held is None else self.tasks.get(held.tid)
        if held is None or task is None:
            return
        task.hold = 0
        if decision not in (gate.ALLOW, gate.KILL):
            decision = gate.DENY
        self._decided(task, number, decision, reason)
        try:
            if decision == gate.ALLOW:
                task.approval = held.found
                self._resume(task)
            elif decision == gate.KILL:
                self._kill(task)
            else:
                self._refuse(task, -errno.EACCES)
        except Gone:
            return

    # --- stops

    def _stopped(self, task: Task, status: int) -> None:
        number, event = status >> 8 & 0xFF, status >> 16
        if number == _SYSCALL_STOP or event == ptrace.EVENT_SECCOMP:
            self._call_stop(task)
        elif event == ptrace.EVENT_STOP:
            if number in _GROUP_STOPS:
                ptrace.listen(task.tid)
            else:
                self._resume(task)
        elif event in (ptrace.EVENT_FORK, ptrace.EVENT_VFORK, ptrace.EVENT_CLONE):
            self._made(task, event)
        elif event == ptrace.EVENT_EXEC:
            self._executed(task)
        elif event:
            self._resume(task)
        else:
            self._resume(task, number)

    def _resume(self, task: Task, number: int = 0) -> None:
        to_call = self._every_call or task.call is not None
        try:
            ptrace.resume(task.tid, number, to_call=to_call)
        except OSError as error:
            raise Untraceable(messages.RESUME, error.errno or errno.EIO) from error

    def _call_stop(self, task: Task) -> None:
        kind, arch, nr, args, result = ptrace.syscall_info(task.tid)
        if kind == ptrace.INFO_EXIT:
            self._call_exit(task, result)
        elif kind == ptrace.INFO_SECCOMP and ptrace.event_message(task.tid) != OURS:
            self._stopped_by_itself(task, arch, nr, args)
        elif kind == ptrace.INFO_NONE or task.call is not None:
            self._resume(task)  # the filter's stop behind the entry stop of the same call
        else:
            self._call_entry(task, arch, nr, args)

    def _stopped_by_itself(self, task: Task, arch: int, nr: int, args: tuple[int, ...]) -> None:
        """By a filter of the program's own, which wants a tracer of its own: there is none, and the
        call gets what it would get where nobody traces (seccomp(2))."""
        if task.call is None:
            table = registers.abi_of(arch, nr)
            if table is None:
                raise Untraceable(messages.WAIT, errno.ENOEXEC)
            task.call = Call(task.tid, now_ns(), *table, args)
            if self._is_told(task.call):
                task.call.look_at_entry()
        self._refuse(task, -errno.ENOSYS)

    def _call_entry(self, task: Task, arch: int, nr: int, args: tuple[int, ...]) -> None:
        table = registers.abi_of(arch, nr)
        if table is None:
            raise Untraceable(messages.WAIT, errno.ENOEXEC)
        call = task.call = Call(task.tid, now_ns(), *table, args)
        task.made = 0
        if self._is_told(call):
            call.look_at_entry()
        if call.has(calls.CLONES) and args[0] & CLONE_UNTRACED:
            self._follow_untraced(task, call)
        if call.has(calls.CLONES_3) and not self._is_followed(call):
            self._refuse(task, -errno.ENOSYS)
        elif call.has(calls.PROGRAM) and self._table is not None:
            self._gate(task, call, self._table)
        else:
            self._resume(task)

    def _is_told(self, call: Call) -> bool:
        """Of clones FORK tells, and nothing where they failed."""
        if call.has(calls.CLONES | calls.CLONES_3):
            return False
        if self._levels is None:
            return True
        return call.is_known and (call.level in self._levels or not self._every_call)

    def _call_exit(self, task: Task, result: int) -> None:
        call, task.call = task.call, None
        task.approval = None
        if call is None:  # of an exec, whose record is written, or of a call begun before we came
            self._resume(task)
            return
        if call.refused and result != call.refused:
            changed = ptrace.get_registers(task.tid)
            registers.set_result(changed, call.refused)
            self._set_registers(task, changed)
            result = call.refused
        if result > 0 and call.has(calls.CLONES_3) and not task.made:
            # its flags were changed behind our back. Where there is a filter the new task gets
            # ENOSYS for all that matters; without one it is free
            self._write(
                records.make_record(
                    records.TROUBLE, tid=task.tid, time_ns=now_ns(), nr=messages.CHILD
                )
            )
            raise Untraceable(messages.CHILD, errno.EPERM)
        if call.is_evading:
            self._write(call.record(records.DENIED, result))
        elif self._is_told(call):
            call.look_at_exit(result)
            flags = records.RESTARTED if result in _RESTARTS else 0
            self._write(call.record(records.CALL, result, flags))
        self._resume(task)

    # --- changing a call

    def _set_registers(self, task: Task, changed: object) -> None:
        try:
            ptrace.set_registers(task.tid, changed)
        except OSError as error:
            raise Untraceable(messages.REGISTERS, error.errno or errno.EIO) from error

    def _refuse(self, task: Task, result: int) -> None:
        """The call is not made, and answers `result`."""
        assert task.call is not None
        task.call.refused = result
        changed = ptrace.get_registers(task.tid)
        registers.skip(changed, result)
        self._set_registers(task, changed)
        number_set = registers.NUMBER_SET.get(calls.MACHINE)
        if number_set is not None:
            try:
                ptrace.set_call_number(task.tid, -1, number_set)
            except OSError as error:
                raise Untraceable(messages.REGISTERS, error.errno or errno.EIO) from error
        self._resume(task)

    def _follow_untraced(self, task: Task, call: Call) -> None:
        changed = ptrace.get_registers(task.tid)
        registers.set_argument(changed, call.abi, 0, call.args[0] & ~CLONE_UNTRACED)
        self._set_registers(task, changed)

    def _is_followed(self, call: Call) -> bool:
        """Whether clone3's flags, as far as they can be read, let the new task be traced. If not,
        libc falls back to clone, whose flags are in a register."""
        try:
            flags = memory.read(call.tid, call.args[0], 8)
        except memory.Unreadable:
            return False
        call.is_evading = bool(int.from_bytes(flags, sys.byteorder) & CLONE_UNTRACED)
        return not call.is_evading

    # --- new tasks, and their end

    def _made(self, task: Task, event: int) -> None:
        tid = ptrace.event_message(task.tid)
        task.made += 1
        if self.tasks.get(tid) is None:
            self._known(task.tid, tid, self._clone_flags(task, event))
        self._resume(task)

    def _clone_flags(self, task: Task, event: int) -> int:
        """As far as known: clone3's are behind a pointer."""
        _, arch, _, _, _ = ptrace.syscall_info(task.tid)
        table = registers.abi_of(arch, 0)
        abi = calls.NATIVE if table is None else table[0]
        nr, first = registers.call_of(ptrace.get_registers(task.tid), abi)
        machine = "i386" if abi == calls.I386 else calls.MACHINE
        if nr == calls.number("clone", machine):
            return first
        if nr != calls.number("clone3", machine):
            return _VFORK_FLAGS if event == ptrace.EVENT_VFORK else 0
        try:
            return int.from_bytes(memory.read(task.tid, first, 8), sys.byteorder)
        except memory.Unreadable:
            return 0

    def _known(self, maker: int, tid: int, flags: int) -> None:
        """A new task: its FORK record, then what came of it already."""
        status = proc.status(tid)
        maker_task = self.tasks.get(maker)
        if status is not None:
            tgid = status.tgid
        elif flags & _CLONE_THREAD and maker_task is not None:
            tgid = maker_task.tgid
        else:
            tgid = tid
        task = self.tasks.add(tid, tgid)
        self._write(
            records.make_record(
                records.FORK,
                tid=maker,
                time_ns=now_ns(),
                result=tid,
                args=(flags, int(task.is_thread)),
                items=()
                if status is None or task.is_thread
                else ((records.PIDS, proc.pack_pid(status)),),
            )
        )
        for word, usage in self.tasks.take_early(tid):
            self.handle(tid, word, usage)

    def _adopt(self, tid: int) -> None:
        """A task whose maker was killed before it could tell: what /proc says must do."""
        status = proc.status(tid)
        maker = 0
        if status is not None:
            maker = status.tgid if status.tgid != tid else status.parent
        self._known(maker, tid, 0)

    def _ended(self, task: Task, status: int, usage: struct_rusage) -> None:
        self._cut_short(task)
        self.tasks.forget(task.tid)
        self._write(_exit_record(task, status, usage))

    def _cut_short(self, task: Task) -> None:
        """It ended within a call, and maybe held."""
        if task.hold:
            self._holds.pop(task.hold, None)
            self._decided(task, task.hold, gate.DENY, gate.IS_DYING)
        if task.call is not None and self._is_told(task.call):
            self._write(task.call.record(records.CALL, 0, records.UNOBSERVED))
        task.call, task.hold = None, 0

    # --- exec

    def _gate(self, task: Task, call: Call, table: Table) -> None:
        task.approval = None
        try:
            found = approval.find(call)
        except approval.LeftToKernel as left:
            if left.argv is not None:
                call.add_argv(left.argv)
            self._resume(task)  # without an approval: what runs all the same is killed
            return
        except approval.NotFound:
            self._decided(task, 0, gate.DENY, gate.IS_UNREADABLE)
            self._refuse(task, -errno.EACCES)
            return
        call.add_argv(found.argv)
        call.items.append((records.EXE, found.programs[0]))
        call.items += [(records.OPENED, program) for program in found.programs[1:]]
        decision = table.decide(
            found.programs, found.called, found.argv.split(b"\0")[:-1], found.lines
        )
        if decision == gate.ASK:
            if found.before:
                call.items.append((records.DATA, found.before))
            self._last_hold += 1
            task.hold = number = self._last_hold
            self._holds[number] = _Held(task.tid, found, time.monotonic() + self._hold_s)
            self._write(call.record(records.HOLD, 0, args=(number, *call.args[1:])))
        elif decision == gate.ALLOW:
            task.approval = found
            self._resume(task)
        else:
            self._decided(task, 0, gate.DENY, gate.BY_TABLE)
            self._refuse(task, -errno.EACCES)

    def _look_at_hold(self, number: int, now: float) -> None:
        held = self._holds[number]
        status = proc.status(held.tid)
        if status is not None and status.fatal:
            self.answer(number, gate.DENY, gate.IS_DYING)
        elif now >= held.deadline_s:
            self.answer(number, gate.DENY, gate.TIME_OUT)

    def _executed(self, task: Task) -> None:
        """Stopped in its new program, before the first instruction of that."""
        former = ptrace.event_message(task.tid)
        tgid = task.tid
        now, leader = self.tasks.replace_by_exec(tgid, former)
        if leader is not None:
            self._cut_short(leader)
        if now is None:  # the caller was not known yet: its maker's event never came
            now = self.tasks.add(tgid, tgid)
        call, approved = now.call, now.approval
        self._write(self._exec_record(now, former, call))
        if self._table is not None:
            reason = gate.IS_UNAPPROVED if approved is None else 0
            what = "" if approved is None else approval.differs(tgid, approved)
            if what:
                reason = gate.IS_UNREADABLE if what == approval.UNREAD else gate.HAS_RACED
            if reason:
                self._decided(now, 0, gate.KILL, reason)
                now.call = now.approval = None
                self._kill(now)
                return
        now.call = now.approval = None
        self._resume(now)

    def _kill(self, task: Task) -> None:
        """It stays stopped: SIGKILL takes it from there, and it never runs again."""
        try:
            os.kill(task.tgid, signal.SIGKILL)
        except ProcessLookupError:
            return

    # --- records

    def _decided(self, task: Task, number: int, decision: int, reason: int) -> None:
        call = task.call
        told = (records.PATH, records.ARGV)
        self._write(
            records.make_record(
                records.GATE,
                tid=task.tid,
                time_ns=now_ns(),
                nr=-1 if call is None else call.nr,
                result=decision,
                args=(number, reason),
                abi=calls.NATIVE if call is None else call.abi,
                items=() if call is None else tuple(i for i in call.items if i[0] in told),
            )
        )

    def _exec_record(self, task: Task, former: int, call: Call | None) -> bytes:
        tid, flags = task.tid, 0
        items: list[tuple[int, bytes]] = []
        if call is not None:
            items += [i for i in call.items if i[0] in (records.PATH, records.BASE)]
            flags = call.flags & records.UNREADABLE
        vector = proc.auxiliary(tid)
        words = proc.command_line(tid)
        if name := _exec_name(tid, vector):
            items.append((records.EXEC_NAME, name))
        if vector:
            items.append((records.CREDENTIALS, proc.pack_credentials(vector)))
        if words is not None:
            flags |= records.CUT if len(words) > records.MOST_ARGV else 0
            items.append((records.ARGV, words[: records.MOST_ARGV]))
        if exe := proc.exe(tid):
            items.append((records.EXE, exe))
        if runs := proc.program_file(tid):
            items.append((records.FILE, proc.pack_file(runs)))
        descriptors, more = proc.descriptors(tid)
        items += [(records.FD, descriptor) for descriptor in descriptors]
        if tid == self._root and not self._root_ran:
            self._root_ran = True
            status = proc.status(tid)
            if status is not None:
                items.append((records.PIDS, proc.pack_pid(status)))
            if cwd := proc.cwd(tid):
                items.append((records.CWD, cwd))
        is_script, script = (
            approval.find_script(tid, name, words) if name and words else (False, None)
        )
        if script:
            items.append((records.FILE, proc.pack_file(script)))
        return records.make_record(
            records.EXEC,
            tid=tid,
            time_ns=now_ns() if call is None else call.time_ns,
            nr=-1 if call is None else call.nr,
            args=(former if former != tid else 0, int(is_script)),
            flags=flags | (records.CUT if more else 0),
            abi=calls.NATIVE if call is None else call.abi,
            items=tuple(items),
        )


def _exec_name(tid: int, vector: dict[int, int]) -> bytes:
    try:
        return memory.read_text(tid, proc.exec_name_at(vector))[0]
    except memory.Unreadable:
        return b""


def _exit_record(task: Task, status: int, usage: struct_rusage) -> bytes:
    """wait4's usage of a leader holds that of children that it has waited for."""
    spent = (0, 0, 0)
    if not task.is_thread:
        spent = (int(usage.ru_utime * 1e6), int(usage.ru_stime * 1e6), usage.ru_maxrss)
    return records.make_record(
        records.EXIT,
        tid=task.tid,
        time_ns=now_ns(),
        result=status,
        args=(*spent, int(task.is_thread)),
    )


def now_ns() -> int:
    """The clock of records."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
