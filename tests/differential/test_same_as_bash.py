"""What bash does, substrate does: status, output, signals, files (shell.md §1 "Behaves like the shell")."""

from __future__ import annotations

import itertools
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from substrate.world.removal import remove_tree
from tests.cli.place import PROGRAM
from tests.differential.case import Case, load_cases
from tests.differential.running import Caller, Result, fresh_directory, run, tree_of
from tests.differential.ways import NOBODY, WAYS, Place, Way, of_bash

CASES = load_cases()


@dataclass
class Grounds:
    """Where all cases are run: a base directory, and the sessions that live, by user."""

    base: Path
    #: user → its session's id
    sessions: dict[int | None, str] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def caller(self, way: Way) -> Caller:
        own = self.base / f"user-{way.uid}"
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

    def work(self, way: Way) -> Path:
        """A session that lives sees the host's directories as they were when it first looked, so each
        case gets one of its own there."""
        if not way.joins:
            return self.base / "work"
        return self.base / "project" / f"case-{next(self.numbers)}"

    def join(self, way: Way, caller: Caller) -> Caller:
        """The same caller, with a session that lives."""
        environ = caller.environ
        if way.uid not in self.sessions:
            (self.base / "project/.git").mkdir(parents=True, exist_ok=True)
            call(caller, "shim", "deploy", "--dir", str(self.base / "shims"), "--commands", "bash")
            self.sessions[way.uid] = start_session(self.base / "project", environ)
        return replace(caller, environ={**environ, "SUBSTRATE_SESSION": self.sessions[way.uid]})

    def end(self) -> None:
        for uid, session in self.sessions.items():
            text = (self.base / f"user-{uid}/substrate/sessions/{session}/lock").read_text()
            fd = os.pidfd_open(int(text.split()[0]))
            signal.pidfd_send_signal(fd, signal.SIGTERM)
            assert select.select([fd], [], [], 60)[0]
            os.close(fd)


@pytest.fixture(scope="module")
def grounds() -> Iterator[Grounds]:
    path = Path(tempfile.mkdtemp(prefix="substrate-same-", dir="/var/tmp"))
    path.chmod(0o755)
    grounds = Grounds(path)
    yield grounds
    grounds.end()
    fd = os.open("/var/tmp", os.O_PATH | os.O_DIRECTORY)
    try:
        remove_tree(fd, os.fsencode(path.name))
    finally:
        os.close(fd)


def start_session(project: Path, environ: dict[str, str]) -> str:
    code = "from substrate.cli.serve_session import launch; print(launch([])['session'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def results(case: Case, way: Way, grounds: Grounds) -> tuple[Result, Result]:
    """(bash's, ours), in the same directory, one after the other."""
    caller = grounds.caller(way)
    work = grounds.work(way)
    place = Place(work=work, shims=grounds.base / "shims")
    found = []
    for command, in_world in ((of_bash, False), (way.command, True)):
        if in_world and way.joins:
            caller = grounds.join(way, caller)
        cwd = fresh_directory(work, case, caller)
        program, words = command(case, place)
        result = run(case, words, program, cwd, caller)
        if "tree" in case.given and not way.joins:
            if in_world:
                call(caller, "apply", "--yes", cwd=cwd)
            result = replace(result, tree=tree_of(work))
        found.append(result)
    return found[0], found[1]


def call(caller: Caller, *words: str, cwd: Path = Path("/")) -> None:
    subprocess.run(
        [PROGRAM, *words],
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
def test_the_same(case: Case, way: Way, grounds: Grounds) -> None:
    theirs, ours = results(case, way, grounds)
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
