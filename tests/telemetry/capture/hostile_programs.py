"""The programs of hostile/: what a traced process may do to whoever traces it.

Compiled on demand, one file each; nothing of a capture is known here.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

SOURCES = Path(__file__).parent / "hostile"


@dataclass(frozen=True)
class Hostile:
    """`path` compiles a program once into `directory`."""

    directory: Path
    _made: set[str] = field(default_factory=set)

    def path(self, name: str) -> str:
        to = self.directory / name
        if name not in self._made:
            # low addresses: calls of i386 have pointers of 32 bits
            subprocess.run(
                ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-no-pie",
                 "-o", str(to), str(SOURCES / f"{name}.c")],
                check=True,
            )  # fmt: skip
            self._made.add(name)
        return str(to)


def can_compile() -> bool:
    return shutil.which("gcc") is not None
