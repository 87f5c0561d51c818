"""Both clients against the product's own supervisor: a shell's shim and `substrate -c`, joined."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shim.test_shells import FORMS, SCRIPT, told

SUBSTRATE = Path(sys.prefix) / "bin" / "substrate"
START = "import sys; from substrate.cli.serve_session import launch; print(launch([])['session'])"


@pytest.fixture
def live(place):
    place.deploy(substrate=os.fsencode(SUBSTRATE))
    place.extra["SUBSTRATE_SESSION"] = ""
    (place.work / "script").write_text(SCRIPT)
    started = place.call(sys.executable, "-c", START)
    assert started.returncode == 0, started.stderr
    session = started.stdout.decode().strip()
    place.extra["SUBSTRATE_SESSION"] = session
    lock = place.base / "state" / "sessions" / session / "lock"
    pid = int(lock.read_text().split()[0])
    fd = os.pidfd_open(pid)
    yield place
    signal.pidfd_send_signal(fd, signal.SIGTERM)
    import select

    assert select.select([fd], [], [], 30)[0]
    os.close(fd)


@pytest.mark.parametrize("words", FORMS, ids=" ".join)
def test_the_shim_of_a_shell_behaves_as_the_shell(live, words):
    options = {"input": b"echo from stdin $1\nexit 4\n", "stdin": None, "umask": 0o033}
    done = live.call("bash", *words, **options)
    environ = {**live.environ, "PATH": "/usr/bin:/bin"}
    wanted = live.call("/usr/bin/bash", *words, env=environ, **options)
    assert (done.returncode, done.stdout, told(done.stderr)) == (
        wanted.returncode,
        wanted.stdout,
        told(wanted.stderr),
    )


def test_substrate_joins_it_by_variable_and_by_directory(live):
    assert live.call(SUBSTRATE, "-c", "echo $0; exit 5", "x").stdout == b"x\n"
    live.extra["SUBSTRATE_SESSION"] = ""
    done = live.call(SUBSTRATE, "-c", "echo one > file; exit 5")
    assert (done.returncode, done.stderr) == (5, b"")
    assert live.call("bash", "-c", "cat file").stdout == b"one\n"
    assert not (live.work / "file").exists()


def test_it_stops_goes_on_and_is_told_signals(live):
    text = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.02; done"
    for words in ([live.shims / "bash"], [SUBSTRATE]):
        process = subprocess.Popen(
            [*words, "-c", text], env=live.environ, cwd=live.work, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTSTP)
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"caught\n"
        assert process.wait(30) == 5
        process.stdout.close()


def test_what_widens_is_refused(live):
    done = live.call(SUBSTRATE, "--net", "host", "-c", "echo ran")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"--net" in done.stderr


def test_a_time_limit_narrows(live):
    done = live.call(SUBSTRATE, "--timeout", "0.3", "-c", "sleep 100")
    assert done.returncode == 124
