"""A filtered network on a kernel without nf_tables: by listeners, with the scenes of the others.

The kernel lacks it as far as substrate can tell: a seccomp filter on all of substrate's processes answers its
socket as such a kernel does (without_calls.py). What is weaker then is said, and is tried here.
"""

import json
import os
import signal
import time
from dataclasses import replace

import pytest

from tests.nethosts import plan
from tests.nethosts.fixtures import hosts, internet
from tests.nethosts.programs import need
from tests.system.client_run import Place, counted, only_to
from tests.system.egress_scene import PYTHON, TARGET, Scene, host_service
from tests.system.test_egress_attacks import (
    WILD,
    check_nested,
    every_scene,
    listener,
    scene,
    target,
    test_allowed_names_do_not_lead_inside,
    test_engine_killed,
    test_files_and_settings_of_the_world_change_nothing,
    test_no_other_sockets_and_namespaces,
    test_supervisor_killed,
    test_who_serves_is_shut_in,
    test_words_for_another_name,
    test_zygote_killed,
)
from tests.system.test_egress_attribution import (
    ALLOW,
    Ran,
    check_bytes,
    crowd,
    program,
    program_of,
    server,
)
from tests.system.test_egress_clients import CLIENTS, check_allowed, check_refused
from tests.system.test_egress_settings import (
    test_a_budget,
    test_private_addresses_behind_a_name,
)
from tests.system.test_missing_calls import launcher

__all__ = [
    "every_scene",
    "hosts",
    "internet",
    "launcher",
    "listener",
    "program",
    "scene",
    "server",
    "target",
    "test_a_budget",
    "test_allowed_names_do_not_lead_inside",
    "test_engine_killed",
    "test_files_and_settings_of_the_world_change_nothing",
    "test_no_other_sockets_and_namespaces",
    "test_private_addresses_behind_a_name",
    "test_supervisor_killed",
    "test_who_serves_is_shut_in",
    "test_words_for_another_name",
    "test_zygote_killed",
]

#: what kernels, and filters of calls, answer
EPERM, EPROTONOSUPPORT = 1, 93


def _stays(case):
    """Whether an attack may seem to get somewhere: its port is one that leads out, so that it is accepted,
    and refused then (by 403 or a reset); lo itself answers; or nobody is told what nobody takes."""
    at_the_web = ("tcp ", "doh", "bound to", "by ", "source route", "transparent", "fast open")
    others = {"another fake", "gateway", "metadata decimal", "multicast", "ping", "ping v6"}
    return case.startswith(at_the_web) or case in others


@pytest.fixture(scope="session")
def without(launcher):
    """Makes `substrate` on a kernel that answers so."""

    def made(command, number):
        path = command.parent / f"without-nf_tables-{number}"
        path.write_text(f'#!/bin/sh\nexec {PYTHON} {launcher} {number} netfilter {command} "$@"\n')
        path.chmod(0o755)
        return path

    return made


@pytest.fixture(params=["ns-root-idmap", "ns-user"])
def caller(request, without):
    found = request.getfixturevalue({"ns-root-idmap": "idmap", "ns-user": "user"}[request.param])
    found.forget()
    with found.names_alone():
        yield replace(found, command=without(found.command, EPROTONOSUPPORT))


@pytest.fixture(params=["ns-root-idmap", "ns-root", "ns-user"])
def every_caller(request, without):
    names = {"ns-root-idmap": "idmap", "ns-root": "root", "ns-user": "user"}
    found = request.getfixturevalue(names[request.param])
    found.forget()
    return replace(found, command=without(found.command, EPROTONOSUPPORT))


@pytest.fixture
def any_scene(scene):
    return scene


@pytest.fixture
def place(hosts, caller):
    need("/usr/bin/curl")
    assert hosts.plain  # it listens from here on
    return Place(hosts=hosts, caller=caller)


# --- what it is, and that it is said


def _session_start(caller):
    (start,) = [e["body"] for e in caller.events() if e["event_type"] == "session_start"]
    return start


@pytest.mark.parametrize("number", [EPERM, EPROTONOSUPPORT])
def test_it_is_on_the_record(hosts, request, without, number):
    caller = request.getfixturevalue("user")
    caller.forget()
    place = Place(hosts=hosts, caller=replace(caller, command=without(caller.command, number)))
    ran = place.run("true", "--json", "--allow", "plain.example.net")
    why = "filtered by listeners on ports 80 and 443, as nf_tables is missing"
    assert _session_start(caller)["isolation"]["layers"]["net"] == {"on": True, "why": why}
    (note,) = json.loads(ran.stderr)["notes"]
    assert note == (
        "nf_tables is missing: the network is filtered by listeners, and ports 80 and 443 alone "
        "lead out (E-NFT)"
    )
    (spot,) = ran.of("coverage")[-1]["blind_spots"]
    assert spot.startswith("what the kernel refused: ")
    caller.verify()


def test_with_nf_tables_nothing_of_that_is_said(hosts, user):
    user.forget()
    ran = Place(hosts=hosts, caller=user).run("true", "--json", "--require", "fs,net,pid,nf_tables")
    assert json.loads(ran.stderr)["notes"] == []
    assert _session_start(user)["isolation"]["layers"]["net"] == {"on": True}
    assert not ran.of("coverage") or "listeners" not in json.dumps(ran.of("coverage"))


def test_it_can_be_refused(hosts, caller):
    """A requirement that nothing is filtered by less than nf_tables."""
    done = hosts.run(
        [caller.command, "--fresh", "--require", "fs,net,pid,nf_tables", "-c", "echo ran"],
        uid=caller.uid,
        gid=caller.gid,
        cwd=caller.work,
        env=caller.environ,
        status=125,
    )
    assert done.stdout == b""
    assert b"nf_tables is required and is missing [E-NFT]" in done.stderr
    for mode in ("none",):  # where nothing is filtered
        Scene(hosts, caller).run("true", options=("--net", mode, "--require", "nf_tables"))


def test_doctor_tells(caller):
    for who, ok, code, text in (
        (caller, None, "E-NFT", "filtered by listeners, as nf_tables is missing: "),
        (
            replace(caller, command=caller.command.parent / "substrate"),
            True,
            None,
            "filtered by nf_",
        ),
    ):
        checks = json.loads(who.substrate("doctor", "--format", "json").stdout)["checks"]
        (found,) = [check for check in checks if check["name"] == "network"]
        assert (found["ok"], found["code"]) == (ok, code)
        assert found["text"].startswith(text)


def test_what_rules_name_in_vain_is_said(place):
    """A range on all ports, and more ports than there can be listeners."""
    rules = ("--allow", "203.0.113.8/29", "--allow", "raw.example.net:4000-4999")
    ran = place.run("curl -sS http://203.0.113.10/", "--json", *rules)
    (note,) = [n for n in json.loads(ran.stderr)["notes"] if "nf_tables" in n]
    assert "; 203.0.113.8/29, raw.example.net:4000-4999 are not reached on others: " in note
    assert ran.stdout == b"plain.example.net\n"


def test_as_many_ports_as_there_can_be(place):
    """Listeners and published ports together are handed on."""
    publish = [f"--publish={18500 + n}:{9000 + n}" for n in range(32)]
    allow = ("--allow", "plain.example.net:8001-8099")
    ran = place.run("curl -sS http://plain.example.net:8080/", *publish, *allow, status=7)
    assert not ran.of("net_connect")  # 40 are up to 8040
    ran = place.run("curl -sS http://plain.example.net:8080/", *publish, *allow,
                    "--allow", "plain.example.net:8080")  # fmt: skip
    assert ran.stdout == b"plain.example.net\n"


# --- what is reached, and what is not


@pytest.mark.parametrize(
    "name",
    [
        *("curl http", "curl https", "python urllib", "python asyncio", "git https"),
        *("a server that speaks first", "raw TCP, half closed", "IPv6 only, by its name"),
    ],
)
def test_a_client_reaches_what_a_rule_names(place, name):
    client = CLIENTS[name]
    for one in client.needs:
        need(one)
    check_allowed(place, client)
    place.hosts.forget()
    check_refused(place, client)
    place.caller.verify()


@pytest.mark.parametrize("address", [plan.PLAIN[0], plan.SIX[0]])
def test_an_address_by_itself(place, address):
    hosts = place.hosts
    server = hosts.six if address in plan.SIX else hosts.plain
    shown = f"[{address}]" if ":" in address else address
    ran = place.run(f"curl -sS http://{shown}/", "--allow", f"{shown}:80")
    assert ran.stdout.decode() == f"{server.name}\n"
    assert ran.scopes == {f"http://{shown}:80": counted(server.wait_closed())}
    only_to(hosts, server)


def test_another_port_is_refused_by_the_kernel(place):
    """Where a rule would allow it by name, too: so it has to name the port."""
    url = "http://plain.example.net:8080/"
    assert place.hosts.plain
    ran = place.run(f"curl -sS {url}", "--allow", "plain.example.net", status=7)
    assert ran.seconds < 2
    assert not ran.of("net_connect")
    only_to(place.hosts)
    ran = place.run(f"curl -sS {url}", "--allow", "plain.example.net:8080")
    assert ran.stdout == b"plain.example.net\n"


def test_nothing_leads_past_the_rules(every_scene, target):
    """Addresses in every form, UDP, ports of other services, questions to other name servers."""
    told = every_scene.attack("egress_reach.py", "reach", TARGET, rules=[TARGET, WILD])
    assert every_scene.hosts.packets() == []
    assert every_scene.hosts.names.queries() == []
    assert not target.connections()
    assert {told[case] for case in told if case.startswith("question")} == {
        "done rcode 3 answers 0"
    }
    done = {case for case, how in told.items() if how.startswith("done")}
    assert all(case.startswith(("question", "tunnel")) or _stays(case) for case in done), told
    assert {told[case] for case in ("tcp dotted", "tcp v6", "gateway")} == {
        "done b'HTTP/1.1'"
    }  # 403
    for case in ("smtp", "ssh v6", "dot", "its loopback"):
        assert told[case] == "ECONNREFUSED", case
    refused = {
        (body["target"], body["port"])
        for body in every_scene.told("net_connect")
        if body["decision"] == "deny"
    }
    assert {(plan.SECRET[0], 80), (plan.SECRET[1], 443), (plan.METADATA[0], 80)} <= refused
    every_scene.caller.verify()


def test_the_network_cannot_be_changed(every_scene, target):
    """As the world's root, too; after all that what is allowed is still reached, and no more."""
    name = every_scene.program("egress_reach.py")
    get = f"curl -sS -m 5 http://{TARGET}/; echo $?"
    done = every_scene.run(f"{PYTHON} -I -S {name} configure; {get}", TARGET)
    changed, *rest = done.stdout.splitlines()
    assert {case: how for case, how in json.loads(changed).items() if how == "done"} == {}
    assert len(target.wait_closed(1)) == 1, rest


@pytest.mark.parametrize("words", ["unshare -Ur", "unshare -Urn"])
def test_nested_namespaces_are_no_way_out(every_scene, target, words):
    check_nested(every_scene, target, words, _stays)


def test_loopback_is_the_worlds(place):
    """A port that leads out is not reached by loopback; all others are the world's own."""
    script = """
import errno, json, socket
told = {}
def reach(host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as one:
        one.settimeout(5)
        try:
            one.connect((host, port))
            return one.recv(10).decode()
        except OSError as error:
            return errno.errorcode[error.errno]
own = socket.create_server(("127.0.0.1", 8081))
with socket.socket() as one:
    one.connect(("127.0.0.1", 8081))
    peer, _ = own.accept()
    peer.sendall(b"own")
    told["own"] = one.recv(10).decode()
for host in ("127.0.0.1", "127.9.9.9", "::1", "0.0.0.0"):
    told[host] = reach(host, 80), reach(host, 8082)
for port, reuse in ((80, 0), (80, 1), (443, 1), (53, 1), (8080, 1)):
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse)
        try:
            one.bind(("198.18.0.1" if port == 443 else "127.0.0.1", port))
            one.listen()
            told[f"take {port} {reuse}"] = "done"
        except OSError as error:
            told[f"take {port} {reuse}"] = errno.errorcode[error.errno]
print(json.dumps(told))
"""
    path = place.caller.work / "loopback.py"
    path.write_text(script)
    place.caller.own(path)
    ran = place.run(f"{PYTHON} -I -S loopback.py", "--allow", "plain.example.net")
    told = json.loads(ran.stdout)
    assert told.pop("own") == "own"
    for host in ("127.0.0.1", "127.9.9.9", "::1", "0.0.0.0"):
        assert told.pop(host) == ["ECONNRESET", "ECONNREFUSED"], host
    taken = {"EADDRINUSE"} if place.caller.uid == 0 else {"EADDRINUSE", "EACCES"}
    assert told.pop("take 8080 1") == "done"
    assert set(told.values()) <= taken, told
    reason = "port 80 of the world's loopback leads out, not back"
    assert {(b["decision"], b["reason"]) for b in ran.of("net_connect")} == {("deny", reason)}
    only_to(place.hosts)


def test_where_nothing_is_allowed_the_ports_are_the_worlds(place):
    line = (
        f"{PYTHON} -m http.server -b 127.0.0.1 8080 2>/dev/null & "
        "for i in $(seq 100); do curl -sS -o /dev/null http://127.0.0.1:8080/ && break; sleep 0.05; done;"
        "kill $!; curl -sS http://203.0.113.10/ 2>&1; true"
    )
    ran = place.run(line)
    assert b"203.0.113.10" in ran.stdout
    assert not ran.of("net_connect")
    only_to(place.hosts)


def test_ports_of_the_host(place, internet):
    """The world's localhost has the ports that are named."""
    service = host_service(internet)
    service.forget()
    port = service.ports[0]
    own = f"curl -sS http://127.0.0.1:{port}/"
    other = f"curl -sSf -m 3 http://203.0.113.10:{port}/"
    ran = place.run(f"{own}; {other} && exit 9; true", "--host-port", str(port))
    assert ran.stdout == b"the host\n"
    assert len(service.wait_closed()) == 1
    only_to(place.hosts, service)


# --- whose it is, and how much


def test_every_event_is_of_its_program(hosts, caller, program, server):
    lines = [line for line in crowd(hosts, 200) if line[1][0] in "pq"]
    rules = [word for port in (4100, 4104, 4105) for word in ("--allow", f"{ALLOW[1]}:{port}")]
    ran = Ran(hosts, caller, program, lines, *rules, *ALLOW[2:])
    assert ran.wrong(program_of) == []
    check_bytes(ran, server, lines)
    assert {said.error for said in ran.said.values()} == {0}
    (coverage,) = ran.of("coverage", component="world")
    (spot,) = coverage["body"]["blind_spots"]
    assert "ports 4100, 4104 and 4105 alone lead out" in spot


def test_without_capture_the_socket_is_looked_up(place):
    """Of IPv4, of IPv6, and of questions."""
    line = "curl -sS http://plain.example.net/ && curl -sS http://[2001:db8:0:2::10]/"
    rules = ("--allow", "plain.example.net", "--allow", "[2001:db8:0:2::10]:80")
    ran = place.run(line, "--capture", "off", *rules)
    assert ran.stdout == b"plain.example.net\n" * 2
    bodies = [*ran.of("dns_query"), *ran.of("net_connect")]
    assert {(body["proc"], body["program"]) for body in bodies} == {(None, "curl")}
    assert len(ran.of("net_connect")) == 2


# --- while it runs


class Running:
    """A command that waits for lines, and does each."""

    def __init__(self, hosts, caller, *rules):
        self.hosts, self.caller = hosts, caller
        self.who = {"uid": caller.uid, "gid": caller.gid, "cwd": caller.work, "env": caller.environ}
        script = 'echo ready; while read line; do eval "$line"; echo "= $?"; done'
        self.process = Scene(hosts, caller).start(script, *rules, options=("--fresh",))
        assert self.process.stdout.readline() == b"ready\n", self.process.stderr.read()

    def do(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        told = []
        while not (said := self.process.stdout.readline().decode()).startswith("= "):
            assert said, self.process.stderr.read()
            told.append(said)
        return int(said[2:]), "".join(told)

    def net(self, *words, status=0):
        return self.hosts.run([self.caller.command, "net", *words], status=status, **self.who)

    def end(self):
        return self.process.communicate(timeout=20)


@pytest.fixture
def run(hosts, caller):
    begun = []

    def made(*rules):
        begun.append(Running(hosts, caller, *rules))
        return begun[-1]

    yield made
    for one in begun:
        if one.process.poll() is None:
            one.process.kill()
        if not one.process.stdout.closed:
            one.process.communicate()


@pytest.mark.parametrize("rules", [(), ("secure.example.net",)])
def test_rules_of_a_command_that_runs(run, hosts, rules):
    """The world makes a listener for each port that is new, also of those of root."""
    assert hosts.plain
    running = run(*rules)
    get = "curl -sS -m 5 http://plain.example.net:{}/"
    assert running.do(get.format(8080))[0] == 6
    running.net("allow", "plain.example.net:8080")
    assert running.do(get.format(8080)) == (0, "plain.example.net\n")
    if not rules:
        assert running.do(get.format(80))[0] == 7
    running.net("allow", "http://plain.example.net")
    assert running.do(get.format(80)) == (0, "plain.example.net\n")
    told = json.loads(running.net("status", "--format", "json").stdout)
    assert told["filter"] == "listeners"
    assert told["ports"] == sorted({80, 8080} | ({443} if rules else set()))
    assert b"alone (no nf_tables here: E-NFT)" in running.net("status").stdout
    running.net("deny", "plain.example.net")
    assert running.do(get.format(8080))[0] != 0
    running.end()
    running.caller.verify()


def test_a_change_that_cannot_be_served_changes_nothing(run, hosts):
    assert hosts.plain
    running = run("secure.example.net")
    assert (
        running.do(f"{PYTHON} -m http.server -b 127.0.0.1 8080 >/dev/null 2>&1 & sleep 0")[0] == 0
    )
    wait = "for i in $(seq 100); do curl -s -o /dev/null http://127.0.0.1:8080/ && break; sleep 0.05; done"
    assert running.do(wait)[0] == 0
    done = running.net("allow", "plain.example.net:8080", status=3)
    assert b"nothing was changed: listen on :: port 8080: Address already in use" in done.stderr
    done = running.net("allow", "203.0.113.0/24", status=3)
    assert b"nothing was changed: 203.0.113.0/24 would not be reached on all" in done.stderr
    told = json.loads(running.net("status", "--format", "json").stdout)
    assert (told["allow"], told["ports"]) == (["secure.example.net"], [80, 443])
    assert running.do("curl -sS -m 5 http://plain.example.net:8080/")[0] == 6
    running.do("kill $!")
    running.end()


def test_what_is_served_ends_with_the_supervisor(run, hosts):
    """Nobody holds a listener then: what is left of a world, if anything were, reaches nothing."""
    assert hosts.plain
    running = run("plain.example.net")
    assert running.do("curl -sS -m 5 http://plain.example.net/")[0] == 0
    running.process.send_signal(signal.SIGKILL)
    running.process.wait(20)
    hosts.forget()
    until = time.monotonic() + 1
    while time.monotonic() < until:
        assert hosts.packets() == []
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{running.process.pid}/ns/net")


def test_ports_are_published_as_ever(run, hosts, caller):
    line = f"{PYTHON} -m http.server -b 127.0.0.1 8080 2>/dev/null"
    process = Scene(hosts, caller).start(line, options=("--fresh", "--publish", "8378:8080"))
    try:
        done = hosts.run(
            ["curl", "-sS", "--retry", "20", "--retry-all-errors", "--retry-delay", "1",
             "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:8378/"]
        )  # fmt: skip
        assert done.stdout == b"200"
    finally:
        process.kill()
        process.communicate()
