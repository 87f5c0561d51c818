"""The C engine: what it sees, and that nobody notices it (capture.md §3, §5)."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from substrate.telemetry.capture import calls, engine, gate, records
from substrate.telemetry.capture.backend import CaptureError
from tests.telemetry.capture.captured import PYTHON, Running, armed, capture, parse

BACKENDS = ["hybrid", "ptrace", "notify"]
EXACT = ["hybrid", "ptrace"]


def opened(captured, path):
    return [r for r in captured.of("open", "openat") if r.path() == path]


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_open_of_a_known_number_is_there(backend, tmp_path):
    script = f"import os\nfor i in range(500): os.close(os.open({str(tmp_path)!r}, os.O_RDONLY))"
    found = capture([*PYTHON, script], backend)
    assert found.status == 0, found.stderr
    assert len(opened(found, os.fsencode(tmp_path))) == 500
    assert found.lost == {}


@pytest.mark.parametrize("backend", EXACT)
def test_changes_have_their_results(backend, tmp_path):
    script = (
        "import os\n"
        "for i in range(100):\n"
        "    os.close(os.open('f', os.O_WRONLY | os.O_CREAT, 0o600))\n"
        "    os.rename('f', 'g'); os.unlink('g')\n"
        "    try: os.unlink('g')\n"
        "    except FileNotFoundError: pass\n"
    )
    found = capture([*PYTHON, script], backend, cwd=tmp_path)
    assert found.status == 0, found.stderr
    made = opened(found, b"f")
    assert len(made) == 100
    assert all(r.result >= 0 and r.path("opened") == os.fsencode(tmp_path / "f") for r in made)
    assert [r.result for r in found.of("rename")] == [0] * 100
    assert sorted(r.result for r in found.of("unlink")) == [-2] * 100 + [0] * 100


def test_processes_programs_and_ends():
    found = capture(["sh", "-c", "true; /bin/true; (exit 3); sh -c 'kill -9 $$'; exit 7"])
    assert os.WEXITSTATUS(found.status) == 7
    forks, execs, exits = (
        found.of("fork"),
        [r for r in found.records if r.kind == "exec"],
        found.of("exit"),
    )
    assert len(forks) == 3
    assert [r.items["argv"].split(b"\0")[0] for r in execs] == [b"sh", b"/bin/true", b"sh"]
    ends = {r.tid: r.result for r in exits}
    assert sorted(ends.values()) == [0, 7 << 8, 9, 3 << 8] or sorted(ends.values()) == sorted(
        [0, 3 << 8, 9, 7 << 8]
    )
    assert {r.result for r in forks} | {execs[0].tid} == set(ends)


def test_what_a_program_inherits():
    found = capture(["sh", "-c", "cat < /etc/hostname > /dev/null"])
    cat = [r for r in found.records if r.kind == "exec"][-1]
    fds = {int.from_bytes(fd[:4], sys.byteorder): fd[8:] for fd in cat.items["fd"]}
    assert fds[0] == b"/etc/hostname"
    assert fds[1] == b"/dev/null"
    assert fds[2].startswith(b"pipe:[")
    assert set(fds) == {0, 1, 2}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT])
def test_a_command_dies_of_its_signal(backend, number):
    found = capture(["sh", "-c", f"kill -{int(number)} $$; sleep 5"], backend)
    assert os.WIFSIGNALED(found.status) and os.WTERMSIG(found.status) == number


def test_stops_are_seen_by_the_parent():
    # The child stays until its parent has seen that it goes on: its end would hide that.
    script = (
        "import os, signal\n"
        "wait, seen = os.pipe()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os.kill(os.getpid(), signal.SIGSTOP); os.read(wait, 1); os._exit(3)\n"
        "_, status = os.waitpid(pid, os.WUNTRACED)\n"
        "print(os.WIFSTOPPED(status), os.WSTOPSIG(status))\n"
        "os.kill(pid, signal.SIGCONT)\n"
        "_, status = os.waitpid(pid, os.WCONTINUED)\n"
        "print(os.WIFCONTINUED(status))\n"
        "os.write(seen, b'x')\n"
        "_, status = os.waitpid(pid, 0)\n"
        "print(os.WEXITSTATUS(status))\n"
    )
    found = capture([*PYTHON, script])
    assert found.stdout == b"True 19\nTrue\n3\n", found.stderr


@pytest.mark.parametrize("backend", EXACT)
def test_stops_wake_nobody_but_the_tracer(backend, tmp_path):
    """The kernel sends a SIGCHLD at each stop; only a thread that waits may be run for it."""
    script = (
        "import os\nfor i in range(2000):\n    try: os.unlink('none')\n    except OSError: pass"
    )
    with Running([*PYTHON, script], backend, cwd=tmp_path) as running:
        running.go()
        poll = select.poll()
        poll.register(running.out_read, select.POLLIN)
        before = _waits()
        assert poll.poll(30_000), "the command ended"
        waits = _waits() - before
        found = running.wait()
    assert len(found.of("unlink")) == 2000
    assert waits < 200  # and not one for each of 4,000 stops


def _waits() -> int:
    """How often this thread has gone to sleep."""
    text = Path(f"/proc/self/task/{threading.get_native_id()}/status").read_text()
    return int(text.split("\nvoluntary_ctxt_switches:")[1].split()[0])


def test_relative_paths_have_their_directory(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_text("x")
    script = (
        "import os\n"
        "d = os.open('d', os.O_RDONLY | os.O_DIRECTORY)\n"
        "os.close(os.open('f', os.O_RDONLY, dir_fd=d))\n"
        "os.chdir('d')\n"
        "os.fchdir(d)\n"
    )
    found = capture([*PYTHON, script], cwd=tmp_path)
    assert found.status == 0, found.stderr
    (inner,) = opened(found, b"f")
    assert inner.path("base") == os.fsencode(tmp_path / "d")
    assert [r.path("cwd") for r in found.of("chdir", "fchdir")] == [os.fsencode(tmp_path / "d")] * 2


@pytest.mark.parametrize("backend", EXACT)
def test_threads(backend):
    script = (
        "import os, threading\n"
        "def run():\n"
        "    for i in range(10): os.close(os.open('/dev/null', os.O_WRONLY))\n"
        "threads = [threading.Thread(target=run) for _ in range(100)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
    )
    found = capture([*PYTHON, script], backend)
    assert found.status == 0, found.stderr
    assert len(opened(found, b"/dev/null")) >= 1000
    assert len([r for r in found.of("fork") if r.args[1] == 1]) == 100


@pytest.mark.parametrize("policy", ["block", "drop"])
def test_a_full_ring_waits_or_is_counted(policy):
    script = "import os\nfor i in range(5000): os.close(os.open('/', os.O_RDONLY))"
    with Running([*PYTHON, script], policy=policy, ring_bytes=65536) as running:
        running.go()
        time.sleep(0.3)  # nobody reads meanwhile
        found = running.wait()
    assert found.status == 0
    seen = len(opened(found, b"/"))
    told = sum(r.result for r in found.of("lost"))
    if policy == "block":
        assert (seen, told, found.lost) == (5000, 0, {})
    else:
        assert 0 < seen < 5000
        assert told == found.lost["full"] > 0
        assert seen + told >= 5000


def test_closing_ends_what_is_traced():
    with Running(["sh", "-c", "sleep 1000 & sleep 1000"]) as running:
        running.go()
        while not running.chunks:
            running.step()
        pid = running.pid
        assert os.path.exists(f"/proc/{pid}")
        running.backend.close()
        deadline = time.monotonic() + 10
        while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not os.path.exists(f"/proc/{pid}")


def test_a_killed_tracer_ends_the_tree(tmp_path):
    """EXITKILL: the supervisor is killed with its threads."""
    program = (
        "import sys, os; sys.path.insert(0, sys.argv[1])\n"
        "from tests.telemetry.capture.captured import Running\n"
        "running = Running(['sh', '-c', 'echo $$; sleep 1000'])\n"
        "running.go()\n"
        "while not running.stdout: running.step()\n"
        "print(running.stdout.decode(), end='', flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    here = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", program, here], stdout=subprocess.PIPE, check=False
    )
    assert done.returncode == -9
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}/exe") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{pid}/exe")


def test_attach_says_what_failed():
    backend = engine.make("hybrid", "files")
    with pytest.raises(CaptureError) as caught:
        backend.attach(2**22 + 1, None)
    assert (caught.value.step, caught.value.errno) == ("seize", 3)
    backend.close()


def test_unknown_tables_are_refused():
    from substrate.telemetry.capture._engine import Engine

    for tables in ((b"x", b"", b""), (b"\xff" * 24, b"", b"")):
        with pytest.raises(ValueError, match="table"):
            Engine(tables, b"", 65536, 0, False)
    with pytest.raises(ValueError, match="ring_size"):
        Engine((b"", b"", b""), b"", 65537, 0, False)


# --- the gate


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gate_denies_by_its_table(backend):
    found = capture(["sh", "-c", "/bin/true; echo $?"], backend, arm=armed({b"true": gate.DENY}))
    assert found.stdout == b"126\n"
    (denied,) = [r for r in found.of("execve") if r.kind == "call" and r.result == -13]
    assert denied.path() == b"/bin/true"
    assert [r.result for r in found.of("gate")] == [gate.DENY]


def test_a_script_is_what_runs_it(tmp_path):
    script = tmp_path / "s"
    script.write_text("#!/bin/cat\nhello\n")
    script.chmod(0o755)
    found = capture(["sh", "-c", f"{script}; echo $?"], arm=armed({b"cat": gate.DENY}))
    assert found.stdout == b"126\n"
    found = capture([script, "a", "b"], arm=armed({}))
    assert b"hello" in found.stdout
    assert found.of("gate") == []


def named_otherwise(folder):
    """A line for bash that runs copies and links, called `git` in one way after another."""
    shutil.copy("/bin/true", folder / "copy")
    (folder / "git").symlink_to("copy")
    (folder / "script").write_text(f"#!{folder}/git -x\n")
    (folder / "script").chmod(0o755)
    ways = (
        "(exec -a git ./copy)",
        "(exec -a -git ./copy)",
        "(exec -a /x/git ./copy)",
        "./git",
        "./script",
    )
    return "; ".join(f"{way} 2>&-; echo -n $?," for way in (*ways, "./copy"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("otherwise", [gate.ALLOW, gate.ASK])
def test_a_name_that_it_is_called_by_can_only_deny(tmp_path, backend, otherwise):
    line = named_otherwise(tmp_path)
    known = dict.fromkeys((b"bash", b"copy", b"script"), gate.ALLOW)
    table = armed({**known, b"git": gate.DENY}, otherwise)
    found = capture(["bash", "-c", line], backend, arm=table, cwd=tmp_path)
    assert found.stdout == b"126,126,126,126,126,0,"
    table = armed({**known, b"copy": gate.DENY, b"git": gate.ALLOW}, otherwise)
    found = capture(["bash", "-c", line], backend, arm=table, cwd=tmp_path)
    assert found.stdout == b"126,126,126,126,126,126,"


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_no_table_knows_is_called_nothing(tmp_path, backend):
    line = named_otherwise(tmp_path)
    known = dict.fromkeys((b"bash", b"copy", b"script"), gate.ALLOW)
    found = capture(["bash", "-c", line], backend, arm=armed(known, gate.DENY), cwd=tmp_path)
    assert found.stdout == b"0,0,0,0,0,0,"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hold_has_the_words_before_a_script(tmp_path, backend):
    (tmp_path / "inner").write_text("#!/bin/echo -n\n")
    (tmp_path / "outer").write_text(f"#! {tmp_path}/inner  with space \n")
    for name in ("inner", "outer"):
        (tmp_path / name).chmod(0o755)
    with Running(
        ["sh", "-c", "./outer a"], backend, arm=armed({b"outer": gate.ASK}), cwd=tmp_path
    ) as running:
        running.go()
        held = []
        while running.status is None:
            for record in parse(running.step()):
                if record.kind == "hold":
                    held += record.items["data"]
                    assert running.backend.answer(record.args[0], gate.ALLOW, gate.BY_CALLBACK)
        found = running.wait()
    inner = os.fsencode(tmp_path / "inner")
    assert held == [b"/bin/echo\0-n\0%s\0with space\0" % inner]
    assert found.stdout == b"%s with space ./outer a" % inner


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hold_waits_for_its_answer(backend):
    with Running(
        ["sh", "-c", "/bin/echo one; /bin/echo two"], backend, arm=armed({b"echo": gate.ASK})
    ) as running:
        running.go()
        answers = [gate.DENY, gate.ALLOW]
        holds = []
        while running.status is None:
            for record in parse(running.step()):
                if record.kind == "hold":
                    holds.append(record.items["argv"])
                    assert running.backend.answer(record.args[0], answers.pop(0), gate.BY_CALLBACK)
        found = running.wait()
    assert holds == [b"/bin/echo\0one\0", b"/bin/echo\0two\0"]
    assert found.stdout == b"two\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hold_ends_when_nobody_answers(backend):
    started = time.monotonic()
    found = capture(
        ["sh", "-c", "/bin/echo one"], backend, arm=armed({b"echo": gate.ASK}, hold_ms=300)
    )
    assert os.WEXITSTATUS(found.status) == 126
    assert 0.3 <= time.monotonic() - started < 10
    assert [(r.result, r.args[1]) for r in found.of("gate")] == [(gate.DENY, gate.TIME_OUT)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_held_process_dies_of_a_signal(backend):
    with Running(
        ["sh", "-c", "sleep 100 & /bin/echo one"],
        backend,
        arm=armed({b"echo": gate.ASK}, hold_ms=60000),
    ) as running:
        running.go()
        while not any(record.kind == "hold" for record in parse(running.step())):
            pass
        os.killpg(running.pid, signal.SIGTERM)
        found = running.wait(20)
    # without a tracer the signal ends the wait by itself
    why = gate.CLIENT_GONE if backend == "notify" else gate.IS_DYING
    assert (gate.DENY, why) in [(r.result, r.args[1]) for r in found.of("gate")]


def test_a_missing_program_is_left_to_the_kernel():
    found = capture(
        ["sh", "-c", "/nope; echo $?; /etc/passwd; echo $?"],
        arm=armed({}, gate.DENY and gate.ALLOW),
    )
    assert found.stdout == b"127\n126\n"
    assert found.of("gate") == []


RACE = r"""
#include <pthread.h>
#include <string.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/wait.h>
static char path[64];
static volatile int stop;
static void *flip(void *unused)
{
    while (!stop) {
        memcpy(path, "/bin/true\0", 10);
        memcpy(path, "/bin/false", 11);
    }
    return unused;
}
int main(int argc, char **argv)
{
    int n = atoi(argv[1]), ran = 0;
    strcpy(path, "/bin/true");
    for (int i = 0; i < n; i++) {
        pid_t pid = fork();
        if (!pid) {
            pthread_t t;
            char *args[] = {"x", 0};
            pthread_create(&t, 0, flip, 0);
            usleep(rand() % 50);
            execv(path, args);
            _exit(99);
        }
        int status;
        waitpid(pid, &status, 0);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 1)
            ran++; /* /bin/false ran to its end */
    }
    return ran ? 1 : 0;
}
"""


@pytest.mark.parametrize("rounds", [1000])
def test_no_race_gets_a_denied_program_through(tmp_path, rounds):
    source = tmp_path / "race.c"
    source.write_text(RACE)
    subprocess.run(["gcc", "-O1", "-pthread", "-o", tmp_path / "race", source], check=True)
    found = capture(
        [tmp_path / "race", str(rounds)],
        arm=armed({b"/usr/bin/false": gate.DENY, b"/bin/false": gate.DENY}),
    )
    assert found.status == 0
    verdicts = [(r.result, r.args[1]) for r in found.of("gate")]
    assert any(reason == gate.BY_TABLE for _, reason in verdicts)


def test_shapes_stand_for_their_calls():
    assert calls.shape_of("openat")[:2] == (1, 0)
    assert records.HEAD_SIZE == 80


@pytest.mark.parametrize("backend", EXACT)
def test_everybody_has_a_parent_that_was_told_of(backend):
    """Children stop before their parents' events come, and others end meanwhile."""
    script = "for i in 1 2 3 4 5 6 7 8; do (for j in 1 2 3 4 5 6 7 8; do /bin/true & done; wait) & done; wait"
    for _ in range(3):
        found = capture(["bash", "-c", script], backend)
        first = next(record.tid for record in found.records if record.kind == "exec")
        known, ended = {first}, set()
        for record in found.records:
            if record.kind == "fork":
                assert record.tid in known and record.tid not in ended
                assert record.result not in known, "told of twice"
                known.add(record.result)
            elif record.kind == "exit":
                assert record.tid in known
                ended.add(record.tid)
        assert ended == known
        assert len(known) == 1 + 8 + 64


def test_the_kernels_own_links_are_programs_too(tmp_path):
    """/proc/self/exe is the caller's own, and not the tracer's."""
    script = (
        "import os, sys\n"
        "fd = os.open('/bin/echo', os.O_PATH)\n"
        "for path in ('/proc/self/fd/%d' % fd, '/dev/fd/%d' % fd, '/proc/%d/fd/%d' % (os.getpid(), fd)):\n"
        "    if os.fork() == 0:\n"
        "        os.execv(path, ['echo', path[:6]])\n"
        "    os.wait()\n"
        "os.execv('/proc/self/exe', ['python', '-I', '-S', '-c', 'print(1)'])\n"
    )
    found = capture([*PYTHON, script], arm=armed({}))
    assert found.stdout == b"/proc/\n/dev/f\n/proc/\n1\n", found.stderr
    assert found.of("gate") == []
    found = capture([*PYTHON, script], arm=armed({b"echo": gate.DENY}))
    assert found.stdout == b"1\n"
