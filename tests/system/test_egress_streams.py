"""What a command says in plain connections, recorded: byte for byte what the servers of tests/nethosts
had and gave, with what is missing said, and secrets covered."""

import hashlib
import itertools
import json
import os
import signal
import time

import pytest

from substrate.telemetry.trace.blob_reader import BlobReader
from tests.nethosts import content
from tests.nethosts.fixtures import hosts, internet
from tests.nethosts.programs import need
from tests.system.client_run import Place
from tests.system.egress_scene import PYTHON, engine_of, host_service, resident_kib

__all__ = ["hosts", "internet"]

RAW = "raw.example.net"


@pytest.fixture
def place(hosts, caller):
    need("/usr/bin/curl")
    return Place(hosts=hosts, caller=caller)


class Record:
    """A connection as it was recorded. `turns`: (direction, bytes), times left out."""

    def __init__(self, ran, body):
        self.body, self.streams = body, body["streams"]
        fd = os.open(ran.session, os.O_PATH)
        blobs = BlobReader(fd)
        try:
            self.into, self.out = (_content(blobs, body.get(f"stream_{d}")) for d in ("in", "out"))
            turns = json.loads(_content(blobs, self.streams.get("turns")) or b"[]")
        finally:
            blobs.close()
            os.close(fd)
        self.turns = [(direction, count) for direction, count, _ in turns]
        times = [at_us for _, _, at_us in turns]
        assert times == sorted(times)
        assert all(0 <= at_us <= body["duration_us"] for at_us in times)
        for name, data in (("in", self.into), ("out", self.out)):
            side = self.streams[name]
            assert side["recorded"] == len(data)
            assert bool(side["digest"]) == bool(data)
            assert ("truncated" in side) == (len(data) < body[f"bytes_{name}"])
            if "turns_lost" not in self.streams:
                assert sum(n for d, n in self.turns if d == name) == len(data)


def _content(blobs, ref):
    return b"" if ref is None else blobs.read(ref["commitment"])


def records(ran):
    return [Record(ran, body) for body in ran.of("net_close")]


def python(place, text, *flags, **more):
    """A program in a world, given as text."""
    script = place.caller.work / "program.py"
    script.write_text(text)
    place.caller.own(script)
    return place.run(f"{PYTHON} -I -S {script}", "--allow", f"tcp://{RAW}", *flags, **more)


def test_nothing_is_recorded_unless_it_is_asked_for(place):
    ran = place.run("curl -sS http://plain.example.net/", "--allow", place.hosts.plain.name)
    (body,) = ran.of("net_close")
    assert not {"streams", "stream_in", "stream_out"} & body.keys()


def test_a_request_and_its_answer(place):
    server = place.hosts.plain
    ran = place.run(f"curl -sSi http://{server.name}/", "--record-net", "--allow", server.name)
    (found,) = records(ran)
    (seen,) = server.wait_closed()
    assert found.into == ran.stdout
    assert (len(found.into), len(found.out)) == (seen.sent, seen.received)
    assert found.out == seen.head
    assert found.turns[:2] == [("out", seen.received), ("in", seen.sent)]
    assert not found.streams["encrypted"]


def test_many_requests_on_one_connection(place):
    server = place.hosts.plain
    sizes = (17, 100_000, 0, 300_000)
    for size in sizes:
        (place.caller.work / f"{size}").write_bytes(content.content(size))
    calls = [f"-sS --data-binary @{size} http://{server.name}/echo" for size in sizes]
    line = "curl " + " --next ".join(calls)
    ran = place.run(line, "--record-net", "--allow", server.name)
    (found,) = records(ran)
    (seen,) = server.wait_closed()
    assert (len(found.out), len(found.into)) == (seen.received, seen.sent)
    assert hashlib.sha256(found.out).hexdigest() == seen.sha256
    assert found.out.count(b"POST /echo HTTP/1.1\r\n") == len(sizes)
    directions = [direction for direction, count in found.turns if count]
    changes = sum(a != b for a, b in itertools.pairwise(directions))
    assert changes >= 2 * len(sizes) - 1


_HALF = f"""
import socket
with socket.create_connection(({RAW!r}, 4004)) as s:
    for piece in (b"one", b"two" * 1000, bytes(range(256)) * 50):
        s.sendall(piece)
    s.shutdown(socket.SHUT_WR)
    print(s.makefile().read(), end="")
"""


def test_half_a_connection_ends_before_the_answer(place):
    server = place.hosts.raw
    ran = python(place, _HALF, "--record-net")
    (found,) = records(ran)
    assert found.out == b"one" + b"two" * 1000 + bytes(range(256)) * 50
    assert found.into == ran.stdout
    assert hashlib.sha256(found.out).hexdigest() == server.wait_closed()[0].sha256
    at = found.turns.index(("out", 0))
    assert all(d == "out" for d, _ in found.turns[:at])
    assert found.turns[at + 1 :] == [("in", len(found.into)), ("in", 0)]


def test_a_longer_stream_is_cut_and_that_is_said(place):
    server = place.hosts.raw
    text = f"""
import socket
with socket.create_connection(({RAW!r}, 19)) as s:
    s.sendall(b"3000000\\n")
    got = sum(map(len, iter(lambda: s.recv(65536), b"")))
assert got == 3000000, got
"""
    ran = python(place, text, "--record-net=100k")
    (found,) = records(ran)
    assert found.into == content.content(100 << 10)
    assert found.body["bytes_in"] == 3_000_000
    assert found.streams["in"]["truncated"] == "the limit of a stream: 102400 bytes"
    assert found.out == b"3000000\n"
    assert "truncated" not in found.streams["out"]
    assert server.wait_closed()[0].sent == 3_000_000


def test_a_command_has_a_limit_too(place):
    """Of the first connection all is there, of the second nothing but its request, or less."""
    text = f"""
import socket
for _ in range(3):
    with socket.create_connection(({RAW!r}, 19)) as s:
        s.sendall(b"70000\\n")
        assert sum(map(len, iter(lambda: s.recv(65536), b""))) == 70000
"""
    _ = place.hosts.raw
    ran = python(place, text, "--record-net", SUBSTRATE_RECORD_NET_TOTAL="100k")
    first, second, third = records(ran)
    assert first.into == content.content(70000)
    assert second.into == content.content(len(second.into))
    assert len(first.into + first.out + second.into + second.out) == 100 << 10
    assert second.streams["in"]["truncated"] == "the limit of a command: 102400 bytes"
    assert not third.into + third.out
    assert third.streams["out"]["truncated"] == "the limit of a command: 102400 bytes"


_MANY = f"""
import socket, sys, threading
def one(n):
    with socket.create_connection(({RAW!r}, 7)) as s:
        data = (b"%d " % n) * (2000 + n)
        sender = threading.Thread(target=s.sendall, args=(data,))
        sender.start()
        got = b""
        while len(got) < len(data):
            got += s.recv(65536)
        sender.join()
        assert got == data
threads = [threading.Thread(target=one, args=(n,)) for n in range(*map(int, sys.argv[1:]))]
for t in threads: t.start()
for t in threads: t.join()
"""


def test_two_hundred_streams_of_parallel_programs(place):
    script = place.caller.work / "many.py"
    script.write_text(_MANY)
    place.caller.own(script)
    server = place.hosts.raw
    calls = "".join(f"{PYTHON} -I -S many.py {n} {n + 50} & " for n in range(0, 200, 50))
    ran = place.run(f"{calls} wait", "--record-net", "--allow", f"tcp://{RAW}")
    found = records(ran)
    assert len(found) == 200
    assert {f.out for f in found} == {(b"%d " % n) * (2000 + n) for n in range(200)}
    assert all(f.into == f.out for f in found)
    assert len({f.body["proc"] for f in found}) == 4
    assert len(server.wait_closed(200)) == 200


def test_a_server_that_resets(place):
    server = place.hosts.raw
    text = f"""
import socket
with socket.create_connection(({RAW!r}, 4002)) as s:
    s.sendall(b"x" * 5000)
    try:
        assert not s.recv(100)
    except ConnectionResetError:
        pass
    else:
        raise SystemExit("no reset")
"""
    (found,) = records(python(place, text, "--record-net"))
    assert found.out == b"x" * 5000
    assert (found.into, found.body["reason"]) == (b"", "upstream: Connection reset by peer")
    server.wait_closed()


def test_a_server_that_leaves_something_unread(place):
    _ = place.hosts.raw
    text = f"""
import socket
with socket.create_connection(({RAW!r}, 4001)) as s:
    s.sendall(b"y" * 5000)
    assert s.recv(100) == b"enough\\n"
"""
    (found,) = records(python(place, text, "--record-net"))
    assert (found.out, found.into) == (b"y" * 5000, b"enough\n")


def test_a_client_that_resets_in_the_middle(place):
    """What was on its way to it, and was not delivered, is not in the record."""
    _ = place.hosts.raw
    text = f"""
import socket
s = socket.create_connection(({RAW!r}, 19))
s.sendall(b"900000\\n")
got = 0
while got < 300000:
    got += len(s.recv(65536))
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1\\0\\0\\0\\0\\0\\0\\0")
s.close()
print(got)
"""
    ran = python(place, text, "--record-net")
    (found,) = records(ran)
    assert int(ran.stdout) <= len(found.into) == found.body["bytes_in"] <= 900_000
    assert found.into == content.content(len(found.into))


def test_a_budget_ends_the_connection_and_not_the_record(place):
    _ = place.hosts.raw
    text = f"""
import socket
with socket.create_connection(({RAW!r}, 19)) as s:
    s.sendall(b"900000\\n")
    try:
        while s.recv(65536): pass
    except ConnectionResetError:
        pass
"""
    ran = python(place, text, "--record-net", "--limit", "egress=200k")
    (found,) = records(ran)
    assert found.into == content.content(found.body["bytes_in"])
    assert 0 < len(found.into) < 200 << 10
    assert "limit" in found.body["reason"]


def test_of_tls_only_the_sizes(place):
    server = place.hosts.secure
    ran = place.run(f"curl -sS https://{server.name}/", "--record-net", "--allow", server.name)
    (found,) = records(ran)
    (seen,) = server.wait_closed()
    assert found.streams["encrypted"]
    assert not found.into + found.out
    assert found.streams["in"]["truncated"] == "TLS is spoken from there on"
    assert (found.body["bytes_in"], found.body["bytes_out"]) == (seen.sent, seen.received)


def test_tls_that_begins_later(place):
    """What was said before it is there; of the hello nothing is."""
    _ = place.hosts.raw
    text = f"""
import socket, ssl
s = socket.create_connection(({RAW!r}, 7))
s.sendall(b"STARTTLS\\n")
assert s.recv(100) == b"STARTTLS\\n"
into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
tls = ssl.create_default_context().wrap_bio(into, out, server_hostname="raw.example.net")
try:
    tls.do_handshake()
except ssl.SSLWantReadError:
    pass
hello = out.read()
s.sendall(hello)
assert s.recv(4096)
"""
    (found,) = records(python(place, text, "--record-net"))
    assert (found.out, found.into) == (b"STARTTLS\n", b"STARTTLS\n")
    assert found.streams["encrypted"]


def test_secrets_are_covered_before_anything_is_written(place):
    server = place.hosts.plain
    secrets = ("c2VjcmV0Om9mIG1pbmU=", "hunter2hunter2", "AKIAABCDEFGHIJKLMNOP", "s3cr3tc00kie")
    line = (
        f"curl -sS -H 'Authorization: Basic {secrets[0]}' -H 'Cookie: session={secrets[3]}'"
        f" --data 'password={secrets[1]}&key={secrets[2]}' http://{server.name}/echo"
    )
    ran = place.run(line, "--record-net", "--allow", server.name)
    (found,) = records(ran)
    (seen,) = server.wait_closed()
    assert secrets[1].encode() in ran.stdout
    assert len(found.out) == seen.received
    assert b"Content-Length: " in found.out and b"POST /echo" in found.out
    for secret in secrets:
        assert secret.encode() not in found.out + found.into
    kinds = {each["kind"] for each in found.streams["out"]["covered"]}
    assert {"authorization", "cookie", "password"} <= kinds
    assert found.streams["out"]["covered_count"] == len(found.streams["out"]["covered"])
    assert found.streams["in"]["covered"]
    for each in found.streams["out"]["covered"]:
        at = each["at"]
        assert set(found.out[at : at + each["size"]]) == {ord("*")}


def test_what_is_not_reached_is_not_recorded_and_leaves_room(place):
    """A refused request's bytes are nowhere, nor is our own answer to it."""
    server = place.hosts.plain
    line = f"curl -sS -H 'Host: other.example.net' http://{server.name}/; true"
    ran = place.run(line, "--record-net", "--allow", server.name)
    assert not [r for r in records(ran) if r.into or r.out]


def test_what_a_refusal_says_is_not_the_servers(place):
    """Behind an answer the client reads why its next request is refused; that is in no stream and no count."""
    server = place.hosts.plain
    text = f"""
import socket
s = socket.create_connection(({server.name!r}, 80))
for host in ({server.name!r}, "other.example.net"):
    s.sendall(f"GET /bytes/100 HTTP/1.1\\r\\nHost: {{host}}\\r\\n\\r\\n".encode())
heard = b""
while data := s.recv(65536):
    heard += data
print(heard.decode("latin-1"), end="")
"""
    ran = python(place, text, "--record-net", "--allow", server.name)
    (found,) = records(ran)
    (seen,) = server.wait_closed()
    assert b"403 Forbidden" in ran.stdout
    assert (found.body["bytes_in"], found.body["bytes_out"]) == (seen.sent, seen.received)
    assert (len(found.into), len(found.out)) == (seen.sent, seen.received)
    assert b"Forbidden" not in found.into
    assert "truncated" not in found.streams["in"]
    assert [turn for turn in found.turns if not turn[1]] == []


def test_a_published_port_is_recorded_from_the_worlds_side(place):
    port = 18431
    text = """
import socket
with socket.create_server(("127.0.0.1", 8000)) as s:
    print("ready", flush=True)
    c, _ = s.accept()
    with c:
        assert c.recv(100) == b"question"
        c.sendall(b"answer")
"""
    script = place.caller.work / "server.py"
    script.write_text(text)
    place.caller.own(script)
    caller = place.caller
    flags = ("--fresh", "--record-net", "--publish", f"{port}:8000")
    with place.hosts.start(
        [caller.command, *flags, "-c", f"{PYTHON} -I -S {script}"],
        uid=caller.uid,
        gid=caller.gid,
        cwd=caller.work,
        env=caller.environ,
    ) as running:
        assert running.stdout.readline() == b"ready\n"
        ask = (
            f"import socket; s = socket.create_connection(('127.0.0.1', {port}));"
            "s.sendall(b'question'); assert s.recv(100) == b'answer'"
        )
        place.hosts.run([PYTHON, "-I", "-S", "-c", ask])
        assert running.wait(20) == 0
    bodies = [e["body"] for e in caller.events() if e["event_type"] == "net_close"]
    (body,) = [body for body in bodies if body["connection"] >= 1 << 52]
    session = caller.sessions()[-1]
    found = Record(type("Ran", (), {"session": session}), body)
    assert (found.into, found.out) == (b"question", b"answer")
    assert found.turns[:2] == [("in", 8), ("out", 6)]


def test_a_port_of_the_host_is_recorded(place):
    service = host_service(place.hosts)
    line = "curl -sSi http://localhost:7801/"
    ran = place.run(line, "--record-net", "--host-port", "7801")
    (found,) = records(ran)
    (seen,) = service.wait_closed()
    assert found.into == ran.stdout
    assert (len(found.out), len(found.into)) == (seen.received, seen.sent)


def test_without_capture_too(place):
    server = place.hosts.plain
    flags = ("--record-net", "--capture", "off", "--allow", server.name)
    (found,) = records(place.run(f"curl -sS http://{server.name}/", *flags))
    (seen,) = server.wait_closed()
    assert (len(found.out), len(found.into)) == (seen.received, seen.sent)


def test_shown_taken_out_and_verified(place):
    server, caller = place.hosts.plain, place.caller
    line = f"curl -sS --data token=abcdefgh12345678 http://{server.name}/echo"
    ran = place.run(line, "--record-net", "--allow", server.name)
    (found,) = records(ran)
    number = found.body["connection"] & ~(1 << 52)
    shown = caller.substrate("trace", "show", "last", "--net").stdout.decode()
    told = f"(recorded {number}:in {len(found.into)} bytes, 1 secrets covered, {number}:out "
    assert told in shown
    taken = caller.substrate("trace", "show", "last", "--stream", f"{number}:out")
    assert (taken.returncode, taken.stdout) == (0, found.out)
    assert b"1 secrets of" in taken.stderr
    none = caller.substrate("trace", "show", "last", "--stream", "1:out")
    assert none.returncode == 1 and b"no connection 1" in none.stderr
    assert caller.substrate("trace", "verify").returncode == 0
    pack = ran.session / "blobs"
    data = bytearray(pack.read_bytes())
    at = data.rindex(found.out[:20]) if found.out[:20] in data else len(data) - 5
    data[at] ^= 1
    pack.write_bytes(data)
    assert caller.substrate("trace", "verify").returncode == 1


def test_the_resolver_of_the_host_is_on_the_record(place):
    """What the world was answered, and what the name really stood for; a name that stands for none."""
    server = place.hosts.plain
    line = f"curl -sS http://{server.name}/; curl -sS http://nobody.example.net/; true"
    ran = place.run(line, "--allow", server.name, "--allow", "nobody.example.net")
    answered = [b for b in ran.of("dns_query") if b["decision"] != "observed"]
    asked = [b for b in answered if b["domain"] == server.name and b["qtype"] == "A"]
    made, failed = ran.of("net_connect")
    assert asked and all(b["ttl"] == 1 and b["answers"] == [made["target"]] for b in asked)
    assert made["ip"] in made["resolved"]["addresses"]
    assert set(made["resolved"]["addresses"]) == set(server.addresses)
    assert made["resolved"]["count"] == len(server.addresses)
    assert failed["resolved"]["addresses"] == [] and failed["resolved"]["error"]
    empty = [b for b in answered if b["qtype"] == "AAAA"]
    assert empty and all("ttl" not in b for b in empty)


_ONE_BY_ONE = f"""
import socket
print("ready", flush=True)
for n in range(200):
    with socket.create_connection(({RAW!r}, 7)) as s:
        data = b"%d " % n * 5000
        s.sendall(data)
        got = b""
        while len(got) < len(data):
            got += s.recv(65536)
        assert got == data
"""


def _start(place, text, *flags):
    script = place.caller.work / "program.py"
    script.write_text(text)
    place.caller.own(script)
    caller = place.caller
    words = [caller.command, "--fresh", "--record-net", "--allow", f"tcp://{RAW}", *flags]
    return place.hosts.start(
        [*words, "-c", f"{PYTHON} -I -S {script}"],
        uid=caller.uid,
        gid=caller.gid,
        cwd=caller.work,
        env=caller.environ,
    )


def _bodies(place):
    """`net_close` of the newest session, as they were recorded."""
    events, session = place.caller.events(), place.caller.sessions()[-1]
    bodies = [e["body"] for e in events if e["event_type"] == "net_close"]
    ran = type("Ran", (), {"session": session})
    return [Record(ran, body) for body in bodies if body["connection"] >= 1 << 52]


def test_a_signal_ends_the_look_for_secrets_and_that_is_said(place):
    """After the command, for as long as that takes; the status is the command's own."""
    _ = place.hosts.raw
    text = f"""
import socket, sys
for _ in range(20):
    with socket.create_connection(({RAW!r}, 4004)) as s:
        s.sendall(b"pw=a " * 200000)
        s.shutdown(socket.SHUT_WR)
        s.recv(100)
print("said", flush=True)
sys.exit(7)
"""
    with _start(place, text, "--record-net=1m", "--capture", "off") as process:
        assert process.stdout.readline() == b"said\n"
        time.sleep(4.0)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 7, err
    found = _bodies(place)
    assert len(found) == 20
    why = "a signal came before it was looked through for secrets"
    cut = [f for f in found if f.streams["out"].get("truncated") == why]
    assert cut and found[-1] in cut and not any(f.out for f in cut)
    assert all(b"pw=a" not in f.out for f in found)
    place.caller.verify()


def test_no_connection_waits_for_a_record_that_stands_still(place):
    """All is said while the supervisor is stopped, and all is on the record once it goes on."""
    server = place.hosts.raw
    with _start(place, _ONE_BY_ONE, "--capture", "off") as process:
        assert process.stdout.readline() == b"ready\n"
        os.kill(process.pid, signal.SIGSTOP)
        try:
            server.wait_closed(200)
        finally:
            os.kill(process.pid, signal.SIGCONT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    found = sorted(_bodies(place), key=lambda record: record.body["connection"])
    assert [f.out for f in found] == [b"%d " % n * 5000 for n in range(200)]
    assert all(f.into == f.out for f in found)
    place.caller.verify()


def test_what_a_killed_process_of_the_network_held_is_said_to_be_lost(place):
    server = place.hosts.raw
    text = f"""
import socket
s = socket.create_connection(({RAW!r}, 7))
s.sendall(b"x")
assert s.recv(1) == b"x"
print("ready", flush=True)
try:
    s.recv(1)
except ConnectionResetError:
    pass
"""
    with _start(place, text) as process:
        assert process.stdout.readline() == b"ready\n"
        os.kill(engine_of(process.pid, place.hosts.client.namespaces()["net"]), signal.SIGKILL)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    server.wait_closed()
    assert not _bodies(place)
    spots = [b for e in place.caller.events() for b in e["body"].get("blind_spots", ())]
    assert any("what was recorded of connections that were open is lost" in spot for spot in spots)
    place.caller.verify()


def test_what_is_kept_in_memory_is_bounded(place):
    """By what a command may record, however much is said."""
    server = place.hosts.raw
    text = f"""
import socket, sys
kept = []
for n in range(60):
    s = socket.create_connection(({RAW!r}, 19))
    s.sendall(b"2000000\\n")
    got = 0
    while got < 2000000:
        got += len(s.recv(65536))
    kept.append(s)
print("ready", flush=True)
sys.stdin.readline()
"""
    with _start(place, text, "--capture", "off") as process:
        assert process.stdout.readline() == b"ready\n"
        engine = engine_of(process.pid, place.hosts.client.namespaces()["net"])
        most_kib = resident_kib(engine)
        _, err = process.communicate(b"\n", timeout=60)
    assert process.returncode == 0, err
    assert len(server.wait_closed(60)) == 60
    kept = sum(len(f.into) + len(f.out) for f in _bodies(place))
    assert kept <= 64 << 20
    assert most_kib < (64 + 40) << 10


@pytest.mark.parametrize("taken_away", [("--net", "host"), ("--no-world",)])
def test_where_nothing_can_be_recorded_that_is_an_error(place, taken_away):
    done = place.caller.substrate("--record-net", *taken_away, "-c", "touch ran")
    assert done.returncode == 2
    assert b"recorded in a filtered network only" in done.stderr
    assert not (place.caller.work / "ran").exists()
    done = place.caller.substrate("--record-net", "--record-net=0", *taken_away, "-c", "true")
    assert done.returncode == 0, done.stderr
