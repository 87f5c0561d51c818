"""The backends that run in the C engine: `hybrid`, `notify` and `ptrace` (capture.md §2, §3).

`make` gives one, for one command; `programs_of` the seccomp programs that the command installs
for it. The extension is imported here and nowhere else; where it was not built `make` raises
CaptureError, and whoever chose the backend takes another one and says so.
"""

from __future__ import annotations

import os
import struct

from substrate.telemetry.capture import calls, filters
from substrate.telemetry.capture.backend import CaptureError, identity_of
from substrate.telemetry.capture.records import LOSSES
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Final

NAMES: Final = ("hybrid", "notify", "ptrace")
STEPS: Final = (
    *("", "seize", "thread", "listener", "receive", "answer", "wait", "information"),
    *("registers", "resume", "child"),
)
#: trace.md §4: what happens when records come faster than they are read
POLICIES: Final = ("block", "drop", "halt")
RING_BYTES: Final = 4 << 20


@value
class Programs:
    """The seccomp programs of a command, b"" for none: `notify` comes first and has a listener."""

    notify: bytes
    trace: bytes


_MOST_PROGRAMS: Final = 64
_programs: dict[tuple[Any, ...], Programs] = {}


def programs_of(
    backend: str,
    level: str,
    *,
    machine: str = calls.MACHINE,
    denied: Iterable[tuple[int, int, int]] = (),
    exact_reads: bool = False,
    look: bool = False,
    rings: bool = False,
    gated: bool = False,
) -> Programs:
    """What a command installs: the same bytes for each that is captured so, made once. `gated`: execs have to stop, also where the backend itself stops nothing. `denied`: what the answerer refuses instead of the world's filter
    (number, argument, mask). `exact_reads`: opens that only read are stopped, too. `look`: lookups
    are captured. `rings`: io_uring is allowed."""
    asked = (backend, level, machine, tuple(denied), exact_reads, look, rings, gated)
    found = _programs.get(asked)
    if found is None:
        if len(_programs) >= _MOST_PROGRAMS:
            _programs.clear()
        found = _programs[asked] = _make_programs(*asked)
    return found


def _make_programs(
    backend: str,
    level: str,
    machine: str,
    denied: tuple[tuple[int, int, int], ...],
    exact_reads: bool,
    look: bool,
    rings: bool,
    gated: bool,
) -> Programs:
    if backend == "bpf" and gated:  # as ptrace at its least level, beside it (gated.py)
        return programs_of("ptrace", "exec", machine=machine, rings=rings)
    if backend == "bpf":  # it watches without filters; what no backend sees is not there either
        hidden = {} if rings else filters.ring_chunks(machine)
        return Programs(notify=b"", trace=filters.program(hidden, machine) if hidden else b"")
    names = filters.names_of(level, look=look)
    evidence = filters.evidence_chunks(denied)
    if backend == "notify":
        chunks = {**filters.notify_chunks(names, machine), **evidence}
        if not rings:
            chunks.update(filters.ring_chunks(machine))
        return Programs(notify=filters.program(chunks, machine, foreign=filters.NOTIFY), trace=b"")
    mixed = backend == "hybrid" and level == "files" and not exact_reads
    everything = level == "all"
    stops = {} if everything else filters.trace_chunks(names, machine, reads=not mixed)
    stops.update(
        filters.listener_chunks(machine, otherwise=filters.TRACE if everything else filters.ALLOW)
    )
    sends = dict(evidence)
    if mixed:
        sends.update(filters.notify_chunks(("open", "openat"), machine, only_reads=True))
    if not rings:
        stops.update(filters.ring_chunks(machine))
    return Programs(
        notify=filters.program(sends, machine) if sends and backend == "hybrid" else b"",
        trace=filters.program(
            stops,
            machine,
            foreign=filters.TRACE,
            otherwise=filters.TRACE if everything else filters.ALLOW,
        ),
    )


def is_built() -> bool:
    """Whether the extension is there and can be loaded."""
    try:
        from substrate.telemetry.capture import _engine  # noqa: F401
    except ImportError:
        return False
    return True


def make(
    name: str,
    level: str,
    *,
    denied: Mapping[int, int] | None = None,
    policy: str = "block",
    ring_bytes: int = RING_BYTES,
) -> EngineBackend:
    """A backend for one command. `denied`: errno of each call that the answerer refuses. Raises
    CaptureError where the extension is missing."""
    return EngineBackend(name, level, denied or {}, policy, ring_bytes)


class EngineBackend:
    """See backend.Backend."""

    def __init__(
        self, name: str, level: str, denied: Mapping[int, int], policy: str, ring_bytes: int
    ) -> None:
        try:
            from substrate.telemetry.capture._engine import Engine
        except ImportError as error:
            raise CaptureError("load the engine", 0, str(error)) from error
        if name not in NAMES:
            raise ValueError(f"{name!r} is no backend of the engine")
        self.name = name
        numbers = [0] * (max(denied, default=-1) + 1)
        for nr, number in denied.items():
            numbers[nr] = number
        packed = struct.pack(f"={len(numbers)}H", *numbers)
        self._engine = Engine(_tables(), packed, ring_bytes, POLICIES.index(policy), level == "all")

    def arm(self, table: bytes, otherwise: int, hold_ms: int) -> None:
        """Sets up the exec gate, before `attach` (gate.py)."""
        self._engine.arm(table, otherwise, hold_ms)

    def attach(self, pid: int, listener: int | None) -> None:
        failed = self._engine.attach(
            pid, -1 if listener is None else listener, self.name != "notify"
        )
        if failed is not None:
            step, number = failed
            raise CaptureError(STEPS[step], number, os.strerror(number))

    def fileno(self) -> int:
        return self._engine.fileno()

    def soft_fileno(self) -> int:
        """Readable when there is anything to drain, however little."""
        return self._engine.soft_fileno()

    def drain(self) -> bytes:
        return self._engine.drain()

    def answer(self, hold: int, decision: int, reason: int) -> bool:
        """Answers a HOLD. False: too many answers wait; again later."""
        return self._engine.answer(hold, decision, reason)

    def finished(self) -> bool:
        return self._engine.finished()

    def identity(self, fd: int) -> bytes:
        """Which file a descriptor of ours is, as an item FILE says it."""
        return identity_of(os.fstat(fd))

    def halted(self) -> bool:
        """Whether something was lost under the policy `halt`."""
        return bool(self._engine.lost()[3])

    def lost(self) -> dict[str, int]:
        return {
            why: count for why, count in zip(LOSSES, self._engine.lost()[:3], strict=False) if count
        }

    def kill(self) -> None:
        """SIGKILL to every task that is traced."""
        self._engine.kill()

    def close(self) -> None:
        self._engine.close()


_packed: list[tuple[bytes, bytes, bytes]] = []


def _tables() -> tuple[bytes, bytes, bytes]:
    """The shapes for the engine: native, i386, x32; made once."""
    if not _packed:
        native = _pack(calls.by_number())
        foreign = calls.MACHINE == "x86_64"
        _packed.append(
            (
                native,
                _pack(calls.by_number(calls.MACHINE, calls.I386)) if foreign else b"",
                _pack(calls.by_number(calls.MACHINE, calls.X32)) if foreign else b"",
            )
        )
    return _packed[0]


def _pack(table: Mapping[int, tuple[str, bytes]]) -> bytes:
    return b"".join([struct.pack("=I", nr) + shape for nr, (_, shape) in table.items()])
