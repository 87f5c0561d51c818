"""What the trace says of what a hostile or an odd command did is so, or is said to be unknown."""

import base64
import hashlib
import os
import shutil
import subprocess
import time

import pytest

from tests.system.captured_programs import ESCAPES, FUZZ
from tests.system.test_capture import Seen, is_refused, run

PYTHON = "/usr/bin/python3 -I"
if os.uname().machine != "x86_64":
    pytest.skip("numbers of x86_64", allow_module_level=True)


@pytest.fixture
def python(base, caller):
    """Gives the line that runs a text with the system's Python."""

    def line(text, *words):
        path = base / f"truth-{len(text)}.py"
        path.write_text(text)
        path.chmod(0o644)
        return " ".join((f"{PYTHON} {path}", *words))

    return line


def _place(caller, name, content, mode=0o644):
    path = caller.work / name
    if not path.parent.is_dir():
        caller.make_directory(path.parent)
    path.write_bytes(content)
    path.chmod(mode)
    caller.own(path)
    return path


@pytest.mark.parametrize("backend", ["hybrid", "ptrace", "notify"])
def test_nobody_gives_the_digest_of_another_program(caller, backend):
    """The name of what ran leads to something harmless by the time that somebody looks."""
    echo, true = (shutil.which(name, path="/usr/bin:/bin") for name in ("echo", "true"))
    with open(echo, "rb") as file:
        bad = file.read()
    with open(true, "rb") as file:
        good = file.read()
    _place(caller, "tool", bad, 0o755)
    _place(caller, "other", good, 0o755)
    _place(caller, "script", b"#!/bin/sh\necho bad\n", 0o755)
    _place(caller, "harmless", b"#!/bin/sh\necho good\n", 0o755)
    text = "./tool bad; mv other tool; ./script; mv harmless script; ./tool; ./script"
    done, seen = run(caller, text, "--capture-backend", backend)
    assert done.stdout == b"bad\nbad\ngood\n"
    found = {}
    for body in seen.of("process_start"):
        name = os.path.basename(body["exe"])
        found.setdefault(name, []).append(body["exe_digest"])
    for name, contents in (
        ("tool", (bad, good)),
        ("script", (b"#!/bin/sh\necho bad\n", b"#!/bin/sh\necho good\n")),
    ):
        assert len(found[name]) == 2
        for digest, content in zip(found[name], contents, strict=True):
            assert digest in (None, hashlib.sha256(content).hexdigest())


def test_an_input_whose_directory_was_moved_is_unknown(user):
    """Nothing is copied up without a world, so that no time of the file itself changes."""
    user.forget()
    for name in ("read", "other"):
        _place(user, f"{name}/in", name.encode())
    _place(user, "still/in", b"still")
    _place(user, "gone/in", b"gone")
    time.sleep(0.02)
    text = "cat read/in still/in gone/in; mv read away; mv other read; mv gone gone-now"
    done, seen = run(user, text, "--no-world")
    assert done.stdout == b"readstillgone"
    (manifest,) = seen.of("input_manifest")
    files = {body["path"]: body for body in manifest["files"]}
    work = str(user.work)
    assert files[f"{work}/read/in"].get("unknown") is True
    assert files[f"{work}/gone/in"].get("unknown") is True
    assert f"{work}/gone/in" not in manifest["absent"]
    assert len(files[f"{work}/still/in"]["digest"]) == 64


@pytest.mark.parametrize("backend", ["hybrid", "notify", "ptrace"])
def test_every_attempt_has_the_same_answer_and_is_told(caller, base, backend):
    path = base / "escapes.py"
    path.write_text(ESCAPES)
    path.chmod(0o644)
    text = f"exec {PYTHON} {path}"
    plain = caller.substrate("--fresh", "--capture", "off", "-c", text)
    done, seen = run(caller, text, "--capture-backend", backend)
    assert (done.stdout, done.stderr) == (plain.stdout, plain.stderr)
    answers = dict(line.split(maxsplit=1) for line in done.stdout.decode().splitlines())
    assert {words.split()[0] for words in answers.values()} == {"-1"}
    tried = {r["call"]: r["result"] for r in seen.rows() if r["intent"] == "escape"}
    (coverage,) = seen.of("coverage")
    if backend == "ptrace":
        assert not tried
        assert any("attempts at what the world denies" in s for s in coverage["blind_spots"])
        return
    told = set(answers) - {"io_uring_setup"}
    assert told <= set(tried)
    assert {tried[name] for name in told} == {"EPERM"}
    assert set(seen.of("command_end")[0]["summary"]["denied"]) >= told


@pytest.mark.parametrize("backend", ["hybrid", "ptrace", "notify"])
def test_a_sandbox_inside_stays_shut(caller, python, backend):
    """A filter that sends a call to a tracer, where there is none, refuses it: our tracer is not
    the one that is meant. With `notify` that holds for what is not notified."""
    text = (
        "import ctypes, errno, os, struct\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def install(nr, action):\n"
        "    program = b''.join(struct.pack('=HBBI', *line) for line in (\n"
        "        (0x20, 0, 0, 0), (0x15, 0, 1, nr), (6, 0, 0, action), (6, 0, 0, 0x7FFF0000)))\n"
        "    b = ctypes.create_string_buffer(program)\n"
        "    p = ctypes.create_string_buffer(struct.pack('=HxxxxxxQ', 4, ctypes.addressof(b)))\n"
        "    libc.prctl(38, 1, 0, 0, 0)\n"
        "    assert libc.syscall(317, 1, 0, p) == 0\n"
        "for nr, words in ((39, ()), (83, (b'made', 0o755)), (59, (b'/bin/true', 0, 0))):\n"
        "    for data in (0, 7):\n"
        "        install(nr, 0x7FF00000 | data)\n"
        "    if nr != 39 and os.environ.get('ONLY'):\n"
        "        continue\n"
        "    print(libc.syscall(nr, *words), errno.errorcode.get(ctypes.get_errno()))\n"
    )
    only = "ONLY=1 " if backend == "notify" else ""
    done, seen = run(caller, only + python(text), "--capture-backend", backend)
    assert done.stdout == b"-1 ENOSYS\n" * (1 if only else 3)
    if not only:
        made = [r["result"] for r in seen.rows() if r["call"] == "mkdir"]
        assert made == ["ENOSYS"]
        assert [b["argv"][0] for b in seen.of("process_start")][-1] != "/bin/true"


def test_nothing_above_a_command_is_told(caller):
    """A process whose parent has ended belongs to the world's first process, or without a world to
    ours: those, and what is above them, are nothing that the command did."""
    text = (
        "(setsid sh -c 'sleep 0.15; cd /tmp; : > orphan; rm orphan' > /dev/null 2>&1 &); sleep 0.02"
    )
    for options in ((), ("--no-world",)):
        caller.forget()
        _, seen = run(caller, text, *options, "--capture-backend", "notify")
        ours = {os.getpid(), os.getppid(), 1}
        forks = seen.of("process_fork")
        assert 0 < len(forks) <= 6
        assert not ours & {body["host_pid"] for body in forks}
        assert {"/tmp/orphan"} == {
            r["path"] for r in seen.rows() if os.path.basename(str(r["path"])) == "orphan"
        }


@pytest.mark.parametrize("backend", ["hybrid", "ptrace", "notify"])
def test_pids_are_those_of_the_world_and_of_the_host(caller, backend):
    text = "sh -c 'echo ready; read x; exit 3'; exit 4"
    pipe = subprocess.PIPE
    process = caller.start("--fresh", "--capture-backend", backend, "-c", text, stdin=pipe)
    assert process.stdout.readline() == b"ready\n"
    found = {}
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/status") as file:
                status = dict(line.rstrip().split(":", 1) for line in file)
        except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
            continue
        if name.isdigit():
            found[int(name)] = int(status["NSpid"].split()[-1]), int(status["PPid"])
    process.communicate(b"x\n", timeout=30)
    assert process.returncode == 4
    seen = Seen(caller)
    bash, sh = seen.of("process_start")
    assert found[sh["host_pid"]] == (sh["pid"], bash["host_pid"])
    assert found[bash["host_pid"]][0] == bash["pid"]
    (fork,) = seen.of("process_fork")
    assert (fork["proc"], fork["parent"]) == (sh["proc"], bash["proc"])
    assert (fork["pid"], fork["host_pid"]) == (sh["pid"], sh["host_pid"])


@pytest.mark.parametrize("backend", ["hybrid", "ptrace", "notify"])
def test_all_that_a_layer_holds_was_told(caller, backend):
    """The diff of the files is made without capture: it must hold nothing that no call made."""
    for name in ("old", "gone", "moved", "below/file", "mode"):
        _place(caller, name, b"x")
    text = (
        "cd below; echo new > ../new; cd ..; echo more >> old; rm gone; mv moved there; mkdir -p a/b;"
        " ln -s old link; ln old hard; mkfifo fifo; chmod 600 mode; truncate -s 9 below/file;"
        ' cp -a below copied; /usr/bin/python3 -Ic \'import os; fd = os.open(".",'
        ' os.O_TMPFILE | os.O_RDWR); os.link(f"/proc/self/fd/{fd}", "from-tmpfile",'
        ' dst_dir_fd=os.open(".", 0))\''
    )
    _, seen = run(caller, text, "--capture-backend", backend)
    told = set()
    for row in seen.rows():
        if row["intent"] in ("write", "readwrite", "create", "delete", "rename", "link", "meta"):
            told |= {row["path"], row["path2"]}
    (diff,) = seen.of("fs_diff")
    held = {entry["path"] for entry in diff["entries"]}
    assert len(held) >= 14
    # a directory is changed by what is made in it
    assert held - told <= {str(caller.work), f"{caller.work}/below"}
    summary = seen.of("command_end")[0]["summary"]
    if backend != "notify":
        assert summary["deleted"] >= 1 and summary["renamed"] == 1 and summary["meta"] >= 1
        assert summary["created"] >= 5


def test_questions_and_messages_are_told(caller, python):
    text = (
        "import socket\n"
        "def question(name):\n"
        "    labels = b''.join(bytes([len(l)]) + l for l in name.split(b'.'))\n"
        "    return b'\\x12\\x34\\x01\\0\\0\\1\\0\\0\\0\\0\\0\\0' + labels + b'\\0\\0\\x1c\\0\\1'\n"
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "u.sendto(question(b'one.example'), ('127.0.0.1', 53))\n"
        "v = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "v.connect(('127.0.0.1', 53))\n"
        "v.send(question(b'two.example'), socket.MSG_NOSIGNAL)\n"
        "try: v.sendmsg([question(b'\\xff\\n.example')])\n"
        "except ConnectionRefusedError: v.sendmsg([question(b'\\xff\\n.example')])\n"
        "a = socket.socket(socket.AF_UNIX); a.bind(b'\\0name\\xff'); a.listen()\n"
        "b = socket.socket(socket.AF_UNIX); b.connect(b'\\0name\\xff')\n"
        "c = socket.socket(socket.AF_INET6)\n"
        "try: c.connect(('::1', 1))\n"
        "except OSError as error: print(type(error).__name__)\n"
    )
    done, seen = run(caller, python(text))
    domains = [body["domain"] for body in seen.of("dns_query")]
    assert domains[:2] == ["one.example", "two.example"]
    assert {base64.b64decode(d["b64"]) for d in domains if type(d) is dict} == {b"\xff\n.example"}
    assert {body["qtype"] for body in seen.of("dns_query")} == {"AAAA"}
    assert "udp://127.0.0.1:53" in seen.of("command_end")[0]["summary"]["endpoints"]
    tried = [b for b in seen.of("net_connect") if b["ip"] == "::1"]
    (refused,) = [b for b in tried if b["decision"] == "observed"]
    assert refused["result"] in ("ECONNREFUSED", "EADDRNOTAVAIL", "ENETUNREACH"), done.stdout
    paths = [b.get("path") for b in seen.of("net_connect") if b["protocol"] == "unix"]
    assert {"b64": base64.b64encode(b"\0name\xff").decode()} in paths


@pytest.mark.parametrize("backend", ["hybrid", "ptrace", "notify"])
def test_a_directory_that_is_renamed_takes_along_who_stands_in_it(caller, backend):
    text = "mkdir -p a/b; echo > a/b/old; cd a/b; mv ../../a ../../c; mkdir -p ../../a/b; rm old; (mkdir new)"
    _, seen = run(caller, text, "--capture-backend", backend)
    changed = {row["path"] for row in seen.rows() if row["intent"] in ("delete", "create")}
    assert {f"{caller.work}/c/b/old", f"{caller.work}/c/b/new"} <= changed
    assert f"{caller.work}/a/b/old" not in changed


@pytest.mark.parametrize("backend", ["hybrid", "ptrace"])
def test_a_thread_may_stand_elsewhere_than_its_process(caller, base, backend):
    """clone(2) without CLONE_FS: its chdir(2) moves nobody else."""
    source = base / "own-place.c"
    source.write_text(
        "#define _GNU_SOURCE\n#include <sched.h>\n#include <stdlib.h>\n#include <unistd.h>\n"
        "#include <sys/stat.h>\nstatic volatile int done;\n"
        'static int thread(void *p) { chdir("sub"); mkdir("by-thread", 0755); done = 1; pause(); return 0; }\n'
        "int main(void) { char *stack = malloc(1 << 16);\n"
        "  clone(thread, stack + (1 << 16), CLONE_VM | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD, 0);\n"
        '  while (!done) usleep(1000);\n  mkdir("by-main", 0755); _exit(0); }\n'
    )
    program = base / "own-place"
    subprocess.run(["gcc", "-O1", "-o", program, source], check=True)
    program.chmod(0o755)
    _place(caller, "sub/there", b"")
    _, seen = run(caller, str(program), "--capture-backend", backend)
    made = {row["path"] for row in seen.rows() if row["call"] == "mkdir"}
    assert made == {f"{caller.work}/sub/by-thread", f"{caller.work}/by-main"}


@pytest.mark.parametrize("backend", ["hybrid", "ptrace", "notify"])
def test_a_thread_that_goes_its_own_way_moves_nobody_else(caller, python, backend):
    """unshare(2), CLONE_FS: and a name of the directory that the tree renames by another path."""
    text = (
        "import ctypes, os, threading\n"
        "def away():\n"
        "    assert ctypes.CDLL(None).unshare(0x200) == 0\n"
        "    os.chdir('/usr')\n"
        "t = threading.Thread(target=away); t.start(); t.join()\n"
        "os.mkdir('here')\n"
        "os.makedirs('real/one'); os.symlink('real', 'alias'); os.chdir('real/one')\n"
        "os.rename('../../alias/one', '../../alias/two')\n"
        "os.mkdir('there')\n"
    )
    _, seen = run(caller, python(text), "--capture-backend", backend)
    made = {row["path"] for row in seen.rows() if row["call"] == "mkdir"}
    assert {f"{caller.work}/here", f"{caller.work}/real/two/there"} <= made


def test_what_was_removed_by_another_name_was_not_absent(caller):
    text = "mkdir d; echo x > d/f; ln -s d l; sh -c 'cat l/f; rm d/f; cat none/f; exit 0'"
    _, seen = run(caller, text)
    (manifest,) = seen.of("input_manifest")
    assert f"{caller.work}/l/f" not in manifest["absent"]


@pytest.mark.parametrize("backend", ["hybrid", "ptrace", "bpf"])
@pytest.mark.parametrize("options", [(), ("--no-world",)])
def test_a_step_up_behind_a_link_is_where_the_kernel_goes(caller, backend, options):
    if is_refused(caller, backend):
        return
    caller.forget()
    for name in ("a/in", "real/deep/in", "real/in"):
        _place(caller, name, name.encode())
    (caller.work / "a/link").symlink_to("../real/deep")
    caller.own(caller.work / "a/link")
    for folder in ("a", "real", "real/deep"):
        caller.own(caller.work / folder)
    time.sleep(0.05)
    text = (
        "cd a; mkdir link/../made; cat link/../in; mv link/../in link/../../moved; rm link/../none;"
        "mkdir d; ln -s ../real new; cat new/../gone; rm -f new; rmdir d/../d; true"
    )
    done, seen = run(caller, text, "--capture-backend", backend, *options)
    work = str(caller.work)
    assert done.stdout == b"real/in"
    rows = seen.rows()
    assert {r["path"] for r in rows if r["intent"] == "create"} >= {f"{work}/real/made"}
    moved = [(r["path"], r["path2"]) for r in rows if r["intent"] == "rename"]
    assert (f"{work}/real/in", f"{work}/moved") in moved
    read = [r for r in rows if r["intent"] == "read" and r["path"].endswith("real/in")]
    assert [r["path"] for r in read] == [f"{work}/real/in"]
    assert f"{work}/a/in" not in {r["path"] for r in rows}
    assert f"{work}/a/made" not in {r["path"] for r in rows}
    files = {body["path"] for body in seen.of("input_manifest")[0]["files"]}
    assert f"{work}/real/in" in files and f"{work}/a/in" not in files
    # a link that was made in this moment and is gone may have led anywhere
    spots = seen.of("coverage")[0]["blind_spots"]
    assert any("with `..` behind what may have been a symbolic link" in spot for spot in spots)


def test_a_socket_with_a_name_is_a_file_that_was_made(caller, python):
    text = (
        "import socket\n"
        "s = socket.socket(socket.AF_UNIX); s.bind('named')\n"
        "try: socket.socket(socket.AF_UNIX).bind('named')\n"
        "except OSError as error: print(error.errno)\n"
    )
    done, seen = run(caller, python(text))
    assert done.stdout == b"98\n"
    rows = [row for row in seen.rows() if row["call"] == "bind"]
    assert [(row["path"], row["result"]) for row in rows] == [
        (f"{caller.work}/named", 0),
        (f"{caller.work}/named", "EADDRINUSE"),
    ]


def test_a_link_that_leads_elsewhere_by_then_gives_no_digest(user):
    for name in ("one", "two"):
        _place(user, name, name.encode())
    for name, target in (("middle", "one"), ("link", "middle"), ("still", "two")):
        os.symlink(target, user.work / name)
    time.sleep(0.02)
    text = "sh -c 'cat link still; rm middle; ln -s two middle'"
    done, seen = run(user, text, "--no-world")
    assert done.stdout == b"onetwo"
    (manifest,) = seen.of("input_manifest")
    files = {os.path.basename(body["path"]): body for body in manifest["files"]}
    assert files["link"].get("unknown") is True
    assert len(files["still"]["digest"]) == 64


def test_a_connect_that_was_interrupted_is_told(caller, python):
    """Without SA_RESTART the program sees EINTR, and the connection is made all the same."""
    text = (
        "import ctypes, signal, socket, threading, time, os\n"
        "l = socket.socket(socket.AF_UNIX); l.bind('\\0full'); l.listen(0)\n"
        "first = socket.socket(socket.AF_UNIX); first.connect('\\0full')\n"
        "signal.signal(signal.SIGALRM, lambda *_: None)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.2)\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "address = b'\\1\\0\\0full'\n"
        "assert libc.connect(s.fileno(), address, len(address)) == -1\n"
        "print(os.strerror(ctypes.get_errno()))\n"
        "os.mkdir('after')\n"
    )
    done, seen = run(caller, python(text))
    assert done.stdout == b"Interrupted system call\n"
    results = [b.get("result") for b in seen.of("net_connect")]
    assert results == [None, "EINTR"]


@pytest.mark.parametrize("backend", ["hybrid", "ptrace", "bpf"])
def test_a_connect_that_goes_on_behind_a_handler_is_told_once(caller, python, backend):
    """With SA_RESTART, where the handler makes a call that is told, too."""
    if is_refused(caller, backend):
        return
    text = (
        "import ctypes, os, signal, socket, threading, time\n"
        "l = socket.socket(socket.AF_UNIX); l.bind('\\0full'); l.listen(0)\n"
        "first = socket.socket(socket.AF_UNIX); first.connect('\\0full')\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "@ctypes.CFUNCTYPE(None, ctypes.c_int)\n"
        "def handler(number): libc.mkdir(b'handled', 0o700)\n"
        "libc.signal(14, handler)\n"  # restarts what it interrupts (signal(3))
        "s = socket.socket(socket.AF_UNIX)\n"
        "def later():\n"
        "    while not os.path.exists('handled'): time.sleep(0.05)\n"
        "    l.accept()\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [14])\n"
        "threading.Thread(target=later).start()\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, [14])\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.3)\n"
        "address = b'\\1\\0\\0full'\n"
        "print(libc.connect(s.fileno(), address, len(address)))\n"
    )
    done, seen = run(caller, python(text), "--capture-backend", backend)
    assert done.stdout == b"0\n"
    assert [b.get("result") for b in seen.of("net_connect")] == [None, None]
    assert f"{caller.work}/handled" in seen.paths("create")


@pytest.mark.parametrize("backend", ["hybrid", "bpf"])
def test_each_address_of_several_messages_is_told(caller, python, backend):
    if is_refused(caller, backend):
        return
    text = (
        "import ctypes, socket, struct\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "keep = []\n"
        "def message(port):\n"
        "    a = ctypes.create_string_buffer(struct.pack('=HH4s8x', 2, socket.htons(port), b'\\x7f\\0\\0\\1'))\n"
        "    d = ctypes.create_string_buffer(b'x'); v = ctypes.create_string_buffer(struct.pack('=QQ', ctypes.addressof(d), 1))\n"
        "    keep.extend((a, d, v))\n"
        "    return struct.pack('=QI4xQQ24xI4x', ctypes.addressof(a), 16, ctypes.addressof(v), 1, 0)\n"
        "for n in (5, 12):\n"
        "    b = ctypes.create_string_buffer(b''.join(message(4000 + n * 100 + i) for i in range(n)))\n"
        "    ctypes.CDLL(None).sendmmsg(s.fileno(), b, n, 0)\n"
    )
    _, seen = run(caller, python(text), "--capture-backend", backend)
    ports = {b["port"] for b in seen.of("net_connect")}
    assert ports == {4500 + i for i in range(5)} | {5200 + i for i in range(8)}
    (coverage,) = seen.of("coverage")  # of the other four it is said that there were more
    assert any("longer than is kept" in spot for spot in coverage["blind_spots"])


#: calls that the fuzzer makes beside those of the table: what worlds deny, reads, signals
_MORE = (0, 1, 9, 16, 101, 135, 157, 165, 250, 272, 298, 308, 321, 425)
#: chmod(2) and its kin: a directory of a rootless layer that its owner shut cannot be read
_SHUTS = (90, 91, 268, 452)


@pytest.mark.parametrize(
    "options",
    [
        ("--capture-backend", "hybrid"),
        ("--capture-backend", "hybrid", "--capture", "all", "--lookups"),
        ("--capture-backend", "ptrace", "--lookups"),
        ("--capture-backend", "notify", "--lookups"),
        ("--capture-backend", "bpf", "--capture", "all", "--lookups"),
    ],
    ids=lambda options: "-".join(word.lstrip("-") for word in options[1::2]),
)
def test_calls_with_any_arguments_break_nothing(caller, python, options):
    from substrate.telemetry.capture import calls

    if is_refused(caller, options[1]):
        return
    numbers = sorted({*calls.by_number(), *_MORE} - {58} - set(_SHUTS))
    line = python(FUZZ, "7", ",".join(map(str, numbers)))
    done, seen = run(caller, f"exec {line} < /dev/null", *options)
    assert done.stdout == b"done\n"
    (coverage,) = seen.of("coverage")
    assert coverage["lost"] == 0
    assert any("could not be read" in spot for spot in coverage["blind_spots"])
    for words in (("show", "last", "--files"), ("tree",), ("stat",)):
        shown = caller.substrate("trace", *words)
        assert b"Traceback" not in shown.stderr
        assert b"\x1b[2J" not in shown.stdout
