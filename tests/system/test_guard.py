"""Worlds without namespaces: what a command may do to files and to others, and what comes of it.

As root and as a user. The network is in test_guard_network.py. Spec: world.md §1, §6, §8.
"""

import hashlib
import json
import os
import shutil
import signal
import textwrap
from pathlib import Path

import pytest

from tests.system import traces_left
from tests.system.egress_scene import children

PYTHON = "/usr/bin/python3"
AS_ROOT = os.geteuid() == 0

_BEFORE = """
mkdir -p dir/sub empty closed
echo one > kept; echo two > dir/gone; echo three > dir/sub/moved; echo four > dir/sub/mode
echo five > second; ln -s kept link; ln -s /etc/hostname outside
printf 'a\\0b' > binary; truncate -s 1M sparse; echo x >> sparse
mkfifo fifo; chmod 640 dir/sub/mode; chmod 500 closed; touch -d 2001-01-01 old
"""
_STEPS = (
    "echo more >> kept; rm dir/gone; mv dir/sub/moved dir/moved; chmod 755 dir/sub/mode",
    "rm -r dir/sub; mkdir dir/sub; echo new > dir/sub/other; ln kept hard; echo z >> second",
    "rm link; mkdir link; echo in > link/file; rmdir empty; echo file > empty; mkdir -p deep/er/est",
    "echo a > $'odd\\nname'; touch -d 2002-02-02 old; ln -sf nowhere outside; rm fifo; : > made",
    "cp -a dir copied; mv copied renamed; chmod 700 renamed/sub; truncate -s 0 binary",
)


def _tree(place):
    """What a directory holds: type, mode, content or target of each entry, without times."""
    found = {}
    for path in sorted(Path(place).rglob("*")):
        status = path.lstat()
        name = str(path.relative_to(place))
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif path.is_file():
            found[name] = (oct(status.st_mode), hashlib.sha256(path.read_bytes()).hexdigest())
        else:
            found[name] = (oct(status.st_mode), "")
    return found


def _diff(caller):
    done = caller.substrate("diff", "--format", "json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    changes = told["changes"] if "changes" in told else told["files"]
    kept = []
    for change in changes:
        shown = {
            k: v for k, v in change.items() if k in ("path", "old_path", "kind", "what", "size")
        }
        shown["path"] = os.path.relpath(str(change["path"]), caller.work)
        kept.append(json.dumps(shown, sort_keys=True))
    return sorted(kept)


@pytest.mark.parametrize("who", ["root", "user"])
def test_layers_are_those_of_an_overlay(make_caller, who):
    """Diff, apply and what an apply leaves, of the same steps over the same files."""
    results = []
    for backend in ("ns-root" if who == "root" else "ns-user", "guard"):
        caller = make_caller(backend, rootless=who == "user")
        caller.call("bash", "-c", _BEFORE)
        before = _tree(caller.work)
        for step in _STEPS:
            done = caller.substrate("-c", step)
            assert done.returncode == 0, (backend, step, done.stderr)
            assert _tree(caller.work) == before
        diff = _diff(caller)
        seen = caller.substrate(
            "-c", "find . | sort; cat kept second hard dir/sub/other link/file"
        ).stdout
        done = caller.substrate("apply", "--yes")
        assert done.returncode == 0, (backend, done.stderr)
        after = _tree(caller.work)
        caller.verify()
        results.append((diff, seen, after))
    (diff, seen, after), (own_diff, own_seen, own_after) = results
    assert own_diff == diff
    assert own_seen == seen
    assert own_after == after
    assert own_after != before


def test_undo_and_discard(guarded):
    guarded.call("bash", "-c", "rm -rf -- * ; echo one > kept")
    guarded.substrate("-c", "echo two >> kept")
    guarded.substrate("-c", "echo three >> kept; echo new > new")
    assert guarded.substrate("-c", "cat kept").stdout == b"one\ntwo\nthree\n"
    assert guarded.substrate("undo").returncode == 0
    assert guarded.substrate("-c", "cat kept; ls").stdout == b"one\ntwo\nkept\n"
    # what the host changes beside it is seen by the next command
    (guarded.work / "beside").write_text("host\n")
    assert guarded.substrate("-c", "cat beside").stdout == b"host\n"
    assert guarded.substrate("discard", "--yes").returncode == 0
    assert guarded.substrate("-c", "cat kept").stdout == b"one\n"
    assert not list(guarded.state.glob("sessions/*/world/guard"))


_CLOSED = (
    "echo x >> p/f; echo y >> p/q/g; chmod 0 p; echo z >> r/f; chmod 555 r",
    "chmod 700 p; rm p/f; chmod 300 p/q; chmod 0 p",
    "echo x >> s/f; mkdir -p n/m; echo n > n/m/f; chmod 0 n/m; chmod 444 n",
    f'mkdir d; {PYTHON} -c \'import os; os.setxattr("d", "user.x", b"y")\'; chmod 0 d',
)


def test_what_modes_close_is_kept(make_caller):
    """Directories that their user cannot enter, list or write to, before and after; as an overlay's."""
    results = []
    for backend in ("ns-user", "guard"):
        caller = make_caller(backend, rootless=True)
        caller.call(
            *("bash", "-c", "mkdir -p p/q r s; echo a | tee p/f p/q/g r/f > s/f; chmod 555 s")
        )
        for step in _CLOSED:
            done = caller.substrate("-c", step)
            assert done.returncode == 0, (backend, step, done.stderr)
        seen = caller.substrate(
            "-c", "stat -c '%n %a' *; cat r/f s/f; chmod -R u+rwx .; find . | sort"
        )
        assert seen.returncode == 0, (backend, seen.stderr)
        assert caller.substrate("undo").returncode == 0
        results.append((seen.stdout, _diff(caller)))
        assert caller.substrate("discard", "--yes").returncode == 0
    assert results[1] == results[0]
    assert b"p 0" in results[0][0] and results[0][1]


def test_paths_that_are_too_long_for_a_call(guarded):
    """Made by steps, each of them short: they are in the layer, and in the next copy."""
    program = (
        "import os\n"
        "for _ in range(60):\n    os.mkdir('d' * 100); os.chdir('d' * 100)\n"
        "open('f', 'w').write('deep'); os.link('f', 'g'); os.symlink('f', 'h')\n"
    )
    done = guarded.substrate("-c", f'{PYTHON} -I -S -c "{program}"')
    assert done.returncode == 0, done.stderr
    inside = "for _ in $(seq 60); do cd -P d*; done; cat h; rm g; echo er >> f"
    done = guarded.substrate("-c", inside)
    assert (done.returncode, done.stdout) == (0, b"deep"), done.stderr
    assert guarded.substrate("-c", inside.partition("; rm")[0]).stdout == b"deeper\n"
    assert guarded.substrate("discard", "--yes").returncode == 0
    assert not list(guarded.state.glob("sessions/*/world/guard"))


def test_the_host_is_not_changed(guarded):
    """Each call that changes a file without opening it for that, by path, descriptor and link."""
    outside = guarded.base / "outside"
    guarded.make_directory(outside)
    victim = outside / "victim"
    victim.write_text("untouched\n")
    guarded.own(victim)
    victim.chmod(0o640)
    before = (victim.stat(), sorted(os.listdir(outside)))
    program = guarded.work / "change.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import ctypes, errno, fcntl, json, os, struct
            libc = ctypes.CDLL(None, use_errno=True)
            out, victim = {str(outside)!r}, {str(victim)!r}
            found = {{}}
            def note(name, act):
                try:
                    act()
                    found[name] = "done"
                except OSError as error:
                    found[name] = errno.errorcode.get(error.errno, str(error))
            def call(number, *words):
                if libc.syscall(number, *words) < 0:
                    raise OSError(ctypes.get_errno(), "")
            fd = os.open(victim, os.O_RDONLY)
            folder = os.open(out, os.O_RDONLY)
            os.symlink(victim, "link")
            os.symlink(out, "folder")
            note("write", lambda: open(victim, "a"))
            note("truncate", lambda: os.truncate(victim, 0))
            note("open and truncate", lambda: os.open(victim, os.O_RDONLY | os.O_TRUNC))
            note("unlink", lambda: os.unlink(victim))
            note("rename", lambda: os.rename(victim, victim + "2"))
            note("rename in", lambda: os.rename(victim, "stolen"))
            note("rename out", lambda: os.rename("change.py", out + "/change.py"))
            note("link in", lambda: os.link(victim, "linked"))
            note("link in by descriptor", lambda: os.link(f"/proc/self/fd/{{fd}}", "linked2", follow_symlinks=True))
            note("mkdir", lambda: os.mkdir(out + "/new"))
            note("symlink", lambda: os.symlink("x", out + "/new"))
            note("fifo", lambda: os.mkfifo(out + "/new"))
            note("node", lambda: os.mknod(out + "/new", 0o020600, 0))
            note("temporary", lambda: os.open(out, os.O_TMPFILE | os.O_WRONLY))
            for name, path in (("path", victim), ("link", "link"), ("folder", "folder/victim"), ("fd", fd),
                               ("proc", f"/proc/self/fd/{{fd}}"), ("up", "../" * 30 + victim[1:])):
                note("chmod " + name, lambda: os.chmod(path, 0o666))
                note("chown " + name, lambda: os.chown(path, os.getuid(), os.getgid()))
                note("utime " + name, lambda: os.utime(path, (1, 1)))
                note("attribute " + name, lambda: os.setxattr(path, "user.x", b"y"))
                note("no attribute " + name, lambda: os.removexattr(path, "user.x"))
            note("chmod below", lambda: os.chmod("victim", 0o666, dir_fd=folder))
            note("utime below", lambda: os.utime("victim", (1, 1), dir_fd=folder))
            note("chown not followed", lambda: os.lchown(victim, os.getuid(), os.getgid()))
            note("attribute at", lambda: call(463, folder, b"victim", 0, b"user.x", 0, 0))
            note("flags", lambda: fcntl.ioctl(fd, 0x40086602, struct.pack("l", 0x40)))
            note("extended flags", lambda: fcntl.ioctl(fd, 0x401C5820, bytes(28)))
            note("new subvolume", lambda: fcntl.ioctl(folder, 0x5000940E, bytes(1000)))
            note("clone", lambda: fcntl.ioctl(fd, 0x40049409, os.open("change.py", os.O_RDONLY)))
            note("shared memory", lambda: call(29, 0, 4096, 0o1600))
            note("queue", lambda: call(240, b"x", 0o102, 0o600, 0))
            note("signal", lambda: os.kill(os.getppid(), 0))
            note("signal all", lambda: os.kill(1, 0))
            note("limits of others", lambda: __import__("resource").prlimit(os.getppid(), 7, (64, 64)))
            note("priority of others", lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 5))
            note("priority of all of the user's", lambda: os.setpriority(os.PRIO_USER, 0, os.getpriority(os.PRIO_PROCESS, 0)))
            note("memory of others", lambda: open(f"/proc/{{os.getppid()}}/mem", "rb"))
            note("environment of others", lambda: open(f"/proc/{{os.getppid()}}/environ").read())
            note("descriptors of others", lambda: os.readlink(f"/proc/{{os.getppid()}}/fd/3"))
            note("trace", lambda: call(101, 16, os.getppid(), 0, 0))
            note("new namespace", lambda: call(272, 0x10000000))
            note("a mark", lambda: os.setxattr("change.py", "user.overlay.opaque", b"y"))
            note("own mode", lambda: os.chmod("change.py", 0o700))
            note("own time", lambda: os.utime("change.py", (1, 1)))
            note("own attribute", lambda: os.setxattr("change.py", "user.x", b"y"))
            note("own owner", lambda: os.chown("change.py", os.getuid(), os.getgid()))
            own = os.open("change.py", os.O_RDONLY)
            note("own by descriptor", lambda: os.fchmod(own, 0o755))
            note("own by its name in proc", lambda: os.chmod(f"/proc/self/fd/{{own}}", 0o750))
            note("home", lambda: open(os.path.expanduser("~/new"), "w"))
            note("tmp", lambda: open("/tmp/substrate-guard-test", "w"))
            note("a terminal of others", lambda: [os.open(f"/dev/pts/{{n}}", os.O_RDWR) for n in os.listdir("/dev/pts") if n.isdigit()][0])
            note("a new terminal", lambda: os.openpty())
            note("a disk", lambda: open("/dev/mem", "rb"))
            note("shm", lambda: open("/dev/shm/substrate-guard-test", "w"))
            note("own tmp", lambda: open(os.environ["TMPDIR"] + "/new", "w"))
            note("state", lambda: open({str(guarded.state)!r} + "/backend").read())
            note("own layers", lambda: os.mkdir("../../../layers/9"))
            note("its manifest", lambda: open("../../manifest", "rb"))
            print(json.dumps(found))
            """
        )
    )
    guarded.own(program)
    master, slave = os.openpty()
    os.fchown(slave, guarded.uid, -1)
    done = guarded.substrate("-c", f"{PYTHON} -I -S change.py")
    os.close(master)
    os.close(slave)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    mine = ("own mode", "own time", "own attribute", "own owner", "own by descriptor", "own tmp")
    mine += ("own by its name in proc",)
    assert {case for case, how in told.items() if how == "done"} == set(mine), told
    for case in (
        "write",
        "truncate",
        "chmod path",
        "chown fd",
        "utime link",
        "attribute proc",
        "mkdir",
    ):
        assert told[case] == "EACCES", (case, told[case])
    status, names = before
    assert (victim.stat(), sorted(os.listdir(outside))) == (status, names)
    assert victim.read_text() == "untouched\n"
    assert os.listxattr(victim) == []
    assert not os.path.exists("/tmp/substrate-guard-test")
    guarded.verify()


def test_a_path_that_is_changed_while_it_is_looked_at(guarded):
    """The name of what is changed is a link now, a file then."""
    outside = guarded.base / "swapped"
    guarded.make_directory(outside)
    victim = outside / "victim"
    victim.write_text("x")
    guarded.own(victim)
    victim.chmod(0o600)
    program = guarded.work / "swap.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import os, sys, threading
            over = False
            os.mkdir("d")
            open("d/victim", "w")
            os.symlink({str(outside)!r}, "s")
            def swap():
                while not over:
                    os.rename("d", "t"); os.rename("s", "d")
                    os.rename("d", "s"); os.rename("t", "d")
            sys.setswitchinterval(1e-6)
            thread = threading.Thread(target=swap)
            thread.start()
            done = 0
            for _ in range(3000):
                try:
                    os.chmod("d/victim", 0o666)
                    done += 1
                except OSError:
                    pass
            over = True
            thread.join()
            print(done)
            """
        )
    )
    guarded.own(program)
    done = guarded.substrate("-c", f"{PYTHON} -I -S swap.py")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
    assert oct(victim.stat().st_mode & 0o777) == "0o600"


def test_hidden_files_cannot_be_read(guarded):
    home = guarded.base / "home"
    guarded.make_directory(home / ".ssh")
    secret = home / ".ssh" / "id_rsa"
    secret.write_text("secret\n")
    (home / ".netrc").write_text("secret\n")
    (home / "plain").write_text("plain\n")
    for path in (secret, home / ".netrc", home / "plain"):
        guarded.own(path)
    done = guarded.substrate(
        "-c", "cat ~/.ssh/id_rsa; cat ~/.netrc; cat ~/plain; head -c9 /dev/null; ls -d /dev/null"
    )
    assert done.stdout == b"plain\n/dev/null\n", done
    assert done.stderr.count(b"Permission denied") == 2
    assert b".ssh is hidden from worlds" in done.stderr
    start = next(e["body"] for e in guarded.events() if e["event_type"] == "session_start")
    isolation = start["isolation"]
    assert isolation["backend"] == "guard"
    layers = isolation["layers"]
    assert {name for name, layer in layers.items() if not layer["on"]} >= {"pid", "user", "uts"}
    assert layers["fs"]["on"] and layers["net"]["on"] and layers["ipc"]["on"]
    assert "names and metadata" in layers["hidden"]["why"]


def test_hidden_files_of_the_workspace_are_not_replaced_or_removed(guarded):
    """The command does not see them, so it can make others in their places: what comes of that is dropped."""
    guarded.call(
        *(
            "bash",
            "-c",
            "mkdir d e f h; echo secret | tee key d/key e/key f/key h/key; echo k > d/k",
        )
    )
    hide = [w for path in ("key", "d/key", "e/key", "f/key", "h") for w in ("--hide", path)]
    line = (
        "echo mine > key; rm -rf d; echo file > d; mv e moved; echo mine > moved/key; rm -rf f; "
        "mkdir -p f/key; echo mine > f/key/in; echo mine > f/new; mkdir h; echo mine > h/key"
    )
    done = guarded.substrate("--fresh", *hide, "-c", line)
    assert done.returncode == 0, done.stderr
    assert (
        b"key is hidden from the world, or holds what it cannot see: what the command put in its place is dropped"
        in done.stderr
    )
    assert guarded.substrate("apply", "--yes").returncode == 0
    for path in ("key", "d/key", "e/key", "f/key", "h/key"):
        assert (guarded.work / path).read_text() == "secret\n", path
    assert (guarded.work / "moved" / "key").read_text() == "mine\n"
    assert (guarded.work / "f" / "new").read_text() == "mine\n"
    assert not (guarded.work / "d" / "k").exists()


def test_a_directory_that_could_not_be_read_is_not_replaced(guard_user):
    """Its copy is empty, so that the command can remove it."""
    guard_user.forget()
    guard_user.call("bash", "-c", "mkdir d e; echo one | tee d/f > e/f; chmod 0 d e")
    done = guard_user.substrate("-c", "rmdir d e; echo two > d")
    assert done.returncode == 0, done.stderr
    assert b"d is hidden from the world, or holds what it cannot see" in done.stderr
    assert guard_user.substrate("diff").stdout == b""
    done = guard_user.call("bash", "-c", "chmod 700 d e; cat d/f e/f")
    assert done.stdout == b"one\none\n"


def test_what_guard_cannot_give_is_refused(guarded):
    for words, said in (
        (("--require", "pid"), b"pid is required"),
        (("--require", "fs,user"), b"user is required"),
        (("--net", "host"), b"--net host is not to be had"),
        (("--publish", "8080:80"), b"--publish is not to be had"),
        (("--userns",), b"--userns is not to be had"),
        (("--capture-backend", "hybrid"), b"seccomp listener"),
    ):
        done = guarded.substrate("--fresh", *words, "-c", "echo ran")
        assert done.returncode in (2, 125), (words, done)
        assert done.stdout == b""
        assert said in done.stderr, done.stderr


def test_without_a_network_there_are_no_sockets(guarded):
    program = (
        "import socket\n"
        "for f, k in ((2, 1), (10, 1), (2, 2), (2, 3), (1, 1), (1, 2), (17, 3), (38, 5), (40, 1)):\n"
        "    try:\n        socket.socket(f, k); print('made', f, k)\n    except OSError: pass\n"
        "a, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))\n"
    )
    done = guarded.substrate("--net", "none", "--fresh", "-c", f'{PYTHON} -I -S -c "{program}"')
    assert done.stdout == b"b'x'\n", done


def test_the_end_takes_along_what_goes_on(guarded):
    """Daemons, with a session and a parent of their own."""
    line = "(setsid sleep 987.5 & ) ; setsid -f sleep 987.5; echo $$"
    done = guarded.substrate("--fresh", "--background", "0", "-c", line)
    assert done.returncode == 0, done.stderr
    left = traces_left.gone(lambda: _sleepers(guarded))
    assert not left


def _sleepers(caller):
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                own = Path(f"/proc/{name}").stat().st_uid == caller.uid
                if words[:2] == [b"sleep", b"987.5"] and own:
                    found.append(int(name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def test_a_killed_supervisor_leaves_the_changes(guarded):
    """Nothing of the world goes on, and what it did is pending."""
    guarded.call("bash", "-c", "rm -rf -- *; echo one > kept")
    with guarded.start("--fresh", "-c", "echo two >> kept; echo ready; sleep 987.5") as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not traces_left.gone(lambda: _sleepers(guarded))
    assert guarded.substrate("-c", "cat kept").stdout == b"one\ntwo\n"
    done = guarded.substrate("diff")
    assert b"+two" in done.stdout, done
    assert (guarded.work / "kept").read_text() == "one\n"
    guarded.verify()


def test_a_killed_first_process_takes_all_along(guarded):
    """The one that answers for the commands: nothing goes on without it."""
    line = "setsid -f sleep 987.5; echo ready; sleep 987.5"
    with guarded.start("--fresh", "-c", line) as process:
        assert process.stdout.readline() == b"ready\n"
        (zygote,) = [p for p in children(process.pid) if children(p)]
        (first,) = [p for p in children(zygote) if children(p)]
        os.kill(first, signal.SIGKILL)
        process.communicate(timeout=30)
    assert not traces_left.gone(lambda: _sleepers(guarded))
    guarded.verify()


def test_auto_takes_guard_where_nothing_else_starts(guarded, base):
    """Under a filter as a container's, which refuses namespaces and mounts."""
    launcher = base / "no_namespaces.py"
    shutil.copyfile(Path(__file__).with_name("without_calls.py"), launcher)
    launcher.chmod(0o644)
    calls = "namespaces,mount,umount2,pivot_root,setns,open_tree,move_mount,fsopen,fsmount,fsconfig,mount_setattr"
    environ = {**guarded.environ, "SUBSTRATE_BACKEND": "auto"}

    def under(*words):
        return guarded.call(PYTHON, launcher, "1", calls, guarded.command, *words, env=environ)

    guarded.forget()
    done = under("--fresh", "-c", "echo new > auto; pwd")
    assert done.returncode == 0, done.stderr
    assert b"/guard/copy/" in done.stdout
    assert b"guard" in under("status").stdout
    assert b"ok   backend guard:           works, used" in under("doctor").stdout
    refused = under("--fresh", "--require", "fs,net,pid,ipc", "-c", "true")
    assert refused.returncode == 125
    assert b"pid is required" in refused.stderr
    assert not (guarded.work / "auto").exists()
    # and where there are namespaces, they are taken
    done = guarded.substrate("--fresh", "-c", "pwd", env=environ)
    assert done.stdout == f"{guarded.work}\n".encode(), done
