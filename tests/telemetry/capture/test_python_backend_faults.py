"""When a part of the python backend goes, the tree goes with it, and that is told."""

from __future__ import annotations

import errno
import os
import select
import signal
from pathlib import Path

import pytest

from substrate.telemetry.capture import records
from substrate.telemetry.capture.backend import CaptureError
from substrate.telemetry.capture.python_backend import PythonBackend
from tests.telemetry.capture.traced_command import (
    PYTHON,
    Traced,
    compiled,
    parse,
    run,
    without_rights,
)

#: a tree of three, of which one has left its group; "up" once all are there
TREE = """
import os, signal, sys
r, w = os.pipe()
if not os.fork():
    os.setsid()
    if not os.fork():
        os.write(w, b'x')
        signal.pause()
    os.write(w, b'x')
    signal.pause()
got = b''
while len(got) < 2: got += os.read(r, 2)
print('up', flush=True)
signal.pause()
"""


def tree(backend: PythonBackend) -> tuple[Traced, list[int]]:
    traced = Traced([PYTHON, "-I", "-S", "-c", TREE], backend)
    traced.until(lambda t: t.run.out == b"up\n")
    made = [r.result for r in traced.seen() if r.kind == records.FORK]
    assert len(made) == 2
    return traced, [os.pidfd_open(pid) for pid in (traced.pid, *made)]


def assert_ended(pidfds: list[int]) -> None:
    for pidfd in pidfds:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(20_000)
        os.close(pidfd)


def assert_all_end(traced: Traced, pidfds: list[int]) -> None:
    _, status = os.waitpid(traced.pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert_ended(pidfds)


def test_a_killed_tracer_takes_the_tree_along():
    backend = PythonBackend()
    traced, pidfds = tree(backend)
    os.kill(backend.tracer_pid, signal.SIGKILL)
    assert_all_end(traced, pidfds)
    traced.until(lambda t: t.backend.finished())
    assert backend.lost() == {"ended": 1}
    backend.close()


def test_closing_takes_the_tree_along():
    backend = PythonBackend()
    traced, pidfds = tree(backend)
    backend.close()
    backend.close()
    assert_all_end(traced, pidfds)
    assert backend.finished()
    with pytest.raises(ProcessLookupError):
        os.kill(backend.tracer_pid, 0)


def test_a_killed_supervisor_takes_the_tree_along():
    read_end, write_end = os.pipe()
    supervisor = os.fork()
    if not supervisor:
        try:
            traced, _ = tree(PythonBackend())
            made = [r.result for r in traced.seen() if r.kind == records.FORK]
            os.write(write_end, b" ".join(b"%d" % pid for pid in (traced.pid, *made)) + b"\n")
            signal.pause()
        finally:
            os._exit(1)
    os.close(write_end)
    with os.fdopen(read_end) as told:
        pids = [int(word) for word in told.readline().split()]
    assert len(pids) == 3
    pidfds = [os.pidfd_open(pid) for pid in pids]
    os.kill(supervisor, signal.SIGKILL)
    os.waitpid(supervisor, 0)
    assert_ended(pidfds)


def test_a_supervisor_that_reads_late_loses_nothing(tmp_path):
    source = r"""
#include <fcntl.h>
#include <string.h>
#include <stdlib.h>
#include <unistd.h>
int main(void) { char n[3000]; memset(n, 'n', sizeof n); n[2999] = 0;
  for (int i = 0; i < 800; i++) open(n, O_RDONLY); return 0; }
"""
    backend = PythonBackend()
    traced = Traced([compiled(tmp_path, source)], backend)
    pidfd = os.pidfd_open(traced.pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert not poll.poll(1000)  # held by a full pipe
    os.close(pidfd)
    found = traced.finish()
    assert found.status == 0 and not found.lost
    assert [len(r.item(records.PATH)) for r in found.calls("openat")][-800:] == [2999] * 800


def test_a_process_that_is_not_there():
    backend = PythonBackend()
    gone = os.fork()
    if not gone:
        os._exit(0)
    os.waitpid(gone, 0)
    with pytest.raises(CaptureError, match="seize") as raised:
        backend.attach(gone, None)
    assert raised.value.errno == errno.ESRCH
    backend.close()


def test_a_listener_is_refused_and_closed():
    backend = PythonBackend()
    read_end, write_end = os.pipe()
    with pytest.raises(CaptureError, match="listener"):
        backend.attach(os.getpid(), read_end)
    with pytest.raises(BrokenPipeError):
        os.write(write_end, b"x")
    os.close(write_end)
    backend.close()


def test_a_tracer_that_ends_before_it_is_asked():
    backend = PythonBackend()
    os.kill(backend.tracer_pid, signal.SIGKILL)
    with pytest.raises(CaptureError) as raised:
        backend.attach(os.getpid(), None)
    assert raised.value.errno in (errno.ESRCH, errno.EPIPE)
    backend.close()
    assert backend.lost() == {}


def test_without_python_ptrace_it_says_so(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(CaptureError, match="pip install python-ptrace"):
        PythonBackend()
    assert os.listdir("/proc/self/fd") == before


def test_nothing_of_the_environment_reaches_the_tracer(tmp_path, monkeypatch):
    for name in ("struct.py", "socket.py", "sitecustomize.py", "usercustomize.py", "ptrace.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "struct.py"))
    monkeypatch.setenv("SUBSTRATE_SECRET", "x")
    backend = PythonBackend()
    traced = Traced(["/bin/sleep", "60"], backend, env={})
    environment = Path(f"/proc/{backend.tracer_pid}/environ")
    if os.getuid() == 0:  # it is not dumpable, so nobody else may look
        assert b"SECRET" not in environment.read_bytes()
    os.kill(traced.pid, signal.SIGTERM)
    traced.finish()
    assert not (tmp_path / "ran").exists()


ROOTLESS = """
import os
from substrate.telemetry.capture import gate, records
from substrate.telemetry.capture.python_backend import PythonBackend
from tests.telemetry.capture.traced_command import Traced, PYTHON
backend = PythonBackend(ask=lambda hold: gate.ALLOW)
look = (
    "import os\\n"
    "def no(act):\\n"
    "    try: act()\\n"
    "    except PermissionError: return 'no'\\n"
    "    return 'yes'\\n"
    f"p = '/proc/{backend.tracer_pid}'\\n"
    "print(no(lambda: open(p + '/mem', 'rb')), no(lambda: os.listdir(p + '/fd')), flush=True)\\n"
)
found = Traced([PYTHON, "-I", "-S", "-c", look], backend).finish()
print(os.getuid(), found.status, found.out, found.lost, len(found.kind(records.EXEC)))
print(found.kind(records.EXEC)[0].item(records.EXE))
"""


def test_without_rights():
    """The same for a user without any: and the tree cannot look into its tracer."""
    first, program = without_rights(ROOTLESS)
    assert first == f"{os.getuid() or 65534} 0 b'no no\\n' {{}} 1"
    assert "python3" in program


def test_torn_records_are_counted():
    """The pipe ends in the middle of a record when the tracer is killed while it writes."""
    backend = PythonBackend()
    os.kill(backend.tracer_pid, signal.SIGKILL)
    backend._tail = records.make_record(records.CALL, tid=1)[:-8]
    poll = select.poll()
    poll.register(backend.fileno(), select.POLLIN)
    poll.poll(20_000)
    assert backend.drain() == b""
    assert backend.finished() and backend.lost() == {"torn": 1}
    backend.close()


def test_a_level_of_processes_only(tmp_path):
    found = run(["/bin/sh", "-c", "cat /etc/hostname >/dev/null; :"], level="exec")
    assert len(found.execs()) == 2
    assert {r.name for r in found.kind(records.CALL)} <= {"execve"}
    assert parse(b"") == []
