"""Loading by two threads: a failure anywhere is told, and leaves neither descriptors nor threads."""

from __future__ import annotations

import errno
import os
import subprocess
import time

import pytest

from substrate.telemetry.capture import bpf, bpf_program, bpf_tables
from substrate.telemetry.capture.backend import CaptureError
from substrate.telemetry.capture.bpf_layout import Limits
from substrate.telemetry.capture.bpf_loading import Loading
from substrate.telemetry.capture.bpf_program import Programs

pytestmark = pytest.mark.skipif(bool(bpf.probe()), reason=bpf.probe() or "works")

SMALL = Limits(ring=1 << 16, tasks=64)


def _made() -> Programs:
    return bpf_program.make_programs(bpf.load_offsets(), SMALL)


def _with(name: str, code: bytes) -> Programs:
    made = _made()
    return Programs(code={**made.code, name: (code, b"")}, types=made.types)


def _refused(loading_of, match: str) -> CaptureError:
    """What it fails with, in the constructor or in `wait`; all that was made is gone then."""
    _made()  # what is imported and opened once
    fds, threads = os.listdir("/proc/self/fd"), os.listdir("/proc/self/task")
    with pytest.raises(CaptureError, match=match) as caught:
        loading = loading_of()
        try:
            loading.wait()
        finally:
            loading.close()
    assert len(os.listdir("/proc/self/fd")) == len(fds)
    end = time.monotonic() + 30
    while len(os.listdir("/proc/self/task")) > len(threads):  # the last steps of a thread
        assert time.monotonic() < end, "a thread goes on"
    return caught.value


@pytest.mark.parametrize("name", ["sys_enter", "sys_exit", "sched_process_exit"])
def test_a_program_that_is_refused(name):
    code = bytes.fromhex("9500000000000000")
    error = _refused(
        lambda: Loading(SMALL, lambda: bpf_tables.make_tables((0,)), lambda: _with(name, code)),
        f"program {name}: (.|\n)*R0 !read_ok",
    )
    assert error.errno == errno.EACCES


def test_a_ring_that_cannot_be_made():
    odd = Limits(ring=12345, tasks=64)
    error = _refused(lambda: Loading(odd, lambda: bpf_tables.make_tables((0,)), _made), "map ring")
    assert error.errno == errno.EINVAL


def _fail() -> bytes:
    raise CaptureError("tables", errno.EIO, "none")


def test_tables_that_cannot_be_made_while_the_ring_is():
    _refused(lambda: Loading(SMALL, _fail, _made), "tables")


def test_programs_that_cannot_be_made():
    def none() -> Programs:
        raise CaptureError("programs", errno.EIO, "none")

    _refused(lambda: Loading(SMALL, lambda: bpf_tables.make_tables((0,)), none), "programs")


def test_a_backend_that_could_not_be_loaded_cannot_be_used():
    backend = bpf.BpfBackend(limits=Limits(ring=12345, tasks=64))
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as waiting:
        with pytest.raises(CaptureError, match="map ring"):
            backend.attach(waiting.pid, None)
        with pytest.raises(CaptureError, match="attach: a backend is for one command"):
            backend.attach(waiting.pid, None)
    assert backend.drain() == b""
    backend.close()
