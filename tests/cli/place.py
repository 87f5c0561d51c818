"""Where the command is called: a home, a working directory, an environment of their own."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from substrate.cli.main import leave, main

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

    def start_with_input(self, *words):
        """The running process, with pipes for all three streams."""
        return subprocess.Popen(
            [PROGRAM, *words],
            cwd=self.work,
            env=self.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def out(self, *words, **kwargs):
        return self.run(*words, **kwargs).stdout.decode()

    def json(self, *words, **kwargs):
        return json.loads(self.run(*words, **kwargs).stdout)


class ForkedPlace(Place):
    """Verbs are forked from the tests: the same code in a process of its own, without the start
    of Python and the imports, which are most of what a verb costs. Run forms are called as ever."""

    def run(self, *words, status=0, stdin=b"", **environ):
        if os.fsencode(words[0]).startswith(b"-") or words[0] in ("run", "explore"):
            return super().run(*words, status=status, stdin=stdin, **environ)
        with (
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            given.write(stdin)
            given.seek(0)
            pid = os.fork()
            if pid == 0:
                try:
                    for fd, file in enumerate((given, out, err)):
                        os.dup2(file.fileno(), fd)
                    self._be(words, {**self.environ, **environ})
                    leave(main())
                finally:
                    os._exit(99)
            returned = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            streams = []
            for file in (out, err):
                file.seek(0)
                streams.append(file.read())
        if status is not None:
            assert returned == status, (words, *streams)
        return subprocess.CompletedProcess(words, returned, *streams)

    def _be(self, words, environ):
        """Makes this process what one would be that was started with these words."""
        signal.alarm(60)
        os.chdir(self.work)
        os.environ.clear()
        os.environ.update(environ)
        sys.argv = ["substrate", *map(os.fsdecode, words)]
        sys.stdin = open(0, closefd=False)
        sys.stdout, sys.stderr = (
            open(fd, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
            for fd in (1, 2)
        )
