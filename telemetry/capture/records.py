"""The binary records that every backend writes, and their reading.

A record is a head of 80 bytes and items behind it, in the byte order of the machine. Head:

    u32 size      of the whole record, a multiple of 8
    u8  kind      CALL, FORK …
    u8  flags     UNOBSERVED …
    u16 abi       calls.NATIVE, I386 or X32
    u32 tid       of whom it tells, as the host numbers it (the initial pid namespace of the tracer)
    i32 nr        number of the call (of x32 without its bit); else by kind
    u64 time_ns   CLOCK_BOOTTIME, when it began
    i64 result    of the call, negative errno included; else by kind
    u64 args[6]   as they were at entry

An item: u16 tag, u16 more, u32 length (without padding), its bytes, padded to 8. Bytes are as the
kernel gave them, without a NUL at the end. `more` of a text: CUT_TEXT when it was cut, PSEUDO where
it stands for what has no path (pseudo_text); readers give the text then.

By kind:
    CALL   a finished call; UNOBSERVED: seen at its entry only, `result` means nothing
    FORK   `tid` made `result`; args[0]: clone flags as far as known, args[1]: 1 for a thread.
           Comes before anything that the new task did, but for backends that cannot tell (bpf
           by two CPUs): the decoder waits for it
    EXEC   an exec that succeeded; args[0]: the tid that called it, where that was no leader;
           args[1]: 1 where a script was named, and EXE is its interpreter.
           Items: PATH as it was given, ARGV, EXE, EXEC_NAME, CREDENTIALS, FILE..., FD...; of the command
           itself CWD and PIDS, too. A working directory is inherited, and moved by chdir(2).
           UNOBSERVED: seen at its entry only, of a program that is there
    EXIT   of a task; `result`: wait status (wait(2)), or -1 where it was not seen; args: user µs,
           system µs, maxrss KiB of a leader, args[3]: 1 for a thread that was no leader
    LOST   `result` records could not be written; `nr`: why (LOSSES)
    HOLD   an exec waits for an answer (gate.py): args[0] its number. Items as EXEC's, as they
           were at entry; DATA: of a script the words that the kernel puts before its name
    GATE   an exec was decided: `result` one of gate.DECISIONS, args[0] number of the hold or 0,
           args[1]: why (gate.REASONS)
    DENIED a call that the filter leaves to the engine, which answered `result`
    TROUBLE something that the engine could not do: `nr` which step (engine.STEPS), `result` errno

This module is logic only. The same layout is `struct head` in c/engine.h, and in bpf_program.py.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

HEAD: Final = struct.Struct("=IBBHIiQq6Q")
HEAD_SIZE: Final = HEAD.size
ITEM: Final = struct.Struct("=HHI")

CALL, FORK, EXEC, EXIT, LOST, HOLD, GATE, DENIED, TROUBLE = range(1, 10)
KINDS: Final = ("", "call", "fork", "exec", "exit", "lost", "hold", "gate", "denied", "trouble")

# flags
UNOBSERVED: Final = 1  # no result
UNREADABLE: Final = 2  # memory of the process that an argument points to could not be read
RESTARTED: Final = 4  # interrupted, and begun again by the kernel: the next call is the same one
CUT: Final = 8  # an item was longer than fits
FILTERED: Final = 16  # a seccomp filter answered it (or a tracer took it away): it never began

# tags of items
PATH, PATH2 = 1, 2
#: of the directory that PATH or PATH2 is relative to, or of the descriptor that a call acts on;
#: of `bpf` left out where it is the working directory; empty where there is no name for it
BASE, BASE2 = 3, 4
OPENED: Final = 5  # the kernel's own path of what was opened
ARGV: Final = 6  # words, each with a NUL behind it
ADDRESS: Final = 7  # a struct sockaddr
EXE: Final = 8  # the kernel's path of the program that runs now
EXEC_NAME: Final = 9  # AT_EXECFN: the name that the kernel was given
CWD: Final = 10  # the working directory (after the call); empty where there is no name for it
ROOT: Final = 11  # the root (after the call), where it is not the world's
#: u32 uid, euid, gid, egid (of the auxiliary vector: as the program sees them), AT_SECURE, 0
CREDENTIALS: Final = 12
#: u32 number, u32 open flags, then its text as /proc shows it; one item for each
FD: Final = 13
HOW: Final = 14  # struct open_how
DATA: Final = 15  # the beginning of what was sent
PAIR: Final = 16  # two i32
#: u64 device, inode, ctime in ns: which file EXE is; of a script a second one says which file that is
FILE: Final = 17
PIDS: Final = 18  # u32: its number in the world (of FORK: the child's)
#: what the kernel gave the program of itself (getauxval(3)): pairs of words, as long as its own
AUXV: Final = 19
AUXV_SIZE: Final = 320
#: from where a call has reached out (calls.REACHES): u16 protocol of the socket (6, 17 …), its own port in
#: network order, then its own address, 4 or 16 bytes; zeros where it has none, or none any more.
#: Of a TCP socket that was refused the port is the one that it had
LOCAL: Final = 20
TAGS: Final = (
    *("", "path", "path2", "base", "base2", "opened", "argv", "address", "exe", "exec_name"),
    *("cwd", "root", "credentials", "fd", "how", "data", "pair", "file", "pids"),
    *("auxv", "local"),
)

# more, of a text
CUT_TEXT: Final = 1
PSEUDO: Final = 2
_PSEUDO: Final = struct.Struct("=2Q")
#: filesystems of what has no path (<linux/magic.h>) -> what /proc shows of it before its inode
_BY_INODE: Final = {0x50495045: b"pipe", 0x534F434B: b"socket", 0x6E736673: b"nsfs"}
_ANONYMOUS: Final = (0x09041934, 0x50494446)  # anon_inodefs, pidfs

#: LOST: why
LOSSES: Final = ("full", "memory", "ended", "torn")
#: the most bytes of one text; argv has more room
MOST_PATH: Final = 4096
MOST_ARGV: Final = 256 * 1024

Record = tuple[int, int, int, int, int, int, int, int, int, int, int, int, int, int]


class Torn(ValueError):
    """Bytes that are no records: a bug of a backend, or memory that was written over."""


def read_records(data: bytes) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """(head, offset of its items, end) of each record. Raises Torn."""
    at, end = 0, len(data)
    unpack = HEAD.unpack_from
    while at < end:
        if end - at < HEAD_SIZE:
            raise Torn(f"{end - at} bytes are left behind the last record")
        head = unpack(data, at)
        size = head[0]
        if size < HEAD_SIZE or size % 8 or at + size > end:
            raise Torn(f"a record at {at} says that it has {size} bytes of {end - at}")
        yield head, at + HEAD_SIZE, at + size
        at += size


def int_argument(word: int) -> int:
    """One of `args` that is an `int` to the call."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word & 0x80000000 else word


def pseudo_text(tag: int, item: bytes) -> bytes:
    """The text of an item that is marked PSEUDO: filesystem, inode, name; of FD behind its numbers."""
    before = 8 if tag == FD else 0
    if len(item) < before + _PSEUDO.size:
        raise Torn(f"an item of {len(item)} bytes says of what has no path what it is")
    kind, inode = _PSEUDO.unpack_from(item, before)
    name = item[before + _PSEUDO.size :]
    if kind in _BY_INODE:
        text = b"%s:[%d]" % (_BY_INODE[kind], inode)
    elif kind in _ANONYMOUS:
        text = b"anon_inode:" + (name or b"[pidfd]")
    else:
        text = b"/%s (deleted)" % name
    return item[:before] + text


def read_items(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, bytes]]:
    """(tag, more, bytes) of each item. Raises Torn."""
    while at < end:
        if end - at < 8:
            raise Torn(f"{end - at} bytes are left behind the last item")
        tag, more, length = ITEM.unpack_from(data, at)
        at += 8
        if length > end - at:
            raise Torn(f"an item at {at} says that it has {length} bytes of {end - at}")
        item = data[at : at + length]
        yield tag, more, pseudo_text(tag, item) if more & PSEUDO else item
        at += (length + 7) & ~7


def make_record(
    kind: int,
    *,
    tid: int,
    time_ns: int = 0,
    nr: int = 0,
    result: int = 0,
    args: tuple[int, ...] = (),
    flags: int = 0,
    abi: int = 0,
    items: tuple[tuple[int, bytes], ...] = (),
    more: int = 0,
) -> bytes:
    """The bytes of one record: for the reference backend, and for tests."""
    body = b"".join(
        [ITEM.pack(tag, more, len(text)) + text + bytes(-len(text) % 8) for tag, text in items]
    )
    words = [*args, *[0] * (6 - len(args))]
    return (
        HEAD.pack(HEAD_SIZE + len(body), kind, flags, abi, tid, nr, time_ns, result, *words) + body
    )
