"""The backends that the batteries run against. One more is one more line in `BACKENDS`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from tests.telemetry.capture.facts import Capture
from tests.telemetry.capture.record_capture import (
    BpfCapture,
    EngineCapture,
    PythonCapture,
    bpf_missing,
    engine_missing,
    python_missing,
)
from tests.telemetry.capture.strace_peer import StraceCapture


@dataclass(frozen=True, slots=True)
class Backend:
    """`missing`: what of this host it lacks, in words; None where it can run. `no_new_privs`: a
    command gets no rights of setuid programs under it (prctl(2))."""

    name: str
    make: Callable[[], Capture]
    missing: Callable[[], str | None]
    no_new_privs: bool = False


def strace_missing() -> str | None:
    return None if os.access("/usr/bin/strace", os.X_OK) else "strace is not installed"


BACKENDS: tuple[Backend, ...] = (
    Backend("strace", StraceCapture, strace_missing, no_new_privs=True),
    Backend(
        "strace-plain",
        lambda: StraceCapture("strace-plain", seccomp_bpf=False),
        strace_missing,
    ),
    Backend("hybrid", lambda: EngineCapture("hybrid"), engine_missing, no_new_privs=True),
    Backend("ptrace", lambda: EngineCapture("ptrace"), engine_missing, no_new_privs=True),
    Backend("python", PythonCapture, python_missing, no_new_privs=True),
    Backend("notify", lambda: EngineCapture("notify"), engine_missing, no_new_privs=True),
    # it needs no filter, but those of io_uring's answer do (captured.py)
    Backend("bpf", BpfCapture, bpf_missing, no_new_privs=True),
)
