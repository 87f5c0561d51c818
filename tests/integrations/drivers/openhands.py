"""OpenHands' terminal tool: one shell in tmux, a prompt that tells status and directory as JSON.

From openhands-tools/openhands/tools/terminal (tmux_terminal.py, terminal_session.py, metadata.py) of
github.com/OpenHands/software-agent-sdk: a window of 1000 columns, keys are sent, the pane is read again until
the prompt is at its end. Without tmux it takes a terminal of its own in the same way.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

from tests.integrations.drivers.outcome import Outcome

NAME = "openhands"
_BEGIN, _END = "###PS1JSON###", "###PS1END###"
_PROMPT = re.compile(rf"^{_BEGIN}\n(.*?)\n{_END}", re.M | re.S)


class Driver:
    def __init__(self, shell: str, cwd: Path, environ: dict[str, str]) -> None:
        self.cwd = cwd
        self.environ = environ
        self.socket = str(cwd.parent / "tmux")
        self.tmux("-f", "/dev/null", "new-session", "-d", "-x", "1000", "-y", "1000", "-s", "main",
                  "-c", str(cwd), shell)  # fmt: skip
        self.tmux("set-option", "-t", "main", "history-limit", "10000")
        fields = json.dumps(
            {"exit_code": "$?", "working_dir": "$(pwd)"}, indent=2
        ).replace('"', '\\"')  # fmt: skip
        prompt = f"\n{_BEGIN}\n{fields}\n{_END}\n"
        self.tmux("send-keys", "-t", "main", "-l", "set +H; bind 'set enable-bracketed-paste off'")
        self.tmux("send-keys", "-t", "main", "Enter")
        self.tmux(
            "send-keys",
            "-t",
            "main",
            "-l",
            f'export PROMPT_COMMAND=\'export PS1="{prompt}"\'; export PS2=""',
        )
        self.tmux("send-keys", "-t", "main", "Enter")
        self.wait(0, 60)

    def tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", self.socket, *words], env=self.environ, capture_output=True, text=True
        )
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def pane(self) -> str:
        lines = self.tmux("capture-pane", "-J", "-p", "-S", "-", "-t", "main").split("\n")
        return "\n".join(line.rstrip() for line in lines).rstrip("\n")

    def wait(self, prompts: int, timeout_s: float) -> str | None:
        """What is shown once there are more prompts, the last of them at the end."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            shown = self.pane()
            if len(_PROMPT.findall(shown)) > prompts and shown.endswith(_END):
                return shown
            time.sleep(0.05)
        return None

    def run(self, command: str, timeout_s: float = 60) -> Outcome:
        self.tmux("send-keys", "-t", "main", "C-l")
        self.tmux("clear-history", "-t", "main")
        before = len(_PROMPT.findall(self.pane()))
        self.tmux("send-keys", "-t", "main", "-l", command)
        self.tmux("send-keys", "-t", "main", "Enter")
        shown = self.wait(before, timeout_s)
        if shown is None:
            self.tmux("send-keys", "-t", "main", "C-c")
            shown = self.wait(before, 30)
            assert shown is not None, self.pane()
        last = list(_PROMPT.finditer(shown))[-1]
        told = json.loads(last[1])
        text = shown[: last.start()].rpartition(command.split("\n")[-1] + "\n")[2]
        return Outcome(status=int(told["exit_code"]), out=text.strip("\n"), cwd=told["working_dir"])

    def close(self) -> None:
        self.tmux("kill-server")
