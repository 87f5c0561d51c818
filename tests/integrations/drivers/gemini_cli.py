"""Gemini CLI's run_shell_command: `bash` by PATH, `-c`, on a terminal of 80 by 30 or in pipes.

From packages/core/src/tools/shell.ts and services/shellExecutionService.ts of github.com/google-gemini/gemini-cli:
the command in braces, the processes of its group written to a file behind it, the group killed at the end.
"""

from __future__ import annotations

import os
import pty
import secrets
import signal
import struct
import subprocess
import termios
import time
from fcntl import ioctl
from pathlib import Path
from select import select

from tests.integrations.drivers.outcome import Outcome

NAME = "gemini-cli"


class Driver:
    terminal = False

    def __init__(self, shell: str, cwd: Path, environ: dict[str, str]) -> None:
        self.cwd = cwd
        path = f"{os.path.dirname(shell)}:{environ['PATH']}"
        self.environ = {
            **environ, "PATH": path, "GEMINI_CLI": "1", "TERM": "xterm-256color", "PAGER": "cat",
            "GIT_PAGER": "cat",
        }  # fmt: skip
        self.shell = shell  # what `bash` is on that PATH

    def text(self, command: str, note: str) -> str:
        command = command.strip()
        if not command.endswith("&"):
            command += ";"
        return (
            "shopt -u promptvars nullglob extglob nocaseglob dotglob; "
            f"{{ {command} }}; __code=$?; pgrep -g 0 >{note} 2>&1; exit $__code;"
        )

    def run(self, command: str, timeout_s: float = 60) -> Outcome:
        note = f"/tmp/shell_pgrep_{secrets.token_hex(6)}.tmp"
        words = ["bash", "-c", self.text(command, note)]
        found = (
            self._in_terminal(words, timeout_s)
            if self.terminal
            else self._in_pipes(words, timeout_s)
        )
        if os.path.exists(note):
            os.unlink(note)
        return found

    def _in_pipes(self, words: list[str], timeout_s: float) -> Outcome:
        process = subprocess.Popen(
            words, executable=self.shell, cwd=self.cwd, env=self.environ, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            out, _ = process.communicate(timeout=30)
            return Outcome(status=None, out=out.decode())
        status = process.returncode
        return Outcome(
            status=128 - status if status < 0 else status, out=out.decode(), err=err.decode()
        )

    def _in_terminal(self, words: list[str], timeout_s: float) -> Outcome:
        master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))
        process = subprocess.Popen(
            words, executable=self.shell, cwd=self.cwd, env=self.environ, stdin=slave, stdout=slave,
            stderr=slave, start_new_session=True,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no threads here
        )  # fmt: skip
        os.close(slave)
        shown, until = b"", time.monotonic() + timeout_s
        killed = False
        while True:
            if not select([master], [], [], max(0.0, until - time.monotonic()))[0]:
                os.killpg(process.pid, signal.SIGHUP)
                killed, until = True, time.monotonic() + 30
                continue
            try:
                got = os.read(master, 65536)
            except OSError:
                break
            if not got:
                break
            shown += got
        os.close(master)
        status = process.wait(30)
        out = shown.decode().replace("\r\n", "\n")
        return Outcome(status=None if killed else 128 - status if status < 0 else status, out=out)

    def close(self) -> None:
        pass


class TerminalDriver(Driver):
    terminal = True
