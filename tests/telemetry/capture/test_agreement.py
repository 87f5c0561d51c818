"""Each backend and `strace -f` see the same set of (call, path, result class) in usual commands."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.telemetry.capture.agreement import (
    COMMANDS,
    command_env,
    find_disagreements,
    seen_in,
)
from tests.telemetry.capture.backends import strace_missing
from tests.telemetry.capture.facts import COMPARED
from tests.telemetry.capture.strace_peer import StraceCapture


def run(command, capture, directory):
    """In a new directory of the same name each time."""
    shutil.rmtree(directory, ignore_errors=True)
    for name in ("work", "home", "tmp"):
        (directory / name).mkdir(parents=True)
    command.prepare(directory / "work")
    stdout = os.open(directory / "stdout", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        argv = [os.fsencode(word) for word in command.argv]
        return capture(argv, command_env(directory), directory / "work", stdout)
    finally:
        os.close(stdout)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_backend_sees_what_strace_sees(command, capture, tmp_path):
    if reason := strace_missing():
        pytest.skip(reason)
    if lacking := [path for path in command.needs if not os.path.exists(path)]:
        pytest.skip(f"not installed: {', '.join(lacking)}")
    directory = tmp_path / "run"
    peer = run(command, StraceCapture(looks=True), directory)
    theirs = run(command, capture, directory)
    assert peer.status == 0
    assert find_disagreements(peer, theirs, ("strace", capture.name)) == []
    assert len(seen_in(peer, COMPARED)) >= command.at_least
