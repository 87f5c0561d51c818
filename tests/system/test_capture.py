"""Capture through the product: what the trace says of known commands, for every kind of world."""

import hashlib
import json
import os
import shutil
import signal
import time

import pytest

from substrate.telemetry.capture import bpf

BACKENDS = ["hybrid", "ptrace", "python", "notify", "bpf"]
TELLING = ["hybrid", "ptrace", "python", "bpf"]  # with results


class Seen:
    """The newest session's lines, by type."""

    def __init__(self, caller):
        self.events = caller.events()
        caller.verify()

    def of(self, event_type):
        return [event["body"] for event in self.events if event["event_type"] == event_type]

    def lines(self, event_type):
        return [event for event in self.events if event["event_type"] == event_type]

    def rows(self):
        found = []
        for body in self.of("file_batch") + self.of("syscall_batch"):
            found += [dict(zip(body["columns"], row, strict=True)) for row in body["rows"]]
        return found

    def paths(self, *intents, failed=False):
        return {
            row["path"]
            for row in self.rows()
            if row["intent"] in intents
            and (failed or type(row["result"]) is int or row["result"] == "unobserved")
        }


def is_refused(caller, backend):
    """bpf(2) is for those with rights over the host: whether it is refused to them, and says so."""
    if backend != "bpf":
        return False
    why = bpf.probe()
    if not caller.uid and "needs CAP_BPF" not in why:
        assert why == ""
        return False
    done = caller.substrate("--capture-backend", "bpf", "-c", "true")
    assert (done.returncode, done.stdout) == (125, b""), done
    assert b"capture backend bpf does not work here: " in done.stderr
    assert b"needs CAP_BPF" in done.stderr
    return True


def run(caller, text, *options, status=0, **more):
    done = caller.substrate("--fresh", *options, "-c", text, **more)
    assert done.returncode == status, done.stderr
    return done, Seen(caller)


@pytest.mark.parametrize("backend", BACKENDS)
def test_files_are_told(every_caller, backend):
    if is_refused(every_caller, backend):
        return
    caller = every_caller
    work = str(caller.work)
    (caller.work / "old").write_text("old")
    caller.own(caller.work / "old")
    text = "cat old > new; mv new newer; mkdir d; ln -s x d/link; rm old; cat none; true"
    _, seen = run(caller, text, "--capture-backend", backend)
    assert f"{work}/old" in seen.paths("read")
    assert f"{work}/new" in seen.paths("write")
    assert f"{work}/old" in seen.paths("delete")
    assert {f"{work}/d", f"{work}/none"} <= seen.paths("create", "read", failed=True)
    moved = [row for row in seen.rows() if row["intent"] == "rename"]
    assert (f"{work}/new", f"{work}/newer") in [(r["path"], r["path2"]) for r in moved]
    (coverage,) = seen.of("coverage")
    assert (coverage["backend"], coverage["lost"]) == (backend, 0)
    if backend != "notify":
        (missing,) = [
            r for r in seen.rows() if r["path"] == f"{work}/none" and r["intent"] == "read"
        ]
        assert missing["result"] in ("ENOENT", "unobserved")


@pytest.mark.parametrize("backend", TELLING)
def test_processes_are_told(every_caller, backend):
    if is_refused(every_caller, backend):
        return
    text = "sh -c '/bin/true; exit 3'; echo $?; sh -c 'kill -9 $$'; /bin/echo end"
    done, seen = run(every_caller, text, "--capture-backend", backend)
    assert done.stdout == b"3\nend\n"
    starts = seen.lines("process_start")
    assert [e["body"]["argv"][0] for e in starts] == ["bash", "sh", "/bin/true", "sh", "/bin/echo"]
    assert starts[0]["parent_span_id"] == seen.lines("command_start")[0]["span_id"]
    assert starts[2]["parent_span_id"] == starts[1]["span_id"]
    for event in starts:
        with open(event["body"]["exe"], "rb") as file:
            assert event["body"]["exe_digest"] == hashlib.sha256(file.read()).hexdigest()
    ends = [(b.get("exit"), b.get("signal")) for b in seen.of("process_exit")]
    # the shell becomes its last command
    assert sorted(ends, key=str) == [(0, None), (0, None), (3, None), (None, 9)]
    pids = [b["pid"] for b in seen.of("process_fork")]
    assert len(set(pids)) == len(pids) and all(0 < pid < 40 for pid in pids)


@pytest.mark.parametrize("backend", TELLING)
def test_a_level_tells_what_it_says(idmap, backend):
    """`exec`: programs and nothing else. `all`: every call, of files both as such and by name."""
    if is_refused(idmap, backend):
        return
    (idmap.work / "some").write_text("some")
    text = "cat some; kill -0 $$; umask 077"
    options = ("--capture-backend", backend, "--capture")
    _, seen = run(idmap, text, *options, "exec")
    assert [e["argv"][0] for e in seen.of("process_start")] == ["bash", "cat"]
    assert {row["intent"] for row in seen.rows()} <= {"exec"}
    (coverage,) = seen.of("coverage")
    assert (coverage["backend"], coverage["level"], coverage["lost"]) == (backend, "exec", 0)
    _, seen = run(idmap, text, *options, "all")
    assert [e["argv"][0] for e in seen.of("process_start")] == ["bash", "cat"]
    assert f"{idmap.work}/some" in seen.paths("read")
    columns = [body["columns"] for body in seen.of("syscall_batch")]
    rows = [row for body in seen.of("syscall_batch") for row in body["rows"]]
    calls = {row[columns[0].index("call")] for row in rows}
    assert {"openat", "read", "write", "kill", "umask", "mmap", "close"} <= calls
    (coverage,) = seen.of("coverage")
    assert (coverage["backend"], coverage["level"], coverage["lost"]) == (backend, "all", 0)


def test_pipelines_are_known_by_what_is_inherited(caller):
    _, seen = run(caller, "echo x > in; cat < in | tr x y > out")
    bodies = {body["argv"][0]: body for body in seen.of("process_start")}
    by_fd = [{f["fd"]: f for f in bodies[name]["fds"]} for name in ("cat", "tr")]
    assert by_fd[0][0]["path"] == f"{caller.work}/in"
    assert by_fd[0][1]["inode"] == by_fd[1][0]["inode"]
    assert (by_fd[1][1]["path"], by_fd[1][1]["mode"]) == (f"{caller.work}/out", "w")


def test_a_script_is_told_with_what_runs_it(caller):
    script = caller.work / "script"
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o755)
    caller.own(script)
    _, seen = run(caller, "./script a")
    body = seen.of("process_start")[-1]
    assert (body["exe"], body["named"]) == (str(script), "./script")
    assert body["interpreter"] == os.path.realpath("/bin/sh")
    assert body["exe_digest"] == hashlib.sha256(script.read_bytes()).hexdigest()


ESCAPES = {
    "mount": "mount -t tmpfs x /mnt",
    "unshare": "unshare -m true",
    "setns": "nsenter -t 1 -m true",
    "keyctl": "python3 -c 'import ctypes; ctypes.CDLL(None).syscall(250, 0, 0)'",
    "bpf": "python3 -c 'import ctypes; ctypes.CDLL(None).syscall(321, 0, 0, 0)'",
    "ptrace": "python3 -c 'import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)'",
}


@pytest.mark.parametrize("call", ESCAPES)
def test_attempts_at_what_a_world_denies_are_told(every_caller, call):
    if os.uname().machine != "x86_64":
        pytest.skip("numbers of x86_64")
    text = f"export PATH=/usr/bin:/bin:/usr/sbin:/sbin; {ESCAPES[call]} 2>/dev/null; echo $?"
    plain = every_caller.substrate("--fresh", "--capture", "off", "-c", text)
    done, seen = run(every_caller, text)
    assert done.stdout == plain.stdout
    tried = [row for row in seen.rows() if row["intent"] == "escape"]
    if call == "setns":  # nobody may open what it would enter
        return
    assert call in {row["call"] for row in tried}
    assert {row["result"] for row in tried} <= {"EPERM", "ENOSYS"}
    assert seen.of("command_end")[0]["summary"]["denied"][call] >= 1


def test_connections_on_loopback_are_told(caller):
    script = (
        "import socket, threading\n"
        "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()\n"
        "t = threading.Thread(target=lambda: s.accept()[0].close()); t.start()\n"
        "c = socket.create_connection(s.getsockname()); t.join(); print(s.getsockname()[1])\n"
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.sendto(b'x', ('127.0.0.1', 9))\n"
    )
    done, seen = run(caller, f'/usr/bin/python3 -I -c "{script}"')
    port = int(done.stdout)
    connects = [(b["ip"], b["port"], b["protocol"]) for b in seen.of("net_connect")]
    assert ("127.0.0.1", port, "tcp") in connects
    assert ("127.0.0.1", 9, "udp") in connects
    assert port in [b["port"] for b in seen.of("net_listen")]
    assert port in [b.get("local_port") for b in seen.of("net_accept")]
    assert f"tcp://127.0.0.1:{port}" in seen.of("command_end")[0]["summary"]["endpoints"]


def test_inputs_are_digested(caller):
    (caller.work / "source").write_text("content")
    (caller.work / "changed").write_text("before")
    for name in ("source", "changed"):
        caller.own(caller.work / name)
    time.sleep(0.02)  # what is not older than the command is unknown
    text = "cat source changed missing; echo after > changed; echo own > own; cat own; ls . > /dev/null"
    _, seen = run(caller, text)
    (manifest,) = seen.of("input_manifest")
    files = {body["path"]: body for body in manifest["files"]}
    work = str(caller.work)
    again = {
        body["path"]: body for body in run(caller, "cat source")[1].of("input_manifest")[0]["files"]
    }
    assert len(files[f"{work}/source"]["digest"]) == 64
    assert files[f"{work}/source"] == again[f"{work}/source"]
    assert files[f"{work}/changed"].get("unknown") is True
    assert f"{work}/own" not in files
    assert f"{work}/missing" in manifest["absent"]
    assert work in manifest["directories"]


def _inputs_of(caller, text, *options, **more):
    done, seen = run(caller, text, *options, **more)
    (manifest,) = seen.of("input_manifest")
    return done, manifest, [body for body in manifest["files"] if body.get("fd") == 0]


def test_the_file_of_standard_input_is_an_input(every_caller):
    caller = every_caller
    (caller.work / "in").write_text("one\ntwo\n")
    caller.own(caller.work / "in")
    time.sleep(0.02)  # what is not older than the command is unknown
    with open(caller.work / "in", "rb") as file:
        done, manifest, (given,) = _inputs_of(caller, "cat", stdin=file)
    assert done.stdout == b"one\ntwo\n"
    path = str(caller.work / "in")
    assert (given["path"], given["size"], "offset" in given) == (path, 8, False)
    assert not [kind for kind in manifest["missing_kinds"] if "standard input" in kind]
    # the same digest as of a file that the command opened by itself
    _, seen = run(caller, "cat in")
    (read,) = [b for b in seen.of("input_manifest")[0]["files"] if b["path"] == path]
    assert given["digest"] == read["digest"] is not None
    # and where it did not take all of it, or not from the beginning
    with open(caller.work / "in", "rb") as file:
        file.seek(4)
        done, _, (given,) = _inputs_of(caller, "head -c 1", stdin=file)
    assert (done.stdout, given["offset"], given["digest"]) == (b"t", 4, read["digest"])


def test_a_file_of_standard_input_that_changes_is_what_was_read_or_unknown(caller):
    path = caller.work / "in"
    path.write_bytes(bytes(5 << 20))
    caller.own(path)
    text = "head -c 1 > /dev/null; echo ready; read -r _ < go"
    os.mkfifo(caller.work / "go", 0o666)
    caller.own(caller.work / "go")
    with open(path, "rb") as file:
        process = caller.start("--fresh", "--no-world", "-c", text, stdin=file)
        try:
            assert process.stdout.readline() == b"ready\n"
            with open(path, "r+b") as changing:
                changing.write(b"changed")
            with open(caller.work / "go", "w") as go:
                go.write("\n")
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0, err
    (manifest,) = Seen(caller).of("input_manifest")
    (given,) = [body for body in manifest["files"] if body.get("fd") == 0]
    assert (given["digest"], given["unknown"], given["why"]) == (None, True, "changed")


def test_standard_input_that_is_no_file_is_said_to_be_missing(caller):
    done, manifest, given = _inputs_of(caller, "cat", input=b"text")
    assert (done.stdout, given) == (b"text", [])
    assert "what wrote to standard input (a pipe)" in manifest["missing_kinds"]
    _, manifest, given = _inputs_of(caller, "cat")  # from /dev/null
    assert given == [] and not [k for k in manifest["missing_kinds"] if "input" in k]
    # gone by its name, and still there to be read
    with open(caller.work / "gone", "w+b") as file:
        (caller.work / "gone").unlink()
        file.write(b"text")
        file.seek(0)
        done, _, (one,) = _inputs_of(caller, "cat", stdin=file)
    assert (done.stdout, one["path"]) == (b"text", f"{caller.work}/gone (deleted)")
    assert one["size"] == 4 and len(one["digest"]) == 64


@pytest.mark.parametrize("options", [(), ("--no-world",)])
def test_no_other_descriptor_of_the_caller_is_handed_on(caller, options):
    """So that there is no input by one that the manifest does not know."""
    with open("/etc/passwd", "rb") as file:
        text = "ls -l /proc/self/fd | grep -c passwd; true"
        done, _ = run(caller, text, *options, pass_fds=(file.fileno(),))
    assert done.stdout == b"0\n"


def test_levels(caller):
    for level, types in (
        ("off", set()),
        ("exec", {"process_start", "process_exit"}),
        ("files", {"process_start", "file_batch", "input_manifest"}),
        ("all", {"process_start", "file_batch", "syscall_batch", "input_manifest"}),
    ):
        _, seen = run(caller, "cat /etc/hostname", "--capture", level)
        found = {event["event_type"] for event in seen.events}
        assert types <= found
        if level == "off":
            assert not found & {"coverage", "process_start", "file_batch"}
        (start,) = seen.of("session_start")
        assert start["capture"]["level"] == level
    assert {"mmap", "brk", "read", "close"} <= {row["call"] for row in seen.rows()}


def test_exact_reads_and_lookups(caller):
    _, seen = run(caller, "cat none; test -e gone; true", "--exact-reads", "--lookups")
    rows = {(row["path"], row["intent"], row["result"]) for row in seen.rows()}
    assert (f"{caller.work}/none", "read", "ENOENT") in rows
    assert (f"{caller.work}/gone", "look", "ENOENT") in rows


def test_without_a_world(idmap, user):
    for caller in (idmap, user):
        caller.forget()
        done = caller.substrate("--fresh", "--no-world", "-c", "echo x > f; cat f; exit 4")
        assert (done.returncode, done.stdout) == (4, b"x\n"), done.stderr
        seen = Seen(caller)
        assert f"{caller.work}/f" in seen.paths("write")
        assert [b["argv"][0] for b in seen.of("process_start")] == ["bash", "cat"]


def test_set_id_programs_that_gain_nothing_say_so(idmap, user):
    """A copy of `id` that belongs to somebody else, with the bit."""
    program = idmap.work / "other-id"
    shutil.copy("/usr/bin/id", program)
    os.chown(program, user.uid, user.gid)
    program.chmod(0o4755)
    done, seen = run(idmap, "./other-id -u")
    assert done.stdout == b"0\n"
    body = seen.of("process_start")[-1]
    assert body["credentials"]["setid_lost"] is True
    assert (body["credentials"]["euid"], body["credentials"]["uid"]) == (0, 0)


def test_everything_captured_ends_with_a_killed_supervisor(caller):
    process = caller.start(
        "--fresh", "-c", "(setsid sleep 1000 &) ; echo $$; while :; do /bin/true; done"
    )
    assert process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    done = caller.substrate("--wait", "10", "-c", "ps -e | grep -c sleep; true")
    assert done.returncode == 0, done.stderr
    caller.verify()


def _told_while_it_lives(caller, process, path, within_s):
    """Whether a row of the newest session names the path while the command goes on; not its command."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        assert process.poll() is None, process.stderr.read()
        trace = caller.sessions()[-1] / "trace.jsonl"
        for line in trace.read_bytes().split(b"\n")[:-1]:
            if b"_batch" in line and path in line:
                return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("level", ["files", "all"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_a_quiet_command_are_written_while_it_sleeps(caller, backend, level):
    """And are there, in a whole chain, when its supervisor is killed."""
    if is_refused(caller, backend):
        return
    process = caller.start(
        *("--fresh", "--capture-backend", backend, "--capture", level),
        *("-c", "exec 3>made; echo ready; exec sleep 1000"),
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        assert _told_while_it_lives(caller, process, b"/made", 3)
        # nothing waits any more, so nothing wakes the supervisor
        until = time.monotonic() + 10
        while (before := _wakings(process.pid)) is not None and time.monotonic() < until:
            time.sleep(1.5)
            if _wakings(process.pid) - before <= 2:
                break
        else:
            raise AssertionError("the supervisor wakes up again and again")
    finally:
        process.kill()
        process.communicate(timeout=30)
    done = caller.substrate("--wait", "10", "-c", "true")
    assert done.returncode == 0, done.stderr
    seen = Seen(caller)
    (row,) = [
        r for r in seen.rows() if r["path"] == f"{caller.work}/made" and r["intent"] == "write"
    ]
    assert row["count"] == 1
    assert seen.of("recovery")


def _wakings(pid):
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("voluntary_ctxt_switches"):
                return int(line.split()[1])
    raise AssertionError("the kernel counts them")


def test_what_is_written_while_a_command_goes_on_adds_up(caller):
    """A summary counts what all rows tell, in however many lines."""
    text = "for i in 1 2 3; do : > made$i; sleep 1.2; done"
    _, seen = run(caller, text)
    assert len(seen.of("file_batch")) > 2
    made = {f"{caller.work}/made{i}" for i in (1, 2, 3)}
    assert made <= seen.paths("write")
    assert seen.of("command_end")[0]["summary"]["written"] == len(
        seen.paths("write", "readwrite", "create")
    )


def test_2000_processes_and_300_threads(caller):
    text = "i=0; while [ $i -lt 2000 ]; do /bin/true; i=$((i+1)); done"
    _, seen = run(caller, text, timeout=120)
    assert len(seen.of("process_start")) == 2001
    assert len(seen.of("process_exit")) == 2001
    script = (
        "import threading\n"
        "def f(): open('/dev/null', 'w').close()\n"
        "t = [threading.Thread(target=f) for _ in range(300)]\n"
        "[x.start() for x in t]; [x.join() for x in t]\n"
    )
    _, seen = run(caller, f'/usr/bin/python3 -I -c "{script}"', timeout=120)
    found = [r for r in seen.rows() if r["path"] == "/dev/null" and r["intent"] == "write"]
    assert sum(row["count"] for row in found) >= 300
    assert len({row["tid"] for row in found}) >= 1
    assert seen.of("coverage")[0]["lost"] == 0


def test_names_that_are_no_text(caller):
    name = b"a\n\xff\x1b[31m"
    path = os.fsencode(caller.work) + b"/" + name
    _, seen = run(caller, "printf x > $'a\\n\\xff\\x1b[31m'")
    found = [row["path"] for row in seen.rows() if type(row["path"]) is dict]
    import base64

    assert path in [base64.b64decode(one["b64"]) for one in found]
    listed = caller.substrate("trace", "show", "last", "--files", "--format", "table")
    assert b"\x1b" not in listed.stdout
    json.loads(caller.substrate("trace", "tree", "--format", "json").stdout)


@pytest.mark.parametrize("debugger", ["strace", "gdb"])
def test_debuggers_work_inside_where_they_are_allowed(caller, debugger):
    """They get what a tracer of ours would take: capture is by notification then."""
    if shutil.which(debugger) is None:
        pytest.skip(f"{debugger} is not installed")
    words = {
        "strace": "strace -f -e trace=execve sh -c '/bin/true; exit 3' 2>&1; echo $?",
        "gdb": "gdb -q -nx -batch -ex run -ex 'print $_exitcode' --args sh -c 'exit 3' 2>&1; echo $?",
    }[debugger]
    done, seen = run(caller, f"export PATH=/usr/bin:/bin; {words}", "--ptrace", timeout=120)
    if debugger == "strace":
        assert b'execve("/bin/true"' in done.stdout
        assert done.stdout.endswith(b"\n3\n")
    else:
        assert b"$1 = 3" in done.stdout
    (coverage,) = seen.of("coverage")
    assert coverage["backend"] == "notify"
    assert debugger in {body["argv"][0] for body in seen.of("process_start")}
