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
from substrate.telemetry.capture.backend import CaptureError, identity_of
from substrate.telemetry.capture.engine import STEPS
from substrate.telemetry.capture.holds import parse_hold
from substrate.telemetry.capture.reference import messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.telemetry.capture.holds import Ask

_START: Final = (
    "import sys; sys.path.extend(sys.argv[1:3]); "
    "from substrate.telemetry.capture.reference.tracer import main; main()"
)
_LEVELS: Final = {"exec": f"{calls.EXEC}", "files": f"{calls.EXEC}{calls.FILES}", "all": ""}
_START_S: Final = 30.0
_END_S: Final = 5.0
_ROOM_S: Final = 0.1
_READ: Final = 1 << 20
_F_SETPIPE_SZ: Final = 1031


class PythonBackend:
    """One command's capture; backend.Backend says how it is used."""

    name: Final = "python"

    def __init__(
        self,
        *,
        level: str = "files",
        filtered: bool = True,
        ask: Ask | None = None,
        hold_ms: int = gate.HOLD_MS,
    ) -> None:
        """Starts the tracer.

        `level`: exec, files or all. `filtered`: the command installs engine.programs_of("python",
        level).trace; False: every call is stopped at, and those of the level are told. `ask` arms
        the gate so that it is asked about every exec, by `drain`: what it answers counts, gate.ASK
        for later (`answer`). Raises CaptureError."""
        self._ask = ask
        self._tail = self._drained = b""
        self._at_end = False
        self._lost: dict[str, int] = {}
        self._status: int | None = None
        self._unsent: list[tuple[int, int]] = []
        self._seized = False
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._records, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            self.tracer_pid = _start(theirs.fileno(), write_end, filtered, _LEVELS[level])
        except BaseException:
            self._control.close()
            os.close(self._records)
            raise
        finally:
            theirs.close()
            os.close(write_end)
        os.set_blocking(self._records, False)
        _widen(self._records)
        if ask is not None:
            self.arm(b"", gate.ASK, hold_ms)

    def arm(self, table: bytes, otherwise: int, hold_ms: int) -> None:
        """Sets up the exec gate, before `attach`: gate.pack_table, the decision on what it does
        not name, and how long a hold may last."""
        packed = os.memfd_create("table", os.MFD_CLOEXEC)
        try:
            os.write(packed, table)
            os.lseek(packed, 0, os.SEEK_SET)
            message = messages.pack(messages.ARM, value=otherwise, hold=hold_ms)
            socket.send_fds(self._control, [message], [packed])
        except OSError as error:
            raise CaptureError("arm the gate", error.errno or errno.EIO, str(error)) from error
        finally:
            os.close(packed)

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
        if not self._at_end:
            fresh = self._read()
            self._drained += fresh
            if self._ask is not None:
                self._answer_holds(fresh)
        drained, self._drained = self._drained, b""
        return drained

    def finished(self) -> bool:
        return self._at_end and not self._drained

    def lost(self) -> dict[str, int]:
        return dict(self._lost)

    def soft_fileno(self) -> int:
        """The same: it is readable when there is anything to drain."""
        return self._records

    def answer(self, hold: int, decision: int, reason: int = gate.BY_CALLBACK) -> bool:
        """Answers a HOLD. One that is over is none, and all but gate.ALLOW and gate.KILL denies.
        False: too many answers wait; again later."""
        return self._say(
            messages.pack(messages.ANSWER, decision=decision, reason=reason, hold=hold)
        )

    def identity(self, fd: int) -> bytes:
        """Which file a descriptor of ours is, as an item FILE says it."""
        return identity_of(os.fstat(fd))

    def halted(self) -> bool:
        """Nothing is ever dropped, so nothing is halted for it."""
        return False

    def kill(self) -> None:
        """SIGKILL to every task that is traced."""
        if not self._say(messages.pack(messages.KILL)):
            os.kill(self.tracer_pid, signal.SIGKILL)  # which ends them too

    def close(self) -> None:
        if self._records < 0:
            return
        self._control.close()
        os.close(self._records)
        self._records = -1
        self._at_end, self._drained = True, b""
        self._reap()

    # --- inside

    def _read(self) -> bytes:
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
        return data[:whole]

    def _say(self, message: bytes) -> bool:
        try:
            self._control.send(message, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            return True  # the tracer is gone, and all that it traced with it
        return True

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
            raise CaptureError(STEPS[what], number, os.strerror(number))
        if got != kind:
            raise CaptureError(step, errno.EPROTO, f"message {got}, expected {kind}")

    def _answer_holds(self, data: bytes) -> None:
        assert self._ask is not None
        asked = [
            parse_hold(head, data, at, end)
            for head, at, end in records.read_records(data)
            if head[1] == records.HOLD
        ]
        answered = 0
        try:
            for hold in asked:
                decision = self._ask(hold)
                answered += 1
                if decision != gate.ASK:
                    self._unsent.append((hold.number, decision))
        finally:  # where asking raises nothing runs, and the error is the caller's
            self._unsent += [(hold.number, gate.DENY) for hold in asked[answered:]]
            self._send_answers()

    def _send_answers(self) -> None:
        """What there is room for. Where there is none the tracer is held by a full pipe: the rest
        goes when that was drained."""
        while self._unsent:
            if self.answer(*self._unsent[0]):
                del self._unsent[0]
            elif not select.select([], [self._control], [], _ROOM_S)[1]:
                return

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


def _start(control: int, records_fd: int, filtered: bool, levels: str) -> int:
    """The pid of a new tracer."""
    package = sys.modules["substrate"].__file__
    assert package is not None
    words = [
        *(sys.executable, "-I", "-S", "-c", _START),
        *(os.path.dirname(os.path.dirname(os.path.abspath(package))), _bindings()),
        *("3", "4", "0" if filtered else "1", levels),
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
