"""Linux system calls that Python does not offer, by ctypes: mounts, namespaces, ids, files.

Not policy: each function is one call with the constants of the kernel's headers, raising
`OSError` whose message names the call. Everything here is hot-path clean (docs/adr/0002) and
safe after `fork` in a single-threaded process. Sources: the man page of the call named in
each docstring; <linux/mount.h>, <linux/sched.h>, <linux/openat2.h>, <linux/stat.h>.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MACHINE = os.uname().machine

# --- call numbers: (x86_64, aarch64); from <asm/unistd_64.h> and <asm-generic/unistd.h>
_NUMBERS = {
    "capget": (125, 90),
    "capset": (126, 91),
    "clone": (56, 220),
    "clone3": (435, 435),
    "close_range": (436, 436),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "kcmp": (312, 272),
    "landlock_add_rule": (445, 445),
    "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "name_to_handle_at": (303, 264),
    "open_tree": (428, 428),
    "openat2": (437, 437),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "renameat2": (316, 276),
    "seccomp": (317, 277),
    "setns": (308, 268),
    "statx": (332, 291),
    "unshare": (272, 97),
}
if MACHINE not in ("x86_64", "aarch64"):
    raise ImportError(f"substrate runs on Linux x86_64 and aarch64, not on {MACHINE}")
_COLUMN = 0 if MACHINE == "x86_64" else 1

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
_CLONE_INTO_CGROUP = 0x200000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x00100000

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_NO_AUTOMOUNT = 0x800
AT_STATX_DONT_SYNC = 0x4000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = 0o2000000

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_SET_CHILD_SUBREAPER = 36
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

STATX_TYPE = 0x1
STATX_BTIME = 0x800
STATX_BASIC_STATS = 0x7FF

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_long = ctypes.c_long


def _typed(*types: Any) -> Any:
    """syscall(2) for one call that is made often: with its types told once it costs half."""
    function = _libc["syscall"]
    function.restype = _long
    function.argtypes = (_long, *types)
    return function


_int, _text, _unsigned = ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
_renameat2 = _typed(_int, _text, _int, _text, _unsigned)
_openat2 = _typed(_int, _text, ctypes.c_void_p, ctypes.c_size_t)
_open_tree = _typed(_int, _text, _unsigned)
_move_mount = _typed(_int, _text, _int, _text, _unsigned)
_RENAMEAT2 = _NUMBERS["renameat2"][_COLUMN]
_OPENAT2 = _NUMBERS["openat2"][_COLUMN]
_OPEN_TREE = _NUMBERS["open_tree"][_COLUMN]
_MOVE_MOUNT = _NUMBERS["move_mount"][_COLUMN]
_u64 = ctypes.c_uint64
_prctl = _libc["prctl"]
_prctl.argtypes = (_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def _failed(call: str, detail: str = "") -> OSError:
    number = ctypes.get_errno()
    text = f"{call}{f' {detail}' if detail else ''}: {os.strerror(number)}"
    return OSError(number, text)


def syscall(name: str, *arguments: Any) -> int:
    """The system call `name` (syscall(2)); integers are passed as C long.

    Raises OSError with the errno of the call."""
    converted = [_long(a) if isinstance(a, int) else a for a in arguments]
    result = _syscall(_long(_NUMBERS[name][_COLUMN]), *converted)
    if result < 0:
        raise _failed(name)
    return int(result)


def _c(text: str | bytes | None) -> bytes | None:
    return os.fsencode(text) if isinstance(text, str) else text


# --- processes and namespaces


def clone(flags: int, signal_number: int = 17) -> int:
    """clone(2) as fork: 0 in the child, its pid in the parent. 17 is SIGCHLD.

    Python's fork hooks do not run: only for a single-threaded process whose child soon
    execs or exits by `os._exit`."""
    return syscall("clone", flags | signal_number, 0, 0, 0, 0)


def clone_into(group_fd: int, flags: int, signal_number: int = 17) -> int:
    """clone3(2) as `clone`, with the child born in the cgroup (version 2) of a directory fd.

    Raises OSError: E2BIG before Linux 5.7; ENOSYS or EPERM where a container's filter knows no
    clone3."""
    # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size,
    # tls, set_tid, set_tid_size, cgroup
    arguments = (_u64 * 11)(
        flags | _CLONE_INTO_CGROUP, 0, 0, 0, signal_number, 0, 0, 0, 0, 0, group_fd
    )
    return syscall("clone3", ctypes.byref(arguments), ctypes.sizeof(arguments))


def unshare(flags: int) -> None:
    """unshare(2)."""
    syscall("unshare", flags)


def setns(fd: int, flags: int) -> None:
    """setns(2); `fd` is a namespace file or a pidfd."""
    syscall("setns", fd, flags)


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks after boot; 0 for one that is not there, or dead and
    not waited for yet: with its pid, what tells it from a later one (proc_pid_stat(5))."""
    try:
        fd = os.open(b"/proc/%d/stat" % pid, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        fields = os.read(fd, 4096).rpartition(b")")[2].split()
    except ProcessLookupError:
        return 0
    finally:
        os.close(fd)
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def boot_id() -> str:
    """Of this boot of the kernel (random(4))."""
    fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64).decode("ascii").strip()
    finally:
        os.close(fd)


def pidfd_open(pid: int) -> int:
    """pidfd_open(2): a close-on-exec fd for the process."""
    return syscall("pidfd_open", pid, 0)


def pidfd_send_signal(fd: int, signal_number: int) -> None:
    """pidfd_send_signal(2)."""
    syscall("pidfd_send_signal", fd, signal_number, None, 0)


def prctl(option: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> int:
    """prctl(2)."""
    result = _prctl(option, a, b, c, d)
    if result < 0:
        raise _failed("prctl", str(option))
    return int(result)


def close_range(first: int, last: int = 0xFFFFFFFF) -> None:
    """close_range(2): closes the fds first…last."""
    syscall("close_range", first, last, 0)


def mark_close_on_exec(first: int) -> None:
    """close_range(2) CLOSE_RANGE_CLOEXEC: every fd from `first` on closes at exec."""
    syscall("close_range", first, 0xFFFFFFFF, 4)


def same_open_file(fd_a: int, fd_b: int) -> bool:
    """Whether two fds share one open file description: kcmp(2) KCMP_FILE.

    Where kcmp is refused, pipes, ttys and sockets are compared by device and inode, which
    is the same answer for them in practice; other files count as different."""
    pid = os.getpid()
    try:
        return syscall("kcmp", pid, pid, 0, fd_a, fd_b) == 0
    except OSError:
        a, b = os.fstat(fd_a), os.fstat(fd_b)
        kind = a.st_mode & 0o170000
        return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) and kind in (
            0o010000,
            0o020000,
            0o140000,
        )


_CAP_VERSION_3 = 0x20080522


def set_capabilities(effective: int, permitted: int, inheritable: int = 0) -> None:
    """capset(2) of the calling thread; each set is a bit mask by capability number."""
    header = (ctypes.c_uint32 * 2)(_CAP_VERSION_3, 0)
    low, high = 0xFFFFFFFF, 32
    data = (ctypes.c_uint32 * 6)(
        effective & low,
        permitted & low,
        inheritable & low,
        effective >> high,
        permitted >> high,
        inheritable >> high,
    )
    syscall("capset", ctypes.byref(header), ctypes.byref(data))


CAP_SYS_PTRACE = 19


def effective_capabilities() -> int:
    """capget(2) of the calling thread: a bit mask by capability number."""
    header = (ctypes.c_uint32 * 2)(_CAP_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    syscall("capget", ctypes.byref(header), ctypes.byref(data))
    return int(data[0] | data[3] << 32)


# --- mounts


def mount(
    source: str | bytes | None,
    target: str | bytes,
    fstype: str | None,
    flags: int = 0,
    data: str | None = None,
) -> None:
    """mount(2)."""
    result = _libc.mount(_c(source), _c(target), _c(fstype), ctypes.c_ulong(flags), _c(data))
    if result < 0:
        raise _failed("mount", f"{os.fsdecode(target)} ({fstype or f'flags {flags:#x}'})")


def umount(target: str | bytes, flags: int = MNT_DETACH) -> None:
    """umount2(2)."""
    if _libc.umount2(_c(target), flags) < 0:
        raise _failed("umount2", os.fsdecode(target))


def pivot_root_here(over: int = 0) -> None:
    """pivot_root(2) of "." onto itself, the old root detached; the new root is the cwd. `over`: how
    many mounts lie on the old root. Raises OSError, also where something is left over the new one:
    it could be reached by `..`. There must be a /dev."""
    syscall("pivot_root", b".", b".")
    for _ in range(1 + over):
        umount(b".")  # the topmost
    here = os.stat(".")
    os.chdir("/")
    above = os.stat("/dev/..")
    if (above.st_dev, above.st_ino) != (here.st_dev, here.st_ino):
        raise OSError(errno.EBUSY, "pivot_root: another tree still lies over the new one")


class MountFailed(OSError):
    """A step of a mount failed; `kernel_text` is what the kernel wrote to the fsopen fd."""

    kernel_text: str = ""


def new_mount(fstype: str, options: list[tuple[str, str | int | None]], attributes: int = 0) -> int:
    """fsopen(2) + fsconfig + fsmount: a detached mount as an fd (close-on-exec).

    Options are (key, text), (key, fd number) or (key, None) for a flag."""
    fd = syscall("fsopen", fstype.encode(), 1)
    step = "fsopen"
    try:
        for key, given in options:
            step = f"{fstype} option {key}" + (f"={given}" if isinstance(given, str) else "")
            name = key.encode()
            if given is None:
                syscall("fsconfig", fd, 0, name, None, 0)
            elif isinstance(given, int):
                syscall("fsconfig", fd, 5, name, None, given)
            else:
                syscall("fsconfig", fd, 1, name, os.fsencode(given), 0)
        step = f"{fstype} create"
        syscall("fsconfig", fd, 6, None, None, 0)
        step = f"{fstype} mount"
        return syscall("fsmount", fd, 1, attributes)
    except OSError as error:
        failed = MountFailed(error.errno, f"{step}: {os.strerror(error.errno or 0)}")
        failed.kernel_text = _kernel_text(fd)
        if failed.kernel_text:
            failed.strerror = f"{failed.strerror} (kernel: {failed.kernel_text})"
        raise failed from None
    finally:
        os.close(fd)


def _kernel_text(fd: int) -> str:
    """The messages that wait on a filesystem context fd, joined (fsopen(2))."""
    lines = []
    while True:
        try:
            lines.append(os.read(fd, 4096).decode(errors="replace").strip())
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EAGAIN, errno.ENOMSG, errno.EINVAL):
                lines.append(f"(its message could not be read: {error.strerror})")
            return "; ".join(lines)


def open_tree(path: str | bytes, *, recursive: bool = False, dir_fd: int = AT_FDCWD) -> int:
    """open_tree(2) OPEN_TREE_CLONE: a detached bind of `path` as an fd."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    empty = AT_EMPTY_PATH if not path else 0
    fd = _open_tree(_OPEN_TREE, dir_fd, _c(path), flags | empty)
    if fd < 0:
        raise _failed("open_tree")
    return int(fd)


def move_mount(fd: int, target: str | bytes, *, dir_fd: int = AT_FDCWD) -> None:
    """move_mount(2): attaches a detached mount at `target`."""
    flags = 0x4 | (0x40 if not target else 0)  # F_EMPTY_PATH, T_EMPTY_PATH
    if _move_mount(_MOVE_MOUNT, fd, b"", dir_fd, _c(target), flags) < 0:
        raise _failed("move_mount")


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount_setattr(
    fd: int,
    path: str | bytes = b"",
    *,
    set_flags: int = 0,
    clear_flags: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
    recursive: bool = False,
) -> None:
    """mount_setattr(2) on the mount at `path` relative to `fd` (itself when empty)."""
    attributes = _MountAttributes(set_flags, clear_flags, propagation, userns_fd)
    flags = (AT_EMPTY_PATH if not path else 0) | (AT_RECURSIVE if recursive else 0)
    syscall("mount_setattr", fd, _c(path), flags, ctypes.byref(attributes), 32)


# --- files


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def openat2(dir_fd: int, path: str | bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2), close-on-exec; `resolve` is a mask of RESOLVE_*."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    fd = _openat2(_OPENAT2, dir_fd, _c(path), ctypes.addressof(how), 24)
    if fd < 0:
        raise _failed("openat2")
    return int(fd)


def renameat2(
    old_dir_fd: int, old: str | bytes, new_dir_fd: int, new: str | bytes, flags: int
) -> None:
    """renameat2(2); flags RENAME_NOREPLACE or RENAME_EXCHANGE."""
    if _renameat2(_RENAMEAT2, old_dir_fd, _c(old), new_dir_fd, _c(new), flags) < 0:
        raise _failed("renameat2")


def chown_fd(fd: int, uid: int, gid: int) -> None:
    """fchownat(2) AT_EMPTY_PATH: the owner of what an O_PATH fd refers to, a symlink too."""
    if _libc.fchownat(fd, b"", ctypes.c_uint(uid), ctypes.c_uint(gid), AT_EMPTY_PATH) < 0:
        raise _failed("fchownat")


def syncfs(fd: int) -> None:
    """syncfs(2): everything dirty of the filesystem of `fd` is on disk afterwards."""
    if _libc.syncfs(fd) < 0:
        raise _failed("syncfs")


class _Statfs(ctypes.Structure):
    _fields_ = (("type", ctypes.c_long), ("rest", ctypes.c_long * 15))


def filesystem_magic(fd: int) -> int:
    """fstatfs(2): what kind of filesystem an fd lies on (<linux/magic.h>)."""
    buffer = _Statfs()
    if _libc.fstatfs(fd, ctypes.byref(buffer)) < 0:
        raise _failed("fstatfs")
    return int(buffer.type)


def sync_around(directory_fd: int) -> None:
    """Everything dirty of the filesystem that a directory lies on is on disk afterwards, whatever
    kind of fd it is; of all filesystems (sync(2)) where its mode keeps us from opening it."""
    try:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory_fd)
    except PermissionError:
        os.sync()
        return
    try:
        syncfs(fd)
    finally:
        os.close(fd)


class _StatxTime(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_int64), ("nsec", ctypes.c_uint32), ("reserved", ctypes.c_int32))


class _Statx(ctypes.Structure):
    _fields_ = (
        ("mask", ctypes.c_uint32),
        ("blksize", ctypes.c_uint32),
        ("attributes", ctypes.c_uint64),
        ("nlink", ctypes.c_uint32),
        ("uid", ctypes.c_uint32),
        ("gid", ctypes.c_uint32),
        ("mode", ctypes.c_uint16),
        ("pad", ctypes.c_uint16),
        ("ino", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("blocks", ctypes.c_uint64),
        ("attributes_mask", ctypes.c_uint64),
        ("atime", _StatxTime),
        ("btime", _StatxTime),
        ("ctime", _StatxTime),
        ("mtime", _StatxTime),
        ("rest", ctypes.c_uint64 * 16),
    )


def birth_time_ns(dir_fd: int, name: str | bytes) -> int | None:
    """The creation time of a file in nanoseconds (statx(2) STATX_BTIME, symlinks not
    followed), or None where the filesystem has none, or a filter refuses to tell. An empty name
    means `dir_fd` itself."""
    buffer = _Statx()
    flags = AT_SYMLINK_NOFOLLOW | (AT_EMPTY_PATH if not name else 0)
    try:
        syscall("statx", dir_fd, _c(name), flags, STATX_BTIME, ctypes.byref(buffer))
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):  # statx itself gives neither
            raise
        return None
    if not buffer.mask & STATX_BTIME:
        return None
    return int(buffer.btime.sec) * 1_000_000_000 + int(buffer.btime.nsec)


def cached_type(path: str | bytes) -> int:
    """The type bits of a file's mode as the kernel has them: statx(2) AT_STATX_DONT_SYNC asks
    no server of a network filesystem, AT_NO_AUTOMOUNT mounts nothing. Symlinks are not followed."""
    buffer = _Statx()
    flags = AT_SYMLINK_NOFOLLOW | AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT
    syscall("statx", AT_FDCWD, _c(path), flags, STATX_TYPE, ctypes.byref(buffer))
    return int(buffer.mode) & 0o170000


# --- seccomp


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install_filter(program: bytes, flags: int = 0) -> int:
    """seccomp(2) SECCOMP_SET_MODE_FILTER with a program of 8-byte instructions.

    Needs no_new_privs or CAP_SYS_ADMIN. Returns the call's result (a listener fd when
    asked for by `flags`)."""
    if len(program) % 8 or len(program) // 8 > 4096:
        raise ValueError(
            f"a filter of {len(program)} bytes is not one of at most 4096 instructions"
        )
    buffer = ctypes.create_string_buffer(program, len(program))
    return syscall(
        "seccomp",
        1,
        flags,
        ctypes.byref(_SockFprog(len(program) // 8, ctypes.addressof(buffer))),
    )


# --- Landlock (landlock(7))

_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET = 1


def landlock_abi() -> int:
    """The version of Landlock that this kernel enforces; 0 where it is missing or switched off."""
    try:
        return syscall("landlock_create_ruleset", None, 0, _LANDLOCK_CREATE_RULESET_VERSION)
    except OSError:
        return 0


def landlock_scope_abstract_sockets() -> None:
    """From here on this process and its children connect to no abstract socket of others (Linux
    6.12, version 6). Needs no_new_privs."""
    # struct landlock_ruleset_attr: handled_access_fs, handled_access_net, scoped
    attributes = (_u64 * 3)(0, 0, _LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET)
    fd = syscall("landlock_create_ruleset", ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    try:
        syscall("landlock_restrict_self", fd, 0)
    finally:
        os.close(fd)


if sys.byteorder != "little":
    raise ImportError("only little-endian machines are supported")
