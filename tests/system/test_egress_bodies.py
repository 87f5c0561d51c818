"""Bodies of requests on their way out of a world: they go by unseen, and the next head is seen."""

import json

import pytest

from tests.nethosts import content
from tests.nethosts.fixtures import hosts, internet

__all__ = ["hosts", "internet"]


def test_bodies_of_any_size_on_one_connection(hosts, caller):
    name = hosts.plain.name
    sizes = (100_000, 0, 1, 3_000_000, 17, 16384)
    made = [f"head -c {size} /dev/urandom > {size}" for size in sizes]
    calls = [f"-sS --data-binary @{s} http://{name}/echo -o {s}.back" for s in sizes]
    compared = [f"cmp {size} {size}.back" for size in sizes]
    line = " && ".join((*made, "curl " + " --next ".join(calls), *compared))
    _substrate(hosts, caller, line)
    (connection,) = hosts.plain.wait_closed()
    assert connection.received > sum(sizes)


def test_the_request_behind_a_body_is_judged(hosts, caller):
    """A pipelined one that has another Host: not a byte of it goes out."""
    name = hosts.plain.name
    body = 300_000
    head = rf"POST /echo HTTP/1.1\r\nHost: {name}\r\nContent-Length: {body}\r\n\r\n"
    other = r"GET / HTTP/1.1\r\nHost: neighbour.example.net\r\n\r\n"
    line = (
        f"exec 3<>/dev/tcp/{name}/80; printf '{head}' >&3; head -c {body} /dev/zero >&3;"
        f" printf '{other}' >&3; cat <&3 > /dev/null; true"
    )
    done = _substrate(hosts, caller, f'bash -c "{line}"')
    assert b"neighbour.example.net" in done.stderr
    (connection,) = hosts.plain.wait_closed()
    assert body < connection.received < body + 200


def _substrate(hosts, caller, line):
    words = ("--allow", hosts.plain.name, "-c", line)
    return hosts.run(
        [caller.command, *words],
        uid=caller.uid,
        gid=caller.gid,
        cwd=caller.work,
        env=caller.environ,
    )


#: sends requests in one packet, reads slowly, and says what came: for each answer its status and body
_PIPELINED = r"""
import hashlib, json, socket, sys, time
name, paths, before, pause = sys.argv[1], sys.argv[2:-2], float(sys.argv[-2]), float(sys.argv[-1])
heads = [p.split(":") for p in paths]
other = "neighbour.example.net"
text = "".join(f"{m} {p} HTTP/1.1\r\nHost: {name}\r\n\r\n" for m, p in heads)
text += f"GET / HTTP/1.1\r\nHost: {other}\r\n\r\n"
sock = socket.create_connection((name, 80), 30)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
time.sleep(before)
sock.sendall(text.encode())
time.sleep(pause)
heard = b""
while data := sock.recv(1 << 16):
    heard += data
    time.sleep(pause / 1000)
told = []
for method in [m for m, _ in heads] + ["GET"]:
    head, _, heard = heard.partition(b"\r\n\r\n")
    fields = dict(l.lower().split(b": ", 1) for l in head.split(b"\r\n")[1:])
    body = b""
    if fields.get(b"transfer-encoding") == b"chunked":
        while size := int((line := heard.partition(b"\r\n"))[0], 16):
            body += line[2][:size]
            heard = line[2][size + 2:]
        heard = line[2][2:]
    elif method != "HEAD":
        size = int(fields.get(b"content-length", b"0"))
        body, heard = heard[:size], heard[size:]
    told.append([head[9:12].decode(), len(body), hashlib.sha256(body).hexdigest()])
print(json.dumps([told, len(heard)]))
"""


@pytest.mark.parametrize(
    ("paths", "before_s", "pause_s"),
    [
        (["GET:/bytes/20000000"], 0.0, 1.0),
        (["GET:/bytes/100"], 0.0, 0.0),
        (["GET:/bytes/100"], 1.0, 0.0),
        (["GET:/chunked/5000000"], 0.0, 1.0),
        (["GET:/slow/3500"], 0.0, 0.0),  # longer than any wait for what is on its way
        (["GET:/drip/3000"], 0.0, 0.0),
        (["HEAD:/", "GET:/bytes/3000000", "GET:/chunked/70000", "GET:/slow/500"], 0.0, 0.5),
        (["HEAD:/", "GET:/bytes/3000000"], 1.0, 0.5),
    ],
)
def test_answers_before_a_refused_request_are_whole(hosts, caller, paths, before_s, pause_s):
    """All in one packet, before the server was even connected to, or `before_s` later; the client reads slowly."""
    name = hosts.plain.name
    program = caller.work / "pipelined.py"
    program.write_text(_PIPELINED)
    caller.own(program)
    words = " ".join(paths)
    done = _substrate(
        hosts, caller, f"/usr/bin/python3 -I -S pipelined.py {name} {words} {before_s} {pause_s}"
    )
    told, _ = json.loads(done.stdout)
    assert [status for status, _, _ in told] == ["200"] * len(paths) + ["403"]
    for (_, size, digest), path in zip(told, paths, strict=False):
        kind, _, wanted = path.partition(":/")[2].partition("/")
        if kind in ("bytes", "chunked", "drip"):
            assert (size, digest) == (int(wanted), content.digest(int(wanted)))
        elif kind == "slow":
            assert size == 8
    assert b"neighbour.example.net" in done.stderr
    (connection,) = hosts.plain.wait_closed()
    assert connection.received < 100 * len(paths)
    bodies = [event["body"] for event in caller.events() if event["component"] == "world"]
    made = [body for body in bodies if body.get("decision") == "allow" and "ip" in body]
    assert [(body["domain"], body["name"]) for body in made] == [(name, name)]
    refused = [body for body in bodies if body.get("decision") == "deny"]
    assert [body["name"] for body in refused] == ["neighbour.example.net"]
    (closed,) = (body for body in bodies if "bytes_in" in body)
    assert closed["bytes_in"] > sum(
        size for _, size, _ in told[:-1]
    )  # the last one is not the server's
    assert closed["connection"] == made[0]["connection"]


_LED_ON = r"""
import socket, sys, time
name, other = sys.argv[1], "neighbour.example.net"
s = socket.create_connection((name, 80))
for path, host in (("/bytes/30000000", name), ("/", other)):
    s.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
s.recv(1000)
time.sleep(0.5)  # the second is refused by then
print("led on", flush=True)
sys.stdin.readline()
got = 0
try:
    while data := s.recv(1 << 16):
        got += len(data)
except ConnectionResetError:
    print("reset", flush=True)
print(got, flush=True)
"""


def test_what_is_denied_meanwhile_is_not_answered_to_its_end(hosts, caller):
    """An answer that is awaited before a refusal is ended by a new rule as any connection is."""
    name = hosts.plain.name
    program = caller.work / "led_on.py"
    program.write_text(_LED_ON)
    caller.own(program)
    words = [caller.command, "--allow", name, "-c", f"/usr/bin/python3 -I -S led_on.py {name}"]
    with hosts.start(
        words, uid=caller.uid, gid=caller.gid, cwd=caller.work, env=caller.environ
    ) as process:
        assert process.stdout.readline() == b"led on\n"
        done = caller.substrate("net", "deny", name)
        assert done.returncode == 0, done.stderr
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"reset\n"
        assert int(process.stdout.readline()) < 30_000_000
        assert process.wait(20) == 0
    (closed,) = (
        event["body"]
        for event in caller.events()
        if event["component"] == "world" and event["event_type"] == "net_close"
    )
    assert closed["reason"] == f"port 80 of {name} is denied by {name}"


_OFFERS = r"""
import socket, sys
name = sys.argv[1]
s = socket.create_connection((name, 80), 20)
offer = "Connection: Upgrade\r\nUpgrade: h2c\r\n"
s.sendall(f"GET /bytes/5 HTTP/1.1\r\nHost: {name}\r\n{offer}\r\n"
          f"POST /echo HTTP/1.1\r\nHost: {name}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
          + b"30000\r\n" + b"x" * 100)
body = b""
while b"\r\n\r\n" not in body:
    body += s.recv(1 << 16)
s.sendall(b"x" * (0x30000 - 100) + b"\r\n0\r\n\r\n")
while body.count(b"x") < 0x30000:
    data = s.recv(1 << 16)
    assert data
    body += data
print("whole")
"""


def test_a_long_chunk_behind_an_offer_of_another_protocol(hosts, caller):
    """Its end is read, too: after the chunk that went by unseen."""
    name = hosts.plain.name
    program = caller.work / "offers.py"
    program.write_text(_OFFERS)
    caller.own(program)
    done = _substrate(hosts, caller, f"/usr/bin/python3 -I -S offers.py {name}")
    assert done.stdout == b"whole\n", done.stderr
