"""Both clients against the product's own supervisor: a shell's shim and `substrate -c`, joined."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from substrate.telemetry.trace.ids import is_span_id
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
    place.supervisor = pid
    yield place
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(fd, signal.SIGTERM)
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


def test_shims_in_its_world_are_asked_about_there(live):
    done = live.call("bash", "-c", 'echo "$SUBSTRATE_PARENT_SPAN"; tool x; sh -c "tool y; exit 3"')
    outer, first, second = done.stdout.decode().splitlines()
    spans = [first.removeprefix("tool|x|"), second.removeprefix("tool|y|")]
    assert (done.returncode, done.stderr) == (3, b"")
    assert len({outer, *spans}) == 3
    assert all(is_span_id(span) for span in (outer, *spans))


def test_a_bypass_in_its_world_is_ignored(live):
    done = live.call("bash", "-c", "SUBSTRATE_BYPASS=1 tool x")
    assert (done.returncode, done.stderr) == (7, b"")
    assert done.stdout.startswith(b"tool|x|spn_")


def test_substrate_in_its_world_joins_it(live):
    text = f"echo in | {SUBSTRATE} -c 'cat; echo inner > made; exit 3'; echo $?; cat made"
    done = live.call("bash", "-c", text)
    assert (done.stdout, done.stderr) == (b"in\n3\ninner\n", b"")


def test_a_world_cannot_come_to_control_by_a_shim(live):
    """Where its own door would be asked first, whatever the variables say."""
    session = live.extra["SUBSTRATE_SESSION"]
    text = f"export SUBSTRATE_HOME={live.base}/state SUBSTRATE_SESSION={session}; tool x"
    done = live.call("bash", "-c", text)
    assert (done.returncode, done.stdout[:11]) == (7, b"tool|x|spn_")


def test_a_shim_beside_the_session_is_asked_about_and_on_the_record(live):
    config = live.base / ".config" / "substrate"
    config.mkdir(parents=True)
    (config / "policy.toml").write_text('[[command]]\nmatch = ["tool", "**"]\naction = "allow"\n')
    assert live.call("bash", "-c", "true").returncode == 0
    done = live.call("tool", "x", "\x1b\n")
    assert done.returncode == 7
    span = done.stdout.decode().strip().rpartition("|")[2]
    session = live.base / "state" / "sessions" / live.extra["SUBSTRATE_SESSION"]
    lines = [json.loads(line) for line in (session / "trace.jsonl").read_text().splitlines()]
    (told,) = [line for line in lines if line["event_type"] == "policy_decision"]
    assert (told["span_id"], told["body"]["decision"]) == (span, "allow")
    assert told["body"]["subject"].startswith(f"{live.bin}/tool: ")
    live.extra["SUBSTRATE_BYPASS"] = "1"
    assert live.call("tool").returncode == 7
    assert live.call("bash", "-c", "echo $SUBSTRATE_PARENT_SPAN").stdout != b"\n"
    assert live.call(SUBSTRATE, "trace", "verify", live.extra["SUBSTRATE_SESSION"]).returncode == 0


def many(live, count, *words):
    return [
        subprocess.Popen(
            [live.shims / "bash", *words],
            env=live.environ,
            cwd=live.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(count)
    ]


def test_fifty_at_once_each_get_their_own(live):
    processes = many(live, 50, "-c", "tool x; echo $$; exit 9")
    seen = set()
    for process in processes:
        out, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (9, b"")
        seen.add(out)
    assert len(seen) == 50


def test_when_the_supervisor_is_killed_all_end_and_say_so(live):
    processes = many(live, 20, "-c", "echo ready; sleep 1000")
    for process in processes:
        assert process.stdout.readline() == b"ready\n"
    os.kill(live.supervisor, signal.SIGKILL)
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 125
        assert b"the session's supervisor has ended\nhint: " in errors
