"""The ways by which a case can be run. A new one is a line in `WAYS`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.cli.place import PROGRAM
from tests.differential.case import Case

BASH = "/bin/bash"
#: who has no rights at all: `nobody`, by number, since the name is not everywhere
NOBODY = 65534


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """`command`: (program, argv) for a case in a work directory. `uid`: whose, None for ourselves.
    `in_world`: what it changes has to be applied before it is on the host."""

    name: str
    command: Callable[[Case, Path], tuple[str, list[str]]]
    uid: int | None = None
    in_world: bool = True


def of_bash(case: Case, work: Path) -> tuple[str, list[str]]:
    """What every way is compared with."""
    if case.form == "script":
        return BASH, ["bash", str(work / "script.sh"), *case.words]
    return BASH, ["bash", *_with_text(case)]


def of_substrate(case: Case, work: Path) -> tuple[str, list[str]]:
    """`substrate -c`, `-f`, or a script on its standard input."""
    # --fresh: a directory that is made anew can have the inode of the one before
    ours = ["substrate", "--fresh", "--keep"]
    if any(key.startswith("tty") for key in case.given):
        ours.append("--quiet")  # a person is told what changed
    if case.form == "script":
        return str(PROGRAM), [*ours, "-f", str(work / "script.sh"), *case.words]
    return str(PROGRAM), [*ours, *_with_text(case)]


def _with_text(case: Case) -> list[str]:
    return [case.text if word == "TEXT" else word for word in case.words]


WAYS = [
    Way(name="substrate", command=of_substrate),
    *([Way(name="rootless", command=of_substrate, uid=NOBODY)] if os.geteuid() == 0 else []),
]
