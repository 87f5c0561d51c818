"""Real clients in worlds of a filtered network: each reaches the host that a rule names, and that
one only; without the rule it fails at once, and a line says what would allow it.

The hosts are those of tests/nethosts, whose test_clients.py has the same clients without a world.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.nethosts import content
from tests.nethosts.fixtures import hosts, internet
from tests.nethosts.hosts import Hosts
from tests.nethosts.programs import need
from tests.nethosts.servers import Server
from tests.system.client_run import Place, Ran, counted, only_to

__all__ = ["hosts", "internet"]

PYTHON = "/usr/bin/python3"
#: a client has given up by then, from the command's start to its end
FAST_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Client:
    """`line`: of the shell, with `$host`; `server`: of the hosts; `rule`: that allows it, a name by
    itself where it is ""; `scopes`: what was talked to; `needs`: programs, as programs.need takes
    them; `program`: who makes the connection; `makes`: standard output; `fails`: what the client
    says without the rule, on either stream; `connections`: how many."""

    line: str
    server: str
    scope: str
    fails: str
    rule: str = ""
    needs: tuple[str, ...] = ()
    program: str = ""
    makes: str | Callable[[str], bool] = ""
    connections: int | None = 1
    flags: Callable[[Hosts], tuple[str, ...]] = field(default=lambda hosts: ())


def _received(length: int, digest: str) -> Callable[[str], bool]:
    def check(told: str) -> bool:
        found = json.loads(told)
        return (found["length"], found["sha256"]) == (length, digest)

    return check


CURL, WGET, NODE = "/usr/bin/curl", "/usr/bin/wget", "/usr/bin/node"
_ZEROS = hashlib.sha256(bytes(5_000_000)).hexdigest()
_BIG = 20_000_000

_URLLIB = """
import sys, urllib.request
print(len(urllib.request.urlopen(sys.argv[1]).read()))
"""
_SSL = """
import socket, ssl, sys
context = ssl.create_default_context()
with socket.create_connection((sys.argv[1], 443)) as plain:
    with context.wrap_socket(plain, server_hostname=sys.argv[1]) as inside:
        version = inside.version()
        inside.sendall(b'GET / HTTP/1.1\\r\\nHost: %b\\r\\nConnection: close\\r\\n\\r\\n' % sys.argv[1].encode())
        told = b''
        while data := inside.recv(65536): told += data
print(told.split(b'\\r\\n\\r\\n')[1].decode().strip(), version)
"""
_ASYNCIO = """
import asyncio, ssl, sys
async def one():
    r, w = await asyncio.open_connection(sys.argv[1], 443, ssl=ssl.create_default_context())
    w.write(b'GET /bytes/70000 HTTP/1.1\\r\\nHost: %b\\r\\nConnection: close\\r\\n\\r\\n' % sys.argv[1].encode())
    told = await r.read()
    w.close()
    return len(told.partition(b'\\r\\n\\r\\n')[2])
async def main(): print(sum(await asyncio.gather(*(one() for _ in range(10)))))
asyncio.run(main())
"""
_FETCH = """
fetch(process.argv[2]).then(r => r.arrayBuffer()).then(b => console.log(b.byteLength), e => { console.error(e); process.exit(1) })
"""
_HTTPS = """
require('https').get(process.argv[2], r => { let n = 0; r.on('data', d => n += d.length); r.on('end', () => console.log(n)) })
"""
_SMTP = """
import smtplib, sys
with smtplib.SMTP(sys.argv[1], 25, timeout=20) as smtp: print(smtp.ehlo()[0], smtp.noop()[0])
"""
_HALF = """
import socket, sys
with socket.create_connection((sys.argv[1], 4004)) as one:
    one.sendall(bytes(5000000)); one.shutdown(socket.SHUT_WR)
    print(one.recv(1000).decode().strip())
"""
_WEBSOCKET = """
import os, socket, sys
one = socket.create_connection((sys.argv[1], 80))
one.sendall(b'GET /upgrade HTTP/1.1\\r\\nHost: %b\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n'
            b'Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\\r\\n\\r\\n' % sys.argv[1].encode())
file = one.makefile('rb')
status = file.readline()
while file.readline() != b'\\r\\n': pass
one.sendall(bytes((0x82, 0x85, 0, 0, 0, 0)) + b'hello')
print(status.split()[1].decode(), file.read(7)[2:].decode())
one.sendall(bytes((0x88, 0x80, 0, 0, 0, 0)))
file.read(2)
"""
_GIT = """
set -e
git clone -q "$url" project; cd project; sha256sum big | cut -c-64; git checkout -q -b pushed
echo three >> file; git -c user.name=N -c user.email=n@example.net commit -qam More
git push -q origin pushed; git ls-remote origin pushed | cut -f2; git push -q origin :pushed
"""


def _script(program: str, text: str, url: str = "$host") -> str:
    return f"{program} - {url} <<'END'\n{text}\nEND"


CLIENTS = {
    "curl http": Client(
        needs=(CURL,),
        line="curl -sS http://$host/bytes/70000 | sha256sum | cut -c-64; exit ${PIPESTATUS[0]}",
        server="plain",
        scope="http://plain.example.net:80",
        makes=content.digest(70_000),
        fails="Could not resolve host",
        program="curl",
    ),
    "curl https": Client(
        needs=(CURL,),
        line="curl -sS https://$host/chunked/70000 | sha256sum | cut -c-64; exit ${PIPESTATUS[0]}",
        server="secure",
        scope="tls://secure.example.net:443",
        makes=content.digest(70_000),
        fails="Could not resolve host",
        program="curl",
    ),
    "curl HTTP/2": Client(
        needs=(CURL, "/usr/sbin/nginx"),
        line="curl -sS --http2 -w '%{http_version}' -o got https://$host/1000000 && sha256sum got | cut -c-64",
        server="h2",
        scope="tls://h2.example.net:443",
        makes="2" + content.digest(1_000_000),
        fails="Could not resolve host",
        program="curl",
    ),
    "curl, several on a connection": Client(
        needs=(CURL,),
        line="curl -sS http://$host/ http://$host/received -d x http://$host/bytes/7 -o got -o got -o got -w '%{http_code} '",
        server="plain",
        scope="http://plain.example.net:80",
        makes="200 200 200",
        fails="Could not resolve host",
        program="curl",
    ),
    "curl, a big download": Client(
        needs=(CURL,),
        line=f"curl -sS http://$host:8080/bytes/{_BIG} | sha256sum | cut -c-64; exit ${{PIPESTATUS[0]}}",
        server="plain",
        scope="http://plain.example.net:8080",
        makes=content.digest(_BIG),
        fails="Could not resolve host",
        program="curl",
    ),
    "curl, an upload": Client(
        needs=(CURL,),
        line="head -c 5000000 /dev/zero | curl -sS --data-binary @- https://$host/received",
        server="secure",
        scope="tls://secure.example.net:443",
        makes=_received(5_000_000, _ZEROS),
        fails="Could not resolve host",
        program="curl",
    ),
    "curl, an upload in chunks": Client(
        needs=(CURL,),
        line="head -c 5000000 /dev/zero | curl -sS -T - http://$host/received",
        server="plain",
        scope="http://plain.example.net:80",
        makes=_received(5_000_000, _ZEROS),
        fails="Could not resolve host",
        program="curl",
    ),
    "wget": Client(
        needs=(WGET,),
        line="wget -nv -O got http://$host/bytes/70000 && sha256sum got | cut -c-64",
        server="plain",
        scope="http://plain.example.net:80",
        makes=content.digest(70_000),
        fails="unable to resolve host address",
        program="wget",
    ),
    "wget https": Client(
        needs=(WGET,),
        line="wget -nv -O got https://$host/bytes/70000 && sha256sum got | cut -c-64",
        server="secure",
        scope="tls://secure.example.net:443",
        makes=content.digest(70_000),
        fails="unable to resolve host address",
        program="wget",
    ),
    "python urllib": Client(
        needs=(PYTHON,),
        line=_script(PYTHON, _URLLIB, "http://$host/bytes/70000"),
        server="plain",
        scope="http://plain.example.net:80",
        makes="70000",
        fails="Name or service not known",
        program="python",
    ),
    "python ssl": Client(
        needs=(PYTHON,),
        line=_script(PYTHON, _SSL),
        server="secure",
        scope="tls://secure.example.net:443",
        makes="secure.example.net TLSv1.3",
        fails="Name or service not known",
        program="python",
    ),
    "python asyncio": Client(
        needs=(PYTHON,),
        line=_script(PYTHON, _ASYNCIO),
        server="secure",
        scope="tls://secure.example.net:443",
        makes="700000",
        fails="Name or service not known",
        program="python",
        connections=10,
    ),
    "node fetch": Client(
        needs=(NODE,),
        line=_script("node", _FETCH, "https://$host/bytes/7000"),
        server="secure",
        scope="tls://secure.example.net:443",
        makes="7000",
        fails="ENOTFOUND",
        program="node",
    ),
    "node https": Client(
        needs=(NODE,),
        line=_script("node", _HTTPS, "https://$host/bytes/70000"),
        server="secure",
        scope="tls://secure.example.net:443",
        makes="70000",
        fails="ENOTFOUND",
        program="node",
    ),
    "pip": Client(
        needs=(PYTHON, "/usr/bin/pip3"),
        line=f"{PYTHON} -m pip install -q --no-cache-dir --retries 0 --target got --index-url https://$host/simple/ nethosts-probe"
        f" && PYTHONPATH=got {PYTHON} -c 'import nethosts_base, nethosts_probe as p; print(p.works())'",
        server="packages",
        scope="tls://pypi.example.net:443",
        makes="True",
        fails="No matching distribution found",
        program="python",
        connections=None,
    ),
    "git https": Client(
        needs=("/usr/lib/git-core/git-http-backend",),
        line=f"url=https://$host/git/project.git\n{_GIT}",
        server="git",
        scope="tls://git.example.net:443",
        makes=f"{content.digest(300_000)}\nrefs/heads/pushed",
        fails="Could not resolve host",
        program="git-remote-http",
        connections=None,
    ),
    "git ssh": Client(
        needs=("/usr/sbin/sshd", "/usr/bin/ssh-keygen"),
        line=f"url=git@$host:project.git\n{_GIT}",
        server="git_ssh",
        rule="git.example.net:22",
        scope="tcp://git.example.net:22",
        makes=f"{content.digest(300_000)}\nrefs/heads/pushed",
        fails="Could not resolve hostname",
        program="ssh",
        connections=4,
        flags=lambda hosts: tuple(f"--env={n}={v}" for n, v in hosts.ssh_environment.items()),
    ),
    "psql": Client(
        needs=("/usr/bin/psql", "/usr/lib/postgresql/*/bin/initdb"),
        line="psql -XAtc 'select sum(n) from generate_series(1, 1000) n' 'host='$host' user=postgres sslmode=disable'",
        server="database",
        rule="db.example.net:5432",
        scope="tcp://db.example.net:5432",
        makes="500500",
        fails="could not translate host name",
        program="psql",
    ),
    "psql with TLS": Client(
        needs=("/usr/bin/psql", "/usr/lib/postgresql/*/bin/initdb"),
        line="psql -XAtc 'select count(*) from pg_stat_ssl where ssl and pid = pg_backend_pid()'"
        " 'host='$host' user=postgres sslmode=verify-full sslrootcert=/etc/ssl/certs/ca-certificates.crt'",
        server="database",
        rule="db.example.net:5432",
        scope="tcp://db.example.net:5432",
        makes="1",
        fails="could not translate host name",
        program="psql",
    ),
    "raw TCP": Client(
        line="exec 3<>/dev/tcp/$host/7 || exit 1; echo hello >&3; read line <&3; echo $line",
        server="raw",
        rule="raw.example.net:7",
        scope="tcp://raw.example.net:7",
        makes="hello",
        fails="Name or service not known",
        program="bash",
    ),
    "raw TCP, half closed": Client(
        needs=(PYTHON,),
        line=_script(PYTHON, _HALF),
        server="raw",
        rule="raw.example.net:4004",
        scope="tcp://raw.example.net:4004",
        makes=f"5000000 {_ZEROS}",
        fails="Name or service not known",
        program="python",
    ),
    "a server that speaks first": Client(
        needs=(PYTHON,),
        line=_script(PYTHON, _SMTP),
        server="raw",
        rule="raw.example.net:25",
        scope="tcp://raw.example.net:25",
        makes="250 250",
        fails="Name or service not known",
        program="python",
    ),
    "a server that speaks alone": Client(
        line="exec 3<>/dev/tcp/$host/4005 || exit 1; sha256sum <&3 | cut -c-64",
        server="raw",
        rule="raw.example.net:4005",
        scope="tcp://raw.example.net:4005",
        makes=content.digest(1_000_000),
        fails="Name or service not known",
        program="bash",
    ),
    "WebSocket": Client(
        needs=(PYTHON,),
        line=_script(PYTHON, _WEBSOCKET),
        server="plain",
        scope="http://plain.example.net:80",
        makes="101 hello",
        fails="Name or service not known",
        program="python",
    ),
    "IPv6 only, by its name": Client(
        needs=(CURL,),
        line="curl -sS https://$host/",
        server="six_secure",
        scope="tls://six.example.net:443",
        makes="six.example.net",
        fails="Could not resolve host",
        program="curl",
    ),
}


@pytest.fixture
def place(hosts: Hosts, any_caller) -> Iterator[Place]:
    with any_caller.names_alone():
        yield Place(hosts=hosts, caller=any_caller)


def check_allowed(place: Place, client: Client) -> Ran:
    """The client works, and nothing else than the server was reached: not by it either, when it is
    told to go to the secret first, in the same world."""
    hosts, server = place.hosts, getattr(place.hosts, client.server)
    hosts.secret_untouched()
    rule = client.rule or server.name
    line = f"(host=secret.example.net; {client.line}\n) >/dev/null 2>secret.err && exit 99; rm -rf project got\nhost={server.name}\n{client.line}"
    ran = place.run(line, "--allow", rule, *client.flags(hosts))
    told = ran.stdout.decode().rstrip("\n")
    assert client.makes(told) if callable(client.makes) else told.strip() == client.makes, ran
    only_to(hosts, server)
    seen = server.wait_closed(client.connections or len(server.connections()))
    assert ran.scopes == {client.scope: counted(seen)}
    check_events(ran, client, server, rule)
    (line,) = ran.told
    assert line.startswith("secret.example.net"), ran.stderr
    return ran


def check_events(ran: Ran, client: Client, server: Server, rule: str) -> None:
    """The record of what was asked and reached, and by whom."""
    own = os.uname().nodename.lower()  # some ask for the name of their own machine
    asked = [b for b in ran.of("dns_query") if b["decision"] != "observed" and b["domain"] != own]
    answers = {body["domain"]: (body["decision"], body["rule"], body["rcode"]) for body in asked}
    assert answers.pop("secret.example.net") == ("deny", None, "NXDOMAIN")
    assert answers == {server.name: ("allow", rule, "NOERROR")}, answers
    made = ran.of("net_connect")
    _, _, port = client.scope.rpartition(":")
    for body in made:
        assert body["ip"] in server.addresses
        assert body["protocol"] == "tcp"
        assert (body["decision"], body["rule"]) == ("allow", rule)
        assert (body["domain"], body["port"]) == (server.name, int(port))
        assert body.get("result") is None
    for body in (*asked, *made, *ran.of("net_close")):
        assert client.program in ran.program(body["proc"]), body
    closed = {body["connection"]: body for body in ran.of("net_close")}
    assert sorted(closed) == sorted(body["connection"] for body in made)
    for way in ("bytes_in", "bytes_out"):
        assert sum(body[way] for body in closed.values()) == ran.scopes[client.scope][way]


def check_refused(place: Place, client: Client) -> Ran:
    """Without the rule it fails at once, as where there is no such name; a line says what to do."""
    hosts, server = place.hosts, getattr(place.hosts, client.server)
    ran = place.run(f"host={server.name}\n{client.line}", *client.flags(hosts), status=None)
    # without a listener of its own capture stops more
    most = FAST_S * (2 if place.caller.backend == "guard" else 1)
    assert ran.seconds < most, ran.seconds
    assert client.fails.encode() in ran.stderr, ran.stderr
    (line,), (who,) = ran.told, ran.who
    assert client.program in who
    assert line.startswith(server.name), line
    assert f"no rule names {server.name}" in line
    assert line.endswith(f"; --allow {server.name} allows it"), line
    only_to(hosts)
    assert ran.scopes == {}
    assert not ran.of("net_connect")
    assert not server.connections()
    return ran


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
def test_a_client_reaches_what_a_rule_names(place, client):
    for program in client.needs:
        need(program)
    check_allowed(place, client)
    place.hosts.forget()
    check_refused(place, client)
    place.caller.verify()
