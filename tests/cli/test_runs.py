"""The run forms through the installed command: statuses, errors, what is told."""

import json
import os
import pty
import select
import signal
import subprocess
import time

import pytest

from tests.cli.place import PROGRAM

SCHEMA = "substrate.run/1"


# --- statuses (shell.md §1)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("-c", "exit 0"), 0),
        (("-c", "exit 125"), 125),
        (("-c", "kill -TERM $$"), 143),
        (("-c", "nosuchcommand"), 127),
        (("run", "--", "nosuchcommand"), 127),
        (("run", "--", "/etc"), 126),
        (("--timeout", "300ms", "-c", "sleep 60"), 124),
        (("-ec", "false; echo no"), 1),
        (("--ci", "-c", "false; echo no"), 1),
    ],
)
def test_exit_status(place, words, status):
    assert b"no" not in place.run(*words, status=status).stdout


def test_the_shell_s_own_arguments(place):
    assert place.out("-c", 'echo "$0|$1|$2"', "zero", "a b", "--net") == "zero|a b|--net\n"
    assert place.out("-c", 'echo "$0"') == "bash\n"


def test_a_script_on_standard_input(place):
    done = place.run("-s", "one", stdin=b'echo "got $1"; exit 7\n', status=7)
    assert done.stdout == b"got one\n"


def test_a_script_in_a_file(place):
    (place.work / "build.sh").write_text('echo "$0 $1"; exit 4\n')
    assert place.run("-f", "build.sh", "x", status=4).stdout == b"build.sh x\n"


def test_another_shell(place):
    assert place.out("--shell", "/bin/dash", "-c", "echo $0") == "dash\n"
    assert place.out("--shell", "sh", "-c", "echo $0") == "sh\n"


# --- wrong calls


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--nosuch", "-c", "true"), b"unknown option --nosuch"),
        (("-c",), b"-c needs a command"),
        (("statsu",), b"did you mean `substrate status`?"),
        (("run",), b"run needs a program"),
        (("--timeout", "soon", "-c", "true"), b"expected a time"),
        (("--json-status", "77", "-c", "true"), b"fd 77 is not open"),
        (("--json-status", "/nonexistent/x", "-c", "true"), b"cannot be written"),
        (("--pty", "-c", "true"), b"needs a terminal"),
    ],
)
def test_a_wrong_call_is_told_and_runs_nothing(place, words, said):
    done = place.run(*words, status=2)
    assert done.stderr.startswith(b"substrate: ")
    assert said in done.stderr
    assert b"\nhint: " in done.stderr
    assert not (place.home / "sessions").exists() or not os.listdir(place.home / "sessions")


def test_a_wrong_configuration_is_125_and_names_the_place(place):
    config = place.base / "user" / ".config" / "substrate"
    config.mkdir(parents=True)
    (config / "config.toml").write_text('\nnett = "none"\n')
    done = place.run("-c", "true", status=125)
    assert b"config.toml, line 2" in done.stderr
    assert b"did you mean net?" in done.stderr
    place.run("config", "show", status=2)


def test_a_project_s_file_warns_and_tightens(place):
    (place.work / ".git").mkdir()
    (place.work / ".substrate").mkdir()
    (place.work / ".substrate" / "config.toml").write_text('shell = "/bin/evil"\nhide = ["keys"]\n')
    (place.work / "keys").mkdir()
    (place.work / "keys" / "k").write_text("secret")
    done = place.run("-c", "cat keys/k", status=1)
    assert b"warning: " in done.stderr
    assert b"shell is left out" in done.stderr
    assert b"secret" not in done.stdout
    assert b"warning: " not in place.run("--quiet", "-c", "true").stderr


def test_a_host_where_no_world_can_start(place):
    """Inside a world no other one can be made: the hardening refuses namespaces."""
    inner = f"env -u SUBSTRATE_SESSION SUBSTRATE_HOME={place.work}/inner {PROGRAM}"
    done = place.run("-c", f"{inner} --backend ns-user -c 'echo ran'", status=125)
    assert b"did not start" in done.stderr
    assert b"hint: " in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"ran" not in done.stdout
    shown = place.run("-c", f"{inner} doctor", status=1).stdout
    assert b"FAIL" in shown
    assert b"-> " in shown


@pytest.mark.parametrize("home", ["/proc/nosuch", "/dev/null"])
def test_a_home_that_cannot_be_made(place, home):
    done = place.run("-c", "true", status=125, SUBSTRATE_HOME=home)
    assert b"set SUBSTRATE_HOME to a directory" in done.stderr


def test_a_relative_home_is_refused(place):
    assert b"absolute" in place.run("-c", "true", status=125, SUBSTRATE_HOME="x").stderr


def test_a_full_disk_is_told_and_nothing_is_lost(place):
    if os.geteuid() != 0:
        pytest.skip("mounting a small filesystem needs root")
    place.run("-c", "echo x > x")
    place.home.rename(place.base / "aside")
    (place.base / "aside/digests").unlink(missing_ok=True)  # a cache, larger than that disk
    place.home.mkdir(mode=0o700)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k,mode=700", "none", place.home], check=True
    )
    try:
        subprocess.run(["cp", "-a", f"{place.base}/aside/.", place.home], check=True)
        done = place.run(
            "-c", "head -c 2000000 /dev/urandom > big; head -c 900000 /dev/urandom", status=None
        )
        assert b"No space left on device" in done.stderr
        assert b"Traceback" not in done.stderr
        assert f"{place.work}/x\n" in place.out("diff", "--name-only")
        place.run("trace", "verify", "--quiet", status=None)
        assert b"discarded: 2 files added" in place.run("discard").stderr
        place.run("status", status=1)
        place.run("trace", "verify", "--quiet")
        place.run("-c", "echo y > y")
    finally:
        subprocess.run(["umount", "-l", place.home], check=True)


def test_a_second_run_on_a_world_is_told_who_has_it(place):
    place.run("-c", "true")
    first = subprocess.Popen(
        [PROGRAM, "-c", "echo ready; read x"],
        cwd=place.work, env=place.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert first.stdout.readline() == b"ready\n"
    done = place.run("-c", "true", status=125)
    assert b"world w1 is in use" in done.stderr
    assert str(first.pid).encode() in done.stderr
    assert b"--fresh" in done.stderr
    place.run("apply", status=3)
    assert f"in use (pid {first.pid})" in place.out("status")
    place.run("--fresh", "-c", "true")
    first.communicate(b"\n", timeout=60)
    assert first.returncode == 0


# --- how it ended, for programs


def test_json_status_tells_the_command_s_125_from_ours(place):
    for words, by in (
        (("-c", "exit 125"), "command"),
        (("--world", "w9", "-c", "true"), "substrate"),
    ):
        path = place.base / "status.json"
        place.run("--json-status", str(path), *words, status=None)
        found = json.loads(path.read_text())
        assert (found["schema"], found["by"]) == (SCHEMA, by)


def test_json_status_by_descriptor(place):
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as told:
        subprocess.run(
            [PROGRAM, "--json-status", str(writing), "-c", "echo x > x; kill -9 $$"],
            cwd=place.work, env=place.environ, pass_fds=[writing], check=False,
        )  # fmt: skip
        os.close(writing)
        found = json.loads(told.read())
    assert (found["exit_status"], found["by"], found["signal"]) == (137, "signal", 9)
    assert found["changes"]["added"] == 1
    assert found["world"] == "w1"


def test_json_goes_to_standard_error(place):
    done = place.run("--json", "-c", "echo out")
    assert done.stdout == b"out\n"
    assert json.loads(done.stderr)["schema"] == SCHEMA


def test_without_a_terminal_nothing_is_added_to_the_command_s_output(place):
    done = place.run("-c", "echo out; echo err >&2; echo x > x")
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


def test_apply_and_discard_at_the_end(place):
    place.run("--apply", "-c", "echo x > x")
    assert (place.work / "x").read_text() == "x\n"
    place.run("--discard", "-c", "rm x")
    assert (place.work / "x").exists()
    place.run("status", status=1)


@pytest.mark.parametrize("word", ["--apply", "--discard"])
def test_what_is_pending_ends_with_a_command_that_changes_nothing(place, word):
    place.run("-c", "echo x > x")
    place.run(word, "-c", "cat x")
    assert (place.work / "x").exists() == (word == "--apply")
    place.run("status", status=1)
    place.run(word, "-c", "true")
    place.run("--keep", "-c", "true")
    place.run(word, "-c", "true")


def test_an_apply_at_the_end_that_fails_is_125_and_keeps_all(place):
    place.run("-c", "echo world > x")
    (place.work / "x").write_text("host\n")
    done = place.run("--apply", "-c", "echo more >> x", status=125)
    assert b"kept in world w1" in done.stderr
    assert (place.work / "x").read_text() == "host\n"
    assert place.out("diff", "--name-only")


# --- at a terminal


def at_terminal(place, words, answers, program=PROGRAM):
    """Runs the command on a terminal; `answers`: (what is waited for, what is typed)."""
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(place.work)
        os.execve(program, [str(program), *words], place.environ)
    shown, waiting = b"", list(answers)
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline, shown
        if not select.select([master], [], [], 1)[0]:
            continue
        try:
            got = os.read(master, 65536)
        except OSError:  # the other side is closed
            break
        if not got:
            break
        shown += got
        if waiting and waiting[0][0] in shown:
            os.write(master, waiting.pop(0)[1])
    os.close(master)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert not waiting, shown
    return status, shown


def test_a_terminal_is_asked_and_apply_applies(place):
    status, shown = at_terminal(place, ["-c", "echo x > x; exit 5"], [(b"[a/K/d/s] ", b"a\n")])
    assert status == 5
    assert b"world w1: 1 file added (apply | discard | diff)" in shown
    assert b"applied: 1 file added" in shown
    assert (place.work / "x").exists()


def test_a_terminal_can_look_first_and_then_keep(place):
    _, shown = at_terminal(
        place,
        ["-c", "echo x > x"],
        [(b"[a/K/d/s] ", b"s\n"), (f"A {place.work}/x".encode(), b"\n")],
    )
    assert shown.count(b"[a/K/d/s] ") == 2
    assert place.out("diff", "--name-only") == f"{place.work}/x\n"
    assert not (place.work / "x").exists()


def test_a_terminal_can_discard(place):
    at_terminal(place, ["-c", "echo x > x"], [(b"[a/K/d/s] ", b"what\n"), (b"none of", b"d\n")])
    place.run("status", status=1)


@pytest.mark.parametrize("flag", ["--keep", "--ci", "--quiet"])
def test_nothing_is_asked_when_told_so(place, flag):
    _, shown = at_terminal(place, [flag, "-c", "echo x > x"], [])
    assert b"[a/K/d/s]" not in shown
    assert place.out("diff", "--name-only")


def test_a_background_job_is_not_stopped_by_a_question(place):
    job = f"set -m; '{PROGRAM}' -c 'echo x > x' & wait $!"
    status, shown = at_terminal(place, ["-c", job], [], program="/bin/bash")
    assert status == 0, shown
    assert b"[a/K/d/s]" not in shown
    assert place.out("diff", "--name-only")


def test_a_terminal_confirms_a_discard(place):
    place.run("-c", "echo x > x")
    status, _ = at_terminal(place, ["discard"], [(b"discard world w1: 1 file added?", b"n\n")])
    assert status == 1
    status, _ = at_terminal(place, ["discard"], [(b"[y/N]", b"y\n")])
    assert status == 0


def test_a_terminal_confirms_what_is_dangerous(place):
    place.run("-c", "echo x > x; chmod u+s x")
    status, shown = at_terminal(place, ["apply"], [(b"apply these too?", b"y\n")])
    assert status == 0, shown
    assert (place.work / "x").exists()


def test_a_shell_at_a_terminal(place):
    status, shown = at_terminal(
        place,
        ["--norc", "--keep"],
        [(b"$ " if os.geteuid() else b"# ", b"echo $((40+2)) > f; exit 9\n")],
    )
    assert status == 9, shown
    assert place.out("diff", "--name-only") == f"{place.work}/f\n"


# --- edges of the process


def test_closed_standard_streams_are_tolerated(place):
    for close in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            ["sh", "-c", f'"$0" -c "echo x >> f" {close}', str(PROGRAM)],
            cwd=place.work, env=place.environ, check=False,
        )  # fmt: skip
        assert done.returncode == 0, close
    subprocess.run(
        ["sh", "-c", '"$0" status <&- >&- 2>&-', str(PROGRAM)],
        cwd=place.work, env=place.environ, check=True,
    )  # fmt: skip


def test_a_reader_that_goes_away_is_no_error(place):
    place.run("-c", "touch $(seq -f f%.0f 3000)")
    done = subprocess.run(
        f"'{PROGRAM}' diff --name-only | head -1; '{PROGRAM}' log | true",
        shell=True, cwd=place.work, env=place.environ, capture_output=True,
    )  # fmt: skip
    assert done.stderr == b""


def test_an_interrupted_verb_is_130(place):
    place.run("-c", "true")
    tail = place.start("trace", "tail", "-f")
    tail.stdout.readline()
    tail.send_signal(signal.SIGINT)
    assert tail.wait(timeout=60) == 130
    assert b"Traceback" not in tail.stderr.read()
    tail.stdout.close()
    tail.stderr.close()


def test_names_that_are_no_text_come_through(place):
    place.run(b"-c", b"echo x > $'\\377'; echo \xff")
    assert place.run("diff", "--name-only").stdout == os.fsencode(place.work) + b"/\xff\n"
    place.run("apply")
    assert os.listdir(os.fsencode(place.work)) == [b"\xff"]


def test_a_world_in_a_world_is_refused_with_the_reason(place):
    """Its state is hidden there, which is no reason to move it."""
    done = place.run("-c", f"{PROGRAM} -c true", status=125)
    assert b"is not in sight here" in done.stderr
    assert b"hint: this is a world already" in done.stderr
    done = place.run("-c", f"SUBSTRATE_HOME={place.home} {PROGRAM} -c true", status=125)
    assert b"cannot be used" in done.stderr
    assert b"hint: this is a world already" in done.stderr
