"""Who holds a socket, of real processes below one that is taken for a world's first."""

import contextlib
import os
import socket
import subprocess
import sys

import pytest

from substrate.world.egress import diag, holders, netlink
from substrate.world.egress.holders import NOBODY, Holder, Holders, printable

#: opens a socket when it is told to, and says its inode; then waits
CHILD = """
import ctypes, os, socket, sys
ctypes.CDLL(None).prctl(15, {name!r}, 0, 0, 0)
kept = [open(os.devnull) for _ in range({files})]
made = socket.socket()
print(os.getpid(), os.fstat(made.fileno()).st_ino, flush=True)
sys.stdin.readline()
made.close()
print("closed", flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def holder(name=b"holds", files=0, above=()):
    """(process, pid, inode) of a process that has a socket open; `above`: words of who starts it."""
    text = CHILD.format(name=name, files=files)
    words = [*above, sys.executable, "-c", text]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        pid, inode = map(int, process.stdout.readline().split())
        yield process, pid, inode
        process.stdin.close()


def test_the_process_that_has_it_open():
    with holder() as (_, pid, inode):
        assert Holders(-1, pid).of_inode(inode) == Holder(pid=pid, program="holds")


def test_a_process_far_below_the_first_one():
    above = ["sh", "-c", '"$@"; true', "sh", "sh", "-c", '"$@"; true', "sh"]
    with holder(above=above) as (process, pid, inode):
        assert pid != process.pid
        assert Holders(-1, process.pid).of_inode(inode).pid == pid
        assert Holders(-1, os.getpid()).of_inode(inode).pid == pid


def test_a_child_of_a_thread():
    text = (
        "import subprocess, sys, threading\n"
        "t = threading.Thread(target=subprocess.run, args=(sys.argv[1:],)); t.start(); t.join()"
    )
    with holder(above=[sys.executable, "-c", text]) as (process, pid, inode):
        assert pid != process.pid
        assert Holders(-1, process.pid).of_inode(inode).pid == pid


def test_who_is_not_below_the_first_process_is_not_looked_at():
    with holder() as (_, pid, inode), holder() as (_, other, _):
        assert pid != other
        assert Holders(-1, other).of_inode(inode) == NOBODY


def test_one_that_was_closed_is_nobodys_though_it_was_known():
    with holder() as (process, pid, inode):
        look = Holders(-1, pid)
        assert look.of_inode(inode).pid == pid
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"closed\n"
        assert look.of_inode(inode) == NOBODY


def test_a_process_that_is_gone():
    with holder() as (process, pid, inode):
        look = Holders(-1, pid)
        assert look.of_inode(inode).pid == pid
        process.kill()
        process.wait()
        assert look.of_inode(inode) == NOBODY
        assert Holders(-1, pid).of_inode(inode) == NOBODY


def test_what_is_known_is_not_looked_for(monkeypatch):
    with holder() as (_, pid, inode):
        look = Holders(-1, pid)
        found = look.of_inode(inode)
        monkeypatch.setattr(Holders, "_search", None)
        assert look.of_inode(inode) == found


def test_one_whose_links_are_for_its_own_user(monkeypatch):
    """As of a world's root that is another user on the host."""

    def refuses(*_):
        raise PermissionError

    asking = netlink.connect(netlink.SOCK_DIAG, "test")
    monkeypatch.setattr(holders, "_link", refuses)
    with contextlib.closing(asking), holder() as (_, pid, inode):
        look = Holders(asking.fileno(), pid)
        assert look.of_inode(inode).pid == pid  # looked for
        assert look.of_inode(inode).pid == pid  # known
        with open(os.devnull) as file:
            other = Holders(asking.fileno(), os.getpid())
            assert other.of_inode(os.fstat(file.fileno()).st_ino) == NOBODY  # no socket
        assert Holders(-1, pid).of_inode(inode) == NOBODY


def test_a_look_is_bounded(monkeypatch):
    with holder(files=100) as (_, pid, inode):
        monkeypatch.setattr(holders, "_MOST_DESCRIPTORS", 50)
        looked = []
        monkeypatch.setattr(holders, "_link", lambda *key: looked.append(key) or "")
        assert Holders(-1, pid).of_inode(inode) == NOBODY
        assert len(looked) <= 50
    above = ["sh", "-c", '"$@"; true', "sh"]
    with holder(above=above) as (process, _, inode):
        monkeypatch.undo()
        monkeypatch.setattr(holders, "_MOST_PROCESSES", 1)
        assert Holders(-1, process.pid).of_inode(inode) == NOBODY


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(holders, "_MOST_KNOWN", 2)
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(holder()) for _ in range(4)]
        look = Holders(-1, os.getpid())
        for _ in range(2):
            for _, pid, inode in found:
                assert look.of_inode(inode).pid == pid
                assert len(look._known) <= 2


def test_a_name_is_the_programs_own_and_cannot_act():
    with holder(name=b"a\x1b[2J b\n\xff") as (_, pid, inode):
        assert Holders(-1, pid).of_inode(inode).program == "a?[2J?b??"
    assert printable(b"x" * 500) == "x" * 64


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_the_two_ends_of_a_connection(address, kind):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    raw = socket.inet_pton(family, address)
    asking = netlink.connect(netlink.SOCK_DIAG, "test")
    with (
        contextlib.closing(asking),
        socket.socket(family, kind) as server,
        socket.socket(family, kind) as client,
    ):
        server.bind((address, 0))
        if kind == socket.SOCK_STREAM:
            server.listen()
        client.connect(server.getsockname())
        protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"
        ends = client.getsockname()[1], raw, server.getsockname()[1]
        look = Holders(asking.fileno(), os.getpid())
        assert look.of(protocol, address, *ends).pid == os.getpid()
        assert look.of(protocol, address, 0, *ends[1:]) == NOBODY
        assert look.of("icmp", address, *ends) == NOBODY
        assert look.of(protocol, "no address", *ends) == NOBODY
        port = ends[0]
    assert look.of(protocol, address, port, raw, 1) == NOBODY  # the diag socket is closed, too


def test_a_failure_to_ask_is_not_known():
    def fails(*_):
        raise OSError(1, "no")

    assert Holders(-1, os.getpid(), fails).of("tcp", "127.0.0.1", 1, b"\x7f\0\0\1", 2) == NOBODY
    found = diag.Found(inode=0, uid=0, state=1)
    assert Holders(-1, os.getpid(), lambda *_: found).of("udp", "::1", 1, b"", 53) == NOBODY
