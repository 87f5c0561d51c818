"""Whose a question or a connection is: a thousand short programs, many at once, each with a span of its
own; what they themselves, the servers and the record say of each.

`swarm.c` is the programs. Each talks under a name, or to a port, that only it has, so that an event
tells which program it must be of; the server knows each by what it sent.
"""

import json
import os
import shutil
import signal
import subprocess
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.nethosts import plan
from tests.nethosts.fixtures import hosts, internet
from tests.system.egress_scene import engine_of
from tests.system.test_capture import is_refused

__all__ = ["hosts", "internet"]

SWARM = "203.0.113.90"
REFUSED = "203.0.113.120"
#: behaviours of the server by port
PORTS = {4100: "sink", 4104: "half", 4105: "source"}
#: kinds of programs that talk, and to which port
TALKS = (
    *(("send", 4100), ("later", 4100), ("half", 4104)),
    *(("reset", 4100), ("dies", 4100), ("source", 4105)),
)
#: each program has a name of its own, so there are more than are looked up by default
ALLOW = ("--allow", "tcp://*.swarm.example.net", "--limit", "lookups=64000")


@pytest.fixture(scope="session")
def program(base):
    """The path of the compiled swarm."""
    if shutil.which("gcc") is None:
        pytest.skip("a C compiler is needed: gcc")
    path = base / "swarm"
    source = Path(__file__).with_name("swarm.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-o", path, source], check=True)
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def server(internet):
    behaviours = {str(port): name for port, name in PORTS.items()}
    return internet.serve("swarm.example.net", (SWARM,), PORTS, "raw", ports=behaviours)


@dataclass(frozen=True, kw_only=True)
class Said:
    """By a program of itself, at its end."""

    kind: str
    pid: int
    port: int
    error: int


class Ran:
    """A swarm that has run, and the record of it. A program is known by its name."""

    def __init__(self, hosts, caller, program, lines, *options, parallel=16):
        listing = caller.work / "swarm.list"
        listing.write_text("".join(" ".join(map(str, line)) + "\n" for line in lines))
        caller.own(listing)
        text = f"exec {program} {listing} {parallel}"
        words = [caller.command, "--fresh", *options, "-c", text]
        self.done = hosts.run(
            words, uid=caller.uid, gid=caller.gid, cwd=caller.work, env=caller.environ
        )
        caller.verify()
        self.events = caller.events()
        self.said = {}
        for line in self.done.stdout.decode().splitlines():
            kind, name, pid, port, error = line.split()
            self.said[name] = Said(kind=kind, pid=int(pid), port=int(port), error=int(error))
        assert len(self.said) == len(lines), self.done.stderr
        self._procs = {e["body"]["pid"]: e["body"]["proc"] for e in self.of("process_fork")}
        self._spans = {e["body"]["proc"]: e["span_id"] for e in self.of("process_start")}

    def of(self, *kinds, component="capture"):
        """Lines of these types."""
        return [
            event
            for event in self.events
            if event["event_type"] in kinds and event["component"] == component
        ]

    def net(self, *kinds):
        return self.of(*kinds, component="world")

    @property
    def end(self):
        (found,) = [e["body"] for e in self.events if e["event_type"] == "command_end"]
        return found

    def owner(self, name):
        """(proc, span) that the events of a program must have."""
        proc = self._procs[self.said[name].pid]
        return proc, self._spans[proc]

    def wrong(self, name_of):
        """The events that are not of their program. `name_of`: the program of the body of a
        question or a connection."""
        found, names = [], {}
        for event in self.net("dns_query", "net_connect", "net_close"):
            body = event["body"]
            if event["event_type"] == "net_close":
                name = names[body["connection"]]
            else:
                name = name_of(body)
                names[body.get("connection")] = name
            if (body.get("proc"), event["span_id"]) != self.owner(name):
                found.append((event, self.said[name], self.owner(name)))
        return found


def program_of(body):
    """By the name that only it asked for, or the port that only it tried."""
    if body.get("domain"):
        return body["domain"].partition(".")[0]
    return f"{'r' if body['protocol'] == 'tcp' else 'u'}{body['port'] % 10000}"


def crowd(hosts, count):
    """Programs of every kind: `count` connections under names of their own, so as many questions
    of getaddrinfo(3) at least; a quarter of that of raw questions and of refused attempts."""
    known = {f"p{i}.swarm.example.net": {"A": [SWARM]} for i in range(count)}
    hosts.names._records |= known
    hosts.names._save()
    lines = []
    for i in range(count):
        kind, port = TALKS[i % len(TALKS)]
        lines.append((kind, f"p{i}", f"p{i}.swarm.example.net", port, 10 + i * 7, 0))
        if i % 4 == 0:
            kind = ("query", "asked")[i // 4 % 2]
            lines.append((kind, f"q{i}", f"q{i}.example.org", plan.DNS[0], 0, 0))
        if i % 4 == 1:
            lines.append((("send", "later")[i // 4 % 2], f"r{i}", REFUSED, 10000 + i, 5, 0))
        if i % 4 == 2:
            kind = ("datagram", "connected")[i // 4 % 2]
            lines.append((kind, f"u{i}", REFUSED, 20000 + i, 5, 0))
    return lines


def check_bytes(ran, server, lines):
    """What the record says went in and out is what the server saw, of each connection and in all."""
    seen = {}
    for one in server.wait_closed(sum(line[1][0] == "p" for line in lines)):
        head = one.head.partition(b"\n")[0].decode()
        seen[f"p{(int(head) - 10) // 7}" if head.isdigit() else head] = one
    names = {
        e["body"]["connection"]: program_of(e["body"])
        for e in ran.net("net_connect")
        if e["body"]["domain"]
    }
    told = {}
    for event in ran.net("net_close"):
        body = event["body"]
        told[names[body["connection"]]] = body["bytes_in"], body["bytes_out"]
    assert told == {name: (one.sent, one.received) for name, one in seen.items()}
    scopes = [s for s in ran.end["scopes_used"] if s["connections"]]
    total = [sum(s[key] for s in scopes) for key in ("connections", "bytes_in", "bytes_out")]
    assert total == [
        len(seen),
        sum(one.sent for one in seen.values()),
        sum(one.received for one in seen.values()),
    ]


@pytest.mark.parametrize("backend", ["hybrid", "ptrace", "bpf", "python"])
def test_every_event_is_of_its_program(hosts, caller, program, server, backend):
    if is_refused(caller, backend):
        return
    count = 1000 if backend == "hybrid" or not caller.uid else 250
    lines = crowd(hosts, 100 if backend == "python" else count)
    ran = Ran(hosts, caller, program, lines, "--capture-backend", backend, *ALLOW)
    assert ran.wrong(program_of) == []
    check_bytes(ran, server, lines)
    # nothing is missing, and nothing is there twice
    connects = Counter(program_of(e["body"]) for e in ran.net("net_connect"))
    assert connects == Counter(line[1] for line in lines if line[1][0] != "q")
    asked = Counter((program_of(e["body"]), e["body"]["qtype"]) for e in ran.net("dns_query"))
    assert {name for name, _ in asked} == {line[1] for line in lines if line[1][0] in "pq"}
    assert set(asked.values()) == {1}
    # the programs saw what the record says
    for name, said in ran.said.items():
        assert said.error == {"r": 111, "u": 1}.get(name[0], 0), (name, said)
    assert not ran.of("coverage", component="world")


@pytest.mark.parametrize("backend", ["hybrid", "ptrace"])
def test_ports_that_are_used_again(hosts, caller, program, server, backend):
    """Programs that are gone before their question is looked at, and whose port the next one
    takes; connections from one port to one address, of which the kernel gives one another port."""
    lines = [
        (("query", "asked")[i % 2], f"q{i}", f"q{i}.example.org", plan.DNS[0], 0, 31000 + i % 3)
        for i in range(200)
    ]
    known = {f"p{i}.swarm.example.net": {"A": [SWARM]} for i in range(40)}
    hosts.names._records |= known
    hosts.names._save()
    for i in range(40):
        for kind, port in (("half", 4104), ("send", 4100)):
            lines.append((kind, f"p{i}-{port}", f"p{i}.swarm.example.net", port, 100, 32000 + i))
    ran = Ran(hosts, caller, program, lines, "--capture-backend", backend, *ALLOW)

    def of(body):
        name = program_of(body)
        return f"{name}-{body['port']}" if body.get("port") else name

    bodies = [e["body"] for e in ran.net("net_connect")]
    assert {body["client_port"] for body in bodies} == set(range(32000, 32040))
    wrong = [
        found
        for found in ran.wrong(lambda body: of(body) if body.get("port") else "q0")
        if found[0]["event_type"] != "dns_query"
    ]
    assert wrong == []
    asked = [e for e in ran.net("dns_query") if e["body"]["domain"].startswith("q")]
    assert len(asked) == 200
    owners = [(e["body"]["proc"], e["span_id"]) for e in asked]
    assert owners == [ran.owner(program_of(e["body"])) for e in asked]


#: two processes connect and reset by turns, from one port to one place, as fast as they can
_TURNS = r"""
import os, socket, struct, sys
count, address = int(sys.argv[1]), (socket.gethostbyname("one.swarm.example.net"), 4100)
there, back = os.pipe(), os.pipe()
child = os.fork()
mine, other = (back[0], there[1]) if child else (there[0], back[1])
made = failed = 0
if child:
    os.write(back[1], b"x")
for _ in range(count // 2):
    os.read(mine, 1)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.bind(("0.0.0.0", 33000))
        try:
            sock.connect(address)
            made += 1
            sock.sendall(b"b" * (1 + (not child)))
        except OSError as error:
            failed += 1
    os.write(other, b"x")
print(os.getpid(), made, failed, flush=True)
if child:
    os.wait()
"""


@pytest.mark.parametrize("stopped_s", [0, 2.5])
@pytest.mark.parametrize("backend", ["hybrid", "ptrace"])
def test_a_port_that_is_reset_and_used_again_at_once(hosts, caller, server, backend, stopped_s):
    """A thousand connections, by two processes in turn: each is of its own, or it is not known whose;
    also where who accepts them stands still for so long that its queue is full."""
    assert server.address
    hosts.names.point("one.swarm.example.net", SWARM)
    place = caller.work / "turns.py"
    place.write_text(_TURNS)
    caller.own(place)
    count = 1000 if not stopped_s else 3000
    line = f"read x; exec /usr/bin/python3 -I -S turns.py {count}"
    words = [caller.command, "--fresh", "--capture-backend", backend, *ALLOW, "-c", line]
    with hosts.start(
        words, uid=caller.uid, gid=caller.gid, cwd=caller.work, env=caller.environ
    ) as ran:
        engine = engine_of(ran.pid, hosts.client.namespaces()["net"])
        if stopped_s:
            os.kill(engine, signal.SIGSTOP)
            threading.Timer(stopped_s, os.kill, (engine, signal.SIGCONT)).start()
        out, err = ran.communicate(b"x\n", timeout=120)
    assert ran.returncode == 0, err
    said = {int(pid): int(made) for pid, made, _ in map(bytes.split, out.splitlines())}
    events = caller.events()
    procs = {
        e["body"]["pid"]: e["body"]["proc"] for e in events if e["event_type"] == "process_fork"
    }
    child = procs[max(said)]
    bodies = [e["body"] for e in events if e["component"] == "world" and "connection" in e["body"]]
    owners = {b["connection"]: b["proc"] for b in bodies if b.get("client_port") == 33000}
    found = [owner for _, owner in sorted(owners.items())]
    (parent,) = set(found) - {None, child}
    if not stopped_s:
        assert sum(said.values()) == count == len(found)
        wrong = {n: who for n, who in enumerate(found) if who not in (None, (parent, child)[n % 2])}
        assert wrong == {}
        assert found.count(None) < count  # of one that was reset the kernel may not know the place
    # where something of it came, how much says whose it was
    truth = {b["connection"]: b["bytes_out"] for b in bodies if b.get("bytes_out")}
    known = {number: size for number, size in truth.items() if owners[number] is not None}
    assert {number: {1: parent, 2: child}[size] for number, size in known.items()} == {
        number: owners[number] for number in known
    }


#: processes connect to one place at once, from one port of addresses of their own, as fast as they can
_ADDRESSES = r"""
import os, socket, struct, time
address = (socket.gethostbyname("one.swarm.example.net"), 4100)
begin = time.monotonic() + 0.3
for n in range(1, 4):
    child = os.fork()
    if child:
        print(child, n, flush=True)
        continue
    while time.monotonic() < begin: pass
    for _ in range(200):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((f"127.0.0.{n}", 33000))
            sock.connect(address)
            sock.sendall(b"b" * n)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            time.sleep(0.001)
    os._exit(0)
for _ in range(3): os.wait()
"""


@pytest.mark.parametrize("backend", ["hybrid", "ptrace"])
def test_a_port_of_several_addresses_at_once(hosts, caller, server, backend):
    """Each connection is of its own process, or it is not known whose: the loopback has many addresses."""
    assert server.address
    hosts.names.point("one.swarm.example.net", SWARM)
    place = caller.work / "addresses.py"
    place.write_text(_ADDRESSES)
    caller.own(place)
    line = "/usr/bin/python3 -I -S addresses.py"
    words = [caller.command, "--fresh", "--capture-backend", backend, *ALLOW, "-c", line]
    done = hosts.run(words, uid=caller.uid, gid=caller.gid, cwd=caller.work, env=caller.environ)
    sizes = {int(pid): int(n) for pid, n in map(bytes.split, done.stdout.splitlines())}
    events = caller.events()
    procs = {
        e["body"]["proc"]: sizes.get(e["body"]["pid"])
        for e in events
        if e["event_type"] == "process_fork"
    }
    closed = [
        e["body"] for e in events if e["component"] == "world" and e["event_type"] == "net_close"
    ]
    told = [(procs[b["proc"]], b["bytes_out"]) for b in closed if b.get("proc") is not None]
    assert [(who, size) for who, size in told if size not in (0, who)] == []
    assert len(told) > 500


#: processes ask at once, each for a name of its own, from one port of addresses of their own
_QUESTIONS = r"""
import os, socket, struct, time
server = next(l.split()[1] for l in open("/etc/resolv.conf") if l.startswith("nameserver"))
begin = time.monotonic() + 0.3
for n in range(1, 4):
    child = os.fork()
    if child:
        print(child, n, flush=True)
        continue
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((f"127.0.0.{n}", 33000))
    sock.settimeout(5)
    name = b"\1%d\7example\0" % n
    while time.monotonic() < begin: pass
    for _ in range(200):
        head = struct.pack(">6H", 1, 0x100, 1, 0, 0, 0)
        sock.sendto(head + name + struct.pack(">2H", 1, 1), (server, 53))
        sock.recv(1000)
    os._exit(0)
for _ in range(3): os.wait()
"""


@pytest.mark.parametrize("backend", ["hybrid", "ptrace"])
def test_questions_from_a_port_of_several_addresses_at_once(hosts, caller, server, backend):
    assert server.address
    place = caller.work / "questions.py"
    place.write_text(_QUESTIONS)
    caller.own(place)
    line = "/usr/bin/python3 -I -S questions.py"
    words = [caller.command, "--fresh", "--capture-backend", backend, *ALLOW, "-c", line]
    done = hosts.run(words, uid=caller.uid, gid=caller.gid, cwd=caller.work, env=caller.environ)
    names = {int(pid): n.decode() for pid, n in map(bytes.split, done.stdout.splitlines())}
    events = caller.events()
    procs = {
        e["body"]["proc"]: f"{names.get(e['body']['pid'])}.example"
        for e in events
        if e["event_type"] == "process_fork"
    }
    asked = [
        e["body"] for e in events if e["component"] == "world" and e["event_type"] == "dns_query"
    ]
    assert len(asked) == 600
    wrong = [b for b in asked if b.get("proc") and procs[b["proc"]] != b["domain"]]
    assert wrong == []
    assert sum(b.get("proc") is not None for b in asked) > 500


@pytest.mark.parametrize(
    "words", [("--capture", "off"), ("--capture", "exec"), ("--capture-backend", "notify")]
)
def test_without_capture_of_calls_the_socket_is_looked_up(hosts, caller, program, server, words):
    """Who waits for an answer is known; who is gone is not, and the record says of how many."""
    lines = crowd(hosts, 60)
    ran = Ran(hosts, caller, program, lines, *words, *ALLOW)
    check_bytes(ran, server, lines)
    unknown = Counter()
    for event in ran.net("dns_query", "net_connect"):
        body = event["body"]
        name = program_of(body)
        kind = ran.said[name].kind
        if words == ("--capture", "off"):
            assert body["proc"] is None
            assert ("host_pid" in body) == ("program" in body)
            known = body.get("program") == "swarm"
        else:
            assert not {"host_pid", "program"} & set(body)
            known = body["proc"] is not None
            assert not known or (body["proc"], event["span_id"]) == ran.owner(name)
        if event["event_type"] == "dns_query" or kind in ("half", "source"):
            assert known, body
        unknown[known] += 1
    (coverage,) = ran.of("coverage", component="world")
    assert coverage["body"]["backend"] == "egress"
    how, count = coverage["body"]["blind_spots"]
    assert how.startswith("whose questions and connections are: ")
    assert count.startswith(f"whose {unknown[False]} of {unknown.total()} questions")
    assert unknown[False]


def test_a_refusal_says_who(hosts, caller):
    """By the name of the program, and by its pid in the world where that is known."""
    text = "getent hosts one.example.org; getent hosts two.example.org; (exec -a x cat /dev/tcp/no)"
    lines = _told(hosts, caller, text)
    one, two = (line for line in lines if "getent" in line)
    assert one.startswith("substrate: getent (pid ")
    assert one.endswith(
        ") was refused one.example.org: no rule names one.example.org;"
        " --allow one.example.org allows it"
    )
    assert " was refused two.example.org: " in two
    many = _told(hosts, caller, "for i in 1 2 3; do getent hosts one.example.org; done; true")
    assert [line for line in many if ") and 2 others were refused one.example.org" in line]
    bare = _told(hosts, caller, f"echo x > /dev/tcp/{REFUSED}/80", "--capture", "off")
    assert any(line.startswith(f"substrate: the network refused {REFUSED}:80: ") for line in bare)


def test_a_hostile_name_of_a_program_stays_text(hosts, caller):
    evil = "a\x1b[2J\nb"
    text = "cp /usr/bin/getent $'./a\\e[2J\\nb'; ./$'a\\e[2J\\nb' hosts one.example.org"
    assert evil not in text
    (line,) = [line for line in _told(hosts, caller, text) if "one.example.org" in line]
    assert line.startswith("substrate: a?[2J?b (pid ")
    off = _told(hosts, caller, text, "--capture", "off")
    (line,) = [line for line in off if "one.example.org" in line]
    assert line.startswith("substrate: a?[2J?b (pid ")


def _told(hosts, caller, text, *options):
    """What substrate said of a command."""
    words = [caller.command, "--fresh", *options, "-c", text]
    done = hosts.run(
        words, uid=caller.uid, gid=caller.gid, cwd=caller.work, env=caller.environ, status=None
    )
    lines = done.stderr.decode().splitlines()
    return [line for line in lines if line.startswith("substrate: ")]


def test_it_is_shown_while_it_goes_on_and_afterwards(hosts, caller, program, server):
    """`trace tail -f` and `trace show` have every event once, in the record's order."""
    lines = crowd(hosts, 40)
    _told(hosts, caller, "getent hosts first.example.org; echo > made", "--keep")
    listing = caller.work / "swarm.list"
    listing.write_text("".join(" ".join(map(str, line)) + "\n" for line in lines))
    caller.own(listing)
    text = f"{program} {listing} 8"
    who = {"uid": caller.uid, "gid": caller.gid, "cwd": caller.work, "env": caller.environ}
    words = ["trace", "tail", "-f", "-n", "1", "--timeout", "30", "--net", "--format", "jsonl"]
    tail = hosts.start([caller.command, *words], **who)
    first = json.loads(tail.stdout.readline())["seq"]  # what comes now, it follows
    done = hosts.run([caller.command, "--keep", *ALLOW, "-c", text], **who)
    assert done.stdout.count(b"\n") == len(lines)
    show = [caller.command, "trace", "show", "last", "--net"]
    shown = hosts.run([*show, "--format", "jsonl"], **who).stdout.splitlines()
    wanted = [
        e["seq"]
        for e in caller.events()
        if e["event_type"] in ("dns_query", "net_connect", "net_close") and e["seq"] > first
    ]
    assert [json.loads(line)["seq"] for line in shown] == wanted
    followed = [json.loads(tail.stdout.readline())["seq"] for _ in wanted]
    tail.kill()
    tail.communicate()
    assert followed == wanted
    caller.verify()
