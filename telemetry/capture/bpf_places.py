"""What the kernel knows of places: the path of a file, what a descriptor is, where a process stands.

Emits the functions of a program that the others call; no I/O. A path is walked as d_path() does it:
from a dentry to its parents, over the mounts, and written from its end to its beginning, up to the
root of our own process or the top of the mount tree. So it is the kernel's name of the file at that
moment, whatever was asked for, as /proc/<pid>/fd shows it.

Invariants
    - Everything is read by helpers that fail instead of faulting. What could not be read whole, or is
      longer than a path can be, is left out, and CUT or UNREADABLE say that.
    - No lock is held: a rename in the middle of a walk may give a name that is half old, half new.
      Nothing but names depends on a walk; which file it is, is told by its inode.
    - A descriptor that a call acts on is looked at when the call begins and told when it ends, if it is
      the same then: else a thread could have the one told and the other used.

What is no file of a tree (pipes, sockets, anonymous inodes) has no path: its item is marked
records.PSEUDO, and says filesystem, inode and name (records.pseudo_text).

Sources: kernel: fs/d_path.c, fs/mount.h, include/linux/fdtable.h; bpf-helpers(7), bpf_loop.
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
from substrate.telemetry.capture.bpf_items import SCRATCH, Items
from substrate.telemetry.capture.bpf_layout import (
    AT,
    BASE,
    BASE2,
    IDENTITY,
    LEVEL,
    LOOKUP,
    LOOP,
    READ_KERNEL,
    RECORD,
    RESULT,
    ROOT,
    SHAPE,
    SMP_PROCESSOR_ID,
    TASK,
    WALK_SIZE,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.telemetry.capture.bpf_functions import Signatures

# --- an element of `walk`, one for each CPU
_MNT, _DENTRY, _TOP, _END, _DONE, TAG, _MORE = 0, 8, 16, 24, 28, 32, 36
#: of an item FD: whether it is one, number, flags
IS_FD, NUMBER, FD_FLAGS = 40, 44, 48
FILE, BITS, BITS_AT, MOST_BITS = 56, 64, 72, 80
#: of which dentry the text below it is
_KNOWN = 88
#: what was read of a dentry and of a mount
_D, _M = 96, 160
_WINDOW: Final = 64
_TEXT: Final = 256
_LONGEST: Final = records.MOST_PATH
assert WALK_SIZE >= _TEXT + _LONGEST + 256 + 8
#: names in a path, at most
_MOST_STEPS: Final = _LONGEST // 2 + 64
_DELETED: Final = b" (deleted)"
_MOST_NAME: Final = 255


class Places(Items):
    """See the module."""

    def signatures(self) -> Signatures:
        scratch = self.limits.scratch
        return {
            **super().signatures(),
            "fd": (16, 0),
            "pid": (0,),
            "identity": (0, IDENTITY),
            "path": (WALK_SIZE,),
            "item": (scratch, WALK_SIZE),
            "base": (scratch, WALK_SIZE, 0),
            "opened": (scratch, WALK_SIZE),
            "standing": (scratch, WALK_SIZE, 0, 0),
        }

    def _emit(self, name: str) -> None:
        made = {
            "fd": self._fd,
            "pid": self._pid,
            "identity": self._identity,
            "path": self._path,
            "item": self._path_item,
            "base": self._base,
            "opened": self._opened,
            "standing": self._standing,
            "walk.step": self._step,
        }
        if name in made:
            made[name]()
        else:
            super()._emit(name)

    # --- for the programs

    def _note_bases(self) -> None:
        """At the beginning of a call: what the descriptors are that it acts on, into slot R6."""
        a = self.a
        for field, place in ((1, BASE), (3, BASE2)):
            done = a.fresh("base")
            a.load(1, R1, R6, SHAPE + field)
            a.jump_if(R1, "==", calls.NONE, done)
            self._load_argument(R2, R1)
            a.alu32("mov", R2, R2)
            a.jump_if(R2, ">=", 1 << 30, done)  # AT_FDCWD, and what is none
            self._address(R1, R6, place)
            a.call_function("fd")
            a.jump_if(R0, "!=", 0, done)
            a.store(8, R6, place, 0)
            a.label(done)

    def _find_walk(self, none: str) -> None:
        """The element of `walk` of this CPU: at FP-40, and R0."""
        a = self.a
        a.call(SMP_PROCESSOR_ID)
        a.store(4, FP, -24, R0)
        a.load_map(R1, "walk")
        self._address(R2, FP, -24)
        a.call(LOOKUP)
        a.jump_if(R0, "==", 0, none)
        a.store(8, FP, -40, R0)

    def _tell_bases(self) -> None:
        """At the end of a call: items BASE of the record in scratch R6; the walk is at FP-40. In
        place of what was noted of each is its struct file then, 0 where it is another one."""
        a = self.a
        for second in (0, 1):
            a.mov(R1, R6)
            a.load(8, R2, FP, -40)
            a.mov(R3, second)
            a.call_function("base")

    def _tell_standing(self, tag: int, offset: int) -> None:
        """An item of the working directory or the root: `offset` in struct fs_struct."""
        a = self.a
        a.mov(R1, R6)
        a.load(8, R2, FP, -40)
        a.mov(R3, tag)
        a.mov(R4, offset)
        a.call_function("standing")

    def _tell(self, tag: int) -> None:
        """An item of what was put into the walk at FP-40, behind the record in R6."""
        a = self.a
        a.load(8, R2, FP, -40)
        a.store(4, R2, TAG, tag)
        a.store(4, R2, IS_FD, 0)
        a.mov(R1, R6)
        a.call_function("item")

    # --- parts

    def _facts_room(self) -> int:
        """Up to which size items of places may go: behind them come a program's words."""
        return self.limits.scratch - RECORD - 2 * self.limits.argv - 64

    def _follow(self, base: Register, offset: int, none: str) -> None:
        """The pointer at `offset` behind R0 or R7, to FP-48."""
        a = self.a
        a.mov(R3, base)
        a.alu("add", R3, offset)
        self._address(R1, FP, -48)
        a.mov(R2, 8)
        a.call(READ_KERNEL)
        a.jump_if(R0, "!=", 0, none)
        a.load(8, R1, FP, -48)
        a.jump_if(R1, "==", 0, none)

    # --- functions

    def _base(self) -> None:
        """base(record, walk, second): see _tell_bases; `second`: 1 for BASE2."""
        a = self.a
        assert (BASE2 - BASE, records.BASE2 - records.BASE) == (16, 1)
        self._enter((R1, R6), (R2, R7), none="base.none")
        a.mov(R8, R3)
        a.alu("and", R8, 1)
        a.mov(R9, R8)
        a.alu("lsh", R9, 4)
        a.alu("add", R9, R6)
        a.load(8, R1, R9, BASE)
        a.jump_if(R1, "==", 0, "base.none")
        a.mov(R1, R8)
        a.alu("lsh", R1, 1)
        a.alu("add", R1, R6)
        a.load(1, R1, R1, SHAPE + 1)
        self._load_argument(R2, R1)
        a.mov(R1, R7)
        a.call_function("fd")
        a.jump_if(R0, "==", 0, "base.other")
        for here, there in ((_MNT, 0), (_DENTRY, 8)):
            a.load(8, R2, R7, here)
            a.load(8, R3, R9, BASE + there)
            a.jump_if(R2, "!=", R3, "base.other")
        a.store(8, R9, BASE, R0)
        a.alu("add", R8, records.BASE)
        a.store(4, R7, TAG, R8)
        a.store(4, R7, IS_FD, 0)
        a.mov(R1, R6)
        a.mov(R2, R7)
        a.call_function("item")
        a.jump("base.none")
        a.label("base.other")
        a.store(8, R9, BASE, 0)
        self._flag(records.UNREADABLE)
        a.label("base.none")
        self._return()

    def _opened(self) -> None:
        """opened(record, walk): an item OPENED of the descriptor that is the record's result; R0: 1
        where there was one."""
        a = self.a
        self._enter((R1, R6), (R2, R7), none="opened.none")
        a.store(8, FP, -40, R7)
        a.mov(R1, R7)
        a.load(8, R2, R6, RECORD + RESULT)
        a.call_function("fd")
        a.jump_if(R0, "==", 0, "opened.none")
        a.load(4, R7, R6, AT)
        self._tell(records.OPENED)
        a.load(4, R1, R6, AT)
        a.jump_if(R1, "==", R7, "opened.none")
        a.mov(R0, 1)
        a.exit()
        a.label("opened.none")
        self._return()

    def _standing(self) -> None:
        """standing(record, walk, tag, offset): see _tell_standing."""
        a = self.a
        self._enter((R1, R6), (R2, R7), none="standing.none")
        a.mov(R8, R4)
        a.store(4, R7, TAG, R3)
        a.store(4, R7, IS_FD, 0)
        a.call(TASK)
        self._follow(R0, self.offsets.fs, "standing.none")
        a.load(8, R3, FP, -48)
        a.alu("add", R3, R8)
        a.mov(R1, R7)
        a.mov(R2, 16)
        a.call(READ_KERNEL)
        a.jump_if(R0, "!=", 0, "standing.none")
        a.mov(R1, R6)
        a.mov(R2, R7)
        a.call_function("item")
        a.label("standing.none")
        self._return()

    def _fd(self) -> None:
        """fd(where, number): mount and dentry of a descriptor of this task, 16 bytes; R0: its
        struct file, 0 where there is none."""
        a, off = self.a, self.offsets
        self._enter((R1, R6), none="fd.none")
        a.alu32("mov", R7, R2)
        # As members of a typed task these would be plain loads, 20 ns less each; but the verifier
        # takes 0.3 ms to look up each of them in its description of a task.
        a.call(TASK)
        self._follow(R0, off.files, "fd.none")
        a.load(8, R0, FP, -48)
        self._follow(R0, off.fdt, "fd.none")
        a.load(8, R3, FP, -48)
        # struct fdtable: how many, where
        self._address(R1, FP, -32)
        a.mov(R2, 16)
        a.call(READ_KERNEL)
        a.jump_if(R0, "!=", 0, "fd.none")
        a.load(4, R1, FP, -32)
        a.jump_if(R7, ">=", R1, "fd.none")
        a.alu("lsh", R7, 3)
        a.load(8, R0, FP, -24)
        a.alu("add", R7, R0)
        self._follow(R7, 0, "fd.none")
        a.load(8, R7, FP, -48)
        a.mov(R1, R6)
        a.mov(R2, 16)
        a.mov(R3, R7)
        a.alu("add", R3, off.f_path)
        a.call(READ_KERNEL)
        a.jump_if(R0, "!=", 0, "fd.none")
        a.mov(R0, R7)
        a.exit()
        a.label("fd.none")
        self._return()

    def _pid(self) -> None:
        """pid(task): its number in the command's namespace; 0 where it cannot be had."""
        a, off = self.a, self.offsets
        a.mov(R0, R1)
        self._follow(R0, off.thread_pid, "pid.none")
        a.load(8, R3, FP, -48)
        a.load_map_value(R1, "state")
        a.load(8, R1, R1, LEVEL)
        a.alu("lsh", R1, 4)  # struct upid
        a.alu("add", R3, R1)
        a.alu("add", R3, off.numbers)
        self._address(R1, FP, -8)
        a.store(8, FP, -8, 0)
        a.mov(R2, 4)
        a.call(READ_KERNEL)
        a.jump_if(R0, "!=", 0, "pid.none")
        a.load(8, R0, FP, -8)
        a.exit()
        a.label("pid.none")
        self._return()

    def _identity(self) -> None:
        """identity(file, where): device, number, change time and address of its inode; R0: 0."""
        a, off = self.a, self.offsets
        self._enter((R2, R6), none="identity.none")
        a.mov(R0, R1)
        self._follow(R0, off.f_inode, "identity.none")
        a.load(8, R7, FP, -48)
        a.store(8, R6, 24, R7)

        def read(place: int, base: Register, offset: int, size: int) -> None:
            self._address(R1, R6, place)
            a.mov(R2, size)
            a.mov(R3, base)
            a.alu("add", R3, offset)
            a.call(READ_KERNEL)
            a.jump_if(R0, "!=", 0, "identity.none")

        a.store(8, R6, 0, 0)
        read(8, R7, off.ino, 8)
        read(16, R7, off.ctime_sec, 8)
        self._address(R1, FP, -8)
        a.mov(R2, 4)
        a.mov(R3, R7)
        a.alu("add", R3, off.ctime_nsec)
        a.call(READ_KERNEL)
        a.jump_if(R0, "!=", 0, "identity.none")
        # seconds and nanoseconds in one word; the highest bit of these is the kernel's own since 6.13
        a.load(8, R1, R6, 16)
        a.alu("lsh", R1, 30)
        a.load(4, R2, FP, -8)
        a.alu("and", R2, (1 << 30) - 1)
        a.alu("or", R1, R2)
        a.store(8, R6, 16, R1)
        self._follow(R7, off.i_sb, "identity.none")
        a.load(8, R7, FP, -48)
        read(0, R7, off.s_dev, 4)
        self._return()
        a.label("identity.none")
        a.mov(R0, 1)
        a.exit()

    def _path_item(self) -> None:
        """item(record, walk): adds the path of what is in the walk."""
        a = self.a
        self._enter((R1, R6), (R2, R7), none="item.none")
        a.store(8, FP, -8, R7)
        a.mov(R1, R7)
        a.call_function("path")
        a.jump_if(R0, "!=", 0, "item.cut")
        a.load(8, R2, FP, -8)
        a.load(4, R7, R2, _END)
        a.jump_if(R7, ">", _LONGEST, "item.cut")
        a.load(4, R1, R2, IS_FD)
        a.jump_if(R1, "==", 0, "item.add")
        a.jump_if(R7, "<", 8, "item.cut")
        a.alu("sub", R7, 8)
        a.mov(R1, R2)
        a.alu("add", R1, R7)
        for place, field in ((0, NUMBER), (4, FD_FLAGS)):
            a.load(4, R3, R2, field)
            a.store(4, R1, _TEXT + place, R3)
        a.label("item.add")
        a.mov(R8, _LONGEST)
        a.alu("sub", R8, R7)
        a.jump_if(R8, ">", _LONGEST, "item.cut")
        self._load_size(self._facts_room() - 16 - _LONGEST, "item.cut")
        self._item_body(R1)
        a.mov(R3, R2)
        a.alu("add", R3, R7)
        a.alu("add", R3, _TEXT)
        a.mov(R2, R8)
        a.call(READ_KERNEL)
        a.load(8, R2, FP, -8)
        a.load(4, R7, R2, TAG)
        a.mov(R1, R6)
        a.alu("add", R1, R9)
        a.store(2, R1, RECORD, R7)
        a.load(4, R7, R2, _MORE)
        self._item(SCRATCH, None, R8, R7)
        self._return()
        a.label("item.cut")
        self._flag(records.CUT)
        a.label("item.none")
        self._return()

    def _path(self) -> None:
        """path(walk): writes the text, from _END on; R0: 0, or 1 where there is none."""
        a, off = self.a, self.offsets
        self._enter((R1, R6), none="path.none")
        a.store(8, R6, _KNOWN, 0)
        a.store(4, R6, _DONE, 0)
        a.store(4, R6, _MORE, 0)
        a.store(4, R6, _END, _LONGEST)
        a.load(8, R8, R6, _MNT)
        self._read_mount("path.none")
        self._read_dentry("path.none")
        a.load(8, R1, R6, _TOP)
        a.jump_if(R1, "==", R7, "path.walk")
        a.load(8, R1, R6, _D + off.d_parent)
        a.jump_if(R1, "==", R7, "path.pseudo")
        a.load(8, R1, R6, _D + off.d_hash + 8)
        a.jump_if(R1, "!=", 0, "path.walk")
        at = _LONGEST - len(_DELETED)
        for part in range(0, len(_DELETED), 2):
            word = int.from_bytes(_DELETED[part : part + 2], "little")
            a.store(2, R6, _TEXT + at + part, word)
        a.store(4, R6, _END, at)
        a.label("path.walk")
        a.store(8, FP, -8, R6)
        a.mov(R1, _MOST_STEPS)
        a.load_function(R2, "walk.step")
        self._address(R3, FP, -8)
        a.mov(R4, 0)
        a.call(LOOP)
        a.load(4, R1, R6, _DONE)
        a.jump_if(R1, "==", 0, "path.none")
        a.load(4, R1, R6, _END)
        a.jump_if(R1, "!=", _LONGEST, "path.told")
        a.store(1, R6, _TEXT + _LONGEST - 1, ord("/"))
        a.store(4, R6, _END, _LONGEST - 1)
        a.label("path.told")
        self._return()

        a.label("path.pseudo")
        a.store(4, R6, _MORE, records.PSEUDO)
        a.load(4, R8, R6, _D + off.d_name + off.q_len)
        a.jump_if(R8, ">", _MOST_NAME, "path.none")
        a.mov(R7, _LONGEST)
        a.alu("sub", R7, R8)
        a.mov(R1, R6)
        a.alu("add", R1, R7)
        a.alu("add", R1, _TEXT)
        a.mov(R2, R8)
        a.load(8, R3, R6, _D + off.d_name + off.q_name)
        a.call(READ_KERNEL)
        a.jump_if(R0, "!=", 0, "path.none")
        a.alu("sub", R7, 16)
        a.store(4, R6, _END, R7)
        a.alu("add", R7, R6)
        a.load(8, R8, R6, _D + off.d_inode)
        a.mov(R1, R7)
        a.alu("add", R1, _TEXT + 8)
        a.mov(R2, 8)
        a.mov(R3, R8)
        a.alu("add", R3, off.ino)
        a.call(READ_KERNEL)
        a.jump_if(R0, "!=", 0, "path.none")
        self._address(R1, FP, -8)
        a.mov(R2, 8)
        a.mov(R3, R8)
        a.alu("add", R3, off.i_sb)
        a.call(READ_KERNEL)
        a.jump_if(R0, "!=", 0, "path.none")
        a.mov(R1, R7)
        a.alu("add", R1, _TEXT)
        a.mov(R2, 8)
        a.load(8, R3, FP, -8)
        a.alu("add", R3, off.s_magic)
        a.call(READ_KERNEL)
        a.jump_if(R0, "!=", 0, "path.none")
        self._return()
        a.label("path.none")
        a.mov(R0, 1)
        a.exit()

    def _step(self) -> None:
        """One name, or one mount, of a path: step(index, &walk); R0: 1 for the end."""
        a, off = self.a, self.offsets
        a.load(8, R6, R2, 0)
        a.load(8, R7, R6, _DENTRY)
        a.load(8, R8, R6, _MNT)
        a.load_map_value(R1, "state")
        a.load(8, R2, R1, ROOT + 8)
        a.jump_if(R2, "!=", R7, "step.go")
        a.load(8, R2, R1, ROOT)
        a.jump_if(R2, "==", R8, "step.done")
        a.label("step.go")
        a.load(8, R1, R6, _TOP)
        a.jump_if(R1, "!=", R7, "step.name")
        # over to what it is mounted on
        a.load(8, R9, R6, _M + off.mnt_parent)
        a.alu("add", R9, off.mnt)
        a.jump_if(R9, "==", R8, "step.done")
        a.load(8, R1, R6, _M + off.mnt_mountpoint)
        a.store(8, R6, _DENTRY, R1)
        a.store(8, R6, _MNT, R9)
        a.mov(R8, R9)
        self._read_mount("step.bad")
        self._return()
        a.label("step.name")
        self._read_dentry("step.bad")
        a.load(8, R9, R6, _D + off.d_parent)
        a.jump_if(R9, "==", R7, "step.bad")  # its tree is nowhere
        a.load(4, R8, R6, _D + off.d_name + off.q_len)
        a.jump_if(R8, ">", _MOST_NAME, "step.bad")
        a.load(4, R1, R6, _END)
        a.alu("sub", R1, R8)
        a.alu("sub", R1, 1)
        a.jump_if(R1, ">=", _LONGEST, "step.bad")
        a.store(4, R6, _END, R1)
        a.alu("add", R1, R6)
        a.store(1, R1, _TEXT, ord("/"))
        a.alu("add", R1, _TEXT + 1)
        a.mov(R2, R8)
        a.load(8, R3, R6, _D + off.d_name + off.q_name)
        a.call(READ_KERNEL)
        a.jump_if(R0, "!=", 0, "step.bad")
        a.store(8, R6, _DENTRY, R9)
        self._return()
        a.label("step.done")
        a.store(4, R6, _DONE, 1)
        a.label("step.bad")
        a.mov(R0, 1)
        a.exit()

    def _read_mount(self, bad: str) -> None:
        """Of the mount whose struct vfsmount is R8."""
        a, off = self.a, self.offsets
        self._address(R1, R6, _M)
        a.mov(R2, _WINDOW)
        a.mov(R3, R8)
        a.alu("sub", R3, off.mnt)
        a.call(READ_KERNEL)
        a.jump_if(R0, "!=", 0, bad)
        a.load(8, R1, R6, _M + off.mnt + off.mnt_root)
        a.store(8, R6, _TOP, R1)

    def _read_dentry(self, bad: str) -> None:
        """Of the walk's dentry, which is R7 then; not twice."""
        a = self.a
        known = a.fresh("dentry")
        a.load(8, R7, R6, _DENTRY)
        a.load(8, R1, R6, _KNOWN)
        a.jump_if(R1, "==", R7, known)
        self._address(R1, R6, _D)
        a.mov(R2, _WINDOW)
        a.mov(R3, R7)
        a.call(READ_KERNEL)
        a.jump_if(R0, "!=", 0, bad)
        a.store(8, R6, _KNOWN, R7)
        a.label(known)
