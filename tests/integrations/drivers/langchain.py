"""LangChain's ShellToolMiddleware: one shell for all commands, fed by a pipe, with a marker behind each.

From libs/langchain_v1/langchain/agents/middleware/shell_tool.py of github.com/langchain-ai/langchain: the command, then
`printf` of a marker and `$?`, both streams read beside each other; at the end of the time the group is
killed and another shell is started.
"""

from __future__ import annotations

import os
import queue
import secrets
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import IO

from tests.integrations.drivers.outcome import Outcome

NAME = "langchain"


class Driver:
    def __init__(self, shell: str, cwd: Path, environ: dict[str, str]) -> None:
        self.shell, self.cwd, self.environ = shell, cwd, environ
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [self.shell], cwd=self.cwd, env=self.environ, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, bufsize=0,
        )  # fmt: skip
        self.lines: queue.Queue[tuple[str, bytes | None]] = queue.Queue()
        self.readers = [
            threading.Thread(target=self._read, args=(name, stream), daemon=True)
            for name, stream in (("out", self.process.stdout), ("err", self.process.stderr))
        ]
        for reader in self.readers:
            reader.start()

    def _read(self, name: str, stream: IO[bytes]) -> None:
        for line in iter(stream.readline, b""):
            self.lines.put((name, line))
        self.lines.put((name, None))

    def run(self, command: str, timeout_s: float = 60) -> Outcome:
        marker = f"__LC_SHELL_DONE__{secrets.token_hex(8)}"
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\nprintf '{marker} %s\\n' $?\n".encode())
        said: dict[str, bytes] = {"out": b"", "err": b""}
        until = time.monotonic() + timeout_s
        while True:
            try:
                name, line = self.lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                self.restart()
                return Outcome(status=None, out=said["out"].decode())
            if line is None:
                self.restart()
                return Outcome(status=-1, out=said["out"].decode())
            if name == "out" and marker.encode() in line:
                before, _, status = line.partition(marker.encode())
                said["out"] += before
                # what came on the other stream meanwhile
                time.sleep(0.1)
                while not self.lines.empty():
                    name, line = self.lines.get_nowait()
                    said[name] += line or b""
                return Outcome(
                    status=int(status), out=said["out"].decode(), err=said["err"].decode()
                )
            said[name] += line

    def restart(self) -> None:
        self.close()
        self.start()

    def close(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended
        self.process.wait(30)
        for reader in self.readers:
            reader.join(30)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
