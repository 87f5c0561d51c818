"""A backend by its name. Each is imported only when it is asked for."""

from __future__ import annotations

from substrate.telemetry.capture import engine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from substrate.telemetry.capture.bpf import BpfBackend
    from substrate.telemetry.capture.bpf_layout import Offsets
    from substrate.telemetry.capture.engine import EngineBackend
    from substrate.telemetry.capture.gated import GatedBackend
    from substrate.telemetry.capture.python_backend import PythonBackend

    AnyBackend = BpfBackend | EngineBackend | GatedBackend | PythonBackend

NAMES: Final = ("hybrid", "ptrace", "python", "notify", "bpf")
#: which of them answer what a world denies and leaves to capture
ANSWER: Final = ("hybrid", "notify")
#: which of them see it when the world answers by itself
WITNESS: Final = ("bpf",)
#: which of them hold an exec back so that nobody races past it (policy.md §4)
STRICT: Final = ("hybrid", "ptrace", "python", "bpf")


def make(
    name: str,
    level: str,
    *,
    denied: Mapping[int, int] | None = None,
    policy: str = "block",
    look: bool = False,
    offsets: Offsets | None = None,
    gated: bool = False,
) -> AnyBackend:
    """A backend for one command; see engine.make. `gated`: it can be armed (`arm`). `look`: lookups are captured, where no filter
    says so. `offsets`: of this kernel, for bpf, where they were found before. Of `denied` the backend bpf tells, and whoever answers is another filter. Raises
    CaptureError."""
    if name == "bpf":
        from substrate.telemetry.capture import bpf

        watching = bpf.make(level, look=look, policy=policy, denied=denied or (), offsets=offsets)
        if not gated:
            return watching
        from substrate.telemetry.capture.gated import GatedBackend

        return GatedBackend(watching)
    if name == "python":
        from substrate.telemetry.capture.python_backend import PythonBackend

        return PythonBackend(level=level)
    return engine.make(name, level, denied=denied, policy=policy)
