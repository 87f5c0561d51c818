"""The engine when something fails: no hang, no lost exit status, no silent loss, nothing left over
(capture.md §3, §5)."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from substrate.telemetry.capture import engine, gate
from tests.telemetry.capture.captured import PYTHON, Running, armed, capture, parse
from tests.telemetry.capture.killed_supervisors import Supervisors, session_of

PROJECT = Path(__file__).parents[3]
SECONDS = 60.0  # more than anything here takes on a busy machine; a hang takes longer


def assert_gone(leader: int, limit_s: float = 20.0) -> None:
    until = time.monotonic() + limit_s
    while session_of(leader):
        assert time.monotonic() < until, f"left: {session_of(leader)}"
        time.sleep(0.02)


def assert_forks_come_first(found) -> None:
    """Every end is of somebody who was told of before, once; everybody ends."""
    first = next(record.tid for record in found.records if record.kind == "exec")
    known, ended = {first}, set()
    for record in found.records:
        if record.kind == "fork":
            assert record.result not in known, f"{record.result} is told of twice"
            known.add(record.result)
        elif record.kind == "exit":
            assert record.tid in known, f"{record.tid} ended before it was told of"
            ended.add(record.tid)
    assert ended == known


# --- ends


@pytest.mark.parametrize("backend", ["hybrid", "ptrace"])
@pytest.mark.parametrize("how", ["close", "kill"])
def test_a_tree_that_always_makes_more_of_itself_ends(hostile, backend, how):
    """Whoever kills what it knows of kills yesterday's processes; close(2) of the tracer ends all."""
    with Running([hostile.path("hop"), "6", "30"], backend) as running:
        running.go()
        seen = 0
        while seen < 200:
            seen += sum(record.kind == "fork" for record in parse(running.step()))
        started = time.monotonic()
        if how == "close":
            running.backend.close()
        else:
            running.backend.kill()
            while not running.backend.finished():
                assert time.monotonic() - started < 8
                running.step(0.1)
        assert time.monotonic() - started < 8
        assert_gone(running.pid)


@pytest.mark.parametrize("how", ["processes", "threads"])
def test_nobody_waits_for_a_parent_that_was_killed(hostile, how):
    """Its child's first stop may come after its end; and who took the child in never tells of it."""
    found = capture([hostile.path("orphans"), "60", how])
    assert found.status == 0
    assert_forks_come_first(found)


def test_who_was_taken_in_and_is_killed_while_it_is_asked_for_asks_no_more(hostile):
    """No parent told of it; it waits for an answer to its exec; and then there is none who waits."""
    with Running([hostile.path("orphans"), "60", "exec"],
                 arm=armed({b"true": gate.ASK}, hold_ms=600_000)) as running:  # fmt: skip
        running.go()
        found = running.wait()
    assert found.status == 0
    asked = {record.tid for record in found.of("hold")}
    taken_in = {record.result for record in found.of("fork") if not record.args[0]}
    assert asked & taken_in
    assert_forks_come_first(found)
    ended = set()
    for record in found.records:
        if record.kind == "exit":
            ended.add(record.tid)
        assert record.kind != "gate" or record.tid not in ended, f"{record.tid} is judged when dead"


def test_who_is_killed_before_it_is_told_of_is_told_of_first():
    script = (
        "import os, signal\n"
        "for i in range(150):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        os.setpgid(0, 0)\n"
        "        while True:\n"
        "            if os.fork() == 0: os._exit(0)\n"
        "    try: os.setpgid(pid, pid)\n"
        "    except OSError: pass\n"
        "    for _ in range(i % 7 * 400): pass\n"
        "    os.killpg(pid, signal.SIGKILL)\n"
        "    os.waitpid(pid, 0)\n"
    )
    found = capture([*PYTHON, script])
    assert found.status == 0, found.stderr
    assert_forks_come_first(found)


def test_a_group_that_stops_while_it_makes_threads_stays_stopped():
    """A thread that is born into a stopped group stops with it, and goes on with it."""
    script = (
        "import os, signal, threading, time\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    def more():\n"
        "        while True:\n"
        "            thread = threading.Thread(target=int); thread.start(); thread.join()\n"
        "    for _ in range(3): threading.Thread(target=more, daemon=True).start()\n"
        "    time.sleep(3600)\n"
        "for i in range(40):\n"
        "    time.sleep(0.005)\n"
        "    os.kill(pid, signal.SIGSTOP)\n"
        "    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])\n"
        "    states = {open(f'/proc/{pid}/task/{t}/stat').read().rpartition(')')[2].split()[0]\n"
        "              for t in os.listdir(f'/proc/{pid}/task')}\n"
        "    assert not states & set('RS'), states\n"
        "    os.kill(pid, signal.SIGCONT)\n"
        "    assert os.WIFCONTINUED(os.waitpid(pid, os.WCONTINUED)[1])\n"
        "os.kill(pid, signal.SIGKILL)\n"
    )
    found = capture([sys.executable, "-I", "-S", "-c", script])
    assert found.status == 0, found.stderr
    assert_forks_come_first(found)


@pytest.mark.parametrize("backend", ["hybrid", "ptrace"])
def test_a_killed_supervisor_leaves_nothing(backend):
    """Twenty times at random moments; `scripts/fuzz-engine` does it two hundred times."""
    supervisors = Supervisors(backend, random.Random(7))
    for _ in range(10):
        supervisors.kill_one()
    assert supervisors.killed == 10


# --- threads of the engine that cannot go on


def stuck(hostile, backend: str) -> Running:
    running = Running([hostile.path("stuck")], backend)
    running.go()
    while running.stdout != b"ready\n" and running.status is None:
        running.step()
    time.sleep(0.1)
    return running


@pytest.mark.parametrize("backend", ["hybrid", "ptrace", "notify"])
def test_memory_that_nobody_provides_holds_up_the_traced_only(hostile, backend):
    """The tracer waits in process_vm_readv(2) for a page of userfaultfd(2); it ends with its owner."""
    with stuck(hostile, backend) as running:
        if running.status == 77 << 8:
            pytest.skip("userfaultfd(2) is not allowed here")
        started = time.monotonic()
        if backend == "notify":  # nobody is traced: the world's end kills them
            os.kill(running.pid, signal.SIGKILL)
        running.backend.close()
        assert time.monotonic() - started < 8
        assert_gone(running.pid)


def test_a_tracer_that_never_comes_back_is_left_behind(hostile):
    """Somebody outside of the tree keeps the page from being given up. The process can go on, and end."""
    script = (
        "import os, sys, time\n"
        "from tests.telemetry.capture.captured import Running\n"
        "running = Running([sys.argv[1]], 'ptrace')\n"
        "running.go()\n"
        "while running.stdout != b'ready\\n' and running.status is None: running.step()\n"
        "time.sleep(0.1)\n"
        "import ctypes\n"
        "libc = ctypes.CDLL(None)\n"
        "kept = libc.syscall(438, libc.syscall(434, running.pid, 0), 9, 0)\n"
        "if running.status is not None or kept < 0: os._exit(77)\n"
        "started = time.monotonic()\n"
        "running.backend.close()\n"
        "took = time.monotonic() - started\n"
        "print('closed', 9 < took < 30, flush=True)\n"
        "os.close(kept)\n"
        "running.socket.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, hostile.path("stuck")],
        cwd=PROJECT, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip("userfaultfd(2) or pidfd_getfd(2) is not allowed here")
    assert (done.returncode, done.stdout) == (0, "closed True\n"), done.stderr


@pytest.mark.parametrize("backend", ["hybrid", "notify"])
def test_a_listener_that_is_gone_is_told_and_nothing_passes(backend, tmp_path):
    """Somebody closes the descriptor under it."""
    before = set(os.listdir("/proc/self/fd"))
    script = (
        "import os, sys\n"
        "os.open('/', os.O_RDONLY)\n"
        "os.write(1, b'opened\\n')\n"
        "sys.stdin.readline()\n"
        "def tried():\n"
        "    try: os.open('/tmp', os.O_RDONLY); return 0\n"
        "    except OSError as e: return e.errno\n"
        "tried()\n"
        "os.write(1, b'%d\\n' % tried())\n"
    )
    read, write = os.pipe()
    with Running([*PYTHON, script], backend, preexec=lambda: os.dup2(read, 0)) as running:
        running.go()
        while running.stdout != b"opened\n":  # so it was answered
            running.step(0.1)
        (listener,) = [
            int(fd) for fd in set(os.listdir("/proc/self/fd")) - before
            if os.path.exists(f"/proc/self/fd/{fd}")
            and "seccomp notify" in os.readlink(f"/proc/self/fd/{fd}")
        ]  # fmt: skip
        os.close(listener)
        os.write(write, b"\n")
        found = running.wait()
    os.close(read)
    os.close(write)
    assert (found.status, found.stdout) == (0, b"opened\n38\n"), found.stderr
    troubles = found.of("trouble")
    assert {trouble.result for trouble in troubles} == {-9}
    steps = [engine.STEPS[number] for number in parse_numbers(found.raw, "trouble")]
    # what was waiting to receive does it once more, and cannot answer
    assert steps in (["receive"], ["answer", "receive"])


def parse_numbers(raw: bytes, kind: str):
    from substrate.telemetry.capture import records

    for head, _, _ in records.read_records(raw):
        if records.KINDS[head[1]] == kind:
            yield head[5]


# --- what runs out


def limited(script: str, *words: str, **limits: int) -> dict:
    """Runs `script`, which prints JSON, with limits of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=PROJECT, capture_output=True, text=True, timeout=SECONDS,
        preexec_fn=lambda: [
            resource.setrlimit(getattr(resource, name), (most, most)) for name, most in limits.items()
        ],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict = json.loads(done.stdout)
    return found


def test_no_memory_for_a_ring():
    script = (
        "import json, resource\n"
        "from substrate.telemetry.capture import engine\n"
        "engine._tables()\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20),) * 2)\n"
        "found = []\n"
        "for size in (1 << 30, 65536):\n"
        "    try: engine.make('hybrid', 'files', ring_bytes=size).close(); found.append(0)\n"
        "    except OSError as error: found.append(error.errno)\n"
        "print(json.dumps({'found': found}))\n"
    )
    assert limited(script) == {"found": [12, 0]}


def test_no_descriptors_for_an_engine():
    """Whatever number is left, it is refused whole, and nothing stays open."""
    script = (
        "import json, os, resource\n"
        "from substrate.telemetry.capture import engine\n"
        "engine.make('hybrid', 'files').close()\n"
        "def count(): return len(os.listdir('/proc/self/fd'))\n"
        "before, found = count(), []\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "for more in range(5):\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (3 + more, hard))\n"
        "    try: made = engine.make('hybrid', 'files')\n"
        "    except OSError as error: found.append(error.errno)\n"
        "    else: found.append(0); made.close()\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\n"
        "    assert count() == before, (count(), before)\n"
        "print(json.dumps({'found': found}))\n"
    )
    assert limited(script) == {"found": [24, 24, 24, 0, 0]}


def test_a_gate_without_descriptors_denies_and_kills_nobody():
    """What cannot be looked at gets an error, as what cannot be read does; the command lives."""
    script = (
        "import json, os, resource\n"
        "from substrate.telemetry.capture import gate\n"
        "from tests.telemetry.capture.captured import Running, parse\n"
        "arm = lambda b: b.arm(gate.pack_table({b'nothing': gate.DENY}), gate.ALLOW, 1000)\n"
        'code = "import os, sys\\nsys.stdin.readline()\\n" \\\n'
        "       \"s = [os.spawnv(os.P_WAIT, '/bin/true', ['true']) for i in range(20)]\\n\" \\\n"
        '       "print(*s)\\n"\n'
        "read, write = os.pipe()\n"
        "with Running(['/usr/bin/python3', '-I', '-S', '-c', code], arm=arm,\n"
        "             preexec=lambda: os.dup2(read, 0)) as running:\n"
        "    running.go()\n"
        "    while not any(r.kind == 'exec' for r in parse(running.step())): pass\n"
        "    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "    most = max(int(fd) for fd in os.listdir('/proc/self/fd'))\n"
        "    filled = [os.dup(0) for fd in range(most) if not os.path.exists(f'/proc/self/fd/{fd}')]\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))\n"
        "    os.write(write, b'\\n')\n"
        "    found = running.wait()\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))\n"
        "print(json.dumps({'status': found.status, 'out': found.stdout.decode(),\n"
        "    'gate': sorted({(r.result, r.args[1]) for r in found.of('gate')})}))\n"
    )
    found = limited(script)
    assert found["status"] == 0
    assert set(found["out"].split()) == {"127"}  # what spawnv's child ends with after EACCES
    assert found["gate"] == [[gate.DENY, gate.IS_UNREADABLE]]


# --- policies


@pytest.mark.parametrize("policy", engine.POLICIES)
def test_what_does_not_fit_the_ring_is_counted_and_nobody_waits(policy):
    """A record that is longer than the whole ring; halting is for all that is lost."""
    script = (
        "import os\n"
        "pid = os.posix_spawn('/bin/true', ['true', *['x' * 100000] * 2], {})\n"
        "os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) + 7)\n"
    )
    with Running([*PYTHON, script], policy=policy, ring_bytes=65536) as running:
        running.go()
        found = running.wait()
        assert running.backend.halted() == (policy == "halt")
    assert os.waitstatus_to_exitcode(found.status) == 7
    assert found.lost == {"memory": 1}
    assert sum(r.result for r in found.of("lost")) == 1


def test_a_question_that_cannot_be_told_is_answered_at_once():
    """Nobody will answer it: the exec is denied long before its time is out."""
    script = (
        "import os\n"
        "try: os.execv('/bin/true', ['true', *['x' * 100000] * 2])\n"
        "except OSError as error: os._exit(error.errno)\n"
    )
    started = time.monotonic()
    found = capture(
        [*PYTHON, script], arm=armed({b"true": gate.ASK}, hold_ms=3600_000), ring_bytes=65536
    )
    assert os.waitstatus_to_exitcode(found.status) == 13
    assert time.monotonic() - started < SECONDS
    assert found.lost["memory"] >= 1


@pytest.mark.parametrize("policy", engine.POLICIES)
def test_an_exit_status_is_never_lost(policy):
    """Nobody reads for a while, and much is lost, or everybody waits."""
    script = (
        "import os\n"
        "for i in range(3000):\n"
        "    try: os.unlink('/nothing')\n"
        "    except OSError: pass\n"
        "os._exit(41)\n"
    )
    with Running([*PYTHON, script], policy=policy, ring_bytes=65536) as running:
        running.go()
        time.sleep(0.3)
        found = running.wait()
        assert running.backend.halted() == (policy == "halt")
    assert os.waitstatus_to_exitcode(found.status) == 41
    seen = len(found.of("unlink"))
    told = sum(r.result for r in found.of("lost"))
    if policy == "block":
        assert (seen, told, found.lost) == (3000, 0, {})
    else:
        assert told == found.lost["full"] > 0
        assert seen < 3000 <= seen + told
    # there is room for ends where there is none for calls any more
    assert [r.result for r in found.of("exit")] == [41 << 8]


def test_answers_reach_a_busy_tree():
    """Somebody who always has something to tell does not keep those who are held from their answer."""
    busy = "while [ ! -e stop ]; do :> f; rm f; done"
    command = f"({busy}) & ({busy}) & ({busy}) & /bin/echo asked; touch stop; wait"
    started = time.monotonic()
    with Running(["sh", "-c", f"cd $(mktemp -d); {command}"],
                 arm=armed({b"echo": gate.ASK}, hold_ms=600_000)) as running:  # fmt: skip
        running.go()
        while running.status is None:
            for record in parse(running.step()):
                if record.kind == "hold":
                    assert running.backend.answer(record.args[0], gate.ALLOW, gate.BY_CALLBACK)
        found = running.wait()
    assert found.stdout == b"asked\n"
    assert time.monotonic() - started < SECONDS


def test_more_questions_than_are_held_at_once_are_denied(hostile):
    script = (
        "import os\n"
        "for i in range(600):\n"
        "    if os.fork() == 0:\n"
        "        try: os.execv('/bin/true', ['true'])\n"
        "        except OSError as error: os._exit(error.errno)\n"
        "ends = [os.waitstatus_to_exitcode(os.wait()[1]) for i in range(600)]\n"
        "print(ends.count(0), ends.count(13))\n"
    )
    with Running([*PYTHON, script], arm=armed({b"true": gate.ASK}, hold_ms=600_000)) as running:
        running.go()
        holds: list[int] = []
        denied = 0
        while denied < 88:
            for record in parse(running.step()):
                holds += [record.args[0]] if record.kind == "hold" else []
                denied += record.kind == "gate" and record.args[1] == gate.CLIENT_GONE
        while running.status is None:
            while holds and running.backend.answer(holds[-1], gate.ALLOW, gate.BY_CALLBACK):
                holds.pop()
            holds += [r.args[0] for r in parse(running.step(0.1)) if r.kind == "hold"]
        found = running.wait()
    assert found.stdout == b"512 88\n", found.stderr


# --- what is large


@pytest.mark.parametrize(("what", "many"), [("processes", 2000), ("threads", 1000)])
def test_crowds(hostile, what, many):
    found = capture([hostile.path("crowd"), what, str(many)])
    assert found.status == 0
    assert len(found.of("fork")) == many
    opens = [r for r in found.of("openat", "open") if r.path() == b"/dev/null"]
    assert len({r.tid for r in opens}) == many
    assert_forks_come_first(found)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("words", [1, 20, 19000])
def test_long_argument_vectors(gated, words):
    """Nearly two megabytes: more than is kept, and nobody is killed for what was not."""
    size = min(1_900_000 // words, 131_000)
    script = f"import os\nos.execv('/bin/true', ['true', *['x' * {size - 10}] * {words}])\n"
    found = capture([*PYTHON, script], arm=armed({}) if gated else None)
    assert found.status == 0, found.stderr
    assert found.of("gate") == []
    executed = [r for r in found.records if r.kind == "exec"][-1]
    assert executed.items["argv"].startswith(b"true\0xxx")
    assert len(executed.items["argv"]) == min(256 * 1024, 5 + (size - 9) * words)
    assert bool(executed.flags & 8) == (words > 1)


@pytest.mark.parametrize("length", [4094, 4095, 4096, 4097, 9000])
def test_long_paths(length, tmp_path):
    (tmp_path / "d").mkdir()
    path = (b"d/../" * 2000)[: length - 1] + b"/"
    script = (
        "import os, ctypes\n"
        f"libc = ctypes.CDLL(None, use_errno=True)\n"
        f"libc.open({path!r}, os.O_RDONLY | os.O_DIRECTORY)\n"
        f"libc.mkdir({path!r}, 0o700)\n"
    )
    found = capture([sys.executable, "-I", "-c", script], cwd=tmp_path)
    assert found.status == 0, found.stderr
    for call in ("mkdir", "openat"):
        (record,) = [r for r in found.of(call) if (r.path() or b"").startswith(b"d/../d/../")]
        assert record.path() == path[:4096]
        assert bool(record.flags & 8) == (length >= 4096)


def test_where_the_kernel_has_no_words_for_a_place_that_is_said(tmp_path):
    """Deeper than a name can be: an open there has no name of the kernel, and a record says so."""
    script = (
        "import os\n"
        "for i in range(40):\n"
        "    os.mkdir('d' * 200); os.chdir('d' * 200)\n"
        "os.close(os.open('f', os.O_WRONLY | os.O_CREAT))\n"
        "os.unlink('f')\n"
        "for i in range(40):\n"
        "    os.chdir('..'); os.rmdir('d' * 200)\n"
    )
    found = capture([*PYTHON, script], cwd=tmp_path)
    assert found.status == 0, found.stderr
    (made,) = [r for r in found.of("openat", "open") if r.path() == b"f"]
    assert "opened" not in made.items
    assert made.flags & 8
    deep = [r for r in found.of("chdir") if r.items.get("cwd") == b""]
    assert len(deep) > 20
    assert all(r.flags & 8 for r in deep)
