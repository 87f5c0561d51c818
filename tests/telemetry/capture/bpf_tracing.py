"""Runs a command under the bpf backend, and reads its records as values."""

from __future__ import annotations

import os
import select
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from substrate.telemetry.capture import bpf, calls, records


class Seen(NamedTuple):
    kind: int
    flags: int
    abi: int
    tid: int
    name: str
    time_ns: int
    result: int
    args: tuple[int, ...]
    items: tuple[tuple[int, int, bytes], ...]

    def item(self, tag: int) -> bytes | None:
        found = [text for its, _, text in self.items if its == tag]
        return found[0] if found else None


def read(data: bytes) -> list[Seen]:
    names = {abi: calls.by_number(abi=abi) for abi in (calls.NATIVE, calls.I386, calls.X32)}
    return [
        Seen(
            *(head[1], head[2], head[3], head[4]),
            names[head[3]].get(head[5], ("",))[0]
            if head[1] in (records.CALL, records.EXEC)
            else "",
            *(head[6], head[7], head[8:14]),
            tuple(records.read_items(data, at, end)),
        )
        for head, at, end in records.read_records(data)
    ]


class Tracing:
    """A command that waits at first, its backend, and what was drained."""

    def __init__(self, argv: list[str], env: dict[str, str] | None = None, **options) -> None:
        self.backend = bpf.BpfBackend(**options)
        self.data = b""
        ready, self._go = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.read(ready, 1)
                os.execve(argv[0], argv, os.environ if env is None else env)
            finally:
                os._exit(127)
        os.close(ready)
        try:
            self.backend.attach(self.pid, None)
        except BaseException:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
            self.backend.close()
            raise

    def go(self) -> None:
        os.write(self._go, b"x")
        os.close(self._go)

    def finish(self, *, drain: bool = True, bound_s: float = 60) -> int:
        """The wait status; with `drain` until there is no more to come."""
        end = time.monotonic() + bound_s
        while drain and not self.backend.finished():
            assert time.monotonic() < end, "the tree never ended"
            select.select([self.backend.fileno()], [], [], 0.1)
            self.data += self.backend.drain()
        _, status = os.waitpid(self.pid, 0)
        while data := self.backend.drain():
            self.data += data
        return status

    def close(self) -> None:
        self.backend.close()

    def seen(self) -> list[Seen]:
        return read(self.data)


def trace(
    argv: list[str], *, env: dict[str, str] | None = None, status: int = 0, **options
) -> list[Seen]:
    """All that a command did; it must end with this wait status, and nothing may be lost."""
    tracing = Tracing(argv, env, **options)
    try:
        tracing.go()
        ended = tracing.finish()
        assert tracing.backend.lost() == {}
    finally:
        tracing.close()
    assert ended == status, tracing.seen()[-5:]
    return tracing.seen()


def compile_c(tmp_path: Path, text: str, *flags: str) -> str:
    source, program = tmp_path / "tracee.c", tmp_path / "tracee"
    source.write_text(text)
    subprocess.run(["gcc", "-O1", "-w", "-o", program, source, *flags, "-lpthread"], check=True)
    return str(program)
