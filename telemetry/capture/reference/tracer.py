"""The program of the reference tracer: a process of its own, between its supervisor and the loop.

Started by python_backend as `python -I -S -c …`, with an empty environment. It is the edge of a
process: whatever goes wrong in the loop is told and ends it. Invariants: it leaves when its
supervisor does (end of file, or a pipe without a reader), and its leaving kills the tree
(PTRACE_O_EXITKILL); it is in a session of its own, so that keys typed at the tree's terminal do
not reach it; it is not dumpable, so that a process of the tree, which may have the same uid, can
neither trace it nor read the records out of it. To be killed by such a process it cannot help:
that ends the tree.

Sources: prctl(2) PR_SET_DUMPABLE, signalfd(2), ptrace(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
import sys

from substrate.telemetry.capture import records
from substrate.telemetry.capture.reference import loop, messages
from substrate.telemetry.capture.reference.loop import Loop, Untraceable
from substrate.telemetry.capture.reference.table import parse_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, NoReturn

_PR_SET_DUMPABLE: Final = 4
_SFD_FLAGS: Final = os.O_CLOEXEC | os.O_NONBLOCK
_SIGNALFD_INFO: Final = 128
_FULL: Final = 1 << 16


class SupervisorLeft(Exception):
    """There is nobody any more who reads."""


class Output:
    """Records on their way into the pipe. A full pipe holds the tree: nothing is ever dropped."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting = bytearray()

    def write(self, record: bytes) -> None:
        self._waiting += record
        if len(self._waiting) >= _FULL:
            self.flush()

    def flush(self) -> None:
        try:
            while self._waiting:
                del self._waiting[: os.write(self._fd, self._waiting)]
        except BrokenPipeError:
            raise SupervisorLeft from None


def _prepare() -> int:
    """What must be so before anything is traced. A descriptor that is readable when a task has
    stopped or ended."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    signals = (ctypes.c_ulong * 16)(1 << signal.SIGCHLD - 1)
    fd = libc.signalfd(-1, signals, _SFD_FLAGS)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "signalfd")
    return int(fd)


def _hear(control: socket.socket, traced: Loop) -> None:
    """What the supervisor has said. Raises SupervisorLeft."""
    while True:
        try:
            message = control.recv(messages.MESSAGE.size + 1)
        except BlockingIOError:
            return
        except ConnectionResetError:
            message = b""
        if not message:
            raise SupervisorLeft
        kind, decision, reason, _value, hold, _errno = messages.unpack(message)
        if kind == messages.ANSWER:
            traced.answer(hold, decision, reason)
        elif kind == messages.KILL:
            traced.kill()
        else:
            raise ValueError(f"message {kind} was not expected now")


def _begin(control: socket.socket, traced: Loop) -> None:
    """What is said before the seizing, and that."""
    while True:
        message, fds, _, _ = socket.recv_fds(control, messages.MESSAGE.size + 1, 1)
        if not message:
            raise SupervisorLeft
        kind, _, _, number, hold, _ = messages.unpack(message)
        if kind == messages.SEIZE:
            traced.seize(number)
            control.send(messages.pack(messages.SEIZED))
            return
        if kind != messages.ARM or len(fds) != 1:
            raise ValueError(f"message {kind} with {len(fds)} files was not expected first")
        with os.fdopen(fds[0], "rb") as packed:
            traced.arm(parse_table(packed.read(), number), hold / 1000)


def _serve(control: socket.socket, traced: Loop, output: Output, stops: int) -> None:
    """From the seizing on, until no task is left."""
    control.setblocking(False)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(stops, select.POLLIN)
    while (state := traced.turn()) != loop.OVER:
        output.flush()
        wait_s = 0 if state == loop.BUSY else traced.wait_s()
        for fd, _event in poll.poll(None if wait_s is None else wait_s * 1000):
            if fd == stops:
                try:
                    os.read(stops, _SIGNALFD_INFO)
                except BlockingIOError:
                    continue
            else:
                _hear(control, traced)
    output.flush()


def main() -> NoReturn:
    """argv: …, control fd, records fd, every call (0 or 1), levels as digits ("" for all calls)."""
    control_fd, records_fd, every_call, levels = sys.argv[-4:]
    control = socket.socket(fileno=int(control_fd))
    output = Output(int(records_fd))
    traced = Loop(
        output.write,
        every_call=every_call == "1",
        levels=frozenset(map(int, levels)) if levels else None,
    )
    step, number, status = 0, 0, 0
    try:
        stops = _prepare()
        control.send(messages.pack(messages.READY))
        _begin(control, traced)
        _serve(control, traced, output, stops)
    except (SupervisorLeft, BrokenPipeError):  # on the socket: before it could be told
        status = 3
    except Untraceable as error:
        step, number, status = error.step, error.errno, 1
    except Exception as error:  # noqa: BLE001  the edge of the process: told, and the tree ends
        sys.excepthook(type(error), error, error.__traceback__)
        step, number, status = messages.LOOP, getattr(error, "errno", 0) or errno.EPROTO, 1
    if step:
        _tell(control, output, step, number)
    sys.stderr.flush()
    os._exit(status)  # not by way of the interpreter's end: what is traced must not outlive this


def _tell(control: socket.socket, output: Output, step: int, number: int) -> None:
    try:
        output.write(
            records.make_record(
                records.TROUBLE, tid=os.getpid(), time_ns=loop.now_ns(), nr=step, result=number
            )
        )
        output.flush()
        control.setblocking(True)
        control.send(messages.pack(messages.FAILED, value=step, errno=number))
    except (OSError, SupervisorLeft):
        return  # nobody is there to be told
