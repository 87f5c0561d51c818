"""Runs a command under a capture backend, without a world and without a trace: for tests of what
the backends see.

The command is started by a process between, as a world's holder does it: a tracer that is in the
process of the parent would take the child's end away from it.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from substrate.telemetry.capture import backends, calls, engine, gate, records
from substrate.world import linux

LISTENER = 1 << 3 | 1 << 5
LIMIT_S = 60.0
PYTHON = [sys.executable, "-I", "-S", "-c"]


@dataclass
class Record:
    """One record, by name."""

    kind: str
    call: str
    tid: int
    result: int
    args: tuple[int, ...]
    flags: int
    abi: int
    time_ns: int
    items: dict[str, Any]  # tag -> bytes; of `fd` and `data` lists

    def path(self, tag: str = "path") -> bytes | None:
        found: bytes | None = self.items.get(tag)
        return found


@dataclass
class Captured:
    """What came of it. `status`: of the command, as wait(2) has it."""

    status: int
    records: list[Record]
    lost: dict[str, int]
    stdout: bytes = b""
    stderr: bytes = b""
    raw: bytes = field(default=b"", repr=False)

    def of(self, *names: str) -> list[Record]:
        """The records of these calls, or kinds."""
        return [r for r in self.records if r.call in names or r.kind in names]


class Running:
    """A command that is captured. Use it as a context."""

    def __init__(
        self,
        argv: Sequence[bytes | str],
        backend: str = "hybrid",
        level: str = "files",
        *,
        cwd: str | bytes | None = None,
        env: dict[str, str] | None = None,
        arm: Callable[[engine.EngineBackend], None] | None = None,
        policy: str = "block",
        ring_bytes: int = engine.RING_BYTES,
        preexec: Callable[[], None] | None = None,
        **options: Any,
    ) -> None:
        self.programs = engine.programs_of(backend, level, **options)
        self.backend: Any = (
            backends.make(backend, level, policy=policy)
            if backend == "bpf"
            else engine.make(backend, level, policy=policy, ring_bytes=ring_bytes)
        )
        if arm is not None:
            arm(self.backend)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.out_read, out = os.pipe()
        self.err_read, err = os.pipe()
        self.parent = os.fork()
        if self.parent == 0:
            try:
                ours.close()
                self._between(argv, theirs, out, err, cwd, env, preexec)
            finally:
                os._exit(99)
        theirs.close()
        os.close(out)
        os.close(err)
        text, fds, _, _ = socket.recv_fds(ours, 64, 1)
        self.socket = ours
        self.pid = int(text)
        self.stdout = self.stderr = b""
        self.chunks: list[bytes] = []
        self.status: int | None = None
        self.backend.attach(self.pid, fds[0] if fds else None)

    def _between(self, argv, theirs, out, err, cwd, env, preexec):  # type: ignore[no-untyped-def]
        pid = os.fork()
        if pid == 0:
            try:
                self._child(argv, theirs, out, err, cwd, env, preexec)
            finally:
                os._exit(98)
        os.close(out)
        os.close(err)
        _, status = os.waitpid(pid, 0)
        theirs.send(b"%d" % status)
        os._exit(0)

    def _child(self, argv, theirs, out, err, cwd, env, preexec):  # type: ignore[no-untyped-def]
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for fd, at in ((null, 0), (out, 1), (err, 2)):
            os.dup2(fd, at)
        if cwd is not None:
            os.chdir(cwd)
        if preexec is not None:
            preexec()
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        fds = []
        if self.programs.notify:
            fds = [linux.install_filter(self.programs.notify, LISTENER)]
        socket.send_fds(theirs, [b"%d" % os.getpid()], fds)
        if theirs.recv(1) != b"g":
            os._exit(97)
        if self.programs.trace:
            linux.install_filter(self.programs.trace)
        linux.mark_close_on_exec(3)
        os.execvpe(argv[0], list(argv), os.environ if env is None else env)

    def go(self) -> None:
        self.socket.send(b"g")

    def step(self, timeout_s: float = 1.0) -> bytes:
        """Waits a little for what comes, and takes it. Returns the records that came."""
        poll = select.poll()
        for fd in (self.out_read, self.err_read):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        poll.register(self.backend.fileno(), select.POLLIN)
        poll.register(self.backend.soft_fileno(), select.POLLIN)
        if self.status is None:
            poll.register(self.socket.fileno(), select.POLLIN)
        for fd, _ in poll.poll(timeout_s * 1000):
            if fd == self.out_read:
                data = os.read(fd, 65536)
                self.stdout += data
                if not data:
                    os.close(fd)
                    self.out_read = -1
            elif fd == self.err_read:
                data = os.read(fd, 65536)
                self.stderr += data
                if not data:
                    os.close(fd)
                    self.err_read = -1
            elif fd == self.socket.fileno():
                self.status = int(self.socket.recv(64) or b"-1")
        data = self.backend.drain()
        if data:
            self.chunks.append(data)
        return data

    def wait(self, limit_s: float = LIMIT_S) -> Captured:
        """To the end of the tree."""
        until = time.monotonic() + limit_s
        while not (
            self.backend.finished()
            and self.status is not None
            and self.out_read < 0
            and self.err_read < 0
        ):
            if time.monotonic() > until:
                raise TimeoutError(f"still running: {self.stdout!r} {self.stderr!r}")
            self.step()
        raw = b"".join(self.chunks)
        assert self.status is not None
        return Captured(
            status=self.status,
            records=list(parse(raw)),
            lost=self.backend.lost(),
            stdout=self.stdout,
            stderr=self.stderr,
            raw=raw,
        )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.backend.close()
        self.socket.close()
        for fd in (self.out_read, self.err_read):
            if fd >= 0:
                os.close(fd)
        if self.parent:
            try:
                os.kill(self.parent, signal.SIGKILL)
            except ProcessLookupError:
                pass
            os.waitpid(self.parent, 0)
            self.parent = 0


def capture(argv: Sequence[bytes | str], backend: str = "hybrid", **options: Any) -> Captured:
    """Runs it to its end."""
    with Running(argv, backend, **options) as running:
        running.go()
        return running.wait()


def armed(
    table: Mapping[bytes, int], otherwise: int = gate.ALLOW, hold_ms: int = 20_000
) -> Callable[[Any], None]:
    """What arms a backend's gate, for `Running` and `capture`. `hold_ms`: more than any answer
    takes, where the end of a hold is not what is tested."""

    def arm(backend: Any) -> None:
        backend.arm(gate.pack_table(table), otherwise, hold_ms)

    return arm


def parse(raw: bytes) -> Iterator[Record]:
    tables = {
        abi: calls.by_number(calls.MACHINE, abi)
        for abi in ((0, 1, 2) if calls.MACHINE == "x86_64" else (0,))
    }
    for head, at, end in records.read_records(raw):
        items: dict[str, Any] = {}
        for tag, _, text in records.read_items(raw, at, end):
            name = records.TAGS[tag]
            if name in ("fd", "data"):
                items.setdefault(name, []).append(text)
            else:
                items[name] = text
        call = tables[head[3]].get(head[5], (str(head[5]), b""))[0]
        kind = records.KINDS[head[1]]
        yield Record(
            kind=kind,
            call=call if kind in ("call", "exec", "denied", "hold", "gate") else kind,
            tid=head[4],
            result=head[7],
            args=head[8:14],
            flags=head[2],
            abi=head[3],
            time_ns=head[6],
            items=items,
        )
