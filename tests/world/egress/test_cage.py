"""The cage of the egress process, entered by a child of the test; outside the same works."""

import errno
import json
import os
import platform
import signal
import socket
import sys

import pytest

from substrate.world import linux
from substrate.world.egress import cage, namespace, nft
from substrate.world.egress.resolve import Resolver
from substrate.world.egress.route import is_local

ATTEMPTS = {
    "exec": lambda path: os.execv("/bin/true", ["true"]),
    "fork": lambda path: os.waitpid(os.fork() or os._exit(0), 0),
    "spawn": lambda path: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
    "signal": lambda path: os.kill(os.getppid(), 0),
    "pidfd": lambda path: os.pidfd_open(os.getppid()),
    "write": lambda path: open(path / "file", "w").write("x"),
    "append": lambda path: open(path / "file", "a").write("x"),
    "truncate": lambda path: os.truncate(path / "file", 0),
    "make": lambda path: os.mkdir(path / "made"),
    "remove": lambda path: os.unlink(path / "gone"),
    "rename": lambda path: os.rename(path / "renamed", path / "other"),
    "link": lambda path: os.symlink("a", path / "link"),
    "listen": lambda path: socket.create_server(("127.0.0.1", 0)).close(),
    "raw": lambda path: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close(),
    "packet": lambda path: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    "unshare": lambda path: linux.unshare(linux.CLONE_NEWUSER),
    "chroot": lambda path: os.chroot("/"),
}
NEEDS_ROOT = {"raw", "packet", "chroot"}


def _try(name, path, *, shut):
    """The name of the error, in a child."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        told = "ended"
        try:
            if shut:
                cage.enter()
            if not shut and name == "exec":
                told = ""
            else:
                ATTEMPTS[name](path)
                told = ""
        except OSError as error:
            told = errno.errorcode[error.errno]
        finally:
            os.write(writing, json.dumps(told).encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        told = json.loads(file.read() or '"died"')
    assert os.waitpid(pid, 0)[1] == 0
    return told


@pytest.fixture
def place(tmp_path):
    for name in ("file", "gone", "renamed"):
        (tmp_path / name).write_text("whole")
    return tmp_path


@pytest.mark.skipif(not linux.landlock_abi(), reason="this kernel has no Landlock")
@pytest.mark.parametrize("name", ATTEMPTS)
def test_refused_in_the_cage_and_possible_outside(name, place):
    assert _try(name, place, shut=True) in ("EPERM", "EACCES", "EAFNOSUPPORT")
    assert (place / "file").read_text() == "whole"
    assert sorted(os.listdir(place)) == ["file", "gone", "renamed"]
    if os.geteuid() == 0 or name not in NEEDS_ROOT:
        assert _try(name, place, shut=False) == ""


def _in_the_cage(act, *, enter=True):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if enter:
                cage.enter()
            act()
            status = 0
        except Exception as error:  # noqa: BLE001 - a process edge: its status tells
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_what_it_needs_works():
    def act():
        from substrate.world.egress.loop import Loop
        from substrate.world.egress.pipes import Pipes

        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        loop = Loop()
        found = []
        Resolver(loop).resolve("localhost", found.append)  # in a thread
        while not found:
            loop.run_once(10)
        assert b"\x7f\0\0\1" in found[0].addresses, found
        assert is_local(b"\x7f\0\0\1")
        assert Pipes(loop).take() is not None
        with open("/etc/passwd") as file:
            assert file.read(1)
        with socket.socket() as sock:
            assert sock.connect_ex(("127.0.0.1", 1)) == errno.ECONNREFUSED

    _in_the_cage(act)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has any")
def test_one_capability_is_left():
    def act():
        with open("/proc/self/status") as file:
            told = dict(line.split(":\t") for line in file)
        assert int(told["CapEff"], 16) == int(told["CapPrm"], 16) == 1 << 12
        assert told["NoNewPrivs"] == "1\n"
        assert told["Seccomp_filters"] >= "2\n"

    _in_the_cage(act)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces")
@pytest.mark.parametrize("backend", ["ns-root", "ns-root-idmap", "ns-user"])
def test_the_rules_of_a_world_can_be_changed(backend):
    """As each backend has it: whose the network is, and who changes its rules from outside."""

    def act():
        if backend == "ns-user":
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            linux.prctl(linux.PR_SET_DUMPABLE, 1)
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            linux.unshare((0 if backend == "ns-root" else linux.CLONE_NEWUSER) | linux.CLONE_NEWNET)
            made = namespace.make(namespace.Plan())
            socket.send_fds(theirs, [b"x"], [made.nft])
            theirs.recv(1)
            os._exit(0)
        _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
        cage.enter()
        before = namespace.Plan(host_ports=(5432,))
        nft.load_rules(fd, before)
        nft.lead_name(fd, bytes((198, 18, 0, 1)))
        ours.close()

    _in_the_cage(act, enter=False)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the headers of another machine")
def test_numbers_of_calls():
    header = "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"
    if not os.path.exists(header):
        pytest.skip("the kernel's headers are not installed")
    with open(header) as file:
        known = dict(line.split()[1:3] for line in file if line.startswith("#define __NR_"))
    for name, (number, _) in cage.REFUSED.items():
        assert known[f"__NR_{name}"] == str(number)
