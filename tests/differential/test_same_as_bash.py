"""What bash does, substrate does: status, output, signals, files (shell.md §1 "Behaves like the shell")."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate.world.removal import remove_tree
from tests.cli.place import PROGRAM
from tests.differential.case import Case, load_cases
from tests.differential.running import Caller, Result, fresh_directory, run, tree_of
from tests.differential.ways import NOBODY, WAYS, Way, of_bash

CASES = load_cases()


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="substrate-same-", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    fd = os.open("/var/tmp", os.O_PATH | os.O_DIRECTORY)
    try:
        remove_tree(fd, os.fsencode(path.name))
    finally:
        os.close(fd)


def caller_of(way: Way, base: Path) -> Caller:
    own = base / f"user-{way.uid}"
    if not own.exists():
        own.mkdir(mode=0o700)
        if way.uid is not None:
            os.chown(own, way.uid, way.uid)
    environ = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(own),
        "LANG": "C.UTF-8",
        "TERM": "xterm",
        "SUBSTRATE_HOME": str(own / "substrate"),
    }
    return Caller(environ=environ, uid=way.uid)


def results(case: Case, way: Way, base: Path) -> tuple[Result, Result]:
    """(bash's, ours), in the same directory, one after the other."""
    caller = caller_of(way, base)
    work = base / "work"
    found = []
    for command, in_world in ((of_bash, False), (way.command, way.in_world)):
        cwd = fresh_directory(work, case, caller)
        program, words = command(case, work)
        result = run(case, words, program, cwd, caller)
        if "tree" in case.given:
            if in_world:
                apply(cwd, caller)
            result = Result(
                status=result.status, out=result.out, err=result.err, tree=tree_of(work)
            )
        found.append(result)
    return found[0], found[1]


def apply(cwd: Path, caller: Caller) -> None:
    subprocess.run(
        [PROGRAM, "apply", "--yes"],
        cwd=cwd,
        env=caller.environ,
        user=caller.uid,
        group=caller.uid,
        extra_groups=None if caller.uid is None else [],
        check=True,
        capture_output=True,
    )


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_same(case: Case, way: Way, base: Path) -> None:
    theirs, ours = results(case, way, base)
    if case.why_not(way.name) is None:
        assert ours == theirs
    else:
        assert ours != theirs, "it is the same by now: take the line @differs out"


def test_there_are_enough() -> None:
    assert len(CASES) >= 300
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


def test_nobody_is_nobody() -> None:
    assert os.geteuid() != NOBODY
