"""Calls that a command without namespaces does not make itself (guard_filter.py): the world's first
process makes them in its place, where they concern the world's own.

Theory of operation. Landlock knows nothing of changed modes, owners, times and attributes, and a filter
sees no path. So these calls wait here: the path is read once, looked up once, and what was found must
lie in a directory that the world may write; then the change is made by that very descriptor. That the
caller changes the path, its directory or its descriptors meanwhile changes nothing: the call is
never continued. Sockets are answered by sockets_answered.py. Invariants: we have more rights than the
command, so nothing is done to a file outside of `writable`; links out of it cannot be made (Landlock
refuses them).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from substrate.world import linux
from substrate.world.guard_filter import FILES, SOCKETS
from substrate.world.notified import Call, Listener
from substrate.world.syscall_numbers import number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from substrate.world.sockets_answered import Sockets

_NAMES: Final = {
    found: name for name in (*FILES, *SOCKETS) if (found := number(name, linux.MACHINE)) is not None
}
_CWD: Final = -100
_NOFOLLOW, _EMPTY = 0x100, 0x1000
_PATH_MAX, _NAME_MAX, _ATTRIBUTE_MAX = 4096, 256, 65536
_DELETED: Final = b" (deleted)"
_ATTRIBUTES: Final = (b"user.", b"system.posix_acl_access", b"system.posix_acl_default")
_MARKS: Final = b"user.overlay."
_NO_ID: Final = 0xFFFFFFFF
_UTIME_NOW: Final = (1 << 30) - 1

_libc = ctypes.CDLL(None, use_errno=True)


class Answering:
    """Answers the calls of one command's listener."""

    def __init__(self, listener: int, writable: tuple[bytes, ...], sockets: Sockets | None) -> None:
        """`writable`: real paths."""
        self.listener = Listener(listener)
        self._writable, self._sockets = writable, sockets
        self._acts: dict[str, Callable[[Call], None]] = {
            "chmod": lambda c: self._mode(self._at(c, _CWD, 0), c.arguments[1]),
            "fchmod": lambda c: self._mode(self._of(c, c.int_at(0)), c.arguments[1]),
            "fchmodat": lambda c: self._mode(self._at(c, c.int_at(0), 1), c.arguments[2]),
            "fchmodat2": lambda c: self._mode(
                self._at(c, c.int_at(0), 1, c.arguments[3]), c.arguments[2]
            ),
            "chown": lambda c: self._owner(self._at(c, _CWD, 0), *c.arguments[1:3]),
            "lchown": lambda c: self._owner(self._at(c, _CWD, 0, _NOFOLLOW), *c.arguments[1:3]),
            "fchown": lambda c: self._owner(self._of(c, c.int_at(0)), *c.arguments[1:3]),
            "fchownat": lambda c: self._owner(
                self._at(c, c.int_at(0), 1, c.arguments[4]), *c.arguments[2:4]
            ),
            "utime": lambda c: self._times(c, self._at(c, _CWD, 0), c.arguments[1], "=qq", 0),
            "utimes": lambda c: self._times(c, self._at(c, _CWD, 0), c.arguments[1], "=4q", 1000),
            "futimesat": lambda c: self._times(
                c, self._at(c, c.int_at(0), 1), c.arguments[2], "=4q", 1000
            ),
            "utimensat": lambda c: self._times(
                c, self._at(c, c.int_at(0), 1, c.arguments[3]), c.arguments[2], "=4q", 1
            ),
            "setxattr": lambda c: self._set(c, self._at(c, _CWD, 0)),
            "lsetxattr": lambda c: self._set(c, self._at(c, _CWD, 0, _NOFOLLOW)),
            "fsetxattr": lambda c: self._set(c, self._of(c, c.int_at(0))),
            "removexattr": lambda c: self._remove(c, self._at(c, _CWD, 0)),
            "lremovexattr": lambda c: self._remove(c, self._at(c, _CWD, 0, _NOFOLLOW)),
            "fremovexattr": lambda c: self._remove(c, self._of(c, c.int_at(0))),
        }

    def ready(self) -> None:
        """Takes one call and answers it. Raises OSError when the listener itself fails."""
        call = self.listener.receive()
        if call is None:
            return
        name = _NAMES.get(call.number, "")
        try:
            if name in self._acts:
                self._acts[name](call)
                self.listener.answer(call, 0)
            elif self._sockets is not None and name in SOCKETS:
                self._sockets.answer(self.listener, call, name)
            else:
                self.listener.answer(call, 0, errno.ENOSYS)
        except ProcessLookupError:
            return  # nobody waits for an answer
        except OSError as error:
            self.listener.answer(call, 0, error.errno or errno.EIO)

    # --- what a call means

    def _at(self, call: Call, directory: int, index: int, flags: int = 0) -> int:
        """An O_PATH fd of what argument `index` names, below the fd `directory` of the caller."""
        address = call.arguments[index]
        if address == 0 and call.number == number("utimensat", linux.MACHINE):
            return self._of(call, directory)
        path = self.listener.read_text(call, address, _PATH_MAX)
        if not path:
            if flags & _EMPTY:
                return self._of(call, directory)
            raise FileNotFoundError(errno.ENOENT, "an empty path")
        own = os.O_PATH | os.O_CLOEXEC | (os.O_NOFOLLOW if flags & _NOFOLLOW else 0)
        if path.startswith(b"/"):
            return self._checked(os.open(_as_seen(path, call.tid), own))
        base = self._open(call, b"cwd" if directory == _CWD else b"fd/%d" % directory)
        try:
            return self._checked(os.open(path, own, dir_fd=base))
        finally:
            os.close(base)

    def _of(self, call: Call, fd: int) -> int:
        """The same of a descriptor of the caller's."""
        if fd == _CWD:
            return self._checked(self._open(call, b"cwd"))
        if fd < 0:
            raise OSError(errno.EBADF, "no descriptor")
        return self._checked(self._open(call, b"fd/%d" % fd))

    def _open(self, call: Call, name: bytes) -> int:
        try:
            fd = os.open(b"/proc/%d/%s" % (call.tid, name), os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            raise OSError(errno.EBADF, "no such descriptor") from None
        if not self.listener.is_waiting(call):
            os.close(fd)
            raise ProcessLookupError(errno.ESRCH, "it does not wait any more")
        return fd

    def _checked(self, fd: int) -> int:
        """The fd, which the caller closes, of what lies in the world's own. Raises OSError: EACCES."""
        place = os.readlink(b"/proc/self/fd/%d" % fd).removesuffix(_DELETED)
        if any(place == root or place.startswith(root + b"/") for root in self._writable):
            return fd
        os.close(fd)
        raise PermissionError(errno.EACCES, "it is not the world's")

    # --- what is done

    def _mode(self, fd: int, mode: int) -> None:
        try:
            if os.fstat(fd).st_mode & 0o170000 == 0o120000:
                raise OSError(errno.EOPNOTSUPP, "a link has no mode")
            os.chmod(b"/proc/self/fd/%d" % fd, mode & 0o7777)
        finally:
            os.close(fd)

    def _owner(self, fd: int, uid: int, gid: int) -> None:
        try:
            linux.chown_fd(fd, uid & _NO_ID, gid & _NO_ID)
        finally:
            os.close(fd)

    def _times(self, call: Call, fd: int, address: int, form: str, unit_ns: int) -> None:
        """`form`: two seconds, or two pairs of seconds and a fraction in `unit_ns`."""
        try:
            times = None
            if address:
                words = struct.unpack(
                    form, self.listener.read(call, address, struct.calcsize(form))
                )
                if len(words) == 2:
                    words = (words[0], 0, words[1], 0)
                if unit_ns == 1000 and not all(0 <= words[i] < 1_000_000 for i in (1, 3)):
                    raise OSError(errno.EINVAL, "no fraction of a second")
                scale = unit_ns or 1
                times = (ctypes.c_int64 * 4)(words[0], words[1] * scale, words[2], words[3] * scale)
            pointer = None if times is None else ctypes.byref(times)
            if _libc.utimensat(fd, b"", pointer, _EMPTY) < 0:
                raise OSError(ctypes.get_errno(), "utimensat")
        finally:
            os.close(fd)

    def _set(self, call: Call, fd: int) -> None:
        try:
            name = self._attribute(call)
            size, flags = call.arguments[3], call.int_at(4)
            if size > _ATTRIBUTE_MAX:
                raise OSError(errno.E2BIG, "an attribute that is too long")
            content = self.listener.read(call, call.arguments[2], size) if size else b""
            os.setxattr(b"/proc/self/fd/%d" % fd, name, content, flags)
        finally:
            os.close(fd)

    def _remove(self, call: Call, fd: int) -> None:
        try:
            os.removexattr(b"/proc/self/fd/%d" % fd, self._attribute(call))
        finally:
            os.close(fd)

    def _attribute(self, call: Call) -> bytes:
        """Those of the user, and access lists; an overlay's marks mean something in a layer."""
        name = self.listener.read_text(call, call.arguments[1], _NAME_MAX)
        if not name.startswith(_ATTRIBUTES) or name.startswith(_MARKS):
            raise OSError(errno.EPERM, "an attribute that worlds do not set")
        return name


def _as_seen(path: bytes, tid: int) -> bytes:
    """A path that leads through the caller's own /proc/self."""
    for own in (b"/proc/self/", b"/proc/thread-self/"):
        if path.startswith(own):
            return b"/proc/%d/%s" % (tid, path[len(own) :])
    return path
