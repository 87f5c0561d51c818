"""For tests of the python backend: a command with its seccomp program, run under it.

`run` gives what a supervisor would see: status, output, records. The command is our own child, and
its tracer another one of ours.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from substrate.telemetry.capture import calls, engine, gate, records
from substrate.telemetry.capture.python_backend import PythonBackend

PYTHON = "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else shutil.which("python3")
_PR_SET_PTRACER, _PR_SET_NO_NEW_PRIVS = 0x59616D61, 38
_SECCOMP = {"x86_64": 317, "aarch64": 277}[calls.MACHINE]
LIMIT_S = 60.0


def install(program: bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    buffer = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    if libc.syscall(_SECCOMP, 1, 0, head) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


@dataclass
class Record:
    kind: int
    flags: int
    abi: int
    tid: int
    nr: int
    time_ns: int
    result: int
    args: tuple[int, ...]
    items: list[tuple[int, bytes]]

    @property
    def name(self) -> str:
        return calls.by_number(calls.MACHINE, self.abi).get(self.nr, ("", b""))[0]

    def item(self, tag: int) -> bytes | None:
        return next((text for found, text in self.items if found == tag), None)


def parse(data: bytes) -> list[Record]:
    found = []
    for head, at, end in records.read_records(data):
        _, kind, flags, abi, tid, nr, time_ns, result, *args = head
        items = [(tag, text) for tag, _, text in records.read_items(data, at, end)]
        found.append(Record(kind, flags, abi, tid, nr, time_ns, result, tuple(args), items))
    return found


@dataclass
class Run:
    pid: int
    status: int = -1
    out: bytes = b""
    records: list[Record] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)

    def kind(self, kind: int) -> list[Record]:
        return [record for record in self.records if record.kind == kind]

    def calls(self, *names: str) -> list[Record]:
        return [r for r in self.kind(records.CALL) if r.name in names]

    def execs(self) -> list[list[bytes]]:
        return [
            (record.item(records.ARGV) or b"").split(b"\0")[:-1]
            for record in self.kind(records.EXEC)
        ]


class Traced:
    """A command that was let go under a backend; `run` does all at once."""

    def __init__(self, argv, backend, *, level="files", filtered=True, cwd=None, env=None):
        self.backend = backend
        read_end, self._go = os.pipe()
        self.out, out_write = os.pipe()
        ready, ready_write = os.pipe()
        program = engine.programs_of("python", level).trace
        self.pid = os.fork()
        if not self.pid:
            try:
                os.setpgid(0, 0)
                ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
                os.dup2(out_write, 1)
                os.dup2(out_write, 2)
                os.close(self._go)
                for number in (signal.SIGPIPE, signal.SIGXFSZ):
                    signal.signal(number, signal.SIG_DFL)
                if cwd is not None:
                    os.chdir(cwd)
                environment = dict(os.environ if env is None else env)
                if filtered:
                    install(program)
                os.write(ready_write, b"w")
                os.read(read_end, 1)
                os.execve(argv[0], argv, environment)
            finally:
                os._exit(127)
        for fd in (read_end, out_write, ready_write):
            os.close(fd)
        assert os.read(ready, 1) == b"w"
        os.close(ready)
        try:
            backend.attach(self.pid, None)
        except BaseException:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise
        os.write(self._go, b"g")
        os.close(self._go)
        self.run = Run(self.pid)
        self._data = b""

    def step(self, timeout_s: float) -> None:
        """Drains what comes within a time, and collects what was written."""
        poll = select.poll()
        poll.register(self.backend.fileno(), select.POLLIN)
        if self.out >= 0:
            poll.register(self.out, select.POLLIN)
        for fd, _ in poll.poll(timeout_s * 1000):
            if fd == self.out:
                part = os.read(self.out, 1 << 16)
                self.run.out += part
                if not part:
                    os.close(self.out)
                    self.out = -1
            else:
                self._data += self.backend.drain()

    def until(self, condition) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition(self):
            assert time.monotonic() < deadline, (self.run.out, parse(self._data)[-5:])
            self.step(0.2)

    def seen(self) -> list[Record]:
        return parse(self._data)

    def raw(self) -> bytes:
        """All records so far."""
        return self._data

    def finish(self) -> Run:
        self.until(lambda t: t.backend.finished() and t.out < 0)
        _, self.run.status = os.waitpid(self.pid, 0)
        self.run.records = parse(self._data)
        self.run.lost = self.backend.lost()
        self.backend.close()
        return self.run


def run(argv, *, level="files", filtered=True, ask=None, hold_ms=gate.HOLD_MS, **more) -> Run:
    """A command's whole life under a backend of its own."""
    backend = PythonBackend(level=level, filtered=filtered, ask=ask, hold_ms=hold_ms)
    try:
        argv = [os.fsdecode(word) for word in argv]
        return Traced(argv, backend, level=level, filtered=filtered, **more).finish()
    finally:
        backend.close()


def compiled(directory: Path, source: str, *flags: str) -> str:
    """The program of a C text."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    name = directory / "program"
    name.with_suffix(".c").write_text(source)
    subprocess.run(
        [compiler, "-O1", "-w", "-pthread", *flags, "-o", name, name.with_suffix(".c")], check=True
    )
    return str(name)


def without_rights(script: str, *words: str) -> list[str]:
    """The lines that a Python text writes when a user without any rights runs it: ourselves, or
    where we are root another one. Our root is its first word."""
    root = str(Path(__file__).resolve().parents[3])
    python = [sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv[1])\n" + script, root]
    if os.getuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("no setpriv")
        become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        look = [sys.executable, "-c", "import pytest, sys; open(sys.argv[1])"]
        probe = subprocess.run(
            [*become, *look, f"{root}/pyproject.toml"], cwd="/", capture_output=True, env={}
        )
        if probe.returncode:
            pytest.skip("this Python or this directory can be reached by root only")
        python = [*become, *python]
    done = subprocess.run(
        [*python, *words],
        cwd="/",
        capture_output=True,
        text=True,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
