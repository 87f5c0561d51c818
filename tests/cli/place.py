"""Where the command is called: a home, a working directory, an environment of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("substrate")
ROOT = Path(__file__).resolve().parents[2]


class Place:
    """A home, a working directory and an environment; `run` calls the command there."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.home = base / "home"
        self.work = base / "work"
        self.work.mkdir()
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(base / "user"),
            "SUBSTRATE_HOME": str(self.home),
            "LANG": "C.UTF-8",
            "TERM": "xterm",
        }
        (base / "user").mkdir()

    def run(self, *words, status=0, stdin=b"", **environ):
        """The finished process; its status must be `status` (None: any)."""
        done = subprocess.run(
            [PROGRAM, *words],
            cwd=self.work,
            env={**self.environ, **environ},
            input=stdin,
            capture_output=True,
        )
        if status is not None:
            assert done.returncode == status, (words, done.stdout, done.stderr)
        return done

    def start(self, *words):
        """The running process, its output in pipes."""
        return subprocess.Popen(
            [PROGRAM, *words],
            cwd=self.work,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def out(self, *words, **kwargs):
        return self.run(*words, **kwargs).stdout.decode()

    def json(self, *words, **kwargs):
        return json.loads(self.run(*words, **kwargs).stdout)
