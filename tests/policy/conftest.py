"""Policies in homes and directories of their own."""

import os
import tempfile
from pathlib import Path

import pytest

from substrate.policy import broker


class Ground:
    """A user's home, $SUBSTRATE_HOME, a system file and a workspace with a repository."""

    def __init__(self, base: Path) -> None:
        self.user = base / "user"
        self.home = base / "home"
        self.work = base / "work"
        self.system_file = base / "etc" / "policy.toml"
        for directory in (self.user, self.home, self.work, self.system_file.parent):
            directory.mkdir(mode=0o700)
        (self.work / ".git").mkdir()
        self.environ = {
            b"HOME": os.fsencode(self.user),
            b"SUBSTRATE_HOME": os.fsencode(self.home),
        }

    def write(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def system(self, text):
        if os.geteuid() != 0:
            pytest.skip("writes a file of the system, which only root's counts as")
        return self.write(self.system_file, text)

    def user_file(self, text):
        return self.write(self.user / ".config/substrate/policy.toml", text)

    def project(self, text, where=None):
        return self.write((where or self.work) / ".substrate/policy.toml", text)

    def load(self, given=None, cwd=None, **environ):
        """The broker of a directory."""
        more = {name.encode(): str(text).encode() for name, text in environ.items()}
        return broker.load(
            {**self.environ, **more},
            os.fsencode(cwd or self.work),
            os.fsencode(self.work),
            None if given is None else os.fsencode(given),
            system_file=os.fsencode(self.system_file),
        )

    def policy(self, *args, **kwargs):
        return self.load(*args, **kwargs).policy


@pytest.fixture
def ground():
    with tempfile.TemporaryDirectory(prefix="substrate-policy-") as base:
        yield Ground(Path(os.path.realpath(base)))
