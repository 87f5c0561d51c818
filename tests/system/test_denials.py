"""Real tools in real worlds: what a world denies is told after the command, and nothing else.

The tools are those of the machine; CI installs the ones that its tests need.
"""

import json
import os
import shutil

import pytest

from tests.world.escape.scene import PROGRAM, made

ROOT = os.geteuid() == 0
#: (backend, program that has to be there, command, code)
IDMAP, USER = "ns-root-idmap", "ns-user"
DENIED = [
    (USER, "sudo", "sudo -n true", "no_new_privs"),
    (USER, "su", "su -c true </dev/null", "no_new_privs"),
    (IDMAP, "sudo", "sudo true", "sudoers"),
    (USER, "ssh-add", "ssh-add -l", "ssh_agent"),
    (USER, "gpg", "echo x | gpg --batch --clearsign", "gpg_agent"),
    (USER, "docker", "docker ps", "docker"),
    (IDMAP, "systemctl", "systemctl status", "host_services"),
    (USER, "dbus-send", "dbus-send --session --dest=org.freedesktop.DBus / org.freedesktop.DBus.ListNames", "host_services"),
    (USER, "curl", "curl -sS http://example.invalid/", "net_refused"),
    (IDMAP, "curl", "curl -sS http://198.51.100.7/", "net_refused"),
    (USER, "curl", "curl -sS http://localhost:9/", "localhost"),
    (USER, "wget", "wget http://example.invalid/", "net_refused"),
    (USER, "git", "git ls-remote https://example.invalid/x.git", "net_refused"),
    (IDMAP, "ssh", "ssh -o BatchMode=yes example.invalid", "net_refused"),
    (USER, "python3", "/usr/bin/python3 -c 'import urllib.request as u; u.urlopen(\"http://example.invalid\")'", "net_refused"),
    (USER, "pip3", "/usr/bin/python3 -m pip download --retries 1 -i https://example.invalid/ x", "net_refused"),
    (IDMAP, "ping", "ping -c 1 198.51.100.7", "raw_sockets"),
    (USER, "unshare", "unshare -r true", "namespaces"),
    (IDMAP, "unshare", "unshare -m true", "namespaces"),
    (USER, "bwrap", "bwrap --ro-bind / / true", "namespaces"),
    (IDMAP, "bwrap", "bwrap --unshare-all --ro-bind / / true", "namespaces"),
    (USER, "gdb", "gdb -nx -batch -ex run --args /bin/true 2>&1; false", "ptrace"),
    (IDMAP, "strace", "strace true", "ptrace"),
    (USER, "mount", "mount -t tmpfs none /mnt", "mounts"),
    (IDMAP, "mount", "mount -t tmpfs none /mnt", "mounts"),
    (IDMAP, "umount", "umount /proc", "mounts"),
    (IDMAP, "chroot", "chroot / true", "chroot"),
    (IDMAP, "dmesg", "dmesg", "kernel_log"),
    (IDMAP, "ip", "ip link add d0 type dummy", "network_setup"),
    (IDMAP, "mknod", "mknod node c 1 3", "device_nodes"),
    (IDMAP, "date", "date -s 2020-01-01", "machine"),
    (IDMAP, "hostname", "hostname other", "machine"),
    (IDMAP, "sysctl", "sysctl -w kernel.panic=1", "sysctl"),
    (USER, "sh", "echo 1 > /proc/sys/kernel/panic", "sysctl"),
    (USER, "cat", "cat ~/.netrc", "hidden"),
    (IDMAP, "cat", "cat ~/.ssh/id", "hidden"),
    (USER, "touch", "touch /usr/made", "read_only"),
    (IDMAP, "chmod", "chmod 600 /dev/null", "read_only"),
]  # fmt: skip

ORDINARY = [
    "false",
    "exit 3",
    "kill -KILL $$",
    "cat missing",
    "cat closed 2>&1; false",
    "ls /nonexistent",
    "nosuchcommand",
    "./closed",
    "if",
    "cd missing",
    "grep x missing",
    "grep absent present",
    "test -e missing",
    "diff present other",
    "cmp present other",
    "rm missing",
    "rm -r .",
    "rmdir full",
    "mkdir full",
    "cp missing x",
    "mv missing x",
    "ln present present",
    "chmod 1 missing",
    "chown 12:12 missing",
    "tar xf missing",
    "gzip -d present",
    "sed s present",
    "awk '{' present",
    "sort --nosuch",
    "head -n x present",
    "find . -nosuch",
    "xargs -n x",
    "timeout 0.1 sleep 5",
    "make -f missing",
    "git status",
    "git -c x=y checkout nosuch",
    "python3 -c 'import nosuch'",
    "python3 -c 'assert 1 == 2'",
    "python3 -c 'open(\"missing\")'",
    "python3 -c 'import os; os.kill(999999, 0)'",
    "python3 nosuch.py",
    "perl -e 'die'",
    "curl -sS file:///nonexistent",
    "curl -sS nosuch://x",
    "wget",
    "ssh -o nosuch x",
    "ssh-keygen -y -f missing",
    "mount --nosuch",
    "unshare --nosuch",
    "ip nosuch",
    "kill 999999",
    "echo only words on standard error >&2",
    "seq 100000 >&2; false",
]


@pytest.fixture(scope="module", params=[IDMAP, USER])
def place(request):
    if request.param == IDMAP and not ROOT:
        pytest.skip("root's backend needs root")
    with made(request.param) as scene:
        home = scene.own_directory(scene.base / "user" / ".ssh").parent
        scene.own_directory(home / ".gnupg").chmod(0o700)
        scene.own_file(home / ".ssh" / "id", "key")
        scene.own_file(home / ".netrc", "machine")
        scene.own_file(scene.work / "present", "text\n")
        scene.own_file(scene.work / "other", "other\n")
        scene.own_file(scene.work / "closed", "closed\n").chmod(0)
        scene.own_directory(scene.work / "full" / "of")
        scene.own(scene.work / "full")
        scene.environ["SSH_AUTH_SOCK"] = str(scene.base / "agent")
        scene.environ["PATH"] = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        scene.inside("true")
        yield scene


def run(scene, command, *options):
    return scene.host(PROGRAM, *options, "-c", command, stdin=-3)


def lines(done):
    return [line for line in done.stderr.decode().splitlines() if line.startswith("substrate: ")]


@pytest.mark.parametrize(("backend", "tool", "command", "code"), DENIED)
def test_what_is_denied_is_told(place, backend, tool, command, code):
    if backend != place.backend:
        return
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is missing")
    done = run(place, command, "--json-status", str(place.work / "status"))
    told = json.loads((place.work / "status").read_bytes())["denials"]
    # beside it, that the tool looked for something of its own that is hidden (~/.netrc, ~/.gnupg)
    first, *others = [denial["code"] for denial in told]
    assert first == code, done.stderr
    assert set(others) <= {"hidden"}
    assert lines(done) == [f"substrate: {denial['text']}" for denial in told]


@pytest.mark.parametrize("command", ORDINARY)
def test_an_ordinary_failure_is_left_alone(place, command):
    done = run(place, command)
    assert [line for line in lines(done) if "background" not in line] == []


def test_a_success_with_words_like_that_on_standard_output_is_left_alone(place):
    assert lines(run(place, "echo 'curl: (6) Could not resolve host: x'")) == []


def test_it_stands_in_the_trace_and_in_the_object(place):
    done = run(place, "mount -t tmpfs none /mnt", "--fresh", "--json")
    told = json.loads(done.stderr.splitlines()[-1])["denials"]
    assert lines(done) == []
    newest = max(place.home.glob("sessions/*/trace.jsonl"), key=lambda p: p.stat().st_mtime)
    end = next(e for e in map(json.loads, newest.read_bytes().splitlines())
               if e["event_type"] == "command_end")  # fmt: skip
    assert end["body"]["denials"] == told
    verified = place.host(PROGRAM, "trace", "verify", newest.parent.name)
    assert verified.returncode == 0, verified.stdout


def test_quiet_is_quiet(place):
    done = run(place, "mount -t tmpfs none /mnt", "--quiet")
    assert lines(done) == []
    assert done.returncode == 32


def test_no_escape_sequence_gets_into_our_lines(place):
    text = r"mount: \033]0;title\007\033[2J/mnt: permission denied.\n"
    done = run(place, f"printf '{text}' >&2; exit 32")
    (line,) = lines(done)
    assert line.isprintable()
    assert "title" not in line


def test_a_hidden_name_that_would_act_on_a_terminal_is_shown_escaped(place):
    name = place.base / "user" / "k\x1b]0;x\x07y"
    place.own_file(name, "x")
    done = run(
        place, f"echo '{name}: Permission denied' >&2; false", "--hide", str(name), "--fresh"
    )
    (line,) = lines(done)
    assert line.isprintable() and "\\x1b" in line


def test_memory_and_processes_by_the_counters_of_the_kernel(place):
    if place.backend != IDMAP:
        return
    hog = "python3 -c 'x = bytearray(300 << 20)'"
    (line,) = lines(run(place, hog, "--limit", "memory=60m"))
    assert "memory limit of 60m" in line
    forks = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 0.2 & done; wait"
    found = lines(run(place, forks, "--limit", "pids=8", "--background", "0"))
    assert any("limit of 8 processes" in line for line in found)


def test_at_a_terminal_it_is_told_too(place):
    from tests.world.escape.test_scenes import on_a_terminal

    text = on_a_terminal(place, PROGRAM, "-c", "mount -t tmpfs none /mnt")
    assert b"substrate: mounts are refused" in text
