"""Looking names up in threads: that the bounds hold when the host's resolver hangs."""

import _thread
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from substrate.world.egress import resolve
from substrate.world.egress.loop import Loop
from substrate.world.egress.resolve import Resolver

FOUR = bytes((203, 0, 113, 7))


def info(address, scope=0):
    if ":" in address:
        return (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, 0, 0, scope))
    return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))


class Library:
    """Stands for the host's resolver: counts, answers, or hangs until it is let go."""

    def __init__(self):
        self.asked = []
        self.hang = threading.Event()
        self.hang.set()
        self.answer = [info("203.0.113.7")]

    def __call__(self, name):
        self.asked.append(name)
        assert self.hang.wait(30)
        return self.answer


@pytest.fixture
def library():
    made = Library()
    yield made
    made.hang.set()


@pytest.fixture
def make(no_leak, library):
    loop = Loop()
    made = []

    def maker(**options):
        made.append(Resolver(loop, **{"lookup": library, "idle_s": 0.05, **options}))
        return made[-1], loop

    yield maker
    library.hang.set()
    for resolver in made:
        resolver.close()
    loop.close()
    wait_for(lambda: _thread._count() == 0)


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        os.sched_yield()


def run(loop, condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        loop.run_once(0.05)


def ask(resolver, loop, *names):
    found = []
    for name in names:
        resolver.resolve(name, found.append)
    assert not found, "called from within"
    run(loop, lambda: len(found) == len(names))
    return found


def test_addresses_keep_their_order_without_doubles_and_with_mapped_ones_as_four_bytes(
    make, library
):
    library.answer = [
        info("2001:db8::1"),
        info("203.0.113.7"),
        info("::ffff:203.0.113.7"),
        info("::ffff:198.51.100.1"),
        info("2001:db8::1"),
    ]
    resolver, loop = make()
    (found,) = ask(resolver, loop, "a.example")
    six = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    assert found.addresses == (six, FOUR, bytes((198, 51, 100, 1)))
    assert found.error == ""


@pytest.mark.parametrize("entry", [info("fe80::1", 2), info("fe80::1%eth0")])
def test_an_address_with_a_scope_is_left_out(make, library, entry):
    library.answer = [entry]
    resolver, loop = make()
    (found,) = ask(resolver, loop, "a.example")
    assert found.addresses == ()
    assert found.error == "the host's resolver knows no address that can be used"


def test_the_hosts_own_names_are_found(make):
    resolver, loop = make(lookup=resolve._getaddrinfo)
    (found,) = ask(resolver, loop, "localhost")
    assert bytes((127, 0, 0, 1)) in found.addresses


def test_who_asks_at_once_for_one_name_shares_a_lookup_and_its_answer_is_kept(make, library):
    resolver, loop = make()
    found = ask(resolver, loop, "a.example", "a.example", "b.example")
    assert [each.name for each in found].count("a.example") == 2
    assert sorted(library.asked) == [b"a.example", b"b.example"]
    ask(resolver, loop, "a.example")
    assert len(library.asked) == 2


def test_answers_and_failures_are_not_kept_for_long(make, library, monkeypatch):
    monkeypatch.setattr(resolve, "KEEP_S", 0.0)
    monkeypatch.setattr(resolve, "KEEP_ERROR_S", 0.0)
    resolver, loop = make()
    ask(resolver, loop, "a.example")
    ask(resolver, loop, "a.example")
    library.answer = []
    ask(resolver, loop, "a.example")
    ask(resolver, loop, "a.example")
    assert len(library.asked) == 4


def test_only_so_many_answers_are_kept(make, monkeypatch):
    monkeypatch.setattr(resolve, "_MOST_KEPT", 3)
    resolver, loop = make()
    ask(resolver, loop, *(f"{number}.example" for number in range(9)))
    assert len(resolver._kept) == 3


def test_no_more_threads_than_allowed_are_at_work(make, library):
    library.hang.clear()
    resolver, loop = make(threads=2)
    found = []
    for number in range(6):
        resolver.resolve(f"{number}.example", found.append)
    wait_for(lambda: len(library.asked) == 2)
    assert _thread._count() == 2
    library.hang.set()
    run(loop, lambda: len(found) == 6)
    assert len(library.asked) == 6


def test_threads_that_have_nothing_to_do_end(make):
    resolver, loop = make(idle_s=0.01)
    ask(resolver, loop, "a.example", "b.example")
    wait_for(lambda: _thread._count() == 0)
    assert ask(resolver, loop, "c.example")[0].addresses == (FOUR,)


def test_a_lookup_that_hangs_is_written_off_and_replaced_up_to_a_bound(make, library):
    library.hang.clear()
    resolver, loop = make(threads=1, stuck=2, limit_s=0.05)
    (first,) = ask(resolver, loop, "a.example")
    assert first.error == "the host's resolver gave no answer within 0.05 s"
    (second,) = ask(resolver, loop, "b.example")
    assert second.error == first.error
    assert (resolver.stuck_now, resolver.stuck_ever) == (2, 2)
    (third,) = ask(resolver, loop, "c.example")
    assert third.error == "2 lookups hang in the host's resolver; no more are begun"
    assert library.asked == [b"a.example", b"b.example"]
    library.hang.set()
    run(loop, lambda: resolver.stuck_now == 0)
    (fourth,) = ask(resolver, loop, "d.example")
    assert fourth.addresses == (FOUR,)
    assert resolver.stuck_ever == 2


def test_who_waits_behind_those_that_hang_is_answered_too(make, library):
    library.hang.clear()
    resolver, loop = make(threads=1, stuck=1, limit_s=0.05)
    errors = [each.error for each in ask(resolver, loop, "a.example", "b.example", "c.example")]
    assert errors[0] == "the host's resolver gave no answer within 0.05 s"
    assert all(errors)


def test_the_queue_is_bounded(make, library):
    library.hang.clear()
    resolver, loop = make(threads=1, queue=2)
    found = []
    for number in range(4):
        resolver.resolve(f"{number}.example", found.append)
    run(loop, lambda: found)
    assert [each.error for each in found] == ["2 lookups wait already"]
    assert found[0].name == "3.example"


@pytest.mark.parametrize("name", ["", "a\0b", "ä.example"])
def test_what_is_no_name_is_not_looked_up(make, library, name):
    resolver, loop = make()
    assert ask(resolver, loop, name)[0].error == "not a name that can be looked up"
    assert library.asked == []


def test_nobody_is_called_after_close(library, no_leak):
    loop = Loop()
    library.hang.clear()
    resolver = Resolver(loop, lookup=library, idle_s=0.05)
    found = []
    resolver.resolve("a.example", found.append)
    wait_for(lambda: library.asked)
    resolver.close()
    library.hang.set()
    wait_for(lambda: _thread._count() == 0)
    loop.run_once(0)
    assert found == []
    loop.close()


#: a namespace with a nameserver of its own: 127.0.0.1, where one may listen that says nothing
REAL = """
import os, socket, subprocess, sys, time
from substrate.world import linux
linux.unshare(linux.CLONE_NEWNET | linux.CLONE_NEWNS)
linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
with open(sys.argv[1], "w") as file:
    file.write("nameserver 127.0.0.1\\n")
linux.mount(sys.argv[1], os.path.realpath("/etc/resolv.conf"), None, linux.MS_BIND)
subprocess.run(("ip", "link", "set", "lo", "up"), check=True)
if sys.argv[2] == "silent":
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    silent.bind(("127.0.0.1", 53))
from substrate.world.egress.loop import Loop
from substrate.world.egress.resolve import Resolver
loop = Loop()
resolver = Resolver(loop, limit_s=0.3 if sys.argv[2] == "silent" else 10)
found = []
begun = time.monotonic()
resolver.resolve("name.example", found.append)
while not found: loop.run_once(1)
print(found[0].error, resolver.stuck_now, time.monotonic() - begun < 5)
sys.stdout.flush()
resolver.close()
os._exit(0)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")
@pytest.mark.parametrize(
    ("nameserver", "expected"),
    [
        ("none", "Temporary failure in name resolution 0 True\n"),
        ("silent", "the host's resolver gave no answer within 0.3 s 1 True\n"),
    ],
)
def test_the_real_resolver_fails_with_its_own_text_or_hangs(tmp_path, nameserver, expected):
    ran = subprocess.run(
        [sys.executable, "-c", REAL, str(tmp_path / "resolv.conf"), nameserver],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert ran.stdout == expected, ran.stderr
