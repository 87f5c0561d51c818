"""Captured or not, with whatever backend and level: a command comes to the same (capture.md §5).

What differs is known and tested as such: a second listener is refused (EBUSY), io_uring is not there,
and a process that is stopped shows as traced. `test_transparency.py` and `test_terminal.py` hold the
default against bash itself; here are the others, and the programs that could mind.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import time

import pytest

from tests.system.captured_programs import PROGRAMS
from tests.system.screen import Screen
from tests.system.test_habits_python import PIP_ALONE, PROJECT

PYTHON = "/usr/bin/python3 -I"
CONFIGURATIONS = {
    "hybrid": ("--capture-backend", "hybrid"),
    "ptrace": ("--capture-backend", "ptrace", "--capture", "all"),
    "notify": ("--capture-backend", "notify", "--lookups"),
    "python": ("--capture-backend", "python"),
}
#: what needs rights over the host
ROOTS = {"bpf": ("--capture-backend", "bpf")}
if os.uname().machine != "x86_64":
    pytest.skip("numbers of x86_64", allow_module_level=True)


@pytest.fixture(scope="session")
def programs(base):
    directory = base / "captured-programs"
    directory.mkdir()
    directory.chmod(0o755)
    for name, text in PROGRAMS.items():
        path = directory / name.replace(" ", "-")
        path.write_text(text)
        path.chmod(0o644)
    return directory


def _outcome(caller, text, *options):
    """Runs it in a new world and an empty directory; verifies the record."""
    caller.forget()
    done = caller.substrate(*options, "-c", text)
    caller.verify()
    return done.returncode, done.stdout, done.stderr


def _alike(outcome):
    """Without what two runs of one program have not in common: clocks, addresses."""
    status, *streams = outcome
    for pattern, instead in ((rb"in [0-9.]+s", b"in TIME"), (rb"0x[0-9a-f]+", b"ADDRESS")):
        streams = [re.sub(pattern, instead, stream) for stream in streams]
    return status, *streams


def _compare(caller, text, *options, configurations=None):
    plain = _outcome(caller, text, *options, "--capture", "off")
    known = CONFIGURATIONS if caller.uid else CONFIGURATIONS | ROOTS
    for name in known if configurations is None else configurations:
        found = _outcome(caller, text, *options, *known.get(name, ()))
        assert _alike(found) == _alike(plain), name
    return plain


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_that_could_mind(caller, programs, name):
    # of a filter that wants a tracer a notification hides what it says (seccomp(2): the strictest)
    status, out, err = _compare(caller, f"exec {PYTHON} {programs}/{name.replace(' ', '-')}")
    assert (status, err) == (0, b"")
    assert out


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_that_could_mind_without_a_world(idmap, user, programs, name):
    which = user if list(PROGRAMS).index(name) % 2 else idmap
    _compare(which, f"exec {PYTHON} {programs}/{name.replace(' ', '-')}", "--no-world")


LINES = {
    # whether bash has heard of a stop when it is asked to wait is told on standard error
    "jobs": "exec 2>/dev/null; set -m; sleep 60 & kill -STOP %1; wait %1; echo $?; jobs | tr -s ' '; kill -CONT %1;"
    " kill %1; wait %1; echo $?; sh -c 'kill -TSTP $$; echo back' &"
    " until [[ $(jobs) == *Stopped* ]]; do sleep 0.01; done; jobs | tr -s ' ';"
    " fg %1 2>&1; echo $?",
    "traps": "trap 'echo usr1' USR1; trap 'echo chld' CHLD; (kill -USR1 $$); /bin/true;"
    " sleep 0.02 & wait; trap - CHLD; trap 'echo bye $?' EXIT; set -o pipefail;"
    " seq 100000 | head -1; echo ${PIPESTATUS[*]}; exit 9",
    "make": "printf 'all: a b c d e f\\n%: %.in\\n\\tcat $< > $@; sleep 0.01\\nno:\\n\\texit 3\\n' > Makefile;"
    " for i in a b c d e f; do echo $i > $i.in; done; make -s -j4; cat a b c d e f;"
    " make -s no 2>&1; echo $?",
    "git": "git init -q r; cd r; git config user.email a@b; git config user.name n; echo x > f;"
    " git add f; git commit -qm one; git checkout -qb b; echo y >> f; git commit -qam two;"
    " git checkout -q -; git merge -q b; git log --format=%s; git gc -q; git fsck 2>&1",
    "programs": "cp /bin/echo e; chmod 0111 e; ./e unreadable; /usr/sbin/ldconfig -V | head -1;"
    " cp /usr/bin/id i; chmod 4755 i; ./i -u; printf '#!/bin/sh\\necho $0 $1\\n' > s; chmod 755 s;"
    " ./s one; ./e $(seq 9000) | wc -c; ./none; echo $?; ./; echo $?; (exec -a other sh -c 'echo $0')",
    "killed": "sh -c 'sh -c \"kill -9 \\$PPID; sleep 0.05; echo alive > alive\"'; echo $?;"
    " sleep 0.1; cat alive; (sleep 50 & kill -9 $BASHPID); kill -9 -1; echo survived",
    "many": "seq 60 | xargs -P8 -n1 sh -c 'exit $(($0 % 2))'; echo $?; for i in 1 2 3 4 5; do"
    " (exit $i) & done; wait; seq 2000 | sort -r | sort -n | tail -1",
    "no such program": "exec no-such-program",
    "no program": "exec /etc",
}


@pytest.mark.parametrize("name", LINES)
def test_lines_of_a_shell(idmap, user, name):
    wanted = name if name in ("make", "git") else "sh"
    if shutil.which(wanted) is None:
        pytest.skip(f"{wanted} is not installed")
    _compare(user if list(LINES).index(name) % 2 else idmap, LINES[name])


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_node(user):
    text = """
    const cp = require("child_process"), net = require("net"), fs = require("fs");
    fs.writeFileSync("n", "x");
    console.log(fs.readFileSync("n", "utf8"), cp.execSync("echo sub").toString());
    const s = net.createServer(c => { c.end("hi"); s.close(); }).listen(0, "127.0.0.1", () =>
      net.connect(s.address().port, "127.0.0.1").on("data", d => { console.log("" + d);
        new (require("worker_threads").Worker)("1 + 1", {eval: true}).on("exit", c => console.log(c)); }));
    """
    (user.base / "n.js").write_text(text)
    status, out, err = _compare(user, f"node {user.base}/n.js")
    assert (status, err) == (0, b"")
    assert b"sub" in out


def test_a_program_of_a_package_that_is_built_here(user):
    """A virtual environment, a build, an installation, tests of it: with what the system has."""
    text = (
        "mkdir mod; echo 'def f(): return 1' > mod/__init__.py;"
        " printf 'from mod import f\\nimport unittest\\nclass T(unittest.TestCase):\\n"
        " def test(self): self.assertEqual(f(), 1)\\n' > test_mod.py;"
        f" {PYTHON} -m venv --without-pip v; v/bin/python -m unittest -q 2>&1 | tail -1;"
        ' v/bin/python -c \'import zipfile; z = zipfile.ZipFile("w.whl", "w");'
        ' z.write("mod/__init__.py"); z.close()\';'
        " v/bin/python -c 'import sys; sys.path[:0] = [\"w.whl\"]; import mod; print(mod.__file__)'"
    )
    status, out, err = _compare(user, text)
    assert (status, err) == (0, b"")
    assert out.startswith(b"OK\n")


TESTS = r"""
import os, signal, subprocess, sys, threading
import pytest

def test_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("a")
    os.rename("a", "b")
    assert os.listdir() == ["b"]

@pytest.mark.parametrize("n", [0, 1, 9, 15])
def test_children(n, capfd):
    program = f"import os, sys; print(sys.stdin.read()); os.kill(os.getpid(), {n})"
    done = subprocess.run([sys.executable, "-c", program], input="in", text=True)
    assert done.returncode == -n
    assert capfd.readouterr().out == ("in\n" if n == 0 else "")

def test_threads_and_signals():
    came = []
    signal.signal(signal.SIGUSR1, lambda *_: came.append(1))
    for _ in range(20):
        thread = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR1))
        thread.start()
        thread.join()
    assert came

def test_that_fails():
    sys.stderr.write("told\n")
    assert os.waitstatus_to_exitcode(os.system("exit 3")) == 4

@pytest.mark.skip(reason="it is skipped")
def test_skipped(): ...
"""


def test_pytest(user, packages):
    (user.base / "test_it.py").write_text(TESTS)
    text = (
        f"cp {user.base}/test_it.py .; PYTHONPATH={packages} exec /usr/bin/python3 -m pytest -q -ra"
    )
    status, out, err = _compare(user, text)
    assert (status, err) == (1, b"")
    assert b"1 failed, 6 passed, 1 skipped in " in out


@pytest.mark.skipif(
    importlib.util.find_spec("ensurepip") is None, reason="ensurepip is not installed"
)
def test_pip(idmap):
    """A wheel is built and installed; what is not there is told on standard error."""
    pip = idmap.base / "pip"
    subprocess.run(["/usr/bin/python3", "-m", "venv", pip], check=True)
    text = (
        f"{PROJECT}{PIP_ALONE}"
        f"/usr/bin/python3 -m venv --without-pip v; pip='{pip}/bin/pip --python v/bin/python';"
        f" {pip}/bin/pip wheel -q -w made ./project; ls made;"
        " $pip install --find-links made habit==3.0; v/bin/habit; exec $pip install none"
    )
    status, out, err = _compare(idmap, text)
    assert status == 1
    assert b"Successfully installed habit-3.0\n2\n" in out
    assert b"No matching distribution found for none" in err


DEBUGGED = r"""
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
static int step(int n) { return n + 1; }
static void heard(int number) { printf("heard %d\n", number); }
int main(void)
{
    int status, n = step(1);
    signal(SIGUSR1, heard);
    raise(SIGUSR1);
    if (fork() == 0)
        _exit(n);
    wait(&status);
    FILE *file = fopen("/etc/hostname", "r");
    printf("%d %d\n", WEXITSTATUS(status), file != NULL);
    return 5;
}
"""
DEBUGGERS = {
    "gdb": "gdb -q -nx -batch -ex 'break step' -ex 'run > told' -ex bt -ex 'print n' -ex finish"
    " -ex 'handle SIGUSR1 stop print' -ex continue -ex 'catch syscall exit_group'"
    " -ex 'info signals SIGUSR1' -ex continue -ex continue -ex 'print $_exitcode' ./program 2>&1;"
    " echo $?; cat told",
    "gdb that follows": "gdb -q -nx -batch -ex 'set follow-fork-mode child' -ex 'catch fork'"
    " -ex 'run > told' -ex continue -ex continue -ex 'print $_exitcode' ./program 2>&1;"
    " echo $?; until grep ^2 told; do sleep 0.01; done",
    "gdb that attaches": "sleep 30 & gdb -q -nx -batch -p $! -ex 'info proc cmdline' -ex detach"
    " > said 2>&1; grep -c \"cmdline = 'sleep 30'\" said; kill %1; wait %1; echo $?",
    "strace": "strace -f -o said -e trace=execve,openat,exit_group,kill,tgkill ./program;"
    " echo $?; grep -v ENOENT said | sed 's/^[0-9]* *//; s/[0-9]*, SIGUSR1/SIGUSR1/g'",
    # a job that ended while bash waited for rm is no longer known as %1, and still by its number
    "strace that attaches": "exec 2>/dev/null; sh -c 'echo > go; while [ -e go ]; do sleep 0.01; done; exit 6' &"
    " traced=$!; until [ -e go ]; do sleep 0.01; done; strace -f -o said -e trace=exit_group,wait4 -p $traced &"
    " until [ -s said ]; do sleep 0.01; done; rm go; wait $traced; echo $?; wait $!;"
    " grep -o 'exit_group(6)' said",
}


@pytest.mark.parametrize("name", DEBUGGERS)
def test_debuggers(caller, name):
    """Of the backends only `notify` leaves them room for it, and it is what --ptrace chooses."""
    for wanted in (name.split()[0], "gcc"):
        if shutil.which(wanted) is None:
            pytest.skip(f"{wanted} is not installed")
    source = caller.base / "program.c"
    source.write_text(DEBUGGED)
    program = caller.base / "program"
    subprocess.run(["gcc", "-g", "-O0", "-o", program, source], check=True)
    text = f"cp {program} {source} .; {DEBUGGERS[name]}"
    plain = _compare(caller, text, "--ptrace", configurations=("auto", "notify"))
    status, out, err = plain
    assert (status, err) == (0, b""), out
    wanted = {
        "gdb": (b"step (n=1)", b"$2 = 2\n", b"signal SIGUSR1", b"$3 = 5\n0\nheard 10\n"),
        "gdb that follows": (b"Catchpoint 1 (forked process", b"$1 = 2\n0\n2 1\n"),
        "gdb that attaches": (b"1\n143\n",),
        "strace": (b"heard 10\n2 1\n5\n", b"execve(", b'"/etc/hostname"', b"exit_group(5)"),
        "strace that attaches": (b"6\nexit_group(6)\n",),
    }[name]
    assert all(part in out for part in wanted), out


def test_what_cannot_be_the_same_says_so(caller):
    """A second listener, and io_uring where no world denies it."""
    listener = (
        "import ctypes, os, struct; l = ctypes.CDLL(None, use_errno=True); l.prctl(38, 1, 0, 0, 0);"
        ' b = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000));'
        ' p = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", 1, ctypes.addressof(b)));'
        " print(l.syscall(317, 1, 8, p) >= 0, ctypes.get_errno())"
    )
    ring = (
        "import ctypes; l = ctypes.CDLL(None, use_errno=True);"
        " print(l.syscall(425, 1, ctypes.create_string_buffer(120)) >= 0, ctypes.get_errno())"
    )
    for name, found in (("off", b"True 0\n"), ("ptrace", b"False 16\n"), ("hybrid", b"False 16\n")):
        chosen = ("--capture", "off") if name == "off" else ("--capture-backend", name)
        assert _outcome(caller, f"{PYTHON} -c '{listener}'", *chosen) == (0, found, b"")
    done = _outcome(caller, f"{PYTHON} -c '{ring}'", "--no-world")
    assert done == (0, b"False 38\n", b"")


# --- at a terminal


@pytest.fixture
def screen(user):
    opened = []

    def start(*words, program=None):
        user.forget()
        opened.append(Screen(user, program or user.command, *words))
        return opened[-1]

    yield start
    for made in opened:
        made.close()


@pytest.mark.parametrize("backend", ["ptrace", "notify"])
def test_ctrl_z_and_ctrl_c(screen, user, backend):
    there = screen("--norc", "-i", program="/bin/bash")
    there.type(b"PS1='pro''mpt: '\r")
    there.expect(b"prompt: ")
    line = "%s --capture-backend %s -c 'echo rea''dy; sleep 0.3; echo done''now; sleep 60'\r"
    there.type((line % (user.command, backend)).encode())
    there.expect(b"ready\r\n")
    there.type(b"\x1a")
    there.expect(b"Stopped")
    there.expect(b"prompt: ")
    there.type(b"fg\r")
    there.expect(b"donenow\r\n")
    there.type(b"\x03")
    there.expect(b"prompt: ")
    there.type(b"exit $?\r")
    assert there.wait() == 130
    user.verify()


@pytest.mark.skipif(shutil.which("less") is None, reason="less is not installed")
@pytest.mark.parametrize("backend", ["ptrace", "notify"])
def test_a_program_that_takes_the_terminal(screen, backend):
    raw = (
        "import os, sys, termios, tty; before = termios.tcgetattr(0); tty.setraw(0);"
        " os.write(1, b'raw'); key = os.read(0, 1); termios.tcsetattr(0, 0, before); print(key)"
    )
    there = screen("--capture-backend", backend, "-c", f'{PYTHON} -c "{raw}"; seq 500 | less')
    there.expect(b"raw")
    there.type(b"\x03")
    there.expect(b"b'\\x03'")
    there.expect(b"28\r\n")
    there.type(b"G")
    there.expect(b"500")
    there.type(b"q")
    assert there.wait() == 0
    assert there.settings() == there.before


def _told(screen, steps, *words):
    """Runs it on a terminal; `steps`: what is typed once a text has come up, or its new size, or
    how many seconds to wait. Everything that it
    showed, how it ended, and whether it left the terminal as it was."""
    there = screen(*words)
    shown = b""
    for text, *done in steps:
        shown += there.expect(text)
        for action in done:
            if type(action) is bytes:
                there.type(action)
            elif type(action) is float:
                time.sleep(action)
            else:
                there.resize(*action)
    status = there.wait()
    shown = re.sub(rb"(\[\d\]) \d+\r", rb"\1 PID\r", shown + there.seen)
    return shown, status, there.settings() == there.before


def _compare_screens(screen, steps, *words):
    plain = _told(screen, steps, "--capture", "off", *words)
    for name, options in CONFIGURATIONS.items():
        assert _told(screen, steps, *options, *words) == plain, name
    return plain


#: takes the whole screen: keys as they are typed, the size, and stops and goes on by itself
FULL_SCREEN = """
import fcntl, os, signal, struct, sys, termios, tty
before = termios.tcgetattr(0)
def show(*words):
    os.write(1, b"\\x1b[H\\x1b[2J" + " ".join(map(str, words)).encode() + b"\\x1b[K|")
def size():
    return struct.unpack("4H", fcntl.ioctl(1, termios.TIOCGWINSZ, bytes(8)))[:2]
signal.signal(signal.SIGWINCH, lambda *_: show("size", *size()))
os.write(1, b"\\x1b[?1049h")
tty.setraw(0)
show("begin", *size())
while (key := os.read(0, 1)) != b"q":
    if key == b"!":
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        os.system("stty -a | tr ';' '\\\\n' | head -3; read line; echo got $line")
        tty.setraw(0)
    if key == b"s":
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        os.kill(0, signal.SIGTSTP)
        tty.setraw(0)
    show("key", key, os.tcgetpgrp(0) == os.getpgrp())
termios.tcsetattr(0, termios.TCSADRAIN, before)
os.write(1, b"\\x1b[?1049l")
sys.exit(11)
"""


def test_a_program_that_takes_the_whole_screen(screen, user):
    (user.base / "full.py").write_text(FULL_SCREEN)
    steps = [
        (b"begin 30 100\x1b[K|", b"\x03"),
        (b"key b'\\x03' True\x1b[K|", b"\x1a"),
        (b"key b'\\x1a' True\x1b[K|", (77, 22)),
        (b"size 22 77\x1b[K|", b"!"),
        (b"columns 77", b"line\r"),
        (b"key b'!' True\x1b[K|", b"\xff"),
        (b"key b'\\xff' True\x1b[K|", b"q"),
    ]
    shown, status, restored = _compare_screens(
        screen, steps, "-c", f"exec {PYTHON} {user.base}/full.py"
    )
    assert (status, restored) == (11, True)
    assert b"got line\r\n" in shown


JOBS = [
    (b"$ ", b"PS1='pro''mpt: '\r"),
    (b"prompt: ", b"sh -c 'echo g\"o\"; exec cat'\r"),
    (b"go\r\n", b"one\r"),
    (b"one\r\none\r\n", b"\x1a"),
    (b"prompt: ", b"jobs | cut -c 1-24\r"),
    (b"prompt: ", b"bg; until jobs -s | grep -q cat; do :; done\r"),  # it reads: stopped again
    (b"prompt: ", b"fg %1\r"),
    (b"exec cat'\r\n", b"two\r"),
    (b"two\r\ntwo\r\n", b"\x04"),
    (b"prompt: ", b"echo $?; sh -c 'echo g\"o\"; exec sleep 1'\r"),
    (b"\ngo\r\n", b"\x1a"),
    (b"prompt: ", b"bg; wait; echo $?\r"),
    (b"prompt: ", b"echo; sh -c 'echo g\"o\"; exec sleep 100' | cat\r"),
    (b"\ngo\r\n", b"\x03"),
    (b"prompt: ", b"echo $? ${PIPESTATUS[*]}; sh -c 'echo g\"o\"; exec sleep 100'\r"),
    (b"\ngo\r\n", b"\x1c"),
    (b"prompt: ", b"echo $?; stty -a | grep -c 'isig icanon'; exit 7\r"),
]


def test_jobs_of_a_shell_inside(screen):
    """Stopped and going on by keys and by signals; in the background it may not read."""
    text = "ulimit -c 0; export PS1='$ '; exec bash --norc --noprofile -i"
    shown, status, restored = _compare_screens(screen, JOBS, "-c", text)
    assert (status, restored) == (7, True)
    for wanted in (b"Stopped", b"Done", b"\r130 130\r\n", b"\r131\r\n1\r\n"):
        assert wanted in shown, shown


@pytest.mark.skipif(shutil.which("vi") is None, reason="vi is not installed")
def test_vi(screen, user):
    """Stopped in a shell, with a program of its own in its screen, and with a window that changes."""
    steps = [
        (b"$ ", b"vi -u NONE -n new.txt\r"),
        (b"new.txt", b"ihello from vi\x1b"),
        # a key behind the size: between its look for signals and its wait vi sleeps through one
        (b"hello from vi", (60, 20), 1.0, b"\x0c:echo 'columns='.&columns\r"),
        (b"columns=60", b":!echo fr''om; exit 3\r"),
        (b"from\r\n", b""),
        (b"3", b"\r"),
        (b"hello from vi", b"\x1a"),
        (b"Stopped", b""),
        (b"$ ", b"echo be''tween; fg\r"),
        (b"between\r\n", b""),
        (b"hello from vi", b":w\r"),
        (b"written", b":cq\r"),
        (b"$ ", b"echo vi $?; cat new.txt; exit 9\r"),
        (b"vi 1\r\nhello from vi\r\n", b""),
    ]
    text = "export PS1='$ '; exec bash --norc --noprofile -i"
    for options in (("--capture", "off"), *CONFIGURATIONS.values()):
        _, *rest = _told(screen, steps, *options, "--keep", "-c", text)
        assert rest == [9, True]
