"""A routed network (`--net veth`) on the client of tests/nethosts, which forwards here as a host may.

What reaches a server and what does not, by the servers' own logs and the wire; what the record says
of it; that nothing is left on the host. Needs root, as the mode does.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from substrate.world.egress.nft import TABLE
from tests.nethosts import plan
from tests.nethosts.fixtures import hosts, internet
from tests.nethosts.hosts import Hosts
from tests.nethosts.seen import until
from tests.system.client_run import Place
from tests.system.egress_scene import Scene, children, engine_of, is_gone, is_world, status_of

__all__ = ["hosts", "internet"]

FORWARD = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
VETH = ("--net", "veth")
PYTHON = "/usr/bin/python3"
PROJECT = Path(__file__).resolve().parents[2]
#: headers of a datagram without options
UDP4, UDP6 = 28, 48
NOTES = "203.0.113.91"
#: names of the tables of the packet filter in a network namespace, by a dump (NFT_MSG_GETTABLE)
_TABLES = """
import socket, struct
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
s.sendto(struct.pack("=IHHII", 20, 10 << 8 | 1, 0x301, 1, 0) + bytes(4), (0, 0))
found, more = [], True
while more:
    data = s.recv(65536)
    while data:
        size, kind = struct.unpack_from("=IH", data)
        if kind in (2, 3):
            more = False
        elif b"substrate" in data[:size]:
            found.append("table")
        data = data[size + -size % 4:]
print(len(found))
"""


def left_on(hosts: Hosts) -> list[str]:
    """Links, addresses, routes and tables of ours on the client."""
    found = []
    for what in ("link", "address", "route", "neighbour"):
        lines = hosts.client.run("ip", "-o", what, "show").splitlines()
        found += [f"{what}: {line}" for line in lines if "substrate" in line]
    count = int(hosts.client.run(sys.executable, "-c", _TABLES))
    return found + ["table"] * count


@pytest.fixture
def host(hosts: Hosts):
    """The client as a host that forwards. At the end nothing of ours may be left on it."""
    hosts.client.configure(dict.fromkeys(FORWARD, 1), [])
    yield hosts
    try:
        assert left_on(hosts) == []
    finally:
        hosts.client.configure(dict.fromkeys(FORWARD, 0), [])


@pytest.fixture(scope="session")
def listener(internet):
    """Takes datagrams and does not answer."""
    return internet.serve("notes.example.net", (NOTES,), (), "raw", ports={}, udp_ports=(7,))


@pytest.fixture
def root_of(request):
    """The caller of a root's backend."""

    def choose(backend):
        caller = request.getfixturevalue({"ns-root-idmap": "idmap", "ns-root": "root"}[backend])
        caller.forget()
        shutil.copyfile(Path(__file__).with_name("veth_talk.py"), caller.work / "talk.py")
        return caller

    return choose


@pytest.fixture
def place(host, root_of):
    return Place(hosts=host, caller=root_of("ns-root-idmap"))


@pytest.fixture(params=["ns-root-idmap", "ns-root"])
def every_place(request, host, root_of):
    return Place(hosts=host, caller=root_of(request.param))


@pytest.fixture
def scene(place):
    return Scene(place.hosts, place.caller)


def talk(place, *words, options=()):
    """What came of the words in a world, and the run."""
    line = f"{PYTHON} -I -S talk.py " + " ".join(f"'{word}'" for word in words)
    ran = place.run(line, *VETH, *options)
    return [json.loads(told) for told in ran.stdout.splitlines()], ran


def is_python(ran, body):
    """Whether an event is of the program that talks."""
    return ran.program(body["proc"]).startswith("python3")


def one_of(ran, kind, **wanted):
    """The body of the one event of a kind that says this."""
    (found,) = [b for b in ran.of(kind) if wanted.items() <= b.items()]
    return found


# --- what is reached


def test_ping(every_place):
    for address, program in ((plan.UDP[0], "ping -4"), (plan.UDP[1], "ping -6")):
        ran = every_place.run(f"{program} -c 2 -i 0.01 -W 2 {address}", *VETH)
        assert b"2 received" in ran.stdout
        name = "icmpv6" if ":" in address else "icmp"
        size = 2 * (84 if name == "icmp" else 104)
        shown = f"[{address}]" if ":" in address else address
        assert ran.scopes == {
            f"{name}://{address}": {
                "connections": 1,
                "refused": 0,
                "bytes_in": size,
                "bytes_out": size,
            }
        }, shown
        body = one_of(ran, "net_connect", protocol=name)
        assert (body["ip"], body["port"], body["decision"]) == (address, 0, "allow")


@pytest.mark.parametrize("which", [0, 1], ids=["ipv4", "ipv6"])
def test_datagrams(every_place, which):
    """As DNS and QUIC send them: counted to the byte, and of the process whose they are."""
    server = every_place.hosts.udp
    address, header = plan.UDP[which], (UDP4, UDP6)[which]
    host = f"[{address}]" if which else address
    told, ran = talk(every_place, f"udp:{host}:7:40:5", f"udp:{host}:443:1200:20")
    assert told == [200, 24000]
    seen = [(d.local[1], d.size) for d in server.datagrams()]
    assert seen == [(7, 40)] * 5 + [(443, 1200)] * 20
    for port, size, count in ((7, 40, 5), (443, 1200, 20)):
        counted = sum(d.size + header for d in server.datagrams() if d.local[1] == port)
        assert counted == count * (size + header)
        assert ran.scopes[f"udp://{host}:{port}"] == {
            "connections": 1,
            "refused": 0,
            "bytes_in": counted,
            "bytes_out": counted,
        }
        body = one_of(ran, "net_connect", port=port, protocol="udp")
        assert (body["ip"], body["decision"], body["rule"]) == (address, "allow", None)
        assert is_python(ran, body)
        close = one_of(ran, "net_close", connection=body["connection"])
        assert (close["packets_in"], close["packets_out"]) == (count, count)
        assert (close["bytes_in"], close["proc"]) == (counted, body["proc"])
    # what the server sees is the host, not the world
    masked = plan.CLIENT6 if which else plan.CLIENT
    assert {d.peer[0] for d in server.datagrams()} == {masked}
    every_place.caller.verify()


def _wire(hosts):
    """Bytes of IPv4 packets that the servers' machine has received and sent."""
    lines = hosts.server.run("cat", "/proc/net/netstat").splitlines()
    names, counts = (line.split() for line in lines if line.startswith("IpExt:"))
    known = dict(zip(names, counts, strict=True))
    return int(known["InOctets"]), int(known["OutOctets"])


def test_connections(every_place):
    """Of bytes of packets, as the server's end of the wire counts them; of their content, what the server says."""
    server = every_place.hosts.raw
    address = server.address
    before = _wire(every_place.hosts)
    told, ran = talk(every_place, f"tcp:{address}:7:300000")
    after = _wire(every_place.hosts)
    assert told == [300000]
    (seen,) = server.wait_closed()
    assert (seen.received, seen.sent) == (300000, 300000)
    assert seen.peer[0] == plan.CLIENT
    (scope,) = ran.scopes.items()
    assert scope[0] == f"tcp://{address}:7"
    went, came = (late - early for late, early in zip(after, before, strict=True))
    assert (scope[1]["bytes_out"], scope[1]["bytes_in"]) == (went, came)
    assert 300000 < went < 330000
    body = one_of(ran, "net_connect", port=7)
    assert (body["ip"], body["protocol"], body["reason"]) == (address, "tcp", "no rule denies it")
    assert is_python(ran, body)
    close = one_of(ran, "net_close", connection=body["connection"])
    assert "reason" not in close and 0 < close["duration_us"] < 5_000_000


def test_what_was_sent_leaves_before_the_end(place):
    """A program that writes and ends has sent; the network waits for that."""
    server = place.hosts.raw
    place.run(f"head -c 3000000 /dev/zero > /dev/tcp/{server.address}/9", *VETH)
    (seen,) = server.wait_closed()
    assert (seen.received, seen.failure) == (3000000, "")


def test_names(every_place):
    """By the host's name servers, over UDP and TCP; each question is an event, with its answer."""
    assert every_place.hosts.plain.address
    ran = every_place.run(
        "curl -sS http://plain.example.net/ && dig +tcp +short six.example.net AAAA"
        " && dig +short nobody.example.net; getent hosts lost.example.net",
        *VETH,
    )
    assert ran.stdout.split()[0] == b"plain.example.net"
    assert plan.SIX[0].encode() in ran.stdout
    asked = {(b["domain"], b["qtype"], b["rcode"]): b for b in ran.of("dns_query")}
    assert asked["plain.example.net", "A", "NOERROR"]["answers"] == [plan.PLAIN[0]]
    assert asked["six.example.net", "AAAA", "NOERROR"]["answers"] == [plan.SIX[0]]
    assert ("nobody.example.net", "A", "NXDOMAIN") in asked
    assert ran.program(asked["plain.example.net", "A", "NOERROR"]["proc"]) == "curl"
    # the questions themselves are no connections of the world
    assert not [name for name in ran.scopes if name.endswith(":53")]
    every_place.caller.verify()


_NO_QUESTIONS = r"""
import socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    one.settimeout(5)
    for word in (b"\5plain\0\0\1\0\3", b"\5plain\0\0\374\0\1"):  # CHAOS; a transfer
        one.sendto(b"id\1\0\0\1\0\0\0\0\0\0" + word, ("{server}", 53))
        print(one.recv(512)[3] & 15)
with socket.create_connection(("{server}", 53), 5) as one:
    one.sendall(b"\xff\xff")
    print(one.recv(1))
"""


def test_what_is_no_good_question_is_counted(place):
    """It does not go on to a name server; the record says how many there were."""
    (place.caller.work / "no_questions.py").write_text(_NO_QUESTIONS.format(server=plan.DNS[0]))
    ran = place.run(f"{PYTHON} -I -S no_questions.py", *VETH)
    assert ran.stdout == b"5\n5\nb''\n"
    assert place.hosts.packets() == []
    (text,) = [
        text
        for body in ran.of("coverage")
        for text in body["blind_spots"]
        if "no good question" in text
    ]
    assert text.endswith("one by one: 3; the first: class 3: expected IN")


def test_a_name_server_on_the_hosts_loopback(place):
    """As systemd-resolved is: no packet of the world could get there."""
    place.hosts.serve(
        "stub", ("127.0.0.53",), (53,), "dns", on=place.hosts.client, udp_ports=(53,),
        records=str(place.hosts.base / "stub.records"),
    )  # fmt: skip
    (place.hosts.base / "stub.records").write_text(
        json.dumps({"stub.example.net": {"A": ["203.0.113.77"]}})
    )
    before = place.hosts.resolv_conf.read_text()
    try:
        place.hosts.resolv_conf.write_text("nameserver 127.0.0.53\n")
        ran = place.run("getent ahostsv4 stub.example.net", *VETH)
        assert b"203.0.113.77" in ran.stdout
        # a rule that denies the server takes it away
        ran = place.run("getent ahostsv4 stub.example.net", *VETH, "--deny", "127.0.0.53", status=2)
        assert [b for b in ran.of("dns_query") if b["decision"] != "observed"] == []
    finally:
        place.hosts.resolv_conf.write_text(before)


def test_a_name_server_that_does_not_answer(place):
    """The next one is asked; and first from then on."""
    before = place.hosts.resolv_conf.read_text()
    try:
        place.hosts.resolv_conf.write_text(
            f"nameserver {plan.BLACK_HOLE}\nnameserver {plan.DNS[0]}\n"
        )
        ask = "dig +short +tries=1 +timeout=10 plain.example.net A"
        ran = place.run(f"{ask}; {ask} | tr '0' 'o'", *VETH)
        assert ran.stdout == b"203.0.113.10\n2o3.o.113.1o\n"
        assert 3_000_000 < ran.end["duration_us"] < 6_000_000
        place.hosts.resolv_conf.write_text(f"nameserver {plan.BLACK_HOLE}\n")
        ran = place.run(ask, *VETH)
        assert b"SERVFAIL" in ran.stdout or ran.stdout == b""
        (body,) = [b for b in ran.of("dns_query") if b["decision"] == "allow"]
        assert (body["rcode"], body["answers"]) == ("SERVFAIL", [])
        assert body["reason"] == f"{plan.BLACK_HOLE} gave no answer within 3 s"
    finally:
        place.hosts.resolv_conf.write_text(before)


def test_a_question_that_nobody_waits_for_is_told(place, scene):
    """Of a program that asks as its last word, while who serves is not scheduled."""
    ask = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
        "[s.sendto(b'id\\1\\0\\0\\1' + bytes(6) + b'\\5plain\\7example\\3net\\0\\0\\1\\0\\1',"
        f" ('{plan.DNS[0]}', 53)) for _ in range(200)]"
    )
    line = f'echo ready; read x; {PYTHON} -I -S -c "{ask}"; echo asked'
    process = scene.start(line, options=VETH)
    assert process.stdout.readline() == b"ready\n", process.stderr.read()
    network = engine_of(process.pid, scene.hosts.client.namespaces()["net"])
    os.kill(network, signal.SIGSTOP)
    try:
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"asked\n"
        time.sleep(0.5)  # until the world is over
    finally:
        os.kill(network, signal.SIGCONT)
    process.communicate(timeout=20)
    told = [b for b in scene.told("dns_query") if b["decision"] == "allow"]
    assert len(told) == 200
    assert {b["domain"] for b in told} == {"plain.example.net"}


def test_a_name_server_that_is_denied_is_asked_no_more(place, scene):
    """Nor for what was asked before: whoever denied it relies on that."""
    before = place.hosts.resolv_conf.read_text()
    try:
        place.hosts.resolv_conf.write_text(
            f"nameserver {plan.BLACK_HOLE}\nnameserver {plan.DNS[0]}\n"
        )
        line = "echo ready; dig +short +tries=1 +timeout=10 plain.example.net A"
        process = scene.start(line, options=VETH)
        assert process.stdout.readline() == b"ready\n", process.stderr.read()
        time.sleep(0.5)  # for its question
        began = time.monotonic()
        place.hosts.run(
            [place.caller.command, "net", "deny", plan.DNS[0]],
            cwd=place.caller.work, env=place.caller.environ,
        )  # fmt: skip
        process.communicate(timeout=20)
    finally:
        place.hosts.resolv_conf.write_text(before)
    assert time.monotonic() - began > 1
    assert place.hosts.names.queries() == []
    (body,) = [b for b in scene.told("dns_query") if b["decision"] == "allow"]
    assert (body["rcode"], body["answers"]) == ("SERVFAIL", [])


_MANY = """
import socket
count = 0
for number in range({count}):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 10000 + number))
        try:
            sock.sendto(b"x", ("{address}", 7))
            count += 1
        except OSError:
            pass
print(count)
"""


def _many(place, count, address):
    """How many of so many datagrams, each from another port, were sent; and the run."""
    program = place.caller.work / "many.py"
    program.write_text(_MANY.format(count=count, address=address))
    ran = place.run(f"{PYTHON} -I -S many.py", *VETH)
    return int(ran.stdout), ran


def test_each_of_many_is_told(place, listener):
    """As fast as one program can make them."""
    listener.forget()
    sent, ran = _many(place, 1500, NOTES)
    assert sent == len(listener.datagrams()) == 1500
    scope = ran.scopes[f"udp://{NOTES}:7"]
    assert (scope["connections"], scope["bytes_out"]) == (sent, sent * (UDP4 + 1))
    told = [b for b in ran.of("net_connect") if b["decision"] == "allow"]
    assert {b["client_port"] for b in told} == {d.peer[1] for d in listener.datagrams()}
    assert all(is_python(ran, body) for body in told)
    assert len(ran.of("net_close")) == sent
    place.caller.verify()


def test_no_more_at_a_time_than_the_host_is_to_bear(place):
    """The rest is refused in the world, and told."""
    lost = "198.51.100.128/25"
    place.hosts.client.configure({}, [f"route add blackhole {lost}"])
    try:
        sent, ran = _many(place, 6000, "198.51.100.200")
    finally:
        place.hosts.client.configure({}, [f"route del blackhole {lost}"])
    assert 4096 <= sent <= 4200
    scope = ran.scopes["udp://198.51.100.200:7"]
    assert (scope["connections"], scope["bytes_out"]) == (sent, sent * (UDP4 + 1))
    texts = [text for body in ran.of("coverage") for text in body["blind_spots"]]
    missing = sum(int(t.split()[0]) for t in texts if "refused packets were not recorded" in t)
    assert scope["refused"] + missing == 6000 - sent
    assert "there are 4096 connections already" in ran.told[0]


def test_owners_without_capture(place):
    """The socket is looked up while it is there."""
    assert place.hosts.udp.address
    told, ran = talk(place, f"udp:{plan.UDP[0]}:7:40:2000", options=["--capture", "off"])
    assert told == [80000]
    body = one_of(ran, "net_connect", protocol="udp")
    assert body["program"] == "python3"


_BY_TURNS = """
import os, socket
there, back = os.pipe(), os.pipe()
child = os.fork()
mine, other = (back[0], there[1]) if child else (there[0], back[1])
if child:
    os.write(back[1], b"x")
for _ in range(10):
    os.read(mine, 1)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1\\0\\0\\0\\0\\0\\0\\0")
        sock.bind(("0.0.0.0", 33000))
        sock.connect(("{address}", 7))
        sock.sendall(b"x")
        sock.recv(1)
    os.write(other, b"x")
if child:
    os.wait()
    print(child)
"""


def test_a_port_that_is_used_again_at_once(place):
    """By another process, for the same place: each connection is its maker's, or nobody's."""
    program = place.caller.work / "turns.py"
    program.write_text(_BY_TURNS.format(address=place.hosts.raw.address))
    ran = place.run(f"{PYTHON} -I -S turns.py", *VETH)
    forked = {b["pid"]: b["proc"] for b in ran.of("process_fork")}
    child = forked[int(ran.stdout)]
    made = [b for b in ran.of("net_connect") if b["decision"] == "allow" and b["port"] == 7]
    owners = [b.get("proc") for b in sorted(made, key=lambda b: b["connection"])]
    assert len(owners) == 20
    assert owners[0] not in (None, child)
    wrong = [n for n, who in enumerate(owners) if who is not None and (who == child) != n % 2]
    assert wrong == []


# --- what is not


SPECIAL = (plan.METADATA[0], *plan.PRIVATE)


def test_special_addresses_are_refused(every_place):
    hosts = every_place.hosts
    assert hosts.private.address and hosts.metadata.address
    words = [f"connect:{'[' + a + ']' if ':' in a else a}:80" for a in SPECIAL]
    words += [f"udp:{plan.PRIVATE[0]}:53:40:1", "connect:127.0.0.1:80", "udp:224.0.0.251:5353:40:1"]
    told, ran = talk(every_place, *words)
    assert set(told) <= {"ECONNREFUSED", "EACCES", "EPERM", "EHOSTUNREACH"}, told
    assert hosts.packets() == []
    refused = {(b["ip"], b["port"], b["protocol"]) for b in ran.of("net_connect")}
    assert refused >= {(address, 80, "tcp") for address in SPECIAL}
    assert (plan.PRIVATE[0], 53, "udp") in refused
    (told_of,) = [line for line in ran.told if plan.METADATA[0] in line]
    assert told_of == (
        f"{plan.METADATA[0]}:80: {plan.METADATA[0]} is special (metadata): only a private range or a rule of it"
        f" opens it; --private {plan.METADATA[0]} allows it"
    )
    assert ran.who[0].startswith("python3")


def test_private_opens(place):
    assert place.hosts.private.address and place.hosts.metadata.address
    first, second = plan.PRIVATE[:2]
    words = [f"connect:{a}:80" for a in (first, second, plan.METADATA[0])]
    told, _ = talk(place, *words, options=["--private", "10.0.0.0/8"])
    assert told == ["done", "ECONNREFUSED", "ECONNREFUSED"]
    told, _ = talk(place, *words, options=["--private", plan.METADATA[0]])
    assert told == ["ECONNREFUSED", "ECONNREFUSED", "done"]
    # a wide range opens no special one inside of it
    told, ran = talk(place, *words, options=["--allow", "169.254.0.0/16", "--allow", "0.0.0.0/0"])
    assert told == ["ECONNREFUSED"] * 3
    told, ran = talk(place, *words, options=["--allow", "169.254.169.254:80"])
    assert told == ["ECONNREFUSED", "ECONNREFUSED", "done"]
    assert one_of(ran, "net_connect", decision="allow")["rule"] == "169.254.169.254:80"


def test_the_host_itself_is_refused(every_place):
    """Its own addresses, the other end of the link, services on any of them; unless they are listed."""
    hosts = every_place.hosts
    own = hosts.serve("own", (plan.CLIENT, plan.CLIENT6), (8000,), "http", on=hosts.client)
    try:
        words = [f"connect:{plan.CLIENT}:8000", f"connect:[{plan.CLIENT6}]:8000"]
        told, _ = talk(every_place, *words)
        assert set(told) <= {"ECONNREFUSED", "EACCES"}
        gateway = "$(ip route show default | cut -d' ' -f3)"
        line = f"curl -sS -m 2 http://{gateway}:8000/ || ping -c1 -W1 {gateway}"
        ran = every_place.run(line, *VETH, status=None)
        assert b"own" not in ran.stdout and b"1 received" not in ran.stdout
        assert own.connections() == []
        told, _ = talk(every_place, *words, options=["--private", plan.CLIENT])
        assert told[0] == "done" and told[1] != "done"
        told, _ = talk(every_place, *words, options=["--allow", f"{plan.CLIENT}:8000"])
        assert told[0] == "done" and told[1] != "done"
        told, _ = talk(every_place, *words, options=["--allow", f"{plan.CLIENT}:8001"])
        assert told[0] != "done"
    finally:
        own.stop()


def test_allow_is_a_list(place):
    """With one rule nothing else is reached."""
    assert place.hosts.udp.address and place.hosts.raw.address
    words = [f"udp:{plan.UDP[0]}:7:10:1", f"udp:{plan.UDP[0]}:443:10:1", f"tcp:{plan.RAW[0]}:7:10"]
    told, ran = talk(place, *words, options=["--allow", f"udp://{plan.UDP[0]}:7"])
    assert told[0] == 10 and told[1] == "EPERM" and told[2] == "ECONNREFUSED"
    assert [packet.port for packet in place.hosts.packets()] == [7]
    hints = [line.rpartition("; ")[2] for line in ran.told]
    assert hints == [
        f"--allow udp://{plan.UDP[0]}:443 allows it",
        f"--allow tcp://{plan.RAW[0]}:7 allows it",
    ]
    told, _ = talk(place, *words, options=["--allow", f"{plan.UDP[0]}:1-500"])
    assert told[:2] == [10, 10] and told[2] == "ECONNREFUSED"
    ran = place.run(
        f"ping -c1 -W1 {plan.UDP[0]}", *VETH, "--allow", f"{plan.UDP[0]}:7", status=None
    )
    assert b"1 received" not in ran.stdout
    ran = place.run(f"ping -c1 -W1 {plan.UDP[0]}", *VETH, "--allow", "203.0.113.0/24")
    assert b"1 received" in ran.stdout


def test_deny_beats_allow(place):
    assert place.hosts.udp.address and place.hosts.raw.address
    words = [f"udp:{plan.UDP[0]}:7:10:1", f"udp:{plan.UDP[0]}:443:10:1", f"tcp:{plan.RAW[0]}:7:10"]
    told, ran = talk(
        place, *words, options=["--deny", f"{plan.UDP[0]}:443", "--deny", "tcp://203.0.113.13"]
    )
    assert told[0] == 10 and "E" in told[1] and told[2] == "ECONNREFUSED"
    assert {b["rule"] for b in ran.of("net_connect") if b["decision"] == "deny"} == {None}
    told, ran = talk(place, *words, options=["--allow", plan.UDP[0], "--deny", "203.0.113.0/24"])
    assert 10 not in told
    assert place.hosts.udp.datagrams()[1:] == []
    assert f"{plan.UDP[0]} is denied by 203.0.113.0/24" in ran.told[0]
    assert "--" not in ran.told[0]


# --- what cannot be said


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--allow", "example.net"], "the rule example.net names a host"),
        (["--deny", "*.example.net"], "the rule *.example.net names a host"),
        (["--allow", "tls://203.0.113.7"], "is about what is said"),
        (["--host-port", "5432"], "host_ports"),
        (["--publish", "8080:80"], "published"),
        (["--limit", "egress=1m"], "limits.egress"),
        (["--private", "0.0.0.0/0"], "private range"),
    ],
)
def test_what_it_cannot_hold_to_is_an_error(place, options, wanted):
    done = place.hosts.run(
        [place.caller.command, "--fresh", *VETH, *options, "-c", "echo ran"],
        cwd=place.caller.work, env=place.caller.environ, status=None,
    )  # fmt: skip
    assert done.returncode == 2 and b"ran" not in done.stdout, done
    assert wanted.encode() in done.stderr, done.stderr
    assert place.caller.sessions() == []


def _refused(place_hosts, caller, *options):
    done = place_hosts.run(
        [caller.command, "--fresh", *VETH, *options, "-c", "echo ran"],
        uid=caller.uid, gid=caller.gid, cwd=caller.work, env=caller.environ, status=125,
    )  # fmt: skip
    assert done.stdout == b""
    return done.stderr.decode()


def test_not_for_others_than_root(host, user):
    user.forget()
    told = _refused(host, user)
    assert "only root may" in told and "[E-VETH-ROOT]" in told


def test_a_host_that_does_not_forward(hosts, idmap):
    """Is told, and left as it is."""
    idmap.forget()
    told = _refused(hosts, idmap)
    assert "net.ipv4.ip_forward is 0" in told and "[E-VETH-FORWARD]" in told
    assert hosts.client.run("cat", "/proc/sys/net/ipv4/ip_forward") == "0\n"
    assert left_on(hosts) == []


def test_without_ipv6_forwarding_there_is_ipv4(place):
    place.hosts.client.configure({"ipv6/conf/all/forwarding": 0}, [])
    assert place.hosts.udp.address
    told, ran = talk(place, f"udp:{plan.UDP[0]}:7:10:1", f"udp:[{plan.UDP[1]}]:7:10:1")
    assert told == [10, "ENETUNREACH"]
    (body,) = ran.of("policy_loaded")
    assert body["link"]["without_ipv6"].startswith("the host does not forward IPv6")
    assert "address6" not in body["link"]


def test_without_pyroute2(place):
    (package,) = place.caller.command.parents[1].glob("lib/python3*/site-packages/pyroute2")
    away = package.with_name("pyroute2-away")
    package.rename(away)
    try:
        told = _refused(place.hosts, place.caller)
    finally:
        away.rename(package)
    assert "[E-VETH-PYROUTE2]" in told and "substrate-shell[veth]" in told


def test_no_free_addresses(place):
    """A route of the host lies over the whole range."""
    taken = ["route add 100.90.0.0/16 dev lo"]
    place.hosts.client.configure({}, taken)
    try:
        env = {**place.caller.environ, "SUBSTRATE_VETH_RANGE": "100.90.7.0/24"}
        done = place.hosts.run(
            [place.caller.command, "--fresh", *VETH, "-c", "echo ran"],
            cwd=place.caller.work, env=env, status=125,
        )  # fmt: skip
    finally:
        place.hosts.client.configure({}, ["route del 100.90.0.0/16 dev lo"])
    assert b"[E-VETH-ADDRESS]" in done.stderr and done.stdout == b"", done.stderr


# --- attacks on it


def test_the_network_cannot_be_changed(every_place):
    """By the world's own root; after all that, it is as it was."""
    assert every_place.hosts.udp.address
    scene = Scene(every_place.hosts, every_place.caller)
    show = "ip -o address show eth0; ip route; ip -6 route"
    more = (
        "ip link set eth0 down; ip link del eth0; ip addr add 10.9.9.9/8 dev eth0;"
        " ip route add 10.0.0.0/8 dev eth0; ip neigh flush all;"
        " echo 0 > /proc/sys/net/netfilter/nf_conntrack_acct"
    )
    line = (
        f"({show}) > a; {PYTHON} -I -S {scene.program('egress_reach.py')} configure; ({more}) > said 2> errors;"
        f" ({show}) > b; cmp a b && cat errors >&2;"
        f" {PYTHON} -I -S talk.py udp:{plan.UDP[0]}:7:10:1 connect:{plan.PRIVATE[0]}:80"
    )
    ran = every_place.run(line, *VETH)
    changed, *told = map(json.loads, ran.stdout.splitlines())
    assert {case: how for case, how in changed.items() if how == "done"} == {}
    assert told == [10, "ECONNREFUSED"]
    errors = ran.stderr.decode()
    assert errors.count("Operation not permitted") == 4, errors
    assert "Read-only file system" in errors
    scope = ran.scopes[f"udp://{plan.UDP[0]}:7"]
    assert scope["bytes_out"] == 10 + UDP4


def test_another_source_does_not_leave(place):
    """An address that is not the world's own cannot be bound, nor sent from."""
    script = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
        " s.setsockopt(0, 15, 1); s.bind(('10.1.2.9', 0));"
        f" s.sendto(b'x', ('{plan.UDP[0]}', 7))"
    )
    assert place.hosts.udp.address
    place.run(f'{PYTHON} -I -S -c "{script}"', *VETH, status=None)
    assert place.hosts.packets() == []


_ODD = r"""
import errno, json, socket, struct, sys
SERVER, SERVER6 = sys.argv[1:]
def datagram(family, to, port, *options, source=None):
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        for option in options:
            one.setsockopt(*option)
        if source:
            one.bind((source, 0))
        return one.sendto(b"x", (to, port))
def connection(to, port, *options):
    with socket.socket() as one:
        one.settimeout(5)
        for option in options:
            one.setsockopt(*option)
        one.connect((to, port))
lo = socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo"
free = socket.IPPROTO_IPV6, 78, 1
to = [socket.inet_pton(socket.AF_INET6, a) for a in ("fd00::5", SERVER6)]
segments = socket.IPPROTO_IPV6, socket.IPV6_RTHDR, bytes([0, 4, 4, 1, 1, 0, 0, 0]) + b"".join(to)
v4, v6 = socket.AF_INET, socket.AF_INET6
told = {}
for name, act in {
    "lo, metadata": lambda: datagram(v4, "169.254.169.254", 701, lo),
    "lo, metadata, tcp": lambda: connection("169.254.169.254", 702, lo),
    "lo, allowed": lambda: datagram(v4, SERVER, 703, lo),
    "foreign source": lambda: datagram(v6, SERVER6, 704, free, source="2001:db8:bad::1"),
    "loopback source": lambda: datagram(v6, SERVER6, 705, source="::1"),
    "routing header": lambda: datagram(v6, SERVER6, 706, segments),
    "relay": lambda: datagram(v4, "127.0.0.1", 2),
    "relay, tcp": lambda: connection("127.0.0.1", 2),
}.items():
    try:
        act()
        told[name] = "done"
    except OSError as error:
        told[name] = errno.errorcode.get(error.errno, str(error))
print(json.dumps(told))
"""


def test_what_stays_or_says_otherwise_is_refused_and_told(every_place):
    """What a program binds to lo never leaves, other sources and routing headers may not: none of these is told
    as gone, and each is told. Nobody asks the relay but those who ask a name server."""
    assert every_place.hosts.udp.address
    (every_place.caller.work / "odd.py").write_text(_ODD)
    ran = every_place.run(f"{PYTHON} -I -S odd.py {plan.UDP[0]} {plan.UDP[1]}", *VETH)
    told = json.loads(ran.stdout)
    assert set(told.values()) <= {"EPERM", "ECONNREFUSED", "EACCES"}, told
    assert every_place.hosts.packets() == []
    found = [b for b in ran.of("net_connect") if b["protocol"] != "icmpv6"]
    assert {b["decision"] for b in found} == {"deny"}, found
    assert {b["port"] for b in found} == {2, *range(701, 707)}
    reasons = {b["port"]: b["reason"] for b in found}
    assert "is special (metadata)" in reasons[701] and "is special (metadata)" in reasons[702]
    assert "bound to lo" in reasons[703]
    assert reasons[704].startswith("it says to come from 2001:db8:bad::1,")
    assert reasons[705].startswith("it says to come from ::1,")
    assert reasons[706].endswith("(a routing header)")
    assert reasons[2] == "port 2 of the world's loopback is substrate's own"


def test_worlds_do_not_reach_each_other(place, scene):
    first = scene.start(
        f"ip -4 -o address show eth0 | tr -s ' ' | cut -d' ' -f4; exec {PYTHON} -m http.server 8000",
        options=VETH,
    )
    try:
        address = first.stdout.readline().decode().partition("/")[0]
        told, _ = talk(place, f"connect:{address}:8000")
        assert told == ["ECONNREFUSED"]
        told, _ = talk(place, f"connect:{address}:8000", options=["--private", "100.64.0.0/10"])
        assert told != ["done"]
        # nor does the host, without the world having begun
        done = place.hosts.run(["curl", "-sS", "-m", "2", f"http://{address}:8000/"], status=None)
        assert done.returncode == 7, done
    finally:
        first.terminate()
        first.communicate(timeout=20)


def test_many_at_once(place):
    """Fifty worlds have fifty places; all of them reach out."""
    assert place.hosts.udp.address
    line = (
        "ip -4 -o address show eth0 | tr -s ' ' | cut -d' ' -f4;"
        f" {PYTHON} -I -S talk.py udp:{plan.UDP[0]}:7:10:1; read x; true"
    )
    caller = place.caller
    running = [
        place.hosts.start(
            [caller.command, "--fresh", *VETH, "-c", line], cwd=caller.work, env=caller.environ
        )
        for _ in range(50)
    ]
    try:
        told = [(one.stdout.readline().decode(), one.stdout.readline()) for one in running]
        links = [line for line in left_on(place.hosts) if line.startswith("link")]
    finally:
        for one in running:
            one.communicate(b"\n", timeout=60)
    assert len({address for address, _ in told}) == 50, told
    assert {answer for _, answer in told} == {b"10\n"}
    assert len(links) == 50
    assert [one.returncode for one in running] == [0] * 50


# --- ends


def test_what_has_expired_at_the_end_is_told(place, scene, listener):
    """The kernel forgets what has been silent long enough only when it comes across it, as it may at the very end."""
    listener.forget()
    line = f"echo ready; read x; {PYTHON} -I -S many.py; read x; true"
    (place.caller.work / "many.py").write_text(_MANY.format(count=40, address=NOTES))
    process = scene.start(line, options=VETH)
    assert process.stdout.readline() == b"ready\n", process.stderr.read()
    (zygote,) = children(process.pid)
    (world,) = filter(is_world, children(zygote))
    file = "/proc/sys/net/netfilter/nf_conntrack_udp_timeout"
    subprocess.run(["nsenter", "-t", str(world), "-n", "sh", "-c", f"echo 1 > {file}"], check=True)
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"40\n"
    time.sleep(1.5)  # until they have expired
    process.communicate(b"\n", timeout=20)
    begun = {b["connection"] for b in scene.told("net_connect")}
    closes = {b["connection"]: b["bytes_out"] for b in scene.told("net_close")}
    assert len(begun) == 40
    assert closes == dict.fromkeys(begun, UDP4 + 1)


_SEND = (
    f'{PYTHON} -I -S -c "import socket, time\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n'
    f"s.connect(('{NOTES}', 7))\nprint('ready', flush=True)\nwhile True:\n  try: s.send(b'x')\n"
    '  except OSError: pass\n  time.sleep(0.002)"'
)


@pytest.fixture
def sending(scene, listener):
    """A world that sends all the time: its supervisor, and who serves its network."""
    listener.forget()
    process = scene.start(_SEND, options=VETH)
    try:
        assert process.stdout.readline() == b"ready\n", process.stderr.read()
        until(listener.datagrams, lambda found: len(found) > 10)
        yield process, engine_of(process.pid, scene.hosts.client.namespaces()["net"])
    finally:
        process.terminate()
        process.communicate(timeout=20)


def _nothing_is_left(scene):
    until(lambda: left_on(scene.hosts), lambda found: found == [], 5)
    before = len(scene.hosts.packets())
    time.sleep(0.2)  # for whatever might still be sent
    assert len(scene.hosts.packets()) == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_supervisor_killed(scene, sending, number):
    process, network = sending
    (zygote,) = children(process.pid)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert is_gone(network, 5) and is_gone(zygote, 5)
    _nothing_is_left(scene)


def test_zygote_killed(scene, sending):
    process, network = sending
    (zygote,) = children(process.pid)
    os.kill(zygote, signal.SIGKILL)
    process.communicate(timeout=20)
    assert is_gone(network, 5)
    _nothing_is_left(scene)


def test_who_serves_is_killed(scene, sending):
    """The link goes with it, the command goes on without, and the record says so."""
    process, network = sending
    os.kill(network, signal.SIGKILL)
    _nothing_is_left(scene)
    assert process.poll() is None
    process.terminate()
    process.wait(timeout=20)
    assert any("ended early" in text for b in scene.told("coverage") for text in b["blind_spots"])
    scene.caller.verify()


def test_who_serves_is_shut_in(sending):
    fields = status_of(sending[1])
    assert int(fields["CapEff"], 16) & ~(1 << 12) == 0
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


# --- while it runs


def test_status_and_other_rules(place, scene, sending):
    """What a new rule denies ends at once; an allow rule is no way to close the rest by surprise."""
    hosts, caller = place.hosts, place.caller

    def net(*words, status=0):
        done = hosts.run(
            [caller.command, "net", *words], cwd=caller.work, env=caller.environ, status=status
        )
        return (done.stdout + done.stderr).decode()

    shown = until(lambda: net("status"), lambda text: "udp://" in text)
    assert "allow:      everything that is not special or denied" in shown
    assert "link:       substrate" in shown
    assert f"udp://{NOTES}:7  1 connections" in shown
    found = json.loads(net("status", "--format", "json"))
    assert found["mode"] == "veth" and found["interface"].startswith("substrate")
    assert "begin with --allow" in net("allow", "203.0.113.13", status=3)
    assert "names a host" in net("deny", "example.net", status=3)
    net("deny", NOTES)
    count = len(hosts.packets())
    time.sleep(0.2)  # for whatever might still be sent
    assert len(hosts.packets()) == count
    assert f"is denied by {NOTES}" in net("status")
    sending[0].terminate()
    sending[0].wait(timeout=20)
    closes = scene.told("net_close")
    assert [body["reason"] for body in closes] == [f"{NOTES} is denied by {NOTES}"]


def _deny(scene, *rules, status=0):
    return scene.hosts.run(
        [scene.caller.command, "net", "deny", *rules],
        cwd=scene.caller.work, env=scene.caller.environ, status=status,
    )  # fmt: skip


_TAKEN = f"""
import sys
from substrate.world.egress import netlink, nft_expressions as nft
socket = netlink.connect(netlink.NETFILTER, "test")
batch = nft.Batch("{TABLE}")
batch.delete_table()
batch.table(nft.OWNED)
netlink.command(socket, batch.encode(), batch.last(), "test", batch.part)
print("ready", flush=True)
sys.stdin.read()
"""


def test_rules_that_the_kernel_does_not_take(scene, sending):
    """Are not said to be in force; here somebody else has the table of the world's filter."""
    (zygote,) = children(sending[0].pid)
    (world,) = filter(is_world, children(zygote))
    words = ["nsenter", "-t", str(world), "-n", sys.executable, "-c", _TAKEN]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"ready\n"
        done = _deny(scene, NOTES, status=3)
        assert b"nothing was changed: nf_tables: table" in done.stderr, done.stderr
        other.stdin.close()
    sending[0].terminate()
    sending[0].wait(timeout=20)
    loaded = [e["body"] for e in scene.caller.events() if e["event_type"] == "policy_loaded"]
    rules = [body for body in loaded if "net" in body]  # the first is the policy of commands
    assert [body["net"]["deny"] for body in rules] == [[], [NOTES], []], rules


def test_more_is_allowed_while_it_runs(place, scene):
    hosts, caller = place.hosts, place.caller
    assert hosts.udp.address
    line = f"read x; {PYTHON} -I -S talk.py udp:{plan.UDP[0]}:7:10:1"
    process = scene.start(line, plan.RAW[0], options=VETH)
    with contextlib.closing(process.stdin):
        words = [caller.command, "net", "allow", f"udp://{plan.UDP[0]}:7"]
        until(
            lambda: hosts.run(words, cwd=caller.work, env=caller.environ, status=None).returncode,
            lambda status: status == 0,
        )
        out, _ = process.communicate(b"\n", timeout=20)
    assert out == b"10\n"
