"""The peer `try` (github.com/binpash/try): a command in overlays of its own, then what it changed.

What it is: how its words are run. What it is not: a bench. It overlays each directory of `/`
by itself, and cannot where something is mounted deeper, as our own scratch is. So a sample runs
in a mount namespace in which the scratch is all that `/mnt` holds; paths are given as there.
That takes root, and two more processes for each sample. What it warns of, such as places that it
could not overlay, is thrown away.
"""

from __future__ import annotations

import os
import shutil

import harness
from harness import Sample

PLACE = "/mnt"
_ENTER = 'mount --bind "$1" "$2" && cd "$2" && shift 2 && exec "$@" 2>/dev/null'


def is_here() -> bool:
    return os.geteuid() == 0 and shutil.which("try") is not None


def run(scratch: str, *words: str) -> Sample:
    """`try` with these words and the scratch at PLACE, where it keeps its temporary files too.

    Raises BenchFailed where it fails."""
    inner = ("sh", "-c", _ENTER, "sh", scratch, PLACE, "try", *words)
    return harness.spawn(
        ("unshare", "--mount", "--propagation", "private", *inner),
        env={**os.environ, "TMPDIR": PLACE},
    )


class Sandbox:
    """A directory of files below the scratch, and a command that has changed them in `try`."""

    def __init__(self, scratch: str, name: str) -> None:
        self._scratch = scratch
        self.name = name
        self.host = os.path.join(scratch, name, "work")
        self.work = f"{PLACE}/{name}/work"
        self.box = f"{PLACE}/{name}/box"
        os.makedirs(self.host)
        os.mkdir(os.path.join(scratch, name, "box"))

    def change(self, *words: str) -> None:
        """Runs a command, which sees the files at `work`."""
        run(self._scratch, "-D", self.box, *words)

    def upper(self) -> str:
        """Where the changed files lie, as on the host."""
        return os.path.join(self._scratch, self.name, "box", "upperdir" + self.work)

    def summary(self) -> Sample:
        return run(self._scratch, "summary", self.box)

    def commit(self) -> Sample:
        return run(self._scratch, "commit", self.box)
