"""What the exec gate may answer by a program's path and name alone. Spec: policy.md §4."""

from __future__ import annotations

from substrate.telemetry.capture import gate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.policy.decide import Compiled


def make_table(compiled: Compiled) -> tuple[dict[bytes, int], int]:
    """Path or last name to gate.ALLOW, DENY or ASK, and the answer for all else."""
    return {}, gate.ASK if compiled.rules else gate.ALLOW
