"""Whoever sees a connection arrive knows which process made it, by its source port (ports.py).

The peers are ours, outside the captured tree: they note who came and when, as an egress listener does,
and what the captured programs say of themselves is the truth that the capture is compared with."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass

import pytest

from substrate.telemetry.capture.decode import Decoder, Scope
from substrate.telemetry.capture.programs import UNKNOWN
from substrate.telemetry.capture.python_backend import PythonBackend
from substrate.telemetry.trace.ids import new_span_id
from tests.telemetry.capture.captured import Running, parse
from tests.telemetry.capture.record_capture import bpf_missing, engine_missing, python_missing
from tests.telemetry.capture.traced_command import Traced

MISSING = {
    "hybrid": engine_missing,
    "ptrace": engine_missing,
    "python": python_missing,
    "bpf": bpf_missing,
    "notify": engine_missing,
}
CAN = ("hybrid", "ptrace", "python", "bpf")
FAMILIES = {4: (socket.AF_INET, "127.0.0.1"), 6: (socket.AF_INET6, "::1")}
SERVER_OF = {4: 4, 6: 6, 46: 4}
LIMIT_S = 120.0
#: those that reach out
CALLS = ("connect", "sendto", "sendmsg", "sendmmsg")


@pytest.fixture(params=CAN)
def backend(request):
    if reason := MISSING[request.param]():
        pytest.skip(f"{request.param}: {reason}")
    return request.param


@dataclass
class Seen:
    raw: bytes
    stdout: bytes
    root: int
    status: int

    def lines(self):
        return [line.split() for line in self.stdout.decode().splitlines()]

    def decoded(self):
        count = itertools.count(1)
        made = Decoder(
            Scope(
                root_tid=self.root,
                span=new_span_id(),
                cwd=b"/",
                number=lambda: next(count),
                program=lambda path: UNKNOWN,
            )
        )
        made.feed(self.raw)
        return made, made.finish()


def run(backend, argv, **options):
    argv = [str(word) for word in argv]
    if backend == "python":
        with contextlib.closing(PythonBackend(level="files")) as tracer:
            traced = Traced(argv, tracer, **options)
            done = traced.finish()
            seen = Seen(traced.raw(), done.out, done.pid, done.status)
    else:
        with Running(argv, backend, **options) as running:
            running.go()
            found = running.wait(LIMIT_S)
            seen = Seen(found.raw, found.stdout, running.pid, found.status)
    assert seen.status == 0, seen.stdout[-300:]
    return seen


class Peer(threading.Thread):
    """Takes what comes: `came` has (source address and port, CLOCK_BOOTTIME µs, local address, text)."""

    def __init__(self, family, kind, host=None):
        super().__init__(daemon=True)
        number, loopback = FAMILIES[family]
        self.socket = socket.socket(number, kind)
        # so that only this host reaches it, also where it takes any address
        self.socket.setsockopt(socket.SOL_SOCKET, 25, b"lo\0")  # SO_BINDTODEVICE
        self.socket.bind((loopback if host is None else host, 0))
        self.port = self.socket.getsockname()[1]
        self.kind, self.came = kind, []
        if kind == socket.SOCK_STREAM:
            self.socket.listen(1024)
        else:
            self.socket.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
        self._hears, self._ends = os.pipe()

    def run(self):
        poll = select.poll()
        for fd in (self.socket.fileno(), self._hears):
            poll.register(fd, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if self.socket.fileno() in ready:
                self._take()
            elif self._hears in ready:
                return

    def _take(self):
        if self.kind == socket.SOCK_DGRAM:
            text, told, _, source = self.socket.recvmsg(512, 64)
            ((_, _, stamp),) = told  # when it came: a busy machine reads it later
            seconds, ns = struct.unpack("=qq", stamp)
            late_ns = time.time_ns() - seconds * 10**9 - ns
            self.came.append((source[:2], boot_us() - late_ns // 1000, None, text))
            return
        accepted, source = self.socket.accept()
        now = boot_us()
        try:
            self.came.append((source[:2], now, accepted.getsockname()[0], b""))
        finally:
            accepted.close()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        """All that has come before is taken."""
        os.close(self._ends)
        self.join(LIMIT_S)
        os.close(self._hears)
        self.socket.close()


def boot_us():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def pids(events):
    """Number of a process -> its pid on the host."""
    return {
        e.body["proc"]: e.body["host_pid"]
        for e in events
        if e.event_type in ("process_fork", "process_start")
    }


def test_a_descriptor_that_is_another_one_afterwards_tells_no_port(backend, programs):
    with both_families() as (_, udp):
        seen = run(backend, [programs.path("ports"), "flips", udp, 2000])
    port_of = {name.encode(): int(port) for name, _, _, port in seen.lines()}
    connects = [r for r in parse(seen.raw) if r.call == "connect"]
    told = [(r.items["base"], r.items["local"]) for r in connects if "local" in r.items]
    assert len(connects) == 2000 and len(told) > 100
    wrong = [base for base, item in told if struct.unpack(">H", item[2:4])[0] != port_of[base]]
    assert wrong == []


def test_a_backend_that_sees_no_results_tells_no_ports(programs):
    if reason := MISSING["notify"]():
        pytest.skip(reason)
    with both_families() as (tcp, udp):
        seen = run("notify", [programs.path("ports"), "kinds", tcp, udp])
    assert [r for r in parse(seen.raw) if r.call == "connect"]
    assert not [r for r in parse(seen.raw) if "local" in r.items]


#: in a network and with a resolver of its own: a server, and a child that asks it by libc
ASK = """
import ctypes, os, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x40000000 | 0x00020000):  # CLONE_NEWNET, CLONE_NEWNS
    sys.exit(77)
if libc.mount(None, b"/", None, 0x44000, None):  # MS_PRIVATE, MS_REC
    sys.exit(77)
if libc.mount(sys.argv[1].encode(), b"/etc/resolv.conf", None, 0x1000, None):  # MS_BIND
    sys.exit(77)
import fcntl
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh22x", b"lo", 1))  # SIOCSIFFLAGS: up
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
server.settimeout(20)
child = os.fork()
if not child:
    try:
        socket.getaddrinfo("a.name.example", 80)
    except socket.gaierror:
        os._exit(0)
    os._exit(1)
for _ in range(2):
    question, (_, port) = server.recvfrom(512)
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
    server.sendto(question[:2] + b"\\x81\\x83" + question[4:], ("127.0.0.1", port))
    print(child, port, now, flush=True)
sys.exit(os.waitpid(child, 0)[1])
"""


def test_who_asks_a_name_server_by_libc_is_known(backend, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("a name server of its own needs root")
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:5 attempts:1\n")
    asks = ["/usr/bin/python3", "-I", "-S", "-c", ASK, resolver]
    seen = run(backend, asks)
    made, events = seen.decoded()
    pid_of = pids(events)
    lines = seen.lines()
    assert len(lines) == 2  # A and AAAA
    for child, port, now in lines:
        assert pid_of[made.ports.owner("udp", int(port), int(now))] == int(child)
    asked = [e.body for e in events if e.event_type == "dns_query"]
    assert {pid_of[b["proc"]] for b in asked} == {int(lines[0][0])}


@pytest.mark.parametrize("family", [4, 6, 46])
def test_each_of_many_short_connections_is_known_by_its_port(backend, programs, family):
    times = 1000 if family == 4 else 200
    with Peer(SERVER_OF[family], socket.SOCK_STREAM) as peer:
        seen = run(backend, [programs.path("ports"), "crowd", family, peer.port, times, 16])
    made, events = seen.decoded()
    pid_of = pids(events)
    told = Counter((int(tid), int(port)) for _, _, tid, port in seen.lines())
    assert sum(told.values()) == times == len(peer.came)
    where = (FAMILIES[SERVER_OF[family]][1], peer.port)
    found = Counter()
    for (ip, port), when, _, _ in peer.came:
        owner = made.ports.owner("tcp", port, when, where)
        assert owner is not None and owner == made.ports.owner("tcp", port, when)
        found[pid_of[owner], port] += 1
        assert ip == where[0]
    assert found == told
    connects = [e.body for e in events if e.event_type == "net_connect"]
    assert Counter((pid_of[b["proc"]], b["local_port"]) for b in connects) == told
    assert {b["local_ip"] for b in connects} == {where[0]}


def test_who_connects_and_is_gone_at_once_is_known(backend, programs):
    """The call does not wait, and no other one follows it. Each goes to an address of its own, which
    says on both sides who it is; ports may be shared."""
    times = 300
    with Peer(4, socket.SOCK_STREAM, "0.0.0.0") as peer:
        seen = run(backend, [programs.path("ports"), "hasty", peer.port, times])
    made, events = seen.decoded()
    owner_of = {e.body["ip"]: e.body["proc"] for e in events if e.event_type == "net_connect"}
    assert len(owner_of) == len(set(owner_of.values())) == times
    assert len(peer.came) == times
    for (_, port), when, ip, _ in peer.came:
        assert made.ports.owner("tcp", port, when, (ip, peer.port)) == owner_of[ip]


@pytest.mark.parametrize("family", [4, 6, 46])
def test_who_sends_from_a_socket_that_is_bound_to_nothing_is_known(backend, programs, family):
    with Peer(SERVER_OF[family], socket.SOCK_DGRAM) as peer:
        seen = run(backend, [programs.path("ports"), "datagrams", family, peer.port, 100])
    made, events = seen.decoded()
    pid_of = pids(events)
    assert len(peer.came) == 100
    for (_, port), when, _, text in peer.came:
        assert pid_of[made.ports.owner("udp", port, when)] == int(text)
    assert not any("local_ip" in e.body for e in events if e.event_type == "net_connect")


def test_each_way_to_reach_out_tells_its_port_and_no_other(backend, programs):
    with both_families() as (tcp, udp):
        seen = run(backend, [programs.path("ports"), "kinds", tcp, udp])
    assert len(seen.lines()) == 24
    assert found_in(seen) == told_in(seen)


def told_in(seen):
    """(call, tid, number of the protocol, port) as the program says it; zeros where there is no port."""
    numbers = {"tcp": 6, "udp": 17}
    return [
        (name, int(tid), numbers.get(protocol, 0) if port != "0" else 0, int(port))
        for name, protocol, tid, port in seen.lines()
    ]


def found_in(seen):
    """The same, as it was captured."""
    found = []
    for record in parse(seen.raw):
        if record.kind == "call" and record.call in CALLS:
            item = record.items.get("local", b"\0\0\0\0")
            number, port = struct.unpack("=H", item[:2])[0], struct.unpack(">H", item[2:4])[0]
            found.append((record.call, record.tid, number, port))
    return found


def test_calls_of_32_bits_tell_their_ports(backend, programs):
    if subprocess.run([programs.path("compat"), "probe"], stdin=subprocess.DEVNULL).returncode:
        pytest.skip("no i386 calls here")
    with both_families() as (tcp, udp):
        seen = run(backend, [programs.path("ports"), "narrow", tcp, udp])
    told = told_in(seen)
    assert len(told) == 3
    # of bpf socketcall(2) stays what it is (test_completeness.py)
    assert found_in(seen) == (told[:1] if backend == "bpf" else told)


@contextlib.contextmanager
def both_families():
    """A port of TCP and one of UDP, at which both families are listened to."""
    with contextlib.ExitStack() as stack:
        found = []
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            first, second = pair_of(kind)
            for one in (first, second):
                stack.callback(one.close)
                if kind == socket.SOCK_STREAM:
                    one.listen(64)
            found.append(first.getsockname()[1])
        yield found


def pair_of(kind):
    for _ in range(20):
        first, second = socket.socket(socket.AF_INET, kind), socket.socket(socket.AF_INET6, kind)
        second.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        first.bind(("127.0.0.1", 0))
        try:
            second.bind(("::1", first.getsockname()[1]))
            return first, second
        except OSError:  # another one's in this family
            first.close()
            second.close()
    raise AssertionError("no port is free in both families")
