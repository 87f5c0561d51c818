"""The system calls that capture looks at: numbers, and the shape of their arguments.

One table for all backends: the filters are made from it, the C loop and the eBPF programs are
given it as bytes, and the decoder reads arguments by it. Not a full list of system calls (that is
`numbers.py`, for level `all` and for names only). Plain data; no I/O.

A *shape* is 16 bytes, as `SHAPE` packs it; the same layout is `struct shape` in c/engine.h:
    u8 path, dir     which argument (0-5) is the path, and the directory fd it is relative to
    u8 path2, dir2   of a second path
    u8 address       which argument points to a socket address; its length is the one behind
    u8 extra         what it is depends on the flags
    u8 level         EXEC, FILES, LOOK or FDS
    u8 intent        INTENTS
    u32 flags        below
    u32 reserved     0
An argument that the call does not have is NONE (255). `dir` without `path`: the call acts on
that descriptor. `path` without `dir`: relative to the working directory.

Sources: the man pages of the calls; <asm/unistd_64.h>, <asm/unistd_32.h>, <asm-generic/unistd.h>,
the kernel's syscall tables for what is newer than these; tests compare all numbers.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

MACHINE: Final = os.uname().machine
#: of records: which table a call number belongs to
NATIVE, I386, X32 = 0, 1, 2
X32_BIT: Final = 0x40000000
AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003}

NONE: Final = 255
SHAPE: Final = struct.Struct("=8BII")

#: levels: processes; files and network; lookups (stat, readlink, getdents); descriptors
EXEC, FILES, LOOK, FDS = range(4)

#: what a call does to what it names; OPEN is decided by its flags
INTENTS: Final = (
    *("none", "open", "create", "delete", "rename", "link", "meta", "write"),
    *("look", "list", "exec", "net", "cwd", "fd"),
)
(
    I_NONE, I_OPEN, I_CREATE, I_DELETE, I_RENAME, I_LINK, I_META, I_WRITE,
    I_LOOK, I_LIST, I_EXEC, I_NET, I_CWD, I_FD,
) = range(14)  # fmt: skip

# flags of a shape
OPENS: Final = 1 << 0  # the result is a descriptor of `path`: the kernel's own path is read then
MOVES: Final = 1 << 1  # the working directory is another one afterwards
ROOTS: Final = 1 << 2  # so is the root
PROGRAM: Final = 1 << 3  # argv at the argument behind `path`
PAIR: Final = 1 << 4  # `extra` points to two descriptors (int[2]) afterwards
HOW: Final = 1 << 5  # `extra` points to struct open_how, its size is the argument behind
MESSAGE: Final = 1 << 6  # `extra` points to struct msghdr
MESSAGES: Final = 1 << 7  # `extra` points to struct mmsghdr[], their number is the argument behind
ADDRESS_OUT: Final = 1 << 8  # the address is written by the call, its length lies at a pointer
CLONES: Final = 1 << 9  # flags in argument 0
CLONES_3: Final = 1 << 10  # argument 0 points to struct clone_args
NAME: Final = 1 << 11  # `path` is a name, and no path of the file system
TARGET: Final = 1 << 12  # `path` is the text of a symbolic link, relative to nothing
DATA: Final = 1 << 13  # argument 1 points to bytes that are sent, argument 2 is their number
SOCKETCALL: Final = 1 << 14  # i386: argument 0 says which call, argument 1 points to its arguments
NEW_SOCKET: Final = 1 << 15  # the result is a new socket
CLOSES: Final = 1 << 16  # `dir` is closed, or all from argument 0 to argument 1
COPIES: Final = 1 << 17  # the result is a copy of descriptor `dir`
LISTENS: Final = 1 << 18  # `dir` has an address of its own afterwards
REACHES: Final = 1 << 19  # `dir` reaches out, by a port that it has afterwards at the latest


def _shape(
    level: int,
    intent: int,
    path: int = NONE,
    dir: int = NONE,
    path2: int = NONE,
    dir2: int = NONE,
    *,
    address: int = NONE,
    extra: int = NONE,
    flags: int = 0,
) -> bytes:
    return SHAPE.pack(path, dir, path2, dir2, address, extra, level, intent, flags, 0)


_TRUNCATE = _shape(FILES, I_WRITE, 0)
_CHOWN = _shape(FILES, I_META, 0)
_FD_META = _shape(FILES, I_META, dir=0)
_STAT = _shape(LOOK, I_LOOK, 0)
_STAT_AT = _shape(LOOK, I_LOOK, 1, 0)
_OPEN = _shape(FILES, I_OPEN, 0, flags=OPENS)
_CREDENTIALS = _shape(EXEC, I_NONE)

#: name -> (x86_64, aarch64, i386, shape)
CALLS: Final[dict[str, tuple[int | None, int | None, int | None, bytes]]] = {
    # programs and processes
    "execve": (59, 221, 11, _shape(EXEC, I_EXEC, 0, flags=PROGRAM)),
    "execveat": (322, 281, 358, _shape(EXEC, I_EXEC, 1, 0, flags=PROGRAM)),
    "clone": (56, 220, 120, _shape(EXEC, I_NONE, flags=CLONES)),
    "clone3": (435, 435, 435, _shape(EXEC, I_NONE, flags=CLONES_3)),
    "setuid": (105, 146, 213, _CREDENTIALS),
    "setgid": (106, 144, 214, _CREDENTIALS),
    "setreuid": (113, 145, 203, _CREDENTIALS),
    "setregid": (114, 143, 204, _CREDENTIALS),
    "setresuid": (117, 147, 208, _CREDENTIALS),
    "setresgid": (119, 149, 210, _CREDENTIALS),
    # opening
    "open": (2, None, 5, _OPEN),
    "creat": (85, None, 8, _OPEN),
    "openat": (257, 56, 295, _shape(FILES, I_OPEN, 1, 0, flags=OPENS)),
    "openat2": (437, 437, 437, _shape(FILES, I_OPEN, 1, 0, extra=2, flags=OPENS | HOW)),
    "open_by_handle_at": (304, 265, 342, _shape(FILES, I_OPEN, dir=0, flags=OPENS)),
    "memfd_create": (319, 279, 356, _shape(FILES, I_FD, 0, flags=OPENS | NAME)),
    "pipe": (22, None, 42, _shape(FILES, I_FD, extra=0, flags=PAIR)),
    "pipe2": (293, 59, 331, _shape(FILES, I_FD, extra=0, flags=PAIR)),
    # names
    "unlink": (87, None, 10, _shape(FILES, I_DELETE, 0)),
    "unlinkat": (263, 35, 301, _shape(FILES, I_DELETE, 1, 0)),
    "rmdir": (84, None, 40, _shape(FILES, I_DELETE, 0)),
    "rename": (82, None, 38, _shape(FILES, I_RENAME, 0, path2=1)),
    "renameat": (264, 38, 302, _shape(FILES, I_RENAME, 1, 0, 3, 2)),
    "renameat2": (316, 276, 353, _shape(FILES, I_RENAME, 1, 0, 3, 2)),
    "link": (86, None, 9, _shape(FILES, I_LINK, 0, path2=1)),
    "linkat": (265, 37, 303, _shape(FILES, I_LINK, 1, 0, 3, 2)),
    "symlink": (88, None, 83, _shape(FILES, I_LINK, 0, path2=1, flags=TARGET)),
    "symlinkat": (266, 36, 304, _shape(FILES, I_LINK, 0, path2=2, dir2=1, flags=TARGET)),
    "mkdir": (83, None, 39, _shape(FILES, I_CREATE, 0)),
    "mkdirat": (258, 34, 296, _shape(FILES, I_CREATE, 1, 0)),
    "mknod": (133, None, 14, _shape(FILES, I_CREATE, 0)),
    "mknodat": (259, 33, 297, _shape(FILES, I_CREATE, 1, 0)),
    # contents and attributes
    "truncate": (76, 45, 92, _TRUNCATE),
    "truncate64": (None, None, 193, _TRUNCATE),
    "ftruncate": (77, 46, 93, _shape(FILES, I_WRITE, dir=0)),
    "ftruncate64": (None, None, 194, _shape(FILES, I_WRITE, dir=0)),
    "chmod": (90, None, 15, _shape(FILES, I_META, 0)),
    "fchmod": (91, 52, 94, _FD_META),
    "fchmodat": (268, 53, 306, _shape(FILES, I_META, 1, 0)),
    "fchmodat2": (452, 452, 452, _shape(FILES, I_META, 1, 0)),
    "chown": (92, None, 212, _CHOWN),
    "lchown": (94, None, 198, _CHOWN),
    "fchown": (93, 55, 207, _FD_META),
    "fchownat": (260, 54, 298, _shape(FILES, I_META, 1, 0)),
    "setxattr": (188, 5, 226, _shape(FILES, I_META, 0)),
    "lsetxattr": (189, 6, 227, _shape(FILES, I_META, 0)),
    "fsetxattr": (190, 7, 228, _FD_META),
    "setxattrat": (463, 463, 463, _shape(FILES, I_META, 1, 0)),
    "file_setattr": (469, 469, 469, _shape(FILES, I_META, 1, 0)),
    "removexattr": (197, 14, 235, _shape(FILES, I_META, 0)),
    "lremovexattr": (198, 15, 236, _shape(FILES, I_META, 0)),
    "fremovexattr": (199, 16, 237, _FD_META),
    "removexattrat": (466, 466, 466, _shape(FILES, I_META, 1, 0)),
    "utime": (132, None, 30, _shape(FILES, I_META, 0)),
    "utimes": (235, None, 271, _shape(FILES, I_META, 0)),
    "futimesat": (261, None, 299, _shape(FILES, I_META, 1, 0)),
    "utimensat": (280, 88, 320, _shape(FILES, I_META, 1, 0)),
    # where a process stands
    "chdir": (80, 49, 12, _shape(FILES, I_CWD, 0, flags=MOVES)),
    "fchdir": (81, 50, 133, _shape(FILES, I_CWD, dir=0, flags=MOVES)),
    "chroot": (161, 51, 61, _shape(FILES, I_CWD, 0, flags=ROOTS)),
    # network
    "socket": (41, 198, 359, _shape(FILES, I_NET, flags=NEW_SOCKET)),
    "socketpair": (53, 199, 360, _shape(FILES, I_NET, extra=3, flags=PAIR)),
    "connect": (42, 203, 362, _shape(FILES, I_NET, dir=0, address=1, flags=REACHES)),
    "bind": (49, 200, 361, _shape(FILES, I_NET, dir=0, address=1)),
    "listen": (50, 201, 363, _shape(FILES, I_NET, dir=0, flags=LISTENS)),
    "accept": (43, 202, None, _shape(FILES, I_NET, dir=0, address=1, flags=ADDRESS_OUT)),
    "accept4": (288, 242, 364, _shape(FILES, I_NET, dir=0, address=1, flags=ADDRESS_OUT)),
    "sendto": (44, 206, 369, _shape(FILES, I_NET, dir=0, address=4, flags=DATA | REACHES)),
    "sendmsg": (46, 211, 370, _shape(FILES, I_NET, dir=0, extra=1, flags=MESSAGE | REACHES)),
    "sendmmsg": (307, 269, 345, _shape(FILES, I_NET, dir=0, extra=1, flags=MESSAGES | REACHES)),
    "socketcall": (None, None, 102, _shape(FILES, I_NET, flags=SOCKETCALL)),
    # lookups: only where they are cheap, or asked for
    "stat": (4, None, 106, _STAT),
    "stat64": (None, None, 195, _STAT),
    "lstat": (6, None, 107, _STAT),
    "lstat64": (None, None, 196, _STAT),
    "newfstatat": (262, 79, 300, _STAT_AT),
    "statx": (332, 291, 383, _STAT_AT),
    "access": (21, None, 33, _STAT),
    "faccessat": (269, 48, 307, _STAT_AT),
    "faccessat2": (439, 439, 439, _STAT_AT),
    "readlink": (89, None, 85, _STAT),
    "readlinkat": (267, 78, 305, _STAT_AT),
    "getxattr": (191, 8, 229, _STAT),
    "lgetxattr": (192, 9, 230, _STAT),
    "statfs": (137, 43, 99, _STAT),
    "getdents": (78, None, 141, _shape(LOOK, I_LIST, dir=0)),
    "getdents64": (217, 61, 220, _shape(LOOK, I_LIST, dir=0)),
    # descriptors: only where paths cannot be read at the moment of the call
    "dup": (32, 23, 41, _shape(FDS, I_FD, dir=0, flags=COPIES)),
    "dup2": (33, None, 63, _shape(FDS, I_FD, dir=0, flags=COPIES)),
    "dup3": (292, 24, 330, _shape(FDS, I_FD, dir=0, flags=COPIES)),
    "fcntl": (72, 25, 55, _shape(FDS, I_FD, dir=0)),
    "close": (3, 57, 6, _shape(FDS, I_FD, dir=0, flags=CLOSES)),
    "close_range": (436, 436, 436, _shape(FDS, I_FD, flags=CLOSES)),
}
#: what x32 numbers in its own way (<asm/unistd_x32.h>)
_X32: Final = {"execve": 520, "execveat": 545, "sendmsg": 518, "sendmmsg": 538}
#: further calls of i386 that have the same shape, by the name of what they do: those for ids of 16 bits,
#: those that came before (oldstat, oldlstat, readdir), those for numbers of 64 bits (fcntl64, statfs64,
#: utimensat_time64)
_I386_ALSO: Final[tuple[tuple[str, int], ...]] = (
    ("setuid", 23),
    ("setgid", 46),
    ("setreuid", 70),
    ("setregid", 71),
    ("setresuid", 164),
    ("setresgid", 170),
    ("chown", 182),
    ("lchown", 16),
    ("fchown", 95),
    ("stat", 18),
    ("lstat", 84),
    ("getdents", 89),
    ("fcntl", 221),
    ("statfs", 268),
    ("utimensat", 412),
)
_COLUMNS: Final = {"x86_64": 0, "aarch64": 1, "i386": 2}


def number(name: str, machine: str = MACHINE) -> int | None:
    """The number of a call; None where that machine (or `i386`) has none."""
    return _numbers(name)[_COLUMNS[machine]]


def _numbers(name: str) -> tuple[int | None, int | None, int | None]:
    return CALLS[name][:3]


def by_number(machine: str = MACHINE, abi: int = NATIVE) -> dict[int, tuple[str, bytes]]:
    """Number -> (name, shape) of one table of a machine."""
    if abi == I386:
        found = {row[2]: (name, row[3]) for name, row in CALLS.items() if row[2] is not None}
        found.update((nr, (name, CALLS[name][3])) for name, nr in _I386_ALSO)
        return found
    column = _COLUMNS[machine]
    found = {}
    for name, row in CALLS.items():
        nr = _numbers(name)[column]
        if nr is not None:
            found[nr] = name, row[3]
    if abi == X32:
        for name, nr in _X32.items():
            found[nr] = name, CALLS[name][3]
    return found


def shape_of(name: str) -> tuple[int, ...]:
    """(path, dir, path2, dir2, address, extra, level, intent, flags, 0)."""
    return SHAPE.unpack(CALLS[name][3])
