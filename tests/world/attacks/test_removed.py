"""Somebody removes what substrate works with while it does."""

import shutil
import subprocess

from tests.cli.place import PROGRAM


def test_the_state_directory_removed_during_a_run_is_said(place):
    running = subprocess.Popen(
        [PROGRAM, "-c", "echo up; read line; echo x > file"],
        cwd=place.work,
        env=place.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdout.readline() == b"up\n"
    shutil.rmtree(place.home / "sessions")
    _, told = running.communicate(b"go\n", timeout=30)
    assert running.returncode == 125
    assert b"Traceback" not in told
    assert b"was removed while" in told
