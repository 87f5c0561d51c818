"""A host of its own for a test: a private mount namespace, and callers who run in it.

What is mounted there is seen nowhere else and goes with the last process in it.
"""

import json
import os
import subprocess
from pathlib import Path


class PrivateHost:
    """`pid`: a process that holds the namespace."""

    def __init__(self):
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout.readline() == b"ready\n"
        self.pid = self._holder.pid

    def close(self):
        self._holder.stdin.close()
        self._holder.wait(timeout=30)
        self._holder.stdout.close()

    def path(self, path):
        """A path of the namespace, as it is reached from outside."""
        return Path(f"/proc/{self.pid}/root{os.path.abspath(path)}")

    def root(self, script, *words, status=0, cwd="/"):
        """Runs a shell script as root; its output as text."""
        done = subprocess.run(
            [*self._enter(), "env", "-C", cwd, "sh", "-euc", script, "sh", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == status, (script, done.stdout, done.stderr)
        return done.stdout

    def start(self, *words):
        """Starts a program as root, its output in a pipe."""
        return subprocess.Popen(
            [*self._enter(), *map(str, words)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )

    def start_as(self, caller, *words, cwd=None):
        """Starts a program as a caller, in their directory, with pipes."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self._words(caller, cwd or caller.work, (), words),
            env=caller.environ,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
        )

    def call(self, caller, *words, groups=(), cwd=None, timeout=120, **environ):
        """Runs a program as a caller, in their directory."""
        return subprocess.run(
            self._words(caller, cwd or caller.work, groups, words),
            env={**caller.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
        )

    def _words(self, caller, cwd, groups, words):
        who = []
        if caller.uid != 0:
            wanted = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
            who = ["setpriv", f"--reuid={caller.uid}", f"--regid={caller.gid}", wanted]
        return [*self._enter(), *who, "env", "-C", cwd, *words]

    def substrate(self, caller, *words, status=0, **options):
        """Runs `substrate` as a caller, whose status must be `status`."""
        done = self.call(caller, caller.command, *words, **options)
        assert done.returncode == status, (words, done.stdout, done.stderr)
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return done

    def out(self, caller, *words, **options):
        """What `substrate` prints."""
        return self.substrate(caller, *words, **options).stdout.decode()

    def notes(self, caller, line="true", *, status_in=None, **options):
        """What a person is told when a command runs, one line each."""
        status = (status_in or caller.base) / "status.json"
        self.substrate(caller, "--json-status", status, "-c", line, **options)
        return json.loads(self.path(status).read_text())["notes"]

    def _enter(self):
        return ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt"]
