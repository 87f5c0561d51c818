"""What a driver's call of a shell came to, as the agent would see it."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`status`: as the agent is told it; `out` with what stands in it of standard error, where the agent
    has both in one. `cwd`: where the agent believes that its shell is afterwards."""

    status: int | None
    out: str
    err: str = ""
    cwd: str | None = None


def finish(
    process: subprocess.Popen[bytes], timeout_s: float, stdin: bytes | None = None
) -> tuple[bytes, bytes, bool]:
    """(output, errors, whether it was killed): as agents do, the whole group at the end of the time."""
    try:
        out, err = process.communicate(stdin, timeout_s)
        return out or b"", err or b"", False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate(timeout=30)
        return out or b"", err or b"", True
