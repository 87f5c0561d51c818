"""Attacks on the network of worlds, each a real one: from inside, at an internet of our own.

For each there is a control: the same program, without a world, gets through. Spec: world.md §8.
"""

import json
import os
import signal
import textwrap
import time

import pytest

from tests.nethosts import plan
from tests.nethosts.fixtures import hosts, internet
from tests.nethosts.seen import until
from tests.system import egress_tunnel
from tests.system import egress_words as words
from tests.system.egress_scene import (
    HERE,
    PYTHON,
    TARGET,
    TARGET_PLACE,
    Scene,
    children,
    engine_of,
    is_gone,
    resident_kib,
    status_of,
)

__all__ = ["hosts", "internet"]

OTHER = "secret.example.net"


@pytest.fixture(scope="session")
def listener(internet):
    """Listens at the ports of the web and says nothing: who gets to it can be told."""
    return internet.serve(
        TARGET, (TARGET_PLACE,), (80, 443), "raw", ports={}, otherwise="sink", udp_ports=(443,)
    )


@pytest.fixture
def target(hosts, listener):
    listener.forget()
    hosts.names.point(TARGET, TARGET_PLACE)
    return listener


@pytest.fixture
def scene(hosts, caller):
    return Scene(hosts, caller)


@pytest.fixture
def any_scene(hosts, any_caller):
    return Scene(hosts, any_caller)


@pytest.fixture
def every_scene(hosts, every_caller):
    return Scene(hosts, every_caller)


def _heard(server, cases):
    """Which cases' marks have come to a server; what else came, in bytes."""
    found, rest = set(), 0
    for one in server.connections():
        cases_of = {case for case in cases if words.mark(case) in one.head}
        found |= cases_of
        rest += 0 if cases_of else one.received
    return found, rest


# --- what is said to a server that may be reached


def test_control_words(hosts, target):
    Scene(hosts, None).control("egress_words.py", TARGET, OTHER)
    cases = words.words(TARGET, OTHER)
    target.wait_closed(len(cases))
    assert _heard(target, cases) == (set(cases), 0)


def test_words_for_another_name(any_scene, target):
    """Other SNI and Host, split, doubled, hidden, missing; requests behind requests."""
    told = any_scene.attack("egress_words.py", TARGET, OTHER, rules=[TARGET])
    cases = words.words(TARGET, OTHER)
    assert told.keys() == cases.keys()
    heard, rest = _heard(target, cases)
    assert heard == words.HONEST, told
    # the first requests of those that are honest at first
    assert rest <= 400, target.connections()
    for case, how in told.items():
        if case in words.HONEST:
            assert how == "ended", (case, how)
    any_scene.caller.verify()


# --- ways that lead past the rules

WILD = "*.wild.example.net"
#: in the internet of the tests no packet of these leaves the machine either
_STAYS = frozenset(
    ("the machine itself", "its loopback", "its loopback as 0", "bound to any", "ping", "ping v6")
)


def test_control_reach(hosts, target):
    """From the machine itself every way leads over the wire."""
    told = Scene(hosts, None).control("egress_reach.py", "reach", TARGET)
    assert told.keys() >= _STAYS
    sent = {(packet.protocol, packet.destination, packet.port) for packet in hosts.packets()}
    secret, secret6 = plan.SECRET
    for port in (22, 25, 53, 80, 443, 853):
        assert ("tcp", secret, port) in sent, port
    for port in (123, 443, 53):
        assert ("udp", secret, port) in sent, port
    for address in (plan.METADATA[0], *plan.PRIVATE, plan.GATEWAY, secret6, "64:ff9b::cb00:7142"):
        assert ("tcp", address, 80) in sent, address
    assert {("udp", TARGET_PLACE, 443), ("udp", "224.0.0.251", 5353)} <= sent
    assert ("udp", "255.255.255.255", 9) in sent
    deep = {name for name in hosts.names.asked() if name.endswith("wild.example.net")}
    assert len(deep) == 5


def test_nothing_leads_past_the_rules(every_scene, target):
    """Addresses in every form, UDP, ports of other services, questions to other name servers."""
    told = every_scene.attack("egress_reach.py", "reach", TARGET, rules=[TARGET, WILD])
    assert every_scene.hosts.packets() == []
    assert every_scene.hosts.names.queries() == []
    # questions are answered, in the world
    done = {case for case, how in told.items() if how.startswith("done")}
    assert done == {case for case in told if case.startswith(("question", "tunnel"))}
    assert {told[case] for case in told if case.startswith("question")} == {
        "done rcode 3 answers 0"
    }
    refused = {
        (body["ip"], body["port"], body["protocol"])
        for body in every_scene.told("net_connect")
        if body["decision"] == "deny"
    }
    for wanted in (
        (plan.SECRET[0], 80, "tcp"),
        (plan.SECRET[1], 853, "tcp"),
        (plan.SECRET[0], 443, "udp"),
        (plan.METADATA[0], 80, "tcp"),
        ("198.18.0.1", 443, "udp"),
        ("198.19.200.7", 80, "tcp"),
    ):
        assert wanted in refused, refused
    assert told["another fake"] == "ECONNREFUSED"
    every_scene.caller.verify()


def test_no_other_sockets_and_namespaces(every_scene):
    """Raw, packet, MPTCP, SCTP, VSOCK …; a network namespace of one's own, or another's."""
    told = every_scene.attack("egress_reach.py", "sockets", rules=[TARGET])
    assert {case: how for case, how in told.items() if how.startswith("done")} == {}
    assert told["mptcp"] == "EPROTONOSUPPORT"
    control = every_scene.control("egress_reach.py", "sockets")
    missing = {"raw tcp", "raw icmp", "packet", "mptcp", "netlink netfilter", "unshare net"}
    assert {case for case in missing if not control[case].startswith("done")} == set()


def test_the_network_cannot_be_changed(every_scene, target):
    """As the world's root, too; after all that what is allowed is still reached, and no more."""
    line = f"{PYTHON} -I -S {every_scene.program('egress_reach.py')} configure"
    after = f"{PYTHON} -I -S {every_scene.program('egress_reach.py')} listeners {TARGET}"
    done = every_scene.run(f"{line}; {after}", TARGET)
    changed, taken = map(json.loads, done.stdout.splitlines())
    assert {case: how for case, how in changed.items() if how == "done"} == {}
    for case, how in taken.items():
        if case.startswith(("speak", "ask", "take")):
            assert not how.startswith("done"), (case, how)
    assert taken["hijacked"] == "nothing"
    assert taken["honest"] == "done b''"
    assert len(target.wait_closed()) == 1
    # only a root of a world gets the ports of root
    beside = {case for case, how in taken.items() if case.startswith("beside") and how == "done"}
    assert bool(beside) == (every_scene.caller.uid == 0)


def test_control_configure(hosts):
    """Where it is somebody's own, a network can be changed by all of this."""
    words = ["unshare", "--net", PYTHON, "-I", "-S", HERE / "egress_reach.py", "configure"]
    told = json.loads(hosts.run(words).stdout)
    made = {case for case, how in told.items() if how == "done"}
    assert made >= {
        "add a pair of links",
        "add an address",
        "flush the packet filter",
        "let it route loopback",
        "lo down",
    }, told


# --- what a world writes for itself


def test_files_and_settings_of_the_world_change_nothing(scene, target):
    """/etc/hosts, resolv.conf, nsswitch.conf, variables for proxies: a world may say of itself
    what it likes."""
    script = f"""
    import os, socket, sys, urllib.request
    def get(url):
        try:
            print(urllib.request.build_opener().open(url, timeout=1).status)
        except OSError as error:
            print(type(error).__name__)
    get("http://{OTHER}/")
    os.environ["http_proxy"] = "http://{plan.SECRET[0]}:8080"
    get("http://{TARGET}/")
    os.environ["http_proxy"] = "http://{TARGET}:80"
    get("http://{OTHER}/")
    """
    program = scene.caller.work / "settings.py"
    program.write_text(textwrap.dedent(script))
    before = ""
    if scene.caller.uid == 0:
        before = (
            f"echo '{plan.SECRET[0]} {TARGET}' >> /etc/hosts; "
            f"echo 'nameserver {plan.SECRET[0]}' > /etc/resolv.conf; "
        )
    done = scene.run(f"{before}HOSTALIASES=$PWD/x {PYTHON} settings.py", TARGET)
    assert b"200" not in done.stdout.splitlines()
    scene.hosts.secret_untouched()
    assert scene.hosts.names.asked() <= {TARGET}
    assert {p.destination for p in scene.hosts.packets()} <= {TARGET_PLACE, plan.DNS[0]}
    assert sum(one.received for one in target.connections()) == 0
    # none of it is left
    if scene.caller.uid == 0:
        assert OTHER not in scene.hosts.hosts_file.read_text()


def test_a_world_is_no_relay(scene, target):
    """What listens in a world is reached in that world alone, neither from the machine nor from
    another world; and what it is led to by itself is decided as for all others."""
    serve = (
        "import socket; s = socket.create_server(('0.0.0.0', 8099)); print('ready', flush=True);"
        "s.settimeout(20); s.accept()[0].sendall(b'hello')"
    )
    fetch = (
        "import socket; s = socket.socket(); s.settimeout(2);"
        "print(s.connect_ex(('127.0.0.1', 8099)) or s.recv(9))"
    )
    scene.hosts.forget()
    with scene.start(f'{PYTHON} -c "{serve}"', TARGET) as relay:
        assert relay.stdout.readline() == b"ready\n"
        assert scene.run(f'{PYTHON} -c "{fetch}"', options=("--fresh",)).stdout == b"111\n"
        assert scene.hosts.run([PYTHON, "-c", fetch]).stdout == b"111\n"
        relay.kill()
        relay.communicate()
    within = f'({PYTHON} -c "{serve}" & sleep 0.3; {PYTHON} -c "{fetch}"; wait)'
    assert b"b'hello'\n" in scene.run(within).stdout
    assert scene.hosts.packets() == []


# --- where names lead


def test_allowed_names_do_not_lead_inside(any_scene, target):
    """Metadata, private and loopback addresses, the machine's own; by one record, by an alias, among
    good ones, among a thousand."""
    hosts = any_scene.hosts
    own = hosts.serve("own.example.net", (plan.CLIENT, "127.0.0.1"), (80,), "raw", on=hosts.client,
                      ports={}, otherwise="sink")  # fmt: skip
    assert hosts.metadata and hosts.private
    bad = {
        "meta": plan.METADATA,
        "private": plan.PRIVATE,
        "loop": ("127.0.0.1", "::1"),
        "other-loop": ("127.9.9.9",),
        "zero": ("0.0.0.0", "::"),
        "mapped": ("::ffff:127.0.0.1", "::ffff:169.254.169.254"),
        "nat64": ("64:ff9b::a9fe:a9fe",),
        "own": (plan.CLIENT, plan.CLIENT6),
        "link": ("169.254.1.1", "fe80::1"),
        "many": ("224.0.0.1", "255.255.255.255", "ff02::1"),
        "thousand": tuple(f"10.7.{n >> 8}.{n & 255}" for n in range(1000)),
    }
    names = []
    for short, addresses in bad.items():
        hosts.names.point(f"{short}.wild.example.net", *addresses)
        names.append(f"{short}.wild.example.net")
    hosts.names.point("alias.wild.example.net", CNAME="meta.wild.example.net")
    hosts.names.point("loop-alias.wild.example.net", CNAME="localhost")
    # names of the machine's own /etc/hosts are not the world's to ask for: no rule names them
    names += ["alias.wild.example.net", "loop-alias.wild.example.net", "client.example.net"]
    hosts.names.point("mixed.wild.example.net", *plan.METADATA, TARGET_PLACE, *plan.PRIVATE)
    told = any_scene.attack(
        "egress_get.py", *names, "mixed.wild.example.net", rules=[WILD, "client.example.net"]
    )
    by_us = "ended HTTP/1.1 403"  # a client of HTTP is answered
    assert {n for n in names if told[n].startswith("ended") and told[n] != by_us} == set()
    assert told["mixed.wild.example.net"] == "ended"
    assert len(target.wait_closed()) == 1
    inside = {p.destination for p in hosts.packets()} - {TARGET_PLACE, *plan.DNS}
    assert inside == set()
    for server in (own, hosts.metadata, hosts.private):
        assert server.connections() == []
    control = any_scene.control("egress_get.py", "meta.wild.example.net", "own.wild.example.net")
    assert set(control.values()) <= {"ended", "ended HTTP/1.1 200"}, control
    own.stop()


@pytest.mark.parametrize("then", [plan.METADATA, ("127.0.0.1",), (plan.CLIENT,), plan.PRIVATE])
def test_rebinding(idmap, hosts, target, then):
    """A name that was good when it was first asked for leads elsewhere the next time."""
    scene = Scene(hosts, idmap)
    idmap.forget()
    name = "turns.wild.example.net"
    hosts.names.point_in_turns(name, (TARGET_PLACE,), then)
    assert scene.attack("egress_get.py", name, rules=[WILD])[name] == "ended"
    assert scene.attack("egress_get.py", name, rules=[WILD])[name] != "ended"
    assert {p.destination for p in hosts.packets()} == {TARGET_PLACE, plan.DNS[0]}
    *_, body = scene.told("net_connect")
    assert body["decision"] == "deny" or body["result"], body


def test_many_questions_under_an_allowed_name(scene):
    """What is asked for is asked of nobody; only what is connected to is."""
    program = scene.caller.work / "ask.py"
    program.write_text(
        "import os, socket\n"
        "for n in range(300):\n"
        "    socket.getaddrinfo(os.urandom(30).hex() + f'.{n}.wild.example.net', 443)\n"
        "print('done')\n"
    )
    assert scene.run(f"{PYTHON} -I -S ask.py", WILD).stdout == b"done\n"
    assert scene.hosts.names.queries() == []
    assert scene.hosts.packets() == []
    assert len({body["domain"] for body in scene.told("dns_query")}) == 300


def _tunnelled(hosts):
    return {name for name in hosts.names.asked() if name.endswith(WILD[1:])}


def test_control_tunnel(hosts):
    Scene(hosts, None).control("egress_tunnel.py", WILD[2:], "10240", "30")
    assert _tunnelled(hosts) == set(egress_tunnel.names(WILD[2:], 10240, 30))


@pytest.mark.parametrize(
    ("options", "words", "most"),
    [
        ((), ("10240", "30"), 62),
        (("--limit", "lookups=20"), ("600", "30"), 1),  # a sixteenth, in this minute
        (("--limit", "lookups=8000"), ("10240", "30"), 342),
        ((), ("10200", "60"), 0),  # two full labels
    ],
)
def test_a_tunnel_through_names(scene, options, words, most):
    """So many get out, by what the name server was asked; who is refused reads why."""
    program = scene.program("egress_tunnel.py")
    line = f"{PYTHON} -I -S {program} {WILD[2:]} {' '.join(words)}"
    done = scene.run(line, WILD, options=options)
    out = _tunnelled(scene.hosts)
    names = egress_tunnel.names(WILD[2:], *map(int, words))
    assert out == set(names[:most])
    refused = len(names) - most
    assert json.loads(done.stdout).get("HTTP/1.1 403", 0) == refused
    bodies = [body for body in scene.told("net_connect") if body["decision"] == "deny"]
    assert [body["rule"] for body in bodies] == ["limits.lookups"] * refused
    how = "--limit lookups=80" if most == 1 else "--limit lookups=4000"
    if words[1] == "60":
        how = f"--allow {names[0]}:80"
    assert (f"; {how} allows it" in done.stderr.decode()) == bool(refused)


# --- too much of everything


@pytest.fixture
def served(scene, target):
    """Starts a program of floods in a world with rules; its supervisor, and who serves it."""
    begun = []

    def start(kind, *words, rules=(TARGET, WILD, "tcp://raw.example.net"), options=()):
        program = scene.program("egress_floods.py")
        line = f"{PYTHON} -I -S {program} {kind} {TARGET} {' '.join(words)}"
        process = scene.start(line, *rules, options=options)
        begun.append(process)
        return process, engine_of(process.pid, scene.hosts.client.namespaces()["net"])

    yield start
    for process in begun:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "kind",
    [
        "questions",
        "nonsense",
        "connections",
        "refused",
        "mute",
        "halves",
        "unread",
        "stream_of_questions",
    ],
)
def test_floods(scene, target, served, kind):
    """Who serves it lives on, in bounded memory, and serves; what is lost is counted."""
    if kind == "unread":
        assert scene.hosts.raw.address
    process, engine = served(kind)
    before = resident_kib(engine)
    assert process.stdout.readline() == b"begins\n", process.stderr.read()
    word, count = process.stdout.readline().split()
    assert word == b"flooded", process.stderr.read()
    assert int(count) > 0
    process.stdin.write(b"x")
    process.stdin.flush()
    assert process.stdout.readline() == b"honest\n", process.stderr.read()
    until(target.connections, lambda seen: any(one.received for one in seen))
    assert resident_kib(engine) - before < 60_000
    assert engine == engine_of(process.pid, scene.hosts.client.namespaces()["net"])
    process.stdin.write(b"x")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert b"Traceback" not in err
    assert b"ended early" not in err
    scene.caller.verify()
    if kind == "nonsense":
        (line,) = (
            b for body in scene.told("coverage") for b in body["blind_spots"] if "one by" in b
        )
        assert int(line.partition("one by one: ")[2].partition(";")[0]) > 100
    if kind == "refused":
        _all_are_counted(scene, int(count))


_MALFORMED = r"""
import socket, struct
server = ("203.0.113.53", 53)
def question(name, kind):
    labels = b"".join(bytes([len(part)]) + part for part in name.split(b"."))
    return struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + labels + bytes(1) + struct.pack(">2H", kind, 1)
with socket.socket(type=socket.SOCK_DGRAM) as sock:
    sock.connect(server)
    sock.send(b"\0" * 5)
    sock.send(question(b"a\x1b[2Jb.example", 1))
    print(sock.recv(512)[3] & 15)
    sock.send(question(b"no.example", 41))
    print(sock.recv(512)[3] & 15)
    sock.send(question(b"no.example", 1))
    print(sock.recv(512)[3] & 15)
with socket.create_connection(server) as sock:
    sock.sendall(b"\xff" * 100)
    print(sock.recv(9))
"""


def test_questions_that_are_none_are_counted(scene):
    """In one line, with the words of the first; a good one has an event of its own."""
    (scene.caller.work / "malformed.py").write_text(_MALFORMED)
    assert scene.run(f"{PYTHON} -I -S malformed.py").stdout == b"5\n5\n3\nb''\n"
    assert [body["domain"] for body in scene.told("dns_query")] == ["no.example"]
    (line,) = (
        text
        for body in scene.told("coverage")
        for text in body["blind_spots"]
        if "question" in text
    )
    assert line.endswith("recorded one by one: 4; the first: 5 bytes are no DNS message")


def _all_are_counted(scene, count):
    """What the kernel refused is in the record, or is said to be missing there."""
    bodies = [body for body in scene.told("net_connect") if body["protocol"] == "udp"]
    assert len({body["proc"] for body in bodies} - {None}) == 1
    assert all(body["proc"] is not None for body in bodies)
    missing = sum(
        int(text.split()[0])
        for body in scene.told("coverage")
        for text in body["blind_spots"]
        if "were not recorded" in text
    )
    assert len(bodies) + missing == count


def test_a_supervisor_that_stands_still(scene, target, served):
    """Reports pile up no further than is bounded; when it goes on, all is well."""
    process, engine = served("questions", "4", options=("--capture", "off"))
    assert process.stdout.readline() == b"begins\n"
    os.kill(process.pid, signal.SIGSTOP)
    try:
        time.sleep(3)  # of the flood's four seconds
        assert resident_kib(engine) < 22_000
    finally:
        os.kill(process.pid, signal.SIGCONT)
    _, count = process.stdout.readline().split()
    assert int(count) > 10_000
    out, err = process.communicate(b"xx", timeout=60)
    assert (process.returncode, out) == (0, b"honest\n"), err


@pytest.mark.parametrize("rule", [TARGET, f"tcp://{TARGET}"])
def test_hostile_servers(idmap, hosts, target, rule):
    """Answers without an end, by single bytes, in the wrong protocol; resets."""
    scene = Scene(hosts, idmap)
    idmap.forget()
    hosts.server.order(
        "program",
        words=[PYTHON, str(HERE / "egress_hostile.py"), "serve", TARGET_PLACE],
        output=str(hosts.base / "hostile.output"),
        ready=(TARGET_PLACE, 9009),
    )
    talk = f"{PYTHON} -I -S {scene.program('egress_hostile.py')} talk {TARGET}"
    get = f"{PYTHON} -I -S {scene.program('egress_get.py')} {TARGET}"
    with scene.start(f"read x; {talk}; {get}; read x; true", rule) as process:
        engine = engine_of(process.pid, hosts.client.namespaces()["net"])
        process.stdin.write(b"x\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"through\n"
        assert json.loads(process.stdout.readline()) == {TARGET: "ended"}
        assert resident_kib(engine) < 40_000
        _, err = process.communicate(b"x\n", timeout=20)
    assert b"ended early" not in err
    ports = {body["port"] for body in scene.told("net_connect") if body["decision"] == "allow"}
    assert ports >= set(range(9002, 9010)), ports
    idmap.verify()


# --- namespaces inside of a world


@pytest.mark.parametrize("words", ["unshare -Ur", "unshare -Urn"])
def test_nested_namespaces_are_no_way_out(every_scene, target, words):
    """With --userns a program is root of a network of its own, and of nothing around it."""
    check_nested(every_scene, target, words, lambda case: case == "another fake")


def check_nested(every_scene, target, words, stays):
    """`stays(case)`: whether it may seem to get somewhere, and does not leave the world."""
    program = every_scene.program("egress_reach.py")
    inside = f"{PYTHON} -I -S {program}"
    back = "nsenter --net=/proc/$OUTER/ns/net true && echo back"
    give = "ip link add a type veth peer name b netns $OUTER && echo given"
    line = (
        f"export OUTER=$$; {words} sh -c '{inside} configure; {inside} reach {TARGET};"
        f" ({back}; {give}) 2>/dev/null'; {inside} listeners {TARGET}"
    )
    done = every_scene.run(line, TARGET, WILD, options=("--fresh", "--userns"))
    configured, reached, *rest, after = done.stdout.splitlines()
    assert rest == [], rest
    of_its_own = {case for case, how in json.loads(configured).items() if how == "done"}
    assert bool(of_its_own) == words.endswith("n"), of_its_own
    done = {c for c, how in json.loads(reached).items() if how.startswith("done b")}
    assert all(map(stays, done)), done  # accepted by who serves, and reset
    assert json.loads(after)["honest"] == "done b''"
    assert {p.destination for p in every_scene.hosts.packets()} == {TARGET_PLACE, plan.DNS[0]}
    assert every_scene.hosts.names.asked() == {TARGET}
    assert len(target.wait_closed()) == 1


# --- the end of who serves


_TRANSFER = r"""
import socket
s = socket.create_connection(("raw.example.net", 19))
s.sendall(b"4000000000\n")
n = len(s.recv(9))
print("ready", flush=True)
try:
    while data := s.recv(1 << 20):
        n += len(data)
except OSError as error:
    print(type(error).__name__, flush=True)
else:
    print("ended", flush=True)
try:
    socket.create_connection(("raw.example.net", 7), 2)
    print("again", flush=True)
except OSError:
    print("no more", flush=True)
"""


def _transfer(scene, target, rules=("tcp://raw.example.net:7", "tcp://raw.example.net:19")):
    """A download that goes on, once it is under way."""
    assert scene.hosts.raw.address
    place = scene.caller.work / "transfer.py"
    place.write_text(_TRANSFER)
    process = scene.start(f"{PYTHON} -I -S transfer.py", *rules)
    assert process.stdout.readline() == b"ready\n", process.stderr.read()
    return process, engine_of(process.pid, scene.hosts.client.namespaces()["net"])


def _nothing_goes_on(scene, engine):
    """The connection is over, and no other one comes."""
    (one,) = scene.hosts.raw.wait_closed()
    assert one.sent < 4_000_000_000
    assert is_gone(engine, 1.0)
    scene.hosts.packets()
    before = len(scene.hosts.packets())
    time.sleep(0.3)  # for whatever might still be sent
    assert len(scene.hosts.packets()) == before
    assert len(scene.hosts.raw.connections()) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_supervisor_killed(scene, target, number):
    process, engine = _transfer(scene, target)
    (zygote,) = children(process.pid)
    process.send_signal(number)
    process.communicate(timeout=20)
    _nothing_goes_on(scene, engine)
    assert is_gone(zygote, 5)


def test_engine_killed(scene, target):
    """The network is closed, and the command goes on without; the record says so."""
    process, engine = _transfer(scene, target)
    os.kill(engine, signal.SIGKILL)
    out, err = process.communicate(timeout=20)
    assert out in (b"ConnectionResetError\nno more\n", b"ended\nno more\n"), (out, err)
    _nothing_goes_on(scene, engine)
    assert any("ended early" in text for b in scene.told("coverage") for text in b["blind_spots"])
    scene.caller.verify()


def test_zygote_killed(scene, target):
    process, engine = _transfer(scene, target)
    (zygote,) = children(process.pid)
    os.kill(zygote, signal.SIGKILL)
    process.communicate(timeout=20)
    _nothing_goes_on(scene, engine)


# --- who serves, as an aim


def test_who_serves_is_shut_in(every_scene, target):
    """It has no capability but one, no file but its sockets; a world can neither see nor signal it."""
    script = (
        "for n in $(seq 1 64) $(ls /proc | grep -x '[0-9]*'); do [ $n = 1 ] || [ $n = $$ ] ||"
        " kill -9 $n 2>/dev/null; done; kill -9 -1 2>/dev/null; echo done"
    )
    program = every_scene.program("egress_get.py")
    line = f"{script}; {PYTHON} -I -S {program} {TARGET}; read x; true"
    process = every_scene.start(line, TARGET)
    engine = engine_of(process.pid, every_scene.hosts.client.namespaces()["net"])
    told = process.stdout.readline()
    fields = status_of(engine)
    assert int(fields["CapEff"], 16) & ~(1 << 12) == 0
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    open_files = {os.readlink(f"/proc/{engine}/fd/{n}") for n in os.listdir(f"/proc/{engine}/fd")}
    kinds = ("socket:", "anon_inode:", "pipe:", "/dev/null")
    assert {path for path in open_files if not path.startswith(kinds)} == set()
    out, err = process.communicate(b"x\n", timeout=20)
    assert b"ended" in told + out, (told, out, err)
