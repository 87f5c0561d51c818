"""A few rounds of what scripts/fuzz-engine does for as long as it is told to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.telemetry.capture.hostile_programs import Hostile, can_compile
from tests.telemetry.capture.record_capture import engine_missing

PROJECT = Path(__file__).parents[3]


@pytest.fixture
def program() -> Iterator[str]:
    """In a directory that every user can enter."""
    with tempfile.TemporaryDirectory(prefix="engine-chaos-") as directory:
        os.chmod(directory, 0o755)
        path = Hostile(Path(directory)).path("chaos")
        os.chmod(path, 0o755)
        yield path


@pytest.mark.skipif(not can_compile(), reason="gcc is not installed")
@pytest.mark.skipif(engine_missing() is not None, reason=str(engine_missing()))
def test_programs_that_call_at_random_break_nothing(program):
    if os.geteuid() == 0 and subprocess.run(["unshare", "--net", "true"], check=False).returncode:
        pytest.skip("no namespace of a network can be made")
    uid = 60_000 + os.getpid() % 4_000  # others may run this now, too
    done = subprocess.run(
        [sys.executable, "-m", "tests.telemetry.capture.engine_chaos", "--chaos", program,
         "--seconds", "3", "--seed", "1", "--uid", str(uid)],
        cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["rounds"] >= 3
    assert found["fork"] > 10
    assert found["call"] > 100
