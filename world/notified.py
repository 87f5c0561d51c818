"""One listener of seccomp(2): calls that wait for an answer, and the answers.

Not what is answered (answering.py). Every answer is a result or an errno; there is no way here to
let the kernel go on with the call. Invariant: what is read from a process counts only if its call was
still waiting afterwards (`is_waiting`): a thread's id is given away again once it has ended.
Source: seccomp_unotify(2), <linux/seccomp.h>.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_IS_VALID: Final = 0x40082102
_ADD_FD: Final = 0x40182103
_ADD_AND_SEND: Final = 2
#: struct seccomp_notif: id, pid, flags, then struct seccomp_data: nr, arch, ip, six arguments
_CALL: Final = struct.Struct("=QIIiIQ6Q")
_ANSWER: Final = struct.Struct("=QqiI")
_FD: Final = struct.Struct("=QIIII")
_PAGE: Final = 4096


@value
class Call:
    """A call that waits: `tid` of the thread, as this process counts."""

    identifier: int
    tid: int
    number: int
    arguments: tuple[int, ...]

    def int_at(self, index: int) -> int:
        """An argument that is an `int`."""
        low = self.arguments[index] & 0xFFFFFFFF
        return low - (1 << 32) if low >> 31 else low


class Listener:
    """Owns the fd."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def receive(self) -> Call | None:
        """The next call; None where its thread was killed meanwhile. Raises OSError."""
        buffer = bytearray(_CALL.size)
        try:
            fcntl.ioctl(self.fd, _RECEIVE, buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                return None
            raise
        identifier, tid, _, number, _, _, *arguments = _CALL.unpack(buffer)
        return Call(identifier=identifier, tid=tid, number=number, arguments=tuple(arguments))

    def answer(self, call: Call, result: int, number: int = 0) -> None:
        """`number`: an errno, 0 for none."""
        self._ioctl(_SEND, _ANSWER.pack(call.identifier, result, -number, 0))

    def give_fd(self, call: Call, fd: int, *, close_on_exec: bool) -> bool:
        """A copy of `fd` for the process, whose number is the call's result. False where nobody waits
        for it any more. Raises OSError: EMFILE of the process."""
        flags = os.O_CLOEXEC if close_on_exec else 0
        packed = _FD.pack(call.identifier, _ADD_AND_SEND, fd, 0, flags)
        try:
            fcntl.ioctl(self.fd, _ADD_FD, packed)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINPROGRESS):
                return False
            raise
        return True

    def is_waiting(self, call: Call) -> bool:
        return self._ioctl(_IS_VALID, struct.pack("=Q", call.identifier))

    def _ioctl(self, request: int, packed: bytes) -> bool:
        if self.fd < 0:
            return False  # nobody is left under the filter
        try:
            fcntl.ioctl(self.fd, request, packed)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False  # it was killed: nobody waits
            raise
        return True

    # --- what the call points to, read once

    def read(self, call: Call, address: int, size: int) -> bytes:
        """Bytes of the process' memory. Raises OSError: EFAULT, EPERM for one that may not be read."""
        return self._read(call, address, size, text=False)

    def read_text(self, call: Call, address: int, most: int) -> bytes:
        """Up to a NUL, which must be within `most` bytes (ENAMETOOLONG)."""
        found = self._read(call, address, most, text=True)
        end = found.find(b"\0")
        if end < 0:
            raise OSError(errno.ENAMETOOLONG, "a text without an end")
        return found[:end]

    def _read(self, call: Call, address: int, size: int, *, text: bool) -> bytes:
        try:
            fd = os.open(b"/proc/%d/mem" % call.tid, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise OSError(errno.EPERM, "a process that may not be looked at") from error
        found = b""
        try:
            while len(found) < size:
                at = address + len(found)
                part = os.pread(fd, min(size - len(found), _PAGE - at % _PAGE), at)
                if not part:
                    break
                found += part
                if text and b"\0" in part:
                    break
        except (OSError, OverflowError) as error:
            if not (text and found):
                raise OSError(errno.EFAULT, "an address that is none") from error
        finally:
            os.close(fd)
        if not text and len(found) < size:
            raise OSError(errno.EFAULT, "an address that is none")
        if not self.is_waiting(call):
            raise ProcessLookupError(errno.ESRCH, "it does not wait any more")
        return found

    def close(self) -> None:
        os.close(self.fd)
        self.fd = -1
