"""Ways out that take more than one call: what lies ready for the next command, what goes on after
the last. Each with a control that shows the attempt itself to work outside.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.system import traces_left
from tests.world.escape.scene import PROGRAM, SECRET

ROOT = os.geteuid() == 0


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


# --- the program that execs


REACHES_ITS_EXE = """#!/proc/self/exe
import os
here = os.stat("/proc/self/exe")
os.chmod("/proc/self/exe", here.st_mode & 0o7777)
print("reached", os.readlink("/proc/self/exe"))
"""


def test_the_hosts_python_is_not_reached_by_its_exe_link(own_scene):
    """CVE-2019-5736 by the interpreter of a script: it is opened with the eyes of who execs it."""
    script(own_scene.work / "run", REACHES_ITS_EXE)
    python = Path(sys.executable).resolve()
    before = python.stat().st_ctime_ns
    done = own_scene.inside("./run", status=None)
    assert done.returncode != 0
    assert b"reached" not in done.stdout
    # a binary whose loader it is
    code = (
        "import os, struct\n"
        "name = b'/proc/self/exe\\0'\n"
        "head = b'\\x7fELF' + bytes([2, 1, 1]) + bytes(9)\n"
        "head += struct.pack('<HHIQQQIHHHHHH', 2, {'x86_64': 62}.get(os.uname().machine, 183), 1,"
        " 0x400000, 64, 0, 0, 64, 56, 2, 64, 0, 0)\n"
        "head += struct.pack('<IIQQQQQQ', 3, 4, 176, 0, 0, len(name), len(name), 1)\n"
        "head += struct.pack('<IIQQQQQQ', 1, 5, 0, 0x400000, 0x400000, 4096, 4096, 4096)\n"
        "open('loaded', 'wb').write(head + name + bytes(5000))\n"
        "os.chmod('loaded', 0o755)\n"
    )
    own_scene.inside("/usr/bin/python3", "-c", code)
    loaded = own_scene.inside("./loaded", options=(), status=None)
    assert loaded.returncode != 0
    assert python.stat().st_ctime_ns == before
    # a Python that execs the same script itself, so a copy of one
    copy = own_scene.own(Path(shutil.copy("/usr/bin/python3", own_scene.base / "python")))
    exec_it = "import os; os.execv('./run', ['run'])"
    assert own_scene.host(copy, "-c", exec_it).stdout == f"reached {copy}\n".encode()


def test_a_scripts_interpreter_is_no_descriptor_of_ours(own_scene):
    for number in (*range(3, 12), 20):
        script(own_scene.work / f"run-{number}", f"#!/proc/self/fd/{number}\n")
        done = own_scene.inside(f"./run-{number}", status=None)
        assert (done.returncode, done.stdout) in ((126, b""), (127, b"")), (number, done)
    control = (
        "import os; fd = os.open('/bin/echo', os.O_RDONLY)\n"
        "os.dup2(fd, 20); os.execv('./run-20', ['run-20', 'reached'])"
    )
    assert own_scene.host("/usr/bin/python3", "-c", control).stdout.endswith(b"reached\n")


# --- the first process and its Python


PLANT = """
import os, sys
MARK = "import os; os.close(os.open('{mark}-%d' % os.getpid(), os.O_CREAT | os.O_WRONLY))\\n"
for top in {places!r}:
    for directory, _, names in os.walk(top):
        if directory.count("/") > top.count("/") + 2:
            continue
        for name in names:
            path = os.path.join(directory, name)
            if name.endswith(".py"):
                open(path, "w").write(MARK)
            elif name.endswith((".pyc", ".bundle")):
                os.unlink(path)
"""


def test_pid_1_imports_nothing_that_the_world_wrote(root_scene):
    """Root in a world can write the Python that the world's first process was started from."""
    mark = root_scene.work / "ran"
    library = Path(json.__file__).parents[1]
    ours = Path(__file__).parents[3]
    places = [str(library), *[str(ours / part) for part in ("substrate", "world", "telemetry")]]
    root_scene.inside("/usr/bin/python3", "-c", PLANT.format(mark=mark, places=places), timeout=120)
    for words in (["true"], ["sh", "-c", "sleep 9 & exit 3"], ["/no/such/program"]):
        root_scene.inside(*words, options=("--background", "0", "--timeout", "5"), status=None)
    listed = root_scene.inside("ls", options=()).stdout.decode()
    assert "ran-" not in listed
    # what is planted does run in a Python that looks for it
    root_scene.inside(sys._base_executable, "-c", "import this_is_looked_for", options=(), status=1)
    assert "ran-" in root_scene.inside("ls", options=()).stdout.decode()


def test_pid_1_cannot_be_ended(own_scene):
    """A pid 1 gets only the signals that it has handlers for (pid_namespaces(7))."""
    code = (
        "import os, signal, time\n"
        "for number in signal.valid_signals():\n"
        "    try: os.kill({target}, number)\n"
        "    except ProcessLookupError: break\n"
        "    time.sleep(0.002)\n"
        "print('went on')\n"
    )
    done = own_scene.inside("/usr/bin/python3", "-c", code.format(target=1))
    assert done.stdout == b"went on\n"
    victim = subprocess.Popen(["sleep", "60"], **own_scene.as_them())
    own_scene.host("/usr/bin/python3", "-c", code.format(target=victim.pid))
    assert victim.wait(10) < 0


DAEMON = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
for _ in range(2):
    if os.fork():
        os._exit(0)
    os.setsid()
null = os.open("/dev/null", os.O_RDWR)
for fd in range(3):
    os.dup2(null, fd)
open("alive-" + sys.argv[1], "w").write(str(os.getpid()))
time.sleep(60)
"""


def test_no_process_outlives_its_world(own_scene):
    mark = f"outlives-{os.getpid()}-{own_scene.backend}"
    words = ("/usr/bin/python3", "-c", DAEMON, mark)
    wait = f'"$@"; until [ -s alive-{mark} ]; do sleep 0.01; done'
    own_scene.inside(*("sh", "-c", wait, "sh", *words), options=("--fresh", "--background", "50ms"))
    assert not traces_left.gone(lambda: traces_left.processes(mark))
    own_scene.host("sh", "-c", wait, "sh", *words)
    left = traces_left.processes(mark)
    for pid, _ in left:
        os.kill(pid, signal.SIGKILL)
    assert len(left) == 1
    assert not traces_left.gone(lambda: traces_left.processes(mark))


# --- what lies ready for the next command


def unshared(scene):
    """A prefix that lets mounts be made outside of a world, which nobody else sees."""
    return ["unshare", "--mount", *(["--user", "--map-root-user"] if scene.uid else []), "sh", "-c"]


def test_a_symlink_in_the_upper_leads_no_mount_away(own_scene):
    """The world's own mounts go to paths of the tree below, and never through a link."""
    away = own_scene.own_directory(own_scene.work / "away")
    if own_scene.backend == "ns-user":  # its /dev lies in no overlay, its home does
        own_scene.hidden_keys()
        link = own_scene.base / "user" / ".ssh"
    else:
        link = Path("/dev")
    own_scene.inside("touch", own_scene.work / "file", link.parent / "file")
    own_scene.upper(link).symlink_to(away)
    show = f"stat -fc %T {away}; ls -a {away}; cat {away}/id {link}/id"
    done = own_scene.inside("sh", "-c", show, options=(), status=None)
    assert SECRET.encode() not in done.stdout
    assert b"tmpfs" not in done.stdout
    if link == Path("/dev"):
        assert done.returncode == 125, done.stderr
        assert b"/dev" in done.stderr
    # mount(8) does follow such a link
    (own_scene.base / "link").symlink_to(away)
    follow = f"mount -t tmpfs none {own_scene.base}/link; stat -fc %T {away}"
    assert own_scene.host(*unshared(own_scene), follow).stdout == b"tmpfs\n"


MARKS = """
import os, sys
done = []
for name in ("opaque", "whiteout", "redirect", "metacopy", "origin", "impure", "nlink"):
    for prefix in ("user.overlay.", "trusted.overlay.", "user.overlay.overlay."):
        for path, text in (("lower", b"y"), ("made", b"/.ssh"), ("made", b"/user/.ssh")):
            try:
                os.setxattr(path, prefix + name, text)
                done.append(prefix + name)
            except OSError:
                pass
print(sorted(set(done)))
"""


def test_marks_that_a_command_sets_mean_nothing_to_the_overlay(own_scene):
    own_scene.hidden_keys()
    lower = own_scene.own_directory(own_scene.work / "lower")
    own_scene.own_file(lower / "kept", "of the host")
    own_scene.inside("sh", "-c", "mkdir made; touch lower/new made/new")
    own_scene.inside("/usr/bin/python3", "-c", MARKS, options=())
    show = "cat lower/kept; ls -A made; cat made/id* made/.ssh/id*"
    done = own_scene.inside("sh", "-c", show, options=(), status=None)
    assert done.stdout == b"of the hostnew\n"
    listed = own_scene.host(PROGRAM, "diff", "--name-only").stdout.decode()
    assert "kept" not in listed and ".ssh" not in listed
    # put into an upper directly, the same mark hides what is below
    prefix, option = ("user", ",userxattr") if own_scene.uid else ("trusted", "")
    script = f"""
        mkdir -p low/d up/d work at && touch low/d/below &&
        python3 -c "import os; os.setxattr('up/d', '{prefix}.overlay.opaque', b'y')" &&
        mount -t overlay -o lowerdir=low,upperdir=up,workdir=work{option} none at &&
        ls -A at/d | wc -l"""
    control = own_scene.own_directory(own_scene.base / "control")
    done = own_scene.host(*unshared(own_scene), script, cwd=control)
    assert done.stdout == b"0\n", done.stderr


BEFORE = (
    "chmod 000 {above}",
    "mv {above} {above}-moved; mkdir {above}",
    "rm -rf {above}",
    "mv {above} {above}-moved; ln -s {above}-moved {above}",
    "cp -al {above} {above}-linked; mount --bind {above} {home}/made",
)


@pytest.mark.parametrize("before", BEFORE)
def test_what_a_command_does_above_a_hidden_path_opens_it_for_no_later_one(own_scene, before):
    home = own_scene.base / "user"
    above = own_scene.own_directory(home / ".config")
    own_scene.own_file(own_scene.own_directory(above / "gh") / "hosts.yml", SECRET)
    look = f"chmod -R u+rwX {home}; grep -rs secret {home}"
    assert SECRET.encode() in own_scene.host("sh", "-c", f"grep -rs secret {home}").stdout
    own_scene.inside("sh", "-c", before.format(above=above, home=home), status=None)
    for _ in range(2):
        done = own_scene.inside("sh", "-c", look, options=(), status=None)
        assert SECRET.encode() not in done.stdout
    assert (above / "gh" / "hosts.yml").read_text() == SECRET


def test_a_hidden_file_that_the_host_replaces_meanwhile_stays_hidden(own_scene):
    keys = own_scene.hidden_keys()
    process = own_scene.start_inside(
        "sh", "-c", f"echo ready; read -r line; cat {keys}/id; ls -A {keys}; echo over"
    )
    assert process.stdout.readline() == b"ready\n"
    own_scene.own_file(own_scene.base / "user" / "new", SECRET)
    os.rename(own_scene.base / "user" / "new", keys / "id")
    os.rename(keys, own_scene.base / "user" / "away")
    own_scene.own_file(own_scene.own_directory(keys) / "id", SECRET)
    out, _ = process.communicate(b"go on\n", 30)
    assert out == b"over\n"
    assert (keys / "id").read_text() == SECRET


# --- the terminal

ON_TERMINAL = """
import fcntl, json, os, termios
found = {"name": os.ttyname(0), "filesystem": os.fstat(0).st_dev, "typed": None}
tty = os.open("/dev/tty", os.O_RDWR)
TIOCGDEV = 0x80045432
found["same"] = fcntl.ioctl(tty, TIOCGDEV, bytes(4)) == fcntl.ioctl(0, TIOCGDEV, bytes(4))
try:
    fcntl.ioctl(0, termios.TIOCSTI, b"x")
except OSError as error:
    found["typed"] = error.errno
print(json.dumps(found), flush=True)
"""


def on_a_terminal(scene, *words):
    """All that a program prints on a terminal that is its controlling one."""
    return _on_a_terminal(scene, *words)[0]


def _on_a_terminal(scene, *words):
    master, slave = os.openpty()
    mine = os.fstat(slave).st_dev, os.ttyname(slave)
    scene.own(Path(os.ttyname(slave)))
    process = subprocess.Popen(
        words,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=scene.work,
        env={**scene.environ, "SUBSTRATE_AT_END": "keep"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no threads
        **scene.as_them(),
    )
    os.close(slave)
    text = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # EIO: everybody has closed it
            piece = b""
        if not piece:
            break
        text += piece
    process.wait(30)
    os.close(master)
    return text, mine


def at_a_terminal(scene, *words):
    """The object that a program prints there, and what terminal it was."""
    text, mine = _on_a_terminal(scene, *words)
    line = next(line for line in text.splitlines() if b"{" in line)
    return json.loads(line[line.index(b"{") :]), mine  # what it typed is echoed before


def test_the_terminal_inside_is_the_worlds_own(own_scene):
    program = ("/usr/bin/python3", "-c", ON_TERMINAL)
    found, (filesystem, _) = at_a_terminal(own_scene, PROGRAM, "run", "--fresh", "--", *program)
    assert found["same"]
    assert found["filesystem"] != filesystem  # another instance of devpts
    assert found["typed"] == 1  # EPERM
    found, (filesystem, name) = at_a_terminal(own_scene, *program)
    assert (found["filesystem"], found["name"]) == (filesystem, name)
    if ROOT and not own_scene.uid:  # dev.tty.legacy_tiocsti lets root in any case
        assert found["typed"] is None


def test_a_device_of_the_host_keeps_its_mode(own_scene):
    """Through a bind of it, its owner could change mode, times and attributes (here: none)."""
    before = os.stat("/dev/full")
    code = (
        "import os, stat; s = os.stat('/dev/full')\n"
        "for act in (lambda: os.chmod('/dev/full', stat.S_IMODE(s.st_mode)),\n"
        "            lambda: os.utime('/dev/full', ns=(s.st_atime_ns, s.st_mtime_ns)),\n"
        "            lambda: os.chown('/dev/full', s.st_uid, s.st_gid),\n"
        "            lambda: os.setxattr('/dev/full', 'trusted.x', b'')):\n"
        "    try: act(); print('changed')\n"
        "    except OSError: pass\n"
    )
    assert own_scene.inside("/usr/bin/python3", "-c", code).stdout == b""
    assert os.stat("/dev/full").st_ctime_ns == before.st_ctime_ns
    assert own_scene.inside("sh", "-c", "echo x > /dev/null && head -c 1 /dev/zero").stdout == b"\0"
    if not own_scene.uid:
        assert b"changed" in own_scene.host("/usr/bin/python3", "-c", code).stdout
