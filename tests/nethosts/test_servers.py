"""How the servers of the tests behave, asked by a program of sockets on the client."""

import hashlib
import json

import pytest

from tests.nethosts import content, plan

_BEGIN = """
import hashlib, json, os, socket, struct, sys, time
def to(port, name="raw.example.net"):
    made = socket.create_connection((name, port), timeout=20)
    return made
def rest(made):
    data = b""
    while piece := made.recv(1 << 16):
        data += piece
    return data
"""


@pytest.fixture
def ask(hosts):
    """Runs lines of Python on the client; the JSON that they print."""

    def run(script):
        done = hosts.run(["/usr/bin/python3", "-Ic", _BEGIN + script])
        return json.loads(done.stdout)

    return run


def test_echo(hosts, ask):
    assert hosts.raw
    told = ask("""
s = to(7); s.sendall(b"x" * 100000); s.shutdown(1); print(json.dumps(len(rest(s))))
""")
    assert told == 100_000
    (seen,) = hosts.raw.wait_closed()
    assert (seen.received, seen.sent, seen.failure) == (100_000, 100_000, "")
    assert seen.sha256 == hashlib.sha256(b"x" * 100_000).hexdigest()


def test_source_and_flood(hosts, ask):
    assert hosts.raw
    told = ask("""
s = to(19); s.sendall(b"5000000\\n"); a = hashlib.sha256(rest(s)).hexdigest()
b = hashlib.sha256(rest(to(4005))).hexdigest()
print(json.dumps([a, b]))
""")
    assert told == [content.digest(5_000_000), content.digest(1_000_000)]
    assert [seen.sent for seen in hosts.raw.wait_closed(2)] == [5_000_000, 1_000_000]


def test_who_speaks_first(hosts, ask):
    assert hosts.raw
    told = ask("""
s = to(25); first = s.recv(100).decode(); s.sendall(b"EHLO me\\r\\nQUIT\\r\\n"); more = rest(s).decode()
t = to(22); banner = t.recv(100).decode(); t.sendall(b"SSH-2.0-me\\r\\n"); rest(t)
print(json.dumps([first, more, banner]))
""")
    assert told[0].startswith("220 ") and told[1].endswith("221 bye\r\n")
    assert told[2] == "SSH-2.0-nethosts\r\n"


def test_ends_of_connections(hosts, ask):
    """A reset, an end with bytes unread, and an answer after the client's half is over."""
    assert hosts.raw
    told = ask("""
def end(port, sent):
    s = to(port)
    try:
        s.sendall(sent)
        return [len(rest(s)), ""]
    except ConnectionError:
        return [0, "reset"]
s = to(4004); s.sendall(b"y" * 70000); s.shutdown(1)
print(json.dumps([end(4002, b"z"), end(4001, b"z" * 200000)[1], rest(s).decode()]))
""")
    assert told[0] == [0, "reset"]
    assert told[1] == "reset"
    assert told[2] == f"70000 {hashlib.sha256(b'y' * 70_000).hexdigest()}\n"


def test_one_that_is_mute(hosts, ask):
    """It reads nothing while the client is there, however much that sends."""
    assert hosts.raw
    ask("s = to(4003); s.sendall(b'q' * 1000); s.close(); print(1)")
    (seen,) = hosts.raw.wait_closed()
    assert (seen.received, seen.sent) == (1000, 0)
    stuck = ask("""
s = to(4003); s.settimeout(0.2); count = 0
try:
    while count < 1 << 30:
        count += s.send(b"q" * 65536)
except TimeoutError:
    pass
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)); s.close()
print(json.dumps(count))
""")
    assert 0 < stuck < 1 << 30
    _, seen = hosts.raw.wait_closed(2)
    assert seen.received < stuck  # what lay in its window
    assert seen.failure.startswith("ConnectionResetError")


def test_datagrams(hosts, ask):
    assert hosts.udp
    told = ask("""
found = []
for address in ("203.0.113.14", "2001:db8:0:2::14"):
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(10); s.sendto(b"d" * 1200, (address, 443)); data, peer = s.recvfrom(2000)
    found.append([len(data), peer[0]])
print(json.dumps(found))
""")
    assert told == [[1200, plan.UDP[0]], [1200, plan.UDP[1]]]
    assert [seen.size for seen in hosts.udp.datagrams()] == [1200, 1200]


def test_requests_of_a_connection_that_is_kept(hosts, ask):
    """One after the other, with other hosts in them: each is written down."""
    assert hosts.plain
    told = ask("""
s = to(80, "plain.example.net")
for host in ("plain.example.net", "secret.example.net"):
    s.sendall(b"POST /echo HTTP/1.1\\r\\nHost: %b\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n"
              b"3\\r\\nabc\\r\\n2;x=y\\r\\nde\\r\\n0\\r\\n\\r\\n" % host.encode())
s.sendall(b"GET /received HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n")
print(json.dumps(rest(s).decode()))
""")
    assert told.count("\r\n\r\nabcde") == 2
    (seen,) = hosts.plain.wait_closed()
    assert [(r.host, r.length) for r in seen.requests] == [
        ("plain.example.net", 5),
        ("secret.example.net", 5),
        ("a", 0),
    ]
    assert seen.requests[0].sha256 == hashlib.sha256(b"abcde").hexdigest()


def test_upgrades(hosts, ask):
    assert hosts.plain
    told = ask("""
s = to(80, "plain.example.net")
s.sendall(b"GET /upgrade HTTP/1.1\\r\\nHost: plain.example.net\\r\\nConnection: Upgrade\\r\\n"
          b"Upgrade: websocket\\r\\nSec-WebSocket-Version: 13\\r\\n"
          b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n")
head = b""
while b"\\r\\n\\r\\n" not in head:
    head += s.recv(1)
found = []
for size in (5, 300, 70000):
    word = bytes([size]) if size < 126 else b"\\x7e" + size.to_bytes(2, "big") if size < 65536 else (
        b"\\x7f" + size.to_bytes(8, "big"))
    s.sendall(bytes([0x82, word[0] | 0x80]) + word[1:] + b"abcd" +
              bytes(7 ^ b"abcd"[i % 4] for i in range(size)))
    answer = b""
    while len(answer) < 1 + len(word) + size:
        answer += s.recv(1 << 16)
    found.append(answer == b"\\x82" + word + b"\\x07" * size)
s.sendall(b"\\x88\\x80abcd"); rest(s)
t = to(80, "plain.example.net")
t.sendall(b"GET /upgrade HTTP/1.1\\r\\nHost: a\\r\\nConnection: Upgrade\\r\\nUpgrade: raw\\r\\n\\r\\nmore")
t.shutdown(1); raw = rest(t).decode()
print(json.dumps([head.decode(), found, raw]))
""")
    # the key and its answer of RFC 6455 §1.3
    assert "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in told[0]
    assert told[1] == [True, True, True]
    assert told[2].endswith("\r\n\r\nmore")


def test_other_answers_of_the_site(hosts):
    url = f"http://{hosts.plain.name}"
    words = ["curl", "-sS", "-w", "%{stderr}%{http_code}"]

    def get(*more):
        done = hosts.run([*words, *more])
        return done.stdout, done.stderr

    assert get(f"{url}/slow/20") == (b"at last\n", b"200")
    assert get(f"{url}/drip/300") == (content.content(300), b"200")
    assert get(f"{url}/until-close/100000") == (content.content(100_000), b"200")
    assert get("-L", f"{url}/redirect?{url}/bytes/3") == (content.content(3), b"200")
    assert get(f"{url}/status/503") == (b"", b"503")
    assert get(f"{url}/nothing")[1] == b"404"
    assert get("-I", f"{url}/")[1] == b"200"
    big = hosts.base / "upload"
    big.write_bytes(content.content(3_000_000))
    told = json.loads(get("-T", str(big), f"{url}/received")[0])
    assert (told["length"], told["sha256"]) == (3_000_000, content.digest(3_000_000))


def test_a_name_that_moves(hosts, ask):
    names = ["moving.example.net", "turning.example.net"]
    hosts.names.point(names[0], "203.0.113.1")
    hosts.names.point_in_turns(names[1], ("203.0.113.2",), plan.METADATA)
    script = """
def ask(name):
    try:
        return sorted({a[4][0] for a in socket.getaddrinfo(name, 1, socket.AF_INET)})
    except socket.gaierror as error:
        return error.errno
"""
    told = ask(
        f"{script}print(json.dumps([ask({names[0]!r}), [ask({names[1]!r}) for _ in '123']]))"
    )
    assert told == [["203.0.113.1"], [["203.0.113.2"], list(plan.METADATA), list(plan.METADATA)]]
    hosts.names.point(names[0], *plan.PRIVATE[:2])
    assert ask(f"{script}print(json.dumps(ask({names[0]!r})))") == sorted(plan.PRIVATE[:2])
    hosts.names.remove(names[0])
    assert ask(f"{script}print(json.dumps(ask({names[0]!r})))") == -2
    assert hosts.names.asked() == set(names)
    hosts.forget()
    assert hosts.names.asked() == set()
    assert ask(f"{script}print(json.dumps(ask({names[1]!r})))") == -2


def test_answers_that_are_long_late_or_wrong(hosts):
    hosts.names.point("long.example.net", *(f"203.0.113.{n}" for n in range(1, 100)))
    hosts.names.point("silent.example.net", SILENT=True)
    hosts.names.point("broken.example.net", RCODE=2)
    hosts.names.point("text.example.net", TXT=["a" * 300])
    dig = ["dig", "+tries=1", "+time=1"]
    done = hosts.run([*dig, "+noedns", "+short", "long.example.net"])
    assert len(done.stdout.split()) == 99  # cut, and asked again over TCP
    assert [q.transport for q in hosts.names.queries()] == ["udp", "tcp"]
    hosts.run([*dig, "silent.example.net"], status=9)
    assert b"SERVFAIL" in hosts.run([*dig, "broken.example.net"]).stdout
    assert hosts.run([*dig, "+short", "text.example.net", "TXT"]).stdout.count(b"a") == 300


def test_a_server_of_ones_own(hosts, ask):
    """On another address, and on the client's own loopback; it can be stopped."""
    mine = hosts.serve("mine.example.net", ("203.0.113.77",), (80,))
    local = hosts.serve("local.example.net", ("127.0.0.1", "::1"), (8080,), on=hosts.client)
    script = """
def get(address, port):
    try:
        s = socket.create_connection((address, port), timeout=10)
        s.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
        return rest(s).decode().split()[-1]
    except OSError as error:
        return error.errno
print(json.dumps([get("203.0.113.77", 80), get("127.0.0.1", 8080), get("::1", 8080)]))
"""
    assert ask(script) == ["mine.example.net", "local.example.net", "local.example.net"]
    assert [seen.local[0] for seen in local.wait_closed(2)] == ["127.0.0.1", "::1"]
    mine.stop()
    assert ask(script)[0] == 111  # ECONNREFUSED
    local.stop()
