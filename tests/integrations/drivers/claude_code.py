"""Claude Code's Bash tool: `SHELL -c [-l] TEXT`, by absolute path, detached, a note with the directory.

From what ps shows and the reports of its users (github.com/anthropics/claude-code/issues/47689, 52983):
the first call of a session writes a snapshot of the login shell; each command sources it and evals the
command without input; SIGTERM and then SIGKILL go to the tree when its time is up.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from pathlib import Path

from tests.integrations.drivers.outcome import Outcome

NAME = "claude-code"


class Driver:
    def __init__(self, shell: str, cwd: Path, environ: dict[str, str]) -> None:
        self.shell = shell
        self.cwd = str(cwd)
        self.environ = {
            **environ, "SHELL": shell, "GIT_EDITOR": "true", "CLAUDECODE": "1",
            "CLAUDE_CODE_ENTRYPOINT": "cli", "AGENT_SECRET_TOKEN": "hidden",
        }  # fmt: skip
        directory = Path(environ["HOME"]) / ".claude/shell-snapshots"
        directory.mkdir(parents=True, exist_ok=True)
        self.snapshot = directory / f"snapshot-bash-1787645352430-{secrets.token_hex(3)}.sh"
        self._spawn(
            f"SNAPSHOT_FILE={self.snapshot}\necho 'shopt -s expand_aliases' >| \"$SNAPSHOT_FILE\"",
            True,
        )

    def text(self, command: str, note: str) -> str:
        quoted = "'" + command.replace("'", "'\"'\"'") + "'"
        source = f"source {self.snapshot} 2>/dev/null || true && "
        no_input = "" if "<<" in command else " < /dev/null"
        return (
            f"{source}shopt -u extglob 2>/dev/null || true && "
            "{ \\builtin unalias -- 'unsetenv'; \\builtin unset -f -- 'unsetenv'; } >/dev/null 2>&1 || true && "
            f"eval {quoted}{no_input} && pwd -P >| {note}"
        )

    def run(self, command: str, timeout_s: float = 60) -> Outcome:
        note = f"/tmp/claude-{secrets.token_hex(2)}-cwd"
        status, out, err = self._spawn(self.text(command, note), False, timeout_s)
        if os.path.exists(note):
            self.cwd = Path(note).read_text().strip()
            os.unlink(note)
        return Outcome(status=status, out=out, err=err, cwd=self.cwd)

    def _spawn(self, text: str, login: bool, timeout_s: float = 60) -> tuple[int, str, str]:
        words = [self.shell, "-c", *(["-l"] if login else []), text]
        process = subprocess.Popen(
            words, cwd=self.cwd, env=self.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            out, err = process.communicate(b"", timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                out, err = process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate(timeout=30)
            return 143, out.decode(), ""  # what it says then is not shown
        status = process.returncode
        return 128 - status if status < 0 else status, out.decode(), err.decode()

    def close(self) -> None:
        pass
