"""ptrace(2) by python-ptrace's bindings: the one module that imports them.

python-ptrace knows no PTRACE_SEIZE, LISTEN, INTERRUPT or GET_SYSCALL_INFO, and its
`ptrace_geteventmsg` lets the kernel write a long over an int; so of its functions only `ptrace`
itself and those for registers are used. Invariant: a task that was killed while it was stopped
answers ESRCH, at any request; that is `Gone` and no error, since its end is still to be waited for.

Sources: ptrace(2), <linux/ptrace.h>.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from ptrace.binding import func
from ptrace.error import PtraceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_SEIZE: Final = 0x4206
_INTERRUPT: Final = 0x4207
_LISTEN: Final = 0x4208
_GET_SYSCALL_INFO: Final = 0x420E

_O_TRACESECCOMP: Final = 0x80
_O_EXITKILL: Final = 0x100000
OPTIONS: Final = (
    func.PTRACE_O_TRACESYSGOOD
    | func.PTRACE_O_TRACEFORK
    | func.PTRACE_O_TRACEVFORK
    | func.PTRACE_O_TRACECLONE
    | func.PTRACE_O_TRACEEXEC
    | _O_TRACESECCOMP
    | _O_EXITKILL
)
EVENT_FORK: Final[int] = func.PTRACE_EVENT_FORK
EVENT_VFORK: Final[int] = func.PTRACE_EVENT_VFORK
EVENT_CLONE: Final[int] = func.PTRACE_EVENT_CLONE
EVENT_EXEC: Final[int] = func.PTRACE_EVENT_EXEC
EVENT_SECCOMP: Final = 7
EVENT_STOP: Final = 128

#: wait4(2): children of all kinds, also those of clone(2) with another signal or none
WALL: Final[int] = func.THREAD_TRACE_FLAGS

# struct ptrace_syscall_info
INFO_NONE, INFO_ENTRY, INFO_EXIT, INFO_SECCOMP = range(4)
_INFO: Final = ctypes.create_string_buffer(96)
_INFO_AT: Final = ctypes.addressof(_INFO)
_ENTRY: Final = struct.Struct("=BxxxIQQQ6Q")
_EXIT: Final = struct.Struct("=BxxxIQQq")
_MESSAGE: Final = ctypes.c_ulong()
_MESSAGE_AT: Final = ctypes.addressof(_MESSAGE)


class Gone(Exception):
    """The task is not stopped any more: something killed it."""


def _request(request: int, tid: int, address: int = 0, data: int = 0) -> int:
    try:
        return int(func.ptrace(request, tid, address, data))
    except PtraceError as error:
        if error.errno == errno.ESRCH:
            raise Gone(tid) from None
        raise OSError(error.errno or errno.EIO, str(error)) from error


def seize(pid: int) -> None:
    """Never PTRACE_ATTACH: that sends a SIGSTOP, which the process and its parent could see."""
    _request(_SEIZE, pid, 0, OPTIONS)


def interrupt(tid: int) -> None:
    _request(_INTERRUPT, tid)


def listen(tid: int) -> None:
    """Leaves a task in its group stop, as if it were not traced, until SIGCONT."""
    _request(_LISTEN, tid)


def resume(tid: int, signal: int = 0, *, to_call: bool = False) -> None:
    """Lets it run, with the signal that it was stopped for: to the next entry or exit of a call,
    or to the next event."""
    _request(func.PTRACE_SYSCALL if to_call else func.PTRACE_CONT, tid, 0, signal)


def event_message(tid: int) -> int:
    _request(func.PTRACE_GETEVENTMSG, tid, 0, _MESSAGE_AT)
    return _MESSAGE.value


def syscall_info(tid: int) -> tuple[int, int, int, tuple[int, ...], int]:
    """(INFO_…, AUDIT_ARCH, number, arguments, result). The last three only where they are told."""
    _request(_GET_SYSCALL_INFO, tid, len(_INFO), _INFO_AT)
    kind, arch, _ip, _sp, nr, *args = _ENTRY.unpack_from(_INFO)
    if kind == INFO_EXIT:
        return kind, arch, -1, (), _EXIT.unpack_from(_INFO)[4]
    if kind == INFO_NONE:
        return kind, arch, -1, (), 0
    return kind, arch, nr, tuple(args), 0


def get_registers(tid: int) -> Any:
    """python-ptrace's structure of this machine."""
    try:
        return func.ptrace_getregs(tid)
    except PtraceError as error:
        if error.errno == errno.ESRCH:
            raise Gone(tid) from None
        raise OSError(error.errno or errno.EIO, str(error)) from error


def set_registers(tid: int, registers: Any) -> None:
    try:
        func.ptrace_setregs(tid, registers)
    except PtraceError as error:
        if error.errno == errno.ESRCH:
            raise Gone(tid) from None
        raise OSError(error.errno or errno.EIO, str(error)) from error


def set_call_number(tid: int, number: int, register_set: int) -> None:
    """Where the number is no register of the usual set (aarch64's NT_ARM_SYSTEM_CALL)."""
    word = ctypes.c_int(number)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(word), ctypes.sizeof(word))
    _request(func.PTRACE_SETREGSET, tid, register_set, ctypes.addressof(vector))
