"""The `python` backend: the supervisor's side of the reference tracer (capture.md §2).

The tracer is another process, and python-ptrace (GPL-2.0-only) is imported there and never here:
it is looked for, and told where it lies. This side starts it, gives it the pid to seize, reads its
records and answers for the gate. Only who seizes may wait, so the command's own status still comes
from its parent, as without capture.

Invariants: a full pipe holds the tree and drops nothing; who drains too slowly makes the command
slow. The tree does not outlive the backend: the tracer leaves when its socket closes, and what it
traces is killed with it.

The interpreter is the one that runs here, with -I and -S and an empty environment: neither
PYTHONPATH, a directory, .pth files nor sitecustomize has a word in what the tracer imports.

On a host with Yama (ptrace_scope 1) a process may be seized by its ancestors only: the command must
call prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY) before it waits, unless the supervisor is privileged.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import sys
import time

from substrate.telemetry.capture import calls, gate, records
from substrate.telemetry.capture.backend import CaptureError
from substrate.telemetry.capture.reference import messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: a level beyond calls.FDS: every call, with a stop at each
EVERY: Final = messages.EVERY_LEVEL

_START: Final = (
    "import sys; sys.path.extend(sys.argv[1:3]); "
    "from substrate.telemetry.capture.reference.tracer import main; main()"
)
_START_S: Final = 30.0
_END_S: Final = 5.0
_READ: Final = 1 << 20
_F_SETPIPE_SZ: Final = 1031


class PythonBackend:
    """One command's capture; backend.Backend says how it is used."""

    name: Final = "python"

    def __init__(
        self,
        *,
        level: int = calls.FILES,
        filtered: bool = True,
        ask: gate.Gate | None = None,
        hold_timeout_s: float = 60.0,
    ) -> None:
        """Starts the tracer.

        `level`: calls.EXEC … calls.FDS, or EVERY. `filtered`: the command installs a program that
        answers RET_TRACE for the calls of that level; False: every call is stopped at, and those
        of the level are told. `ask` arms the gate: it is called by `drain` for each exec, and what
        it answers counts, gate.ASK for later (`answer`). Raises CaptureError."""
        self._ask = ask
        self._every_call = not filtered or level == EVERY
        self._tail = b""
        self._at_end = False
        self._lost: dict[str, int] = {}
        self._status: int | None = None
        self._seized = False
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._records, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            self.tracer_pid = _start(
                theirs.fileno(),
                write_end,
                (self._every_call, level, ask is not None, int(hold_timeout_s * 1000)),
            )
        except BaseException:
            self._control.close()
            os.close(self._records)
            raise
        finally:
            theirs.close()
            os.close(write_end)
        os.set_blocking(self._records, False)
        _widen(self._records)

    def attach(self, pid: int, listener: int | None) -> None:
        if listener is not None:
            os.close(listener)
            raise CaptureError("attach", errno.EINVAL, "this backend takes no listener")
        self._expect(messages.READY, "start the tracer")
        try:
            self._control.send(messages.pack(messages.SEIZE, value=pid))
        except OSError as error:
            raise CaptureError("seize", error.errno or errno.EIO, str(error)) from error
        self._expect(messages.SEIZED, "seize")
        self._seized = True

    def fileno(self) -> int:
        return self._records

    def drain(self) -> bytes:
        if self._at_end:
            return b""
        parts, room = [self._tail], _READ
        while room > 0:
            try:
                part = os.read(self._records, room)
            except BlockingIOError:
                break
            if not part:
                self._at_end = True
                break
            parts.append(part)
            room -= len(part)
        data = b"".join(parts)
        whole = _whole(data)
        self._tail = data[whole:]
        if self._at_end:
            self._settle()
        if self._ask is not None:
            self._answer_holds(data[:whole])
        return data[:whole]

    def finished(self) -> bool:
        return self._at_end

    def lost(self) -> dict[str, int]:
        return dict(self._lost)

    def answer(self, number: int, decision: int, reason: int = gate.CALLBACK) -> None:
        """To a hold that was answered with gate.ASK. One that is over is none. ALLOW and KILL are
        what they are; all else denies."""
        try:
            self._control.send(
                messages.pack(messages.ANSWER, decision=decision, reason=reason, hold=number)
            )
        except (BrokenPipeError, ConnectionResetError):
            return  # the tracer is gone, and what it held with it

    def close(self) -> None:
        if self._records < 0:
            return
        self._control.close()
        os.close(self._records)
        self._records = -1
        self._at_end = True
        self._reap()

    # --- inside

    def _expect(self, kind: int, step: str) -> None:
        self._control.settimeout(_START_S)
        try:
            message = self._control.recv(messages.MESSAGE.size + 1)
        except TimeoutError:
            raise CaptureError(step, errno.ETIMEDOUT, f"no answer in {_START_S:.0f} s") from None
        except ConnectionResetError:
            message = b""
        finally:
            self._control.settimeout(None)
        if not message:
            raise CaptureError(step, errno.ESRCH, "the tracer has ended")
        got, _, _, what, _, number = messages.unpack(message)
        if got == messages.FAILED:
            raise CaptureError(messages.STEPS[what], number, os.strerror(number))
        if got != kind:
            raise CaptureError(step, errno.EPROTO, f"message {got}, expected {kind}")

    def _answer_holds(self, data: bytes) -> None:
        assert self._ask is not None
        for head, at, end in records.read_records(data):
            if head[1] != records.HOLD:
                continue
            decision = gate.DENY
            try:
                decision = self._ask(gate.parse_hold(head, data, at, end))
            finally:  # also when asking raises: then nothing runs, and the error is the caller's
                if decision != gate.ASK:
                    self.answer(head[8], decision)

    def _settle(self) -> None:
        """At the end of the records: whether it is the tree's."""
        if self._tail:
            self._lost["torn"] = 1
            self._tail = b""
        self._reap()
        if self._seized and self._status != 0:
            self._lost["ended"] = 1

    def _reap(self) -> None:
        """The tracer is leaving: it is waited for, and killed if it does not."""
        if self._status is not None:
            return
        try:
            pidfd = os.pidfd_open(self.tracer_pid)
        except ProcessLookupError:  # somebody else has reaped it
            self._status = -1
            return
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            deadline = time.monotonic() + _END_S
            while not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                deadline = time.monotonic() + _END_S
        finally:
            os.close(pidfd)
        try:
            _, self._status = os.waitpid(self.tracer_pid, 0)
        except ChildProcessError:
            self._status = -1


def _whole(data: bytes) -> int:
    """How much of `data` is whole records. Raises records.Torn."""
    at = 0
    while len(data) - at >= 4:
        size = int.from_bytes(data[at : at + 4], sys.byteorder)
        if size < records.HEAD_SIZE or size % 8:
            raise records.Torn(f"a record at {at} says that it has {size} bytes")
        if size > len(data) - at:
            break
        at += size
    return at


def _widen(pipe: int) -> None:
    """So that a drain that comes late holds nobody."""
    try:
        fcntl.fcntl(pipe, _F_SETPIPE_SZ, _READ)
    except PermissionError:
        return  # the user has too many pipes of that size: it works with this one too


def _start(control: int, records_fd: int, settings: tuple[object, ...]) -> int:
    """The pid of a new tracer."""
    package = sys.modules["substrate"].__file__
    assert package is not None
    words = [
        *(sys.executable, "-I", "-S", "-c", _START),
        *(os.path.dirname(os.path.dirname(os.path.abspath(package))), _bindings()),
        *("3", "4", *[str(int(setting)) for setting in settings]),  # type: ignore[call-overload]
    ]
    # an interpreter whose own library is found that way
    environment = {k: os.environ[k] for k in ("LD_LIBRARY_PATH",) if k in os.environ}
    # away from 3 and 4, so that neither lies where the other is to be
    spare = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (control, records_fd)]
    try:
        return os.posix_spawn(
            sys.executable,
            words,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, spare[0], 3),
                (os.POSIX_SPAWN_DUP2, spare[1], 4),
            ],
            setsigmask=[],
            setsigdef=[*signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}],
        )
    except OSError as error:
        raise CaptureError("start the tracer", error.errno or errno.EIO, str(error)) from error
    finally:
        for fd in spare:
            os.close(fd)


def _bindings() -> str:
    """The directory that python-ptrace lies in; finding it runs nothing of it."""
    from importlib.util import find_spec

    found = find_spec("ptrace")
    if found is None or found.origin is None:
        raise CaptureError(
            "find python-ptrace", errno.ENOENT, "it is not installed; pip install python-ptrace"
        )
    return os.path.dirname(os.path.dirname(os.path.abspath(found.origin)))
