"""A shell as a shim outside of a world: the supervisor runs it, and we stand in for it."""

import os
import pty
import select
import signal
import subprocess
import termios
import time

import pytest

from tests.shim.supervisor import SPAN, encode

#: as agents and build tools start a shell
FORMS = [
    ("-c", "echo $0 $1; exit 3", "zero", "one"),
    ("-c", "-l", "echo login; shopt -q login_shell; exit $?"),
    ("-lc", "shopt -q login_shell && echo login"),
    ("-ec", "false; echo not reached"),
    ("--norc", "-c", "echo norc"),
    ("-o", "pipefail", "-c", "false | true; echo $?"),
    ("-euo", "pipefail", "-c", "echo $-"),
    ("+e", "-c", "false; echo on"),
    ("script", "a b", "c"),
    ("-s", "x", "y"),
    ("-i", "-c", "echo $-"),
    ("--posix", "-c", "echo $POSIXLY_CORRECT"),
    ("-c", "kill -TERM $$"),
    ("-c", "exit 300"),
    ("-c", "nosuchcommand"),
    ("-c", "if"),
    ("-c",),
    ("nosuchscript",),
    ("--version",),
    ("-c", "pwd; umask; cat"),
    ("-c", "printf '\\0\\377'; echo err >&2"),
    (),
]
SCRIPT = "echo script $0 $#\nread line\necho got $line\nexit 9\n"


@pytest.mark.parametrize("words", FORMS, ids=" ".join)
def test_it_behaves_as_the_shell(place, supervisor, words):
    (place.work / "script").write_text(SCRIPT)
    options = {"input": b"echo from stdin $1\nexit 4\n", "stdin": None, "umask": 0o033}
    done = place.call("bash", *words, **options)
    environ = {**place.environ, "PATH": "/usr/bin:/bin"}
    wanted = place.call("/usr/bin/bash", *words, env=environ, **options)
    said = [b"\n".join(told(each.stderr)) for each in (done, wanted)]
    assert (done.returncode, done.stdout, said[0]) == (wanted.returncode, wanted.stdout, said[1])
    (asked,) = supervisor.asked
    assert (asked.mode, asked.fds) == (b"command", 3)
    assert asked.file == b"/usr/bin/bash"


def told(text):
    """What a shell says, without the name that it has, and without its trouble with a terminal."""
    lines = [line.split(b": ", 1)[-1] for line in text.splitlines()]
    return [line for line in lines if b"job control" not in line and b"process group" not in line]


def test_argv_0_is_kept(place, supervisor):
    subprocess.run(
        ["-bash", "-c", "true"],
        executable=place.shims / "bash",
        env=place.environ,
        cwd=place.work,
        check=True,
        timeout=60,
    )
    # an interpreter line takes argv[0] away
    assert supervisor.asked[0].argv[0] == (b"bash" if place.kind == "python" else b"-bash")


def test_a_signal_of_the_shell_is_ours(place, supervisor):
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM):
        done = place.call("bash", "-c", f"kill -{int(number)} $$")
        assert done.returncode == -number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_are_forwarded(place, supervisor, number):
    text = f"trap 'echo caught; exit 5' {int(number)}; echo ready; while :; do sleep 0.02; done"
    process = subprocess.Popen(
        [place.shims / "bash", "-c", text],
        env=place.environ,
        cwd=place.work,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    assert process.stdout.read() == b"caught\n"
    assert process.wait(30) == 5
    process.stdout.close()


def test_what_is_ignored_is_ignored_by_the_shell_too(place, supervisor):
    done = place.call(
        "bash",
        *("-c", "grep SigIgn /proc/$$/status"),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert int(done.stdout.split()[1], 16) & 1
    assert signal.SIGHUP in supervisor.asked[0].flags["ignored"]


def test_it_stops_and_goes_on_as_the_shell_does(place, supervisor):
    process = subprocess.Popen(
        [place.shims / "bash", "-c", "echo ready; kill -STOP $$; echo on"],
        env=place.environ,
        cwd=place.work,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    assert process.stdout.read() == b"ready\non\n"
    assert process.wait(30) == 0
    process.stdout.close()


def test_when_it_is_killed_its_command_is(place, supervisor):
    process = subprocess.Popen(
        [place.shims / "bash", "-c", "echo $$; exec sleep 1000"],
        env=place.environ,
        cwd=place.work,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    fd = os.pidfd_open(pid)
    process.kill()
    process.wait(30)
    assert select.select([fd], [], [], 30)[0]
    os.close(fd)
    process.stdout.close()


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams_are_named(place, supervisor, closed):
    out = place.base / "out"
    text = f"for n in 0 1 2; do [ -e /proc/$$/fd/$n ] || printf '%s ' $n; done > {out}.new; mv {out}.new {out}"
    subprocess.run(
        [place.shims / "bash", "-c", text],
        env=place.environ,
        cwd=place.work,
        preexec_fn=lambda: [os.close(fd) for fd in closed],
        timeout=60,
    )
    assert supervisor.asked[0].flags["closed"] == list(closed)
    assert supervisor.asked[0].fds == 3 - len(closed)
    assert out.exists()


def test_a_denial_and_a_torn_answer(place, supervisor):
    supervisor.answers["bash"] = [encode(b"D", b"126", b"substrate: denied: bash", b"rule")]
    done = place.call("bash", "-c", "echo no")
    assert (done.returncode, done.stdout, done.stderr) == (126, b"", b"substrate: denied: bash\n")
    supervisor.answers["bash"] = [supervisor.accepted, None]
    done = place.call("bash", "-c", "echo no")
    assert done.returncode == 125
    assert b"has ended" in done.stderr


def test_a_bypass_that_is_granted_runs_it_here(place, supervisor):
    place.extra["SUBSTRATE_BYPASS"] = "1"
    supervisor.answers["bash"] = [encode(b"A", SPAN.encode(), b"", b'{"bypass": "recorded"}')]
    done = place.call("bash", "-c", "echo $SUBSTRATE_PARENT_SPAN")
    assert done.stdout.decode() == SPAN + "\n"
    assert [asked.mode for asked in supervisor.asked] == [b"ask"]


@pytest.mark.parametrize("kind", ["A", "D", "F"])
def test_a_bypass_that_is_not_granted_changes_nothing(place, supervisor, kind):
    place.extra["SUBSTRATE_BYPASS"] = "1"
    supervisor.asks = [supervisor.accepted if kind == "A" else encode(kind.encode(), b"125", b"no")]
    assert place.call("bash", "-c", "echo ran").stdout == b"ran\n"
    assert [asked.mode for asked in supervisor.asked] == [b"ask", b"command"]


def test_without_a_session_substrate_runs_it(place):
    program = place.script("substrate", '#!/bin/sh\nprintf "%s|" "$@"\n')
    place.deploy(substrate=os.fsencode(program))
    done = place.call("bash", "-lc", "echo 'a b'", "x")
    first = b"bash" if place.kind == "python" else os.fsencode(place.shims / "bash")
    assert done.stdout == b"--as-shell|/usr/bin/bash|" + first + b"|-lc|echo 'a b'|x|"


def test_without_a_session_and_without_substrate_nothing_runs(place):
    place.deploy(substrate=b"/nonexistent/substrate")
    done = place.call("bash", "-c", "echo no")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"substrate shim deploy" in done.stderr


def test_a_terminal_is_raw_only_while_the_supervisor_says_so(place, supervisor):
    supervisor.accepted = encode(b"A", SPAN.encode(), b"", b'{"terminal":true}')
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(place.work)
        os.execve(
            place.shims / "bash", ["bash", "-c", "echo ready; read -r x; kill -9 $$"], place.environ
        )
    termios.tcsetwinsize(master, (50, 132))
    seen = b""
    while b"ready" not in seen:
        seen += os.read(master, 1024)
    raw = termios.tcgetattr(master)
    assert not raw[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
    termios.tcsetwinsize(master, (40, 100))
    deadline = time.monotonic() + 30
    while signal.SIGWINCH not in supervisor.asked[0].signals and time.monotonic() < deadline:
        os.sched_yield()
    assert signal.SIGWINCH in supervisor.asked[0].signals
    assert len(supervisor.asked[0].flags["terminal"]) == 2
    os.write(master, b"x\n")
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    cooked = termios.tcgetattr(master)
    assert cooked[3] & termios.ECHO
    assert cooked[3] & termios.ICANON
    os.close(master)
