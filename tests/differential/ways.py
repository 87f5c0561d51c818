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
class Place:
    """Where a case is run: its work directory; `shims`: where shims are deployed, for those who join."""

    work: Path
    shims: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """`command`: (program, argv) for a case in a place. `uid`: whose, None for ourselves. `joins`: a session
    that lives, which has the case's directory in its workspace."""

    name: str
    command: Callable[[Case, Place], tuple[str, list[str]]]
    uid: int | None = None
    joins: bool = False


def of_bash(case: Case, place: Place) -> tuple[str, list[str]]:
    """What every way is compared with."""
    return BASH, ["bash", *_words(case, place)]


def of_substrate(case: Case, place: Place) -> tuple[str, list[str]]:
    """`substrate -c`, `-f`, or a script on its standard input, in a world of its own."""
    # --fresh: a directory that is made anew can have the inode of the one before
    return _substrate(case, place, "--fresh", "--keep")


def of_client(case: Case, place: Place) -> tuple[str, list[str]]:
    """The same in the world of a session that lives."""
    return _substrate(case, place)


def of_shim(case: Case, place: Place) -> tuple[str, list[str]]:
    """The shim called bash, which joins that session."""
    return str(place.shims / "bash"), ["bash", *_words(case, place)]


def _substrate(case: Case, place: Place, *ours: str) -> tuple[str, list[str]]:
    if any(key.startswith("tty") for key in case.given):
        ours = (*ours, "--quiet")  # a person is told what changed
    forced = ("-f",) if case.form == "script" else ()
    return str(PROGRAM), ["substrate", *ours, *forced, *_words(case, place)]


def _words(case: Case, place: Place) -> list[str]:
    if case.form == "script":
        return [str(place.work / "script.sh"), *case.words]
    return [case.text if word == "TEXT" else word for word in case.words]


WAYS = [
    Way(name="substrate", command=of_substrate),
    Way(name="joined", command=of_client, joins=True),
    Way(name="shim", command=of_shim, joins=True),
    *([Way(name="rootless", command=of_substrate, uid=NOBODY)] if os.geteuid() == 0 else []),
]
