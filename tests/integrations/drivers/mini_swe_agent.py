"""mini-SWE-agent's local environment: one process a command, both streams in one, a time limit.

From src/minisweagent/environments/local.py of github.com/SWE-agent/mini-swe-agent: subprocess.run(command,
shell=True, stdout=PIPE, stderr=STDOUT, timeout=…), the environment with PAGER=cat and the like; its docker
environment says `bash -lc`.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.integrations.drivers.outcome import Outcome, finish

NAME = "mini-swe-agent"


class Driver:
    def __init__(self, shell: str, cwd: Path, environ: dict[str, str]) -> None:
        self.shell, self.cwd = shell, cwd
        self.environ = {
            **environ, "PAGER": "cat", "MANPAGER": "cat", "LESS": "-R",
            "PIP_PROGRESS_BAR": "off", "TQDM_DISABLE": "1",
        }  # fmt: skip

    def run(self, command: str, timeout_s: float = 60) -> Outcome:
        process = subprocess.Popen(
            [self.shell, "-lc", command], cwd=self.cwd, env=self.environ, stdin=None,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        out, _, killed = finish(process, timeout_s)
        status = process.returncode
        return Outcome(
            status=None if killed else 128 - status if status < 0 else status,
            out=out.decode("utf-8", "replace"),
        )

    def close(self) -> None:
        pass
