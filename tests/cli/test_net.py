"""`substrate net`: the rules of a running command's network, asked for and changed."""

import hashlib
import json
import os
import socket
import stat

import pytest

from substrate.session import net_control
from substrate.world import wire

#: prints a line for each word that it reads: whether a name is known
ASK = (
    "echo ready; while read name; do "
    "if getent ahostsv4 $name >/dev/null; then echo yes; else echo no; fi; done"
)


@pytest.fixture
def running(place):
    """A command that asks for names, and how to have it ask."""
    process = place.start_with_input("-c", ASK)
    assert process.stdout.readline() == b"ready\n"

    def ask(name):
        process.stdin.write(name.encode() + b"\n")
        process.stdin.flush()
        return process.stdout.readline().decode().strip()

    yield ask
    process.stdin.close()
    assert process.wait(30) == 0
    process.stdout.close()
    process.stderr.close()


def test_rules_change_while_the_command_runs(place, running):
    assert running("a.example") == "no"
    told = place.run("net", "allow", "a.example", "*.example.net:443")
    assert b"a.example, *.example.net:443, until the command ends" in told.stderr
    assert running("a.example") == "yes"
    assert running("b.example.net") == "yes"
    place.run("net", "deny", "b.example.net")
    assert running("b.example.net") == "no"
    assert running("c.example.net") == "yes"
    found = place.json("net", "status", "--format", "json")
    assert found["schema"] == "substrate.net/1"
    assert found["allow"][-2:] == ["a.example", "*.example.net:443"]
    assert found["deny"] == ["b.example.net"]
    assert {each["what"] for each in found["refused"]} == {"a.example", "b.example.net"}
    text = place.out("net", "status")
    assert ", a.example, *.example.net:443\n" in text
    assert "refused a.example (1): no rule names a.example" in text


#: connects to an address that it had before the rules changed, and to one that it never had
KEEP = """
import socket
kept = socket.gethostbyname("a.example")
print(kept, flush=True)
input()
other = kept[:-1] + "2"
print([socket.socket().connect_ex((address, 80)) for address in (kept, other)], flush=True)
print(socket.gethostbyname("b.example"), socket.socket().connect_ex((other, 80)))
"""


def test_addresses_stand_for_their_names_when_rules_change(place):
    python = f"/usr/bin/python3 -I -c '{KEEP}'"
    process = place.start_with_input("--allow", "a.example", "-c", python)
    assert process.stdout.readline() == b"198.18.0.1\n"
    place.run("net", "allow", "b.example")
    out, err = process.communicate(b"\n", timeout=30)
    assert out == b"[0, 111]\n198.18.0.2 0\n", err
    why = b"was refused 198.18.0.2:80: 198.18.0.2 stands for no name: "
    (line,) = (line for line in err.splitlines() if why in line)
    assert b"allows it" not in line


def test_each_change_is_on_the_record(place, running):
    place.run("net", "allow", "a.example")
    place.run("net", "deny", "tcp://a.example:22")
    events = [
        json.loads(line) for line in place.out("trace", "show", "--format", "jsonl").splitlines()
    ]
    loaded = [e["body"] for e in events if e["event_type"] == "policy_loaded"]
    assert "net" not in loaded.pop(0)  # the policy of commands, at the session's start
    assert [body["net"]["allow"][-1] for body in loaded] == ["a.example", "a.example"]
    assert [body["net"]["deny"] for body in loaded] == [[], ["tcp://a.example:22"]]
    assert len({body["digest"] for body in loaded}) == 2


def test_a_rule_that_is_none_changes_nothing(place, running):
    wrong = place.run("net", "allow", "b.example", "a example", status=2)
    assert b"a example" in wrong.stderr
    allowed = place.json("net", "status", "--format", "json")["allow"]
    assert not {"b.example", "a example"} & set(allowed)


def test_without_a_command_there_is_nothing_to_ask(place):
    place.run("--keep", "-c", "touch x")
    done = place.run("net", "status", status=1)
    assert b"no command with a filtered or routed network runs in world w1" in done.stderr
    assert b"--allow" in done.stderr


def test_the_door_is_its_users_alone_and_goes_with_the_command(place, running):
    (session,) = (place.home / "sessions").iterdir()
    door = session / "net"
    assert stat.S_ISSOCK(door.lstat().st_mode)
    assert stat.S_IMODE(place.home.lstat().st_mode) == 0o700
    assert running("a.example") == "no"


@pytest.mark.parametrize(
    "packet", [b"", b"?", b"c", wire.encode(b"c", ("widen", "a.example")), b"c\xff\xff\xff\xff"]
)
def test_what_is_no_question_changes_nothing(place, running, packet):
    (session,) = (place.home / "sessions").iterdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(10)
        client.connect(str(session / "net"))
        client.send(packet)
        answer = client.recv(65536)
    assert answer[:1] in (b"", net_control.WRONG)
    assert running("a.example") == "no"


def test_who_says_nothing_holds_up_nobody(place, running):
    (session,) = (place.home / "sessions").iterdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(str(session / "net"))
        assert running("a.example") == "no"
        place.run("net", "allow", "a.example")
        assert running("a.example") == "yes"


def test_no_world_sees_the_door(place, running):
    place.run("net", "allow", "a.example")
    (session,) = (place.home / "sessions").iterdir()
    done = place.run("--fresh", "-c", f"ls -la {session}/net", status=None)
    assert done.returncode != 0
    assert not os.path.exists(place.work / "net")


def test_endpoints_are_told_by_the_names_that_addresses_stand_for(place):
    """In the summary of a command, in `show`, and in the list of its connections."""
    connect = (
        "import socket; socket.socket().connect((socket.gethostbyname('localhost.a.example'), 80))"
    )
    place.run("--allow", "*.a.example", "-c", f'/usr/bin/python3 -c "{connect}"', status=None)
    events = [
        json.loads(line) for line in place.out("trace", "show", "--format", "jsonl").splitlines()
    ]
    (end,) = (event["body"] for event in events if event["event_type"] == "command_end")
    told = [each for each in end["summary"]["endpoints"] if each.startswith("tcp://")]
    assert told == ["tcp://localhost.a.example:80"]
    assert "198.18." not in place.out("show", "last")
    lines = place.out("trace", "show", "last", "--net").splitlines()
    (call,) = (line for line in lines if "(198.18.0.1)" in line)
    assert "tcp://localhost.a.example:80 (198.18.0.1)" in call


def test_names_are_known_to_programs_that_ask_for_one_family_of_configured_addresses(place):
    """getaddrinfo(3), AI_ADDRCONFIG: an interface needs an address that is not 127.0.0.1."""
    ask = "import socket; print(socket.getaddrinfo('a.example', 80, 2, 1, 0, socket.AI_ADDRCONFIG)[0][4])"
    found = place.out("--allow", "a.example", "-c", f'/usr/bin/python3 -c "{ask}"')
    assert found == "('198.18.0.1', 80)\n"


#: serves one client after the other: what it sends, twice, until it has sent all
SERVE = """
import socket
server = socket.create_server(("127.0.0.1", 80))
print("ready", flush=True)
while True:
    client, _ = server.accept()
    data = b"".join(iter(lambda: client.recv(65536), b""))
    client.sendall(data * 2)
    client.close()
    if not data:
        break
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def talk(port, data):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_a_published_port_leads_into_the_world(place):
    port = free_port()
    server = place.start("--publish", f"{port}:80", "-c", f"/usr/bin/python3 -c '{SERVE}'")
    assert server.stdout.readline() == b"ready\n"
    for count in range(20):  # more than there are sockets at a time
        assert talk(port, b"x%d" % count) == b"x%d" % count * 2
    data = os.urandom(3 << 20)
    assert hashlib.sha256(talk(port, data)).digest() == hashlib.sha256(data * 2).digest()
    assert talk(port, b"") == b""
    assert server.wait(30) == 0
    server.stdout.close()
    server.stderr.close()
    events = [
        json.loads(line) for line in place.out("trace", "show", "--format", "jsonl").splitlines()
    ]
    accepted = [
        e["body"] for e in events if e["event_type"] == "net_accept" and e["component"] == "world"
    ]
    assert len(accepted) == 22
    assert {(body["ip"], body["local_port"]) for body in accepted} == {("127.0.0.1", 80)}
    closed = {e["body"]["connection"]: e["body"] for e in events if e["event_type"] == "net_close"}
    big = max((closed[body["connection"]] for body in accepted), key=lambda b: b["bytes_in"])
    assert (big["bytes_in"], big["bytes_out"]) == (3 << 20, 6 << 20)
    (end,) = (e["body"] for e in events if e["event_type"] == "command_end")
    (scope,) = (s for s in end["scopes_used"] if s["scope"] == "published:80")
    assert scope["connections"] == 22


def test_a_port_that_nobody_in_the_world_has_refuses(place):
    port = free_port()
    waits = place.start_with_input("--publish", f"{port}:80", "-c", "echo ready; read x")
    assert waits.stdout.readline() == b"ready\n"
    with (
        pytest.raises(ConnectionError),
        socket.create_connection(("127.0.0.1", port), timeout=20) as client,
    ):
        assert client.recv(1) == b"something"
    waits.communicate(b"\n", timeout=30)
    assert waits.returncode == 0


def test_a_port_that_is_taken_is_told_before_the_command_runs(place):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = place.run("--publish", f"{port}:80", "-c", "touch ran", status=125)
    assert f"port {port} of 127.0.0.1 cannot be published".encode() in done.stderr
    done = place.run("--net", "none", "--publish", "1:2", "-c", "true", status=2)
    assert b"filtered network only" in done.stderr
