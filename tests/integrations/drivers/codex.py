"""Codex CLI's shell tool: `bash -lc TEXT` in a group of its own, without input, variables dropped.

From codex-rs/core (shell.rs, spawn.rs, exec.rs, exec_env.rs) of github.com/openai/codex: the shell of the password
file, names with KEY, SECRET, TOKEN left out, SIGKILL to the group at the end of the time, status 124.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.integrations.drivers.outcome import Outcome

NAME = "codex"


class Driver:
    def __init__(self, shell: str, cwd: Path, environ: dict[str, str]) -> None:
        self.shell = shell
        self.cwd = cwd
        kept = {
            name: text for name, text in environ.items()
            if not any(part in name for part in ("KEY", "SECRET", "TOKEN"))
        }  # fmt: skip
        self.environ = {
            **kept, "NO_COLOR": "1", "TERM": "dumb", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8",
            "COLORTERM": "", "PAGER": "cat", "GIT_PAGER": "cat", "CODEX_CI": "1",
        }  # fmt: skip

    def run(self, command: str, timeout_s: float = 60) -> Outcome:
        process = subprocess.Popen(
            [self.shell, "-lc", command], cwd=self.cwd, env=self.environ,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            process_group=0,
        )  # fmt: skip
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, _ = process.communicate(timeout=30)
            return Outcome(status=124, out=out.decode())
        status = process.returncode
        return Outcome(
            status=128 - status if status < 0 else status, out=out.decode(), err=err.decode()
        )

    def close(self) -> None:
        pass
