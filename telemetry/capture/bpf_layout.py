"""What the programs of the `bpf` backend work on: slots, tables, state, scratch, and the kernel's own.

Numbers and places only; no instructions, no I/O. Whatever differs between kernels is in Offsets,
which come from the kernel's own description (bpf_types.py); whatever differs between machines is in
Machine.

Sources: <linux/bpf.h>, <asm/ptrace.h>.
"""

from __future__ import annotations

import struct

from substrate.telemetry.capture import calls, records
from substrate.telemetry.capture.bpf_types import TypesUnknown
from substrate.values import as_dict, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.telemetry.capture.bpf_types import Types

# --- helpers of the kernel (enum bpf_func_id)
LOOKUP, UPDATE, DELETE = 1, 2, 3
SMP_PROCESSOR_ID, PID_TGID, TASK = 8, 14, 35
READ_USER, READ_KERNEL, READ_USER_STR, READ_KERNEL_STR = 112, 113, 114, 115
JIFFIES, BOOT_NS, LOOP = 118, 125, 181
RING_OUTPUT, RING_RESERVE, RING_DISCARD, RING_QUERY = 130, 131, 133, 134
NO_WAKEUP, FORCE_WAKEUP, AVAILABLE = 1, 2, 0

#: state, the memory that we read while the programs run: u64 each
FULL, MEMORY, STARTED, ENDED, WOKEN = 0, 8, 16, 24, 32
#: how deep the command's pid namespace lies; our root (mount, dentry); what the identity of a file
#: of ours is, IDENTITY bytes (bpf_places.py)
LEVEL, ROOT, OURS = 40, 48, 64
IDENTITY: Final = 32
STATE_SIZE: Final = 96

#: jiffies between two calls of the reader (4 ms each on most kernels), if it is not urgent
QUIET = 5

# --- a slot: what is known of a call, then the record that it becomes
PENDING, MISSING, AT, ENTERED, SHAPE, MOVED, SCRIPT, MESSAGES = 0, 4, 8, 12, 16, 32, 36, 40
#: what the descriptors are that it acts on: mount and dentry of each, 0 for none
BASE, BASE2 = 48, 64
#: of a process's first task: that the end of all is told
TOLD = 80
RECORD = 88
IN_SLOT, IN_LONG = 1, 2
#: of a record's head
FLAGS, ABI, TID, NR, TIME, RESULT, ARGS = 5, 6, 8, 12, 16, 24, 32

#: with what the kernel keeps beside it, a slot fills an allocation of 1024 bytes
SLOT_SIZE: Final = 960
SLOT_ROOM = SLOT_SIZE - RECORD
SHORT = 376
#: one more than a path can have, so that one of 4095 bytes is known to be whole
TEXT = records.MOST_PATH + 8
LONG_SIZE: Final = RECORD + records.HEAD_SIZE + 2 * (8 + TEXT) + 80
LONG_ROOM = LONG_SIZE - RECORD
MOST_ADDRESS, MOST_HOW, MOST_DATA = 128, 64, 256
#: of sendmmsg's messages
MOST_MESSAGES = 8

#: an element of `walk`: what is being walked, and room for a path (bpf_places.py)
WALK_SIZE: Final = 4096 + 768
#: the highest number of a descriptor that is looked at, of what a program inherits
MOST_FD = 4096
#: bytes for what is told of a program beside its words
FACTS: Final = 48 * 1024

# what could not be read at entry
M_PATH, M_PATH2, M_ADDRESS, M_HOW, M_MESSAGE, M_DATA = (1 << n for n in range(6))
M_ALL = (1 << 6) - 1

NUMBERS = 1024
TABLE = NUMBERS * calls.SHAPE.size
BLANK = 3 * TABLE
TABLES_SIZE: Final = BLANK + LONG_SIZE
#: of a row in `tables`: the shape's reserved word: 0, or one of these
WANTED = 12
ALWAYS, WHEN_FILTERED = 1, 2

#: of a call of which only number and result are told
SHAPELESS: Final = struct.pack("=8BII", *[calls.NONE] * 6, calls.FILES, calls.I_NONE, 0, 1)

CLONE_THREAD = 0x10000
#: of signal_struct.flags (linux/sched/signal.h): the group's status is not its first task's
SIGNAL_GROUP_EXIT = 4
TS_COMPAT = 2
#: from -ERESTART_RESTARTBLOCK to -ERESTARTSYS (linux/errno.h); -515 between them is no result
RESTARTS = (-516, -512)

#: what the programs share, in the order in which the kernel is given it with each of them
MAPS: Final = ("ring", "tree", "long", "scratch", "walk", "tables", "state")

PROGRAMS: Final = (
    "sys_enter",
    "sys_exit",
    "task_newtask",
    "sched_process_exec",
    "sched_process_exit",
)


#: larger than any structure that is looked into
_MOST_OFFSET: Final = 1 << 16


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
    group_leader: int
    live: int
    signal_flags: int
    group_exit_code: int
    #: of task_struct; x86-64 only
    status: int
    filename: int
    interp: int
    # of what a task has: descriptors, places, memory, numbers
    files: int
    fdt: int
    open_fds: int
    fs: int
    pwd: int
    root: int
    mm: int
    auxv: int
    exe_file: int
    thread_pid: int
    numbers: int
    # of files, and where they are
    f_path: int
    f_inode: int
    f_flags: int
    ino: int
    i_sb: int
    ctime_sec: int
    ctime_nsec: int
    s_dev: int
    s_magic: int
    d_hash: int
    d_parent: int
    d_name: int
    d_inode: int
    q_len: int
    q_name: int
    mnt: int
    mnt_parent: int
    mnt_mountpoint: int
    mnt_root: int
    # of sockets; `v6_address` 0 where the kernel has no IPv6
    private_data: int
    socket_file: int
    socket_sk: int
    family: int
    protocol: int
    port: int
    v4_address: int
    v6_address: int


def find_offsets(types: Types) -> Offsets:
    """Raises TypesUnknown."""
    task = types.offset
    status = task(b"task_struct", b"thread_info")
    if calls.MACHINE == "x86_64":
        status += task(b"thread_info", b"status")
    names = (b"i_ctime_sec", b"__i_ctime", b"i_ctime")
    ctime = task(b"inode", *names)
    known = types.members(b"inode")
    for number, member, place in (
        (b"fdtable", b"max_fds", 0),
        (b"fdtable", b"fd", 8),
        (b"path", b"mnt", 0),
        (b"path", b"dentry", 8),
        (b"upid", b"nr", 0),
        (b"upid", b"ns", 8),
    ):
        if task(number, member) != place:
            raise TypesUnknown(f"struct {number.decode()} is another one than is known")
    for last in (
        task(b"dentry", b"d_inode"),
        task(b"dentry", b"d_name") + 8,
        task(b"mount", b"mnt") + task(b"vfsmount", b"mnt_root"),
        task(b"mount", b"mnt_mountpoint"),
        task(b"fdtable", b"open_fds") + 32,
    ):
        if last + 8 > 64:
            raise TypesUnknown("a structure of the kernel is larger than is known")
    return Offsets(
        pid=task(b"task_struct", b"pid"),
        exit_code=task(b"task_struct", b"exit_code"),
        utime=task(b"task_struct", b"utime"),
        stime=task(b"task_struct", b"stime"),
        signal=task(b"task_struct", b"signal"),
        signal_utime=task(b"signal_struct", b"utime"),
        signal_stime=task(b"signal_struct", b"stime"),
        maxrss=task(b"signal_struct", b"maxrss"),
        group_leader=task(b"task_struct", b"group_leader"),
        live=task(b"signal_struct", b"live"),
        signal_flags=task(b"signal_struct", b"flags"),
        group_exit_code=task(b"signal_struct", b"group_exit_code"),
        status=status,
        filename=task(b"linux_binprm", b"filename"),
        interp=task(b"linux_binprm", b"interp"),
        files=task(b"task_struct", b"files"),
        fdt=task(b"files_struct", b"fdt"),
        open_fds=task(b"fdtable", b"open_fds"),
        fs=task(b"task_struct", b"fs"),
        pwd=task(b"fs_struct", b"pwd"),
        root=task(b"fs_struct", b"root"),
        mm=task(b"task_struct", b"mm"),
        auxv=task(b"mm_struct", b"saved_auxv"),
        exe_file=task(b"mm_struct", b"exe_file"),
        thread_pid=task(b"task_struct", b"thread_pid"),
        numbers=task(b"pid", b"numbers"),
        f_path=task(b"file", b"f_path"),
        f_inode=task(b"file", b"f_inode"),
        f_flags=task(b"file", b"f_flags"),
        ino=task(b"inode", b"i_ino"),
        i_sb=task(b"inode", b"i_sb"),
        ctime_sec=ctime,
        # struct timespec64 where it is one member
        ctime_nsec=known[b"i_ctime_nsec"] if names[0] in known else ctime + 8,
        s_dev=task(b"super_block", b"s_dev"),
        s_magic=task(b"super_block", b"s_magic"),
        d_hash=task(b"dentry", b"d_hash"),
        d_parent=task(b"dentry", b"d_parent"),
        d_name=task(b"dentry", b"d_name"),
        d_inode=task(b"dentry", b"d_inode"),
        q_len=task(b"qstr", b"len"),
        q_name=task(b"qstr", b"name"),
        mnt=task(b"mount", b"mnt"),
        mnt_parent=task(b"mount", b"mnt_parent"),
        mnt_mountpoint=task(b"mount", b"mnt_mountpoint"),
        mnt_root=task(b"vfsmount", b"mnt_root"),
        private_data=task(b"file", b"private_data"),
        socket_file=task(b"socket", b"file"),
        socket_sk=task(b"socket", b"sk"),
        family=task(b"sock_common", b"skc_family"),
        protocol=task(b"sock", b"sk_protocol"),
        # skc_num is 0 as soon as the other end has reset; this one stays
        port=task(b"inet_sock", b"inet_sport"),
        v4_address=task(b"sock_common", b"skc_rcv_saddr"),
        v6_address=types.members(b"sock_common").get(b"skc_v6_rcv_saddr", 0),
    )


def offsets_to_text(offsets: Offsets) -> str:
    """One word, for `parse_offsets`."""
    return ",".join([f"{name}={offset}" for name, offset in as_dict(offsets).items()])


def parse_offsets(text: str) -> Offsets | None:
    """None for what is not the text of all of them."""
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        if not (number.isascii() and number.isdigit()) or int(number) >= _MOST_OFFSET:
            return None
        found[name] = int(number)
    return Offsets(**found) if found.keys() == Offsets.__annotations__.keys() else None


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


MACHINES: Final = {
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
PSTATE, PSTATE_32 = 264, 0x10


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
        return LONG_SIZE + 2 * (8 + TEXT) + FACTS + 8 + 2 * self.argv + 1024


#: of a shape's flags: what makes an entry more than its paths
UNUSUAL = calls.HOW | calls.DATA | calls.MESSAGE | calls.MESSAGES | calls.SOCKETCALL
