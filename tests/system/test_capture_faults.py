"""Capture when something goes wrong: the supervisor is killed, a limit or a disk is full, processes are
many, or end in the wrong moment. All ends, the trace is whole, and the world goes on."""

import contextlib
import dataclasses
import errno
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.system import traces_left
from tests.system.test_capture import Seen, is_refused, run

BACKENDS = ["hybrid", "ptrace", "notify", "bpf"]
#: processes and threads that make calls of all kinds, some of which left their parents
LOAD = """
(setsid sleep 1000 &)
/usr/bin/python3 -Ic '
import os, threading, time
def work():
    while True:
        open("/dev/null").close()
        open("x%d" % threading.get_ident(), "w").close()
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(1000)' &
echo ready
while :; do /bin/true; sh -c 'echo a > f$$; mv f$$ g$$; rm g$$'; done
"""


def _processes(mark):
    return traces_left.gone(lambda: traces_left.processes(mark))


@pytest.mark.parametrize(
    ("backend", "options"),
    # of bpf without a world `coverage` says that nothing ends what goes on
    [(b, ()) for b in BACKENDS] + [(b, ("--no-world",)) for b in (*BACKENDS, "off") if b != "bpf"],
)
def test_a_killed_supervisor_takes_everything_along(caller, backend, options):
    if is_refused(caller, backend):
        return
    chosen = ("--capture", "off") if backend == "off" else ("--capture-backend", backend)
    when = random.Random(f"{backend}{options}{caller.backend}")
    for turn in range(2):
        mark = f"mark-capture-{os.getpid()}-{backend}-{len(options)}-{caller.backend}-{turn}"
        process = caller.start(
            *chosen, *options, "-c", LOAD, env={**caller.environ, traces_left.MARK: mark}
        )
        if turn:
            assert process.stdout.readline() == b"ready\n"
        time.sleep(when.uniform(0.02, 0.2))
        process.kill()
        process.communicate(timeout=30)
        left = _processes(mark)
        for pid, _ in left:
            os.kill(pid, 9)
        assert not left
        done = caller.substrate(*options, "--wait", "10", "-c", "echo again")
        assert (done.returncode, done.stdout) == (0, b"again\n"), done.stderr
        caller.verify()


@pytest.mark.parametrize("backend", BACKENDS)
def test_time_that_is_up_ends_what_ignores_it(caller, backend):
    if is_refused(caller, backend):
        return
    text = (
        "trap '' TERM; (setsid sh -c 'trap \"\" TERM; while :; do /bin/true; done' &);"
        " while :; do /bin/true; done"
    )
    options = ("--capture-backend", backend, "--timeout", "1s")
    _, seen = run(caller, text, *options, status=124)
    assert seen.of("command_end")[0]["ended_by"] == "timeout"
    if backend != "notify":
        starts, ends = seen.of("process_fork"), seen.of("process_exit")
        assert len(ends) == len(starts) + 1
        assert {body.get("signal") for body in ends} >= {9}


def test_a_background_process_is_told_to_its_end(caller):
    text = "(setsid sh -c 'while :; do /bin/true; done' > /dev/null 2>&1 &) ; echo go; exit 3"
    _, seen = run(caller, text, "--background", "100ms", status=3)
    assert len(seen.of("process_exit")) == len(seen.of("process_fork")) + 1
    times = [body["mono_us"] for body in seen.of("process_start")]
    assert max(times) > min(times)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_world_that_is_full_of_processes(caller, backend):
    if is_refused(caller, backend):
        return
    text = (
        "for i in $(seq 25); do /bin/sleep 0.2 2>/dev/null & done 2>/dev/null;"
        " exec 2>/dev/null; kill %1 %2 %3; sleep 0.3; exec /bin/echo end"
    )
    options = ("--limit", "pids=12", "--capture-backend", backend)
    done = caller.substrate("--fresh", *options, "-c", text)
    seen = Seen(caller)
    assert done.returncode in (0, 254)  # bash may be unable to fork for its last words
    (coverage,) = seen.of("coverage")
    assert coverage["lost"] == 0
    assert 4 <= len(seen.of("process_start")) <= 30


def test_a_bomb_that_a_limit_holds(caller):
    text = ":(){ : | : & }; : 2>/dev/null; /bin/sleep 0.3; exit 0"
    options = ("--limit", "pids=30", "--background", "100ms")
    done = caller.substrate("--fresh", *options, "-c", text)
    assert done.returncode in (0, 254)
    seen = Seen(caller)
    assert len(seen.of("process_exit")) == len(seen.of("process_fork")) + 1
    assert caller.substrate("-c", "echo again").stdout == b"again\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_world_without_memory(caller, backend):
    if is_refused(caller, backend):
        return
    text = (
        "/usr/bin/python3 -Ic 'b = [bytearray(1 << 20) for _ in range(400)]' 2>/dev/null;"
        " test $? != 0; echo $?; /bin/true"
    )
    options = ("--limit", "memory=60M", "--capture-backend", backend)
    done, seen = run(caller, text, *options)
    assert done.stdout == b"0\n"
    assert [b["argv"][0] for b in seen.of("process_start")][-1] == "/bin/true"
    ends = {body.get("signal") or body.get("exit") for body in seen.of("process_exit")}
    if backend != "notify":
        assert ends >= {9} or ends >= {1}  # the kernel's killer; or no more memory is given


#: tells more than the small filesystem holds; the second one more than that and the ring together
MUCH = "i=0; while [ $i -lt 60000 ]; do : > /tmp/none-$i/none; i=$((i+1)); done 2>/dev/null; exit 4"
MORE = MUCH.replace("60000", "150000")


@pytest.fixture
def small(request, idmap, user):
    """A caller whose home is on a filesystem of 3 MiB, and a function that makes that larger."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small filesystem needs root")
    caller = {"ns-root-idmap": idmap, "ns-user": user}[request.param]
    caller.forget()
    at = Path(tempfile.mkdtemp(prefix="substrate-full-", dir="/mnt"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m,mode=755", "none", at], check=True)

    def make_room():
        subprocess.run(["mount", "-o", "remount,size=80m", at], check=True)

    try:
        placed = dataclasses.replace(caller, elsewhere=at / "own" / "state")
        placed.make_directory(at / "own")
        yield placed, make_room
    finally:
        subprocess.run(["umount", at], check=True)
        at.rmdir()


_BOTH = pytest.mark.parametrize("small", ["ns-root-idmap", "ns-user"], indirect=True)


def _goes_on(caller, make_room):
    caller.verify()
    make_room()
    again = caller.substrate("-c", "echo again")
    assert (again.returncode, again.stdout) == (0, b"again\n"), again.stderr
    caller.verify()


@_BOTH
def test_a_full_disk_ends_the_command_where_nothing_may_be_lost(small):
    """The record ends whole, the message says why, and the next command goes on."""
    caller, make_room = small
    done = caller.substrate("--overflow", "halt", "-c", MUCH, timeout=60)
    assert done.returncode == 125
    assert b"No space left on device\nhint: make room" in done.stderr
    _goes_on(caller, make_room)


@_BOTH
def test_a_full_disk_loses_what_may_be_lost_and_counts_it(small):
    caller, make_room = small
    done = caller.substrate("--overflow", "drop", "-c", MUCH, timeout=60)
    assert done.returncode == 4, done.stderr
    seen = Seen(caller)
    drops, (coverage,) = seen.of("log_drop"), seen.of("coverage")
    assert {drop["reason"] for drop in drops} == {"disk_full"}
    lost = sum(drop["count"] for drop in drops)
    assert lost == drops[-1]["cumulative"] == coverage["lost_by"]["disk_full"] > 0
    assert b"%d events of the record were lost: the disk was full" % lost in done.stderr
    assert seen.events[-1]["body"]["exit"] == 4
    _goes_on(caller, make_room)


def _starts_waiting(caller, *options):
    process = caller.start("--overflow", "block", *options, "-c", MORE)
    line = process.stderr.readline()
    assert line.startswith(b"substrate: no room to write down what the command does"), line
    return process


@_BOTH
def test_a_full_disk_holds_the_command_until_there_is_room(small):
    caller, make_room = small
    process = _starts_waiting(caller)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    make_room()
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (4, b"")
    seen = Seen(caller)
    assert not seen.of("log_drop")
    assert seen.of("coverage")[0]["lost"] == 0
    told = {row["path"] for row in seen.rows() if str(row["path"]).startswith("/tmp/none-")}
    assert len(told) == 150_000


@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGINT, "timeout"])
@_BOTH
def test_a_command_that_a_full_disk_holds_can_be_ended(small, ends):
    caller, make_room = small
    process = _starts_waiting(caller, *(("--timeout", "8s") if ends == "timeout" else ()))
    if ends != "timeout":
        process.send_signal(ends)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 125
    assert b"No space left on device\nhint: make room" in err
    _goes_on(caller, make_room)


@pytest.mark.parametrize("backend", BACKENDS)
def test_programs_that_do_not_start(caller, backend):
    """The statuses of a shell, and nothing is told of a program that did not run."""
    if is_refused(caller, backend):
        return
    empty = caller.work / "empty"
    for words, status in (
        (("run", "--", "no-such-program"), 127),
        (("run", "--", "/etc"), 126),
        (("run", "--", "./empty"), 126),
        (("-c", "exec ./none"), 127),
    ):
        empty.write_bytes(b"")
        empty.chmod(0o644)
        caller.own(empty)
        verb, *rest = words
        given = (verb,) if verb == "run" else ()
        tail = rest if given else words
        done = caller.substrate(*given, "--fresh", "--capture-backend", backend, *tail)
        assert done.returncode == status, done.stderr
        seen = Seen(caller)
        assert len(seen.of("process_start")) == (0 if given else 1)
        assert seen.of("coverage")[0]["lost"] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_command_that_is_killed_before_it_starts(caller, backend):
    """From outside, in any moment from its birth to its exec: substrate's own failure, or it had
    just begun."""
    if is_refused(caller, backend):
        return
    for delay in (0.0, 0.02):
        process = caller.start("--fresh", "--capture-backend", backend, "-c", "sleep 20")
        deadline = time.monotonic() + 20
        while not (victims := _below(process.pid, 3)) and time.monotonic() < deadline:
            pass
        time.sleep(delay)
        while process.poll() is None and time.monotonic() < deadline:
            for victim in victims:  # what helps to make the world is among them
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, 9)
            time.sleep(0.1)
            victims = _below(process.pid, 3)
        _, err = process.communicate(timeout=30)
        assert process.returncode in (125, 137), err
        assert b"Traceback" not in err
        if process.returncode == 137:
            assert Seen(caller).events[-1]["event_type"] == "command_end"


def _below(pid, depth):
    """The processes that many steps below."""
    found = [pid]
    for _ in range(depth):
        above, found = found, []
        for one in above:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                words = Path(f"/proc/{one}/task/{one}/children").read_text().split()
                found += map(int, words)
    return found


def test_threads_and_processes_at_once(caller):
    script = (
        "import os, threading\n"
        "gate = threading.Barrier(250)\n"
        "def f(i):\n"
        "    gate.wait()\n"
        "    os.close(os.open('of-%d' % i, os.O_CREAT | os.O_WRONLY))\n"
        "    if i % 10 == 0: os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)\n"
        "t = [threading.Thread(target=f, args=(i,)) for i in range(250)]\n"
        "[x.start() for x in t]; [x.join() for x in t]\n"
    )
    _, seen = run(caller, f'/usr/bin/python3 -Ic "{script}"')
    made = {r["path"] for r in seen.rows() if os.path.basename(str(r["path"])).startswith("of-")}
    assert made == {f"{caller.work}/of-{i}" for i in range(250)}
    assert len({r["tid"] for r in seen.rows() if r["path"] in made}) == 250
    assert len(seen.of("process_start")) == 27
    assert seen.of("coverage")[0]["lost"] == 0


def _manifest(seen):
    (manifest,) = seen.of("input_manifest")
    return {os.path.basename(body["path"]): body for body in manifest["files"]}


def test_files_that_cannot_be_read_are_a_loss_and_no_failure(caller, base):
    """The supervisor's reads fail as those of a broken disk do; the command's own do not."""
    launcher = base / "failing_reads.py"
    shutil.copyfile(Path(__file__).with_name("without_calls.py"), launcher)
    launcher.chmod(0o644)
    caller.forget()
    (caller.work / "in").write_text("content")
    caller.own(caller.work / "in")
    time.sleep(0.02)  # what is not older than the command is unknown
    words = ("/usr/bin/python3", launcher, str(errno.EIO), "preadv,preadv2", caller.command)
    done = caller.call(*words, "--fresh", "-c", "cat in")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"content", b"")
    seen = Seen(caller)
    file = _manifest(seen)["in"]
    assert (file["digest"], file["unknown"], file["why"]) == (None, True, "EIO")
    assert {body["exe_digest"] for body in seen.of("process_start")} == {None}
    (coverage,), (end,) = seen.of("coverage"), seen.of("command_end")
    assert "digests of 2 programs (EIO)" in coverage["blind_spots"]
    assert any(re.fullmatch(r"digests of \d+ files \(EIO\)", s) for s in coverage["blind_spots"])
    assert end["exit"] == 0
    again = _manifest(run(caller, "cat in")[1])["in"]
    assert len(again["digest"]) == 64 and "why" not in again


def test_a_program_that_may_be_run_and_not_read_has_no_digest(user):
    user.forget()
    shutil.copyfile("/bin/true", user.work / "closed")
    (user.work / "closed").chmod(0o111)
    done, seen = run(user, "./closed", "--no-world", status=137)
    assert b"killed: ./closed: its path, its arguments or its file could not be read" in done.stderr
    (end,) = [b for b in seen.of("policy_decision") if b["action"] == "killed"]
    assert end["reason"] in done.stderr.decode()
    _, seen = run(user, "./closed", "--no-world", "--policy", user.without_rules())
    (start,) = [b for b in seen.of("process_start") if os.path.basename(b["exe"]) == "closed"]
    assert start["exe_digest"] is None
    assert "digests of 1 programs (EACCES)" in seen.of("coverage")[0]["blind_spots"]


@pytest.mark.parametrize("kind", ["directory", "link"])
def test_a_cache_of_digests_that_cannot_be_used_is_done_without(caller, kind):
    caller.forget()
    caller.make_directory(caller.state).chmod(0o700)
    cache = caller.state / "digests"
    if kind == "directory":
        caller.make_directory(cache)
    else:
        cache.symlink_to("elsewhere")
    (caller.work / "in").write_text("content")
    caller.own(caller.work / "in")
    time.sleep(0.02)
    done, seen = run(caller, "cat in")
    assert done.stdout == b"content"
    assert len(_manifest(seen)["in"]["digest"]) == 64
    why = "EISDIR" if kind == "directory" else "ELOOP"
    assert any(f"({why})" in spot for spot in seen.of("coverage")[0]["blind_spots"])
    assert not (caller.state / "elsewhere").exists()
