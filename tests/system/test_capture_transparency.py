"""Captured or not, with whatever backend and level: a command comes to the same (capture.md §5).

What differs is known and tested as such: a second listener is refused (EBUSY), io_uring is not there,
and a process that is stopped shows as traced. `test_transparency.py` and `test_terminal.py` hold the
default against bash itself; here are the others, and the programs that could mind.
"""

import os
import shutil

import pytest

from tests.system.captured_programs import PROGRAMS
from tests.system.screen import Screen

PYTHON = "/usr/bin/python3 -I"
CONFIGURATIONS = {
    "hybrid": ("--capture-backend", "hybrid"),
    "ptrace": ("--capture-backend", "ptrace", "--capture", "all"),
    "notify": ("--capture-backend", "notify", "--lookups"),
}
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


def _compare(caller, text, *options, configurations=tuple(CONFIGURATIONS)):
    plain = _outcome(caller, text, *options, "--capture", "off")
    for name in configurations:
        assert _outcome(caller, text, *options, *CONFIGURATIONS[name]) == plain, name
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
    "jobs": "exec 2>/dev/null; set -m; sleep 0.1 & kill -STOP %1; wait %1; echo $?; jobs | tr -s ' '; kill -CONT %1;"
    " kill %1; wait %1; echo $?; sh -c 'kill -TSTP $$; echo back' & sleep 0.1; jobs | tr -s ' ';"
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
      net.connect(s.address().port, "127.0.0.1").on("data", d => console.log("" + d)));
    new (require("worker_threads").Worker)("1 + 1", {eval: true}).on("exit", c => console.log(c));
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
