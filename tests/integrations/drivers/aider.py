"""Aider's /run: on a terminal `$SHELL -i -c TEXT` in a terminal of its own, else `sh -c` with one pipe.

From aider/run_cmd.py of github.com/Aider-AI/aider: pexpect.spawn(shell, ["-i", "-c", command]), what it writes is
shown and kept; without a terminal subprocess with shell=True, both streams in one.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.integrations.drivers import gemini_cli
from tests.integrations.drivers.outcome import Outcome, finish

NAME = "aider"


class Driver:
    """Without a terminal."""

    def __init__(self, shell: str, cwd: Path, environ: dict[str, str]) -> None:
        self.shell, self.cwd, self.environ = shell, cwd, {**environ, "SHELL": shell}

    def run(self, command: str, timeout_s: float = 60) -> Outcome:
        process = subprocess.Popen(
            ["sh", "-c", command], executable=self.shell, cwd=self.cwd, env=self.environ,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,
            start_new_session=True,
        )  # fmt: skip
        out, _, killed = finish(process, timeout_s)
        status = process.returncode
        return Outcome(
            status=None if killed else 128 - status if status < 0 else status, out=out.decode()
        )

    def close(self) -> None:
        pass


class TerminalDriver(gemini_cli.Driver):
    """`$SHELL -i -c`: an interactive shell reads its start-up files, and takes the terminal."""

    terminal = True

    def __init__(self, shell: str, cwd: Path, environ: dict[str, str]) -> None:
        super().__init__(shell, cwd, environ)
        self.environ = {**environ, "SHELL": shell}

    def run(self, command: str, timeout_s: float = 60) -> Outcome:
        return self._in_terminal([self.shell, "-i", "-c", command], timeout_s)
