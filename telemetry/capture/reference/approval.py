"""What an exec will run, found before it happens, and whether that is what ran.

The check at the entry of the call alone is lost to races: another thread changes the path behind
it. So `find` notes what was approved (name, argv, the file and the interpreters that its first
line names, by device and inode), and after the kernel has loaded the program, before its first
instruction, `differs` compares that with what the kernel says. Invariants: what cannot be found is
not approved; finding changes nothing in the process, and opens a file for reading only when it is
a regular one.

Not known here: interpreters of binfmt_misc. What they run differs from what was approved.

Sources: execve(2), execveat(2), openat2(2); fs/exec.c, fs/binfmt_script.c (load_script).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import struct
from typing import Final

from substrate.telemetry.capture import calls
from substrate.telemetry.capture.reference import memory, proc
from substrate.telemetry.capture.reference.memory import Unreadable
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.telemetry.capture.reference.arguments import Call

#: A longer argv than the kernel takes (3/4 of 8 MiB, fs/exec.c).
MOST_ARGV: Final = 8 << 20
#: fs/exec.c: interpreters of interpreters
_MOST_INTERPRETERS: Final = 5
_FIRST_LINE: Final = 256  # BINPRM_BUF_SIZE

_AT_EMPTY_PATH, _AT_SYMLINK_NOFOLLOW = 0x1000, 0x100
_RESOLVE_IN_ROOT: Final = 0x10
_OPENAT2: Final = 437
_HOW: Final = struct.Struct("=3Q")
_PATH_FLAGS: Final = os.O_PATH | os.O_CLOEXEC

#: The kernel fails such an exec by itself, with an error that PATH searches rely on.
_LEFT_TO_KERNEL: Final = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENAMETOOLONG, errno.EBADF),
)
#: links of /proc that lead to files and not to names, which openat2 does not follow here
_MAGIC: Final = re.compile(rb"/(?:proc|dev/fd)/+[^/].*", re.DOTALL)
_OWN: Final = re.compile(rb"/proc/+(?:self|thread-self)/+(exe|fd/+\d+)")
_DEV_FD: Final = re.compile(rb"/dev/+fd/+(\d+)")

_libc_syscall = ctypes.CDLL(None, use_errno=True).syscall
_libc_syscall.argtypes = (
    *(ctypes.c_long, ctypes.c_long, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t),
)
_libc_syscall.restype = ctypes.c_long


class LeftToKernel(Exception):
    """The target is missing or not executable: nobody is asked, and nothing may come of it.
    `argv`: as it was given, where that was read."""

    argv: bytes | None = None


class NotFound(Exception):
    """Its path, its argv or its file cannot be read: there is nothing to compare with later."""


@value
class Approval:
    """What may run. `identity`: (device, inode) of what the kernel loads, the last interpreter
    where the file is a script; `file`: of the script itself, None where it is none."""

    #: AT_EXECFN, the name that the kernel keeps
    name: bytes
    identity: tuple[int, int]
    #: argv as the process will find it, each word with a NUL behind it
    command_line: bytes
    #: argv as it was given
    argv: bytes
    #: the kernel's paths of the file and of its interpreters
    programs: tuple[bytes, ...]
    #: of a script: the words that the kernel puts before its name, each with a NUL behind it
    before: bytes
    #: what the file is called by
    called: tuple[bytes, ...]
    #: of a script: its interpreters as the lines have them, and whether there is an argument
    lines: tuple[tuple[bytes, bool], ...] = ()
    file: tuple[int, int] | None = None


def find(call: Call) -> Approval:
    """Of a task stopped at the entry of an exec. Raises LeftToKernel, NotFound."""
    index = call.shape[0]
    flags = call.args[4] & 0xFFFFFFFF if call.name == "execveat" else 0
    folder = call.fd(call.shape[1]) if call.shape[1] != calls.NONE else proc.AT_FDCWD
    try:
        path, cut = memory.read_text(call.tid, call.args[index])
        if cut:
            raise LeftToKernel
        argv, cut = memory.read_words(call.tid, call.args[index + 1], call.width, MOST_ARGV)
    except Unreadable:
        raise NotFound from None
    if cut:
        raise NotFound
    try:
        target = _open(call.tid, path, folder, flags)
        try:
            return _follow(call.tid, target, path, exec_name(path, folder), argv)
        finally:
            os.close(target)
    except LeftToKernel as left:
        left.argv = argv
        raise


def exec_name(path: bytes, folder: int) -> bytes:
    """AT_EXECFN of an exec (fs/exec.c, alloc_bprm)."""
    if folder == proc.AT_FDCWD or path.startswith(b"/"):
        return path
    return b"/dev/fd/%d/%s" % (folder, path) if path else b"/dev/fd/%d" % folder


#: nothing of it can be read, so nothing is known to be as it was
UNREAD: Final = "unread"


def differs(tid: int, approval: Approval) -> str:
    """What of the program that the kernel has loaded was not approved, in a word; "" for nothing.

    `tid` is stopped at PTRACE_EVENT_EXEC: its memory is new and no other thread is left. UNREAD for
    one that nobody may look into."""
    runs = proc.program_file(tid)
    if runs is None:
        return UNREAD
    if (runs.st_dev, runs.st_ino) != approval.identity:
        return "file"
    at = proc.exec_name_at(proc.auxiliary(tid))
    try:
        name, cut = memory.read_text(tid, at)
    except Unreadable:
        return UNREAD
    if cut or name != approval.name:
        return "name"
    if proc.command_line(tid) != approval.command_line:
        return "argv"
    return "" if approval.file in (None, _file_of(tid, name)) else "script"


def _file_of(tid: int, name: bytes) -> tuple[int, int]:
    """What a script's name leads to now: its interpreter opens it by that once more."""
    try:
        fd = _resolve(tid, name, proc.AT_FDCWD, 0)
    except OSError:
        return -1, -1
    try:
        now = os.fstat(fd)
        return now.st_dev, now.st_ino
    finally:
        os.close(fd)


def find_script(tid: int, name: bytes, command_line: bytes) -> tuple[bool, os.stat_result | None]:
    """Whether what was just loaded is the interpreter of what was named, and the file of that name,
    where it can be looked at: the kernel has put the name (AT_EXECFN) behind the interpreter, and
    it is another file."""
    if name not in command_line.split(b"\0")[1 : 2 * _MOST_INTERPRETERS + 1]:
        return False, None
    runs = proc.program_file(tid)
    try:
        named = _resolve(tid, name, proc.AT_FDCWD, 0)
    except OSError:
        return True, None  # a descriptor that is closed by now: only a script is named so
    try:
        found = os.fstat(named)
        return (False, None) if runs and os.path.samestat(found, runs) else (True, found)
    finally:
        os.close(named)


def first_line(content: bytes) -> tuple[bytes, bytes | None] | None:
    """(interpreter, its one argument) of a script; None for what the kernel takes for none.

    `content`: at most 256 bytes of the beginning. As load_script reads them."""
    if not content.startswith(b"#!"):
        return None
    buffer = content[:_FIRST_LINE].ljust(_FIRST_LINE, b"\0")
    end = buffer.find(b"\n", 2)
    if end < 0:
        # without a newline the name must at least end within the buffer
        rest = buffer[2:-1].lstrip(b" \t")
        if not rest or not re.search(rb"[ \t\0]", rest):
            return None
        end = _FIRST_LINE - 1
    line = buffer[2:end].rstrip(b" \t").lstrip(b" \t")
    found = re.match(rb"([^ \t\0]*)(?:[ \t]+([^\0]*))?", line)
    if found is None or not found[1]:
        return None
    return found[1], found[2]


def _follow(tid: int, target: int, path: bytes, name: bytes, argv: bytes) -> Approval:
    """The interpreters of an open target, as the kernel follows them."""
    words = argv or b"\0"  # the kernel gives a program one empty word where it was given none
    programs = []
    before = b""
    lines: list[tuple[bytes, bool]] = []
    file: tuple[int, int] | None = None
    called = [path, words.partition(b"\0")[0]]
    fd, script = os.dup(target), name
    try:
        for _ in range(_MOST_INTERPRETERS + 1):
            now = os.fstat(fd)
            if not stat.S_ISREG(now.st_mode) or not now.st_mode & 0o111:
                raise LeftToKernel
            programs.append(os.readlink(b"/proc/self/fd/%d" % fd))
            line = first_line(_beginning(fd))
            if line is None:
                return Approval(
                    name=name,
                    identity=(now.st_dev, now.st_ino),
                    command_line=words,
                    argv=argv,
                    programs=tuple(programs),
                    before=before,
                    called=tuple(called),
                    lines=tuple(lines),
                    file=file,
                )
            interpreter, option = line
            if file is None:
                file = now.st_dev, now.st_ino
            front = [interpreter, script] if option is None else [interpreter, option, script]
            words = b"".join([word + b"\0" for word in front]) + words.partition(b"\0")[2]
            before = b"".join([word + b"\0" for word in front[:-1]]) + before
            lines.append((interpreter, option is not None))
            script = interpreter
            following = _open(tid, interpreter, proc.AT_FDCWD, 0)
            os.close(fd)
            fd = following
        raise LeftToKernel  # too many of them
    finally:
        os.close(fd)


def _beginning(fd: int) -> bytes:
    """Of a file that is open by O_PATH, and is a regular one."""
    try:
        readable = os.open(b"/proc/self/fd/%d" % fd, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        raise NotFound from None  # the program will hide its memory too
    try:
        return os.pread(readable, _FIRST_LINE, 0)
    except OSError:
        raise NotFound from None
    finally:
        os.close(readable)


def _open(tid: int, path: bytes, folder: int, flags: int) -> int:
    """An O_PATH descriptor of what `path` means to the task. Raises LeftToKernel, NotFound."""
    try:
        return _resolve(tid, path, folder, flags)
    except OSError as error:
        if error.errno in _LEFT_TO_KERNEL:
            raise LeftToKernel from None
        raise NotFound from None


def _resolve(tid: int, path: bytes, folder: int, flags: int) -> int:
    here = b"/proc/%d/cwd" % tid if folder == proc.AT_FDCWD else b"/proc/%d/fd/%d" % (tid, folder)
    if not path:
        if not flags & _AT_EMPTY_PATH:
            raise FileNotFoundError(errno.ENOENT, "empty path")
        return os.open(here, _PATH_FLAGS)
    extra = os.O_NOFOLLOW if flags & _AT_SYMLINK_NOFOLLOW else 0
    magic = _magic(tid, path)
    if magic is not None:
        return os.open(magic, _PATH_FLAGS | extra)
    root = b"/proc/%d/root" % tid
    if not path.startswith(b"/"):
        seen = _seen_from_root(os.readlink(here), os.readlink(root))
        if seen is None or not _is_same(root + seen, here):
            return os.open(here + b"/" + path, _PATH_FLAGS | extra)
        path = seen + b"/" + path
    top = os.open(root, _PATH_FLAGS | os.O_DIRECTORY)
    try:
        return _open_in_root(top, path, _PATH_FLAGS | extra)
    finally:
        os.close(top)


def _magic(tid: int, path: bytes) -> bytes | None:
    """The name here of a path to a link of /proc. `self` would be us. Should the process have
    something else there, then what runs differs from what was found here."""
    own = _OWN.fullmatch(path)
    if own is not None:
        return b"/proc/%d/%s" % (tid, own[1])
    own = _DEV_FD.fullmatch(path)
    if own is not None:
        return b"/proc/%d/fd/%s" % (tid, own[1])
    return b"/proc/%d/root%s" % (tid, path) if _MAGIC.fullmatch(path) else None


def _seen_from_root(path: bytes, root: bytes) -> bytes | None:
    if root == b"/":
        return path
    if path == root or path.startswith(root + b"/"):
        return path[len(root) :] or b"/"
    return None  # it stands outside of its root


def _is_same(one: bytes, other: bytes) -> bool:
    try:
        return os.path.samestat(os.stat(one), os.stat(other))
    except OSError:
        return False


def _open_in_root(root: int, path: bytes, flags: int) -> int:
    how = ctypes.create_string_buffer(_HOW.pack(flags, 0, _RESOLVE_IN_ROOT), _HOW.size)
    for _ in range(16):  # EAGAIN: something was renamed meanwhile
        fd: int = _libc_syscall(_OPENAT2, root, path, how, _HOW.size)
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number != errno.EAGAIN:
            break
    raise OSError(number, os.strerror(number))
