"""The settings of a filtered network on the client of tests/nethosts: rules for addresses, ranges
and wildcards, what takes away (deny, a project's file, a budget), private addresses, ports of the
host. Each by what arrives at a server, and what is told.
"""

import os

import pytest

from tests.nethosts import content, plan
from tests.nethosts.fixtures import hosts, internet
from tests.nethosts.hosts import Hosts
from tests.nethosts.programs import need
from tests.system.client_run import Place, counted, only_to
from tests.system.egress_scene import host_service

__all__ = ["hosts", "internet"]

_NONE = {"connections": 0, "refused": 1, "bytes_in": 0, "bytes_out": 0}


@pytest.fixture
def place(hosts: Hosts, caller) -> Place:
    need("/usr/bin/curl")
    return Place(hosts=hosts, caller=caller)


def _url(address: str, port: int = 80) -> str:
    return f"http://[{address}]:{port}/" if ":" in address else f"http://{address}:{port}/"


def _endpoint(address: str, port: int) -> str:
    return _url(address, port)[7:-1]


@pytest.mark.parametrize("address", [plan.PLAIN[0], plan.SIX[0]])
def test_an_address_by_itself(place, address):
    """A rule for it, with a port and without; without a rule, refused at once by the kernel."""
    server = place.hosts.six if address in plan.SIX else place.hosts.plain
    end = _endpoint(address, 80)
    ran = place.run(f"curl -sS {_url(address)}", status=7)
    assert ran.seconds < 2
    assert b"Couldn't connect" in ran.stderr or b"Connection refused" in ran.stderr
    assert ran.told == [f"{end}: no rule names {address}; --allow {end} allows it"]
    assert ran.scopes == {f"tcp://{end}": _NONE}
    (body,) = ran.of("net_connect")
    assert (body["ip"], body["port"], body["protocol"]) == (address, 80, "tcp")
    assert (body["decision"], body["rule"], body["domain"]) == ("deny", None, None)
    assert ran.program(body["proc"]) == "curl"
    assert not place.hosts.packets()
    for rule in (end, f"[{address}]" if ":" in address else address):
        place.hosts.forget()
        ran = place.run(f"curl -sS {_url(address)}", "--allow", rule)
        assert ran.stdout.decode() == f"{server.name}\n"
        assert ran.scopes == {f"http://{end}": counted(server.wait_closed())}
        (body,) = ran.of("net_connect")
        assert (body["ip"], body["port"], body["rule"]) == (address, 80, rule)
        assert (body["decision"], body["domain"]) == ("allow", None)
        assert not ran.told
        only_to(place.hosts, server)


def test_a_range(place):
    """What is in it, by address only, and by the port that it names."""
    hosts, rule = place.hosts, "203.0.113.8/29:80"
    server = hosts.plain
    line = f"""
        curl -sS {_url(server.address)} || exit 8
        curl -sS {_url(server.address, 8080)} && exit 9
        curl -sS {_url(plan.SECRET[0])} && exit 9
        curl -sS {_url(server.addresses[1])} && exit 9
        curl -sS http://{server.name}/ && exit 9
        true
    """
    ran = place.run(line, "--allow", rule)
    assert ran.stdout.decode().splitlines()[0] == server.name
    assert ran.scopes.pop(f"http://{server.address}:80") == counted(server.wait_closed())
    assert {body["rule"] for body in ran.of("net_connect")} == {rule, None}
    only_to(hosts, server)
    assert not hosts.names.asked()
    assert ran.scopes == {
        f"http://{server.address}:80": counted(server.connections()),
        f"tcp://{server.address}:8080": _NONE,
        f"tcp://{plan.SECRET[0]}:80": _NONE,
        f"tcp://[{server.addresses[1]}]:80": _NONE,
    }


def test_a_wildcard(place):
    hosts = place.hosts
    servers = [hosts.plain, hosts.secure]
    line = """
        curl -sS http://plain.example.net/ && curl -sS https://secure.example.net/ || exit 8
        for host in example.net plain.example.net.example.com notexample.net; do
            curl -sS http://$host/ && exit 9
        done; true
    """
    ran = place.run(line, "--allow", "*.example.net")
    assert ran.stdout.split() == [b"plain.example.net", b"secure.example.net"]
    assert {body["rule"] for body in ran.of("net_connect")} == {"*.example.net"}
    assert [line.partition(":")[0] for line in ran.told] == [
        "example.net",
        "plain.example.net.example.com",
        "notexample.net",
    ]
    only_to(hosts, *servers)


@pytest.mark.parametrize(
    ("denied", "told"),
    [
        ("plain.example.net", "plain.example.net: plain.example.net is denied by {}"),
        ("*.example.net", "plain.example.net: plain.example.net is denied by {}"),
        (
            "plain.example.net:80",
            "plain.example.net:80: port 80 of plain.example.net is denied by {}",
        ),
        ("http://plain.example.net", "plain.example.net:80: "),
        ("2001:db8::/32", "plain.example.net:80: "),
    ],
)
def test_a_deny_is_above_an_allow(place, denied, told):
    """And nothing is said of how to allow it: that would not help."""
    hosts = place.hosts
    assert hosts.plain
    deny = ["--deny", denied]
    if "/" in denied:
        deny += ["--deny", "203.0.113.0/24"]
    ran = place.run("curl -sSf http://plain.example.net/", "--allow", "plain.example.net", *deny, status=None)  # fmt: skip
    (line,) = ran.told
    assert line.startswith(told.format(denied)), line
    assert "--allow" not in line
    if "http" in denied:  # what is spoken is known while the server is being connected to
        assert all(one.received == 0 for one in hosts.plain.connections())
    else:
        assert not [p for p in hosts.packets() if p.protocol == "tcp"]


def test_private_addresses_behind_a_name(place):
    """An allowed name leads to one only where a range of `private` says so."""
    hosts = place.hosts
    line = "curl -sSf http://private.example.net/"
    assert hosts.private and hosts.metadata
    allow = ("--allow", "*.example.net")
    for private in ((), ("--private", "172.16.0.0/12")):
        ran = place.run(line, *allow, *private, status=None)
        (said,) = ran.told
        assert said.startswith("private.example.net:80: 10.1.2.3, which private.example.net"), said
        assert "--private 10.1.2.3" in said
        assert "--allow" not in said
        (body,) = ran.of("net_connect")
        assert (body["decision"], body["domain"]) == ("deny", "private.example.net")
    assert not hosts.private.connections()
    assert {packet.protocol for packet in hosts.packets()} == {"udp"}
    ran = place.run(line, *allow, "--private", "10.0.0.0/8")
    assert ran.stdout == b"private.example.net\n"
    assert ran.scopes == {"http://private.example.net:80": counted(hosts.private.wait_closed())}
    ran = place.run("curl -sSf http://metadata.example.net/", *allow, "--private", "10.0.0.0/8", status=None)  # fmt: skip
    assert "--private 169.254.169.254" in ran.told[0]
    assert not hosts.metadata.connections()


def test_private_addresses_by_themselves(place):
    """A rule that names the very range opens it, one that is wider does not."""
    hosts = place.hosts
    assert hosts.private and hosts.metadata
    ran = place.run(f"curl -sS {_url('10.1.2.3')}", "--allow", "10.1.0.0/16:80")
    assert ran.stdout == b"private.example.net\n"
    for address, kind in (("10.1.2.3", "private"), (plan.METADATA[0], "metadata")):
        hosts.forget()
        ran = place.run(f"curl -sS {_url(address)}", "--allow", "0.0.0.0/0", status=None)
        (said,) = ran.told
        assert said.startswith(f"{address}:80: {address} is special ({kind})"), said
        assert not hosts.packets()


def test_ports_of_the_host(place, internet):
    """The world's localhost has the ports that are named, and its own services all the same."""
    hosts = place.hosts
    service = host_service(internet)
    port = service.ports[0]
    ran = place.run(f"curl -sS http://localhost:{port}/", status=7)
    assert "--host-port PORT" in ran.stderr.decode()
    assert not service.connections()
    line = f"""
        for host in localhost 127.0.0.1 [::1]; do curl -sS http://$host:{port}/ || exit 8; done
        curl -sS http://localhost:{port + 1}/ && exit 9
        /usr/bin/python3 -m http.server -b 127.0.0.1 {port + 2} 2>/dev/null &
        for i in $(seq 100); do
            curl -sSf http://127.0.0.1:{port + 2}/ >/dev/null 2>&1 && break; sleep 0.05
        done
        curl -sSf http://127.0.0.1:{port + 2}/ >/dev/null && kill %1
    """
    ran = place.run(line, "--host-port", str(port))
    assert ran.stdout == b"the host\n" * 3
    seen = service.wait_closed(3)
    assert {body["rule"] for body in ran.of("net_connect")} == {f"host_ports {port}"}
    assert sum(scope["bytes_in"] for scope in ran.scopes.values()) == sum(one.sent for one in seen)
    assert not hosts.packets()


def test_a_project_may_only_tighten(place):
    """Its allow, its private ranges and its ports are left out with a word; its deny holds, and so
    does the lower limit."""
    hosts, caller = place.hosts, place.caller
    assert hosts.plain and hosts.secure and hosts.private
    folder = caller.make_directory(caller.work / ".substrate")
    (folder / "config.toml").write_text(
        """
        [net]
        allow = ["secret.example.net", "private.example.net"]
        deny = ["secure.example.net"]
        private = ["10.0.0.0/8"]
        host_ports = [7801]
        [limits]
        egress = "20k"
        """
    )
    line = """
        curl -sS http://plain.example.net/ || exit 8
        curl -sS https://secure.example.net/ && exit 9
        curl -sSf http://private.example.net/ && exit 9
        curl -sS http://secret.example.net/ && exit 9
        curl -sS http://localhost:7801/ && exit 9
        curl -sS -o got http://plain.example.net/bytes/100000 && exit 9
        true
    """
    service = host_service(hosts)
    flags = ("plain.example.net", "secure.example.net", "private.example.net")
    ran = place.run(line, *(f"--allow={name}" for name in flags))
    assert ran.stdout == b"plain.example.net\n"
    for key in ("net.allow", "net.private", "net.host_ports"):
        assert f"{key} is left out" in ran.stderr.decode()
    assert not hosts.secure.connections() and not hosts.private.connections()
    assert not service.connections()
    assert sum(one.received for one in hosts.plain.connections()) < 20480
    (budget,) = ran.of("budget")
    assert budget["limit"] == 20480
    hosts.secret_untouched()
    (folder / "config.toml").write_text('net = "none"\n')
    hosts.forget()
    ran = place.run("curl -sS http://plain.example.net/", "--allow", "plain.example.net", status=6)
    assert not hosts.packets()
    (folder / "config.toml").write_text('net = "host"\n')
    ran = place.run("curl -sS http://plain.example.net/", status=6)
    assert "only set it to none" in ran.stderr.decode()


def test_a_budget(place):
    """Never more than it in both directions together, and then nothing any more; a word says so."""
    hosts = place.hosts
    limit = 1 << 20
    line = """
        curl -sS http://plain.example.net/bytes/500000 | sha256sum | cut -c-64
        curl -sS -o got http://plain.example.net/bytes/2000000 && exit 9
        wc -c < got
        curl -sS http://plain.example.net/ && exit 9
        true
    """
    ran = place.run(line, "--allow", "plain.example.net", "--limit", "egress=1m")
    digest, size = ran.stdout.split()
    assert digest.decode() == content.digest(500_000)
    scope = ran.scopes["http://plain.example.net:80"]
    assert 1_000_000 < scope["bytes_in"] + scope["bytes_out"] <= limit
    assert int(size) <= limit - 500_000
    (budget,) = ran.of("budget")
    assert (budget["budget"], budget["limit"]) == ("egress", limit)
    assert budget["used"] <= limit
    lines = [line for line in ran.stderr.decode().splitlines() if "--limit egress=" in line]
    assert len(lines) == 1 and lines[0].startswith("substrate: "), ran.stderr
    assert len(hosts.plain.connections()) == 2
    assert not [line for line in ran.told if "--allow" in line]


def test_a_protocol_that_no_rule_lets_be_spoken(place):
    """A name by itself stands for TLS and HTTP; the line says what would allow the rest."""
    hosts = place.hosts
    assert hosts.raw
    line = "exec 3<>/dev/tcp/raw.example.net/{}; echo hello >&3; cat <&3"
    ran = place.run(line.format(7), "--allow", "raw.example.net", status=None)
    (said,) = ran.told
    assert said.startswith("raw.example.net:7: "), said
    assert said.endswith("; --allow raw.example.net:7 allows it"), said
    ran = place.run(line.format(443), "--allow", "raw.example.net", status=None)
    (said,) = ran.told
    assert said.endswith("; --allow tcp://raw.example.net:443 allows it"), said
    assert [one.received for one in hosts.raw.connections()] in ([], [0], [0, 0])
    ran = place.run(line.format(443).replace("cat", "head -1"), "--allow", "tcp://raw.example.net:443")  # fmt: skip
    assert ran.stdout == b"hello\n"


def test_what_is_not_tcp(place):
    """UDP, as of a client that tries QUIC first, is refused at once; the line does not say that a
    rule would help."""
    hosts = place.hosts
    assert hosts.udp
    script = """
import socket, sys
for host, port in (("udp.example.net", 443), ("203.0.113.14", 7)):
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.connect((host, port))
    made.settimeout(5)
    try:
        made.send(b"x")
        made.recv(1)
    except (ConnectionRefusedError, PermissionError, OSError) as error:
        print(type(error).__name__)
"""
    line = f"/usr/bin/python3 - <<'END'\n{script}\nEND"
    ran = place.run(line, "--allow", "udp.example.net")
    assert ran.seconds < 2
    assert b"TimeoutError" not in ran.stdout and len(ran.stdout.split()) == 2
    reason = "udp does not leave a filtered network, only TCP does"
    assert ran.told == [f"udp://udp.example.net:443: {reason}", f"udp://203.0.113.14:7: {reason}"]
    named, unnamed = ran.of("net_connect")
    assert (named["domain"], named["port"], named["protocol"]) == ("udp.example.net", 443, "udp")
    assert (unnamed["domain"], unnamed["ip"], unnamed["port"]) == (None, "203.0.113.14", 7)
    assert named["decision"] == unnamed["decision"] == "deny"
    assert not hosts.udp.datagrams()
    assert not hosts.packets()


def test_the_hosts_own_name_is_no_wish_to_reach_anything(place):
    """git and others ask for it; where no file has it that is a question like any other."""
    name = os.uname().nodename.lower()
    ran = place.run(f"getent hosts {name} || true")
    assert name in {body["domain"] for body in ran.of("dns_query")}
    assert not ran.told


@pytest.mark.parametrize("capture", ["off", "exec", "all"])
def test_at_each_level_of_capture(place, capture):
    """The network is decided and recorded without it; it tells whose a connection is."""
    server = place.hosts.plain
    flags = ("--allow", server.name, "--capture", capture)
    ran = place.run(f"curl -sS http://{server.name}/ http://secret.example.net/", *flags, status=6)
    assert ran.stdout.decode() == f"{server.name}\n"
    assert ran.scopes == {"http://plain.example.net:80": counted(server.wait_closed())}
    assert len(ran.told) == 1
    (made,) = ran.of("net_connect")
    if capture == "all":
        assert ran.program(made["proc"]) == "curl"
    elif capture == "off":
        assert made["proc"] is None
    only_to(place.hosts, server)
    place.caller.verify()


@pytest.mark.parametrize(
    ("allow", "host", "why"),
    [
        ("plain.example.net:443", "plain.example.net", "port 80 of plain.example.net is not"),
        ("private.example.net", "private.example.net", "10.1.2.3, which private.example.net"),
        ("203.0.113.0/24:8080", plan.PLAIN[0], f"port 80 of {plan.PLAIN[0]} is not"),
    ],
)
def test_a_client_of_http_reads_that_it_is_refused(place, allow, host, why):
    """An answer of HTTP, not a reset: wget would try again for minutes. Nothing is connected to."""
    need("/usr/bin/wget")
    hosts = place.hosts
    assert hosts.plain and hosts.private
    line = f"wget -nv -O got http://{host}/; wget -q -O- --content-on-error http://{host}/"
    ran = place.run(line, "--allow", allow, status=8)
    assert ran.seconds < 2
    assert b"ERROR 403: Forbidden" in ran.stderr
    assert ran.stdout.decode().startswith(f"substrate: {why}"), ran.stdout
    (said,) = ran.told
    assert said.startswith(f"{host}:80 (2 times): {why}"), said
    assert len(ran.of("net_connect")) == 2
    assert not ran.of("net_close")
    assert not [packet for packet in hosts.packets() if packet.protocol == "tcp"]
    ran = place.run(f"curl -sS http://{host}/", "--allow", allow, status=18)
    assert ran.stdout.decode().startswith(f"substrate: {why}"), ran.stdout


def test_others_that_are_refused_get_a_reset(place):
    """At once where they speak, after a moment where they wait for the server."""
    hosts = place.hosts
    assert hosts.raw
    line = """
        exec 3<>/dev/tcp/raw.example.net/7; echo hello >&3; read -t 5 line <&3; echo $?
        exec 3<>/dev/tcp/raw.example.net/25; read -t 5 line <&3; echo $?
    """
    ran = place.run(line, "--allow", "raw.example.net:22")
    assert ran.seconds < 2
    assert ran.stdout == b"1\n1\n"
    assert ran.stderr.count(b"Connection reset by peer") == 2
    assert [what.partition(" ")[0] for what in ran.told] == [
        "raw.example.net:7:",
        "raw.example.net:25:",
    ]
    assert not [packet for packet in hosts.packets() if packet.protocol == "tcp"]


def test_a_server_that_is_allowed_and_not_there(place):
    """The client sees that its connection was reset; the line says why."""
    hosts = place.hosts
    assert hosts.plain
    line = """
        curl -sS http://unreachable.example.net/ || echo $?
        curl -sS http://plain.example.net:81/ || echo $?
        curl -sS http://nobody.example.net/ || echo $?
    """
    ran = place.run(line, "--allow", "*.example.net:1-100")
    # a reset, when its request has been sent
    assert ran.stdout.split() == [b"56"] * 3, ran
    assert not ran.told
    lines = [line for line in ran.stderr.decode().splitlines() if "was not reached" in line]
    for found, (what, why) in zip(
        lines,
        [
            ("unreachable.example.net:80", "203.0.113.200 port 80: No route to host"),
            ("plain.example.net:81", "port 81: Connection refused"),
            ("nobody.example.net:80", "nobody.example.net: "),
        ],
        strict=True,
    ):
        assert found.startswith(f"substrate: {what} is allowed and was not reached: "), found
        assert why in found, found
    for body in ran.of("net_connect"):
        assert body["decision"] == "allow" and body["result"]
    hosts.secret_untouched()
