"""Somebody who calls `substrate`: as which user, with which backend, in which directories."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Caller:
    """`base` is theirs: `home`, `state` (SUBSTRATE_HOME) and `work` lie in it."""

    backend: str
    uid: int
    gid: int
    base: Path
    command: Path
    extra: dict[str, str] = field(default_factory=dict)
    elsewhere: Path | None = None  # their SUBSTRATE_HOME, where it is not in `base`

    @property
    def work(self) -> Path:
        return self.base / "work"

    @property
    def state(self) -> Path:
        return self.elsewhere or self.base / "state"

    @property
    def environ(self) -> dict[str, str]:
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.base / "home"),
            "SUBSTRATE_HOME": str(self.state),
            "SUBSTRATE_BACKEND": self.backend,
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "SHELL": "/bin/bash",
            **self.extra,
        }

    def make_directory(self, path: Path) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        self.own(path)
        return path

    def own(self, path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def as_them(self) -> dict[str, Any]:
        """Arguments of subprocess that make a child theirs."""
        if self.uid == os.geteuid():
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def call(self, *words: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Runs any program as them; output is captured, nothing is on standard input.

        The pipes are theirs, so that /dev/stdout can be opened by its name."""
        content, timeout = options.pop("input", None), options.pop("timeout", 60)
        stdin = (-1, -1) if content is None else self._pipe()
        stdout, stderr = self._pipe(), self._pipe()
        given: dict[str, Any] = {
            "cwd": self.work,
            "env": self.environ,
            "stdin": subprocess.DEVNULL if content is None else stdin[0],
            "stdout": stdout[1],
            "stderr": stderr[1],
            **self.as_them(),
            **options,
        }
        process = subprocess.Popen([os.fspath(w) for w in words], **given)
        os.close(stdout[1])
        os.close(stderr[1])
        process.stdout, process.stderr = open(stdout[0], "rb"), open(stderr[0], "rb")
        if content is not None:
            os.close(stdin[0])
            process.stdin = open(stdin[1], "wb")
        with process:
            try:
                out, err = process.communicate(content, timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def _pipe(self) -> tuple[int, int]:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.fchown(reading, self.uid, self.gid)
        return reading, writing

    def substrate(self, *words: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
        return self.call(self.command, *words, **options)

    def start(self, *words: object, **options: Any) -> "subprocess.Popen[bytes]":
        """Starts `substrate`; the caller waits for it."""
        given: dict[str, Any] = {
            "cwd": self.work,
            "env": self.environ,
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            **self.as_them(),
            **options,
        }
        return subprocess.Popen([self.command, *words], **given)

    @contextlib.contextmanager
    def names_alone(self) -> Iterator[None]:
        """Meanwhile no policy adds a host to what --allow names, or asks about a command."""
        directory = self.base / "home" / ".config" / "substrate"
        for each in (directory.parent.parent, directory.parent, directory):
            self.make_directory(each)
        path = directory / "policy.toml"
        path.write_text(
            'extends = "builtin:locked-down"\ndefault_action = "allow"\n'
            '[[command]]\nmatch = ["**"]\naction = "allow"\n'
        )
        self.own(path)
        try:
            yield
        finally:
            path.unlink()

    def without_rules(self) -> Path:
        """A policy file by which no exec is looked at."""
        path = self.base / "without-rules.toml"
        path.write_text('extends = "builtin:observe"\n')
        self.own(path)
        return path

    # --- what is kept

    def sessions(self) -> list[Path]:
        """Directories of the sessions, oldest first."""
        return sorted((self.state / "sessions").iterdir())

    def events(self, session: Path | None = None) -> list[dict[str, object]]:
        """The events of a session (of the newest)."""
        path = (session or self.sessions()[-1]) / "trace.jsonl"
        return [json.loads(line) for line in path.read_bytes().splitlines()]

    def verify(self, session: Path | None = None) -> None:
        """The standalone verifier must find the chain whole."""
        python = self.command.parent / "python"
        done = subprocess.run(
            [python, "-m", "substrate.telemetry.verifier", session or self.sessions()[-1]],
            capture_output=True,
            env={"PATH": "/usr/bin:/bin"},
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def forget(self) -> None:
        """Takes away all of their worlds and sessions."""
        remove(self.state)
        remove(self.work)
        self.make_directory(self.work)


def remove(path: Path) -> None:
    """Removes a tree that holds directories of mode 0000 too."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if os.geteuid() != 0:
        subprocess.run(["chmod", "-R", "u+rwx", path], check=True)
    shutil.rmtree(path)
