"""`bpf` with a gate: its programs watch, and the engine beside them stops execs (capture.md §2).

eBPF sees everything at nearly no cost and holds nobody back; the gate needs ptrace on exec, which is
rare. So the engine traces execs and what makes tasks, no more (engine.programs_of, `gated`), and of
what it records only the gate's own records are handed out: all else is bpf's to tell, once.

Invariants: an exec is decided before bpf could see it begin to run; a record of the gate comes behind
what bpf saw before it.
"""

from __future__ import annotations

import select

from substrate.telemetry.capture import engine, records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.telemetry.capture.bpf import BpfBackend

_KEPT: Final = (records.HOLD, records.GATE)


class GatedBackend:
    """See backend.Backend."""

    name: Final = "bpf"

    def __init__(self, watching: BpfBackend) -> None:
        """Takes `watching` over. Raises CaptureError where the engine is missing."""
        self._watching = watching
        self._both: select.epoll | None = None
        try:
            self._gate = engine.make("ptrace", "exec")
        except BaseException:
            watching.close()
            raise

    def arm(self, table: bytes, otherwise: int, hold_ms: int) -> None:
        self._gate.arm(table, otherwise, hold_ms)

    def answer(self, hold: int, decision: int, reason: int) -> bool:
        return self._gate.answer(hold, decision, reason)

    def attach(self, pid: int, listener: int | None) -> None:
        self._watching.attach(pid, listener)
        self._gate.attach(pid, None)

    def fileno(self) -> int:
        if self._both is None:
            self._both = select.epoll(sizehint=2)
            for backend in (self._watching, self._gate):
                self._both.register(backend.fileno(), select.EPOLLIN)
        return self._both.fileno()

    def soft_fileno(self) -> int:
        return self._watching.soft_fileno()

    def drain(self) -> bytes:
        # what the gate has seen was watched before: in this order it is all there
        told = self._gate.drain()
        return self._watching.drain() + _of_gate(told)

    def finished(self) -> bool:
        return self._watching.finished() and self._gate.finished()

    def lost(self) -> dict[str, int]:
        return self._watching.lost()

    def identity(self, fd: int) -> bytes:
        return self._watching.identity(fd)

    def halted(self) -> bool:
        return self._watching.halted()

    def kill(self) -> None:
        self._gate.kill()
        self._watching.kill()

    def close(self) -> None:
        self._gate.close()
        self._watching.close()
        if self._both is not None:
            self._both.close()
            self._both = None


def _of_gate(data: bytes) -> bytes:
    head = records.HEAD_SIZE
    return b"".join(
        data[at - head : end] for told, at, end in records.read_records(data) if told[1] in _KEPT
    )
